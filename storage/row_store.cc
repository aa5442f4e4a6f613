#include "storage/row_store.h"

#include <errno.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/base/clock.h"
#include "storage/base/status_macros.h"
#include "storage/buffer_pool.h"
#include "storage/crc32c.h"
#include "storage/pread_reader.h"
#include "storage/read_planner.h"
#include "storage/row_cache.h"
#include "storage/table_file.h"
#include "storage/uring_reader.h"

namespace embergate::storage {
namespace {

constexpr uint32_t kNoRef = UINT32_MAX;  // also: no read, no ticket row
constexpr int kRowBits = 48;             // of a key; the table has the rest
constexpr int kEntryBits = 24;           // of an entry reference; the row class has the rest
constexpr uint32_t kClassesMax = 250;
constexpr uint64_t kReadBytesLimit = 64u << 20;  // a "row" longer than this is a mistake in the file
constexpr int kTransientsMax = 32;               // EINTR or EAGAIN in a row for one read
constexpr uint32_t kMergedReadBytes = 16u << 10;

// A number that one thread writes and any thread reads.
class Counter {
 public:
  void Add(uint64_t n = 1) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  void Set(uint64_t n) { value_.store(n, std::memory_order_relaxed); }
  uint64_t Get() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

enum class Failure : uint8_t { kNoFailure, kDevice, kShort, kChecksum, kChanged, kTimeout, kBroken };

struct Table {
  TableSpec spec;
  uint32_t file = 0;
  uint32_t row_class = 0;
  bool checked = false;  // has checksums
};

struct Ticket {
  uint32_t generation = 0;
  bool used = false;
  uint32_t rows = 0;
  uint32_t settled = 0;  // of the first rows: ready or failed; only grows
  uint32_t first_failed = kNoRef;
  uint64_t prefix_bytes = 0;
};

// A device read with the rows it brings. Every row being read belongs to exactly one, so there are never more of them
// than rows held.
struct ReadOp {
  uint64_t begin = 0;
  uint64_t submit_ns = 0;
  uint32_t file = 0;
  uint32_t bytes = 0;
  uint32_t needed = 0;  // from the start: what must arrive
  uint32_t done = 0;    // bytes that an earlier, short read brought; a multiple of the alignment
  uint32_t buffer = BufferPool::kNone;
  uint32_t head = kNoRef;   // first row, chained by next_in_read
  uint32_t generation = 0;  // of its tag: tells a late completion from an expected one
  uint32_t next = kNoRef;   // in the backlog or the free list
  int attempts = 0;
  int transients = 0;
  bool in_flight = false;
};

struct OpList {
  uint32_t head = kNoRef;
  uint32_t tail = kNoRef;
};

absl::Status SpecError(const TableSpec& spec, size_t index, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("table ", index, " in ", spec.path, ": ", what));
}

absl::Status CheckSpec(TableSpec& spec, size_t index) {
  if (spec.row_bytes == 0 || spec.row_count == 0) {
    return SpecError(spec, index, "row_bytes and row_count must be positive");
  }
  if (spec.row_stride == 0) {
    spec.row_stride = spec.row_bytes;
  }
  if (spec.row_stride < spec.row_bytes) {
    return SpecError(spec, index, "row_stride is less than row_bytes");
  }
  if (spec.row_bytes > kReadBytesLimit || spec.row_stride > kReadBytesLimit) {
    return SpecError(spec, index, absl::StrCat("rows of more than ", kReadBytesLimit, " bytes are not supported"));
  }
  if (spec.row_count >= (uint64_t{1} << kRowBits)) {
    return SpecError(spec, index, "too many rows");
  }
  uint64_t span = 0;
  if (__builtin_mul_overflow(spec.row_stride, spec.row_count - 1, &span) ||
      __builtin_add_overflow(span, spec.row_bytes, &span) || __builtin_add_overflow(span, spec.file_offset, &span) ||
      span > INT64_MAX) {
    return SpecError(spec, index, "its end overflows a file offset");
  }
  RowChecksums& sums = spec.checksums;
  if (sums.crcs.empty()) {
    return absl::OkStatus();
  }
  if (sums.segment_ends.empty()) {
    sums.segment_ends.push_back(spec.row_bytes);
  }
  uint64_t previous = 0;
  for (uint64_t end : sums.segment_ends) {
    if (end <= previous || end > spec.row_bytes) {
      return SpecError(spec, index, "checksum segments must ascend and end within the row");
    }
    previous = end;
  }
  if (previous != spec.row_bytes) {
    return SpecError(spec, index, "the last checksum segment must end with the row");
  }
  if (sums.rows_per_group == 0 || (sums.rows_per_group > 1 && sums.segment_ends.size() > 1)) {
    return SpecError(spec, index, "checksum groups have at least one row, and segments only if they have just one");
  }
  const uint64_t groups = (spec.row_count + sums.rows_per_group - 1) / sums.rows_per_group;
  if (sums.crcs.size() / sums.segment_ends.size() != groups || sums.crcs.size() % sums.segment_ends.size() != 0) {
    return SpecError(spec, index,
                     absl::StrCat(sums.crcs.size(), " checksums for ", groups, " groups of rows in ",
                                  sums.segment_ends.size(), " segments"));
  }
  if (sums.rows_per_group > kReadBytesLimit / spec.row_stride) {
    return SpecError(spec, index, "checksum groups are too long to be read at once");
  }
  return absl::OkStatus();
}

absl::Status CheckOptions(const RowStoreOptions& options) {
  const auto in_range = [](int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; };
  if (!in_range(options.queue_depth, 1, 4096) || !in_range(options.tickets_max, 1, 65536) ||
      !in_range(options.rows_per_ticket_max, 1, 1 << 20) || !in_range(options.rows_pinned_max, 1, 1 << 23) ||
      !in_range(options.read_attempts_max, 1, 100) || !in_range(options.read_timeout_ms, 1, 3600 * 1000) ||
      !in_range(options.merge_gap_bytes, 0, kReadBytesLimit) || !in_range(options.read_bytes_max, 0, kReadBytesLimit)) {
    return absl::InvalidArgumentError(
        "row store options out of range: queue_depth 1..4096, tickets_max 1..65536, rows_per_ticket_max 1..2^20, "
        "rows_pinned_max 1..2^23, read_attempts_max 1..100, read_timeout_ms 1..3600000, merge_gap_bytes and "
        "read_bytes_max at most 64 MiB");
  }
  return absl::OkStatus();
}

// The most bytes of whole blocks that a range of `bytes` can touch when it starts at `offset` plus multiples of
// `stride`.
uint64_t BlocksSpanned(uint64_t offset, uint64_t stride, uint64_t bytes, uint64_t alignment) {
  const uint64_t step = std::gcd(stride, alignment);
  const uint64_t worst_start = alignment - step + offset % step;
  return (worst_start + bytes + alignment - 1) / alignment * alignment;
}

class RowStoreImpl final : public RowStore {
 public:
  explicit RowStoreImpl(const RowStoreOptions& options) : options_(options) {}
  ~RowStoreImpl() override;

