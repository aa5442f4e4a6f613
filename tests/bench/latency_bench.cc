// What the server adds to a token's way: from the moment when its logits are computed to its arrival at a client,
// through gRPC over a local socket, beside the same to a sink in the engine alone.
#include <grpcpp/grpcpp.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <latch>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "engine/engine.h"
#include "engine/model/decoder_model.h"
#include "engine/thread_pool.h"
#include "server/config.h"
#include "server/grpc_server.h"
#include "server/logging.h"
#include "storage/gguf_file.h"

namespace embergate::server {
namespace {

struct Flags {
  ModelFlags model;
  int streams = 8;
  int tokens = 100;
  double fail_above_ms = 0;
  bool clients_first = false;
  std::string connect;  // set in the process of the clients
};

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "latency_bench: %s\n", what.c_str());
  std::exit(1);
}

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

using Times = std::vector<std::vector<int64_t>>;  // by stream, of each token

// Stream i is the one whose prompt's first token is kFirstToken + i.
constexpr int32_t kFirstToken = 100;

// Notes when the logits of each stream's next token were computed.
class StampedModel final : public engine::LanguageModel {
 public:
  StampedModel(engine::LanguageModel& inner, int streams)
      : inner_(inner), stream_of_slot_(static_cast<size_t>(inner.limits().slots_max)), times_(streams) {}

  const engine::ModelLimits& limits() const override { return inner_.limits(); }
  std::vector<engine::MemoryPart> Memory() const override { return inner_.Memory(); }
  absl::Status OpenSlot(int slot, int tokens_max) override { return inner_.OpenSlot(slot, tokens_max); }
  void CloseSlot(int slot) override { inner_.CloseSlot(slot); }
  int64_t FreeKvTokens() const override { return inner_.FreeKvTokens(); }
  uint64_t KvBytes(absl::Span<const int> slots) const override { return inner_.KvBytes(slots); }
  absl::StatusOr<storage::RowTicket> PrefetchRows(absl::Span<const int32_t> tokens) override {
    return inner_.PrefetchRows(tokens);
  }
  absl::StatusOr<storage::RowTicket> PrefetchChunkRows(absl::Span<const int32_t> tokens,
                                                       engine::LogitsWanted logits) override {
    return inner_.PrefetchChunkRows(tokens, logits);
  }
  void SendRows() override { inner_.SendRows(); }
  void ReleaseRows(storage::RowTicket ticket) override { inner_.ReleaseRows(ticket); }

  absl::Status Step(absl::Span<engine::Chunk> chunks, absl::Span<float> logits, engine::StepTimes* times) override {
    const int64_t begin = NowNs();
    const absl::Status status = inner_.Step(chunks, logits, times);
    const int64_t now = NowNs();
    step_ns_.push_back(now - begin);
    for (const engine::Chunk& chunk : chunks) {
      int& stream = stream_of_slot_[static_cast<size_t>(chunk.slot)];
      if (chunk.start == 0) {
        stream = chunk.tokens[0] - kFirstToken;
      }
      if (chunk.logits != engine::LogitsWanted::kNone) {
        times_[static_cast<size_t>(stream)].push_back(now);
      }
    }
    return status;
  }

  // When the engine is idle.
  const Times& times() const { return times_; }
  std::vector<int64_t> TakeSteps() { return std::exchange(step_ns_, {}); }
  void Clear() { times_.assign(times_.size(), {}); }

 private:
  engine::LanguageModel& inner_;
  std::vector<int> stream_of_slot_;
  Times times_;
  std::vector<int64_t> step_ns_;
};

std::vector<int32_t> PromptOf(int stream) { return {kFirstToken + stream, 7, 8, 9}; }

// Times at which a sink was given each token.
class TimingSink final : public engine::TokenSink {
 public:
  TimingSink(std::vector<int64_t>& times, std::latch& ended) : times_(times), ended_(ended) {}
  void OnStart(int /*prompt_tokens*/) override {}
  void OnPrompt(std::vector<engine::PositionLogprobs> /*logprobs*/) override {}
  void OnTokens(engine::TokenEvent event) override { times_.insert(times_.end(), event.ids.size(), NowNs()); }
  void OnFinish(engine::FinishEvent /*event*/) override { ended_.count_down(); }

