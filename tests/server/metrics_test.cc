// /metrics over HTTP: the names that dashboards rely on, and a form that a scraper accepts.
#include "server/metrics.h"

#include <map>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/scripted_server.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

std::string Scrape(int port) {
  std::string body = test::HttpGet(port, "/metrics");
  EXPECT_FALSE(body.empty());
  return body;
}

// Text exposition format: each family has one TYPE before its samples, numbers are numbers, no series twice.
void CheckExposition(const std::string& body, std::map<std::string, double>* samples) {
  std::map<std::string, std::string> types;
  std::istringstream lines(body);
  std::string line;
  while (std::getline(lines, line)) {
    if (line.empty()) continue;
    if (absl::StartsWith(line, "# TYPE ")) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      ASSERT_EQ(words.size(), 4u) << line;
      EXPECT_TRUE(types.emplace(words[2], words[3]).second) << "two families " << words[2];
      continue;
    }
    if (absl::StartsWith(line, "#")) continue;
    const size_t space = line.rfind(' ');
    ASSERT_NE(space, std::string::npos) << line;
    double value = 0;
    EXPECT_TRUE(absl::SimpleAtod(line.substr(space + 1), &value)) << line;
    const std::string series = line.substr(0, space);
    EXPECT_TRUE(samples->emplace(series, value).second) << "twice: " << series;
    std::string name = series.substr(0, series.find('{'));
    if (types.count(name) == 0) {
      for (const char* suffix : {"_bucket", "_sum", "_count"}) {
        if (absl::EndsWith(name, suffix)) name.resize(name.size() - std::string(suffix).size());
      }
      EXPECT_THAT(types[name], ::testing::AnyOf("histogram", "summary")) << line;
    } else if (types[name] == "counter") {
      EXPECT_TRUE(absl::EndsWith(name, "_total")) << name << " is a counter";
      EXPECT_GE(value, 0) << line;
    }
  }
}

TEST(MetricsTest, PageHasTheDocumentedSeries) {
  ScriptedServer server;
  auto metrics = std::make_shared<Metrics>(server.server());
  auto endpoint = MetricsEndpoint::Create("127.0.0.1:0", metrics);
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  ASSERT_TRUE(Generate(server.stub(), IdsRequest({2, 3, 4}, 9)).status.ok());
  ASSERT_FALSE(Generate(server.stub(), IdsRequest({2, 3, 4}, -1)).status.ok());

  std::map<std::string, double> samples;
  CheckExposition(Scrape((*endpoint)->port()), &samples);
  const auto has = [&](const std::string& series) {
    EXPECT_EQ(samples.count(series), 1u) << series;
    return samples[series];
  };
  EXPECT_EQ(has("embergate_ready"), 1);
  EXPECT_EQ(has("embergate_draining"), 0);
  EXPECT_EQ(has("embergate_load_progress_ratio"), 1);
  EXPECT_EQ(has(R"(embergate_requests_total{method="Generate",code="OK"})"), 1);
  EXPECT_EQ(has(R"(embergate_requests_total{method="Generate",code="INVALID_ARGUMENT"})"), 1);
  EXPECT_EQ(has(R"(embergate_requests_finished_total{reason="length"})"), 1);
  EXPECT_EQ(has("embergate_prompt_tokens_total"), 3);
  EXPECT_EQ(has("embergate_generation_tokens_total"), 9);
  EXPECT_EQ(has("embergate_num_requests_waiting"), 0);
  EXPECT_EQ(has("embergate_num_requests_running"), 0);
  EXPECT_EQ(has("embergate_time_to_first_token_seconds_count"), 1);
  EXPECT_EQ(has("embergate_inter_token_latency_seconds_count"), 8);
  EXPECT_EQ(has("embergate_request_queue_time_seconds_count"), 1);
  EXPECT_EQ(has(R"(embergate_request_queue_time_seconds_bucket{le="+Inf"})"), 1);
  EXPECT_EQ(has(R"(embergate_flash_reader_info{backend="pread",reason="scripted",direct_io="false"})"), 1);
  EXPECT_EQ(has(R"(embergate_dram_bytes{part="kv_cache"})"), 0);
  EXPECT_GT(has("process_resident_memory_bytes"), 1e6);
  EXPECT_GT(has("process_open_fds"), 3);
  for (const char* series : {"embergate_slow_readers_total",
                             "embergate_requests_accepted_total",
                             "embergate_requests_refused_total",
                             "embergate_step_seconds_count",
                             "embergate_step_flash_wait_seconds_total",
                             "embergate_kv_tokens_free",
                             "embergate_prefix_cache_lookups_total",
                             "embergate_prefix_cache_hits_total",
                             "embergate_prefix_cache_tokens_reused_total",
                             "embergate_prefix_cache_evicted_blocks_total",
                             "embergate_prefix_cache_tokens",
                             "embergate_prefix_cache_bytes",
                             "embergate_dram_budget_bytes",
                             "embergate_rows_requested_total",
                             "embergate_rows_deduplicated_total",
                             "embergate_row_cache_hits_total",
                             "embergate_row_cache_misses_total",
                             "embergate_rows_read_total",
                             "embergate_flash_reads_total",
                             "embergate_flash_read_bytes_total",
                             "embergate_flash_useful_bytes_total",
                             "embergate_flash_read_latency_seconds_count",
                             "embergate_flash_wait_seconds_total",
                             "embergate_flash_reads_in_flight",
                             "embergate_flash_read_batches_total",
                             "embergate_flash_healthy",
                             R"(embergate_row_store_bytes{part="held_rows"})",
                             "embergate_flash_retries_total",
                             R"(embergate_flash_errors_total{kind="checksum"})",
                             "process_cpu_seconds_total",
                             "process_start_time_seconds"}) {
    has(series);
  }
}

