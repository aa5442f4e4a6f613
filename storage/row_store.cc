#include "storage/row_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/base/clock.h"
#include "storage/base/status_macros.h"
#include "storage/read_scheduler.h"
#include "storage/row_set.h"
#include "storage/row_store_counters.h"
#include "storage/table_file.h"

namespace embergate::storage {
namespace {

constexpr uint32_t kNoIndex = UINT32_MAX;

struct Ticket {
  uint32_t generation = 0;
  bool used = false;
  uint32_t rows = 0;
  uint32_t settled = 0;  // of the first rows: ready or failed; only grows
  uint32_t first_failed = kNoIndex;
  uint32_t found = 0;  // distinct rows that no read was made for
  uint32_t read = 0;
  uint64_t prefix_bytes = 0;
};

absl::Status CheckOptions(const RowStoreOptions& options) {
  const auto in_range = [](int64_t value, int64_t low, int64_t high) { return value >= low && value <= high; };
  if (!in_range(options.queue_depth, 1, 4096) || !in_range(options.tickets_max, 1, 65536) ||
      !in_range(options.rows_per_ticket_max, 1, 1 << 20) || !in_range(options.rows_pinned_max, 1, 1 << 23) ||
      !in_range(options.read_attempts_max, 1, 100) || !in_range(options.read_timeout_ms, 1, 3600 * 1000) ||
      options.merge_gap_bytes > kTableRowBytesMax || options.read_bytes_max > kTableRowBytesMax) {
    return absl::InvalidArgumentError(
        "row store options out of range: queue_depth 1..4096, tickets_max 1..65536, rows_per_ticket_max 1..2^20, "
        "rows_pinned_max 1..2^23, read_attempts_max 1..100, read_timeout_ms 1..3600000, merge_gap_bytes and "
        "read_bytes_max at most 64 MiB");
  }
  return absl::OkStatus();
}

class RowStoreImpl final : public RowStore {
 public:
  explicit RowStoreImpl(const RowStoreOptions& options)
      : options_(options),
        too_many_held_(absl::ResourceExhaustedError(absl::StrCat("more than ", options.rows_pinned_max, " rows held"))),
        too_many_tickets_(
            absl::ResourceExhaustedError(absl::StrCat("all ", options.tickets_max, " tickets are in use"))) {}

  absl::Status Init(std::vector<TableSpec> specs);

  absl::StatusOr<RowTicket> Submit(int table, absl::Span<const uint64_t> row_ids, uint64_t prefix_bytes) override {
    return SubmitAny(
        row_ids.size(),
        [&](size_t i) {
          return RowId{table, row_ids[i]};
        },
        prefix_bytes, When::kNow);
  }
  absl::StatusOr<RowTicket> SubmitRows(absl::Span<const RowId> rows, uint64_t prefix_bytes) override {
    return SubmitAny(
        rows.size(), [&](size_t i) { return rows[i]; }, prefix_bytes, When::kNow);
  }
  absl::StatusOr<RowTicket> Stage(int table, absl::Span<const uint64_t> row_ids, uint64_t prefix_bytes) override {
    return SubmitAny(
        row_ids.size(),
        [&](size_t i) {
          return RowId{table, row_ids[i]};
        },
        prefix_bytes, When::kSend);
  }
  absl::StatusOr<RowTicket> SubmitFresh(absl::Span<const RowId> rows) override {
    return SubmitAny(
        rows.size(), [&](size_t i) { return rows[i]; }, 0, When::kNow, /*fresh=*/true);
  }
  void Send() override;
  void Poll() override {
    Send();
    reads_->Pump(0, 0);
  }
  absl::Status Wait(RowTicket ticket) override;
  bool Ready(RowTicket ticket) override;
  absl::Status RowStatus(RowTicket ticket, size_t i) const override;
  absl::Span<const uint8_t> Row(RowTicket ticket, size_t i) const override;
  RowCounts Counts(RowTicket ticket) const override;
  void Release(RowTicket ticket) override;
  std::vector<RowId> HotRows(size_t rows_max) const override;
  RowStoreStats Snapshot() const override;

