// Turns rows that are wanted into device reads and sees each through to its end: planning, queue depth, retries, short
// reads, checksums, time-outs, changed files. Below it a BlockReader; above it the row store.
#ifndef EMBERGATE_STORAGE_READ_SCHEDULER_H_
#define EMBERGATE_STORAGE_READ_SCHEDULER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "storage/block_reader.h"
#include "storage/buffer_pool.h"
#include "storage/read_planner.h"
#include "storage/row_set.h"
#include "storage/row_store_counters.h"
#include "storage/table_file.h"

namespace embergate::storage {

// The life of a row here: Read puts it into a read in the backlog; Pump moves reads to the device as places in flight
// become free, takes in completions, copies rows out of the landing buffers into their slots and checks them; when the
// file has been seen unchanged after that, the row is complete. A row that fails read_attempts_max times is failed. A
// read that nobody waits for any more is dropped if it has not started, finished unseen if it has.
//
// Threads: the store's owner. Bounds: no more reads than rows held (each row being read belongs to exactly one);
// queue_depth in flight. Allocates nothing after Create.
class ReadScheduler {
 public:
  // Opens no file: `files` are the store's, by the index that tables use. All three outlive the scheduler.
  // Errors: UNAVAILABLE (io_uring refused and asked for by name), RESOURCE_EXHAUSTED, INVALID_ARGUMENT.
  static absl::StatusOr<std::unique_ptr<ReadScheduler>> Create(const RowStoreOptions& options, RowSet& rows,
                                                               std::vector<TableFile>& files,
                                                               RowStoreCounters& counters);
  ~ReadScheduler();
  ReadScheduler(const ReadScheduler&) = delete;
  ReadScheduler& operator=(const ReadScheduler&) = delete;

  // Plans the reads for rows that were inserted in the row set, and sends as many as fit in one system call. The urgent
  // ones go before the backlog of earlier calls. Reorders both.
  void Read(absl::Span<RowRange> urgent, absl::Span<RowRange> bulk);
  // Takes in what has completed and sends what waits. With `min_count` > 0, blocks until so many reads have completed
  // or `timeout_ns` has passed.
  void Pump(size_t min_count, uint64_t timeout_ns);
  // Forgets reads in the backlog whose rows nobody pins.
  void PruneBacklog();

  bool idle() const { return in_flight_ == 0 && BacklogEmpty(); }
  uint32_t in_flight() const { return in_flight_; }
  // Not OK once the reader itself has broken down; every row was failed then, and new ones are not accepted.
  const absl::Status& broken() const { return broken_; }

  std::string backend() const { return std::string(reader_->name()); }
  const std::string& backend_reason() const { return backend_reason_; }
  uint64_t buffer_bytes() const { return buffers_.whole().size(); }
  uint64_t other_bytes() const;

 private:
  static constexpr uint32_t kNone = UINT32_MAX;

  // A device read with the rows that it brings.
  struct Op {
    uint64_t begin = 0;
    uint64_t submit_ns = 0;
    uint32_t file = 0;
    uint32_t bytes = 0;
    uint32_t needed = 0;  // from the start: what must arrive
    uint32_t done = 0;    // bytes that an earlier, short read brought; whole blocks
    uint32_t buffer = BufferPool::kNone;
    RowRef head = kNoRow;     // first row, chained by next_in_read
    uint32_t generation = 0;  // of its tag: tells an expected completion from a late one
    uint32_t next = kNone;    // in the backlog or the free list
    int attempts = 0;
    int transients = 0;
    bool in_flight = false;
  };
  struct OpList {
    uint32_t head = kNone;
    uint32_t tail = kNone;
  };

  ReadScheduler(const RowStoreOptions& options, RowSet& rows, std::vector<TableFile>& files, RowStoreCounters& counters)
      : options_(options), rows_(rows), files_(files), counters_(counters) {}
  absl::Status Init();
  absl::Status InitReader();

  uint32_t NewOp();
  void FreeOp(uint32_t index);
  void Append(OpList& list, uint32_t index);
  uint32_t Pop(OpList& list);
  bool BacklogEmpty() const { return urgent_.head == kNone && bulk_.head == kNone; }
  void Plan(absl::Span<RowRange> ranges, OpList& list);
  bool DropUnwanted(Op& op);
  void Feed();
  void Flush();

  uint64_t TagOf(uint32_t index) const { return static_cast<uint64_t>(ops_[index].generation) << 32 | index; }
  void PrefetchRow(const BlockCompletion& completion);
  void OnCompletion(const BlockCompletion& completion, uint64_t now_ns, bool end_seen);
  void OnLate(uint64_t tag);
  void OnError(uint32_t index, int error);
  void OnShort(uint32_t index, uint32_t done);
  void OnArrived(uint32_t index);
  void RetryOrFail(uint32_t index, RowFailure failure, int error);
  void FailRow(RowRef ref, RowFailure failure, int error);
  void ReleaseBuffer(Op& op);
  void GiveUpBuffer(uint32_t buffer, bool answer_may_come);
  void Confirm();
  void CheckTimeouts(uint64_t now_ns);
  void FailBacklog(RowFailure failure, int error);
  void BreakDown(const absl::Status& status);

  RowStoreOptions options_;
  RowSet& rows_;
  std::vector<TableFile>& files_;
  RowStoreCounters& counters_;
  std::vector<uint32_t> alignment_;  // by file
  BufferPool buffers_;
  std::unique_ptr<BlockReader> reader_;
  std::string backend_reason_;
  absl::Status broken_;

  std::vector<Op> ops_;
  uint32_t free_op_ = kNone;
  OpList urgent_;  // of short submissions, and every repeat
  OpList bulk_;
  uint32_t backlog_ = 0;
  uint32_t in_flight_ = 0;
  std::vector<uint32_t> op_of_buffer_;  // kNone: free or given up
  std::vector<uint64_t> lost_tag_;      // by buffer: its read was given up under this tag
  std::vector<RowRef> landed_;          // by file: first of the rows that arrived and are not confirmed
  bool any_landed_ = false;
  bool staged_ = false;  // reads were queued since the last Flush or Reap
  uint64_t last_reap_ns_ = 0;
  uint64_t last_timeout_check_ns_ = 0;
  std::vector<PlannedRead> planned_;  // scratch of one Read
  std::vector<BlockCompletion> completions_;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_READ_SCHEDULER_H_
