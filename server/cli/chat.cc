// embergate chat: a conversation in the terminal.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "server/cli/cli.h"
#include "server/cli/client.h"
#include "server/signal_poller.h"

namespace embergate::server {
namespace {

struct ChatFlags {
  ClientFlags client;
  GenerationFlags generation;
  std::string system;
  bool thinking = false;
};

constexpr char kHelp[] =
    "  /system TEXT  set the system turn and start over (without TEXT: remove it)\n"
    "  /stats        what the last answer cost\n"
    "  /reset        forget the conversation\n"
    "  /quit         leave (or Ctrl-D)\n"
    "A line that ends in \\ goes on in the next one. Ctrl-C stops the answer.\n";

// Escape sequences, or nothing where output is no terminal or NO_COLOR is set.
struct Style {
  const char* prompt = "";
  const char* faint = "";
  const char* error = "";
  const char* off = "";
};

Style MakeStyle() {
  if (!isatty(STDOUT_FILENO) || std::getenv("NO_COLOR") != nullptr) {
    return Style();
  }
  return Style{"\033[1;36m", "\033[2m", "\033[31m", "\033[0m"};
}

// Ctrl-C in a thread of its own: cancels the call under way; at the prompt, the second one in a row leaves.
class Interrupter {
 public:
  explicit Interrupter(const std::string& prompt) : poller_({SIGINT}), prompt_(prompt), thread_([this] { Loop(); }) {}
  ~Interrupter() {
    stop_ = true;
    poller_.Wake();
    thread_.join();
  }

  // Between Begin and End, `context` is the call that Ctrl-C cancels.
  void Begin(grpc::ClientContext* context) {
    std::lock_guard<std::mutex> lock(mutex_);
    context_ = context;
    interrupted_ = false;
    idle_interrupts_ = 0;
  }
  // Whether the call was interrupted.
  bool End() {
    std::lock_guard<std::mutex> lock(mutex_);
    context_ = nullptr;
    return interrupted_;
  }

 private:
  void Loop() {
    while (!stop_) {
      if (poller_.Wait() == 0) {
        continue;
      }
      std::lock_guard<std::mutex> lock(mutex_);
      if (context_ != nullptr) {
        interrupted_ = true;
        context_->TryCancel();
      } else if (++idle_interrupts_ == 1) {
        std::printf("\n(Ctrl-C again or /quit to leave)\n%s", prompt_.c_str());
        std::fflush(stdout);
      } else {
        std::printf("\n");
        std::fflush(stdout);
        std::_Exit(130);  // the main thread sits in a read that nothing else ends
      }
    }
  }

  SignalPoller poller_;
  const std::string prompt_;
  std::mutex mutex_;
  grpc::ClientContext* context_ = nullptr;
  bool interrupted_ = false;
  int idle_interrupts_ = 0;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// A line, with those that it is continued in; nullopt at the end of input.
std::optional<std::string> ReadInput(const std::string& prompt) {
  std::string text;
  std::string line;
  std::printf("%s", prompt.c_str());
  std::fflush(stdout);
  while (std::getline(std::cin, line)) {
    if (!absl::EndsWith(line, "\\")) {
      return text + line;
    }
    line.back() = '\n';
    text += line;
    std::printf("%s", isatty(STDIN_FILENO) ? ". " : "");
    std::fflush(stdout);
  }
  return text.empty() ? std::nullopt : std::optional<std::string>(text);
}

class Conversation {
 public:
  explicit Conversation(const ChatFlags& flags)
      : flags_(flags), style_(MakeStyle()), stub_(v1::Inference::NewStub(Connect(flags.client))) {
    if (isatty(STDIN_FILENO)) {
      prompt_ = absl::StrCat(style_.prompt, "> ", style_.off);
    }
    Reset(flags.system);
  }

  // The exit code.
  int Run() {
    v1::GetModelInfoResponse info;
    grpc::ClientContext context;
    SetDeadline(flags_.client, context);
    if (const grpc::Status status = stub_->GetModelInfo(&context, v1::GetModelInfoRequest(), &info); !status.ok()) {
      return ReportError("chat", status);
    }
    if (info.chat_format().empty()) {
      std::fprintf(stderr, "embergate chat: %s has no chat format; use embergate generate\n", info.name().c_str());
      return 2;
    }
    if (isatty(STDIN_FILENO)) {
      std::printf("%s%s. /help lists the commands.%s\n", style_.faint, info.name().c_str(), style_.off);
    }
    Interrupter interrupter(prompt_);
    while (std::optional<std::string> input = ReadInput(prompt_)) {
      const std::string text(absl::StripAsciiWhitespace(*input));
      if (text.empty()) {
        continue;
      }
      if (text[0] == '/') {
        if (!Command(text)) {
          return 0;
        }
        continue;
      }
      Answer(text, interrupter);
    }
    if (isatty(STDIN_FILENO)) {
      std::printf("\n");
    }
    // In a script, a failed answer is a failure.
    return isatty(STDIN_FILENO) ? 0 : failure_;
  }

