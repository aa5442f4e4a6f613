#include "storage/read_scheduler.h"

#include <errno.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/base/clock.h"
#include "storage/base/status_macros.h"
#include "storage/crc32c.h"
#include "storage/fault_reader.h"
#include "storage/pread_reader.h"
#include "storage/uring_reader.h"

namespace embergate::storage {
namespace {

constexpr int kTransientsMax = 32;                // EINTR or EAGAIN for one read
constexpr uint32_t kMergedReadBytes = 16u << 10;  // reads of several rows are at least allowed this
constexpr uint32_t kSectorBytes = 512;
constexpr uint32_t kBufferGranularity = 4096;  // so that every buffer starts at a page: enough for any device

}  // namespace

// ---- Creation and end ----

absl::StatusOr<std::unique_ptr<ReadScheduler>> ReadScheduler::Create(const RowStoreOptions& options, RowSet& rows,
                                                                     std::vector<TableFile>& files,
                                                                     RowStoreCounters& counters) {
  auto scheduler = std::unique_ptr<ReadScheduler>(new ReadScheduler(options, rows, files, counters));
  EMBERGATE_RETURN_IF_ERROR(scheduler->Init());
  return scheduler;
}

absl::Status ReadScheduler::Init() {
  for (const TableFile& file : files_) {
    alignment_.push_back(file.alignment());
  }
  uint64_t longest = options_.read_bytes_max == 0 ? kMergedReadBytes : options_.read_bytes_max;
  for (const Table& table : rows_.tables) {
    longest = std::max(longest, table.BlockBytesMax(alignment_[table.file]));
  }
  if (longest > 2 * kTableRowBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("row store: reads of ", longest, " bytes are too long"));
  }
  options_.read_bytes_max =
      static_cast<uint32_t>((longest + kBufferGranularity - 1) / kBufferGranularity * kBufferGranularity);
  EMBERGATE_ASSIGN_OR_RETURN(buffers_,
                             BufferPool::Create(static_cast<uint32_t>(options_.queue_depth), options_.read_bytes_max));
  EMBERGATE_RETURN_IF_ERROR(InitReader());

  size_t rows_held_max = 0;
  for (const RowCache& cache : rows_.caches) {
    rows_held_max += cache.rows_held_max();
  }
  ops_.resize(rows_held_max);
  for (uint32_t i = static_cast<uint32_t>(ops_.size()); i > 0; --i) {
    FreeOp(i - 1);
  }
  op_of_buffer_.assign(buffers_.count(), kNone);
  lost_tag_.assign(buffers_.count(), UINT64_MAX);
  landed_.assign(files_.size(), kNoRow);
  planned_.reserve(static_cast<size_t>(options_.rows_per_ticket_max));
  completions_.resize(buffers_.count());
  return absl::OkStatus();
}

absl::Status ReadScheduler::InitReader() {
  std::vector<int> descriptors;
  for (const TableFile& file : files_) {
    descriptors.push_back(file.fd());
  }
  // A read that was given up keeps its buffer, so there are never more outstanding than buffers.
  const uint32_t outstanding_max = buffers_.count();
  if (options_.reader == ReaderKind::kPread) {
    backend_reason_ = "pread was asked for";
  } else {
    UringReaderOptions uring;
    uring.queue_depth = outstanding_max;
    uring.submission_polling = options_.submission_polling;
    uring.fake_setup_errno = options_.test_hooks.uring_setup_errno;
    uring.fake_register_buffers_errno = options_.test_hooks.uring_register_buffers_errno;
    auto made = CreateUringReader(descriptors, buffers_.whole(), uring);
    if (made.ok()) {
      reader_ = std::move(made).value();
    } else if (options_.reader == ReaderKind::kUring) {
      return made.status();
    } else {
      backend_reason_ = std::string(made.status().message());
    }
  }
  if (reader_ == nullptr) {
    PreadReaderOptions pread;
    pread.queue_depth = outstanding_max;
    EMBERGATE_ASSIGN_OR_RETURN(reader_, CreatePreadReader(descriptors, pread));
  }
  if (!reader_->shortcomings().empty()) {
    absl::StrAppend(&backend_reason_, backend_reason_.empty() ? "" : "; ", reader_->shortcomings());
  }
  if (options_.test_hooks.faults.has_value()) {
    reader_ = CreateFaultReader(std::move(reader_), outstanding_max, *options_.test_hooks.faults);
  }
  return absl::OkStatus();
}

