#include "server/reloader.h"

#include <spdlog/spdlog.h>

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "server/logging.h"

namespace embergate::server {
namespace {

// Settings that take effect while the server runs.
const std::set<std::string>& ReloadableSettings() {
  static const std::set<std::string> names = {"log-level", "drain-timeout", "api-keys",
                                              "tls-cert",  "tls-key",       "tls-client-ca"};
  return names;
}

}  // namespace

Reloader::Reloader(const ServeConfig& config, const SettingsSource& source, GrpcServer& server)
    : source_(source),
      server_(server),
      given_(config.given),
      api_keys_path_(config.api_keys_path),
      tls_files_(config.tls_files),
      drain_timeout_(config.drain_timeout),
      clients_(config.grpc.clients) {}

void Reloader::Reload() {
  ReloadSettings();
  // Somebody asks: what is still wrong is said again.
  keys_error_.clear();
  tls_error_.clear();
  CheckFiles();
}

void Reloader::CheckFiles() {
  ReloadKeys();
  ReloadCertificates();
}

void Reloader::ReloadSettings() {
  SettingsSource::Settings settings;
  settings_error_.clear();
  try {
    settings = source_.Read();
  } catch (const CLI::Error& error) {
    Report("settings", absl::InvalidArgumentError(error.what()), settings_error_);
    return;
  }
  std::set<std::string> ignored;
  const auto compare = [&](const std::map<std::string, std::string>& these,
                           const std::map<std::string, std::string>& those) {
    for (const auto& [name, value] : these) {
      const auto other = those.find(name);
      if ((other == those.end() || other->second != value) && ReloadableSettings().count(name) == 0) {
        ignored.insert(name);
      }
    }
  };
  compare(settings.given, given_);
  compare(given_, settings.given);
  const ServeFlags& flags = settings.flags;
  SetLogLevel(flags.log_level);
  drain_timeout_ = absl::Seconds(flags.drain_timeout_seconds);
  if (flags.api_keys.empty() == api_keys_path_.empty()) {
    api_keys_path_ = flags.api_keys;
  } else {
    ignored.insert("api-keys");
  }
  const TlsFiles tls = {flags.tls_cert, flags.tls_key, flags.tls_client_ca};
  if (tls.certificate.empty() == tls_files_.certificate.empty() &&
      tls.client_ca.empty() == tls_files_.client_ca.empty()) {
    tls_files_ = tls;
  } else {
    ignored.insert("tls-cert, tls-client-ca");
  }
  if (!ignored.empty()) {
    spdlog::warn("changed, but only the next start will heed it: {}", absl::StrJoin(ignored, ", "));
  }
  spdlog::info("settings read again: log level {}, drain timeout {}", flags.log_level,
               absl::FormatDuration(drain_timeout_));
  server_.stats().reloads.fetch_add(1, std::memory_order_relaxed);
}

void Reloader::ReloadKeys() {
  if (api_keys_path_.empty()) {
    return;
  }
  absl::StatusOr<std::vector<ApiClient>> clients = ReadApiKeys(api_keys_path_);
  if (clients.ok() && *clients == clients_) {
    keys_error_.clear();
    return;
  }
  if (clients.ok()) {
    server_.gatekeeper().SetClients(*clients);
    clients_ = *std::move(clients);
    spdlog::info("API keys read again: {} clients", clients_.size());
  }
  Report("API keys", clients.status(), keys_error_);
}

void Reloader::ReloadCertificates() {
  if (server_.tls() == nullptr) {
    return;
  }
  absl::StatusOr<TlsMaterial> material = ReadTlsMaterial(tls_files_);
  uint64_t generation = 0;
  if (material.ok() && *material == server_.tls()->Get(&generation)) {
    tls_error_.clear();
    return;
  }
  if (material.ok()) {
    spdlog::info("certificates read again: valid until {}", absl::FormatTime(material->expires, absl::UTCTimeZone()));
    server_.tls()->Set(*std::move(material));
  }
  Report("certificates", material.status(), tls_error_);
}

void Reloader::Report(const char* what, const absl::Status& status, std::string& last_error) {
  if (status.ok()) {
    last_error.clear();
    server_.stats().reloads.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  std::string error(status.message());
  if (error != last_error) {
    server_.stats().reload_failures.fetch_add(1, std::memory_order_relaxed);
    spdlog::error("{} stay as they are: {}", what, error);
    last_error = std::move(error);
  }
}

}  // namespace embergate::server
