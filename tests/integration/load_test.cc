// The real server under load, within its own DRAM budget: all tests of this file run it in a memory cgroup of exactly
// that size where one can be made, and count its pages themselves in any case.
//
// Long form:  EMBERGATE_SOAK_SECONDS=3600 build/load_test --gtest_filter='*Soak*'
// with a real model:  EMBERGATE_LOAD_MODEL=MODEL.gguf (its answers have to be greedy-reproducible; any model's are)
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/memory_cgroup.h"
#include "tests/support/sanitized.h"
#include "tests/support/server_process.h"

namespace embergate {
namespace {

constexpr bool kMemoryCounts = !test::kSanitized;  // a sanitizer's shadow is in no budget

using test::MemoryCgroup;
using test::RunBinary;
using test::RunResult;
using test::ServerProcess;

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string ModelPath() {
  const std::string path = Environment("EMBERGATE_LOAD_MODEL");
  return path.empty() ? engine::GoldenGguf("gemma4-tiny-e2b", storage::TensorType::kQ8_0) : path;
}

// Kibibytes of a line of /proc/PID/FILE.
uint64_t KibOf(pid_t pid, const char* file, const std::string& key) {
  std::ifstream in(absl::StrCat("/proc/", pid, "/", file));
  std::string line;
  while (std::getline(in, line)) {
    uint64_t value = 0;
    if (line.rfind(key + ":", 0) == 0 &&
        absl::SimpleAtoi(absl::StripAsciiWhitespace(line.substr(key.size() + 1, line.size() - key.size() - 3)),
                         &value)) {
      return value;
    }
  }
  return 0;
}

double Metric(const ServerProcess& server, const std::string& name) {
  const std::string page = test::HttpGet(server.metrics_port(), "/metrics");
  const size_t at = page.find("\n" + name + " ");
  double value = -1;
  if (at != std::string::npos) {
    const size_t begin = at + name.size() + 2;
    (void)absl::SimpleAtod(page.substr(begin, page.find('\n', begin) - begin), &value);
  }
  return value;
}

// The budget that a server with these settings says it needs.
uint64_t SmallestBudget(const std::vector<std::string>& args) {
  std::vector<std::string> refused = args;
  refused.insert(refused.end(), {"--dram-budget", "1MiB"});
  ServerProcess server(EMBERGATE_BINARY, refused);
  EXPECT_EQ(server.WaitExit(), 2);
  const std::string log = server.log();
  const size_t at = log.find("smallest budget that would do");
  const size_t open = log.find('(', at);
  uint64_t bytes = 0;
  EXPECT_TRUE(at != std::string::npos && absl::SimpleAtoi(log.substr(open + 1, log.find(' ', open) - open - 1), &bytes))
      << log;
  return bytes;
}

// A server held to the smallest budget that it accepts, and a thread that watches what it really takes.
class BudgetedServer {
 public:
  explicit BudgetedServer(std::vector<std::string> args) {
    args.insert(args.end(), {"--model", ModelPath(), "--threads", "2"});
    budget_ = SmallestBudget(args);
    args.insert(args.end(), {"--dram-budget", absl::StrCat(budget_)});
    std::string why = "a sanitizer's build";
    cgroup_ = kMemoryCounts ? MemoryCgroup::Create(budget_, &why) : nullptr;
    if (cgroup_ == nullptr) {
      std::fprintf(stderr, "[ NOTE     ] no cgroup of %llu bytes (%s): counting pages only\n",
                   static_cast<unsigned long long>(budget_), why.c_str());
    }
    server_ = std::make_unique<ServerProcess>(EMBERGATE_BINARY, args, cgroup_ != nullptr ? cgroup_->procs_file() : "");
    EXPECT_TRUE(server_->WaitReady(std::chrono::seconds(120)));
    faults_when_ready_ = MajorFaults();
    watcher_ = std::thread([this] {
      while (!stop_.load()) {
        peak_pss_ = std::max<uint64_t>(peak_pss_, KibOf(server_->pid(), "smaps_rollup", "Pss") * 1024);
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    });
  }
  ~BudgetedServer() {
    StopWatching();
    server_.reset();  // before its cgroup
  }

  ServerProcess& server() { return *server_; }

  // `embergate load ARGS`; its report.
  nlohmann::json Load(std::vector<std::string> args, int code = 0) {
    args.insert(args.begin(), {"load", "--address", server_->address(), "--json"});
    const RunResult result = RunBinary(EMBERGATE_BINARY, args, "", std::chrono::hours(2));
    EXPECT_EQ(result.code, code) << result.err << result.out;
    nlohmann::json report = nlohmann::json::parse(result.out, nullptr, false);
    EXPECT_FALSE(report.is_discarded()) << result.out << result.err;
    return report;
  }

  uint64_t rss() const { return KibOf(server_->pid(), "status", "VmRSS") * 1024; }
  uint64_t MajorFaults() const {
    std::ifstream in(absl::StrCat("/proc/", server_->pid(), "/stat"));
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    const std::vector<std::string> fields = absl::StrSplit(text.substr(text.rfind(')') + 2), ' ');
    uint64_t faults = 0;
    EXPECT_TRUE(fields.size() > 9 && absl::SimpleAtoi(fields[9], &faults));
    return faults;
  }

  // Nothing of the load is left, the budget was kept, and the server ends in order.
  void ExpectClean() {
    EXPECT_EQ(Metric(*server_, "embergate_num_requests_running"), 0);
    EXPECT_EQ(Metric(*server_, "embergate_num_requests_waiting"), 0);
    EXPECT_EQ(Metric(*server_, "embergate_waiting_tokens"), 0);
    EXPECT_EQ(Metric(*server_, "embergate_waiting_bytes"), 0);
    EXPECT_EQ(Metric(*server_, "embergate_flash_reads_in_flight"), 0);
    StopWatching();
    EXPECT_GT(peak_pss_, 0u);
    if (kMemoryCounts) {
      EXPECT_LE(peak_pss_, budget_);
    }
    const uint64_t faults = MajorFaults() - faults_when_ready_;
    std::string held =
        absl::StrCat("budget ", budget_, ", PSS at most ", peak_pss_.load(), ", major faults since ready ", faults);
    if (cgroup_ != nullptr) {
      EXPECT_EQ(cgroup_->oom_kills(), 0u);
      EXPECT_LE(cgroup_->peak_bytes(), budget_);
      EXPECT_LE(faults, kFirstTouchesMax) << "the server's own pages were taken from it";
      absl::StrAppend(&held, ", cgroup at most ", cgroup_->peak_bytes(), ", page cache ", cgroup_->cache_bytes(),
                      ", limit hit ", cgroup_->limit_hits(), " times");
    }
    std::fprintf(stderr, "[ MEMORY   ] %s\n", held.c_str());
    server_->Signal(SIGTERM);
    EXPECT_EQ(server_->WaitExit(), 0);
  }

 private:
  void StopWatching() {
    stop_ = true;
    if (watcher_.joinable()) {
      watcher_.join();
    }
  }

  // Code that is touched for the first time may still have to be read. A server whose pages are taken has thousands.
  static constexpr uint64_t kFirstTouchesMax = 32;

  uint64_t budget_ = 0;
  uint64_t faults_when_ready_ = 0;
  std::unique_ptr<MemoryCgroup> cgroup_;
  std::unique_ptr<ServerProcess> server_;
  std::atomic<bool> stop_{false};
  std::thread watcher_;
  std::atomic<uint64_t> peak_pss_{0};
};

TEST(LoadTest, SixtyFourClientsAtOnceGetTheirTextOrATruthfulRefusal) {
  BudgetedServer budgeted({"--slots", "4", "--queue", "16", "--context", "160"});
  const nlohmann::json report =
      budgeted.Load({"--clients", "64", "--tokens", "100", "--prompt-tokens", "20", "--verify"});
  EXPECT_EQ(report["lost"], 0);
  EXPECT_EQ(report["wrong"], 0);
  EXPECT_EQ(report["calls"], 64);
  EXPECT_EQ(report["ok"].get<int>() + report["refused"].get<int>(), 64);
  EXPECT_GE(report["ok"].get<int>(), 20) << "slots and queue are full";
  EXPECT_EQ(report["refusals_without_matching_pushback"], 0);
  budgeted.ExpectClean();
}

TEST(LoadTest, WhoComesBackWhenToldToIsServed) {
  BudgetedServer budgeted({"--slots", "4", "--queue", "8", "--context", "160"});
  budgeted.Load({"--clients", "12", "--tokens", "100", "--prompt-tokens", "20"});  // speeds are known now
  const nlohmann::json report =
      budgeted.Load({"--clients", "48", "--tokens", "100", "--prompt-tokens", "20", "--retries", "100"});
  EXPECT_EQ(report["ok"], 48);
  budgeted.ExpectClean();
}

TEST(LoadTest, BatchWorkMakesRoomAndIsAnsweredInFull) {
  BudgetedServer budgeted({"--slots", "2", "--queue", "16", "--context", "160"});
  const nlohmann::json report =
      budgeted.Load({"--clients", "8", "--batch-clients", "4", "--requests", "40", "--tokens", "60", "--verify"});
  EXPECT_EQ(report["ok"], 40);
  EXPECT_EQ(report["wrong"], 0) << "a request that was set aside goes on with the same tokens";
  EXPECT_GT(report["preemptions"].get<int>(), 0);
  budgeted.ExpectClean();
}

TEST(LoadTest, AutoFindsTheCgroupsLimit) {
  if (!kMemoryCounts) {
    GTEST_SKIP() << "a sanitizer's build does not fit its budget";
  }
  const std::vector<std::string> args = {"--slots", "2", "--context", "160", "--threads", "1", "--model", ModelPath()};
  const uint64_t budget = SmallestBudget(args);
  std::string why;
  for (const bool enough : {true, false}) {
    const auto cgroup = MemoryCgroup::Create((enough ? budget + 4095 : budget - 1) / 4096 * 4096, &why);
    if (cgroup == nullptr) {
      GTEST_SKIP() << "no cgroup can be made: " << why;
    }
    std::vector<std::string> automatic = args;
    automatic.insert(automatic.end(), {"--dram-budget", "auto"});
    ServerProcess server(EMBERGATE_BINARY, automatic, cgroup->procs_file());
    if (enough) {
      EXPECT_TRUE(server.WaitReady());
      server.Signal(SIGTERM);
    }
    EXPECT_EQ(server.WaitExit(), enough ? 0 : 2) << server.log();
  }
}

TEST(LoadTest, SoakOfEverythingThatGoesWrong) {
  double seconds = 3;
  if (const std::string text = Environment("EMBERGATE_SOAK_SECONDS"); !text.empty()) {
    ASSERT_TRUE(absl::SimpleAtod(text, &seconds)) << text;
  }
  BudgetedServer budgeted({"--slots", "4", "--queue", "8", "--context", "160"});
  const auto run = [&](double duration, int seed) {
    return budgeted.Load({"--clients",       "16",   "--seconds",       absl::StrCat(duration),
                          "--prompts",       "24",   "--tokens",        "60",
                          "--prompt-tokens", "40",   "--batch-clients", "4",
                          "--cancelled",     "0.2",  "--hurried",       "0.1",
                          "--oversized",     "0.05", "--malformed",     "0.05",
                          "--retries",       "3",    "--verify",        "--seed",
                          absl::StrCat(seed)});
  };
  run(std::min(seconds, 20.0), 1);  // warms up
  const uint64_t rss = budgeted.rss();
  const uint64_t faults = budgeted.MajorFaults();
  const double kv_free = Metric(budgeted.server(), "embergate_kv_tokens_free");
  const nlohmann::json report = run(seconds, 2);
  EXPECT_EQ(report["lost"], 0);
  EXPECT_EQ(report["wrong"], 0);
  EXPECT_GT(report["ok"].get<int>(), 0);
  EXPECT_EQ(Metric(budgeted.server(), "embergate_kv_tokens_free"), kv_free) << "KV pages were lost";
  // Code that is touched for the first time may still have to be read.
  EXPECT_LE(budgeted.MajorFaults(), faults + 8) << "the server's own pages were taken from it";
  const uint64_t after = budgeted.rss();
  std::fprintf(stderr, "[ SOAK     ] %s\n[ MEMORY   ] RSS %llu before, %llu after\n", report.dump().c_str(),
               static_cast<unsigned long long>(rss), static_cast<unsigned long long>(after));
  if (kMemoryCounts) {
    EXPECT_LE(after, rss + (4u << 20)) << "memory grows";
  }
  budgeted.ExpectClean();
}

}  // namespace
}  // namespace embergate