  absl::Status Init(std::vector<TableSpec> specs);

  absl::StatusOr<RowTicket> Submit(int table, absl::Span<const uint64_t> row_ids, uint64_t prefix_bytes) override {
    return SubmitAny(
        row_ids.size(),
        [&](size_t i) {
          return RowId{table, row_ids[i]};
        },
        prefix_bytes);
  }
  absl::StatusOr<RowTicket> SubmitRows(absl::Span<const RowId> rows, uint64_t prefix_bytes) override {
    return SubmitAny(
        rows.size(), [&](size_t i) { return rows[i]; }, prefix_bytes);
  }
  void Poll() override;
  absl::Status Wait(RowTicket ticket) override;
  bool Ready(RowTicket ticket) override;
  absl::Status RowStatus(RowTicket ticket, size_t i) const override;
  absl::Span<const uint8_t> Row(RowTicket ticket, size_t i) const override;
  void Release(RowTicket ticket) override;
  std::vector<RowId> HotRows(size_t rows_max) const override;
  RowStoreStats Snapshot() const override;

 private:
  // A reference names a row entry across the classes (one per row size).
  static uint32_t MakeRef(uint32_t row_class, RowCache::Id id) { return row_class << kEntryBits | id; }
  RowCache& CacheOf(uint32_t ref) { return caches_[ref >> kEntryBits]; }
  const RowCache& CacheOf(uint32_t ref) const { return caches_[ref >> kEntryBits]; }
  static RowCache::Id IdOf(uint32_t ref) { return ref & ((1u << kEntryBits) - 1); }
  RowCache::Entry& EntryOf(uint32_t ref) { return CacheOf(ref).entry(IdOf(ref)); }
  const RowCache::Entry& EntryOf(uint32_t ref) const { return CacheOf(ref).entry(IdOf(ref)); }
  static uint64_t MakeKey(int table, uint64_t row) { return static_cast<uint64_t>(table) << kRowBits | row; }
  const Table& TableOf(uint64_t key) const { return tables_[key >> kRowBits]; }
  static uint64_t RowOf(uint64_t key) { return key & ((uint64_t{1} << kRowBits) - 1); }
  uint64_t OffsetOf(const Table& table, uint64_t row) const {
    return table.spec.file_offset + row * table.spec.row_stride;
  }
  RowRange RangeOf(uint32_t ref) const;

  absl::Status InitCaches();
  absl::Status InitReader();

  template <typename RowAt>
  absl::StatusOr<RowTicket> SubmitAny(size_t count, RowAt row_at, uint64_t prefix_bytes);
  absl::Status AddRow(uint32_t slot, RowId row, uint64_t prefix_bytes);
  void PlanScratch();

  Ticket* Find(RowTicket ticket);
  const Ticket* Find(RowTicket ticket) const;
  uint32_t Ref(RowTicket ticket, size_t i) const {
    return refs_[static_cast<size_t>(ticket.index) * static_cast<size_t>(options_.rows_per_ticket_max) + i];
  }
  // Whether all rows of the ticket are ready or failed.
  bool Settle(RowTicket ticket, Ticket& state);
  absl::Status FailureStatus(uint32_t ref) const;

  // ---- reads ----
  uint32_t NewOp();
  void FreeOp(uint32_t index);
  void Append(OpList& list, uint32_t index);
  uint32_t Pop(OpList& list);
  bool BacklogEmpty() const { return urgent_.head == kNoRef && bulk_.head == kNoRef; }
  bool DropUnwanted(ReadOp& op);
  void PruneBacklog();
  void Feed();
  // Takes in completions, at least `min_count` of them if they come within `timeout_ns`, and sends what waits.
  void Pump(size_t min_count, uint64_t timeout_ns);
  void OnCompletion(const BlockCompletion& completion, uint64_t now_ns, bool end_seen);
  void OnError(uint32_t index, int error);
  void OnShort(uint32_t index, uint32_t done);
  void OnArrived(uint32_t index);
  bool Verify(uint32_t ref, const uint8_t* data, uint64_t data_begin, uint64_t* group_verified) const;
  void Requeue(uint32_t index);
  void RetryOrFail(uint32_t index, Failure failure, int error);
  void FailRow(uint32_t ref, Failure failure, int error);
  void ReleaseBuffer(ReadOp& op);
  void Confirm();
  void CheckTimeouts(uint64_t now_ns);
  void FailBacklog(Failure failure, int error);
  void BreakDown(const absl::Status& status);
  void RecordLatency(uint64_t ns);

  RowStoreOptions options_;
  std::vector<Table> tables_;
  std::vector<TableFile> files_;
  std::vector<uint32_t> alignment_;  // by file
  std::vector<RowCache> caches_;     // by row class
  BufferPool buffers_;
  std::unique_ptr<BlockReader> reader_;
  std::string backend_reason_;
  std::string direct_reason_;
  absl::Status broken_;

  std::vector<Ticket> tickets_;
  std::vector<uint32_t> free_tickets_;
  std::vector<uint32_t> refs_;  // [ticket][row of the submission]
  uint32_t submission_ = 0;     // number of the current one: marks its entries

  std::vector<ReadOp> ops_;
  uint32_t free_op_ = kNoRef;
  OpList urgent_;  // submissions that fit the queue depth, and retries
  OpList bulk_;
  uint32_t backlog_ = 0;
  uint32_t in_flight_ = 0;
  std::vector<uint32_t> op_of_buffer_;  // kNoRef: free or lost
  std::vector<uint64_t> lost_tag_;      // by buffer: its read was given up under this tag
  std::vector<uint32_t> landed_;        // rows that arrived, by file: head of a chain; not yet confirmed
  bool any_landed_ = false;
  bool all_direct_ = true;
  bool staged_ = false;  // reads were queued since the last Flush or Reap
  uint64_t last_reap_ns_ = 0;
  uint64_t last_timeout_check_ns_ = 0;

  std::vector<RowRange> ranges_;      // scratch of one submission
  std::vector<PlannedRead> planned_;  // scratch of one submission
  std::vector<BlockCompletion> completions_;

