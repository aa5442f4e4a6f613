#include "server/metrics.h"

#include <prometheus/exposer.h>

#include <chrono>
#include <exception>
#include <limits>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "engine/engine.h"
#include "server/board_sensors.h"
#include "server/dram_plan.h"
#include "server/process_memory.h"
#include "server/version.h"
#include "storage/stats.h"

namespace embergate::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;
using Labels = std::vector<std::pair<std::string, std::string>>;

// Builds the families of one scrape. A family's samples are added right after it is begun.
class Page {
 public:
  void Begin(MetricType type, const char* name, const char* help) {
    families_.emplace_back();
    families_.back().name = name;
    families_.back().help = help;
    families_.back().type = type;
  }
  void Sample(double value, const Labels& labels = {}) {
    ClientMetric& metric = Add(labels);
    if (families_.back().type == MetricType::Counter) {
      metric.counter.value = value;
    } else {
      metric.gauge.value = value;
    }
  }
  void Counter(const char* name, const char* help, double value) {
    Begin(MetricType::Counter, name, help);
    Sample(value);
  }
  void Gauge(const char* name, const char* help, double value) {
    Begin(MetricType::Gauge, name, help);
    Sample(value);
  }
  // counts.size() == bounds.size() + 1.
  template <typename Bounds, typename Counts>
  void Histogram(const char* name, const char* help, const Bounds& bounds, const Counts& counts, double bound_scale,
                 double sum) {
    Begin(MetricType::Histogram, name, help);
    ClientMetric::Histogram& histogram = Add({}).histogram;
    uint64_t cumulative = 0;
    for (size_t i = 0; i < counts.size(); ++i) {
      cumulative += counts[i];
      ClientMetric::Bucket bucket;
      bucket.cumulative_count = cumulative;
      bucket.upper_bound =
          i < bounds.size() ? static_cast<double>(bounds[i]) * bound_scale : std::numeric_limits<double>::infinity();
      histogram.bucket.push_back(bucket);
    }
    histogram.sample_count = cumulative;
    histogram.sample_sum = sum;
  }
  std::vector<MetricFamily> Take() { return std::move(families_); }

 private:
  ClientMetric& Add(const Labels& labels) {
    families_.back().metric.emplace_back();
    ClientMetric& metric = families_.back().metric.back();
    for (const auto& [name, value] : labels) {
      metric.label.push_back({name, value});
    }
    return metric;
  }

  std::vector<MetricFamily> families_;
};

double Seconds(uint64_t ns) { return static_cast<double>(ns) * 1e-9; }

void AddServer(const Lifecycle& lifecycle, const ServerStats& stats, double start_seconds, Page& page) {
  page.Begin(MetricType::Gauge, "embergate_build_info", "Always 1; the label tells the version.");
  page.Sample(1, {{"version", kVersion}});
  page.Gauge("embergate_ready", "1 while health checks are told SERVING, 0 while loading, draining or flash fails.",
             lifecycle.ready() ? 1 : 0);
  page.Gauge("embergate_draining", "1 from the first SIGTERM on.", lifecycle.phase() == Phase::kDraining ? 1 : 0);
  page.Gauge("embergate_load_progress_ratio", "Part of the model that is loaded, 0 to 1.", lifecycle.load_progress());
  page.Begin(MetricType::Counter, "embergate_requests_total", "Calls that ended, by method and gRPC status code.");
  for (size_t method = 0; method < kMethodNames.size(); ++method) {
    for (int code = 0; code < kGrpcCodes; ++code) {
      const auto grpc_code = static_cast<grpc::StatusCode>(code);
      const uint64_t count = stats.requests(static_cast<Method>(method), grpc_code);
      // OK is always there, so that a rate has a beginning.
      if (count > 0 || code == 0) {
        page.Sample(static_cast<double>(count), {{"method", kMethodNames[method]}, {"code", GrpcCodeName(grpc_code)}});
      }
    }
  }
  page.Counter("embergate_slow_readers_total", "Streams that ended because the client read them too slowly.",
               static_cast<double>(stats.slow_readers.load(std::memory_order_relaxed)));
  const ProcessUsage usage = ReadProcessUsage();
  page.Gauge("process_resident_memory_bytes", "Resident memory of the process.",
             static_cast<double>(usage.resident_bytes));
  page.Counter("process_cpu_seconds_total", "User and system CPU time of the process.", usage.cpu_seconds);
  const StepThreadTimes steps = ReadStepThreadTimes();
  page.Counter("embergate_step_threads_cpu_seconds_total", "CPU time of the threads that compute steps.",
               steps.cpu_seconds);
  page.Counter("embergate_step_threads_delay_seconds_total",
               "Time that they could have run while another thread had their CPU.", steps.delay_seconds);
  page.Counter("process_major_page_faults_total", "Page faults that had to read from a device.",
               static_cast<double>(usage.major_faults));
  page.Gauge("process_open_fds", "Open file descriptors.", static_cast<double>(usage.open_fds));
  page.Gauge("process_start_time_seconds", "When the process started, seconds since the epoch.", start_seconds);
}

