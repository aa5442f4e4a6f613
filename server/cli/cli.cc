#include "server/cli/cli.h"

namespace embergate::server {

void AddSubcommands(CLI::App& app) { (void)app; }

}  // namespace embergate::server