  struct {
    Counter rows_requested, rows_deduplicated, rows_joined, cache_hits, cache_misses, rows_read, reads, bytes_read,
        bytes_useful, retries, rows_failed, failures_in_a_row, errors_io, errors_short, errors_checksum, errors_changed,
        errors_timeout, in_flight, backlog, stall_ns, latency_sum_ns, direct;
    std::array<Counter, LatencyHistogram::kBoundsNs.size() + 1> latency;
    uint64_t cache_bytes = 0;
    uint64_t held_bytes = 0;
    uint64_t checksum_bytes = 0;
    uint64_t other_bytes = 0;
  } stats_;
};

// ---- Creation ----

absl::Status RowStoreImpl::Init(std::vector<TableSpec> specs) {
  EMBERGATE_RETURN_IF_ERROR(CheckOptions(options_));
  if (specs.empty() || specs.size() >= (1u << 15)) {
    return absl::InvalidArgumentError("a row store has at least one table and at most 32767");
  }
  tables_.resize(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(CheckSpec(specs[i], i));
    Table& table = tables_[i];
    table.spec = std::move(specs[i]);
    table.checked = !table.spec.checksums.crcs.empty();
    stats_.checksum_bytes += table.spec.checksums.crcs.size() * sizeof(uint32_t);
    size_t file = 0;
    while (file < files_.size() && files_[file].path() != table.spec.path) {
      ++file;
    }
    if (file == files_.size()) {
      EMBERGATE_ASSIGN_OR_RETURN(TableFile opened, TableFile::Open(table.spec.path, options_.direct_io));
      alignment_.push_back(opened.alignment());
      all_direct_ = all_direct_ && opened.direct();
      if (direct_reason_.empty() && !opened.direct_reason().empty()) {
        direct_reason_ = absl::StrCat(opened.path(), ": ", opened.direct_reason());
      }
      files_.push_back(std::move(opened));
    }
    table.file = static_cast<uint32_t>(file);
    const uint64_t end = OffsetOf(table, table.spec.row_count - 1) + table.spec.row_bytes;
    if (end > files_[file].bytes()) {
      return absl::DataLossError(absl::StrCat("table ", i, " ends at byte ", end, " of ", table.spec.path,
                                              ", which has only ", files_[file].bytes(), "; the file is truncated"));
    }
  }
  stats_.direct.Set(all_direct_ ? 1 : 0);
  EMBERGATE_RETURN_IF_ERROR(InitCaches());

  const size_t rows_max = static_cast<size_t>(options_.rows_per_ticket_max);
  tickets_.resize(static_cast<size_t>(options_.tickets_max));
  for (uint32_t i = static_cast<uint32_t>(tickets_.size()); i > 0; --i) {
    free_tickets_.push_back(i - 1);
  }
  refs_.assign(tickets_.size() * rows_max, kNoRef);
  ops_.resize(static_cast<size_t>(options_.rows_pinned_max) * caches_.size());
  for (uint32_t i = static_cast<uint32_t>(ops_.size()); i > 0; --i) {
    FreeOp(i - 1);
  }
  landed_.assign(files_.size(), kNoRef);
  ranges_.reserve(rows_max);
  planned_.reserve(rows_max);
  EMBERGATE_RETURN_IF_ERROR(InitReader());
  op_of_buffer_.assign(buffers_.count(), kNoRef);
  lost_tag_.assign(buffers_.count(), UINT64_MAX);
  completions_.resize(buffers_.count());
  stats_.other_bytes = tickets_.size() * (sizeof(Ticket) + sizeof(uint32_t)) + refs_.size() * sizeof(uint32_t) +
                       ops_.size() * sizeof(ReadOp) + rows_max * (sizeof(RowRange) + sizeof(PlannedRead)) +
                       buffers_.count() * (sizeof(BlockCompletion) + 3 * sizeof(uint64_t));
  return absl::OkStatus();
}

// One class of slots per row size (rounded as slots are), each with room for all rows that may be held; the cache's
// bytes go to the classes that have cached tables in proportion to the bytes of those tables.
absl::Status RowStoreImpl::InitCaches() {
  std::vector<uint32_t> row_bytes;  // by class: the longest row
  std::vector<double> weight;       // by class: bytes of cached tables
  std::vector<uint64_t> rows;       // by class: rows of cached tables
  double weight_sum = 0;
  for (Table& table : tables_) {
    const uint32_t bytes = static_cast<uint32_t>(table.spec.row_bytes);
    uint32_t row_class = 0;
    while (row_class < row_bytes.size() && (row_bytes[row_class] + 63) / 64 != (bytes + 63) / 64) {
      ++row_class;
    }
    if (row_class == row_bytes.size()) {
      if (row_class == kClassesMax) {
        return absl::InvalidArgumentError("tables of more than 250 different row sizes in one row store");
      }
      row_bytes.push_back(bytes);
      weight.push_back(0);
      rows.push_back(0);
    }
    row_bytes[row_class] = std::max(row_bytes[row_class], bytes);
    table.row_class = row_class;
    if (table.spec.cached) {
      const double table_bytes = static_cast<double>(table.spec.row_count) * bytes;
      weight[row_class] += table_bytes;
      weight_sum += table_bytes;
      rows[row_class] += table.spec.row_count;
    }
  }
  for (size_t i = 0; i < row_bytes.size(); ++i) {
    RowCache::Options cache;
    cache.row_bytes = row_bytes[i];
    cache.rows_held_max = static_cast<uint32_t>(options_.rows_pinned_max);
    const uint64_t each = RowCache::BytesPerCachedRow(row_bytes[i]);
    if (weight[i] > 0) {
      const double share = static_cast<double>(options_.cache_bytes) * (weight[i] / weight_sum);
      const uint64_t fitting = static_cast<uint64_t>(share) / each;
      const uint64_t addressable = (1u << kEntryBits) - static_cast<uint64_t>(options_.rows_pinned_max);
      cache.rows_cached = static_cast<uint32_t>(std::min({fitting, rows[i], addressable}));
    }
    EMBERGATE_ASSIGN_OR_RETURN(RowCache made, RowCache::Create(cache));
    const uint64_t cached_bytes = std::min(cache.rows_cached * each, made.memory_bytes());
    stats_.cache_bytes += cached_bytes;
    stats_.held_bytes += made.memory_bytes() - cached_bytes;
    caches_.push_back(std::move(made));
  }
  return absl::OkStatus();
}

absl::Status RowStoreImpl::InitReader() {
  uint64_t longest = 0;
  for (const Table& table : tables_) {
    const TableSpec& spec = table.spec;
    const uint64_t group = table.checked ? std::min<uint64_t>(spec.checksums.rows_per_group, spec.row_count) : 1;
    longest = std::max(longest, BlocksSpanned(spec.file_offset, spec.row_stride * group,
                                              (group - 1) * spec.row_stride + spec.row_bytes, alignment_[table.file]));
  }
  if (options_.read_bytes_max == 0) {
    options_.read_bytes_max = kMergedReadBytes;
  }
  longest = std::max<uint64_t>(longest, options_.read_bytes_max);
  if (longest > 2 * kReadBytesLimit) {
    return absl::InvalidArgumentError("a row's blocks are longer than a read may be");
  }
  // Whole 4 KiB, so that every buffer starts at a page and satisfies any memory alignment up to it.
  options_.read_bytes_max = static_cast<uint32_t>((longest + 4095) / 4096 * 4096);
  EMBERGATE_ASSIGN_OR_RETURN(buffers_,
                             BufferPool::Create(static_cast<uint32_t>(options_.queue_depth), options_.read_bytes_max));

  std::vector<int> descriptors;
  for (const TableFile& file : files_) {
    descriptors.push_back(file.fd());
  }
  // A read that was given up keeps its buffer, so there are never more outstanding than buffers.
  const uint32_t outstanding_max = buffers_.count();
  if (options_.reader != ReaderKind::kPread) {
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
  } else {
    backend_reason_ = "pread was asked for";
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

RowStoreImpl::~RowStoreImpl() {
  if (reader_ == nullptr) {
    return;
  }
  // What the device still owes goes into our buffers, so it is waited for; within reason.
  const uint64_t deadline_ns = MonotonicNs() + 1'000'000'000;
  while (buffers_.taken() > 0 && MonotonicNs() < deadline_ns) {
    const uint64_t start_ns = MonotonicNs();
    const size_t count = reader_->Reap(absl::MakeSpan(completions_), 1, 100'000'000);
    for (size_t i = 0; i < count; ++i) {
      const uint32_t index = static_cast<uint32_t>(completions_[i].tag);
      ReadOp& op = ops_[index];
      if (op.in_flight && op.generation == completions_[i].tag >> 32) {
        op.in_flight = false;
        ReleaseBuffer(op);
      } else {
        OnCompletion(completions_[i], 0, false);
      }
    }
    if (count == 0 && MonotonicNs() - start_ns < 50'000'000) {
      break;  // a ring of another thread does not answer this one
    }
  }
  reader_.reset();
  if (buffers_.taken() > 0) {
    buffers_.Leak();  // a device may still write there: better lost than reused
  }
}

// ---- Tickets ----

Ticket* RowStoreImpl::Find(RowTicket ticket) { return const_cast<Ticket*>(std::as_const(*this).Find(ticket)); }

const Ticket* RowStoreImpl::Find(RowTicket ticket) const {
  if (ticket.index >= tickets_.size()) {
    return nullptr;
  }
  const Ticket& state = tickets_[ticket.index];
  return state.used && state.generation == ticket.generation ? &state : nullptr;
}

RowRange RowStoreImpl::RangeOf(uint32_t ref) const {
  const RowCache::Entry& entry = EntryOf(ref);
  const Table& table = TableOf(entry.key);
  const uint64_t row = RowOf(entry.key);
  const uint32_t group = table.checked ? table.spec.checksums.rows_per_group : 1;
  RowRange range;
  range.file = table.file;
  range.row = ref;
  if (group == 1) {
    range.begin = OffsetOf(table, row);
    range.bytes = entry.bytes;
    return range;
  }
  const uint64_t first = row / group * group;
  const uint64_t last = std::min(first + group, table.spec.row_count) - 1;
  range.begin = OffsetOf(table, first);
  range.bytes = static_cast<uint32_t>(OffsetOf(table, last) + table.spec.row_bytes - range.begin);
  return range;
}

absl::Status RowStoreImpl::AddRow(uint32_t slot, RowId row, uint64_t prefix_bytes) {
  if (row.table < 0 || static_cast<size_t>(row.table) >= tables_.size()) {
    return absl::OutOfRangeError(absl::StrCat("no table ", row.table, "; there are ", tables_.size()));
  }
  const Table& table = tables_[static_cast<size_t>(row.table)];
  if (row.row >= table.spec.row_count) {
    return absl::OutOfRangeError(absl::StrCat("row ", row.row, " is outside table ", row.table, " (", table.spec.path,
                                              "), which has ", table.spec.row_count, " rows"));
  }
  if (prefix_bytes > table.spec.row_bytes) {
    return absl::OutOfRangeError(absl::StrCat("a prefix of ", prefix_bytes, " bytes of table ", row.table,
                                              ", whose rows have ", table.spec.row_bytes));
  }
  uint64_t bytes = prefix_bytes == 0 ? table.spec.row_bytes : prefix_bytes;
  if (table.checked) {
    const std::vector<uint64_t>& ends = table.spec.checksums.segment_ends;
    bytes = *std::lower_bound(ends.begin(), ends.end(), bytes);
  }
  Ticket& ticket = tickets_[slot];
  uint32_t& ref = refs_[static_cast<size_t>(slot) * static_cast<size_t>(options_.rows_per_ticket_max) + ticket.rows];
  RowCache& cache = caches_[table.row_class];
  const uint64_t key = MakeKey(row.table, row.row);
  RowCache::Id id = cache.Find(key);
  if (id != RowCache::kNone && cache.entry(id).bytes >= bytes) {
    RowCache::Entry& entry = cache.entry(id);
    if (!cache.Pin(id)) {
      return absl::ResourceExhaustedError(absl::StrCat("more than ", options_.rows_pinned_max, " rows held"));
    }
    if (entry.mark == submission_) {
      stats_.rows_deduplicated.Add();
    } else {
      entry.mark = submission_;
      cache.Touch(id);
      (entry.state == RowCache::State::kReady ? stats_.cache_hits : stats_.rows_joined).Add();
    }
  } else {
    id = cache.Insert(key, static_cast<uint32_t>(bytes), table.spec.cached);
    if (id == RowCache::kNone) {
      return absl::ResourceExhaustedError(absl::StrCat("more than ", options_.rows_pinned_max, " rows held"));
    }
    cache.entry(id).mark = submission_;
    stats_.cache_misses.Add();
    ranges_.push_back(RangeOf(MakeRef(table.row_class, id)));
  }
  ref = MakeRef(table.row_class, id);
  ++ticket.rows;
  stats_.rows_requested.Add();
  return absl::OkStatus();
}

template <typename RowAt>
absl::StatusOr<RowTicket> RowStoreImpl::SubmitAny(size_t count, RowAt row_at, uint64_t prefix_bytes) {
  if (!broken_.ok()) {
    return broken_;
  }
  if (count > static_cast<size_t>(options_.rows_per_ticket_max)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(count, " rows in one submission; at most ", options_.rows_per_ticket_max));
  }
  if (free_tickets_.empty()) {
    return absl::ResourceExhaustedError(absl::StrCat("all ", options_.tickets_max, " tickets are in use"));
  }
  Pump(0, 0);  // completions free held rows and places in flight
  const uint32_t slot = free_tickets_.back();
  free_tickets_.pop_back();
  Ticket& state = tickets_[slot];
  state.used = true;
  state.rows = 0;
  state.settled = 0;
  state.first_failed = kNoRef;
  state.prefix_bytes = prefix_bytes;
  const RowTicket ticket = {slot, state.generation};
  ++submission_;
  if (submission_ == 0) {
    submission_ = 1;  // 0 marks entries that no submission named
  }
  ranges_.clear();
  for (size_t i = 0; i < count; ++i) {
    const absl::Status status = AddRow(slot, row_at(i), prefix_bytes);
    if (!status.ok()) {
      // All or nothing: rows that no read was made for yet go first, then the ticket's pins.
      Release(ticket);
      for (const RowRange& range : ranges_) {
        if (EntryOf(range.row).pins == 0) {
          CacheOf(range.row).Abandon(IdOf(range.row));
        }
      }
      return status;
    }
  }
  PlanScratch();
  Feed();
  if (staged_) {
    staged_ = false;
    BreakDown(reader_->Flush());
  }
  return ticket;
}

void RowStoreImpl::PlanScratch() {
  if (ranges_.empty()) {
    return;
  }
  PlanReads(absl::MakeSpan(ranges_), alignment_, options_.merge_gap_bytes, options_.read_bytes_max, &planned_);
  OpList& list = planned_.size() <= static_cast<size_t>(options_.queue_depth) ? urgent_ : bulk_;
  for (const PlannedRead& planned : planned_) {
    const uint32_t index = NewOp();
    ReadOp& op = ops_[index];
    op.file = planned.file;
    op.begin = planned.begin;
    op.bytes = planned.bytes;
    op.needed = planned.needed;
    for (uint32_t i = planned.first + planned.count; i > planned.first; --i) {
      EntryOf(ranges_[i - 1].row).next_in_read = op.head;
      op.head = ranges_[i - 1].row;
    }
    Append(list, index);
  }
}

bool RowStoreImpl::Settle(RowTicket ticket, Ticket& state) {
  for (; state.settled < state.rows; ++state.settled) {
    const RowCache::State row = EntryOf(Ref(ticket, state.settled)).state;
    if (row == RowCache::State::kReading) {
      return false;
    }
    if (row == RowCache::State::kFailed && state.first_failed == kNoRef) {
      state.first_failed = state.settled;
    }
  }
  return true;
}

bool RowStoreImpl::Ready(RowTicket ticket) {
  Ticket* state = Find(ticket);
  if (state == nullptr || Settle(ticket, *state)) {
    return true;
  }
  Poll();
  return Settle(ticket, *state);
}

void RowStoreImpl::Poll() {
  if (in_flight_ > 0 || !BacklogEmpty()) {
    Pump(0, 0);
  }
}

absl::Status RowStoreImpl::Wait(RowTicket ticket) {
  Ticket* state = Find(ticket);
  if (state == nullptr) {
    return absl::FailedPreconditionError("Wait on a ticket that is not held");
  }
  // What has completed already is taken in first: it did not make anybody wait, and when it completed is unknown.
  if (!Ready(ticket)) {
    const uint64_t start_ns = MonotonicNs();
    do {
      // Several completions per system call, but never so many that the device runs dry while we take them in.
      const size_t missing = state->rows - state->settled;
      const size_t several = std::max<size_t>(1, std::min<size_t>(missing, in_flight_ / 4));
      Pump(several, static_cast<uint64_t>(options_.read_timeout_ms) * 1'000'000);
    } while (!Settle(ticket, *state));
    stats_.stall_ns.Add(MonotonicNs() - start_ns);
  }
  if (state->first_failed != kNoRef) {
    return FailureStatus(Ref(ticket, state->first_failed));
  }
  return absl::OkStatus();
}

absl::Status RowStoreImpl::RowStatus(RowTicket ticket, size_t i) const {
  const Ticket* state = Find(ticket);
  if (state == nullptr || i >= state->rows) {
    return absl::FailedPreconditionError("RowStatus of a ticket that is not held, or past its rows");
  }
  return FailureStatus(Ref(ticket, i));
}

absl::Status RowStoreImpl::FailureStatus(uint32_t ref) const {
  const RowCache::Entry& entry = EntryOf(ref);
  if (entry.state == RowCache::State::kReady) {
    return absl::OkStatus();
  }
  if (entry.state != RowCache::State::kFailed) {
    return absl::FailedPreconditionError("the row is still being read: Wait first");
  }
  const Table& table = TableOf(entry.key);
  const std::string where = absl::StrCat("row ", RowOf(entry.key), " of table ", entry.key >> kRowBits, " (",
                                         table.spec.path, " at byte ", OffsetOf(table, RowOf(entry.key)), ")");
  switch (static_cast<Failure>(entry.failure)) {
    case Failure::kShort:
      return absl::DataLossError(absl::StrCat(where, ": the file ends before it; it was truncated"));
    case Failure::kChecksum:
      return absl::DataLossError(
          absl::StrCat(where, ": checksum mismatch after ", options_.read_attempts_max,
                       " reads; the file or its device is damaged (embergate checksum --verify shows how much)"));
    case Failure::kChanged:
      return absl::DataLossError(absl::StrCat(where, ": the file was written to while open; restart to load it anew"));
    case Failure::kTimeout:
      return absl::UnavailableError(
          absl::StrCat(where, ": the device did not answer within ", options_.read_timeout_ms, " ms"));
    case Failure::kBroken:
      return absl::UnavailableError(absl::StrCat(where, ": ", broken_.message()));
    default:
      return absl::UnavailableError(absl::StrCat(where, ": reading failed ", options_.read_attempts_max,
                                                 " times: ", strerror(entry.failure_errno)));
  }
}

absl::Span<const uint8_t> RowStoreImpl::Row(RowTicket ticket, size_t i) const {
  const Ticket* state = Find(ticket);
  if (state == nullptr || i >= state->rows) {
    return {};
  }
  const uint32_t ref = Ref(ticket, i);
  const RowCache::Entry& entry = EntryOf(ref);
  if (entry.state != RowCache::State::kReady) {
    return {};
  }
  const uint64_t bytes = state->prefix_bytes != 0 ? state->prefix_bytes : TableOf(entry.key).spec.row_bytes;
  return {CacheOf(ref).data(IdOf(ref)), bytes};
}

void RowStoreImpl::Release(RowTicket ticket) {
  Ticket* state = Find(ticket);
  if (state == nullptr) {
    return;
  }
  for (uint32_t i = 0; i < state->rows; ++i) {
    const uint32_t ref = Ref(ticket, i);
    CacheOf(ref).Unpin(IdOf(ref));
  }
  if (state->settled < state->rows) {
    PruneBacklog();
  }
  state->used = false;
  ++state->generation;
  free_tickets_.push_back(ticket.index);
}

std::vector<RowId> RowStoreImpl::HotRows(size_t rows_max) const {
  std::vector<RowId> rows;
  std::vector<uint64_t> keys;
  for (const RowCache& cache : caches_) {
    cache.Hottest(rows_max - rows.size(), &keys);
    for (uint64_t key : keys) {
      rows.push_back({static_cast<int>(key >> kRowBits), RowOf(key)});
    }
  }
  return rows;
}

// ---- Reads ----

uint32_t RowStoreImpl::NewOp() {
  const uint32_t index = free_op_;
  ReadOp& op = ops_[index];
  free_op_ = op.next;
  const uint32_t generation = op.generation;
  op = ReadOp();
  op.generation = generation;
  return index;
}

void RowStoreImpl::FreeOp(uint32_t index) {
  ops_[index].next = free_op_;
  free_op_ = index;
}

void RowStoreImpl::Append(OpList& list, uint32_t index) {
  ops_[index].next = kNoRef;
  (list.tail != kNoRef ? ops_[list.tail].next : list.head) = index;
  list.tail = index;
  stats_.backlog.Set(++backlog_);
}

uint32_t RowStoreImpl::Pop(OpList& list) {
  const uint32_t index = list.head;
  list.head = ops_[index].next;
  if (list.head == kNoRef) {
    list.tail = kNoRef;
  }
  stats_.backlog.Set(--backlog_);
  return index;
}

// Takes out the rows that nobody waits for any more. Whether none is left.
bool RowStoreImpl::DropUnwanted(ReadOp& op) {
  uint32_t* link = &op.head;
  while (*link != kNoRef) {
    const uint32_t ref = *link;
    RowCache::Entry& entry = EntryOf(ref);
    if (entry.pins > 0) {
      link = &entry.next_in_read;
      continue;
    }
    *link = entry.next_in_read;
    CacheOf(ref).Abandon(IdOf(ref));
  }
  return op.head == kNoRef;
}

// Forgets reads that no ticket waits for any more and that have not started.
void RowStoreImpl::PruneBacklog() {
  for (OpList* list : {&urgent_, &bulk_}) {
    OpList kept;
    while (list->head != kNoRef) {
      const uint32_t index = Pop(*list);
      ReadOp& op = ops_[index];
      if (op.buffer == BufferPool::kNone && DropUnwanted(op)) {
        FreeOp(index);
      } else {
        Append(kept, index);
      }
    }
    *list = kept;
  }
}

void RowStoreImpl::Feed() {
  while (in_flight_ < static_cast<uint32_t>(options_.queue_depth) && !BacklogEmpty()) {
    OpList& list = urgent_.head != kNoRef ? urgent_ : bulk_;
    const uint32_t index = list.head;
    ReadOp& op = ops_[index];
    if (op.buffer == BufferPool::kNone && DropUnwanted(op)) {
      FreeOp(Pop(list));
      continue;
    }
    if (op.buffer == BufferPool::kNone) {
      op.buffer = buffers_.Take();
      if (op.buffer == BufferPool::kNone) {
        break;  // all lost to a device that does not answer; see Pump
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
    read.tag = static_cast<uint64_t>(op.generation) << 32 | index;
    reader_->Queue(absl::MakeConstSpan(&read, 1));
    staged_ = true;
    stats_.in_flight.Set(++in_flight_);
  }
}

void RowStoreImpl::Pump(size_t min_count, uint64_t timeout_ns) {
  Feed();
  if (in_flight_ == 0) {
    if (!BacklogEmpty()) {
      // Nothing in flight, yet no buffer left: every one is owed to a device that does not answer. One more chance
      // for late completions, then those who wait are told.
      const size_t late = reader_->Reap(absl::MakeSpan(completions_), min_count > 0 ? 1 : 0, timeout_ns);
      for (size_t i = 0; i < late; ++i) {
        OnCompletion(completions_[i], MonotonicNs(), false);
      }
      if (late == 0 && min_count > 0) {
        FailBacklog(Failure::kTimeout, ETIMEDOUT);
      }
      Feed();
    }
    if (in_flight_ == 0) {
      return;
    }
  }
  staged_ = false;
  const uint64_t before_ns = last_reap_ns_;
  const size_t count = reader_->Reap(absl::MakeSpan(completions_), std::min<size_t>(min_count, in_flight_),
                                     min_count > 0 ? timeout_ns : 0);
  const uint64_t now_ns = MonotonicNs();
  last_reap_ns_ = now_ns;
  // A completion came at some time since the previous look. If that was a moment ago, or spent waiting, its latency
  // is known.
  const bool end_seen = min_count > 0 || now_ns - before_ns < 50'000;
  for (size_t i = 0; i < count; ++i) {
    OnCompletion(completions_[i], now_ns, end_seen);
  }
  Confirm();
  CheckTimeouts(now_ns);
  Feed();
  if (staged_ && min_count == 0) {
    staged_ = false;
    BreakDown(reader_->Flush());
  }
}

void RowStoreImpl::ReleaseBuffer(ReadOp& op) {
  op_of_buffer_[op.buffer] = kNoRef;
  buffers_.Return(op.buffer);
  op.buffer = BufferPool::kNone;
}

void RowStoreImpl::OnCompletion(const BlockCompletion& completion, uint64_t now_ns, bool end_seen) {
  const uint32_t index = static_cast<uint32_t>(completion.tag);
  ReadOp& op = ops_[index];
  if (!op.in_flight || op.generation != completion.tag >> 32) {
    // The late answer to a read that was given up: its buffer is ours again.
    for (uint32_t buffer = 0; buffer < lost_tag_.size(); ++buffer) {
      if (lost_tag_[buffer] == completion.tag) {
        lost_tag_[buffer] = UINT64_MAX;
        buffers_.Return(buffer);
      }
    }
    return;
  }
  op.in_flight = false;
  stats_.in_flight.Set(--in_flight_);
  if (completion.result < 0) {
    OnError(index, -completion.result);
    return;
  }
  stats_.reads.Add();
  stats_.bytes_read.Add(static_cast<uint64_t>(completion.result));
  if (completion.done_ns != 0) {
    RecordLatency(completion.done_ns - std::min(completion.done_ns, op.submit_ns));
  } else if (end_seen) {
    RecordLatency(now_ns - op.submit_ns);
  }
  const uint32_t done = op.done + static_cast<uint32_t>(completion.result);
  TableFile& file = files_[op.file];
  if (!file.direct()) {
    file.DropPages(op.begin, op.bytes);
  }
  if (done < op.needed) {
    OnShort(index, done);
  } else {
    OnArrived(index);
  }
}

void RowStoreImpl::RecordLatency(uint64_t ns) {
  const auto& bounds = LatencyHistogram::kBoundsNs;
  const size_t bucket = static_cast<size_t>(std::lower_bound(bounds.begin(), bounds.end(), ns) - bounds.begin());
  stats_.latency[bucket].Add();
  stats_.latency_sum_ns.Add(ns);
}

void RowStoreImpl::OnError(uint32_t index, int error) {
  ReadOp& op = ops_[index];
  if ((error == EINTR || error == EAGAIN) && ++op.transients <= kTransientsMax) {
    stats_.retries.Add();
    Requeue(index);
    return;
  }
  TableFile& file = files_[op.file];
  if (error == EINVAL && file.direct() && file.StopDirect().ok()) {
    all_direct_ = false;
    stats_.direct.Set(0);
  }
  if (error == EINVAL && !file.direct() && ++op.transients <= kTransientsMax) {
    // Reads that were in flight when the file left O_DIRECT are refused as the first one was.
    stats_.retries.Add();
    Requeue(index);
    return;
  }
  stats_.errors_io.Add();
  RetryOrFail(index, Failure::kDevice, error);
}

void RowStoreImpl::OnShort(uint32_t index, uint32_t done) {
  ReadOp& op = ops_[index];
  stats_.errors_short.Add();
  const uint32_t whole_blocks = done & ~(alignment_[op.file] - 1);
  if (whole_blocks > op.done) {
    // Progress: read on from there. This ends, because each such step brings at least one block.
    op.done = whole_blocks;
    stats_.retries.Add();
    Requeue(index);
    return;
  }
  RetryOrFail(index, Failure::kShort, 0);
}

// The same read again, in the buffer that it has.
void RowStoreImpl::Requeue(uint32_t index) { Append(urgent_, index); }

// Another attempt, each row by itself so that one bad block costs one row; or, after the last one, the end.
void RowStoreImpl::RetryOrFail(uint32_t index, Failure failure, int error) {
  ReadOp& op = ops_[index];
  if (op.buffer != BufferPool::kNone) {
    ReleaseBuffer(op);
  }
  const int attempts = op.attempts + 1;
  uint32_t ref = op.head;
  op.head = kNoRef;
  FreeOp(index);
  while (ref != kNoRef) {
    const uint32_t next = EntryOf(ref).next_in_read;
    EntryOf(ref).next_in_read = kNoRef;
    if (attempts >= options_.read_attempts_max) {
      FailRow(ref, failure, error);
    } else {
      stats_.retries.Add();
      const RowRange range = RangeOf(ref);
      const uint64_t mask = alignment_[range.file] - 1;
      const uint32_t again = NewOp();
      ReadOp& single = ops_[again];
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

void RowStoreImpl::FailRow(uint32_t ref, Failure failure, int error) {
  EntryOf(ref).failure = static_cast<uint8_t>(failure);
  EntryOf(ref).failure_errno = error;
  stats_.rows_failed.Add();
  stats_.failures_in_a_row.Add();
  CacheOf(ref).Fail(IdOf(ref));
}

// `data` holds the file's bytes from `data_begin` on. `group_verified` remembers the group checked last, so that rows
// of one group in one read are checked once.
bool RowStoreImpl::Verify(uint32_t ref, const uint8_t* data, uint64_t data_begin, uint64_t* group_verified) const {
  const RowCache::Entry& entry = EntryOf(ref);
  const Table& table = TableOf(entry.key);
  const RowChecksums& sums = table.spec.checksums;
  const uint64_t row = RowOf(entry.key);
  if (sums.rows_per_group == 1) {
    const uint8_t* bytes = data + (OffsetOf(table, row) - data_begin);
    const uint32_t* expected = &sums.crcs[row * sums.segment_ends.size()];
    uint64_t begin = 0;
    for (size_t i = 0; i < sums.segment_ends.size() && begin < entry.bytes; ++i) {
      const uint64_t end = sums.segment_ends[i];
      if (Crc32c(absl::MakeConstSpan(bytes + begin, end - begin)) != expected[i]) {
        return false;
      }
      begin = end;
    }
    return true;
  }
  const uint64_t group = row / sums.rows_per_group;
  const uint64_t group_key = (entry.key >> kRowBits) << kRowBits | group;
  if (*group_verified == group_key) {
    return true;
  }
  const uint64_t first = group * sums.rows_per_group;
  const uint64_t last = std::min<uint64_t>(first + sums.rows_per_group, table.spec.row_count);
  uint32_t crc = 0;
  for (uint64_t i = first; i < last; ++i) {
    crc = Crc32c(absl::MakeConstSpan(data + (OffsetOf(table, i) - data_begin), table.spec.row_bytes), crc);
  }
  if (crc != sums.crcs[group]) {
    return false;
  }
  *group_verified = group_key;
  return true;
}

void RowStoreImpl::OnArrived(uint32_t index) {
  ReadOp& op = ops_[index];
  const uint8_t* data = buffers_.data(op.buffer);
  uint64_t group_verified = UINT64_MAX;
  uint32_t bad = kNoRef;
  uint32_t ref = op.head;
  while (ref != kNoRef) {
    RowCache::Entry& entry = EntryOf(ref);
    const uint32_t next = entry.next_in_read;
    const Table& table = TableOf(entry.key);
    if (table.checked && !Verify(ref, data, op.begin, &group_verified)) {
      stats_.errors_checksum.Add();
      entry.next_in_read = bad;
      bad = ref;
    } else {
      std::memcpy(CacheOf(ref).data(IdOf(ref)), data + (OffsetOf(table, RowOf(entry.key)) - op.begin), entry.bytes);
      entry.next_in_read = landed_[op.file];
      landed_[op.file] = ref;
      any_landed_ = true;
    }
    ref = next;
  }
  op.head = bad;
  if (bad != kNoRef) {
    RetryOrFail(index, Failure::kChecksum, 0);
    return;
  }
  ReleaseBuffer(op);
  FreeOp(index);
}

// Rows become visible only after their file has been seen unchanged since the read: one system call per batch of
// completions and file.
void RowStoreImpl::Confirm() {
  if (!any_landed_) {
    return;
  }
  any_landed_ = false;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (landed_[i] == kNoRef) {
      continue;
    }
    const bool was_changed = files_[i].changed();
    const bool changed = !files_[i].CheckUnchanged().ok();
    if (changed && !was_changed) {
      stats_.errors_changed.Add();
    }
    uint32_t ref = landed_[i];
    landed_[i] = kNoRef;
    uint64_t rows = 0;
    uint64_t bytes = 0;
    while (ref != kNoRef) {
      RowCache::Entry& entry = EntryOf(ref);
      const uint32_t next = entry.next_in_read;
      entry.next_in_read = kNoRef;
      // A row with a checksum is right whatever happened around it.
      if (changed && !TableOf(entry.key).checked) {
        FailRow(ref, Failure::kChanged, 0);
      } else {
        ++rows;
        bytes += entry.bytes;
        CacheOf(ref).Complete(IdOf(ref));
      }
      ref = next;
    }
    if (rows > 0) {
      stats_.rows_read.Add(rows);
      stats_.bytes_useful.Add(bytes);
      stats_.failures_in_a_row.Set(0);
    }
  }
}

void RowStoreImpl::CheckTimeouts(uint64_t now_ns) {
  const uint64_t timeout_ns = static_cast<uint64_t>(options_.read_timeout_ms) * 1'000'000;
  if (now_ns - last_timeout_check_ns_ < timeout_ns / 8) {
    return;
  }
  last_timeout_check_ns_ = now_ns;
  for (uint32_t buffer = 0; buffer < op_of_buffer_.size(); ++buffer) {
    const uint32_t index = op_of_buffer_[buffer];
    if (index == kNoRef || !ops_[index].in_flight || now_ns - ops_[index].submit_ns < timeout_ns) {
      continue;
    }
    ReadOp& op = ops_[index];
    lost_tag_[buffer] = static_cast<uint64_t>(op.generation) << 32 | index;
    op_of_buffer_[buffer] = kNoRef;
    op.buffer = BufferPool::kNone;
    op.in_flight = false;
    ++op.generation;
    stats_.in_flight.Set(--in_flight_);
    stats_.errors_timeout.Add();
    RetryOrFail(index, Failure::kTimeout, ETIMEDOUT);
  }
}

void RowStoreImpl::FailBacklog(Failure failure, int error) {
  for (OpList* list : {&urgent_, &bulk_}) {
    while (list->head != kNoRef) {
      const uint32_t index = Pop(*list);
      ops_[index].attempts = options_.read_attempts_max;
      RetryOrFail(index, failure, error);
    }
  }
}

// The reader itself is gone: nothing in flight will come back.
void RowStoreImpl::BreakDown(const absl::Status& status) {
  if (status.ok() || !broken_.ok()) {
    return;
  }
  broken_ = status;
  for (uint32_t buffer = 0; buffer < op_of_buffer_.size(); ++buffer) {
    const uint32_t index = op_of_buffer_[buffer];
    if (index == kNoRef || !ops_[index].in_flight) {
      continue;
    }
    ReadOp& op = ops_[index];
    op_of_buffer_[buffer] = kNoRef;
    op.buffer = BufferPool::kNone;
    op.in_flight = false;
    stats_.in_flight.Set(--in_flight_);
    op.attempts = options_.read_attempts_max;
    RetryOrFail(index, Failure::kBroken, 0);
  }
  FailBacklog(Failure::kBroken, 0);
}

RowStoreStats RowStoreImpl::Snapshot() const {
  RowStoreStats stats;
  stats.backend = std::string(reader_->name());
  stats.backend_reason = backend_reason_;
  stats.direct_io = stats_.direct.Get() != 0;
  stats.direct_reason = !stats.direct_io && options_.direct_io && direct_reason_.empty()
                            ? "the file system refuses O_DIRECT reads"
                            : direct_reason_;
  stats.queue_depth = static_cast<uint32_t>(options_.queue_depth);
  stats.rows_requested = stats_.rows_requested.Get();
  stats.rows_deduplicated = stats_.rows_deduplicated.Get();
  stats.rows_joined = stats_.rows_joined.Get();
  stats.cache_hits = stats_.cache_hits.Get();
  stats.cache_misses = stats_.cache_misses.Get();
  stats.rows_read = stats_.rows_read.Get();
  stats.reads = stats_.reads.Get();
  stats.bytes_read = stats_.bytes_read.Get();
  stats.bytes_useful = stats_.bytes_useful.Get();
  stats.retries = stats_.retries.Get();
  stats.rows_failed = stats_.rows_failed.Get();
  stats.failures_in_a_row = stats_.failures_in_a_row.Get();
  stats.errors_io = stats_.errors_io.Get();
  stats.errors_short = stats_.errors_short.Get();
  stats.errors_checksum = stats_.errors_checksum.Get();
  stats.errors_changed = stats_.errors_changed.Get();
  stats.errors_timeout = stats_.errors_timeout.Get();
  stats.in_flight = stats_.in_flight.Get();
  stats.backlog = stats_.backlog.Get();
  stats.stall_ns = stats_.stall_ns.Get();
  for (size_t i = 0; i < stats_.latency.size(); ++i) {
    stats.read_latency.counts[i] = stats_.latency[i].Get();
  }
  stats.read_latency.sum_ns = stats_.latency_sum_ns.Get();
  stats.cache_bytes = stats_.cache_bytes;
  stats.held_bytes = stats_.held_bytes;
  stats.buffer_bytes = buffers_.whole().size();
  stats.checksum_bytes = stats_.checksum_bytes;
  stats.other_bytes = stats_.other_bytes;
  return stats;
}

}  // namespace

absl::StatusOr<std::unique_ptr<RowStore>> RowStore::Create(std::vector<TableSpec> tables,
                                                           const RowStoreOptions& options) {
  auto store = std::make_unique<RowStoreImpl>(options);
  EMBERGATE_RETURN_IF_ERROR(store->Init(std::move(tables)));
  return absl::StatusOr<std::unique_ptr<RowStore>>(std::move(store));
}

}  // namespace embergate::storage
