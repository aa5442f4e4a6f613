#include "server/api_keys.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/bounded_file.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

constexpr size_t kNameBytesMax = 64;
constexpr size_t kKeysMax = 4;  // of one client
constexpr size_t kFileBytesMax = 4u << 20;

bool IsName(absl::string_view text) {
  return !text.empty() && text.size() <= kNameBytesMax && std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' || c == '.' || c == '@';
  });
}

absl::Status AddDigest(absl::string_view hex, ApiClient& client) {
  const bool digits = hex.size() == 2 * sizeof(KeyDigest) && std::all_of(hex.begin(), hex.end(), [](char c) {
                        return absl::ascii_isxdigit(static_cast<unsigned char>(c));
                      });
  if (!digits) {
    return absl::InvalidArgumentError("sha256: wants 64 hexadecimal digits");
  }
  if (client.keys.size() == kKeysMax) {
    return absl::InvalidArgumentError(absl::StrCat("has more than ", kKeysMax, " keys"));
  }
  for (uint8_t& byte : client.keys.emplace_back()) {
    uint32_t value = 0;
    (void)absl::SimpleHexAtoi(hex.substr(0, 2), &value);  // two digits, as was seen above
    byte = static_cast<uint8_t>(value);
    hex.remove_prefix(2);
  }
  return absl::OkStatus();
}

absl::Status SetLimit(absl::string_view name, absl::string_view value, ClientLimits& limits) {
  constexpr int64_t kMany = int64_t{1} << 40;
  int64_t count = 0;
  const bool counted = absl::SimpleAtoi(value, &count) && count >= 1 && count <= kMany;
  if (name == "requests-per-minute" && counted) {
    limits.requests_per_minute = count;
  } else if (name == "tokens-per-minute" && counted) {
    limits.tokens_per_minute = count;
  } else if (name == "streams" && counted && count <= 65536) {
    limits.streams = static_cast<int>(count);
  } else if (name == "priority" && (value == "interactive" || value == "batch")) {
    limits.batch_only = value == "batch";
  } else if (name == "weight" && absl::SimpleAtod(value, &limits.weight) && limits.weight >= 0.01 &&
             limits.weight <= 100) {
    // taken
  } else {
    return absl::InvalidArgumentError(
        "is no name sha256:HEX with settings of these: requests-per-minute=N tokens-per-minute=N streams=N "
        "priority=interactive|batch weight=0.01..100");
  }
  return absl::OkStatus();
}

absl::StatusOr<ApiClient> ParseLine(absl::string_view line) {
  const std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
  ApiClient client;
  client.name = std::string(words.front());
  if (!IsName(client.name)) {
    return absl::InvalidArgumentError("a name is 1 to 64 letters, digits, or - _ . @");
  }
  for (size_t i = 1; i < words.size(); ++i) {
    absl::string_view word = words[i];
    if (absl::ConsumePrefix(&word, "sha256:")) {
      EMBERGATE_RETURN_IF_ERROR(AddDigest(word, client));
      continue;
    }
    const std::pair<absl::string_view, absl::string_view> setting = absl::StrSplit(word, absl::MaxSplits('=', 1));
    EMBERGATE_RETURN_IF_ERROR(SetLimit(setting.first, setting.second, client.limits));
  }
  if (client.keys.empty()) {
    return absl::InvalidArgumentError("has no sha256:HEX; embergate keygen makes a key and its line");
  }
  return client;
}

}  // namespace

std::string NewApiKey() {
  uint8_t random[32];
  // Fails only where the system has no random numbers at all; nothing may go on then.
  if (RAND_bytes(random, sizeof(random)) != 1) {
    std::abort();
  }
  return absl::StrCat(
      "eg_", absl::WebSafeBase64Escape(absl::string_view(reinterpret_cast<const char*>(random), sizeof(random))));
}

KeyDigest DigestOf(absl::string_view key) {
  KeyDigest digest;
  unsigned int bytes = 0;
  if (EVP_Digest(key.data(), key.size(), digest.data(), &bytes, EVP_sha256(), nullptr) != 1 || bytes != digest.size()) {
    std::abort();  // a libcrypto without SHA-256; an undefined digest must not be compared
  }
  return digest;
}

std::string ApiClientLine(const ApiClient& client) {
  std::string line = client.name;
  for (const KeyDigest& key : client.keys) {
    absl::StrAppend(&line, " sha256:",
                    absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(key.data()), key.size())));
  }
  const ClientLimits& limits = client.limits;
  if (limits.requests_per_minute > 0) absl::StrAppend(&line, " requests-per-minute=", limits.requests_per_minute);
  if (limits.tokens_per_minute > 0) absl::StrAppend(&line, " tokens-per-minute=", limits.tokens_per_minute);
  if (limits.streams > 0) absl::StrAppend(&line, " streams=", limits.streams);
  if (limits.batch_only) absl::StrAppend(&line, " priority=batch");
  if (limits.weight != 1) absl::StrAppend(&line, " weight=", limits.weight);
  return line;
}

absl::StatusOr<std::vector<ApiClient>> ParseApiKeys(absl::string_view text) {
  std::vector<ApiClient> clients;
  std::set<std::string> names;
  std::set<KeyDigest> keys;
  int number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line.substr(0, line.find('#')));
    if (line.empty()) {
      continue;
    }
    absl::StatusOr<ApiClient> client = ParseLine(line);
    if (client.ok() && clients.size() == kApiClientsMax) {
      client = absl::InvalidArgumentError(absl::StrCat("is client number ", kApiClientsMax + 1, ", which is too many"));
    }
    if (client.ok() && !names.insert(client->name).second) {
      client = absl::InvalidArgumentError("repeats a name; a client with two keys has both on one line");
    }
    if (client.ok()) {
      for (const KeyDigest& key : client->keys) {
        if (!keys.insert(key).second) {
          client = absl::InvalidArgumentError("repeats a key");
          break;
        }
      }
    }
    if (!client.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", client.status().message()));
    }
    clients.push_back(*std::move(client));
  }
  return clients;
}

absl::StatusOr<std::vector<ApiClient>> ReadApiKeys(const std::string& path) {
  struct stat info = {};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & S_IWOTH) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " can be written by everybody, who could add keys; chmod o-w"));
  }
  EMBERGATE_ASSIGN_OR_RETURN(const std::string text, ReadBoundedFile(path, kFileBytesMax));
  absl::StatusOr<std::vector<ApiClient>> clients = ParseApiKeys(text);
  if (!clients.ok()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ", ", clients.status().message()));
  }
  if (clients->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has no key; embergate keygen makes one"));
  }
  return clients;
}

}  // namespace embergate::server
