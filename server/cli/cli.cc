#include "server/cli/cli.h"

namespace embergate::server {

// In the order of --help.
void AddSubcommands(CLI::App& app) {
  AddServe(app);
  AddGenerate(app);
  AddChat(app);
  AddScore(app);
  AddInfo(app);
  AddHealth(app);
  AddConvert(app);
  AddLogits(app);
  AddBench(app);
  AddInspect(app);
  AddSynth(app);
}

}  // namespace embergate::server
