#include "server/cli/line_editor.h"

#include <histedit.h>
#include <sys/stat.h>
#include <unistd.h>

#include <clocale>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace embergate::server {
namespace {

constexpr int kHistoryLines = 1000;
constexpr char kEscape = '\001';
constexpr absl::string_view kBlock = "\"\"\"";

}  // namespace

struct LineEditor::Impl {
  std::string history_path;
  std::string prompt;
  EditLine* editor = nullptr;  // null where standard input is no terminal
  History* history = nullptr;

  static char* Prompt(EditLine* editor) {
    void* self = nullptr;
    el_get(editor, EL_CLIENTDATA, &self);
    return static_cast<Impl*>(self)->prompt.data();
  }
};

LineEditor::LineEditor(const std::string& history_path) : impl_(std::make_unique<Impl>()) {
  impl_->history_path = history_path;
  if (isatty(STDIN_FILENO) == 0) {
    return;
  }
  std::setlocale(LC_CTYPE, "");  // the editor measures characters by it
  impl_->editor = el_init("embergate", stdin, stdout, stderr);
  impl_->history = history_init();
  if (impl_->editor == nullptr || impl_->history == nullptr) {
    return;
  }
  HistEvent event;
  history(impl_->history, &event, H_SETSIZE, kHistoryLines);
  history(impl_->history, &event, H_SETUNIQUE, 1);
  if (!history_path.empty()) {
    history(impl_->history, &event, H_LOAD, history_path.c_str());
  }
  el_set(impl_->editor, EL_CLIENTDATA, impl_.get());
  el_set(impl_->editor, EL_PROMPT_ESC, &Impl::Prompt, kEscape);
  el_set(impl_->editor, EL_EDITOR, "emacs");
  el_set(impl_->editor, EL_HIST, &::history, impl_->history);
  el_set(impl_->editor, EL_BIND, "^R", "em-inc-search-prev", nullptr);
  el_source(impl_->editor, nullptr);  // ~/.editrc
}

LineEditor::~LineEditor() {
  if (impl_->history != nullptr) {
    history_end(impl_->history);
  }
  if (impl_->editor != nullptr) {
    el_end(impl_->editor);
  }
}

bool LineEditor::terminal() const { return impl_->editor != nullptr; }

std::optional<std::string> LineEditor::ReadLine(const std::string& prompt) {
  std::string line;
  if (impl_->editor == nullptr) {
    return std::getline(std::cin, line) ? std::optional<std::string>(line) : std::nullopt;
  }
  impl_->prompt = prompt;
  int count = 0;
  const char* text = el_gets(impl_->editor, &count);
  if (text == nullptr || count <= 0) {
    return std::nullopt;
  }
  line.assign(text, static_cast<size_t>(count));
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) {
    line.pop_back();
  }
  return line;
}

void LineEditor::Remember(const std::string& text) {
  if (impl_->history != nullptr && !text.empty()) {
    HistEvent event;
    history(impl_->history, &event, H_ENTER, text.c_str());
    // At once, for a closed terminal or a second Ctrl-C leaves no time for it later.
    if (!impl_->history_path.empty()) {
      const mode_t mask = umask(077);
      history(impl_->history, &event, H_SAVE, impl_->history_path.c_str());
      umask(mask);
    }
  }
}

std::optional<std::string> ReadMessage(LineEditor& editor, const std::string& prompt, const std::string& more) {
  std::string text;
  bool block = false;
  bool begun = false;
  while (std::optional<std::string> line = editor.ReadLine(begun ? more : prompt)) {
    const bool fence = *line == kBlock;
    if (block) {
      if (fence) {
        break;
      }
      absl::StrAppend(&text, begun && !text.empty() ? "\n" : "", *line);
      continue;
    }
    if (!begun && fence) {
      block = begun = true;
      continue;
    }
    begun = true;
    if (!absl::EndsWith(*line, "\\")) {
      text += *line;
      break;
    }
    line->back() = '\n';
    text += *line;
  }
  if (!begun) {
    return std::nullopt;
  }
  editor.Remember(text);
  return text;
}

std::string StateFile(const std::string& name) {
  const char* state = std::getenv("XDG_STATE_HOME");
  const char* home = std::getenv("HOME");
  std::string folder;
  if (state != nullptr && *state == '/') {
    folder = absl::StrCat(state, "/embergate");
  } else if (home != nullptr && *home == '/') {
    folder = absl::StrCat(home, "/.local/state/embergate");
  } else {
    return "";
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  return error ? "" : absl::StrCat(folder, "/", name);
}

}  // namespace embergate::server