 private:
  absl::Status OpenTables(std::vector<TableSpec> specs);
  absl::Status InitCaches();

  enum class When { kNow, kSend };  // the reads go out

  template <typename RowAt>
  absl::StatusOr<RowTicket> SubmitAny(size_t count, RowAt row_at, uint64_t prefix_bytes, When when, bool fresh = false);
  absl::StatusOr<RowRef> PinRow(RowId row, uint64_t prefix_bytes, bool fresh);
  bool HeldRowsShort(size_t count) const;

  const Ticket* Find(RowTicket ticket) const;
  Ticket* Find(RowTicket ticket) { return const_cast<Ticket*>(std::as_const(*this).Find(ticket)); }
  RowRef& RefOf(uint32_t ticket, size_t i) {
    return refs_[static_cast<size_t>(ticket) * static_cast<size_t>(options_.rows_per_ticket_max) + i];
  }
  RowRef RefOf(uint32_t ticket, size_t i) const { return const_cast<RowStoreImpl*>(this)->RefOf(ticket, i); }
  bool Settle(RowTicket ticket, Ticket& state);
  absl::Status FailureOf(RowRef ref) const;

  const RowStoreOptions options_;
  // Who reads ahead as far as there is room meets them all the time: they are put in words once.
  const absl::Status too_many_held_;
  const absl::Status too_many_tickets_;
  RowSet rows_;
  std::vector<TableFile> files_;
  std::string direct_reason_;
  RowStoreCounters counters_;
  std::unique_ptr<ReadScheduler> reads_;  // after all that it refers to

  std::vector<Ticket> tickets_;
  std::vector<uint32_t> free_tickets_;
  std::vector<RowRef> refs_;      // [ticket][row of the submission]
  uint32_t submission_ = 0;       // number of the current one: marks its entries
  std::vector<RowRange> ranges_;  // what must be read, of the submissions since the last Send
  // How many of ranges_ are of short submissions, whose reads overtake those of long ones; they come first.
  size_t urgent_ = 0;

