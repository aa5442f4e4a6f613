#include "server/reloader.h"

#include <spdlog/spdlog.h>
#include <sys/stat.h>

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

// Settings of a model, as opposed to those of the process.
const std::set<std::string>& ModelSettings() {
  static const std::set<std::string> names = [] {
    std::set<std::string> found;
    CLI::App app;
    ModelFlags flags;
    AddModelOptions(app, flags);
    for (const CLI::Option* option : app.get_options()) {
      found.insert(option->get_single_name());
    }
    found.erase("help");
    found.erase("dram-budget");
    return found;
  }();
  return names;
}

// Tells the file at `path` from one that is put in its place; empty if there is none.
std::string FileIdentity(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return "";
  }
  return absl::StrCat(info.st_dev, " ", info.st_ino, " ", info.st_size, " ", info.st_mtim.tv_sec, ".",
                      info.st_mtim.tv_nsec);
}

}  // namespace

Reloader::Reloader(const ServeConfig& config, const SettingsSource& source, GrpcServer& server)
    : source_(source),
      server_(server),
      model_(config.model),
      model_path_(config.model.path),
      model_file_(FileIdentity(config.model.path)),
      given_(config.given),
      api_keys_path_(config.api_keys_path),
      tls_files_(config.tls_files),
      drain_timeout_(config.drain_timeout),
      clients_(config.grpc.clients) {}

std::optional<ModelChange> Reloader::Reload() {
  std::optional<ModelChange> change = ReloadSettings();
  // Somebody asks: what is still wrong is said again.
  keys_error_.clear();
  tls_error_.clear();
  CheckFiles();
  return change;
}

void Reloader::SetModel(const ModelChange& change) {
  model_path_ = change.options.path;
  model_file_ = change.file;
  for (const std::string& name : ModelSettings()) {
    given_.erase(name);
  }
  given_.insert(change.given.begin(), change.given.end());
}

void Reloader::CheckFiles() {
  ReloadKeys();
  ReloadCertificates();
}

std::optional<ModelChange> Reloader::ReloadSettings() {
  SettingsSource::Settings settings;
  settings_error_.clear();
  try {
    settings = source_.Read();
  } catch (const CLI::Error& error) {
    Report("settings", absl::InvalidArgumentError(error.what()), settings_error_);
    return std::nullopt;
  }
  std::optional<ModelChange> change = ChangeOfModel(settings);
  std::set<std::string> ignored;
  const auto compare = [&](const std::map<std::string, std::string>& these,
                           const std::map<std::string, std::string>& those) {
    for (const auto& [name, value] : these) {
      const auto other = those.find(name);
      if ((other == those.end() || other->second != value) && ReloadableSettings().count(name) == 0 &&
          (!change.has_value() || ModelSettings().count(name) == 0)) {
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
  return change;
}

std::optional<ModelChange> Reloader::ChangeOfModel(const SettingsSource::Settings& settings) {
  const std::string& path = settings.flags.model.model;
  ModelChange change;
  change.file = FileIdentity(path);
  if (path == model_path_ && change.file == model_file_) {
    return std::nullopt;
  }
  model_error_.clear();
  absl::StatusOr<ModelHostOptions> options = Resolve(settings.flags.model);
  if (!options.ok()) {
    Report("model settings", options.status(), model_error_);
    return std::nullopt;
  }
  change.options = *std::move(options);
  change.options.decoder.dram_budget_bytes = model_.decoder.dram_budget_bytes;
  change.options.transport_bytes_max = model_.transport_bytes_max;
  change.options.pending_bytes_max = model_.pending_bytes_max;
  for (const auto& [name, value] : settings.given) {
    if (ModelSettings().count(name) > 0) {
      change.given.emplace(name, value);
    }
  }
  return change;
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
