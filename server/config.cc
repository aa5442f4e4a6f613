#include "server/config.h"

#include <arpa/inet.h>

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "engine/cpus.h"
#include "server/cli/human.h"
#include "server/device_state.h"
#include "server/process_memory.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

// --row-cache is EMBERGATE_ROW_CACHE.
std::string EnvironmentName(const std::string& flag) {
  return absl::StrCat("EMBERGATE_", absl::AsciiStrToUpper(absl::StrReplaceAll(flag, {{"-", "_"}})));
}

template <typename T>
CLI::Option* Add(CLI::App& app, const std::string& name, T& value, const std::string& help) {
  return app.add_option(absl::StrCat("--", name), value, help)->envname(EnvironmentName(name))->capture_default_str();
}

CLI::Option* AddFlag(CLI::App& app, const std::string& name, bool& value, const std::string& help) {
  return app.add_flag(absl::StrCat("--", name), value, help)->envname(EnvironmentName(name));
}

absl::StatusOr<uint64_t> Size(const char* flag, const std::string& text, uint64_t low, uint64_t high) {
  absl::StatusOr<uint64_t> bytes = ParseByteSize(text);
  if (!bytes.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(flag, ": ", bytes.status().message()));
  }
  if (*bytes < low || *bytes > high) {
    return absl::InvalidArgumentError(
        absl::StrCat(flag, ": ", text, " is out of range; it must be ", HumanBytes(low), " to ", HumanBytes(high)));
  }
  return bytes;
}

}  // namespace

