// embergate keygen
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "server/api_keys.h"
#include "server/cli/cli.h"
#include "server/cli/client.h"

namespace embergate::server {
namespace {

constexpr char kCommand[] = "keygen";

struct Flags {
  ApiClient client;
  std::string priority = "interactive";
  std::string file;
};

[[noreturn]] void Fail(const std::string& message) {
  std::fprintf(stderr, "embergate %s: %s\n", kCommand, message.c_str());
  throw CLI::RuntimeError(2);
}

// A whole line at once, so that a server that reads the file meanwhile sees all of it or nothing.
void Append(const std::string& path, const std::string& line) {
  std::string bytes = line + "\n";
  if (access(path.c_str(), F_OK) == 0) {
    absl::StatusOr<std::string> text = ReadText(path);
    const absl::Status parsed = text.ok() ? ParseApiKeys(absl::StrCat(*text, "\n", line)).status() : text.status();
    if (!parsed.ok()) {
      Fail(absl::StrCat(path, ", with the new line at its end: ", parsed.message()));
    }
    // A last line without an end would swallow the new one.
    if (!text->empty() && text->back() != '\n') {
      bytes.insert(0, "\n");
    }
  }
  const int fd = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
  const bool written = fd >= 0 && write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  const int error = errno;
  if (fd >= 0) {
    close(fd);
  }
  if (!written) {
    Fail(absl::StrCat("cannot write ", path, ": ", std::strerror(error)));
  }
}

void Run(Flags& flags) {
  const std::string key = NewApiKey();
  flags.client.keys = {DigestOf(key)};
  flags.client.limits.batch_only = flags.priority == "batch";
  const std::string line = ApiClientLine(flags.client);
  if (const auto parsed = ParseApiKeys(line); !parsed.ok()) {
    Fail(std::string(parsed.status().message()));
  }
  if (!flags.file.empty()) {
    Append(flags.file, line);
    std::printf("%s\n", key.c_str());
    return;
  }
  std::printf("%s\n\nThe key of %s, shown this once. A line for the --api-keys file:\n\n%s\n", key.c_str(),
              flags.client.name.c_str(), line.c_str());
}

}  // namespace

void AddKeygen(CLI::App& app) {
  CLI::App* command = app.add_subcommand(kCommand, "Make an API key for a client of the server");
  auto flags = std::make_shared<Flags>();
  ClientLimits& limits = flags->client.limits;
  command->add_option("name", flags->client.name, "The client's name, for log, metrics and fair sharing")
      ->required()
      ->type_name("NAME");
  command->add_option("--requests-per-minute", limits.requests_per_minute, "Calls per minute; 0 = any number")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command->add_option("--tokens-per-minute", limits.tokens_per_minute, "Tokens of prompts and answers; 0 = any number")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  command->add_option("--streams", limits.streams, "Generate and Score calls at once; 0 = any number")
      ->check(CLI::Range(0, 65536));
  command->add_option("--priority", flags->priority, "The highest that it may ask for")
      ->check(CLI::IsMember({"interactive", "batch"}))
      ->capture_default_str();
  command->add_option("--weight", limits.weight, "Of its share when requests wait")->check(CLI::Range(0.01, 100.0));
  command->add_option("--file", flags->file, "Append the line to this file, and print the key alone")
      ->type_name("FILE");
  command->callback([flags] { Run(*flags); });
}

}  // namespace embergate::server
