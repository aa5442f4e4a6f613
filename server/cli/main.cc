#include "server/cli/cli.h"

int main(int argc, char** argv) {
  CLI::App app{
      "Embergate: a gRPC inference server for Gemma 3n and Gemma 4 that keeps the per-layer embeddings on flash."};
  app.require_subcommand(1);
  embergate::server::AddSubcommands(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::RuntimeError& error) {
    return error.get_exit_code();  // a command's own, which has said why
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // --help, or flags that make no sense
  }
  return 0;
}