// Every family about flash and rows has its line in deploy/metrics.md, and every name there exists.
TEST(MetricsTest, FlashMetricsAreDocumented) {
  ScriptedServer server;
  const Metrics metrics(server.server());
  const std::string text = test::ReadFile(EMBERGATE_SOURCE_DIR "/deploy/metrics.md");
  std::set<std::string> documented;
  for (size_t begin = text.find("\n| `"); begin != std::string::npos; begin = text.find("\n| `", begin + 1)) {
    const std::string cell = text.substr(begin, text.find(" | ", begin + 2) - begin);
    for (size_t name = cell.find('`'); name != std::string::npos; name = cell.find('`', cell.find('`', name + 1) + 1)) {
      documented.insert(cell.substr(name + 1, cell.find_first_of("`{", name + 1) - name - 1));
    }
  }
  std::set<std::string> exported;
  for (const prometheus::MetricFamily& family : metrics.Collect()) {
    exported.insert(family.name);
    if (absl::StartsWith(family.name, "embergate_flash") || absl::StartsWith(family.name, "embergate_row")) {
      EXPECT_EQ(documented.count(family.name), 1u) << family.name;
    }
  }
  EXPECT_GT(documented.size(), 20u);
  // Those of keys, certificates and an own listener come only where there are such: see operator_test and abuse_test.
  for (const std::string& name : documented) {
    if (!absl::StartsWith(name, "embergate_client_") && !absl::StartsWith(name, "embergate_connections") &&
        !absl::StartsWith(name, "embergate_tls_") && !absl::StartsWith(name, "embergate_unauthenticated_")) {
      EXPECT_EQ(exported.count(name), 1u) << name;
    }
  }
}

TEST(MetricsTest, ScrapesBeforeTheModelIsLoaded) {
  ScriptedServerOptions options = SmallServer();
  options.ready = false;
  ScriptedServer server(options);
  server.server().lifecycle().SetLoadProgress(1, 4);
  auto endpoint = MetricsEndpoint::Create("127.0.0.1:0", std::make_shared<Metrics>(server.server()));
  ASSERT_TRUE(endpoint.ok());
  std::map<std::string, double> samples;
  CheckExposition(Scrape((*endpoint)->port()), &samples);
  EXPECT_EQ(samples["embergate_ready"], 0);
  EXPECT_EQ(samples["embergate_load_progress_ratio"], 0.25);
}

TEST(MetricsTest, TakenPortIsAnErrorNotACrash) {
  ScriptedServer server;
  auto metrics = std::make_shared<Metrics>(server.server());
  auto first = MetricsEndpoint::Create("127.0.0.1:0", metrics);
  ASSERT_TRUE(first.ok());
  const auto second = MetricsEndpoint::Create("127.0.0.1:" + std::to_string((*first)->port()), metrics);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(MetricsEndpoint::Create("nonsense", metrics).ok());
}

}  // namespace
}  // namespace embergate::server