ReadScheduler::~ReadScheduler() {
  if (reader_ == nullptr) {
    return;
  }
  // What the device still owes goes into our buffers, so it is waited for; within reason.
  const uint64_t patience_ns = std::min<uint64_t>(1000, static_cast<uint64_t>(options_.read_timeout_ms)) * 1'000'000;
  const uint64_t deadline_ns = MonotonicNs() + patience_ns;
  while (buffers_.taken() > 0 && MonotonicNs() < deadline_ns) {
    const uint64_t start_ns = MonotonicNs();
    const size_t count = reader_->Reap(absl::MakeSpan(completions_), 1, patience_ns);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t index = static_cast<uint32_t>(completions_[i].tag);
      if (ops_[index].in_flight && TagOf(index) == completions_[i].tag) {
        ops_[index].in_flight = false;
        ReleaseBuffer(ops_[index]);
      } else {
        OnLate(completions_[i].tag);
      }
    }
    if (count == 0 && MonotonicNs() - start_ns < patience_ns / 2) {
      break;  // a ring answers only the thread that used it
    }
  }
  reader_.reset();
  if (buffers_.taken() > 0) {
    buffers_.Leak();  // a device may still write there: better lost than reused
  }
}

uint64_t ReadScheduler::other_bytes() const {
  return ops_.size() * sizeof(Op) + planned_.capacity() * sizeof(PlannedRead) +
         buffers_.count() * (sizeof(BlockCompletion) + sizeof(uint64_t) + 2 * sizeof(uint32_t));
}

// ---- Backlog ----

uint32_t ReadScheduler::NewOp() {
  const uint32_t index = free_op_;
  Op& op = ops_[index];
  free_op_ = op.next;
  const uint32_t generation = op.generation;
  op = Op();
  op.generation = generation;
  return index;
}

void ReadScheduler::FreeOp(uint32_t index) {
  ops_[index].next = free_op_;
  free_op_ = index;
}

void ReadScheduler::Append(OpList& list, uint32_t index) {
  ops_[index].next = kNone;
  (list.tail != kNone ? ops_[list.tail].next : list.head) = index;
  list.tail = index;
  counters_.backlog.Set(++backlog_);
}

uint32_t ReadScheduler::Pop(OpList& list) {
  const uint32_t index = list.head;
  list.head = ops_[index].next;
  if (list.head == kNone) {
    list.tail = kNone;
  }
  counters_.backlog.Set(--backlog_);
  return index;
}

void ReadScheduler::Read(absl::Span<RowRange> urgent, absl::Span<RowRange> bulk) {
  Plan(urgent, urgent_);
  Plan(bulk, bulk_);
  if (!broken_.ok()) {
    FailBacklog(RowFailure::kBroken, 0);  // it broke down between these rows' submission and now
  }
  Feed();
  Flush();
}

void ReadScheduler::Plan(absl::Span<RowRange> ranges, OpList& list) {
  PlanReads(ranges, alignment_, options_.merge_gap_bytes, options_.read_bytes_max, &planned_);
  for (const PlannedRead& planned : planned_) {
    const uint32_t index = NewOp();
    Op& op = ops_[index];
    op.file = planned.file;
    op.begin = planned.begin;
    op.bytes = planned.bytes;
    op.needed = planned.needed;
    for (uint32_t i = planned.first + planned.count; i > planned.first; --i) {
      rows_.EntryOf(ranges[i - 1].row).next_in_read = op.head;
      op.head = ranges[i - 1].row;
    }
    Append(list, index);
  }
}

// Takes out the rows that nobody waits for any more. Whether none is left.
bool ReadScheduler::DropUnwanted(Op& op) {
  RowRef* link = &op.head;
  while (*link != kNoRow) {
    const RowRef ref = *link;
    RowCache::Entry& entry = rows_.EntryOf(ref);
    if (entry.pins > 0) {
      link = &entry.next_in_read;
      continue;
    }
    *link = entry.next_in_read;
    rows_.CacheOf(ref).Abandon(RowSet::IdOf(ref));
  }
  return op.head == kNoRow;
}

void ReadScheduler::PruneBacklog() {
  for (OpList* list : {&urgent_, &bulk_}) {
    OpList kept;
    while (list->head != kNone) {
      const uint32_t index = Pop(*list);
      Op& op = ops_[index];
      if (op.buffer == BufferPool::kNone && DropUnwanted(op)) {
        FreeOp(index);
      } else {
        Append(kept, index);
      }
    }
    *list = kept;
  }
}

