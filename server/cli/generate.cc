// embergate generate: one prompt, one answer; through a server, or with the model in this process.
#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "engine/request.h"
#include "server/cli/chat_file.h"
#include "server/cli/cli.h"
#include "server/cli/client.h"
#include "server/cli/progress.h"
#include "server/cli/tools_file.h"
#include "server/config.h"
#include "server/grpc_server.h"
#include "server/logging.h"
#include "server/model_host.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

struct GenerateFlags {
  ClientFlags client;
  GenerationFlags generation;
  ModelFlags model;  // with model.model set: no server
  std::string prompt;
  std::string prompt_ids;
  std::string prompt_file;
  std::string messages;  // file
  std::string system;
  std::string tools;
  std::optional<int> logprobs;         // alternatives
  std::optional<int> prompt_logprobs;  // alternatives
  bool special = false;
  bool chat = false;
  bool thinking = false;
  int n = 1;
  int best_of = 1;
  bool stream = true;
  bool json = false;
  bool stats = false;
  bool progress = false;
};

absl::StatusOr<v1::GenerateRequest> MakeRequest(const GenerateFlags& flags, bool prompt_given) {
  v1::GenerateRequest request;
  EMBERGATE_RETURN_IF_ERROR(Apply(flags.generation, request));
  request.set_n(std::max(flags.n, flags.best_of));
  request.set_special_in_text(flags.special);
  request.set_prompt_progress(flags.progress);
  if (flags.logprobs) {
    request.mutable_logprobs()->set_output(true);
    request.mutable_logprobs()->set_output_top(*flags.logprobs);
  }
  if (flags.prompt_logprobs) {
    request.mutable_logprobs()->set_prompt(true);
    request.mutable_logprobs()->set_prompt_top(*flags.prompt_logprobs);
  }
  if (!flags.messages.empty()) {
    EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadText(flags.messages));
    EMBERGATE_ASSIGN_OR_RETURN(*request.mutable_chat(), ChatInputFromJson(text));
    if (flags.thinking) {
      request.mutable_chat()->set_enable_thinking(true);
    }
    return request;
  }
  if (!flags.prompt_ids.empty()) {
    EMBERGATE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, ParseIds(flags.prompt_ids));
    request.mutable_token_ids()->mutable_ids()->Assign(ids.begin(), ids.end());
    return request;
  }
  std::string text = flags.prompt;
  if (!prompt_given) {
    const std::string path = flags.prompt_file.empty() ? "-" : flags.prompt_file;
    if (path == "-" && isatty(STDIN_FILENO)) {
      return absl::InvalidArgumentError("give --prompt, --prompt-ids or --prompt-file, or pipe a prompt in");
    }
    EMBERGATE_ASSIGN_OR_RETURN(text, ReadText(path));
  }
  if (!flags.chat) {
    request.mutable_text()->set_text(text);
    return request;
  }
  v1::ChatInput& chat = *request.mutable_chat();
  chat.set_enable_thinking(flags.thinking);
  if (!flags.system.empty()) {
    v1::ChatMessage& message = *chat.add_messages();
    message.set_role(v1::ChatMessage::ROLE_SYSTEM);
    message.set_content(flags.system);
  }
  if (!flags.tools.empty()) {
    EMBERGATE_RETURN_IF_ERROR(AddToolsFile(flags.tools, chat));
  }
  v1::ChatMessage& message = *chat.add_messages();
  message.set_role(v1::ChatMessage::ROLE_USER);
  message.set_content(text);
  return request;
}

// Prints the stream as it comes, or collects it: for JSON, and where there are several answers.
class Printer {
 public:
  explicit Printer(const GenerateFlags& flags)
      : flags_(flags), answers_(static_cast<size_t>(std::max({1, flags.n, flags.best_of}))) {}

  void Take(const v1::GenerateResponse& response) {
    if (response.has_finished()) {
      finished_ = response.finished();
    }
    if (response.has_completion_finished()) {
      Answer* answer = AnswerAt(response.completion_finished().completion());
      if (answer != nullptr) {
        answer->finished = response.completion_finished();
        PrintOneOfSeveral(*answer);
      }
    }
    for (const v1::PositionLogprobs& position : response.prompt_logprobs().positions()) {
      prompt_logprobs_.push_back(server::ToJson(position));
    }
    if (response.has_delta()) {
      Take(response.delta());
    }
  }

