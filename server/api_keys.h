// API keys: how they are made, how a file lists them, and whose a given key is. Keys themselves are never stored: the
// file has their SHA-256, which is enough for keys that are 256 random bits.
#ifndef EMBERGATE_SERVER_API_KEYS_H_
#define EMBERGATE_SERVER_API_KEYS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace embergate::server {

using KeyDigest = std::array<uint8_t, 32>;

// What one client may use; 0 = any amount.
struct ClientLimits {
  int64_t requests_per_minute = 0;
  int64_t tokens_per_minute = 0;  // of prompts and answers together
  int streams = 0;                // Generate and Score calls at once
  bool batch_only = false;        // may not ask for interactive priority
  double weight = 1;              // of its share of the slots, 0.01 to 100

  bool operator==(const ClientLimits& other) const = default;
};

struct ApiClient {
  std::string name;
  std::vector<KeyDigest> keys;  // >= 1; several while one replaces another
  ClientLimits limits;

  bool operator==(const ApiClient& other) const = default;
};

// A new key: "eg_" and 256 bits of the system's random generator.
std::string NewApiKey();
KeyDigest DigestOf(absl::string_view key);
// The line that ParseApiKeys reads back.
std::string ApiClientLine(const ApiClient& client);

inline constexpr size_t kApiClientsMax = 4096;

// One client per line: its name, one to four digests, its limits; '#' begins a comment.
//   alice sha256:<64 hex digits> requests-per-minute=60 tokens-per-minute=20000 streams=4 priority=batch weight=2
// INVALID_ARGUMENT names the line, and never quotes it.
absl::StatusOr<std::vector<ApiClient>> ParseApiKeys(absl::string_view text);
// The same of a file of at most 4 MiB. Also refused: a file that everybody may write to, and one without any client.
absl::StatusOr<std::vector<ApiClient>> ReadApiKeys(const std::string& path);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_API_KEYS_H_
