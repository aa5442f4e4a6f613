// embergate score: log-probabilities of given tokens.
#include <grpcpp/grpcpp.h>

#include <cmath>
#include <cstdio>
#include <memory>
#include <string>

#include "embergate/v1/inference.grpc.pb.h"
#include "nlohmann/json.hpp"
#include "server/cli/cli.h"
#include "server/cli/client.h"

namespace embergate::server {
namespace {

struct ScoreFlags {
  ClientFlags client;
  std::string prompt;
  std::string prompt_ids;
  int top = 0;
  bool json = false;
};

template <typename Tokens>
void PrintTop(const Tokens& tokens) {
  for (const v1::TokenLogprob& token : tokens) {
    std::printf("  %d:%.4f", token.id(), token.logprob());
  }
  std::printf("\n");
}

void PrintText(const v1::ScoreResponse& response) {
  double sum = 0;
  std::printf("%8s %8s %10s\n", "position", "id", "logprob");
  for (int i = 0; i < response.positions_size(); ++i) {
    const v1::PositionLogprobs& position = response.positions(i);
    std::printf("%8d %8d %10.5f", i + 1, position.chosen().id(), position.chosen().logprob());
    PrintTop(position.top());
    sum += position.chosen().logprob();
  }
  std::printf("next:");
  PrintTop(response.next());
  if (response.positions_size() > 0) {
    const double mean = sum / response.positions_size();
    std::printf("mean logprob %.5f, perplexity %.4f\n", mean, std::exp(-mean));
  }
}

void PrintJson(const v1::ScoreResponse& response) {
  nlohmann::json positions = nlohmann::json::array();
  for (const v1::PositionLogprobs& position : response.positions()) {
    positions.push_back(ToJson(position));
  }
  const nlohmann::json line = {{"ids", std::vector<int32_t>(response.ids().begin(), response.ids().end())},
                               {"positions", positions},
                               {"next", ToJson(response.next())},
                               {"receipt", ToJson(response.receipt())}};
  std::printf("%s\n", line.dump().c_str());
}

int Run(const ScoreFlags& flags) {
  v1::ScoreRequest request;
  request.set_top(flags.top);
  if (!flags.prompt_ids.empty()) {
    absl::StatusOr<std::vector<int32_t>> ids = ParseIds(flags.prompt_ids);
    if (!ids.ok()) {
      std::fprintf(stderr, "embergate score: %s\n", std::string(ids.status().message()).c_str());
      return 2;
    }
    request.mutable_token_ids()->mutable_ids()->Assign(ids->begin(), ids->end());
  } else {
    request.mutable_text()->set_text(flags.prompt);
  }
  const auto stub = v1::Inference::NewStub(Connect(flags.client));
  grpc::ClientContext context;
  SetDeadline(flags.client, context);
  v1::ScoreResponse response;
  if (const grpc::Status status = stub->Score(&context, request, &response); !status.ok()) {
    return ReportError("score", status);
  }
  if (flags.json) {
    PrintJson(response);
  } else {
    PrintText(response);
  }
  return 0;
}

}  // namespace

void AddScore(CLI::App& app) {
  CLI::App* score = app.add_subcommand("score", "Log-probabilities of given tokens");
  auto flags = std::make_shared<ScoreFlags>();
  CLI::Option* prompt = score->add_option("--prompt", flags->prompt, "The text");
  score->add_option("--prompt-ids", flags->prompt_ids, "The text as token ids: 2,17,4")->excludes(prompt);
  score->add_option("--top", flags->top, "Alternatives per position");
  score->add_flag("--json", flags->json, "Print one line of JSON");
  AddClientOptions(*score, flags->client);
  score->callback([flags] {
    if (const int code = Run(*flags); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