// Stages reads of the backlog until queue_depth are in flight.
void ReadScheduler::Feed() {
  while (in_flight_ < static_cast<uint32_t>(options_.queue_depth) && !BacklogEmpty() && broken_.ok()) {
    OpList& list = urgent_.head != kNone ? urgent_ : bulk_;
    const uint32_t index = list.head;
    Op& op = ops_[index];
    if (op.buffer == BufferPool::kNone) {
      if (DropUnwanted(op)) {
        FreeOp(Pop(list));
        continue;
      }
      op.buffer = buffers_.Take();
      if (op.buffer == BufferPool::kNone) {
        break;  // every one is owed to a device that does not answer; see Pump
      }
    }
    Pop(list);
    ++op.generation;
    op.in_flight = true;
    op.submit_ns = MonotonicNs();
    op_of_buffer_[op.buffer] = index;
    BlockRead read;
    read.file = static_cast<int>(op.file);
    read.file_offset = op.begin + op.done;
    read.bytes = op.bytes - op.done;
    read.data = buffers_.data(op.buffer) + op.done;
    read.tag = TagOf(index);
    reader_->Queue(absl::MakeConstSpan(&read, 1));
    staged_ = true;
    counters_.in_flight.Set(++in_flight_);
  }
}

void ReadScheduler::Flush() {
  if (staged_) {
    staged_ = false;
    counters_.batches.Add();
    BreakDown(reader_->Flush());
  }
}

// ---- Completions ----

void ReadScheduler::Pump(size_t min_count, uint64_t timeout_ns) {
  Feed();
  if (idle()) {
    return;
  }
  if (staged_) {
    staged_ = false;  // Reap hands them over
    counters_.batches.Add();
  }
  const uint64_t before_ns = last_reap_ns_;
  // With nothing in flight, all buffers are owed to a device that does not answer: the wait is for a late answer.
  const size_t expected = std::max<size_t>(1, in_flight_);
  const size_t count = reader_->Reap(absl::MakeSpan(completions_), std::min<size_t>(min_count, expected),
                                     min_count > 0 ? timeout_ns : 0);
  const uint64_t now_ns = MonotonicNs();
  last_reap_ns_ = now_ns;
  if (count == 0) {
    BreakDown(reader_->broken());
  }
  if (count == 0 && in_flight_ == 0 && min_count > 0) {
    FailBacklog(RowFailure::kTimeout, ETIMEDOUT);
    return;
  }
  // A completion came at some time since the previous look. If that was a moment ago, or spent waiting, its latency
  // is known.
  const bool end_seen = min_count > 0 || now_ns - before_ns < 50'000;
  for (size_t i = 0; i < count; ++i) {
    if (i + 1 < count) {
      PrefetchRow(completions_[i + 1]);
    }
    OnCompletion(completions_[i], now_ns, end_seen);
  }
  Confirm();
  CheckTimeouts(now_ns);
  Feed();
  if (min_count == 0) {
    Flush();  // otherwise the next call's wait does it in passing
  }
}

void ReadScheduler::ReleaseBuffer(Op& op) {
  op_of_buffer_[op.buffer] = kNone;
  buffers_.Return(op.buffer);
  op.buffer = BufferPool::kNone;
}

// The buffer of a read that is given up stays taken: the device may yet write into it.
void ReadScheduler::GiveUpBuffer(uint32_t buffer, bool answer_may_come) {
  const uint32_t index = op_of_buffer_[buffer];
  Op& op = ops_[index];
  lost_tag_[buffer] = answer_may_come ? TagOf(index) : UINT64_MAX;
  op_of_buffer_[buffer] = kNone;
  op.buffer = BufferPool::kNone;
  op.in_flight = false;
  ++op.generation;
  counters_.in_flight.Set(--in_flight_);
}

// The answer to a read that was given up: its buffer is ours again.
void ReadScheduler::OnLate(uint64_t tag) {
  for (uint32_t buffer = 0; buffer < lost_tag_.size(); ++buffer) {
    if (lost_tag_[buffer] == tag) {
      lost_tag_[buffer] = UINT64_MAX;
      buffers_.Return(buffer);
      return;
    }
  }
}

// The device has just written the row, so no cache of the processor holds it, nor the slot that it goes to.
void ReadScheduler::PrefetchRow(const BlockCompletion& completion) {
  const uint32_t index = static_cast<uint32_t>(completion.tag);
  const Op& op = ops_[index];
  if (!op.in_flight || TagOf(index) != completion.tag || completion.result <= 0) {
    return;
  }
  const RowCache::Entry& entry = rows_.EntryOf(op.head);
  const Table& table = rows_.TableOf(entry.key);
  table.PrefetchChecksums(RowSet::RowOf(entry.key));
  const uint64_t offset = table.OffsetOf(RowSet::RowOf(entry.key)) - op.begin;
  PrefetchCopy(rows_.DataOf(op.head), absl::MakeConstSpan(buffers_.data(op.buffer) + offset, entry.bytes));
}

