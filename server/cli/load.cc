// embergate load: many clients at once against a running server; what they feel, and whether the server kept its word.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "server/cli/cli.h"
#include "server/cli/client.h"
#include "server/cli/load_client.h"
#include "server/server_stats.h"

namespace embergate::server {
namespace {

constexpr size_t kGapsMax = 10'000'000;

struct Flags {
  ClientFlags server;
  int clients = 8;
  int requests = 0;  // 0 = one per client
  double seconds = 0;
  int prompt_tokens = 16;
  int shared_prefix = 0;
  int tokens = 64;
  int prompts = 0;  // 0 = all different
  int long_prompt = 0;
  int batch_clients = 0;
  int retries = 0;
  double cancelled = 0;
  double hurried = 0;
  double oversized = 0;
  double malformed = 0;
  bool verify = false;
  uint64_t seed = 1;
  bool json = false;
};

struct Server {
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::Inference::Stub> stub;
  v1::GetModelInfoResponse info;
};

// Greedy requests with random prompts. The same number gives the same request.
class Requests {
 public:
  Requests(const Flags& flags, const v1::GetModelInfoResponse& info) : flags_(flags), vocab_(info.vocab_size()) {}

  v1::GenerateRequest Get(uint64_t number, int prompt_tokens) const {
    v1::GenerateRequest request;
    auto& ids = *request.mutable_token_ids()->mutable_ids();
    std::mt19937_64 prefix(flags_.seed);
    for (int i = 0; i < std::min(flags_.shared_prefix, prompt_tokens - 1); ++i) {
      ids.Add(Token(prefix));
    }
    std::mt19937_64 own(flags_.seed * 1000003 + 17 + number);
    while (ids.size() < prompt_tokens) {
      ids.Add(Token(own));
    }
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(flags_.tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    request.set_request_id(absl::StrCat("load-", number));
    return request;
  }

 private:
  int32_t Token(std::mt19937_64& random) const {
    return static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_));
  }

  const Flags& flags_;
  const int vocab_;
};

enum class Trouble { kNone, kCancelled, kHurried, kOversized, kMalformed };

struct Call {
  uint64_t prompt = 0;
  Trouble trouble = Trouble::kNone;
  int attempt = 0;  // 0 = the first
  bool batch = false;
  CallResult result;
};

Trouble Draw(const Flags& flags, std::mt19937_64& random) {
  double x = std::uniform_real_distribution<double>(0, 1)(random);
  for (const auto& [trouble, share] : {std::pair{Trouble::kCancelled, flags.cancelled},
                                       {Trouble::kHurried, flags.hurried},
                                       {Trouble::kOversized, flags.oversized},
                                       {Trouble::kMalformed, flags.malformed}}) {
    if (x < share) {
      return trouble;
    }
    x -= share;
  }
  return Trouble::kNone;
}

// Spoils a request as its trouble says.
void Spoil(Trouble trouble, const v1::GetModelInfoResponse& info, std::mt19937_64& random, v1::GenerateRequest& request,
           CallOptions& options) {
  auto& ids = *request.mutable_token_ids()->mutable_ids();
  switch (trouble) {
    case Trouble::kNone:
      break;
    case Trouble::kCancelled:
      options.cancel_after_tokens = static_cast<int>(random() % static_cast<uint64_t>(request.stopping().max_tokens()));
      break;
    case Trouble::kHurried:
      options.timeout_seconds = std::uniform_real_distribution<double>(0.001, 2)(random);
      break;
    case Trouble::kOversized:
      while (ids.size() <= info.limits().context_tokens()) {
        ids.Add(1);
      }
      break;
    case Trouble::kMalformed:
      switch (random() % 5) {
        case 0:
          ids.Set(0, -1);
          break;
        case 1:
          ids.Set(0, info.vocab_size());
          break;
        case 2:
          request.mutable_sampling()->set_temperature(-5);
          break;
        case 3:
          request.mutable_stopping()->set_max_tokens(info.limits().context_tokens() + 1);
          break;
        default:
          request.clear_input();
      }
      break;
  }
}

// All calls of one run. Threads: Run starts its own.
class Load {
 public:
  Load(const Flags& flags, Server& server) : flags_(flags), server_(server), requests_(flags, server.info) {}