// Names of the API key file are labels: few, and the operator's own.
void AddClients(const Gatekeeper& gatekeeper, Page& page) {
  using Usage = ClientAccount::Usage;
  const std::vector<std::pair<std::string, Usage>> clients = gatekeeper.Usage();
  if (clients.empty()) {
    return;
  }
  page.Begin(MetricType::Counter, "embergate_unauthenticated_total", "Calls without a known API key.");
  page.Sample(static_cast<double>(gatekeeper.keys_missing()), {{"reason", "missing"}});
  page.Sample(static_cast<double>(gatekeeper.keys_unknown()), {{"reason", "unknown"}});
  page.Begin(MetricType::Counter, "embergate_client_requests_total", "Calls that an API key's rate let in.");
  for (const auto& [name, usage] : clients) {
    page.Sample(static_cast<double>(usage.requests), {{"client", name}});
  }
  page.Begin(MetricType::Counter, "embergate_client_tokens_total", "Tokens of prompts and answers, by API key.");
  for (const auto& [name, usage] : clients) {
    page.Sample(static_cast<double>(usage.tokens), {{"client", name}});
  }
  page.Begin(MetricType::Gauge, "embergate_client_streams", "Generate and Score calls under way, by API key.");
  for (const auto& [name, usage] : clients) {
    page.Sample(usage.streams, {{"client", name}});
  }
  page.Begin(MetricType::Counter, "embergate_client_refused_total", "Calls refused, by API key and exceeded limit.");
  for (const auto& [name, usage] : clients) {
    page.Sample(static_cast<double>(usage.refused_requests), {{"client", name}, {"limit", "requests"}});
    page.Sample(static_cast<double>(usage.refused_tokens), {{"client", name}, {"limit", "tokens"}});
    page.Sample(static_cast<double>(usage.refused_streams), {{"client", name}, {"limit", "streams"}});
  }
}

void AddAccess(GrpcServer& server, Page& page) {
  AddClients(server.gatekeeper(), page);
  if (server.acceptor() != nullptr) {
    const Acceptor::Stats connections = server.acceptor()->stats();
    page.Gauge("embergate_connections", "Connections to the gRPC server.", connections.open);
    page.Gauge("embergate_connections_max", "How many there may be at once.", connections.open_max);
    page.Counter("embergate_connections_accepted_total", "Connections that were taken.",
                 static_cast<double>(connections.accepted));
    page.Counter("embergate_connections_refused_total", "Connections closed at once, as there was no room.",
                 static_cast<double>(connections.refused));
    page.Counter("embergate_connections_cut_off_total",
                 "Connections ended for what they sent while the heap was too large.",
                 static_cast<double>(connections.cut_off));
  }
  if (server.tls() != nullptr) {
    uint64_t generation = 0;
    page.Gauge("embergate_tls_certificate_expiry_timestamp_seconds",
               "End of the server certificate's validity, seconds since the epoch.",
               static_cast<double>(absl::ToUnixSeconds(server.tls()->Get(&generation).expires)));
  }
  const ServerStats& stats = server.stats();
  page.Begin(MetricType::Counter, "embergate_model_changes_total",
             "Another model in place of the one served: beside it, after a drain, or not at all.");
  const auto changes = [&page](const char* outcome, const std::atomic<uint64_t>& count) {
    page.Sample(static_cast<double>(count.load(std::memory_order_relaxed)), {{"outcome", outcome}});
  };
  changes("beside", stats.model_changes_beside);
  changes("drained", stats.model_changes_drained);
  changes("failed", stats.model_changes_failed);
  page.Counter("embergate_reloads_total", "Settings, API keys or certificates read again and taken.",
               static_cast<double>(stats.reloads.load(std::memory_order_relaxed)));
  page.Counter("embergate_reload_failures_total", "Those that could not be used; the old ones stayed.",
               static_cast<double>(stats.reload_failures.load(std::memory_order_relaxed)));
}

