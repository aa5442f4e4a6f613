// Everything that `embergate serve` can be told: flag, EMBERGATE_* environment variable or key of the --config file,
// in this order of precedence.
#ifndef EMBERGATE_SERVER_CONFIG_H_
#define EMBERGATE_SERVER_CONFIG_H_

#include <CLI/CLI.hpp>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/grpc_server.h"
#include "server/model_host.h"
#include "server/tls.h"

namespace embergate::server {

// As given; sizes and durations are texts until Resolve.
struct ModelFlags {
  std::string model;
  std::string dram_budget = "auto";
  int threads = 0;  // 0 = one per CPU that the process may use
  int context = 4096;
  int slots = 8;
  int queue = 64;
  int64_t queue_tokens = 262144;
  std::string queue_bytes = "16MiB";
  int64_t kv_tokens = 0;
  std::string kv_type = "auto";
  std::string prefix_cache = "64MiB";
  std::string row_cache = "16MiB";
  std::string reader = "auto";
  int queue_depth = 0;
  bool submission_polling = false;
  bool buffered_reads = false;
  bool table_resident = false;
  int step_tokens = 256;
  int prefill_chunk = 128;
  int itl_target_ms = 200;
};

struct ServeFlags {
  ModelFlags model;
  std::vector<std::string> listen = {"127.0.0.1:50051"};
  std::string listen_when = "started";
  std::string metrics = "127.0.0.1:9464";  // "off" = none
  std::string sysfs = "/sys";
  std::string log_level = "info";
  bool log_json = false;
  double drain_timeout_seconds = 30;
  std::string hot_list;  // a file; empty = none
  bool no_reflection = false;
  bool channelz = false;
  bool log_prompts = false;
  std::string tls_cert;
  std::string tls_key;
  std::string tls_client_ca;
  std::string api_keys;
  bool allow_unauthenticated = false;
  double handshake_timeout_seconds = 10;
  double keepalive_time_seconds = 60;
  double keepalive_timeout_seconds = 20;
  double max_connection_idle_seconds = 1800;  // 0 = none
  double max_connection_age_seconds = 0;      // 0 = none
  std::string prompt_bytes_max = "1MiB";
  std::string pending_bytes_max = "1MiB";
  std::string grpc_buffers = "16MiB";
  int streams_per_connection = 64;
  int max_connections = 1024;
};

struct ServeConfig {
  ModelHostOptions model;
  GrpcServerOptions grpc;
  std::string metrics_address;  // empty = none
  std::string sysfs;            // temperatures and clocks for the metrics
  std::string log_level;
  bool log_json = false;
  absl::Duration drain_timeout;
  std::string hot_list_path;                 // empty = none
  TlsFiles tls_files;                        // where grpc.tls comes from; empty = plain
  std::string api_keys_path;                 // where grpc.clients come from; empty = no keys
  std::map<std::string, std::string> given;  // by name ("slots"): what command line, environment and file have set
};

// Declare the options on `app`; `flags` must live as long as it.
void AddModelOptions(CLI::App& app, ModelFlags& flags);
void AddServeOptions(CLI::App& app, ServeFlags& flags);

// Whether only this machine can reach a listening address: a Unix socket, or a loopback host.
bool IsLocalAddress(const std::string& address);

// Gives the options of `app` that neither the command line nor the environment has set the values of a TOML or INI
// file: lines `row-cache = "64MiB"`, no sections. Throws CLI::Error for a file that cannot be read, a key that is no
// option and a value that does not fit.
void ApplyConfigFile(const std::string& path, CLI::App& app);

// Checks what the option types could not, and reads certificates and API keys. INVALID_ARGUMENT names the flag and what
// it accepts.
absl::StatusOr<ModelHostOptions> Resolve(const ModelFlags& flags);
absl::StatusOr<ServeConfig> Resolve(const ServeFlags& flags);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CONFIG_H_
