#include "server/cli/cli.h"

int main(int argc, char** argv) {
  CLI::App app{
      "Embergate: a gRPC inference server for Gemma 3n and Gemma 4 that keeps the per-layer embeddings on flash."};
  app.require_subcommand(1);
  embergate::server::AddSubcommands(app);
  CLI11_PARSE(app, argc, argv);
  return 0;
}
