// embergate chat: a conversation in the terminal.
#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "engine/text/json_util.h"
#include "server/cli/chat_session.h"
#include "server/cli/cli.h"
#include "server/cli/client.h"
#include "server/cli/interrupter.h"
#include "server/cli/line_editor.h"
#include "server/cli/tools_file.h"

namespace embergate::server {
namespace {

struct ChatFlags {
  ClientFlags client;
  GenerationFlags generation;
  std::string system;
  std::string tools;
  std::string session;
  bool thinking = false;
  bool no_history = false;
};

constexpr char kHelp[] =
    "  /system TEXT  set the system turn and start over (without TEXT: remove it)\n"
    "  /stats        what the last answer cost, and the conversation so far\n"
    "  /retry        answer the last question again\n"
    "  /undo         forget the last question and its answer\n"
    "  /reset        forget the conversation\n"
    "  /save FILE    write the conversation to a file; /load FILE goes on with one\n"
    "  /quit         leave (or Ctrl-D)\n"
    "A line that ends in \\ goes on in the next one; lines between two lines of \"\"\" belong together.\n"
    "Ctrl-C stops the answer. With --tools, a call is shown and its result (a JSON object or text) asked for.\n";

// Escape sequences, or nothing where output is no terminal or NO_COLOR is set.
struct Style {
  const char* prompt = "";
  const char* faint = "";
  const char* off = "";
};

Style MakeStyle() {
  if (!isatty(STDOUT_FILENO) || std::getenv("NO_COLOR") != nullptr) {
    return Style();
  }
  return Style{"\033[1;36m", "\033[2m", "\033[0m"};
}

class Conversation {
 public:
  explicit Conversation(const ChatFlags& flags)
      : flags_(flags),
        style_(MakeStyle()),
        interrupter_(isatty(STDIN_FILENO) ? absl::StrCat(style_.prompt, ">", style_.off, " ") : ""),
        editor_(flags.no_history ? "" : StateFile("chat_history")),
        stub_(v1::Inference::NewStub(Connect(flags.client))) {}

  // The exit code.
  int Run() {
    if (const absl::Status status = Begin(); !status.ok()) {
      std::fprintf(stderr, "embergate chat: %s\n", std::string(status.message()).c_str());
      return 2;
    }
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
    if (editor_.terminal()) {
      Note(absl::StrCat(info.name(), ". /help lists the commands.",
                        questions() > 0 ? absl::StrCat(" Going on after ", questions(), " questions.") : ""));
    }
    while (std::optional<std::string> input = ReadMessage(editor_, Prompt(">"), Prompt("."))) {
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
      v1::ChatMessage& question = *chat_.add_messages();
      question.set_role(v1::ChatMessage::ROLE_USER);
      question.set_content(text);
      Answer();
    }
    if (editor_.terminal()) {
      std::printf("\n");
    }
    // In a script, a failed answer is a failure.
    return editor_.terminal() ? 0 : failure_;
  }

