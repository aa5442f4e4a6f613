// What the client subcommands share: where the server is, what a failed call says, how requests are put together
// from flags.
#ifndef EMBERGATE_SERVER_CLI_CLIENT_H_
#define EMBERGATE_SERVER_CLI_CLIENT_H_

#include <grpcpp/grpcpp.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "embergate/v1/generate.pb.h"
#include "nlohmann/json.hpp"

namespace embergate::server {

struct ClientFlags {
  std::string address = "127.0.0.1:50051";
  double timeout_seconds = 0;  // 0 = none
  bool tls = false;            // also when one of the files is given
  std::string tls_ca;          // whose certificates the server may have; empty = those that the system trusts
  std::string tls_cert;        // of the client, for a server that asks for one
  std::string tls_key;
  std::string api_key;  // empty = none
};
void AddClientOptions(CLI::App& app, ClientFlags& flags);
// A channel whose calls carry the API key. Files that cannot be read end the command (CLI::RuntimeError 2).
std::shared_ptr<grpc::Channel> Connect(const ClientFlags& flags);
void SetDeadline(const ClientFlags& flags, grpc::ClientContext& context);

// Prints "embergate COMMAND: ..." with code, message and retry hint to stderr; the exit code that goes with it: 2 for
// a request that can never succeed, 1 otherwise.
int ReportError(const char* command, const grpc::Status& status);

// Flags of Sampling and Stopping; what is not given stays unset.
struct GenerationFlags {
  std::optional<float> temperature;
  std::optional<int> top_k;
  std::optional<float> top_p;
  std::optional<float> min_p;
  std::optional<float> typical_p;
  std::optional<float> repetition_penalty;
  std::optional<float> presence_penalty;
  std::optional<float> frequency_penalty;
  std::optional<int> penalty_window;
  std::vector<std::string> logit_bias;  // "ID=VALUE"
  std::optional<uint64_t> seed;
  std::optional<int> max_tokens;
  int min_tokens = 0;
  std::vector<std::string> stop;
  std::vector<int> stop_ids;
  bool ignore_eos = false;
  bool include_stop = false;
  bool batch = false;
  std::string client_key;
  double time_limit_seconds = 0;  // 0 = none
};
void AddGenerationOptions(CLI::App& app, GenerationFlags& flags);
// INVALID_ARGUMENT for a --logit-bias that is no ID=VALUE.
absl::Status Apply(const GenerationFlags& flags, v1::GenerateRequest& request);

// "2,17,4": INVALID_ARGUMENT for anything else.
absl::StatusOr<std::vector<int32_t>> ParseIds(const std::string& text);
// A whole file, or stdin for "-". At most 64 MiB.
absl::StatusOr<std::string> ReadText(const std::string& path);

// "stop", "length", ...
std::string FinishReasonName(v1::FinishReason reason);
nlohmann::json ToJson(const v1::Usage& usage);
nlohmann::json ToJson(const v1::Receipt& receipt);
// {"id":7,"logprob":-0.1,"top":[[7,-0.1],[9,-3.2]]}
nlohmann::json ToJson(const v1::PositionLogprobs& position);
// [[id, logprob], ...]
nlohmann::json ToJson(const google::protobuf::RepeatedPtrField<v1::TokenLogprob>& tokens);
// Two lines for people.
std::string Summary(const v1::Finished& finished);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_CLIENT_H_
