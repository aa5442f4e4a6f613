// embergate serve
#include "server/serve.h"

#include <cstdio>
#include <memory>
#include <string>
#include <utility>

#include "server/cli/cli.h"
#include "server/config.h"
#include "server/settings_source.h"

namespace embergate::server {

void AddServe(CLI::App& app) {
  CLI::App* serve = app.add_subcommand("serve", "Serve a model over gRPC");
  struct State {
    ServeFlags flags;
    std::string config_file;
  };
  auto state = std::make_shared<State>();
  AddServeOptions(*serve, state->flags);
  serve->add_option("--config", state->config_file, "File with these settings: lines such as  row-cache = \"64MiB\"")
      ->envname("EMBERGATE_CONFIG")
      ->type_name("FILE");
  serve->footer(
      "Every setting can also come from an environment variable (--row-cache: EMBERGATE_ROW_CACHE) or the --config "
      "file;\nflags win over the environment, the environment over the file.\n"
      "SIGHUP reads the file's log-level and drain-timeout, API keys and certificates again (the latter two are also "
      "read\nwhen they change), and exchanges the model where the file names another, or another lies in its place.\n"
      "Exit codes: 0 after a drain (SIGTERM, SIGINT), 1 cannot listen, 2 the model or a setting cannot be used.");
  serve->callback([serve, state] {
    const SettingsSource source(*serve, state->config_file);
    SettingsSource::Settings settings = source.Read();
    absl::StatusOr<ServeConfig> config = Resolve(settings.flags);
    if (!config.ok()) {
      std::fprintf(stderr, "embergate serve: %s\n", std::string(config.status().message()).c_str());
      throw CLI::RuntimeError(2);
    }
    config->given = std::move(settings.given);
    if (const int code = Serve(*config, source); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