 private:
  absl::Status Begin() {
    if (!flags_.tools.empty()) {
      if (const absl::Status status = AddToolsFile(flags_.tools, tools_); !status.ok()) {
        return status;
      }
    }
    Reset(flags_.system);
    if (flags_.session.empty()) {
      return absl::OkStatus();
    }
    absl::StatusOr<v1::ChatInput> session = LoadSession(flags_.session);
    if (absl::IsNotFound(session.status())) {
      return absl::OkStatus();  // a new one
    }
    if (!session.ok()) {
      return session.status();
    }
    Resume(*std::move(session));
    if (!flags_.system.empty() && flags_.system != system_) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags_.session, " has another system turn than --system; leave that out, or take another file"));
    }
    return absl::OkStatus();
  }

  // With a space behind it. Parts that are no characters on the screen are marked for the editor, which shows them
  // together with the character that follows: none may be the last.
  std::string Prompt(const std::string& text) const {
    const auto escape = [](const char* sequence) {
      return *sequence == '\0' ? "" : absl::StrCat("\001", sequence, "\001");
    };
    return absl::StrCat(escape(style_.prompt), text, escape(style_.off), " ");
  }

  void Note(const std::string& text) const {
    std::printf("%s%s%s\n", style_.faint, text.c_str(), style_.off);
    std::fflush(stdout);
  }

  void Reset(const std::string& system) {
    chat_ = tools_;
    chat_.set_enable_thinking(flags_.thinking);
    if (!system.empty()) {
      v1::ChatMessage& message = *chat_.add_messages();
      message.set_role(v1::ChatMessage::ROLE_SYSTEM);
      message.set_content(system);
    }
    system_ = system;
    finished_.reset();
  }

  void Resume(v1::ChatInput chat) {
    if (flags_.tools.empty()) {
      tools_.mutable_tools()->Swap(chat.mutable_tools());
    }
    *chat.mutable_tools() = tools_.tools();
    const bool has_system = chat.messages_size() > 0 && chat.messages(0).role() == v1::ChatMessage::ROLE_SYSTEM;
    system_ = has_system ? chat.messages(0).content() : "";
    chat_ = std::move(chat);
    chat_.set_enable_thinking(flags_.thinking);
    finished_.reset();
  }

  int questions() const {
    int count = 0;
    for (const v1::ChatMessage& message : chat_.messages()) {
      count += message.role() == v1::ChatMessage::ROLE_USER ? 1 : 0;
    }
    return count;
  }

  // Forgets the last question, or only what came after it; false if there is none.
  bool DropLast(bool keep_question) {
    if (questions() == 0) {
      return false;
    }
    auto* messages = chat_.mutable_messages();
    while (messages->rbegin()->role() != v1::ChatMessage::ROLE_USER) {
      messages->RemoveLast();
    }
    if (!keep_question) {
      messages->RemoveLast();
    }
    return true;
  }

  // False to leave.
  bool Command(const std::string& text) {
    const size_t space = text.find_first_of(" \n\t");
    const std::string name = text.substr(0, space);
    const std::string rest =
        space == std::string::npos ? "" : std::string(absl::StripAsciiWhitespace(text.substr(space)));
    if (name == "/quit" || name == "/exit") {
      return false;
    }
    if (name == "/reset") {
      Reset(system_);
      Note("The conversation is forgotten.");
    } else if (name == "/stats") {
      Stats();
    } else if (name == "/system") {
      Reset(rest);
      Note(absl::StrCat("System turn ", system_.empty() ? "removed" : "set", "; the conversation starts over."));
    } else if (name == "/undo") {
      Note(DropLast(/*keep_question=*/false) ? "The last question is forgotten." : "There is no question yet.");
    } else if (name == "/retry") {
      if (DropLast(/*keep_question=*/true)) {
        Answer();
      } else {
        Note("There is no question yet.");
      }
    } else if (name == "/save" || name == "/load") {
      File(name == "/save", rest);
    } else {
      std::printf("%s%s%s", style_.faint, kHelp, style_.off);
    }
    std::fflush(stdout);
    return true;
  }

  void Stats() const {
    if (!finished_.has_value()) {
      Note("No answer yet.");
      return;
    }
    std::printf("%s%sconversation: %d questions, %d answers, %lld tokens generated%s\n", style_.faint,
                Summary(*finished_).c_str(), questions(), answers_, static_cast<long long>(tokens_), style_.off);
  }

  void File(bool save, const std::string& path) {
    if (path.empty()) {
      Note(absl::StrCat("Which file? ", save ? "/save" : "/load", " FILE"));
      return;
    }
    absl::Status status;
    if (save) {
      status = SaveSession(chat_, path);
    } else if (absl::StatusOr<v1::ChatInput> chat = LoadSession(path); chat.ok()) {
      Resume(*std::move(chat));
    } else {
      status = chat.status();
    }
    Note(!status.ok() ? std::string(status.message())
                      : absl::StrCat(save ? "Saved " : "Going on with ", questions(), " questions."));
  }

  void Print(const v1::Delta& delta) const {
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

  // Answers the conversation as it stands, asking for the results of tools as long as there are calls.
  void Answer() {
    while (Generate() && AddResults()) {
    }
    if (!flags_.session.empty()) {
      if (const absl::Status status = SaveSession(chat_, flags_.session); !status.ok()) {
        std::fprintf(stderr, "embergate chat: %s\n", std::string(status.message()).c_str());
        failure_ = 1;
      }
    }
  }

  // One answer of the model; false if it failed or was stopped.
  bool Generate() {
    v1::GenerateRequest request;
    if (const absl::Status status = Apply(flags_.generation, request); !status.ok()) {
      std::fprintf(stderr, "embergate chat: %s\n", std::string(status.message()).c_str());
      failure_ = 2;
      chat_.mutable_messages()->RemoveLast();
      return false;
    }
    *request.mutable_chat() = chat_;

    grpc::ClientContext context;
    SetDeadline(flags_.client, context);
    interrupter_.Begin(&context);
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
        tokens_ += finished_->usage().output_tokens();
        ++answers_;
      }
    }
    const grpc::Status status = stream->Finish();
    const bool interrupted = interrupter_.End();
    if (answer.tool_calls_size() == 0) {
      std::printf("\n");
    }
    std::fflush(stdout);
    if (interrupted) {
      Note("(stopped)");
    } else if (!status.ok()) {
      failure_ = ReportError("chat", status);
    }
    // A part of an answer is kept, so that the next question can refer to it; a question without one is dropped:
    // turns have to alternate.
    if (status.ok() || !answer.content().empty()) {
      *chat_.add_messages() = std::move(answer);
    } else {
      DropLast(/*keep_question=*/false);
    }
    return status.ok();
  }

  // Asks for the results of the last answer's calls; false if there are none, or none is given: then the question is
  // forgotten, for a call without its result cannot be followed by anything else.
  bool AddResults() {
    const v1::ChatMessage caller = *chat_.messages().rbegin();
    for (const v1::ToolCall& call : caller.tool_calls()) {
      const std::optional<std::string> line = editor_.ReadLine(Prompt(absl::StrCat(call.name(), " =")));
      const std::string text(absl::StripAsciiWhitespace(line.value_or("")));
      if (text.empty()) {
        DropLast(/*keep_question=*/false);
        Note("No result: the question is forgotten.");
        return false;
      }
      v1::ChatMessage& result = *chat_.add_messages();
      result.set_role(v1::ChatMessage::ROLE_TOOL);
      result.set_tool_call_id(call.id());
      result.set_tool_name(call.name());
      const absl::StatusOr<nlohmann::json> parsed = engine::ParseBoundedJson(text);
      if (parsed.ok() && parsed->is_object()) {
        result.set_tool_result_json(text);
      } else {
        result.set_content(text);
      }
    }
    return caller.tool_calls_size() > 0;
  }

  const ChatFlags& flags_;
  const Style style_;
  Interrupter interrupter_;  // first: it has to be made before other threads
  LineEditor editor_;
  std::unique_ptr<v1::Inference::Stub> stub_;
  v1::ChatInput tools_;  // a conversation without messages
  v1::ChatInput chat_;
  std::string system_;
  std::optional<v1::Finished> finished_;  // of the last answer
  int answers_ = 0;
  int64_t tokens_ = 0;
  int failure_ = 0;
};

}  // namespace

void AddChat(CLI::App& app) {
  CLI::App* chat = app.add_subcommand("chat", "Talk with the model in the terminal");
  auto flags = std::make_shared<ChatFlags>();
  chat->add_option("--system", flags->system, "The system turn: instructions for the whole conversation");
  chat->add_option("--tools", flags->tools, "JSON file with a list of functions that the model may ask to call");
  chat->add_option("--session", flags->session,
                   "File that keeps the conversation: goes on with it if it is there, written after every answer");
  chat->add_flag("--thinking", flags->thinking, "Let the model think before it answers");
  chat->add_flag("--no-history", flags->no_history, "Do not keep typed lines for the next time");
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
