// The subcommands of the one binary. Each `Add...` declares its options on `app` and sets the callback that
// runs it; each lives in a file of its own and is thin: the work is in the modules.
//
// A callback reports its outcome by throwing CLI::RuntimeError(exit_code) after printing to stderr
// what was wrong, where, and what to do. Exit codes: 0 success, 1 failure, 2 unusable input.
#ifndef EMBERGATE_SERVER_CLI_CLI_H_
#define EMBERGATE_SERVER_CLI_CLI_H_

#include <CLI/CLI.hpp>

namespace embergate::server {

// Declares every subcommand on `app`.
void AddSubcommands(CLI::App& app);

// The server and its clients.
void AddServe(CLI::App& app);
void AddGenerate(CLI::App& app);
void AddChat(CLI::App& app);
void AddScore(CLI::App& app);
void AddInfo(CLI::App& app);
void AddHealth(CLI::App& app);
void AddTop(CLI::App& app);
void AddLoad(CLI::App& app);
void AddKeygen(CLI::App& app);

// Computing without a server.
void AddLogits(CLI::App& app);
void AddBench(CLI::App& app);

// Model files.
void AddConvert(CLI::App& app);
void AddInspect(CLI::App& app);
void AddSynth(CLI::App& app);
void AddEval(CLI::App& app);
void AddTokenize(CLI::App& app);
void AddRender(CLI::App& app);
void AddChecksum(CLI::App& app);

// Devices.
void AddPlan(CLI::App& app);
void AddStorageTest(CLI::App& app);

// manual and completion: printed from what is declared on `app`, the program as a whole.
void AddManual(CLI::App& app);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_CLI_H_
