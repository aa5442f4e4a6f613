// embergate bench: how fast this machine runs a model, and how near that is to what the machine can do.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "engine/cpus.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/machine_limits.h"
#include "nlohmann/json.hpp"
#include "server/cli/cli.h"
#include "server/cli/human.h"
#include "server/cli/local_model.h"
#include "server/machine_state.h"

namespace embergate::server {
namespace {

using engine::Chunk;
using engine::LogitsWanted;
using engine::StepOp;
using engine::StepProfile;

constexpr char kCommand[] = "bench";

struct Flags {
  LocalModelFlags model;
  int prefill = 512;
  int chunk = 256;
  std::vector<int> batches = {1, 2, 4, 8};
  int context = 0;
  int tokens = 16;  // decode steps of one run
  int repeat = 5;
  std::string inject_read_delay;
  bool profile = false;
  bool machine = true;
  bool machine_only = false;
  std::string state = DefaultMachineStatePath();
  bool json = false;
};

// One case: its runs' seconds and what a run's steps did.
struct Result {
  std::string name;
  int tokens_per_run = 0;
  int steps_per_run = 0;
  std::vector<double> seconds;
  StepProfile profile;  // of all runs

  double median() const {
    std::vector<double> sorted = seconds;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
  double tokens_per_second() const { return tokens_per_run / median(); }
  double runs() const { return static_cast<double>(seconds.size()); }
};

// Token ids in a random order without repetition (until the vocabulary is used up): no row is asked for twice, so every
// row comes from flash.
class DistinctTokens {
 public:
  explicit DistinctTokens(int vocab) : ids_(static_cast<size_t>(vocab)) {
    std::iota(ids_.begin(), ids_.end(), 0);
    std::mt19937 random(1);
    std::shuffle(ids_.begin(), ids_.end(), random);
  }
  absl::Span<const int32_t> Take(size_t count) {
    if (next_ + count > ids_.size()) {
      next_ = 0;
    }
    next_ += count;
    return absl::MakeConstSpan(ids_).subspan(next_ - count, count);
  }

 private:
  std::vector<int32_t> ids_;
  size_t next_ = 0;
};

void Check(const absl::Status& status) {
  if (!status.ok()) {
    FailCommand(kCommand, std::string(status.message()), 1);
  }
}

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// A prompt of `tokens` in chunks; the logits of its last token, as a server wants them. Rows of the next chunk are read
// while one computes.
double RunPrefill(engine::DecoderModel& model, DistinctTokens& ids, int tokens, int chunk_tokens,
                  std::vector<float>& logits) {
  const absl::Span<const int32_t> prompt = ids.Take(static_cast<size_t>(tokens));
  Check(model.OpenSlot(0, tokens));
  const auto start = std::chrono::steady_clock::now();
  const auto wanted = [&](int begin) {
    return begin + chunk_tokens >= tokens ? LogitsWanted::kLast : LogitsWanted::kNone;
  };
  storage::RowTicket rows;
  for (int begin = 0; begin < tokens; begin += chunk_tokens) {
    Chunk chunk;
    chunk.tokens = prompt.subspan(begin, chunk_tokens);
    chunk.start = begin;
    chunk.logits = wanted(begin);
    chunk.rows = rows;
    rows = storage::RowTicket();
    const int next = begin + chunk_tokens;
    if (next < tokens) {
      if (!chunk.rows.valid()) {
        auto first = model.PrefetchChunkRows(chunk.tokens, chunk.logits);
        Check(first.status());
        chunk.rows = *first;
      }
      auto ticket = model.PrefetchChunkRows(prompt.subspan(next, chunk_tokens), wanted(next));
      Check(ticket.status());
      rows = *ticket;
    }
    Check(model.Step(absl::MakeSpan(&chunk, 1), absl::MakeSpan(logits), nullptr));
    Check(chunk.status);
  }
  const double seconds = SecondsSince(start);
  model.CloseSlot(0);
  return seconds;
}

// `steps` decode steps of `batch` sequences that hold `context` positions each.
double RunDecode(engine::DecoderModel& model, DistinctTokens& ids, int batch, int context, int steps,
                 std::vector<float>& logits) {
  for (int slot = 0; slot < batch; ++slot) {
    Check(model.OpenSlot(slot, context + steps));
    Check(model.SkipPositions(slot, context));
  }
  const auto start = std::chrono::steady_clock::now();
  std::vector<Chunk> chunks(static_cast<size_t>(batch));
  for (int step = 0; step < steps; ++step) {
    for (int slot = 0; slot < batch; ++slot) {
      chunks[slot] = Chunk();
      chunks[slot].slot = slot;
      chunks[slot].tokens = ids.Take(1);
      chunks[slot].start = context + step;
      chunks[slot].logits = LogitsWanted::kLast;
    }
    Check(model.Step(absl::MakeSpan(chunks), absl::MakeSpan(logits), nullptr));
    for (const Chunk& chunk : chunks) {
      Check(chunk.status);
    }
  }
  const double seconds = SecondsSince(start);
  for (int slot = 0; slot < batch; ++slot) {
    model.CloseSlot(slot);
  }
  return seconds;
}

// VmRSS or VmHWM of this process, in bytes.
uint64_t ProcessStatus(const std::string& key) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.rfind(key + ":", 0) == 0) {
      return std::stoull(line.substr(key.size() + 1)) * 1024;
    }
  }
  return 0;
}