  void Run() {
    begin_ = LoadClock::now();
    std::vector<std::thread> threads;
    for (int client = 0; client < flags_.clients; ++client) {
      threads.emplace_back([this, client] { RunClient(client); });
    }
    if (flags_.long_prompt > 0) {
      RunLongPrompt();
    }
    for (std::thread& thread : threads) {
      thread.join();
    }
    end_ = LoadClock::now();
  }

  const std::vector<Call>& calls() const { return calls_; }
  const CallResult& long_call() const { return long_; }
  const std::vector<double>& gaps() const { return gaps_; }
  LoadClock::time_point begin() const { return begin_; }
  LoadClock::time_point end() const { return end_; }

  // The finished ones whose tokens differ from those of the same request alone on the idle server.
  int CountWrong() {
    int wrong = different_;
    for (const auto& [prompt, ids] : answers_) {
      const CallResult alone = RunCall(*server_.stub, requests_.Get(prompt, flags_.prompt_tokens), {});
      wrong += alone.ok() && alone.ids == ids ? 0 : 1;
    }
    return wrong;
  }

 private:
  bool Over(uint64_t number) const {
    if (flags_.seconds > 0) {
      return std::chrono::duration<double>(LoadClock::now() - begin_).count() >= flags_.seconds;
    }
    return number >= static_cast<uint64_t>(flags_.requests > 0 ? flags_.requests : flags_.clients);
  }

  void RunClient(int client) {
    std::mt19937_64 random(flags_.seed * 7919 + static_cast<uint64_t>(client));
    for (;;) {
      const uint64_t number = next_.fetch_add(1);
      if (Over(number)) {
        return;
      }
      Call call;
      call.prompt = flags_.prompts > 0 ? number % static_cast<uint64_t>(flags_.prompts) : number;
      call.batch = client < flags_.batch_clients;
      call.trouble = Draw(flags_, random);
      v1::GenerateRequest request = requests_.Get(call.prompt, flags_.prompt_tokens);
      request.set_priority(call.batch ? v1::PRIORITY_BATCH : v1::PRIORITY_INTERACTIVE);
      CallOptions options;
      options.timeout_seconds = flags_.server.timeout_seconds;
      Spoil(call.trouble, server_.info, random, request, options);
      bool streaming = false;
      options.on_tokens = [this, &streaming](int) {
        if (!std::exchange(streaming, true)) {
          streaming_.fetch_add(1);
        }
      };
      for (call.attempt = 0;; ++call.attempt) {
        call.result = RunCall(*server_.stub, request, options);
        Record(call);
        const absl::Duration delay = call.result.retry_delay;
        if (!call.result.refused() || delay <= absl::ZeroDuration() || call.attempt >= flags_.retries) {
          break;
        }
        std::this_thread::sleep_for(absl::ToChronoNanoseconds(delay));
      }
    }
  }

  // Keeps of a long run what the report needs: not every answer again, nor every token's time.
  void Record(Call call) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (flags_.verify && call.result.ok()) {
      const auto [answer, is_new] = answers_.emplace(call.prompt, call.result.ids);
      different_ += is_new || answer->second == call.result.ids ? 0 : 1;
    }
    call.result.ids = {};
    if (flags_.seconds > 0) {
      if (call.result.ok() && !call.batch && gaps_.size() < kGapsMax) {
        AppendGaps(call.result, begin_, LoadClock::now(), &gaps_);
      }
      call.result.arrivals.resize(std::min<size_t>(call.result.arrivals.size(), 1));
      call.result.arrivals.shrink_to_fit();
    }
    calls_.push_back(std::move(call));
  }

