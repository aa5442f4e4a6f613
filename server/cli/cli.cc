#include "server/cli/cli.h"

#include <string>

#include "server/version.h"

namespace embergate::server {

// In the order of --help.
void AddSubcommands(CLI::App& app) {
  app.set_version_flag("--version", std::string("embergate ") + kVersion, "Print the version and exit");
  AddServe(app);
  AddGenerate(app);
  AddChat(app);
  AddScore(app);
  AddInfo(app);
  AddHealth(app);
  AddTop(app);
  AddLoad(app);
  AddKeygen(app);
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
  AddManual(app);
}

}  // namespace embergate::server
