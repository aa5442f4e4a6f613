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
  AddLoad(app);
  AddLogits(app);
  AddBench(app);
  AddPlan(app);
  AddInspect(app);
  AddConvert(app);
  AddSynth(app);
  AddEval(app);
  AddTokenize(app);
  AddRender(app);
  AddChecksum(app);
  AddStorageTest(app);
}

}  // namespace embergate::server