  void Take(const v1::GenerateOnceResponse& response) {
    for (const v1::PositionLogprobs& position : response.prompt_logprobs()) {
      prompt_logprobs_.push_back(server::ToJson(position));
    }
    for (const v1::Answer& answer : response.answers()) {
      TakeWhole(answer);
    }
    *finished_.mutable_usage() = response.usage();
    *finished_.mutable_receipt() = response.receipt();
    if (response.answers_size() > 0) {
      finished_.set_reason(response.answers(0).reason());
    }
  }

  void Finish() {
    if (answers_.size() == 1) {
      v1::CompletionFinished& only = answers_[0].finished;
      only.set_reason(finished_.reason());
      only.set_output_tokens(finished_.usage().output_tokens());
    }
    if (flags_.json) {
      nlohmann::json line;
      if (flags_.n > 1) {
        for (const Answer& answer : answers_) {
          line["answers"].push_back(ToJson(answer));
        }
      } else {
        line = ToJson(Best());
      }
      line["usage"] = server::ToJson(finished_.usage());
      line["receipt"] = server::ToJson(finished_.receipt());
      if (flags_.prompt_logprobs) {
        line["prompt_logprobs"] = prompt_logprobs_;
      }
      std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    } else if (flags_.best_of > 1) {
      std::printf("%s\n", Readable(Best()).c_str());
    } else if (flags_.n <= 1) {
      std::printf("\n");
    }
    std::fflush(stdout);
    if (flags_.stats) {
      std::fprintf(stderr, "%s", Summary(finished_).c_str());
    }
  }

 private:
  struct Answer {
    std::string text;
    std::string thinking;
    std::vector<int32_t> ids;
    nlohmann::json tool_calls = nlohmann::json::array();
    bool malformed_tool_call = false;
    nlohmann::json logprobs = nlohmann::json::array();
    v1::CompletionFinished finished;
  };

  Answer* AnswerAt(int index) {
    return index >= 0 && index < static_cast<int>(answers_.size()) ? &answers_[static_cast<size_t>(index)] : nullptr;
  }

  // The one whose tokens the model finds likeliest, all together.
  const Answer& Best() const {
    return *std::max_element(answers_.begin(), answers_.end(), [](const Answer& a, const Answer& b) {
      return a.finished.cumulative_logprob() < b.finished.cumulative_logprob();
    });
  }

  void Take(const v1::Delta& delta) {
    Answer* answer = AnswerAt(delta.completion());
    if (answer == nullptr) {
      return;
    }
    if (flags_.json || answers_.size() > 1) {
      answer->text += delta.text();
      answer->thinking += delta.thinking();
      answer->malformed_tool_call = answer->malformed_tool_call || delta.malformed_tool_call();
      for (const v1::PositionLogprobs& position : delta.logprobs()) {
        answer->logprobs.push_back(server::ToJson(position));
      }
      answer->ids.insert(answer->ids.end(), delta.ids().begin(), delta.ids().end());
      for (const v1::ToolCall& call : delta.tool_calls()) {
        answer->tool_calls.push_back({{"id", call.id()}, {"name", call.name()}, {"arguments", call.arguments_json()}});
      }
      return;
    }
    std::fwrite(delta.text().data(), 1, delta.text().size(), stdout);
    for (const v1::ToolCall& call : delta.tool_calls()) {
      std::printf("\n[tool call] %s %s\n", call.name().c_str(), call.arguments_json().c_str());
    }
    std::fflush(stdout);
  }