 private:
  std::vector<int64_t>& times_;
  std::latch& ended_;
};

Times Bare(engine::Engine& engine, const Flags& flags) {
  Times times(static_cast<size_t>(flags.streams));
  std::latch ended(flags.streams);
  std::vector<std::unique_ptr<TimingSink>> sinks;
  for (int i = 0; i < flags.streams; ++i) {
    engine::GenerateRequest request;
    request.prompt = PromptOf(i);
    request.sampling.temperature = 0;
    request.stop.tokens_max = flags.tokens;
    request.stop.ignore_eos = true;
    sinks.push_back(std::make_unique<TimingSink>(times[static_cast<size_t>(i)], ended));
    if (const auto id = engine.Submit(std::move(request), sinks.back().get()); !id.ok()) {
      Fail(std::string(id.status().message()));
    }
  }
  ended.wait();
  return times;
}

Times Served(const std::string& address, const Flags& flags) {
  Times times(static_cast<size_t>(flags.streams));
  std::vector<std::thread> clients;
  for (int i = 0; i < flags.streams; ++i) {
    clients.emplace_back([&, i] {
      grpc::ChannelArguments own;  // each its connection
      own.SetInt("embergate.client", i);
      const auto stub =
          v1::Inference::NewStub(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), own));
      v1::GenerateRequest request;
      const std::vector<int32_t> prompt = PromptOf(i);
      request.mutable_token_ids()->mutable_ids()->Assign(prompt.begin(), prompt.end());
      request.mutable_sampling()->set_temperature(0);
      request.mutable_stopping()->set_max_tokens(flags.tokens);
      request.mutable_stopping()->set_ignore_eos(true);
      grpc::ClientContext context;
      const auto stream = stub->Generate(&context, request);
      v1::GenerateResponse response;
      while (stream->Read(&response)) {
        const int64_t now = NowNs();
        times[static_cast<size_t>(i)].insert(times[static_cast<size_t>(i)].end(),
                                             static_cast<size_t>(response.delta().ids_size()), now);
      }
      if (const grpc::Status status = stream->Finish(); !status.ok()) {
        Fail(status.error_message());
      }
    });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  return times;
}

// The process of the clients: prints a line of times for each stream.
int RunClients(const Flags& flags) {
  sched_param priority = {};
  priority.sched_priority = 1;
  if (flags.clients_first && sched_setscheduler(0, SCHED_FIFO, &priority) != 0) {
    Fail("the system refuses --clients-first");
  }
  for (const std::vector<int64_t>& times : Served(flags.connect, flags)) {
    for (const int64_t at : times) {
      std::printf("%lld ", static_cast<long long>(at));
    }
    std::printf("\n");
  }
  return 0;
}

// The clients in a process of their own: in this one they would share gRPC's pollers with the server.
Times ServedToProcess(const std::string& address, const Flags& flags) {
  const std::string command =
      absl::StrCat("/proc/", getpid(), "/exe --model none --connect ", address, " --streams ", flags.streams,
                   " --tokens ", flags.tokens, flags.clients_first ? " --clients-first" : "");
  std::FILE* out = popen(command.c_str(), "r");
  if (out == nullptr) {
    Fail("cannot start the clients");
  }
  std::string text;
  char part[65536];
  for (size_t n = 0; (n = std::fread(part, 1, sizeof(part), out)) > 0;) {
    text.append(part, n);
  }
  if (pclose(out) != 0) {
    Fail("the clients failed");
  }
  Times times;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    std::vector<int64_t>& stream = times.emplace_back();
    for (const absl::string_view word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
      if (!absl::SimpleAtoi(word, &stream.emplace_back())) {
        Fail("the clients printed something else than times");
      }
    }
  }
  return times;
}

struct Quantiles {
  double p50 = 0, p95 = 0, p99 = 0;
};

