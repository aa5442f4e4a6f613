#include "server/cli/client.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <random>
#include <sstream>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/bounded_file.h"
#include "server/cli/human.h"
#include "server/server_stats.h"
#include "server/status_mapping.h"

namespace embergate::server {

void AddClientOptions(CLI::App& app, ClientFlags& flags) {
  app.add_option("--address", flags.address,
                 "The server: HOST:PORT, unix:PATH, or several IP:PORT with commas to spread calls over")
      ->envname("EMBERGATE_ADDRESS")
      ->capture_default_str();
  app.add_option("--timeout", flags.timeout_seconds, "Seconds that a call may take; 0 = any")
      ->check(CLI::Range(0.0, 86400.0));
  // Not the names of the server's variables: a client in the server's own environment must not take its certificate.
  app.add_flag("--tls", flags.tls, "Speak TLS; implied by --tls-ca")->envname("EMBERGATE_CLIENT_TLS");
  app.add_option("--tls-ca", flags.tls_ca, "Trust servers of this CA (PEM) instead of the system's CAs")
      ->envname("EMBERGATE_CLIENT_TLS_CA")
      ->type_name("FILE");
  CLI::Option* cert = app.add_option("--tls-cert", flags.tls_cert, "The client's own certificate (PEM)")
                          ->envname("EMBERGATE_CLIENT_TLS_CERT")
                          ->type_name("FILE");
  CLI::Option* key = app.add_option("--tls-key", flags.tls_key, "The key of --tls-cert (PEM)")
                         ->envname("EMBERGATE_CLIENT_TLS_KEY")
                         ->type_name("FILE");
  cert->needs(key);
  key->needs(cert);
  app.add_option("--api-key", flags.api_key, "Who calls; better given in the environment, which others cannot see")
      ->envname("EMBERGATE_API_KEY")
      ->type_name("KEY");
}

namespace {

// Of several servers, a call that one has not begun to answer (it was killed, or it drains) is tried at another.
constexpr char kSpreadConfig[] = R"({"methodConfig": [{
  "name": [{"service": "embergate.v1.Inference"}],
  "retryPolicy": {"maxAttempts": 5, "initialBackoff": "0.1s", "maxBackoff": "1s", "backoffMultiplier": 2,
                  "retryableStatusCodes": ["UNAVAILABLE"]}}]})";

// Puts the API key into the metadata of each call, over TLS or not (gRPC's own call credentials refuse the latter,
// which is right for the open network and useless on a loopback or inside a tunnel).
class KeyInterceptor final : public grpc::experimental::Interceptor {
 public:
  explicit KeyInterceptor(const std::string& authorization) : authorization_(authorization) {}
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    if (methods->QueryInterceptionHookPoint(grpc::experimental::InterceptionHookPoints::PRE_SEND_INITIAL_METADATA)) {
      methods->GetSendInitialMetadata()->emplace("authorization", authorization_);
    }
    methods->Proceed();
  }

 private:
  const std::string& authorization_;
};

class KeyInterceptorFactory final : public grpc::experimental::ClientInterceptorFactoryInterface {
 public:
  explicit KeyInterceptorFactory(const std::string& key) : authorization_(absl::StrCat("Bearer ", key)) {}
  grpc::experimental::Interceptor* CreateClientInterceptor(grpc::experimental::ClientRpcInfo* /*info*/) override {
    return new KeyInterceptor(authorization_);
  }

 private:
  const std::string authorization_;
};

std::string ReadPem(const std::string& path) {
  if (path.empty()) {
    return "";
  }
  absl::StatusOr<std::string> pem = ReadBoundedFile(path, 1 << 20);
  if (!pem.ok()) {
    std::fprintf(stderr, "embergate: %s\n", std::string(pem.status().message()).c_str());
    throw CLI::RuntimeError(2);
  }
  return *std::move(pem);
}

std::shared_ptr<grpc::ChannelCredentials> Credentials(const ClientFlags& flags) {
  if (!flags.tls && flags.tls_ca.empty() && flags.tls_cert.empty()) {
    return grpc::InsecureChannelCredentials();
  }
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = ReadPem(flags.tls_ca);
  options.pem_cert_chain = ReadPem(flags.tls_cert);
  options.pem_private_key = ReadPem(flags.tls_key);
  return grpc::SslCredentials(options);
}

std::shared_ptr<grpc::Channel> MakeChannel(const std::string& target, const ClientFlags& flags,
                                           const grpc::ChannelArguments& arguments) {
  std::vector<std::unique_ptr<grpc::experimental::ClientInterceptorFactoryInterface>> interceptors;
  if (!flags.api_key.empty()) {
    interceptors.push_back(std::make_unique<KeyInterceptorFactory>(flags.api_key));
  }
  return grpc::experimental::CreateCustomChannelWithInterceptors(target, Credentials(flags), arguments,
                                                                 std::move(interceptors));
}

}  // namespace