void ReadScheduler::OnCompletion(const BlockCompletion& completion, uint64_t now_ns, bool end_seen) {
  const uint32_t index = static_cast<uint32_t>(completion.tag);
  Op& op = ops_[index];
  if (!op.in_flight || TagOf(index) != completion.tag) {
    OnLate(completion.tag);
    return;
  }
  op.in_flight = false;
  counters_.in_flight.Set(--in_flight_);
  if (completion.result < 0) {
    OnError(index, -completion.result);
    return;
  }
  counters_.reads.Add();
  counters_.bytes_read.Add(static_cast<uint64_t>(completion.result));
  if (completion.done_ns != 0) {
    counters_.RecordLatency(completion.done_ns - std::min(completion.done_ns, op.submit_ns));
  } else if (end_seen) {
    counters_.RecordLatency(now_ns - op.submit_ns);
  }
  const TableFile& file = files_[op.file];
  if (!file.direct()) {
    file.DropPages(op.begin, op.bytes);
  }
  const uint32_t done = op.done + static_cast<uint32_t>(completion.result);
  if (done < op.needed) {
    OnShort(index, done);
  } else {
    OnArrived(index);
  }
}

void ReadScheduler::OnError(uint32_t index, int error) {
  Op& op = ops_[index];
  TableFile& file = files_[op.file];
  if (error == EINVAL && file.direct() && file.StopDirect().ok()) {
    counters_.direct_io.Set(0);
  }
  // The kernel asks to try again; or the file just left O_DIRECT, and this read was made before that.
  const bool transient = error == EINTR || error == EAGAIN || (error == EINVAL && !file.direct());
  if (transient && ++op.transients <= kTransientsMax) {
    counters_.retries.Add();
    Append(urgent_, index);
    return;
  }
  counters_.errors_io.Add();
  RetryOrFail(index, RowFailure::kDevice, error);
}

void ReadScheduler::OnShort(uint32_t index, uint32_t done) {
  Op& op = ops_[index];
  counters_.errors_short.Add();
  // A buffered file counts in pages, but reads on from anywhere.
  const uint32_t block = files_[op.file].direct() ? alignment_[op.file] : std::min(alignment_[op.file], kSectorBytes);
  const uint32_t whole_blocks = done & ~(block - 1);
  if (whole_blocks > op.done) {
    // Progress: read on from there, into the same buffer. This ends, since each such step brings a block at least.
    op.done = whole_blocks;
    counters_.retries.Add();
    Append(urgent_, index);
    return;
  }
  RetryOrFail(index, RowFailure::kShort, 0);
}

void ReadScheduler::OnArrived(uint32_t index) {
  Op& op = ops_[index];
  const uint8_t* data = buffers_.data(op.buffer);
  const Table* previous_table = nullptr;
  uint64_t checked_group = Table::kNoGroup;
  RowRef bad = kNoRow;
  RowRef ref = op.head;
  while (ref != kNoRow) {
    RowCache::Entry& entry = rows_.EntryOf(ref);
    const RowRef next = entry.next_in_read;
    const Table& table = rows_.TableOf(entry.key);
    if (&table != previous_table) {
      checked_group = Table::kNoGroup;
      previous_table = &table;
    }
    if (table.Extract(RowSet::RowOf(entry.key), entry.bytes, data, op.begin, rows_.DataOf(ref), &checked_group)) {
      entry.next_in_read = landed_[op.file];
      landed_[op.file] = ref;
      any_landed_ = true;
    } else {
      counters_.errors_checksum.Add();
      entry.next_in_read = bad;
      bad = ref;
    }
    ref = next;
  }
  op.head = bad;
  if (bad != kNoRow) {
    RetryOrFail(index, RowFailure::kChecksum, 0);
    return;
  }
  ReleaseBuffer(op);
  FreeOp(index);
}

