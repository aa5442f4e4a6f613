// Rows of fixed-size-row tables, read from flash on demand: row ids in, bytes out. Knows nothing of tokens,
// layers or models. Memory is fixed at Create; nothing is allocated afterwards.
#ifndef EMBERGATE_STORAGE_ROW_STORE_H_
#define EMBERGATE_STORAGE_ROW_STORE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/stats.h"

namespace embergate::storage {

struct TableSpec {
  std::string path;
  uint64_t file_offset = 0;  // of row 0
  uint64_t row_bytes = 0;
  uint64_t row_stride = 0;  // distance between rows; 0 = row_bytes
  uint64_t row_count = 0;
  bool cached = true;  // false: rows of this table never enter the row cache
};

enum class ReaderKind { kAuto, kUring, kPread };

struct RowStoreOptions {
  ReaderKind reader = ReaderKind::kAuto;  // kAuto falls back to pread when io_uring is refused; kUring fails instead
  bool direct_io = true;                  // false: buffered reads, whose pages are dropped afterwards
  int queue_depth = 32;                   // device reads in flight
  uint64_t cache_bytes = 16u << 20;       // row cache, its index included; 0 = none
  int tickets_max = 64;                   // submissions held at once
  int rows_per_ticket_max = 512;          // distinct and repeated row ids of one submission
  int rows_pinned_max = 4096;             // distinct rows held by all tickets together
  int read_attempts_max = 3;              // for a read that fails
};

// Names a submission; valid until Release.
struct RowTicket {
  uint32_t index = UINT32_MAX;
  uint32_t generation = 0;
  bool valid() const { return index != UINT32_MAX; }
};

// Threads: one owner thread calls everything but Snapshot, which any thread may call.
class RowStore {
 public:
  // Opens the tables and checks that their files hold them. Errors: NOT_FOUND, PERMISSION_DENIED,
  // INVALID_ARGUMENT (bad spec or options), DATA_LOSS (file shorter than the table), RESOURCE_EXHAUSTED.
  static absl::StatusOr<std::unique_ptr<RowStore>> Create(std::vector<TableSpec> tables,
                                                          const RowStoreOptions& options);
  virtual ~RowStore() = default;

  // Starts reading the rows and returns without waiting for the device. Duplicates are read once; rows in the
  // cache or already in flight are not read again. `prefix_bytes` > 0 asks only for the first bytes of each row.
  // Errors: OUT_OF_RANGE (names the row id), RESOURCE_EXHAUSTED (a bound of the options is reached).
  virtual absl::StatusOr<RowTicket> Submit(int table, absl::Span<const uint64_t> row_ids,
                                           uint64_t prefix_bytes = 0) = 0;

  // Blocks until every row of the ticket is there or has failed. OK, or the first error; the others' rows are
  // good all the same (see RowStatus). Errors: DATA_LOSS (short file, checksum), UNAVAILABLE (device error after
  // bounded retries); the message names table, row and file offset.
  virtual absl::Status Wait(RowTicket ticket) = 0;
  // As Wait, without blocking: whether all rows are there or have failed.
  virtual bool Ready(RowTicket ticket) = 0;

  // After Wait, for the i-th id of the submission: its status, and its bytes (row_bytes or prefix_bytes of them;
  // empty if it failed). The bytes stay put until Release.
  virtual absl::Status RowStatus(RowTicket ticket, size_t i) const = 0;
  virtual absl::Span<const uint8_t> Row(RowTicket ticket, size_t i) const = 0;

  // Unpins the rows. Allowed before Wait (a cancelled request): reads in flight then complete unseen.
  virtual void Release(RowTicket ticket) = 0;

  virtual RowStoreStats Snapshot() const = 0;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_ROW_STORE_H_