nlohmann::json ToJson(const Result& result, const engine::MachineLimits& machine) {
  const double seconds = std::accumulate(result.seconds.begin(), result.seconds.end(), 0.0);
  const double tokens = result.runs() * result.tokens_per_run;
  nlohmann::json ops;
  for (int op = 0; op < static_cast<int>(StepOp::kCount); ++op) {
    ops[engine::NameOf(static_cast<StepOp>(op))] =
        static_cast<double>(result.profile.ns[op]) * 1e-9 / (result.runs() * result.steps_per_run);
  }
  const double run_seconds = result.runs() * result.median();
  const double bytes_per_second =
      static_cast<double>(result.profile.weight_bytes + result.profile.kv_bytes) / run_seconds;
  const double multiply_adds_per_second = static_cast<double>(result.profile.multiply_adds) / run_seconds;
  const double wait_seconds = static_cast<double>(result.profile.ns[static_cast<int>(StepOp::kRowWait)]) * 1e-9;
  const auto share = [](double value, double limit) { return limit > 0 ? value / limit : 0.0; };
  return {{"case", result.name},
          {"tokens", result.tokens_per_run},
          {"seconds", result.seconds},
          {"seconds_median", result.median()},
          {"tokens_per_second", result.tokens_per_second()},
          {"weight_bytes_per_token", static_cast<double>(result.profile.weight_bytes) / tokens},
          {"kv_bytes_per_token", static_cast<double>(result.profile.kv_bytes) / tokens},
          {"bytes_per_second", bytes_per_second},
          {"bandwidth_share", share(bytes_per_second, machine.read_bytes_per_second)},
          {"multiply_adds_per_token", static_cast<double>(result.profile.multiply_adds) / tokens},
          {"multiply_adds_per_second", multiply_adds_per_second},
          {"integer_peak_share", share(2 * multiply_adds_per_second, machine.integer_ops_per_second)},
          {"flash_wait_share", wait_seconds / seconds},
          {"seconds_per_step_by_op", ops}};
}

void PrintProfile(const Result& result) {
  const double steps = result.runs() * result.steps_per_run;
  const double total = static_cast<double>(result.profile.total_ns());
  std::vector<std::pair<uint64_t, StepOp>> ops;
  for (int op = 0; op < static_cast<int>(StepOp::kCount); ++op) {
    ops.emplace_back(result.profile.ns[op], static_cast<StepOp>(op));
  }
  std::sort(ops.rbegin(), ops.rend());
  std::printf("  by operation, of a step of %.3f ms:\n", total * 1e-6 / steps);
  for (const auto& [ns, op] : ops) {
    if (ns > 0) {
      std::printf("    %-15s %9.3f ms  %5.1f %%\n", engine::NameOf(op), static_cast<double>(ns) * 1e-6 / steps,
                  100.0 * static_cast<double>(ns) / total);
    }
  }
}

void Print(const Result& result, const nlohmann::json& values) {
  const auto number = [&](const char* key) { return values[key].get<double>(); };
  std::printf("%-20s %8.2f tok/s  %9s weights/token  %6.2f GB/s %3.0f %%  %7.1f GMAC/s %3.0f %%  flash wait %4.1f %%\n",
              result.name.c_str(), result.tokens_per_second(),
              HumanBytes(static_cast<uint64_t>(number("weight_bytes_per_token"))).c_str(),
              number("bytes_per_second") * 1e-9, number("bandwidth_share") * 100,
              number("multiply_adds_per_second") * 1e-9, number("integer_peak_share") * 100,
              number("flash_wait_share") * 100);
}