// Rows become visible only after their file has been seen unchanged since the read: one system call per batch of
// completions and file.
void ReadScheduler::Confirm() {
  if (!any_landed_) {
    return;
  }
  any_landed_ = false;
  for (size_t i = 0; i < files_.size(); ++i) {
    RowRef ref = landed_[i];
    if (ref == kNoRow) {
      continue;
    }
    landed_[i] = kNoRow;
    const bool was_changed = files_[i].changed();
    const bool changed = !files_[i].CheckUnchanged().ok();
    if (changed && !was_changed) {
      counters_.errors_changed.Add();
    }
    uint64_t rows = 0;
    uint64_t bytes = 0;
    while (ref != kNoRow) {
      RowCache::Entry& entry = rows_.EntryOf(ref);
      const RowRef next = entry.next_in_read;
      entry.next_in_read = kNoRow;
      // A row with a checksum is right whatever happened around it.
      if (changed && !rows_.TableOf(entry.key).checked) {
        FailRow(ref, RowFailure::kChanged, 0);
      } else {
        ++rows;
        bytes += entry.bytes;
        rows_.CacheOf(ref).Complete(RowSet::IdOf(ref));
      }
      ref = next;
    }
    if (rows > 0) {
      counters_.rows_read.Add(rows);
      counters_.bytes_useful.Add(bytes);
      counters_.failures_in_a_row.Set(0);
    }
  }
}

// ---- Failures ----

// Another attempt, each row by itself so that one bad block costs one row; or, after the last one, the end.
void ReadScheduler::RetryOrFail(uint32_t index, RowFailure failure, int error) {
  Op& op = ops_[index];
  if (op.buffer != BufferPool::kNone) {
    ReleaseBuffer(op);
  }
  const int attempts = op.attempts + 1;
  RowRef ref = op.head;
  FreeOp(index);
  while (ref != kNoRow) {
    const RowRef next = rows_.EntryOf(ref).next_in_read;
    rows_.EntryOf(ref).next_in_read = kNoRow;
    if (attempts >= options_.read_attempts_max) {
      FailRow(ref, failure, error);
    } else {
      counters_.retries.Add();
      const RowRange range = rows_.RangeOf(ref);
      const uint64_t mask = alignment_[range.file] - 1;
      const uint32_t again = NewOp();
      Op& single = ops_[again];
      single.file = range.file;
      single.begin = range.begin & ~mask;
      single.needed = static_cast<uint32_t>(range.begin + range.bytes - single.begin);
      single.bytes = static_cast<uint32_t>((single.needed + mask) & ~mask);
      single.attempts = attempts;
      single.head = ref;
      Append(urgent_, again);
    }
    ref = next;
  }
}

void ReadScheduler::FailRow(RowRef ref, RowFailure failure, int error) {
  rows_.EntryOf(ref).failure = static_cast<uint8_t>(failure);
  rows_.EntryOf(ref).failure_errno = error;
  counters_.rows_failed.Add();
  counters_.failures_in_a_row.Add();
  rows_.CacheOf(ref).Fail(RowSet::IdOf(ref));
}

void ReadScheduler::CheckTimeouts(uint64_t now_ns) {
  const uint64_t timeout_ns = static_cast<uint64_t>(options_.read_timeout_ms) * 1'000'000;
  if (now_ns - last_timeout_check_ns_ < timeout_ns / 8) {
    return;
  }
  last_timeout_check_ns_ = now_ns;
  for (uint32_t buffer = 0; buffer < op_of_buffer_.size(); ++buffer) {
    const uint32_t index = op_of_buffer_[buffer];
    if (index == kNone || !ops_[index].in_flight || now_ns - ops_[index].submit_ns < timeout_ns) {
      continue;
    }
    GiveUpBuffer(buffer, true);
    counters_.errors_timeout.Add();
    RetryOrFail(index, RowFailure::kTimeout, ETIMEDOUT);
  }
}

void ReadScheduler::FailBacklog(RowFailure failure, int error) {
  for (OpList* list : {&urgent_, &bulk_}) {
    while (list->head != kNone) {
      const uint32_t index = Pop(*list);
      ops_[index].attempts = options_.read_attempts_max;
      RetryOrFail(index, failure, error);
    }
  }
}

// The reader itself is gone: nothing in flight will come back.
void ReadScheduler::BreakDown(const absl::Status& status) {
  if (status.ok() || !broken_.ok()) {
    return;
  }
  broken_ = absl::Status(status.code(), absl::StrCat(status.message(), "; nothing can be read until a restart"));
  for (uint32_t buffer = 0; buffer < op_of_buffer_.size(); ++buffer) {
    const uint32_t index = op_of_buffer_[buffer];
    if (index != kNone && ops_[index].in_flight) {
      GiveUpBuffer(buffer, false);
      ops_[index].attempts = options_.read_attempts_max;
      RetryOrFail(index, RowFailure::kBroken, 0);
    }
  }
  FailBacklog(RowFailure::kBroken, 0);
}

}  // namespace embergate::storage
