// Random use under every fault at once, each byte compared with the reference file. Short by default;
// EMBERGATE_SOAK_READS=10000000 makes it the long run (about an hour on two slow cores).
#include <cstdlib>
#include <deque>

#include "gtest/gtest.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

uint64_t SoakReads() {
  const char* wanted = getenv("EMBERGATE_SOAK_READS");
  return wanted != nullptr ? strtoull(wanted, nullptr, 10) : 6000;
}

class RowStoreSoakTest : public RowStoreReaderTest {};

INSTANTIATE_TEST_SUITE_P(Readers, RowStoreSoakTest, testing::Values(ReaderKind::kUring, ReaderKind::kPread),
                         ReaderName);

TEST_P(RowStoreSoakTest, EveryRowUnderFaultsIsRightOrSaysWhyNot) {
  TableSpec big = spec_;
  big.checksums = ChecksumsOf(data_, spec_, {4080, 9520});
  TableSpec small = spec_;  // over the same bytes
  small.file_offset = 33;
  small.row_bytes = 200;
  small.row_stride = 216;
  small.row_count = 9000;
  small.cached = false;
  small.checksums = ChecksumsOf(data_, small, {}, 4);
  const std::vector<TableSpec> tables = {big, small};

  FaultOptions faults;
  faults.seed = 20;
  faults.delay_ns_max = 50'000;
  faults.reorder = true;
  faults.io_error = 0.02;
  faults.interrupted = 0.02;
  faults.try_again = 0.02;
  faults.short_read = 0.05;
  faults.end_of_file = 0.01;
  faults.torn = 0.05;
  faults.late = 0.002;
  faults.late_ns = 40'000'000;
  faults.lost = 0.001;
  faults.lost_max = 3;  // each costs a buffer for good, and there are four to spare
  options_.test_hooks.faults = faults;
  options_.read_timeout_ms = 20;
  options_.read_attempts_max = 4;
  options_.queue_depth = 8;
  options_.cache_bytes = 600 << 10;
  options_.tickets_max = 6;
  options_.rows_per_ticket_max = 64;
  options_.rows_pinned_max = 200;
  Open(tables);

  struct Held {
    RowTicket ticket;
    std::vector<RowId> rows;
    uint64_t prefix = 0;
  };
  std::mt19937_64 random(options_.reader == ReaderKind::kUring ? 5 : 6);
  std::deque<Held> held;
  uint64_t compared = 0;
  uint64_t failed = 0;
  uint64_t refused = 0;
  const uint64_t reads = SoakReads();
  while (store_->Snapshot().reads < reads) {
    const uint64_t action = random() % 10;
    if (action < 5) {
      Held next;
      const uint64_t count = random() % 4 == 0 ? 64 : random() % 8;
      const uint64_t prefixes[] = {0, 0, 0, 4080, 100};
      next.prefix = prefixes[random() % 5];
      for (uint64_t i = 0; i < count; ++i) {
        const int table = random() % 3 == 0 && next.prefix <= 200 ? 1 : 0;
        const uint64_t row_count = tables[static_cast<size_t>(table)].row_count;
        next.rows.push_back({table, random() % 2 == 0 ? random() % row_count : random() % 20});
      }
      const bool one_table =
          std::all_of(next.rows.begin(), next.rows.end(), [](const RowId& row) { return row.table == 0; });
      absl::StatusOr<RowTicket> ticket;
      if (one_table && random() % 2 == 0) {
        std::vector<uint64_t> ids;
        for (const RowId& row : next.rows) {
          ids.push_back(row.row);
        }
        ticket = store_->Stage(0, ids, next.prefix);
        if (random() % 3 == 0) {
          store_->Send();
        }
      } else if (next.prefix == 0 && random() % 8 == 0) {
        ticket = store_->SubmitFresh(next.rows);
      } else {
        ticket = store_->SubmitRows(next.rows, next.prefix);
      }
      if (ticket.ok()) {
        next.ticket = *ticket;
        held.push_back(std::move(next));
      } else {
        ASSERT_EQ(ticket.status().code(), absl::StatusCode::kResourceExhausted) << ticket.status();
        ++refused;
      }
    } else if (action == 5) {
      store_->Poll();
    } else if (!held.empty()) {
      const size_t which = random() % held.size();
      const Held& done = held[which];
      if (action < 9) {
        const absl::Status status = store_->Wait(done.ticket);
        bool any_failed = false;
        for (size_t i = 0; i < done.rows.size(); ++i) {
          const absl::Status row_status = store_->RowStatus(done.ticket, i);
          if (!row_status.ok()) {
            ASSERT_TRUE(row_status.code() == absl::StatusCode::kDataLoss ||
                        row_status.code() == absl::StatusCode::kUnavailable)
                << row_status;
            ASSERT_TRUE(store_->Row(done.ticket, i).empty());
            any_failed = true;
            ++failed;
            continue;
          }
          ExpectRowOf(tables[static_cast<size_t>(done.rows[i].table)], done.ticket, i, done.rows[i].row, done.prefix);
          if (HasFatalFailure()) {
            return;
          }
          ++compared;
        }
        ASSERT_EQ(status.ok(), !any_failed);
      }
      store_->Release(done.ticket);  // for action 9: before anybody waited
      held.erase(held.begin() + static_cast<ptrdiff_t>(which));
    }
  }
  for (const Held& rest : held) {
    store_->Release(rest.ticket);
  }
  while (store_->Snapshot().in_flight + store_->Snapshot().backlog > 0) {
    usleep(1000);
    store_->Poll();
  }
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.rows_requested, stats.rows_deduplicated + stats.rows_joined + stats.cache_hits + stats.cache_misses);
  EXPECT_GT(compared, reads / 4);
  EXPECT_GT(stats.errors_checksum, 0u);
  EXPECT_GT(stats.errors_io, 0u);
  EXPECT_GT(stats.errors_short, 0u);
  // Nothing leaked: everything can be held once more.
  options_.test_hooks.faults.reset();
  for (uint64_t first = 0; first < 192; first += 64) {
    std::vector<RowId> rows;
    for (uint64_t row = first; row < first + 64; ++row) {
      rows.push_back({0, row});
    }
    auto ticket = store_->SubmitRows(rows);
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    (void)store_->Wait(*ticket);
  }
  printf("%llu reads: %llu rows compared, %llu failed with a status, %llu submissions refused, %llu timeouts\n",
         static_cast<unsigned long long>(stats.reads), static_cast<unsigned long long>(compared),
         static_cast<unsigned long long>(failed), static_cast<unsigned long long>(refused),
         static_cast<unsigned long long>(stats.errors_timeout));
}

}  // namespace
}  // namespace embergate::storage