  // Once every client's stream has begun.
  void RunLongPrompt() {
    while (streaming_.load() < flags_.clients) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::seconds(1));
    v1::GenerateRequest request = requests_.Get(1u << 30, flags_.long_prompt);
    request.mutable_stopping()->set_max_tokens(1);
    long_ = RunCall(*server_.stub, request, {});
  }

  const Flags& flags_;
  Server& server_;
  const Requests requests_;
  LoadClock::time_point begin_;
  LoadClock::time_point end_;
  std::atomic<uint64_t> next_{0};
  std::atomic<int> streaming_{0};
  std::mutex mutex_;
  std::vector<Call> calls_;  // in the order in which they ended
  CallResult long_;
  std::map<uint64_t, std::vector<int32_t>> answers_;  // the first full one to each prompt
  int different_ = 0;                                 // full ones that are not like the first to their prompt
  std::vector<double> gaps_;                          // with --seconds
};

double SecondsBetween(LoadClock::time_point from, LoadClock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

// What a call's outcome has to be, given what was done to it; else it is a loss.
bool Accounted(const Call& call) {
  const grpc::StatusCode code = call.result.status.error_code();
  if (call.result.ok() || call.result.refused()) {
    return true;
  }
  switch (call.trouble) {
    case Trouble::kNone:
      return false;
    case Trouble::kCancelled:
      return code == grpc::StatusCode::CANCELLED;
    case Trouble::kHurried:
      return code == grpc::StatusCode::DEADLINE_EXCEEDED;
    case Trouble::kOversized:
    case Trouble::kMalformed:
      return code == grpc::StatusCode::INVALID_ARGUMENT;
  }
  return false;
}

nlohmann::json Spread(std::vector<double> values) {
  return {{"p50", Quantile(values, 0.5)},
          {"p99", Quantile(values, 0.99)},
          {"max", Quantile(values, 1)},
          {"count", values.size()}};
}

// Tokens per second while every stream was decoding: from the last first token to the first last one.
double SteadyTokensPerSecond(const std::vector<Call>& calls) {
  LoadClock::time_point from = LoadClock::time_point::min();
  LoadClock::time_point to = LoadClock::time_point::max();
  for (const Call& call : calls) {
    if (call.result.ok() && !call.result.arrivals.empty()) {
      from = std::max(from, call.result.arrivals.front().at);
      to = std::min(to, call.result.arrivals.back().at);
    }
  }
  int64_t tokens = 0;
  for (const Call& call : calls) {
    for (const TokenArrival& arrival : call.result.arrivals) {
      tokens += arrival.at > from && arrival.at <= to ? arrival.tokens : 0;
    }
  }
  return from < to && to != LoadClock::time_point::max() ? static_cast<double>(tokens) / SecondsBetween(from, to) : 0;
}

nlohmann::json Report(const Flags& flags, const Load& load) {
  std::map<std::string, int> outcomes;
  std::vector<double> refusal;
  std::vector<double> first_token;
  std::vector<double> queue;
  std::vector<double> gaps = load.gaps();
  std::vector<double> batch_seconds;
  int ok = 0;
  int refused = 0;
  int lost = 0;
  int untruthful = 0;
  int retried = 0;
  int retried_in_vain = 0;
  int preemptions = 0;
  int64_t tokens = 0;
  double joules = 0;
  for (const Call& call : load.calls()) {
    const CallResult& result = call.result;
    std::string outcome = GrpcCodeName(result.status.error_code());
    if (!result.reason.empty()) {
      absl::StrAppend(&outcome, " ", result.reason);
    }
    ++outcomes[outcome];
    tokens += result.tokens;
    lost += Accounted(call) ? 0 : 1;
    if (call.attempt > 0) {
      ++retried;
      retried_in_vain += result.refused() ? 1 : 0;
    }
    if (result.ok()) {
      ++ok;
      first_token.push_back(SecondsBetween(result.sent, result.arrivals.front().at));
      queue.push_back(result.last.receipt().queue_seconds());
      preemptions += result.last.receipt().preemptions();
      joules += result.last.receipt().energy_joules();
      if (call.batch) {
        batch_seconds.push_back(result.seconds());
      } else if (flags.seconds <= 0) {
        AppendGaps(result, load.begin(), load.end(), &gaps);
      }
    } else if (result.refused()) {
      ++refused;
      refusal.push_back(result.seconds());
      // A refusal that may be tried again says when, in both places alike; another one in neither.
      const int64_t ms = absl::ToInt64Milliseconds(result.retry_delay);
      untruthful += (ms > 0 ? ms : -1) == result.pushback_ms ? 0 : 1;
    }
  }
  const double seconds = SecondsBetween(load.begin(), load.end());
  nlohmann::json report = {{"clients", flags.clients},
                           {"calls", load.calls().size()},
                           {"seconds", seconds},
                           {"ok", ok},
                           {"refused", refused},
                           {"lost", lost},
                           {"outcomes", outcomes},
                           {"tokens", tokens},
                           {"tokens_per_second", static_cast<double>(tokens) / seconds},
                           {"steady_tokens_per_second", SteadyTokensPerSecond(load.calls())},
                           {"first_token_seconds", Spread(first_token)},
                           {"queue_seconds", Spread(queue)},
                           {"gap_seconds", Spread(gaps)},
                           {"refusal_seconds", Spread(refusal)},
                           {"refusals_without_matching_pushback", untruthful},
                           {"retried", retried},
                           {"retried_in_vain", retried_in_vain},
                           {"preemptions", preemptions}};
  if (joules > 0) {
    report["joules_per_token"] = joules / static_cast<double>(tokens);
  }
  if (flags.batch_clients > 0) {
    report["batch_seconds"] = Spread(batch_seconds);
  }
  if (flags.long_prompt > 0) {
    const CallResult& call = load.long_call();
    std::vector<double> during;
    const LoadClock::time_point until = call.arrivals.empty() ? call.ended : call.arrivals.front().at;
    for (const Call& stream : load.calls()) {
      AppendGaps(stream.result, call.sent, until, &during);
    }
    report["long_prompt"] = {{"ok", call.ok()},
                             {"tokens", flags.long_prompt},
                             {"first_token_seconds", SecondsBetween(call.sent, until)},
                             {"gap_seconds", Spread(during)}};
    report["lost"] = lost + (call.ok() ? 0 : 1);
  }
  return report;
}

void Print(const nlohmann::json& report) {
  const auto spread = [](const char* name, const nlohmann::json& values) {
    std::printf("%-22s p50 %9.4f s   p99 %9.4f s   max %9.4f s   of %d\n", name, values["p50"].get<double>(),
                values["p99"].get<double>(), values["max"].get<double>(), values["count"].get<int>());
  };
  std::printf("%d calls by %d clients in %.2f s: %d answered in full, %d refused, %d lost\n",
              report["calls"].get<int>(), report["clients"].get<int>(), report["seconds"].get<double>(),
              report["ok"].get<int>(), report["refused"].get<int>(), report["lost"].get<int>());
  for (const auto& [outcome, count] : report["outcomes"].items()) {
    std::printf("  %-34s %d\n", outcome.c_str(), count.get<int>());
  }
  std::printf("%.2f tokens/s over all; %.2f tokens/s while every stream decoded\n",
              report["tokens_per_second"].get<double>(), report["steady_tokens_per_second"].get<double>());
  spread("first token", report["first_token_seconds"]);
  spread("waiting for a slot", report["queue_seconds"]);
  spread("gap between tokens", report["gap_seconds"]);
  spread("refusal", report["refusal_seconds"]);
  if (report.contains("batch_seconds")) {
    spread("batch answers", report["batch_seconds"]);
    std::printf("set aside for interactive requests: %d times\n", report["preemptions"].get<int>());
  }
  if (report["retried"].get<int>() > 0) {
    std::printf("tried again after the time that the refusal gave: %d, refused again %d\n",
                report["retried"].get<int>(), report["retried_in_vain"].get<int>());
  }
  if (report.contains("long_prompt")) {
    const nlohmann::json& prompt = report["long_prompt"];
    std::printf("a prompt of %d tokens beside them: first token after %.3f s\n", prompt["tokens"].get<int>(),
                prompt["first_token_seconds"].get<double>());
    spread("  gaps meanwhile", prompt["gap_seconds"]);
  }
  if (report.contains("wrong")) {
    std::printf("answers that differ from those of an idle server: %d\n", report["wrong"].get<int>());
  }
}

int Run(const Flags& flags) {
  Server server;
  server.channel = Connect(flags.server);
  server.stub = v1::Inference::NewStub(server.channel);
  grpc::ClientContext context;
  if (const grpc::Status status = server.stub->GetModelInfo(&context, v1::GetModelInfoRequest(), &server.info);
      !status.ok()) {
    return ReportError("load", status);
  }
  Load load(flags, server);
  load.Run();
  nlohmann::json report = Report(flags, load);
  if (flags.verify) {
    report["wrong"] = load.CountWrong();
  }
  if (flags.json) {
    std::printf("%s\n", report.dump().c_str());
  } else {
    Print(report);
  }
  const bool kept = report["lost"] == 0 && report["refusals_without_matching_pushback"] == 0 &&
                    (!flags.verify || report["wrong"] == 0);
  return kept ? 0 : 1;
}

}  // namespace