  uint64_t cache_bytes_ = 0;
  uint64_t held_bytes_ = 0;
  uint64_t checksum_bytes_ = 0;
};

// ---- Creation ----

absl::Status RowStoreImpl::Init(std::vector<TableSpec> specs) {
  EMBERGATE_RETURN_IF_ERROR(CheckOptions(options_));
  EMBERGATE_RETURN_IF_ERROR(OpenTables(std::move(specs)));
  EMBERGATE_RETURN_IF_ERROR(InitCaches());
  const size_t rows_max = static_cast<size_t>(options_.rows_per_ticket_max);
  tickets_.resize(static_cast<size_t>(options_.tickets_max));
  for (uint32_t i = static_cast<uint32_t>(tickets_.size()); i > 0; --i) {
    free_tickets_.push_back(i - 1);
  }
  refs_.assign(tickets_.size() * rows_max, kNoRow);
  ranges_.reserve(rows_max);
  EMBERGATE_ASSIGN_OR_RETURN(reads_, ReadScheduler::Create(options_, rows_, files_, counters_));
  return absl::OkStatus();
}

absl::Status RowStoreImpl::OpenTables(std::vector<TableSpec> specs) {
  if (specs.empty() || specs.size() >= RowSet::kTablesMax) {
    return absl::InvalidArgumentError("a row store has at least one table and at most 32767");
  }
  bool all_direct = true;
  rows_.tables.resize(specs.size());
  for (size_t i = 0; i < specs.size(); ++i) {
    EMBERGATE_RETURN_IF_ERROR(CheckTableSpec(specs[i], i));
    Table& table = rows_.tables[i];
    table.spec = std::move(specs[i]);
    table.checked = !table.spec.checksums.crcs.empty();
    checksum_bytes_ += table.spec.checksums.crcs.size() * sizeof(uint32_t);
    size_t file = 0;
    while (file < files_.size() && files_[file].path() != table.spec.path) {
      ++file;
    }
    if (file == files_.size()) {
      EMBERGATE_ASSIGN_OR_RETURN(TableFile opened, TableFile::Open(table.spec.path, options_.direct_io));
      all_direct = all_direct && opened.direct();
      if (direct_reason_.empty() && !opened.direct_reason().empty()) {
        direct_reason_ = absl::StrCat(opened.path(), ": ", opened.direct_reason());
      }
      files_.push_back(std::move(opened));
    }
    table.file = static_cast<uint32_t>(file);
    const uint64_t end = table.OffsetOf(table.spec.row_count - 1) + table.spec.row_bytes;
    if (end > files_[file].bytes()) {
      return absl::DataLossError(absl::StrCat("table ", i, " ends at byte ", end, " of ", table.spec.path,
                                              ", which has only ", files_[file].bytes(), "; the file is truncated"));
    }
  }
  counters_.direct_io.Set(all_direct ? 1 : 0);
  return absl::OkStatus();
}

// One class of slots per row size (rounded as slots are), each with room for all rows that may be held; the cache's
// bytes go to the classes that have cached tables in proportion to the bytes of those tables.
absl::Status RowStoreImpl::InitCaches() {
  struct Class {
    uint32_t row_bytes = 0;    // the longest row
    double cached_bytes = 0;   // of cached tables
    uint64_t cached_rows = 0;  // of cached tables
  };
  std::vector<Class> classes;
  double cached_bytes_sum = 0;
  for (Table& table : rows_.tables) {
    const uint32_t bytes = static_cast<uint32_t>(table.spec.row_bytes);
    size_t index = 0;
    while (index < classes.size() && RowCache::SlotBytes(classes[index].row_bytes) != RowCache::SlotBytes(bytes)) {
      ++index;
    }
    if (index == classes.size()) {
      if (index == RowSet::kClassesMax) {
        return absl::InvalidArgumentError(
            absl::StrCat("tables of more than ", RowSet::kClassesMax, " different row sizes in one row store"));
      }
      classes.emplace_back();
    }
    table.row_class = static_cast<uint32_t>(index);
    Class& row_class = classes[index];
    row_class.row_bytes = std::max(row_class.row_bytes, bytes);
    if (table.spec.cached) {
      const double table_bytes = static_cast<double>(table.spec.row_count) * bytes;
      row_class.cached_bytes += table_bytes;
      row_class.cached_rows += table.spec.row_count;
      cached_bytes_sum += table_bytes;
    }
  }
  for (const Class& row_class : classes) {
    RowCache::Options cache;
    cache.row_bytes = row_class.row_bytes;
    cache.rows_held_max = static_cast<uint32_t>(options_.rows_pinned_max);
    const uint64_t each = RowCache::BytesPerCachedRow(row_class.row_bytes);
    if (row_class.cached_rows > 0) {
      const double share = static_cast<double>(options_.cache_bytes) * (row_class.cached_bytes / cached_bytes_sum);
      const uint64_t addressable = RowSet::kIdsMax - static_cast<uint64_t>(options_.rows_pinned_max);
      cache.rows_cached =
          static_cast<uint32_t>(std::min({static_cast<uint64_t>(share) / each, row_class.cached_rows, addressable}));
    }
    EMBERGATE_ASSIGN_OR_RETURN(RowCache made, RowCache::Create(cache));
    const uint64_t cached_bytes = std::min(cache.rows_cached * each, made.memory_bytes());
    cache_bytes_ += cached_bytes;
    held_bytes_ += made.memory_bytes() - cached_bytes;
    rows_.caches.push_back(std::move(made));
  }
  return absl::OkStatus();
}

// ---- Submission ----

template <typename RowAt>
absl::StatusOr<RowTicket> RowStoreImpl::SubmitAny(size_t count, RowAt row_at, uint64_t prefix_bytes, When when,
                                                  bool fresh) {
  if (!reads_->broken().ok()) {
    counters_.rows_failed.Add(count);
    counters_.failures_in_a_row.Add(count);
    return reads_->broken();
  }
  if (count > static_cast<size_t>(options_.rows_per_ticket_max)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(count, " rows in one submission; at most ", options_.rows_per_ticket_max));
  }
  if (free_tickets_.empty()) {
    return too_many_tickets_;
  }
  if (when == When::kNow || HeldRowsShort(count)) {
    reads_->Pump(0, 0);  // completions free held rows and places in flight
  }
  if (ranges_.size() + count > static_cast<size_t>(options_.rows_per_ticket_max)) {
    Send();  // otherwise they would outgrow their place
  }
  const uint32_t index = free_tickets_.back();
  free_tickets_.pop_back();
  Ticket& state = tickets_[index];
  const uint32_t generation = state.generation;
  state = Ticket();
  state.generation = generation;
  state.used = true;
  state.prefix_bytes = prefix_bytes;
  const RowTicket ticket = {index, generation};
  submission_ = std::max(1u, submission_ + 1);  // 0 marks entries that no submission named
  const size_t staged = ranges_.size();
  const uint64_t deduplicated = counters_.rows_deduplicated.Get();
  for (size_t i = 0; i < count; ++i) {
    absl::StatusOr<RowRef> ref = PinRow(row_at(i), prefix_bytes, fresh);
    if (!ref.ok()) {
      // All or nothing. The rows that no read was made for yet can go at once.
      Release(ticket);
      for (; ranges_.size() > staged; ranges_.pop_back()) {
        rows_.CacheOf(ranges_.back().row).Abandon(RowSet::IdOf(ranges_.back().row));
      }
      return ref.status();
    }
    RefOf(index, state.rows++) = *ref;
  }
  counters_.rows_requested.Add(count);
  state.read = static_cast<uint32_t>(ranges_.size() - staged);
  state.found = static_cast<uint32_t>(count - (counters_.rows_deduplicated.Get() - deduplicated)) - state.read;
  if (const size_t added = ranges_.size() - staged; added <= static_cast<size_t>(options_.queue_depth)) {
    std::rotate(ranges_.begin() + static_cast<ptrdiff_t>(urgent_), ranges_.begin() + static_cast<ptrdiff_t>(staged),
                ranges_.end());
    urgent_ += added;
  }
  if (when == When::kNow) {
    Send();
  }
  return ticket;
}

// Whether `count` more held rows could be too many.
bool RowStoreImpl::HeldRowsShort(size_t count) const {
  return std::any_of(rows_.caches.begin(), rows_.caches.end(),
                     [&](const RowCache& cache) { return cache.rows_held() + count > cache.rows_held_max(); });
}

void RowStoreImpl::Send() {
  if (!ranges_.empty()) {
    reads_->Read(absl::MakeSpan(ranges_).subspan(0, urgent_), absl::MakeSpan(ranges_).subspan(urgent_));
    ranges_.clear();
    urgent_ = 0;
  }
}

// Finds or makes the entry of a row and pins it; one that must be read goes into ranges_.
absl::StatusOr<RowRef> RowStoreImpl::PinRow(RowId row, uint64_t prefix_bytes, bool fresh) {
  if (row.table < 0 || static_cast<size_t>(row.table) >= rows_.tables.size()) {
    return absl::OutOfRangeError(absl::StrCat("no table ", row.table, "; there are ", rows_.tables.size()));
  }
  const Table& table = rows_.tables[static_cast<size_t>(row.table)];
  if (row.row >= table.spec.row_count) {
    return absl::OutOfRangeError(absl::StrCat("row ", row.row, " is outside table ", row.table, " (", table.spec.path,
                                              "), which has ", table.spec.row_count, " rows"));
  }
  if (prefix_bytes > table.spec.row_bytes) {
    return absl::OutOfRangeError(absl::StrCat("a prefix of ", prefix_bytes, " bytes of table ", row.table,
                                              ", whose rows have ", table.spec.row_bytes));
  }
  const uint32_t bytes = static_cast<uint32_t>(table.CheckableBytes(prefix_bytes));
  RowCache& cache = rows_.caches[table.row_class];
  const uint64_t key = RowSet::MakeKey(row.table, row.row);
  RowCache::Id id = cache.Find(key);
  const auto usable = [&](const RowCache::Entry& entry) {
    return entry.bytes >= bytes && (!fresh || entry.state == RowCache::State::kReading);
  };
  if (id != RowCache::kNone && usable(cache.entry(id))) {
    RowCache::Entry& entry = cache.entry(id);
    if (!cache.Pin(id)) {
      return too_many_held_;
    }
    if (entry.mark == submission_) {
      counters_.rows_deduplicated.Add();
    } else {
      entry.mark = submission_;
      cache.Touch(id);
      (entry.state == RowCache::State::kReady ? counters_.cache_hits : counters_.rows_joined).Add();
    }
    return RowSet::MakeRef(table.row_class, id);
  }
  id = cache.Insert(key, bytes, table.spec.cached);
  if (id == RowCache::kNone) {
    return too_many_held_;
  }
  cache.entry(id).mark = submission_;
  counters_.cache_misses.Add();
  ranges_.push_back(table.RangeOf(row.row, bytes, RowSet::MakeRef(table.row_class, id)));
  return RowSet::MakeRef(table.row_class, id);
}

// ---- Tickets ----

const Ticket* RowStoreImpl::Find(RowTicket ticket) const {
  if (ticket.index >= tickets_.size()) {
    return nullptr;
  }
  const Ticket& state = tickets_[ticket.index];
  return state.used && state.generation == ticket.generation ? &state : nullptr;
}

// Whether all rows of the ticket are ready or failed.
bool RowStoreImpl::Settle(RowTicket ticket, Ticket& state) {
  for (; state.settled < state.rows; ++state.settled) {
    const RowCache::State row = rows_.EntryOf(RefOf(ticket.index, state.settled)).state;
    if (row == RowCache::State::kReading) {
      return false;
    }
    if (row == RowCache::State::kFailed && state.first_failed == kNoIndex) {
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
      const size_t several = std::max<size_t>(1, std::min<size_t>(missing, reads_->in_flight() / 4));
      reads_->Pump(several, static_cast<uint64_t>(options_.read_timeout_ms) * 1'000'000);
    } while (!Settle(ticket, *state));
    counters_.stall_ns.Add(MonotonicNs() - start_ns);
    reads_->Pump(0, 0);
  }
  if (state->first_failed != kNoIndex) {
    return FailureOf(RefOf(ticket.index, state->first_failed));
  }
  return absl::OkStatus();
}

absl::Status RowStoreImpl::RowStatus(RowTicket ticket, size_t i) const {
  const Ticket* state = Find(ticket);
  if (state == nullptr || i >= state->rows) {
    return absl::FailedPreconditionError("RowStatus of a ticket that is not held, or past its rows");
  }
  return FailureOf(RefOf(ticket.index, i));
}

absl::Status RowStoreImpl::FailureOf(RowRef ref) const {
  const RowCache::Entry& entry = rows_.EntryOf(ref);
  if (entry.state == RowCache::State::kReady) {
    return absl::OkStatus();
  }
  if (entry.state != RowCache::State::kFailed) {
    return absl::FailedPreconditionError("the row is still being read: Wait first");
  }
  const Table& table = rows_.TableOf(entry.key);
  const uint64_t row = RowSet::RowOf(entry.key);
  const std::string where = absl::StrCat("row ", row, " of table ", RowSet::TableIndexOf(entry.key), " (",
                                         table.spec.path, " at byte ", table.OffsetOf(row), ")");
  switch (static_cast<RowFailure>(entry.failure)) {
    case RowFailure::kShort:
      return absl::DataLossError(absl::StrCat(where, ": the file ends before it; it was truncated"));
    case RowFailure::kChecksum:
      return absl::DataLossError(
          absl::StrCat(where, ": checksum mismatch after ", options_.read_attempts_max,
                       " reads; the file or its device is damaged (embergate checksum --verify shows how much)"));
    case RowFailure::kChanged:
      return absl::DataLossError(absl::StrCat(where, ": the file was written to while open; restart to load it anew"));
    case RowFailure::kTimeout:
      return absl::UnavailableError(
          absl::StrCat(where, ": the device did not answer within ", options_.read_timeout_ms, " ms"));
    case RowFailure::kBroken:
      return absl::UnavailableError(absl::StrCat(where, ": ", reads_->broken().message()));
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
  const RowRef ref = RefOf(ticket.index, i);
  const RowCache::Entry& entry = rows_.EntryOf(ref);
  if (entry.state != RowCache::State::kReady) {
    return {};
  }
  return {rows_.DataOf(ref), state->prefix_bytes != 0 ? state->prefix_bytes : rows_.TableOf(entry.key).spec.row_bytes};
}

RowCounts RowStoreImpl::Counts(RowTicket ticket) const {
  RowCounts counts;
  if (const Ticket* state = Find(ticket); state != nullptr) {
    counts.found = state->found;
    counts.read = state->read;
    const double per_row = static_cast<double>(counters_.bytes_read.Get()) /
                           static_cast<double>(std::max<uint64_t>(1, counters_.rows_read.Get()));
    counts.device_bytes = static_cast<uint64_t>(per_row * state->read);
  }
  return counts;
}

void RowStoreImpl::Release(RowTicket ticket) {
  Ticket* state = Find(ticket);
  if (state == nullptr) {
    return;
  }
  for (uint32_t i = 0; i < state->rows; ++i) {
    const RowRef ref = RefOf(ticket.index, i);
    rows_.CacheOf(ref).Unpin(RowSet::IdOf(ref));
  }
  if (state->settled < state->rows) {
    reads_->PruneBacklog();
  }
  state->used = false;
  ++state->generation;
  free_tickets_.push_back(ticket.index);
}

// ---- Views ----

std::vector<RowId> RowStoreImpl::HotRows(size_t rows_max) const {
  std::vector<RowId> rows;
  std::vector<uint64_t> keys;
  for (const RowCache& cache : rows_.caches) {
    cache.Hottest(rows_max - rows.size(), &keys);
    for (uint64_t key : keys) {
      rows.push_back({RowSet::TableIndexOf(key), RowSet::RowOf(key)});
    }
  }
  return rows;
}

RowStoreStats RowStoreImpl::Snapshot() const {
  RowStoreStats stats;
  counters_.CopyTo(&stats);
  stats.backend = reads_->backend();
  stats.backend_reason = reads_->backend_reason();
  stats.direct_reason = direct_reason_;
  if (!stats.direct_io && options_.direct_io && direct_reason_.empty()) {
    stats.direct_reason = "the file system took O_DIRECT and then refused its reads";
  }
  stats.queue_depth = static_cast<uint32_t>(options_.queue_depth);
  stats.cache_bytes = cache_bytes_;
  stats.held_bytes = held_bytes_;
  stats.buffer_bytes = reads_->buffer_bytes();
  stats.checksum_bytes = checksum_bytes_;
  stats.other_bytes = tickets_.size() * (sizeof(Ticket) + sizeof(uint32_t)) + refs_.size() * sizeof(RowRef) +
                      ranges_.capacity() * sizeof(RowRange) + reads_->other_bytes();
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
