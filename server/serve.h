// The life of a server process: listen, load, serve, drain.
#ifndef EMBERGATE_SERVER_SERVE_H_
#define EMBERGATE_SERVER_SERVE_H_

#include "server/config.h"
#include "server/settings_source.h"

namespace embergate::server {

// Listens at once (health NOT_SERVING, calls answer UNAVAILABLE), loads the model, serves until SIGTERM or SIGINT,
// then lets running requests finish for drain_timeout. A second signal ends the process at once. Returns the exit
// code: 0 after a drain, 1 when it cannot listen, 2 when the model cannot be served.
// SIGHUP reads settings, API keys and certificates again. `config` is what `source` has given.
int Serve(const ServeConfig& config, const SettingsSource& source);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SERVE_H_