std::shared_ptr<grpc::Channel> Connect(const ClientFlags& flags) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(64 << 20);
  arguments.SetLoadBalancingPolicyName("round_robin");  // over all addresses that a name has
  if (!absl::StrContains(flags.address, ',')) {
    return MakeChannel(flags.address, flags, arguments);
  }
  arguments.SetServiceConfigJSON(kSpreadConfig);
  // One that connects first gets the first call, and a command often makes no other: begin anywhere.
  std::vector<std::string> addresses = absl::StrSplit(flags.address, ',');
  std::shuffle(addresses.begin(), addresses.end(), std::mt19937(std::random_device()()));
  const bool v6 = absl::StartsWith(addresses[0], "[");
  return MakeChannel(absl::StrCat(v6 ? "ipv6:" : "ipv4:", absl::StrJoin(addresses, ",")), flags, arguments);
}

void SetDeadline(const ClientFlags& flags, grpc::ClientContext& context) {
  if (flags.timeout_seconds > 0) {
    context.set_deadline(std::chrono::system_clock::now() +
                         std::chrono::microseconds(static_cast<int64_t>(flags.timeout_seconds * 1e6)));
  }
}

int ReportError(const char* command, const grpc::Status& status) {
  const ErrorDetails details = DetailsOf(status);
  std::string message =
      absl::StrCat("embergate ", command, ": ", GrpcCodeName(status.error_code()), ": ", status.error_message());
  if (details.retry_delay > absl::ZeroDuration()) {
    absl::StrAppend(&message, " (try again in ", absl::FormatDuration(details.retry_delay), ")");
  } else if (status.error_code() == grpc::StatusCode::UNAVAILABLE && details.reason.empty()) {
    absl::StrAppend(&message, "; is the server running there? See --address");
  }
  std::fprintf(stderr, "%s\n", message.c_str());
  const bool never = status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ||
                     status.error_code() == grpc::StatusCode::FAILED_PRECONDITION;
  return never ? 2 : 1;
}

void AddGenerationOptions(CLI::App& app, GenerationFlags& flags) {
  app.add_option("--max-tokens", flags.max_tokens, "Most tokens to generate");
  app.add_option("--min-tokens", flags.min_tokens, "No end before this many tokens");
  app.add_option("--temperature", flags.temperature, "0 = always the likeliest token");
  app.add_option("--top-k", flags.top_k, "Keep the k likeliest tokens; 0 = all");
  app.add_option("--top-p", flags.top_p, "Keep the likeliest tokens up to this probability");
  app.add_option("--min-p", flags.min_p, "Keep tokens at least this likely relative to the likeliest");
  app.add_option("--typical-p", flags.typical_p, "Locally typical sampling; 1 = off");
  app.add_option("--repetition-penalty", flags.repetition_penalty, "1 = off");
  app.add_option("--presence-penalty", flags.presence_penalty, "0 = off");
  app.add_option("--frequency-penalty", flags.frequency_penalty, "0 = off");
  app.add_option("--penalty-window", flags.penalty_window, "Last tokens that the penalties look at; -1 = all");
  app.add_option("--logit-bias", flags.logit_bias, "Added to a token's logit; -1000 forbids it (repeatable)")
      ->type_name("ID=VALUE");
  app.add_option("--seed", flags.seed, "The same seed gives the same text");
  app.add_option("--stop", flags.stop, "Text that ends the answer (repeatable)");
  app.add_flag("--include-stop", flags.include_stop, "Print the text or token that ended the answer, too");
  app.add_option("--stop-ids", flags.stop_ids, "Token ids that end the answer, besides the model's own: 50,106")
      ->delimiter(',');
  app.add_flag("--ignore-eos", flags.ignore_eos, "Go on past the model's own end");
  app.add_flag("--batch", flags.batch, "Nobody waits for this: other requests go first");
  app.add_option("--client-key", flags.client_key, "Whose share of the server this takes");
  app.add_option("--time-limit", flags.time_limit_seconds,
                 "End the answer after so many seconds, with what there is; 0 = no limit")
      ->check(CLI::Range(0.0, 86400.0));
}

