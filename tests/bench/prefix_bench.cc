// Time to the first token, through gRPC on a local socket, of a request whose system prompt is new, of one whose system
// prompt a request before it had, of one that comes while the other is computed, and of a conversation's next turn.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "embergate/v1/inference.grpc.pb.h"
#include "server/config.h"
#include "server/grpc_server.h"
#include "server/logging.h"
#include "server/model_host.h"

namespace embergate::server {
namespace {

struct Flags {
  ModelFlags model;
  int system = 1000;  // tokens
  int user = 20;
  int repeat = 5;
};

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "prefix_bench: %s\n", what.c_str());
  std::exit(1);
}

struct Result {
  double ttft_ms = 0;
  int cached = 0;
  int input = 0;
  std::vector<int32_t> ids;
};

Result Ask(v1::Inference::Stub& stub, const std::vector<int32_t>& prompt, int tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->mutable_ids()->Assign(prompt.begin(), prompt.end());
  request.mutable_sampling()->set_temperature(0);
  request.mutable_stopping()->set_max_tokens(tokens);
  request.mutable_stopping()->set_ignore_eos(true);
  grpc::ClientContext context;
  const auto begin = std::chrono::steady_clock::now();
  const auto stream = stub.Generate(&context, request);
  Result result;
  v1::GenerateResponse response;
  while (stream->Read(&response)) {
    if (response.has_delta()) {
      if (result.ids.empty()) {
        result.ttft_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
      }
      result.ids.insert(result.ids.end(), response.delta().ids().begin(), response.delta().ids().end());
    } else if (response.has_finished()) {
      result.cached = response.finished().usage().cached_tokens();
      result.input = response.finished().usage().input_tokens();
    }
  }
  if (const grpc::Status status = stream->Finish(); !status.ok()) {
    Fail(status.error_message());
  }
  return result;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Report(const char* what, const std::vector<Result>& results, double first) {
  std::vector<double> times;
  for (const Result& result : results) {
    times.push_back(result.ttft_ms);
  }
  std::printf("%-44s %8.1f ms  %5.1f %%  %d of %d tokens cached\n", what, Median(times), 100 * Median(times) / first,
              results.back().cached, results.back().input);
}

std::vector<int32_t> Join(std::vector<int32_t> a, const std::vector<int32_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

int Run(const Flags& flags) {
  InitLogging("warn", false);
  auto options = Resolve(flags.model);
  if (!options.ok()) {
    Fail(std::string(options.status().message()));
  }
  auto host = ModelHost::Load(*options, nullptr);
  if (!host.ok()) {
    Fail(std::string(host.status().message()));
  }
  GrpcServerOptions grpc_options;
  grpc_options.addresses = {"127.0.0.1:0"};
  auto server = GrpcServer::Start(grpc_options);
  if (!server.ok()) {
    Fail(std::string(server.status().message()));
  }
  (*server)->lifecycle().SetReady(&(*host)->served());
  const auto stub =
      v1::Inference::NewStub(grpc::CreateChannel((*server)->addresses().front(), grpc::InsecureChannelCredentials()));

  std::mt19937 random(1);
  const auto tokens = [&](int count) {
    std::vector<int32_t> ids;
    for (int i = 0; i < count; ++i) {
      ids.push_back(
          static_cast<int32_t>(1000 + random() % (static_cast<uint32_t>((*host)->served().limits.vocab_size) - 1000)));
    }
    return ids;
  };
  Ask(*stub, tokens(300), 8);
  std::vector<Result> first, second, beside, turn;
  for (int i = 0; i < flags.repeat; ++i) {
    const std::vector<int32_t> system = tokens(flags.system);
    const std::vector<int32_t> prompt = Join(system, tokens(flags.user));
    first.push_back(Ask(*stub, prompt, 16));
    second.push_back(Ask(*stub, Join(system, tokens(flags.user)), 16));
    turn.push_back(Ask(*stub, Join(Join(prompt, first.back().ids), tokens(flags.user)), 16));
    const std::vector<int32_t> other = tokens(flags.system);
    const std::vector<int32_t> first_of_two = Join(other, tokens(flags.user));
    std::thread leader([&] { Ask(*stub, first_of_two, 16); });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    beside.push_back(Ask(*stub, Join(other, tokens(flags.user)), 16));
    leader.join();
  }
  std::vector<double> times;
  for (const Result& result : first) {
    times.push_back(result.ttft_ms);
  }
  std::printf("time to the first token through gRPC, median of %d; system prompt of %d tokens, %d of the user's\n",
              flags.repeat, flags.system, flags.user);
  Report("the first request", first, Median(times));
  Report("a request with the same system prompt", second, Median(times));
  Report("the first request's conversation, next turn", turn, Median(times));
  Report("a request that comes 20 ms after the first", beside, Median(times));
  server->reset();
  return 0;
}

}  // namespace
}  // namespace embergate::server

int main(int argc, char** argv) {
  CLI::App app("What the prefix cache saves: times to the first token");
  embergate::server::Flags flags;
  app.add_option("--system", flags.system, "Tokens of the shared system prompt")->capture_default_str();
  app.add_option("--user", flags.user, "Tokens that follow it")->capture_default_str();
  app.add_option("--repeat", flags.repeat, "Runs, each with prompts of its own")->capture_default_str();
  embergate::server::AddModelOptions(app, flags.model);
  CLI11_PARSE(app, argc, argv);
  return embergate::server::Run(flags);
}
