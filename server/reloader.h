// What changes in a server that runs: on SIGHUP its settings, API keys, certificates and model; keys and certificates
// also when their files have changed.
#ifndef EMBERGATE_SERVER_RELOADER_H_
#define EMBERGATE_SERVER_RELOADER_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/config.h"
#include "server/grpc_server.h"
#include "server/settings_source.h"

namespace embergate::server {

// Another model, or the same with other settings.
struct ModelChange {
  ModelHostOptions options;
  std::map<std::string, std::string> given;  // its settings that somebody has set, by name
  std::string file;                          // which file lies at options.path
};

// What cannot be used changes nothing: the server goes on with what it has, and the log says why.
// Threads: one at a time.
class Reloader {
 public:
  // Borrows all of them. `config` is what `source` has given and the server was started with.
  Reloader(const ServeConfig& config, const SettingsSource& source, GrpcServer& server);

  // Reads everything again. Of the settings, log-level and drain-timeout take effect, and the paths of keys and
  // certificates. Where `model` is another one, or another file lies there, that is returned with all settings that a
  // model has of its own (dram-budget is the process's); what becomes of it is the caller's affair. The log names the
  // other settings that have changed and want a new start.
  std::optional<ModelChange> Reload();
  // The change has come about: what is read later is compared with it.
  void SetModel(const ModelChange& change);
  // Reads keys and certificates again.
  void CheckFiles();

  absl::Duration drain_timeout() const { return drain_timeout_; }

 private:
  std::optional<ModelChange> ReloadSettings();
  // The one that `settings` ask for, if it is another.
  std::optional<ModelChange> ChangeOfModel(const SettingsSource::Settings& settings);
  void ReloadKeys();
  void ReloadCertificates();
  // Logs and counts an outcome, an error only when it is another than last time.
  void Report(const char* what, const absl::Status& status, std::string& last_error);

  const SettingsSource& source_;
  GrpcServer& server_;
  const ModelHostOptions model_;  // as at the start, for what belongs to the process
  std::string model_path_;
  std::string model_file_;
  std::map<std::string, std::string> given_;
  std::string api_keys_path_;
  TlsFiles tls_files_;
  absl::Duration drain_timeout_;
  std::vector<ApiClient> clients_;
  std::string settings_error_;
  std::string model_error_;
  std::string keys_error_;
  std::string tls_error_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_RELOADER_H_