// Milliseconds from `from` to `to`, of all tokens.
Quantiles Between(const Times& from, const Times& to) {
  std::vector<double> all;
  for (size_t i = 0; i < from.size(); ++i) {
    if (from[i].size() != to[i].size()) {
      Fail("a token is missing");
    }
    for (size_t k = 0; k < from[i].size(); ++k) {
      all.push_back(static_cast<double>(to[i][k] - from[i][k]) * 1e-6);
    }
  }
  std::sort(all.begin(), all.end());
  const auto at = [&all](double q) { return all[static_cast<size_t>(q * static_cast<double>(all.size() - 1))]; };
  return {at(0.5), at(0.95), at(0.99)};
}

int Run(const Flags& flags) {
  InitLogging("warn", false);
  auto options = Resolve(flags.model);
  if (!options.ok()) {
    Fail(std::string(options.status().message()));
  }
  auto file = storage::GgufFile::Open(options->path);
  if (!file.ok()) {
    Fail(std::string(file.status().message()));
  }
  engine::ThreadPool pool(options->threads);
  options->decoder.slots_max = flags.streams;
  options->decoder.dram_budget_bytes = 0;
  auto decoder = engine::DecoderModel::Load(**file, options->decoder, pool, nullptr);
  if (!decoder.ok()) {
    Fail(std::string(decoder.status().message()));
  }
  StampedModel model(**decoder, flags.streams);
  auto engine = engine::Engine::Create(model, nullptr, {}, options->engine);
  if (!engine.ok()) {
    Fail(std::string(engine.status().message()));
  }
  ServedModel served;
  served.engine = engine->get();
  served.info = (*decoder)->info();
  served.limits = model.limits();
  GrpcServerOptions grpc_options;
  grpc_options.addresses = {"127.0.0.1:0"};
  auto server = GrpcServer::Start(grpc_options);
  if (!server.ok()) {
    Fail(std::string(server.status().message()));
  }
  (*server)->lifecycle().SetReady(&served);

  ServedToProcess((*server)->addresses().front(), flags);  // warms up
  model.Clear();
  model.TakeSteps();
  const Times bare = Bare(**engine, flags);
  const Quantiles alone = Between(model.times(), bare);
  std::vector<int64_t> steps = model.TakeSteps();
  std::sort(steps.begin(), steps.end());
  model.Clear();
  const Times arrived = ServedToProcess((*server)->addresses().front(), flags);
  const Quantiles through = Between(model.times(), arrived);
  std::printf("%d streams of %d tokens; a step computes %.2f ms (median)\n", flags.streams, flags.tokens,
              static_cast<double>(steps[steps.size() / 2]) * 1e-6);
  const auto print = [](const char* what, const Quantiles& q) {
    std::printf("%-52s p50 %7.3f  p95 %7.3f  p99 %7.3f ms\n", what, q.p50, q.p95, q.p99);
  };
  print("logits to sink, the engine alone", alone);
  print("logits to client, through the server", through);
  print("the server adds", {through.p50 - alone.p50, through.p95 - alone.p95, through.p99 - alone.p99});
  server->reset();
  if (flags.fail_above_ms > 0 && through.p50 - alone.p50 > flags.fail_above_ms) {
    std::fprintf(stderr, "the median is above %.1f ms\n", flags.fail_above_ms);
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace embergate::server

int main(int argc, char** argv) {
  CLI::App app("What the server adds to the time between a token's logits and its arrival");
  embergate::server::Flags flags;
  app.add_option("--streams", flags.streams, "At once")->capture_default_str();
  app.add_option("--tokens", flags.tokens, "Of each stream")->capture_default_str();
  app.add_option("--fail-above-ms", flags.fail_above_ms,
                 "Exit code 1 if the server adds more at the median; 0 = never");
  app.add_flag("--clients-first", flags.clients_first,
               "Let the clients go before all else (SCHED_FIFO), as if they had CPUs of their own");
  app.add_option("--connect", flags.connect)->group("");
  embergate::server::AddModelOptions(app, flags.model);
  CLI11_PARSE(app, argc, argv);
  return flags.connect.empty() ? embergate::server::Run(flags) : embergate::server::RunClients(flags);
}