absl::Status Apply(const GenerationFlags& flags, v1::GenerateRequest& request) {
  v1::Sampling& sampling = *request.mutable_sampling();
  if (flags.temperature) sampling.set_temperature(*flags.temperature);
  if (flags.top_k) sampling.set_top_k(*flags.top_k);
  if (flags.top_p) sampling.set_top_p(*flags.top_p);
  if (flags.min_p) sampling.set_min_p(*flags.min_p);
  if (flags.typical_p) sampling.set_typical_p(*flags.typical_p);
  if (flags.repetition_penalty) sampling.set_repetition_penalty(*flags.repetition_penalty);
  if (flags.presence_penalty) sampling.set_presence_penalty(*flags.presence_penalty);
  if (flags.frequency_penalty) sampling.set_frequency_penalty(*flags.frequency_penalty);
  if (flags.penalty_window) sampling.set_penalty_window(*flags.penalty_window);
  for (const std::string& entry : flags.logit_bias) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(entry, absl::MaxSplits('=', 1));
    int32_t id = 0;
    float bias = 0;
    if (!absl::SimpleAtoi(parts.first, &id) || !absl::SimpleAtof(parts.second, &bias)) {
      return absl::InvalidArgumentError(absl::StrCat("--logit-bias ", entry, " is not ID=VALUE, such as 106=-1000"));
    }
    (*sampling.mutable_logit_bias())[id] = bias;
  }
  if (flags.seed) sampling.set_seed(*flags.seed);
  v1::Stopping& stopping = *request.mutable_stopping();
  if (flags.max_tokens) stopping.set_max_tokens(*flags.max_tokens);
  stopping.set_min_tokens(flags.min_tokens);
  for (const std::string& stop : flags.stop) {
    stopping.add_stop(stop);
  }
  stopping.mutable_stop_ids()->Assign(flags.stop_ids.begin(), flags.stop_ids.end());
  stopping.set_ignore_eos(flags.ignore_eos);
  stopping.set_include_stop(flags.include_stop);
  if (flags.batch) {
    request.set_priority(v1::PRIORITY_BATCH);
  }
  request.set_client_key(flags.client_key);
  if (flags.time_limit_seconds > 0) {
    const int64_t ns = std::max<int64_t>(1, std::llround(flags.time_limit_seconds * 1e9));
    request.mutable_time_limit()->set_seconds(ns / 1'000'000'000);
    request.mutable_time_limit()->set_nanos(static_cast<int32_t>(ns % 1'000'000'000));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text) {
  std::vector<int32_t> ids;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(part), &id)) {
      return absl::InvalidArgumentError(absl::StrCat("\"", part, "\" is no token id; write ids as 2,17,4"));
    }
    ids.push_back(id);
  }
  return ids;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  constexpr size_t kBytesMax = 64u << 20;
  return path == "-" ? ReadBounded(std::cin, "standard input", kBytesMax) : ReadBoundedFile(path, kBytesMax);
}

std::string FinishReasonName(v1::FinishReason reason) {
  const std::string name = v1::FinishReason_Name(reason);
  return absl::AsciiStrToLower(absl::StripPrefix(name, "FINISH_REASON_"));
}

nlohmann::json ToJson(const v1::Usage& usage) {
  return {{"input_tokens", usage.input_tokens()},
          {"cached_tokens", usage.cached_tokens()},
          {"output_tokens", usage.output_tokens()}};
}

nlohmann::json ToJson(const v1::Receipt& receipt) {
  nlohmann::json json = {
      {"queue_seconds", receipt.queue_seconds()},   {"prefill_seconds", receipt.prefill_seconds()},
      {"decode_seconds", receipt.decode_seconds()}, {"flash_wait_seconds", receipt.flash_wait_seconds()},
      {"rows_requested", receipt.rows_requested()}, {"rows_from_cache", receipt.rows_from_cache()},
      {"rows_read", receipt.rows_read()},           {"flash_bytes", receipt.flash_bytes()},
      {"kv_bytes_peak", receipt.kv_bytes_peak()},   {"preemptions", receipt.preemptions()}};
  if (receipt.has_energy_joules()) {
    json["energy_joules"] = receipt.energy_joules();
  }
  return json;
}

nlohmann::json ToJson(const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& tokens) {
  nlohmann::json json = nlohmann::json::array();
  for (const v1::TokenLogprob& token : tokens) {
    json.push_back({token.id(), token.logprob()});
  }
  return json;
}

nlohmann::json ToJson(const v1::PositionLogprobs& position) {
  return {{"id", position.chosen().id()}, {"logprob", position.chosen().logprob()}, {"top", ToJson(position.top())}};
}

std::string Summary(const v1::Finished& finished) {
  const v1::Usage& usage = finished.usage();
  const v1::Receipt& receipt = finished.receipt();
  const auto rate = [](double tokens, double seconds) { return seconds > 0 ? tokens / seconds : 0.0; };
  std::string summary = absl::StrFormat(
      "%d tokens in (%d cached, %.1f/s), %d out (%.1f/s), ended by %s; queue %.3f s, prefill %.3f s, decode %.3f s\n"
      "flash: %d rows, %d from the cache, %d read, %s; waited %.4f s; attention cache %s\n",
      usage.input_tokens(), usage.cached_tokens(),
      rate(usage.input_tokens() - usage.cached_tokens(), receipt.prefill_seconds()), usage.output_tokens(),
      rate(std::max(0, usage.output_tokens() - 1), receipt.decode_seconds()), FinishReasonName(finished.reason()),
      receipt.queue_seconds(), receipt.prefill_seconds(), receipt.decode_seconds(), receipt.rows_requested(),
      receipt.rows_from_cache(), receipt.rows_read(), HumanBytes(receipt.flash_bytes()), receipt.flash_wait_seconds(),
      HumanBytes(receipt.kv_bytes_peak()));
  if (receipt.has_energy_joules()) {
    summary += absl::StrFormat("energy: %.1f J\n", receipt.energy_joules());
  }
  if (receipt.preemptions() > 0) {
    summary += absl::StrFormat("set aside for interactive requests %d times\n", receipt.preemptions());
  }
  return summary;
}

}  // namespace embergate::server