void AddLoad(CLI::App& app) {
  CLI::App* load = app.add_subcommand("load", "Put load on a server, and measure what its clients feel");
  auto flags = std::make_shared<Flags>();
  AddClientOptions(*load, flags->server);
  const auto add = [&](const char* name, auto& value, const char* help, auto low, auto high) {
    load->add_option(name, value, help)->check(CLI::Range(low, high))->capture_default_str();
  };
  add("--clients", flags->clients, "Clients, each with one call at a time; all begin at once", 1, 10000);
  add("--requests", flags->requests, "Calls of all clients together; 0 = one each", 0, 100'000'000);
  add("--seconds", flags->seconds, "Go on for this long, whatever --requests says", 0.0, 1e6);
  add("--prompt-tokens", flags->prompt_tokens, "Length of the random prompts", 1, 1 << 20);
  add("--shared-prefix", flags->shared_prefix, "Of these, the first ones that all prompts have in common", 0, 1 << 20);
  add("--tokens", flags->tokens, "Length of the answers", 1, 1 << 20);
  add("--prompts", flags->prompts, "Different prompts; 0 = each its own", 0, 1 << 20);
  add("--long-prompt", flags->long_prompt, "Once all stream, one more request with a prompt of this length", 0,
      1 << 20);
  add("--batch-clients", flags->batch_clients, "Of the clients, those whose requests have batch priority", 0, 10000);
  add("--retries", flags->retries, "Tries after a refusal, each after the time that it gave", 0, 1000);
  add("--cancelled", flags->cancelled, "Share of the calls that are cancelled at some point", 0.0, 1.0);
  add("--hurried", flags->hurried, "Share of the calls with a deadline of 1 ms to 2 s", 0.0, 1.0);
  add("--oversized", flags->oversized, "Share of the calls whose prompt exceeds the context", 0.0, 1.0);
  add("--malformed", flags->malformed, "Share of the calls with a field out of its range", 0.0, 1.0);
  load->add_flag("--verify", flags->verify, "Afterwards, compare each full answer with that of the same request alone");
  load->add_option("--seed", flags->seed, "Of prompts and troubles")->capture_default_str();
  load->add_flag("--json", flags->json, "One JSON object instead of the table");
  load->footer(
      "Prompts are random token ids, answers greedy. A call is lost if it ends neither in full, nor with a refusal\n"
      "(RESOURCE_EXHAUSTED), nor as what was done to it explains. A refusal that may be tried again has to say when,\n"
      "in RetryInfo and in grpc-retry-pushback-ms alike.\n"
      "Exit codes: 0 the server kept its word, 1 calls were lost, refusals wrong or answers different.");
  load->callback([flags] {
    if (const int code = Run(*flags); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