// The machine's limits alone, saved for `plan`.
void RunMachine(const Flags& flags) {
  if (!flags.model.isa.empty()) {
    Check(engine::ForceKernelIsa(flags.model.isa));
  }
  engine::ThreadPool pool(engine::ThreadsOrAll(flags.model.threads), engine::UsableCpus().unequal);
  const engine::MachineLimits limits = engine::MeasureMachine(pool, 2.0);
  MachineRates rates;
  rates.read_bytes_per_second = limits.read_bytes_per_second;
  rates.multiply_adds_per_second = limits.integer_ops_per_second / 2;
  rates.threads = pool.threads();
  rates.isa = engine::KernelIsa();
  if (rates.read_bytes_per_second <= 0) {
    FailCommand(kCommand, "not enough memory to measure its bandwidth", 1);
  }
  if (flags.json) {
    const nlohmann::json json = {{"machine_read_bytes_per_second", rates.read_bytes_per_second},
                                 {"machine_integer_ops_per_second", limits.integer_ops_per_second},
                                 {"machine_integer_loop", limits.integer_loop},
                                 {"threads", rates.threads},
                                 {"isa", rates.isa}};
    std::printf("%s\n", json.dump().c_str());
  } else {
    std::printf("this machine, %d threads, %s kernels: reads %.1f GB/s, %.0f integer GOP/s (%s)\n", rates.threads,
                rates.isa.c_str(), rates.read_bytes_per_second * 1e-9, limits.integer_ops_per_second * 1e-9,
                limits.integer_loop.c_str());
  }
  if (flags.state.empty()) {
    FailCommand(kCommand, "there is no home folder to save this in for `embergate plan`; give --state FILE", 1);
  }
  Check(SaveMachineRates(flags.state, rates));
  if (!flags.json) {
    std::printf("saved in %s for `embergate plan`\n", flags.state.c_str());
  }
}

void Run(const Flags& flags) {
  if (flags.machine_only) {
    RunMachine(flags);
    return;
  }
  if (flags.model.path.empty()) {
    FailCommand(kCommand, "MODEL.gguf is required (or --machine, to measure this machine alone)", 2);
  }
  const int batch_max = *std::max_element(flags.batches.begin(), flags.batches.end());
  engine::DecoderOptions options;
  options.context_max = std::max(flags.prefill, flags.context + flags.tokens);
  options.slots_max = batch_max;
  options.kv_tokens_max = 0;
  options.step_tokens_max = std::max({flags.chunk, batch_max, 1});
  if (!flags.inject_read_delay.empty()) {
    absl::Duration delay;
    if (!absl::ParseDuration(flags.inject_read_delay, &delay) || delay < absl::ZeroDuration() ||
        delay > absl::Seconds(1)) {
      FailCommand(kCommand, "--inject-read-delay: a time such as 2ms, of at most 1s, is wanted", 2);
    }
    storage::FaultOptions faults;
    faults.delay_ns_min = faults.delay_ns_max = static_cast<uint64_t>(absl::ToInt64Nanoseconds(delay));
    options.rows.test_hooks.faults = faults;
  }
  LocalModel local = LoadLocalModel(kCommand, flags.model, options);
  engine::DecoderModel& model = *local.model;
  if (model.limits().context_max < options.context_max) {
    FailCommand(kCommand,
                absl::StrCat("the model's context is ", model.limits().context_max, ", ", options.context_max,
                             " was asked for"),
                2);
  }
  DistinctTokens ids(model.limits().vocab_size);
  std::vector<float> logits(static_cast<size_t>(batch_max) * model.limits().vocab_size);

  const engine::MachineLimits machine = flags.machine ? engine::MeasureMachine(*local.pool) : engine::MachineLimits();
  nlohmann::json report = {{"model", model.info().name},
                           {"weight_types", model.info().weight_types},
                           {"threads", local.pool->threads()},
                           {"isa", engine::KernelIsa()},
                           {"repeat", flags.repeat},
                           {"load_seconds", local.load_seconds},
                           {"machine_read_bytes_per_second", machine.read_bytes_per_second},
                           {"machine_integer_ops_per_second", machine.integer_ops_per_second},
                           {"machine_integer_loop", machine.integer_loop},
                           {"cases", nlohmann::json::array()}};
  if (!flags.json) {
    std::printf("%s (%s), %d threads, %s kernels, median of %d\n", model.info().name.c_str(),
                model.info().weight_types.c_str(), local.pool->threads(), engine::KernelIsa(), flags.repeat);
    if (flags.machine) {
      std::printf("this machine: reads %.1f GB/s, %.0f integer GOP/s (%s); the shares below are of these\n",
                  machine.read_bytes_per_second * 1e-9, machine.integer_ops_per_second * 1e-9,
                  machine.integer_loop.c_str());
    }
  }
  const auto measure = [&](std::string name, int tokens, int steps, auto&& run) {
    Result result;
    result.name = std::move(name);
    result.tokens_per_run = tokens;
    result.steps_per_run = steps;
    run();  // warms caches and clocks; not counted
    model.ResetProfile();
    for (int i = 0; i < flags.repeat; ++i) {
      result.seconds.push_back(run());
    }
    result.profile = model.profile();
    report["cases"].push_back(ToJson(result, machine));
    if (!flags.json) {
      Print(result, report["cases"].back());
      if (flags.profile) {
        PrintProfile(result);
      }
      std::fflush(stdout);
    }
  };
  if (flags.prefill > 0) {
    const int steps = (flags.prefill + flags.chunk - 1) / flags.chunk;
    measure(absl::StrCat("prefill ", flags.prefill), flags.prefill, steps,
            [&] { return RunPrefill(model, ids, flags.prefill, flags.chunk, logits); });
  }
  std::vector<int> contexts = {0};
  if (flags.context > 0) {
    contexts.push_back(flags.context);
  }
  for (const int context : contexts) {
    for (const int batch : flags.batches) {
      if (flags.tokens > 0) {
        measure(absl::StrCat("decode x", batch, " at ", context), batch * flags.tokens, flags.tokens,
                [&] { return RunDecode(model, ids, batch, context, flags.tokens, logits); });
      }
    }
  }
  const storage::RowStoreStats rows = model.RowStats();
  report["rss_bytes"] = ProcessStatus("VmRSS");
  report["rss_peak_bytes"] = ProcessStatus("VmHWM");
  report["memory"] = nlohmann::json::object();
  for (const engine::MemoryPart& part : model.Memory()) {
    report["memory"][part.name] = part.bytes;
  }
  report["rows"] = {{"backend", rows.backend},  {"direct_io", rows.direct_io},   {"read", rows.rows_read},
                    {"bytes", rows.bytes_read}, {"cache_hits", rows.cache_hits}, {"reads", rows.reads},
                    {"batches", rows.batches}};
  if (flags.json) {
    std::printf("%s\n", report.dump().c_str());
    return;
  }
  std::printf("loaded in %.1f s; resident %s (peak %s):", local.load_seconds, HumanBytes(report["rss_bytes"]).c_str(),
              HumanBytes(report["rss_peak_bytes"]).c_str());
  for (const engine::MemoryPart& part : model.Memory()) {
    std::printf(" %s %s", part.name.c_str(), HumanBytes(part.bytes).c_str());
  }
  std::printf("\nrows from flash: %llu by %s%s, %s\n", static_cast<unsigned long long>(rows.rows_read),
              rows.backend.c_str(), rows.direct_io ? " with O_DIRECT" : "", HumanBytes(rows.bytes_read).c_str());
}

}  // namespace

