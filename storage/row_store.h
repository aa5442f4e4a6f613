// Rows of fixed-size-row tables, read from flash on demand: row ids in, bytes out. Knows nothing of tokens,
// layers or models. Memory is fixed at Create; only errors' messages, HotRows and Snapshot allocate afterwards.
//
// How a submission becomes reads: rows in DRAM are pinned; rows that an earlier submission is reading are joined; the
// rest are sorted by offset, rows that share or nearly share device blocks become one read, and as many reads as the
// queue depth allows go out in one system call. The others follow as completions come in, which happens inside Submit,
// Wait, Ready and Poll: an owner that computes for long calls Poll now and then.
#ifndef EMBERGATE_STORAGE_ROW_STORE_H_
#define EMBERGATE_STORAGE_ROW_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/fault_reader.h"
#include "storage/stats.h"

namespace embergate::storage {

// CRC32C of a table's rows, checked after every device read and before a row is handed out.
struct RowChecksums {
  // Consecutive rows under one CRC. 1 is best: with more, a row costs a read of its whole group.
  uint32_t rows_per_group = 1;
  // With rows_per_group 1: a row may be cut into segments, each with a CRC of its own, so that a prefix read that ends
  // where a segment does can be checked alone (others are rounded up to the next end). Ascending, the last one is
  // row_bytes; empty = one segment.
  std::vector<uint64_t> segment_ends;
  // [group][segment], or [group] over the bytes of its rows without the gaps between them. Empty = no checksums.
  std::vector<uint32_t> crcs;
};

struct TableSpec {
  std::string path;
  uint64_t file_offset = 0;  // of row 0
  uint64_t row_bytes = 0;
  uint64_t row_stride = 0;  // distance between rows; 0 = row_bytes
  uint64_t row_count = 0;
  bool cached = true;  // false: rows of this table never enter the row cache
  RowChecksums checksums;
};

// For tests and benches: makes the reader misbehave.
struct RowStoreTestHooks {
  int uring_setup_errno = 0;             // io_uring_setup answers this
  int uring_register_buffers_errno = 0;  // so does registering the buffers
  std::optional<FaultOptions> faults;    // puts a fault reader in between
};

enum class ReaderKind { kAuto, kUring, kPread };

struct RowStoreOptions {
  ReaderKind reader = ReaderKind::kAuto;  // kAuto falls back to pread when io_uring is refused; kUring fails instead
  bool direct_io = true;                  // false: buffered reads, whose pages are dropped afterwards
  int queue_depth = 32;                   // device reads in flight
  uint64_t cache_bytes = 16u << 20;       // row cache, its index included; 0 = none
  int tickets_max = 64;                   // submissions held at once
  int rows_per_ticket_max = 512;          // distinct and repeated row ids of one submission
  int rows_pinned_max = 4096;             // distinct rows held by all tickets together, of each row size
  int read_attempts_max = 3;              // for a read that fails
  int read_timeout_ms = 5000;             // after which a read without an answer counts as failed
  // Rows that lie this close are read together: below it, the bytes between cost less than another read. A device's
  // own figure is IOPS-limited time per read times its bandwidth (see storage-test).
  uint32_t merge_gap_bytes = 4096;
  uint32_t read_bytes_max = 0;      // one read; 0 = the longest row's blocks, or 16 KiB if that is more
  bool submission_polling = false;  // io_uring only: a kernel thread submits, at the cost of a busy core
  RowStoreTestHooks test_hooks;
};

// A row of one of the store's tables.
struct RowId {
  int table = 0;
  uint64_t row = 0;
};

// Names a submission; valid until Release. One that is not valid (released, never given out) is answered with
// FAILED_PRECONDITION, and by Release with nothing.
struct RowTicket {
  uint32_t index = UINT32_MAX;
  uint32_t generation = 0;
  bool valid() const { return index != UINT32_MAX; }
};

// What a submission cost. Distinct rows; each is either found or read.
struct RowCounts {
  uint32_t found = 0;  // in DRAM already, or being read for another submission
  uint32_t read = 0;
  // Bytes read from the device for the latter, whole blocks; shared out by the average over all reads so far, since one
  // read may serve rows of several submissions.
  uint64_t device_bytes = 0;
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
  // A submission of which at most queue_depth rows must be read overtakes the waiting part of longer ones: decode never
  // queues behind prefill. Errors: OUT_OF_RANGE (names the row id), RESOURCE_EXHAUSTED (a bound of the options is
  // reached; nothing was submitted), UNAVAILABLE (the reader broke down).
  virtual absl::StatusOr<RowTicket> Submit(int table, absl::Span<const uint64_t> row_ids,
                                           uint64_t prefix_bytes = 0) = 0;

  // The same for rows of several tables at once, in one submission. A table may be named by any number of ids.
  virtual absl::StatusOr<RowTicket> SubmitRows(absl::Span<const RowId> rows, uint64_t prefix_bytes = 0) = 0;

  // As Submit, but nothing is read until Send, so that submissions with tickets of their own (a step's sequences)
  // become one batch: sorted and merged together, sent in one system call. A row of several of them is read once. Sent
  // without being asked: before another kind of submission, by Poll, Ready and Wait, and when more rows than
  // rows_per_ticket_max are staged.
  virtual absl::StatusOr<RowTicket> Stage(int table, absl::Span<const uint64_t> row_ids, uint64_t prefix_bytes = 0) = 0;
  virtual void Send() = 0;

  // As SubmitRows, but rows in the cache are read again, to learn whether the device answers.
  virtual absl::StatusOr<RowTicket> SubmitFresh(absl::Span<const RowId> rows) = 0;

  // Takes in what has completed and sends what waits, without blocking. A few system calls, however many rows. Call it
  // between layers while a long submission is under way.
  virtual void Poll() = 0;

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

  // Of a ticket; all zero for one that is not held.
  virtual RowCounts Counts(RowTicket ticket) const = 0;

  // Unpins the rows. Allowed before Wait (a cancelled request): reads in flight then complete unseen.
  virtual void Release(RowTicket ticket) = 0;

  // Up to `rows_max` cached rows, the most valued first: what to submit after the next start so that it begins warm.
  virtual std::vector<RowId> HotRows(size_t rows_max) const = 0;

  virtual RowStoreStats Snapshot() const = 0;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_ROW_STORE_H_