void AddBoard(const BoardSensors& sensors, Page& page) {
  if (!sensors.temperatures.empty()) {
    page.Begin(MetricType::Gauge, "embergate_board_temperature_celsius", "The kernel's thermal zones.");
    for (const BoardSensors::Temperature& temperature : sensors.temperatures) {
      page.Sample(temperature.celsius, {{"zone", temperature.zone}});
    }
  }
  if (sensors.clocks.empty()) {
    return;
  }
  const auto clocks = [&](const char* name, const char* help, double BoardSensors::Clock::*value) {
    page.Begin(MetricType::Gauge, name, help);
    for (const BoardSensors::Clock& clock : sensors.clocks) {
      page.Sample(clock.*value, {{"policy", clock.policy}});
    }
  };
  clocks("embergate_cpu_frequency_hertz", "Clock of a group of cores.", &BoardSensors::Clock::current_hz);
  clocks("embergate_cpu_frequency_limit_hertz",
         "What the kernel allows now; below the maximum when heat or a setting holds the cores back.",
         &BoardSensors::Clock::limit_hz);
  clocks("embergate_cpu_frequency_max_hertz", "What the cores can do.", &BoardSensors::Clock::max_hz);
}

void AddEngine(const ServedModel& model, const engine::EngineStats& stats, Page& page) {
  static constexpr const char* kReasons[] = {"stop",       "stop_string", "length",   "context_full",
                                             "time_limit", "cancelled",   "deadline", "error"};
  static_assert(std::size(kReasons) == engine::kFinishReasons);
  page.Counter("embergate_requests_accepted_total", "Requests that the engine queued.",
               static_cast<double>(stats.requests_accepted));
  page.Counter("embergate_requests_refused_total", "Requests that the engine refused (queue full, invalid, draining).",
               static_cast<double>(stats.requests_refused));
  page.Counter("embergate_requests_refused_late_total", "Of these, those whose deadline could not be met.",
               static_cast<double>(stats.refused_late));
  page.Counter("embergate_preemptions_total", "Batch requests set aside for interactive ones.",
               static_cast<double>(stats.preemptions));
  page.Counter("embergate_energy_joules_total", "What the device consumed while steps ran; 0 without a meter.",
               stats.energy_joules);
  page.Begin(MetricType::Counter, "embergate_requests_finished_total", "Generations that ended, by reason.");
  for (size_t i = 0; i < std::size(kReasons); ++i) {
    page.Sample(static_cast<double>(stats.requests_finished[i]), {{"reason", kReasons[i]}});
  }
  page.Counter("embergate_prompt_tokens_total", "Prompt tokens computed.", static_cast<double>(stats.prompt_tokens));
  page.Counter("embergate_generation_tokens_total", "Tokens generated.", static_cast<double>(stats.generated_tokens));
  page.Gauge("embergate_num_requests_waiting", "Requests in the queue.", stats.waiting);
  page.Gauge("embergate_waiting_tokens", "Prompt tokens of the requests in the queue.",
             static_cast<double>(stats.waiting_tokens));
  page.Gauge("embergate_waiting_bytes", "DRAM that the requests in the queue hold.",
             static_cast<double>(stats.waiting_bytes));
  page.Gauge("embergate_num_requests_waiting_max", "Places in the queue.", model.waiting_max);
  page.Gauge("embergate_num_requests_running", "Requests being computed.", stats.running);
  page.Gauge("embergate_num_requests_running_max", "Requests that can be computed at once.", model.limits.slots_max);
  page.Gauge("embergate_kv_tokens_free", "Positions that the attention cache could still reserve.",
             static_cast<double>(stats.kv_tokens_free));
  page.Gauge("embergate_kv_tokens_max", "Positions of the attention cache.", static_cast<double>(model.kv_tokens_max));
  page.Gauge("embergate_kv_cache_usage_perc", "Part of the attention cache that requests have reserved, 0 to 1.",
             model.kv_tokens_max > 0
                 ? 1 - static_cast<double>(stats.kv_tokens_free) / static_cast<double>(model.kv_tokens_max)
                 : 0);
  const engine::PrefixCacheStats& prefix = stats.prefix_cache;
  page.Counter("embergate_prefix_cache_lookups_total", "Sequences that looked for their prompt in the prefix cache.",
               static_cast<double>(prefix.lookups));
  page.Counter("embergate_prefix_cache_hits_total", "Of these, those that found a part of it or all.",
               static_cast<double>(prefix.hits));
  page.Counter("embergate_prefix_cache_tokens_reused_total", "Prompt tokens that were not computed again.",
               static_cast<double>(prefix.tokens_reused));
  page.Counter("embergate_prefix_cache_evicted_blocks_total", "Blocks of 32 tokens given up for others.",
               static_cast<double>(prefix.blocks_evicted));
  page.Gauge("embergate_prefix_cache_tokens", "Tokens cached besides those of running requests.",
             static_cast<double>(prefix.tokens_cached));
  page.Gauge("embergate_prefix_cache_bytes", "Attention cache memory that holds them.",
             static_cast<double>(prefix.bytes_cached));
  page.Gauge("embergate_prefill_budget_tokens", "Prompt tokens that a step may compute beside streams at present.",
             stats.prefill_budget);
  page.Histogram("embergate_step_seconds", "One pass of the step loop that computed something.",
                 stats.step_seconds.bounds, stats.step_seconds.counts, 1, stats.step_seconds.sum);
  page.Counter("embergate_step_flash_wait_seconds_total", "Time that computing waited for flash.",
               Seconds(stats.row_wait_ns));
  page.Histogram("embergate_request_queue_time_seconds", "Accepted to first computing.", stats.queue_seconds.bounds,
                 stats.queue_seconds.counts, 1, stats.queue_seconds.sum);
  page.Histogram("embergate_time_to_first_token_seconds", "Accepted to first token.", stats.ttft_seconds.bounds,
                 stats.ttft_seconds.counts, 1, stats.ttft_seconds.sum);
  page.Histogram("embergate_inter_token_latency_seconds", "Between tokens of one stream.", stats.itl_seconds.bounds,
                 stats.itl_seconds.counts, 1, stats.itl_seconds.sum);
}