void AddBench(CLI::App& app) {
  CLI::App* bench = app.add_subcommand("bench", "Measure prefill and decode on this machine");
  auto flags = std::make_shared<Flags>();
  AddLocalModelOptions(*bench, flags->model);
  bench->get_option("model")->required(false);
  bench->add_flag("--machine", flags->machine_only,
                  "Measure this machine's limits alone, without a model, and save them for `embergate plan`");
  bench->add_option("--state", flags->state, "Where --machine saves")->type_name("FILE")->capture_default_str();
  bench->add_option("--prefill", flags->prefill, "Tokens of the prompt; 0 = no prefill")
      ->check(CLI::Range(0, 1 << 17))
      ->capture_default_str();
  bench->add_option("--chunk", flags->chunk, "Prompt tokens per step")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  bench->add_option("--batch", flags->batches, "Sequences that decode together, such as 1,2,4,8")
      ->delimiter(',')
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  bench->add_option("--context", flags->context, "Measure decode with this many positions before it, too")
      ->check(CLI::Range(0, 1 << 17))
      ->capture_default_str();
  bench->add_option("--tokens", flags->tokens, "Decode steps of one run; 0 = no decode")
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  bench->add_option("--repeat", flags->repeat, "Runs of each case, after one that does not count")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  bench
      ->add_option("--inject-read-delay", flags->inject_read_delay,
                   "Hold the answer of every read back by this time, to imitate a slow device: 2ms is an SD card")
      ->type_name("TIME");
  bench->add_flag("--profile", flags->profile, "Show where a step's time goes");
  bench->add_flag("!--no-machine", flags->machine, "Do not measure the machine's limits first");
  bench->add_flag("--json", flags->json, "One JSON object instead of the table");
  bench->footer(
      "Token ids are random and distinct, so that every row of the per-layer table comes from flash.\n"
      "Exit codes: 0 done, 1 failed while computing, 2 the model or a setting cannot be used.");
  bench->callback([flags] { Run(*flags); });
}

}  // namespace embergate::server