 private:
  void Reset(const std::string& system) {
    chat_.clear_messages();
    chat_.set_enable_thinking(flags_.thinking);
    if (!system.empty()) {
      v1::ChatMessage& message = *chat_.add_messages();
      message.set_role(v1::ChatMessage::ROLE_SYSTEM);
      message.set_content(system);
    }
    system_ = system;
  }

  // False to leave.
  bool Command(const std::string& text) {
    absl::string_view rest = text;
    if (text == "/quit" || text == "/exit") {
      return false;
    }
    if (text == "/reset") {
      Reset(system_);
      std::printf("%sThe conversation is forgotten.%s\n", style_.faint, style_.off);
    } else if (text == "/stats") {
      std::printf("%s%s%s", style_.faint, finished_ ? Summary(*finished_).c_str() : "No answer yet.\n", style_.off);
    } else if (text == "/system" || absl::ConsumePrefix(&rest, "/system ")) {
      Reset(text == "/system" ? "" : std::string(absl::StripAsciiWhitespace(rest)));
      std::printf("%sSystem turn %s; the conversation starts over.%s\n", style_.faint,
                  system_.empty() ? "removed" : "set", style_.off);
    } else {
      std::printf("%s%s%s", style_.faint, kHelp, style_.off);
    }
    std::fflush(stdout);
    return true;
  }

  void Print(const v1::Delta& delta) {
    if (!delta.thinking().empty()) {
      std::printf("%s%s%s", style_.faint, delta.thinking().c_str(), style_.off);
    }
    std::fwrite(delta.text().data(), 1, delta.text().size(), stdout);
    for (const v1::ToolCall& call : delta.tool_calls()) {
      std::printf("%s[tool call] %s %s%s\n", style_.faint, call.name().c_str(), call.arguments_json().c_str(),
                  style_.off);
    }
    std::fflush(stdout);
  }

  void Answer(const std::string& text, Interrupter& interrupter) {
    v1::ChatMessage& question = *chat_.add_messages();
    question.set_role(v1::ChatMessage::ROLE_USER);
    question.set_content(text);
    v1::GenerateRequest request;
    if (const absl::Status status = Apply(flags_.generation, request); !status.ok()) {
      std::fprintf(stderr, "embergate chat: %s\n", std::string(status.message()).c_str());
      failure_ = 2;
      chat_.mutable_messages()->RemoveLast();
      return;
    }
    *request.mutable_chat() = chat_;

    grpc::ClientContext context;
    SetDeadline(flags_.client, context);
    interrupter.Begin(&context);
    const auto stream = stub_->Generate(&context, request);
    v1::ChatMessage answer;
    answer.set_role(v1::ChatMessage::ROLE_ASSISTANT);
    v1::GenerateResponse response;
    while (stream->Read(&response)) {
      if (response.has_delta()) {
        Print(response.delta());
        answer.mutable_content()->append(response.delta().text());
        answer.mutable_thinking()->append(response.delta().thinking());
        answer.mutable_tool_calls()->MergeFrom(response.delta().tool_calls());
      } else if (response.has_finished()) {
        finished_ = response.finished();
      }
    }
    const grpc::Status status = stream->Finish();
    const bool interrupted = interrupter.End();
    std::printf("\n");
    std::fflush(stdout);
    if (interrupted) {
      std::printf("%s(stopped)%s\n", style_.faint, style_.off);
      std::fflush(stdout);
    } else if (!status.ok()) {
      failure_ = ReportError("chat", status);
    }
    // A part of an answer is kept, so that the next question can refer to it; a question without one is dropped:
    // turns have to alternate.
    if (status.ok() || !answer.content().empty()) {
      *chat_.add_messages() = std::move(answer);
    } else {
      chat_.mutable_messages()->RemoveLast();
    }
  }

  const ChatFlags& flags_;
  const Style style_;
  std::string prompt_;  // empty where input is no terminal
  std::unique_ptr<v1::Inference::Stub> stub_;
  std::string system_;
  v1::ChatInput chat_;
  std::optional<v1::Finished> finished_;
  int failure_ = 0;
};

}  // namespace

void AddChat(CLI::App& app) {
  CLI::App* chat = app.add_subcommand("chat", "Talk with the model in the terminal");
  auto flags = std::make_shared<ChatFlags>();
  chat->add_option("--system", flags->system, "The system turn: instructions for the whole conversation");
  chat->add_flag("--thinking", flags->thinking, "Let the model think before it answers");
  AddGenerationOptions(*chat, flags->generation);
  AddClientOptions(*chat, flags->client);
  chat->footer(kHelp);
  chat->callback([flags] {
    if (const int code = Conversation(*flags).Run(); code != 0) {
      throw CLI::RuntimeError(code);
    }
  });
}

}  // namespace embergate::server
