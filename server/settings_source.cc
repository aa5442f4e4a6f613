#include "server/settings_source.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace embergate::server {

SettingsSource::SettingsSource(const CLI::App& app, std::string config_file) : config_file_(std::move(config_file)) {
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() > 0) {
      said_.emplace(option->get_single_name(), option->results());
    }
  }
}

SettingsSource::Settings SettingsSource::Read() const {
  Settings settings;
  CLI::App app;
  AddServeOptions(app, settings.flags);
  for (const auto& [name, results] : said_) {
    CLI::Option* const option = app.get_option_no_throw(absl::StrCat("--", name));
    if (option == nullptr) {
      continue;  // --config itself
    }
    for (const std::string& result : results) {
      option->add_result(result);
    }
    option->run_callback();
  }
  if (!config_file_.empty()) {
    ApplyConfigFile(config_file_, app);
  }
  for (const CLI::Option* option : app.get_options()) {
    if (option->count() > 0) {
      settings.given.emplace(option->get_single_name(), absl::StrJoin(option->results(), ","));
    }
  }
  return settings;
}

}  // namespace embergate::server