  // As if it had come in a stream, all at once.
  void TakeWhole(const v1::Answer& whole) {
    v1::Delta delta;
    delta.set_completion(whole.completion());
    delta.set_text(whole.text());
    delta.set_thinking(whole.thinking());
    *delta.mutable_ids() = whole.ids();
    *delta.mutable_logprobs() = whole.logprobs();
    *delta.mutable_tool_calls() = whole.tool_calls();
    delta.set_malformed_tool_call(whole.malformed_tool_call());
    Take(delta);
    Answer* answer = AnswerAt(whole.completion());
    if (answer != nullptr && answers_.size() > 1) {
      answer->finished.set_completion(whole.completion());
      answer->finished.set_reason(whole.reason());
      answer->finished.set_output_tokens(whole.output_tokens());
      answer->finished.set_cumulative_logprob(whole.cumulative_logprob());
      PrintOneOfSeveral(*answer);
    }
  }

  static std::string Readable(const Answer& answer) {
    std::string out = answer.text;
    for (const nlohmann::json& call : answer.tool_calls) {
      absl::StrAppend(&out, "\n[tool call] ", call["name"].get<std::string>(), " ",
                      call["arguments"].get<std::string>());
    }
    return out;
  }

  void PrintOneOfSeveral(const Answer& answer) const {
    if (flags_.json || flags_.n <= 1) {
      return;
    }
    std::printf("[%d] %s\n", answer.finished.completion(), Readable(answer).c_str());
    std::fflush(stdout);
  }

  nlohmann::json ToJson(const Answer& answer) const {
    nlohmann::json json = {
        {"text", answer.text}, {"ids", answer.ids}, {"finish_reason", FinishReasonName(answer.finished.reason())}};
    if (answers_.size() > 1) {
      json["completion"] = answer.finished.completion();
      json["output_tokens"] = answer.finished.output_tokens();
      json["cumulative_logprob"] = answer.finished.cumulative_logprob();
    }
    if (!answer.thinking.empty()) {
      json["thinking"] = answer.thinking;
    }
    if (!answer.tool_calls.empty()) {
      json["tool_calls"] = answer.tool_calls;
    }
    if (answer.malformed_tool_call) {
      json["malformed_tool_call"] = true;
    }
    if (flags_.logprobs) {
      json["logprobs"] = answer.logprobs;
    }
    return json;
  }

  const GenerateFlags& flags_;
  std::vector<Answer> answers_;
  nlohmann::json prompt_logprobs_ = nlohmann::json::array();
  v1::Finished finished_;
};

int Run(const GenerateFlags& flags, const v1::GenerateRequest& request, const std::shared_ptr<grpc::Channel>& channel) {
  const auto stub = v1::Inference::NewStub(channel);
  grpc::ClientContext context;
  SetDeadline(flags.client, context);
  Printer printer(flags);
  grpc::Status status;
  if (flags.stream) {
    const auto stream = stub->Generate(&context, request);
    v1::GenerateResponse response;
    std::optional<ProgressBar> progress;
    while (stream->Read(&response)) {
      if (response.has_prompt_progress()) {
        if (!progress.has_value()) {
          progress.emplace("prompt", ProgressBar::Unit::kItems);
        }
        progress->Update(static_cast<uint64_t>(response.prompt_progress().tokens_done()),
                         static_cast<uint64_t>(response.prompt_progress().tokens_total()));
      } else if (response.has_delta()) {
        progress.reset();
      }
      printer.Take(response);
    }
    status = stream->Finish();
  } else {
    v1::GenerateOnceResponse response;
    status = stub->GenerateOnce(&context, request, &response);
    if (status.ok()) {
      printer.Take(response);
    }
  }
  if (!status.ok()) {
    if (!flags.json && flags.stream) {
      std::printf("\n");
      std::fflush(stdout);
    }
    return ReportError("generate", status);
  }
  printer.Finish();
  return 0;
}

absl::StatusOr<std::unique_ptr<ModelHost>> LoadModel(const ModelFlags& flags) {
  EMBERGATE_ASSIGN_OR_RETURN(const ModelHostOptions options, Resolve(flags));
  return ModelHost::Load(options, nullptr);
}

