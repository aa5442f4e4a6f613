// CRC-32C (Castagnoli: reflected polynomial 0x82f63b78, start and final value inverted), as in iSCSI (RFC 3720)
// and ext4. Carry-less multiplication or the processor's own instruction where it has one, tables otherwise.
#ifndef EMBERGATE_STORAGE_CRC32C_H_
#define EMBERGATE_STORAGE_CRC32C_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace embergate::storage {

// Continues `crc` (0 to start) over `data`: Crc32c(b, Crc32c(a)) is the value of a followed by b.
uint32_t Crc32c(absl::Span<const uint8_t> data, uint32_t crc = 0);

// Copies `from` to `to` (not overlapping) and returns Crc32c(from, crc): one pass over memory that is in no cache.
uint32_t CopyWithCrc32c(uint8_t* to, absl::Span<const uint8_t> from, uint32_t crc = 0);

// Asks the processor for the beginning of a copy that comes next, while another is made: what CopyWithCrc32c itself
// cannot ask for ahead. Measured on rows of 9520 bytes in no cache: a fifth less time.
void PrefetchCopy(uint8_t* to, absl::Span<const uint8_t> from);

// Crc32c from tables alone: the truth that the fast paths are tested against.
uint32_t Crc32cPortable(absl::Span<const uint8_t> data, uint32_t crc = 0);

// One way to do the two above.
struct Crc32cBackend {
  absl::string_view name;  // "vpclmulqdq", "sse4.2", "armv8-crc" or "tables"
  uint32_t (*crc)(absl::Span<const uint8_t> data, uint32_t crc);
  uint32_t (*copy)(uint8_t* to, absl::Span<const uint8_t> from, uint32_t crc);
};

// Those that this processor can, the fastest first: that one is used.
absl::Span<const Crc32cBackend> Crc32cBackends();

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_CRC32C_H_