void AddModelOptions(CLI::App& app, ModelFlags& flags) {
  Add(app, "model", flags.model, "The model: a GGUF file (of a split one, any part)")->type_name("FILE");
  Add(app, "dram-budget", flags.dram_budget,
      "DRAM for everything: a size (1500MiB), auto (what cgroup and machine leave) or 0 (no limit)")
      ->type_name("SIZE");
  Add(app, "threads", flags.threads, "Threads that compute; 0 = one per CPU that the process may use")
      ->check(CLI::Range(0, 256));
  Add(app, "context", flags.context, "Tokens of one sequence, prompt and output; 0 = the model's own limit")
      ->check(CLI::Range(0, 1 << 20));
  Add(app, "slots", flags.slots, "Requests computed at once")->check(CLI::Range(1, 256));
  Add(app, "queue", flags.queue, "Requests that may wait for a slot")->check(CLI::Range(0, 65536));
  Add(app, "queue-tokens", flags.queue_tokens, "Prompt tokens of the waiting requests together")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  Add(app, "queue-bytes", flags.queue_bytes, "DRAM of the waiting requests together")->type_name("SIZE");
  Add(app, "kv-tokens", flags.kv_tokens, "Positions of the attention cache, all requests; 0 = context * slots")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 32));
  Add(app, "kv-type", flags.kv_type, "Element type of the attention cache")
      ->check(CLI::IsMember({"auto", "f32", "f16", "q8_0", "q4_0"}));
  Add(app, "prefix-cache", flags.prefix_cache,
      "DRAM for the attention cache of prompts to come that begin like past ones, besides what running requests leave "
      "unused; off = compute every prompt")
      ->type_name("SIZE");
  Add(app, "row-cache", flags.row_cache, "DRAM for recently used embedding rows")->type_name("SIZE");
  Add(app, "reader", flags.reader, "How rows are read from flash; auto falls back to pread where io_uring is refused")
      ->check(CLI::IsMember({"auto", "uring", "pread"}));
  Add(app, "queue-depth", flags.queue_depth,
      "Device reads in flight; 0 = what storage-test or an earlier start found best for this device")
      ->check(CLI::Range(0, 4096));
  AddFlag(app, "submission-polling", flags.submission_polling,
          "Let a kernel thread submit reads (io_uring's SQPOLL): spares system calls, costs a core while reads go on");
  AddFlag(app, "buffered-reads", flags.buffered_reads, "Read through the page cache instead of O_DIRECT");
  AddFlag(app, "table-resident", flags.table_resident,
          "Keep the per-layer embedding table in DRAM (for comparison; needs gigabytes)");
  Add(app, "step-tokens", flags.step_tokens, "Tokens computed in one step, all requests")->check(CLI::Range(1, 8192));
  Add(app, "prefill-chunk", flags.prefill_chunk, "Prompt tokens of one request in one step")
      ->check(CLI::Range(1, 8192));
  Add(app, "itl-target", flags.itl_target_ms,
      "Milliseconds between two tokens of a stream to aim for while prompts are computed beside it; 0 = no aim")
      ->check(CLI::Range(0, 60'000));
}

void AddServeOptions(CLI::App& app, ServeFlags& flags) {
  AddModelOptions(app, flags.model);
  Add(app, "listen", flags.listen, "Addresses of the gRPC server: HOST:PORT or unix:PATH")->delimiter(',');
  Add(app, "listen-when", flags.listen_when,
      "When these take connections: once the server has started, so that health checks and clients are told what it is "
      "doing; or only while it is ready, for proxies that do not ask for its health")
      ->check(CLI::IsMember({"started", "ready"}));
  Add(app, "metrics", flags.metrics, "HOST:PORT of the Prometheus endpoint (/metrics), or off");
  Add(app, "sysfs", flags.sysfs, "Where temperatures and clocks for the metrics are read")->type_name("FOLDER");
  Add(app, "log-level", flags.log_level, "Least severe messages that are logged")
      ->check(CLI::IsMember({"debug", "info", "warn", "error"}));
  AddFlag(app, "log-json", flags.log_json, "Log one JSON object per line");
  Add(app, "drain-timeout", flags.drain_timeout_seconds,
      "Seconds that running requests may take to finish after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0));
  Add(app, "hot-list", flags.hot_list,
      "Keep the ids of the most used rows in this file, and read those rows into the row cache at the next start")
      ->type_name("FILE");
  Add(app, "tls-cert", flags.tls_cert, "TLS: the server's certificate and its intermediates (PEM)")->type_name("FILE");
  Add(app, "tls-key", flags.tls_key, "TLS: the key of --tls-cert (PEM, without a password)")->type_name("FILE");
  Add(app, "tls-client-ca", flags.tls_client_ca, "Accept only clients with a certificate of this CA (PEM)")
      ->type_name("FILE");
  Add(app, "api-keys", flags.api_keys, "Accept only calls with a key of this file (see embergate keygen)")
      ->type_name("FILE");
  AddFlag(app, "allow-unauthenticated", flags.allow_unauthenticated,
          "Listen beyond this machine without --api-keys and --tls-client-ca: whoever reaches the port may call");
  AddFlag(app, "no-reflection", flags.no_reflection, "Do not offer gRPC reflection (never offered with --api-keys)");
  AddFlag(app, "channelz", flags.channelz, "Offer gRPC's channelz: who is connected, to anybody who may connect");
  AddFlag(app, "log-prompts", flags.log_prompts, "Log the requests themselves at level debug; never done otherwise");
  Add(app, "prompt-bytes-max", flags.prompt_bytes_max, "Text of one request")->type_name("SIZE");
  Add(app, "pending-bytes-max", flags.pending_bytes_max,
      "Answer that may wait for a client that reads slowly; past it, its stream ends")
      ->type_name("SIZE");
  Add(app, "grpc-buffers", flags.grpc_buffers, "DRAM for gRPC's buffers, all connections together")->type_name("SIZE");
  Add(app, "streams-per-connection", flags.streams_per_connection, "Calls at once on one connection")
      ->check(CLI::Range(1, 65536));
  Add(app, "max-connections", flags.max_connections, "Connections at once; more are closed as they come")
      ->check(CLI::Range(1, 65536));
  const CLI::Range day(0.0, 86400.0);
  const CLI::Range time(0.1, 86400.0);
  Add(app, "handshake-timeout", flags.handshake_timeout_seconds,
      "Seconds after which a connection that is no HTTP/2 one yet is closed")
      ->check(time);
  Add(app, "keepalive-time", flags.keepalive_time_seconds, "Seconds after which a silent client is pinged")
      ->check(time);
  Add(app, "keepalive-timeout", flags.keepalive_timeout_seconds,
      "Seconds that it may take to answer, before it is taken for dead and its calls are cancelled")
      ->check(time);
  Add(app, "max-connection-idle", flags.max_connection_idle_seconds,
      "Seconds after which a connection without calls is closed; 0 = never")
      ->check(day);
  Add(app, "max-connection-age", flags.max_connection_age_seconds,
      "Seconds after which a client is asked to connect anew, so that balancers can move it; calls under way finish; 0 "
      "= never")
      ->check(day);
}

bool IsLocalAddress(const std::string& address) {
  absl::string_view host = address;
  if (absl::StartsWith(host, "unix:") || absl::StartsWith(host, "unix-abstract:")) {
    return true;
  }
  absl::ConsumePrefix(&host, "ipv4:") || absl::ConsumePrefix(&host, "ipv6:");
  host = host.substr(0, host.rfind(':'));
  in_addr v4 = {};
  const bool loopback_v4 = inet_pton(AF_INET, std::string(host).c_str(), &v4) == 1 && ntohl(v4.s_addr) >> 24 == 127;
  return loopback_v4 || host == "localhost" || host == "[::1]";
}

void ApplyConfigFile(const std::string& path, CLI::App& app) {
  std::ifstream file(path);
  if (!file) {
    throw CLI::FileError::Missing(path);
  }
  for (const CLI::ConfigItem& item : CLI::ConfigTOML().from_config(file)) {
    CLI::Option* option = item.parents.empty() ? app.get_option_no_throw("--" + item.name) : nullptr;
    if (option == nullptr || item.name == "config" || item.name == "help") {
      throw CLI::ConfigError(absl::StrCat(path, ": \"", item.fullname(), "\" is no setting; they are those of --help"));
    }
    if (option->count() > 0) {
      continue;  // the command line or the environment has said it
    }
    for (const std::string& value : item.inputs) {
      option->add_result(value);
    }
    option->run_callback();
  }
}

absl::StatusOr<ModelHostOptions> Resolve(const ModelFlags& flags) {
  constexpr uint64_t kHuge = uint64_t{1} << 50;
  ModelHostOptions options;
  if (flags.model.empty()) {
    return absl::InvalidArgumentError("--model: which file to serve is required");
  }
  options.path = flags.model;
  options.threads = engine::ThreadsOrAll(flags.threads);
  engine::DecoderOptions& decoder = options.decoder;
  decoder.context_max = flags.context;
  decoder.slots_max = flags.slots;
  decoder.kv_tokens_max = flags.kv_tokens;
  decoder.step_tokens_max = flags.step_tokens;
  decoder.table_resident = flags.table_resident;
  static constexpr struct {
    const char* name;
    engine::KvType type;
  } kKvTypes[] = {{"auto", engine::KvType::kAuto},
                  {"f32", engine::KvType::kF32},
                  {"f16", engine::KvType::kF16},
                  {"q8_0", engine::KvType::kQ8_0},
                  {"q4_0", engine::KvType::kQ4_0}};
  for (const auto& candidate : kKvTypes) {
    if (flags.kv_type == candidate.name) {
      decoder.kv_type = candidate.type;
    }
  }
  decoder.prefix_cache = flags.prefix_cache != "off";
  options.engine.share_prefixes = decoder.prefix_cache;
  if (decoder.prefix_cache) {
    EMBERGATE_ASSIGN_OR_RETURN(decoder.prefix_cache_bytes, Size("--prefix-cache", flags.prefix_cache, 0, kHuge));
  }
  decoder.rows.reader = flags.reader == "uring"   ? storage::ReaderKind::kUring
                        : flags.reader == "pread" ? storage::ReaderKind::kPread
                                                  : storage::ReaderKind::kAuto;
  if (flags.queue_depth > 0) {
    decoder.rows.queue_depth = flags.queue_depth;
  } else if (const auto device = LoadDeviceProfile(DefaultDeviceStatePath(), flags.model); device.ok()) {
    decoder.rows.queue_depth = device->queue_depth;
    decoder.rows.merge_gap_bytes = device->merge_gap_bytes;
  } else {
    options.measure_device = true;
    options.device_state_path = DefaultDeviceStatePath();
  }
  decoder.rows.submission_polling = flags.submission_polling;
  decoder.rows.direct_io = !flags.buffered_reads;
  EMBERGATE_ASSIGN_OR_RETURN(decoder.rows.cache_bytes, Size("--row-cache", flags.row_cache, 0, kHuge));
  if (flags.dram_budget == "auto") {
    absl::StatusOr<uint64_t> budget = DetectDramBudget();
    // Where nothing can be detected, nothing is enforced; an explicit size still would be.
    decoder.dram_budget_bytes = budget.value_or(0);
  } else {
    EMBERGATE_ASSIGN_OR_RETURN(decoder.dram_budget_bytes, Size("--dram-budget", flags.dram_budget, 0, kHuge));
  }
  options.engine.waiting_max = flags.queue;
  options.engine.waiting_tokens_max = flags.queue_tokens;
  EMBERGATE_ASSIGN_OR_RETURN(const uint64_t queue_bytes, Size("--queue-bytes", flags.queue_bytes, 4096, kHuge));
  options.engine.waiting_bytes_max = static_cast<int64_t>(queue_bytes);
  options.engine.prefill_chunk_max = std::min(flags.prefill_chunk, flags.step_tokens);
  options.engine.itl_target = absl::Milliseconds(flags.itl_target_ms);
  options.engine.pause_after_tokens = options.threads >= engine::ThreadsOrAll(0);
  return options;
}

namespace {

// Who may connect and call.
absl::Status ResolveAccess(const ServeFlags& flags, ServeConfig& config) {
  if (flags.tls_cert.empty() != flags.tls_key.empty()) {
    return absl::InvalidArgumentError("--tls-cert and --tls-key: one is of no use without the other");
  }
  if (!flags.tls_client_ca.empty() && flags.tls_cert.empty()) {
    return absl::InvalidArgumentError("--tls-client-ca: needs --tls-cert and --tls-key");
  }
  config.tls_files = {flags.tls_cert, flags.tls_key, flags.tls_client_ca};
  if (!flags.tls_cert.empty()) {
    EMBERGATE_ASSIGN_OR_RETURN(config.grpc.tls, ReadTlsMaterial(config.tls_files));
  }
  config.api_keys_path = flags.api_keys;
  if (!flags.api_keys.empty()) {
    EMBERGATE_ASSIGN_OR_RETURN(config.grpc.clients, ReadApiKeys(flags.api_keys));
  }
  config.grpc.channelz = flags.channelz;
  if (flags.allow_unauthenticated || !flags.tls_client_ca.empty()) {
    return absl::OkStatus();
  }
  for (const std::string& address : flags.listen) {
    if (IsLocalAddress(address)) {
      continue;
    }
    if (flags.api_keys.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--listen ", address,
          " can be reached from other machines, and anybody there could use the model. Give "
          "--api-keys FILE (embergate keygen makes keys) or --tls-client-ca FILE, listen on 127.0.0.1, or say "
          "--allow-unauthenticated if a firewall or a gateway decides who comes here"));
    }
    if (flags.channelz) {
      return absl::InvalidArgumentError(
          absl::StrCat("--channelz shows who is connected and asks for no API key, and --listen ", address,
                       " can be reached from other machines; give --tls-client-ca FILE, or listen on 127.0.0.1"));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ServeConfig> Resolve(const ServeFlags& flags) {
  ServeConfig config;
  EMBERGATE_ASSIGN_OR_RETURN(config.model, Resolve(flags.model));
  config.grpc.addresses = flags.listen;
  config.grpc.listen_when_ready = flags.listen_when == "ready";
  EMBERGATE_ASSIGN_OR_RETURN(uint64_t prompt_bytes,
                             Size("--prompt-bytes-max", flags.prompt_bytes_max, 1024, 64u << 20));
  EMBERGATE_ASSIGN_OR_RETURN(uint64_t pending_bytes,
                             Size("--pending-bytes-max", flags.pending_bytes_max, 4096, 1u << 30));
  config.grpc.service.limits.prompt_bytes_max = static_cast<int64_t>(prompt_bytes);
  config.grpc.service.pending_bytes_max = static_cast<size_t>(pending_bytes);
  // Room for the prompt as text or as ids of up to five bytes each, and everything else.
  config.grpc.message_bytes_max = static_cast<int>(std::max<uint64_t>(4u << 20, prompt_bytes + (1u << 20)));
  EMBERGATE_ASSIGN_OR_RETURN(const uint64_t transport_bytes,
                             Size("--grpc-buffers", flags.grpc_buffers, 4u << 20, uint64_t{1} << 40));
  config.grpc.transport_bytes_max = static_cast<int64_t>(transport_bytes);
  config.model.transport_bytes_max = transport_bytes;
  config.model.pending_bytes_max = pending_bytes;
  config.grpc.streams_per_connection_max = flags.streams_per_connection;
  config.grpc.connections_max = flags.max_connections;
  config.grpc.reflection = !flags.no_reflection;
  config.grpc.handshake_timeout = absl::Seconds(flags.handshake_timeout_seconds);
  config.grpc.keepalive_time = absl::Seconds(flags.keepalive_time_seconds);
  config.grpc.keepalive_timeout = absl::Seconds(flags.keepalive_timeout_seconds);
  config.grpc.connection_idle_max = absl::Seconds(flags.max_connection_idle_seconds);
  config.grpc.connection_age_max = absl::Seconds(flags.max_connection_age_seconds);
  config.grpc.service.log_prompts = flags.log_prompts;
  EMBERGATE_RETURN_IF_ERROR(ResolveAccess(flags, config));
  config.metrics_address = flags.metrics == "off" ? "" : flags.metrics;
  config.sysfs = flags.sysfs;
  config.log_level = flags.log_level;
  config.log_json = flags.log_json;
  config.drain_timeout = absl::Seconds(flags.drain_timeout_seconds);
  config.hot_list_path = flags.hot_list;
  return config;
}

}  // namespace embergate::server
