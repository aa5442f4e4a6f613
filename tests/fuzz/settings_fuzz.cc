// Any bytes as each of the small texts that the server and its tools read: API keys, the config file, a hot list, the
// device's profile, a traceparent, a metrics page, a size.
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "server/api_keys.h"
#include "server/call_identity.h"
#include "server/cli/metrics_page.h"
#include "server/config.h"
#include "server/device_state.h"
#include "server/hot_list.h"
#include "server/process_memory.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/fuzz/text_fuzz_util.h"

namespace {

namespace server = embergate::server;
using embergate::engine::FuzzRequire;

// A file with these bytes, in memory where the system has such a folder.
const std::string& FileOf(const std::string& text) {
  static const std::string* const path = [] {
    std::string form = access("/dev/shm", W_OK) == 0 ? "/dev/shm/embergate_fuzz_XXXXXX" : "/tmp/embergate_fuzz_XXXXXX";
    const int fd = mkstemp(form.data());
    FuzzRequire(fd >= 0);
    close(fd);
    auto* made = new std::string(form);
    std::atexit([] { unlink(FileOf("").c_str()); });
    return made;
  }();
  std::ofstream(*path, std::ios::binary | std::ios::trunc) << text;
  return *path;
}

void Keys(const std::string& text) {
  const auto clients = server::ParseApiKeys(text);
  if (!clients.ok()) {
    FuzzRequire(absl::IsInvalidArgument(clients.status()));
    return;
  }
  FuzzRequire(clients->size() <= server::kApiClientsMax);
  std::string again;
  std::set<std::string> names;
  for (const server::ApiClient& client : *clients) {
    FuzzRequire(!client.keys.empty() && client.limits.weight >= 0.01 && client.limits.weight <= 100);
    FuzzRequire(names.insert(client.name).second);
    again += server::ApiClientLine(client) + "\n";
  }
  const auto reread = server::ParseApiKeys(again);
  FuzzRequire(reread.ok() && reread->size() == clients->size());
}

void Config(const std::string& text) {
  CLI::App app;
  server::ServeFlags flags;
  server::AddServeOptions(app, flags);
  try {
    server::ApplyConfigFile(FileOf(text), app);
  } catch (const CLI::Error& error) {
    FuzzRequire(error.get_exit_code() != 0);
  }
}

void HotList(const std::string& text) {
  embergate::engine::ModelInfo model;
  model.vocab_size = 1000;
  const auto tokens = server::LoadHotList(FileOf(text), model);
  if (tokens.ok()) {
    for (const int32_t token : *tokens) {
      FuzzRequire(token >= 0 && token < model.vocab_size);
    }
  }
}

void Device(const std::string& text) { (void)server::LoadDeviceProfile(FileOf(text), "/"); }

void Trace(const std::string& text) {
  if (const auto parent = server::ParseTraceparent(text); parent.has_value()) {
    FuzzRequire(parent->trace_id.size() == 32 && parent->span_id.size() == 16 && server::IsLabel(parent->trace_id));
  }
}

void Metrics(const std::string& text) {
  const server::MetricsPage page = server::MetricsPage::Parse(text);
  (void)page.Label("a", "b");
  (void)page.By("embergate_requests_total", "code");
  (void)server::QuantileBetween(page, page, "embergate_step_seconds", 0.5);
}

void Size(const std::string& text) { (void)server::ParseByteSize(text); }

constexpr void (*kReaders[])(const std::string&) = {Keys, Config, HotList, Device, Trace, Metrics, Size};

}  // namespace

// The first byte says which.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) {
    kReaders[data[0] % std::size(kReaders)](std::string(reinterpret_cast<const char*>(data) + 1, size - 1));
  }
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  const std::string digest(64, 'a');
  std::vector<std::string> seeds = {
      "# who\nalice sha256:" + digest + " requests-per-minute=60 tokens-per-minute=20000 streams=4\n" +
          "bob sha256:" + digest.substr(1) + "b priority=batch weight=2\n",
      "context = 160\nslots = 4 # few\nrow-cache = \"64MiB\"\nlisten = [\"127.0.0.1:1\", \"unix:/x\"]\nlog-json = "
      "true\n",
      R"({"version":1,"model":"x","vocab_size":1000,"tokens":[1,2,3]})",
      R"({"devices":[{"device":"8:1","queue_depth":16,"merge_gap_bytes":4096}]})",
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
      "# TYPE a counter\na{b=\"c\\\"d\",e=\"\\n\"} 1.5e3\nembergate_step_seconds_bucket{le=\"0.1\"} 3\n"
      "embergate_step_seconds_bucket{le=\"+Inf\"} 4\n",
      "1536.5MiB",
  };
  // What these two write themselves.
  const std::string path = FileOf("");
  embergate::engine::ModelInfo model;
  model.vocab_size = 1000;
  if (server::SaveHotList(path, model, {5, 6, 700}).ok()) {
    seeds[2] = std::string(std::istreambuf_iterator<char>(std::ifstream(path).rdbuf()), {});
  }
  for (size_t i = 0; i < seeds.size(); ++i) {
    seeds[i].insert(0, 1, static_cast<char>(i));
  }
  return seeds;
}
