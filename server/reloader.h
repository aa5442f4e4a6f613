// What changes in a server that runs: on SIGHUP its settings, API keys and certificates; the latter two also when their
// files have changed.
#ifndef EMBERGATE_SERVER_RELOADER_H_
#define EMBERGATE_SERVER_RELOADER_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/config.h"
#include "server/grpc_server.h"
#include "server/settings_source.h"

namespace embergate::server {

// What cannot be used changes nothing: the server goes on with what it has, and the log says why.
// Threads: one at a time.
class Reloader {
 public:
  // Borrows all of them. `config` is what `source` has given and the server was started with.
  Reloader(const ServeConfig& config, const SettingsSource& source, GrpcServer& server);

  // Reads everything again. Of the settings, log-level and drain-timeout take effect, and the paths of keys and
  // certificates; the log names the others that have changed and want a new start.
  void Reload();
  // Reads keys and certificates again.
  void CheckFiles();

  absl::Duration drain_timeout() const { return drain_timeout_; }

 private:
  void ReloadSettings();
  void ReloadKeys();
  void ReloadCertificates();
  // Logs and counts an outcome, an error only when it is another than last time.
  void Report(const char* what, const absl::Status& status, std::string& last_error);

  const SettingsSource& source_;
  GrpcServer& server_;
  std::map<std::string, std::string> given_;
  std::string api_keys_path_;
  TlsFiles tls_files_;
  absl::Duration drain_timeout_;
  std::vector<ApiClient> clients_;
  std::string settings_error_;
  std::string keys_error_;
  std::string tls_error_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_RELOADER_H_