void AddModel(const ServedModel& model, Page& page) {
  page.Begin(MetricType::Gauge, "embergate_model_info", "Always 1; the labels tell what is loaded.");
  page.Sample(1, {{"name", model.info.name}, {"architecture", model.info.architecture}});
  page.Begin(MetricType::Gauge, "embergate_dram_bytes", "DRAM held, by part.");
  if (model.memory) {
    for (const engine::MemoryPart& part : model.memory()) {
      page.Sample(static_cast<double>(part.bytes), {{"part", part.name}});
    }
  }
  page.Gauge("embergate_dram_budget_bytes", "The DRAM budget; 0 = none set.",
             static_cast<double>(model.dram_budget_bytes));
}

void AddFlash(const storage::RowStoreStats& stats, bool flash_healthy, Page& page) {
  const bool both = !stats.backend_reason.empty() && !stats.direct_reason.empty();
  page.Begin(MetricType::Gauge, "embergate_flash_reader_info",
             "Always 1; the labels tell how rows are read, and why not through io_uring and O_DIRECT.");
  page.Sample(1, {{"backend", stats.backend},
                  {"reason", absl::StrCat(stats.backend_reason, both ? "; " : "", stats.direct_reason)},
                  {"direct_io", stats.direct_io ? "true" : "false"}});
  page.Counter("embergate_rows_requested_total", "Rows asked for.", static_cast<double>(stats.rows_requested));
  page.Counter("embergate_rows_deduplicated_total", "Of these, repeated within one submission.",
               static_cast<double>(stats.rows_deduplicated));
  page.Counter("embergate_row_cache_hits_total", "Distinct rows found in the row cache.",
               static_cast<double>(stats.cache_hits));
  page.Counter("embergate_row_cache_misses_total", "Distinct rows not found in the row cache.",
               static_cast<double>(stats.cache_misses));
  page.Counter("embergate_rows_read_total", "Rows read from flash.", static_cast<double>(stats.rows_read));
  page.Counter("embergate_flash_reads_total", "Device reads completed.", static_cast<double>(stats.reads));
  page.Counter("embergate_flash_read_batches_total", "Times that reads were handed to the device, many at once.",
               static_cast<double>(stats.batches));
  page.Counter("embergate_flash_read_bytes_total", "Bytes read from the device.",
               static_cast<double>(stats.bytes_read));
  page.Counter("embergate_flash_useful_bytes_total", "Of these, bytes of rows asked for.",
               static_cast<double>(stats.bytes_useful));
  page.Counter("embergate_flash_retries_total", "Reads that were tried again.", static_cast<double>(stats.retries));
  page.Gauge("embergate_flash_healthy", "0 while rows keep failing, 1 otherwise.", flash_healthy ? 1 : 0);
  page.Begin(MetricType::Counter, "embergate_flash_errors_total", "Reads that failed, by kind.");
  page.Sample(static_cast<double>(stats.errors_io), {{"kind", "io"}});
  page.Sample(static_cast<double>(stats.errors_short), {{"kind", "short"}});
  page.Sample(static_cast<double>(stats.errors_checksum), {{"kind", "checksum"}});
  page.Sample(static_cast<double>(stats.errors_changed), {{"kind", "file_changed"}});
  page.Sample(static_cast<double>(stats.errors_timeout), {{"kind", "timeout"}});
  page.Counter("embergate_rows_failed_total", "Rows given up after bounded retries.",
               static_cast<double>(stats.rows_failed));
  page.Counter("embergate_rows_joined_total", "Distinct rows that were being read already.",
               static_cast<double>(stats.rows_joined));
  page.Gauge("embergate_flash_reads_waiting", "Device reads that wait for a place in flight.",
             static_cast<double>(stats.backlog));
  page.Gauge("embergate_flash_reads_in_flight", "Device reads under way.", static_cast<double>(stats.in_flight));
  page.Gauge("embergate_flash_reads_in_flight_max", "Device reads that may be under way at once.",
             static_cast<double>(stats.queue_depth));
  page.Begin(MetricType::Gauge, "embergate_row_store_bytes", "DRAM of the row store, by part.");
  page.Sample(static_cast<double>(stats.cache_bytes), {{"part", "cache"}});
  page.Sample(static_cast<double>(stats.held_bytes), {{"part", "held_rows"}});
  page.Sample(static_cast<double>(stats.buffer_bytes), {{"part", "read_buffers"}});
  page.Sample(static_cast<double>(stats.checksum_bytes), {{"part", "checksums"}});
  page.Sample(static_cast<double>(stats.other_bytes), {{"part", "other"}});
  page.Counter("embergate_flash_wait_seconds_total", "Time that somebody waited for rows.", Seconds(stats.stall_ns));
  page.Histogram("embergate_flash_read_latency_seconds", "Device reads, submission to completion.",
                 storage::LatencyHistogram::kBoundsNs, stats.read_latency.counts, 1e-9,
                 Seconds(stats.read_latency.sum_ns));
}

}  // namespace