int RunInProcess(const GenerateFlags& flags, const v1::GenerateRequest& request) {
  InitLogging("warn", false);
  absl::StatusOr<std::unique_ptr<ModelHost>> host = LoadModel(flags.model);
  if (!host.ok()) {
    std::fprintf(stderr, "embergate generate: %s\n", std::string(host.status().message()).c_str());
    return 2;
  }
  // The same path as through a server, over a channel that never leaves the process.
  absl::StatusOr<std::unique_ptr<GrpcServer>> server = GrpcServer::Start(GrpcServerOptions());
  if (!server.ok()) {
    std::fprintf(stderr, "embergate generate: %s\n", std::string(server.status().message()).c_str());
    return 1;
  }
  (*server)->lifecycle().SetReady(&(*host)->served());
  const int code = Run(flags, request, (*server)->grpc_server().InProcessChannel(grpc::ChannelArguments()));
  server->reset();
  return code;
}

}  // namespace

void AddGenerate(CLI::App& app) {
  CLI::App* generate = app.add_subcommand("generate", "Generate text from a prompt");
  auto flags = std::make_shared<GenerateFlags>();
  CLI::Option* prompt = generate->add_option("--prompt", flags->prompt, "The prompt");
  CLI::Option* ids =
      generate->add_option("--prompt-ids", flags->prompt_ids, "The prompt as token ids: 2,17,4")->excludes(prompt);
  CLI::Option* file =
      generate->add_option("--prompt-file", flags->prompt_file, "File with the prompt; - or nothing: standard input")
          ->excludes(prompt)
          ->excludes(ids);
  CLI::Option* chat =
      generate->add_flag("--chat", flags->chat, "Put the prompt into the model's conversation format, as one user turn")
          ->excludes(ids);
  generate->add_option("--system", flags->system, "With --chat: the system turn")->needs(chat);
  generate
      ->add_option("--messages", flags->messages,
                   "A whole conversation, and tools: file with the JSON that embergate render takes; - = stdin")
      ->excludes(prompt)
      ->excludes(ids)
      ->excludes(file)
      ->excludes(chat);
  generate
      ->add_option("--tools", flags->tools,
                   "With --chat: JSON file with a list of functions that the model may ask to call")
      ->needs(chat);
  generate->add_flag("--thinking", flags->thinking, "With --chat or --messages: let the model think first");
  AddGenerationOptions(*generate, flags->generation);
  CLI::Option* several = generate->add_option("--n", flags->n, "Answers to generate, each printed when it is complete")
                             ->check(CLI::Range(1, engine::kCompletionsMax));
  generate
      ->add_option("--best-of", flags->best_of,
                   "Generate so many answers, print the one that the model finds likeliest")
      ->check(CLI::Range(1, engine::kCompletionsMax))
      ->excludes(several);
  generate->add_flag("--special", flags->special, "Print control tokens such as <|turn>, too");
  CLI::Option* whole =
      generate->add_flag("!--no-stream", flags->stream, "Ask for the whole answer in one message (GenerateOnce)");
  CLI::Option* json =
      generate->add_flag("--json", flags->json, "Print one line of JSON: text, ids, finish_reason, usage, receipt");
  generate
      ->add_option("--logprobs", flags->logprobs,
                   "With --json: log-probabilities of the tokens, and of so many alternatives to each; 0 to 20")
      ->needs(json);
  generate->add_option("--prompt-logprobs", flags->prompt_logprobs, "The same for the tokens of the prompt")
      ->needs(json);
  generate->add_flag("--progress", flags->progress, "Show on standard error how far a long prompt is")->excludes(whole);
  generate->add_flag("--stats", flags->stats, "Print speed and flash use to standard error at the end");
  AddClientOptions(*generate, flags->client);
  // Under names of their own in --help: they are for running without a server.
  CLI::App* local = generate->add_option_group("Without a server");
  AddModelOptions(*local, flags->model);
  generate->callback([flags, prompt] {
    absl::StatusOr<v1::GenerateRequest> request = MakeRequest(*flags, prompt->count() > 0);
    if (!request.ok()) {
      std::fprintf(stderr, "embergate generate: %s\n", std::string(request.status().message()).c_str());
      throw CLI::RuntimeError(2);
    }
    const int code =
        flags->model.model.empty() ? Run(*flags, *request, Connect(flags->client)) : RunInProcess(*flags, *request);
    if (code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
