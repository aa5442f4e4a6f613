// The settings of `serve` from where they come from, as often as they are asked for: what the command line and the
// environment said once, and what the config file says now.
#ifndef EMBERGATE_SERVER_SETTINGS_SOURCE_H_
#define EMBERGATE_SERVER_SETTINGS_SOURCE_H_

#include <CLI/CLI.hpp>
#include <map>
#include <string>
#include <vector>

#include "server/config.h"

namespace embergate::server {

// Threads: any.
class SettingsSource {
 public:
  // `app` has parsed its command line, and knows AddServeOptions' options among others. `config_file`: empty = none.
  SettingsSource(const CLI::App& app, std::string config_file);

  struct Settings {
    ServeFlags flags;
    std::map<std::string, std::string> given;  // by name ("slots"), those that somebody has set; for comparing
  };
  // Throws CLI::Error as ApplyConfigFile does.
  Settings Read() const;

  const std::string& config_file() const { return config_file_; }

 private:
  const std::string config_file_;
  std::map<std::string, std::vector<std::string>> said_;  // by command line and environment
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SETTINGS_SOURCE_H_
