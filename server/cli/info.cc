// embergate info: what a server serves.
#include <google/protobuf/util/json_util.h>
#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <memory>
#include <string>

#include "embergate/v1/inference.grpc.pb.h"
#include "server/cli/cli.h"
#include "server/cli/client.h"
#include "server/cli/human.h"

namespace embergate::server {
namespace {

void PrintText(const v1::GetModelInfoResponse& info) {
  std::printf("%s (%s), %s parameters, %d layers, vocabulary %d\n", info.name().c_str(), info.architecture().c_str(),
              HumanCount(info.parameters()).c_str(), info.layers(), info.vocab_size());
  std::printf("weights          %s\n", info.weight_types().c_str());
  std::printf("context          %d tokens (trained for %d)\n", info.limits().context_tokens(), info.context_trained());
  std::printf("requests         %d at once, %d waiting\n", info.limits().concurrent_requests(),
              info.limits().waiting_requests());
  std::printf("text             %s, chat format %s\n", info.has_tokenizer() ? "yes" : "token ids only",
              info.chat_format().empty() ? "none" : info.chat_format().c_str());
  std::printf("sampling         temperature %g, top_k %d, top_p %g unless a request says otherwise\n",
              info.default_sampling().temperature(), info.default_sampling().top_k(), info.default_sampling().top_p());
  std::printf("DRAM\n");
  for (const v1::Memory::Part& part : info.memory().parts()) {
    std::printf("  %-24s %12s\n", part.name().c_str(), HumanBytes(part.bytes()).c_str());
  }
  std::printf("  %-24s %12s", "total", HumanBytes(info.memory().total_bytes()).c_str());
  if (info.memory().budget_bytes() > 0) {
    std::printf(" of a budget of %s", HumanBytes(info.memory().budget_bytes()).c_str());
  }
  std::printf("\nflash            table of %s in a file of %s", HumanBytes(info.flash().table_bytes()).c_str(),
              HumanBytes(info.flash().file_bytes()).c_str());
  if (!info.flash().reader().empty()) {
    std::printf(", read through %s%s", info.flash().reader().c_str(), info.flash().direct_io() ? " with O_DIRECT" : "");
  }
  std::printf("\nserver           embergate %s\n", info.server_version().c_str());
}

int Run(const ClientFlags& flags, bool json) {
  const auto stub = v1::Inference::NewStub(Connect(flags));
  grpc::ClientContext context;
  SetDeadline(flags, context);
  v1::GetModelInfoResponse info;
  if (const grpc::Status status = stub->GetModelInfo(&context, v1::GetModelInfoRequest(), &info); !status.ok()) {
    return ReportError("info", status);
  }
  if (!json) {
    PrintText(info);
    return 0;
  }
  std::string line;
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  if (!google::protobuf::util::MessageToJsonString(info, &line, options).ok()) {
    std::fprintf(stderr, "embergate info: the answer cannot be written as JSON\n");
    return 1;
  }
  std::printf("%s\n", line.c_str());
  return 0;
}

}  // namespace

void AddInfo(CLI::App& app) {
  CLI::App* info = app.add_subcommand("info", "What a server serves, its limits and where its bytes are");
  struct Flags {
    ClientFlags client;
    bool json = false;
  };
  auto flags = std::make_shared<Flags>();
  AddClientOptions(*info, flags->client);
  info->add_flag("--json", flags->json, "Print GetModelInfoResponse as JSON");
  info->callback([flags] {
    if (const int code = Run(flags->client, flags->json); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
