// embergate manual, embergate completion: the man page and the shell's completion, made from the same declarations as
// --help, so that they cannot say anything else.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "server/cli/cli.h"
#include "server/version.h"

namespace embergate::server {
namespace {

using Apps = std::vector<const CLI::App*>;
using Options = std::vector<const CLI::Option*>;

Apps Subcommands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App*) { return true; });
}

// In the order of --help, which comes last.
Options OptionsOf(const CLI::App& app) {
  Options options;
  const CLI::Option* help = app.get_help_ptr();
  for (const CLI::Option* option : app.get_options([](const CLI::Option*) { return true; })) {
    if (option != help) {
      options.push_back(option);
    }
  }
  if (help != nullptr) {
    options.push_back(help);
  }
  return options;
}

// ---- groff ----------------------------------------------------------------------------------------

// Text as groff prints it literally: a minus that can be pasted, no requests at the start of a line.
std::string Groff(absl::string_view text) {
  std::string escaped = absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}});
  std::vector<std::string> lines = absl::StrSplit(escaped, '\n');
  for (std::string& line : lines) {
    if (!line.empty() && (line[0] == '.' || line[0] == '\'')) {
      line.insert(0, "\\&");
    }
  }
  return absl::StrJoin(lines, "\n.br\n");
}

std::string OptionHead(const CLI::Option& option) {
  if (option.get_positional()) {
    return absl::StrCat("\\fI", Groff(option.get_name(true, false)), "\\fR");
  }
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) {
    names.push_back(absl::StrCat("\\fB", Groff("-" + name), "\\fR"));
  }
  for (const std::string& name : option.get_lnames()) {
    names.push_back(absl::StrCat("\\fB", Groff("--" + name), "\\fR"));
  }
  std::string head = absl::StrJoin(names, ", ");
  if (option.get_items_expected_max() > 0) {
    absl::StrAppend(&head, " \\fI", Groff(option.get_type_name()), "\\fR");
  }
  return head;
}

void PrintOptions(const CLI::App& app) {
  for (const CLI::Option* option : OptionsOf(app)) {
    std::printf(".TP\n%s\n%s\n", OptionHead(*option).c_str(), Groff(option->get_description()).c_str());
    if (!option->get_default_str().empty()) {
      std::printf("Default: %s.\n", Groff(option->get_default_str()).c_str());
    }
    if (!option->get_envname().empty()) {
      std::printf("Environment: \\fB%s\\fR.\n", Groff(option->get_envname()).c_str());
    }
  }
}

void PrintManual(const CLI::App& root) {
  std::printf(".TH EMBERGATE 1 \"\" \"embergate %s\" \"User Commands\"\n", kVersion);
  std::printf(".SH NAME\nembergate \\- gRPC inference server for Gemma 3n and Gemma 4 on small boards\n");
  std::printf(".SH SYNOPSIS\n\\fBembergate\\fR \\fICOMMAND\\fR [\\fIOPTIONS\\fR]\n");
  std::printf(".SH DESCRIPTION\n%s\n", Groff(root.get_description()).c_str());
  std::printf(".SH COMMANDS\n");
  for (const CLI::App* command : Subcommands(root)) {
    std::printf(".SS \"embergate %s\"\n%s.\n", Groff(command->get_name()).c_str(),
                Groff(command->get_description()).c_str());
    PrintOptions(*command);
    if (!command->get_footer().empty()) {
      std::printf(".PP\n%s\n", Groff(command->get_footer()).c_str());
    }
  }
  std::printf(
      ".SH FILES\n.TP\n\\fI/etc/embergate/embergate.toml\\fR\nSettings of the system service, in the form that "
      "\\fB\\-\\-config\\fR takes.\n.TP\n\\fI$XDG_STATE_HOME/embergate/\\fR, \\fI~/.local/state/embergate/\\fR\n"
      "What \\fBstorage\\-test\\fR and \\fBbench \\-\\-machine\\fR have measured.\n");
}

// ---- bash -------------------------------------------------------------------------------------------

// The long flags of one command, for the shell: "--model --threads --help".
std::string Flags(const CLI::App& command) {
  std::vector<std::string> flags;
  for (const CLI::Option* option : OptionsOf(command)) {
    for (const std::string& name : option->get_lnames()) {
      flags.push_back("--" + name);
    }
  }
  return absl::StrJoin(flags, " ");
}

void PrintBashCompletion(const CLI::App& root) {
  const auto name = [](std::string* out, const CLI::App* app) { absl::StrAppend(out, app->get_name()); };
  std::printf(
      "# bash completion for embergate; written by `embergate completion bash`\n"
      "_embergate() {\n"
      "  local word=\"${COMP_WORDS[COMP_CWORD]}\" flags=\"\"\n"
      "  if [ \"$COMP_CWORD\" -eq 1 ]; then\n"
      "    COMPREPLY=($(compgen -W \"%s --help\" -- \"$word\"))\n"
      "    return\n"
      "  fi\n"
      "  case \"${COMP_WORDS[1]}\" in\n",
      absl::StrJoin(Subcommands(root), " ", name).c_str());
  for (const CLI::App* command : Subcommands(root)) {
    std::printf("    %s) flags=\"%s\" ;;\n", command->get_name().c_str(), Flags(*command).c_str());
  }
  std::printf(
      "  esac\n"
      "  case \"$word\" in\n"
      "    -*) COMPREPLY=($(compgen -W \"$flags\" -- \"$word\")) ;;\n"
      "    *) COMPREPLY=($(compgen -f -- \"$word\")) ;;\n"
      "  esac\n"
      "}\n"
      "complete -o filenames -F _embergate embergate\n");
}

}  // namespace

void AddManual(CLI::App& app) {
  CLI::App* manual = app.add_subcommand("manual", "Print the man page (groff), for man -l or a package");
  manual->callback([&app] { PrintManual(app); });
  CLI::App* completion = app.add_subcommand("completion", "Print the completion script for a shell");
  auto shell = std::make_shared<std::string>();
  completion->add_option("shell", *shell, "Which shell: bash")->required()->check(CLI::IsMember({"bash"}));
  completion->footer("Try it with:  source <(embergate completion bash)");
  completion->callback([&app, shell] { PrintBashCompletion(app); });
}

}  // namespace embergate::server
