// Lines that people type: with editing and history where standard input is a terminal, as they come otherwise.
#ifndef EMBERGATE_SERVER_CLI_LINE_EDITOR_H_
#define EMBERGATE_SERVER_CLI_LINE_EDITOR_H_

#include <memory>
#include <optional>
#include <string>

namespace embergate::server {

// Threads: one, and one instance at a time (the terminal is one).
class LineEditor {
 public:
  // `history_path`: kept from one run to the next, the last 1000 lines, readable by its owner only; empty: only
  // remembered while this object lives. A file that cannot be read or written is left alone.
  explicit LineEditor(const std::string& history_path);
  ~LineEditor();
  LineEditor(const LineEditor&) = delete;
  LineEditor& operator=(const LineEditor&) = delete;

  // Whether people type here; prompts are shown only then.
  bool terminal() const;
  // A line without its end; nullopt at the end of input. Escape sequences in `prompt` stand between \001 characters.
  std::optional<std::string> ReadLine(const std::string& prompt);
  // Makes the text (it may have several lines) the newest entry of the history.
  void Remember(const std::string& text);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What one says in a chat, from one or more lines: a line that ends in \ goes on in the next one, and lines between two
// lines of """ belong together. nullopt at the end of input. `more` is the prompt of lines that go on.
std::optional<std::string> ReadMessage(LineEditor& editor, const std::string& prompt, const std::string& more);

// $XDG_STATE_HOME/embergate/NAME, or ~/.local/state/embergate/NAME, its folder made; empty where there is no home.
std::string StateFile(const std::string& name);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_LINE_EDITOR_H_