Metrics::Metrics(GrpcServer& server, std::string sysfs)
    : server_(server),
      sysfs_(std::move(sysfs)),
      start_seconds_(std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count()) {}

std::vector<MetricFamily> Metrics::Collect() const {
  Page page;
  const Lifecycle& lifecycle = server_.lifecycle();
  AddServer(lifecycle, server_.stats(), start_seconds_, page);
  AddAccess(server_, page);
  AddBoard(ReadBoardSensors(sysfs_), page);
  const ModelUse former = lifecycle.former();
  const engine::EngineStats former_stats = former != nullptr ? former->engine->Snapshot() : engine::EngineStats();
  page.Gauge("embergate_former_model_requests", "Requests that still run or wait on the model that was served before.",
             former_stats.running + former_stats.waiting);
  page.Gauge("embergate_former_model_bytes", "DRAM that it holds until they have ended.",
             former != nullptr && former->memory
                 ? static_cast<double>(TotalBytes(former->memory()) - SharedBytes(former->memory()))
                 : 0);
  if (const ModelUse model = lifecycle.model(); model != nullptr) {
    AddModel(*model, page);
    AddEngine(*model, model->engine->Snapshot(), page);
    if (model->row_stats) {
      AddFlash(model->row_stats(), lifecycle.flash_healthy(), page);
    }
  }
  return page.Take();
}

absl::StatusOr<std::unique_ptr<MetricsEndpoint>> MetricsEndpoint::Create(const std::string& address,
                                                                         std::shared_ptr<Metrics> metrics) {
  // Civetweb reports a taken port, a bad host and a bad syntax alike, by an exception with one text.
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/2);
    exposer->RegisterCollectable(metrics);
    return std::unique_ptr<MetricsEndpoint>(new MetricsEndpoint(std::move(exposer), std::move(metrics)));
  } catch (const std::exception& error) {
    return absl::UnavailableError(absl::StrCat("cannot serve metrics on ", address, " (", error.what(),
                                               "); is the port taken? Choose another with --metrics"));
  }
}

MetricsEndpoint::MetricsEndpoint(std::unique_ptr<prometheus::Exposer> exposer, std::shared_ptr<Metrics> metrics)
    : metrics_(std::move(metrics)), exposer_(std::move(exposer)) {}
MetricsEndpoint::~MetricsEndpoint() = default;

int MetricsEndpoint::port() const {
  const std::vector<int> ports = exposer_->GetListeningPorts();
  return ports.empty() ? 0 : ports.front();
}

}  // namespace embergate::server
