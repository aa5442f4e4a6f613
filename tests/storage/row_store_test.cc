// The contract of the row store, over both readers on a real file.
#include "storage/row_store.h"

#include <numeric>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/table_file.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

using testing::HasSubstr;

INSTANTIATE_TEST_SUITE_P(Readers, RowStoreReaderTest, testing::Values(ReaderKind::kUring, ReaderKind::kPread),
                         ReaderName);

TEST_P(RowStoreReaderTest, EveryByteOfEveryRowIsTheFiles) {
  Open();
  std::vector<uint64_t> rows(kRows);
  std::iota(rows.begin(), rows.end(), 0);
  std::shuffle(rows.begin(), rows.end(), std::mt19937_64(3));
  for (size_t i = 0; i < rows.size(); i += 100) {
    ReadAndCompare({rows.begin() + static_cast<ptrdiff_t>(i), rows.begin() + static_cast<ptrdiff_t>(i + 100)});
  }
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.backend, GetParam() == ReaderKind::kUring ? "io_uring" : "pread");
  EXPECT_EQ(stats.rows_requested, kRows);
  EXPECT_EQ(stats.rows_read, kRows);
  EXPECT_EQ(stats.bytes_useful, kRows * spec_.row_bytes);
  EXPECT_EQ(stats.in_flight, 0u);
}

TEST_P(RowStoreReaderTest, ALoneRowCostsTheFewestBlocksThatHoldIt) {
  options_.cache_bytes = 0;
  Open();
  if (!store_->Snapshot().direct_io) {
    GTEST_SKIP() << "no O_DIRECT on this file system: " << store_->Snapshot().direct_reason;
  }
  ReadAndCompare({7});
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.reads, 1u);
  const auto file = TableFile::Open(path_, true);
  ASSERT_TRUE(file.ok());
  const uint64_t block = file->alignment();  // the smallest that works: see table_file_test
  const uint64_t begin = 1344 + 7 * 9520;
  EXPECT_EQ(stats.bytes_read, ((begin + 9520 + block - 1) / block - begin / block) * block);
}

TEST_P(RowStoreReaderTest, DuplicatesAreReadOnce) {
  Open();
  ReadAndCompare({5, 200, 5, 5, 200});
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.rows_requested, 5u);
  EXPECT_EQ(stats.rows_deduplicated, 3u);
  EXPECT_EQ(stats.rows_read, 2u);
  EXPECT_EQ(stats.reads, 2u);
}

TEST_P(RowStoreReaderTest, AdjacentRowsBecomeOneRead) {
  Open();
  options_.read_bytes_max = 1 << 20;
  Open();
  ReadAndCompare({12, 10, 11, 13, 300});
  EXPECT_EQ(store_->Snapshot().reads, 2u);
}

TEST_P(RowStoreReaderTest, ASecondSubmissionOfTheSameRowsHitsTheCache) {
  Open();
  ReadAndCompare({1, 2, 3});
  ReadAndCompare({3, 2, 1});
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.cache_misses, 3u);
  EXPECT_EQ(stats.cache_hits, 3u);
  EXPECT_EQ(stats.rows_read, 3u);
}

TEST_P(RowStoreReaderTest, RowsInFlightAreJoinedNotReadAgain) {
  options_.test_hooks.faults = FaultOptions();
  options_.test_hooks.faults->delay_ns_min = options_.test_hooks.faults->delay_ns_max = 5'000'000;
  Open();
  auto first = store_->Submit(0, std::vector<uint64_t>{8, 9});
  auto second = store_->Submit(0, std::vector<uint64_t>{9, 8});
  ASSERT_TRUE(first.ok() && second.ok());
  ASSERT_TRUE(store_->Wait(*second).ok());
  ExpectRow(*second, 0, 9);
  ExpectRow(*second, 1, 8);
  ASSERT_TRUE(store_->Wait(*first).ok());
  ExpectRow(*first, 0, 8);
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.rows_joined, 2u);
  EXPECT_EQ(stats.rows_read, 2u);
  EXPECT_GE(stats.stall_ns, 4'000'000u);
}

TEST_P(RowStoreReaderTest, StagedSubmissionsBecomeOneBatch) {
  options_.read_bytes_max = 1 << 20;
  Open();
  // Eight sequences; two of them want the same row, two want neighbours.
  const std::vector<uint64_t> rows = {30, 200, 7, 31, 200, 90, 300, 150};
  std::vector<RowTicket> tickets;
  for (const uint64_t row : rows) {
    auto ticket = store_->Stage(0, absl::MakeConstSpan(&row, 1));
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    tickets.push_back(*ticket);
  }
  EXPECT_EQ(store_->Snapshot().batches, 0u);
  EXPECT_EQ(store_->Snapshot().in_flight, 0u);
  store_->Send();
  EXPECT_EQ(store_->Snapshot().batches, 1u);
  EXPECT_EQ(store_->Snapshot().in_flight, 6u);
  store_->Send();  // nothing is left to send
  for (size_t i = 0; i < rows.size(); ++i) {
    ASSERT_TRUE(store_->Wait(tickets[i]).ok());
    ExpectRow(tickets[i], 0, rows[i]);
    store_->Release(tickets[i]);
  }
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.batches, 1u);
  EXPECT_EQ(stats.rows_joined, 1u);
  EXPECT_EQ(stats.rows_read, 7u);
  EXPECT_EQ(stats.reads, 6u);
}

TEST_P(RowStoreReaderTest, ASubmissionKnowsWhatItCost) {
  Open();
  ReadAndCompare({1, 2});
  const std::vector<uint64_t> rows = {1, 2, 50, 1, 99, 99};
  auto ticket = store_->Submit(0, rows);
  ASSERT_TRUE(ticket.ok() && store_->Wait(*ticket).ok());
  const RowCounts counts = store_->Counts(*ticket);
  EXPECT_EQ(counts.found, 2u);
  EXPECT_EQ(counts.read, 2u);
  EXPECT_GE(counts.device_bytes, 2 * spec_.row_bytes);
  EXPECT_LE(counts.device_bytes, 2 * (spec_.row_bytes + 8192));
  store_->Release(*ticket);
  EXPECT_EQ(store_->Counts(*ticket).read, 0u);
}

TEST_P(RowStoreReaderTest, AnUnsentSubmissionIsSentByWhoeverWaitsForIt) {
  Open();
  const std::vector<uint64_t> rows = {1, 100};
  auto staged = store_->Stage(0, rows);
  auto another = store_->Stage(0, rows, 4000);
  ASSERT_TRUE(staged.ok() && another.ok());
  ASSERT_TRUE(store_->Wait(*staged).ok());
  ExpectRow(*staged, 1, 100);
  ExpectRow(*another, 0, 1, 4000);
}

TEST_P(RowStoreReaderTest, StagedRowsThatAreReleasedUnsentAreNotRead) {
  Open();
  const std::vector<uint64_t> rows = RandomRows(150, kRows, 12);
  auto staged = store_->Stage(0, rows);
  ASSERT_TRUE(staged.ok());
  store_->Release(*staged);
  store_->Send();
  EXPECT_EQ(store_->Snapshot().in_flight + store_->Snapshot().backlog, 0u);
  ReadAndCompare(RandomRows(200, kRows, 13));  // all held rows are free again
}

TEST_P(RowStoreReaderTest, MoreStagedRowsThanABatchHoldsAreSentInTwo) {
  options_.rows_per_ticket_max = 100;
  Open();
  std::vector<RowTicket> tickets;
  for (uint64_t first = 0; first < 240; first += 60) {
    std::vector<uint64_t> rows(60);
    std::iota(rows.begin(), rows.end(), first);
    auto ticket = store_->Stage(0, rows);
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    tickets.push_back(*ticket);
  }
  for (size_t i = 0; i < tickets.size(); ++i) {
    ASSERT_TRUE(store_->Wait(tickets[i]).ok());
    ExpectRow(tickets[i], 59, 60 * i + 59);
  }
}

TEST_P(RowStoreReaderTest, AFailedStageLeavesEarlierOnesAlone) {
  Open();
  auto good = store_->Stage(0, std::vector<uint64_t>{4, 5});
  EXPECT_EQ(store_->Stage(0, std::vector<uint64_t>{5, 6, kRows}).status().code(), absl::StatusCode::kOutOfRange);
  ASSERT_TRUE(good.ok());
  ASSERT_TRUE(store_->Wait(*good).ok());
  ExpectRow(*good, 1, 5);
  EXPECT_EQ(store_->Snapshot().rows_read, 2u);
}

TEST_P(RowStoreReaderTest, AFreshReadAsksTheDeviceAgain) {
  Open();
  ReadAndCompare({3, 4});
  auto held = store_->Submit(0, std::vector<uint64_t>{3});
  const std::vector<RowId> rows = {{0, 3}, {0, 4}, {0, 3}};
  auto fresh = store_->SubmitFresh(rows);
  ASSERT_TRUE(held.ok() && fresh.ok());
  ASSERT_TRUE(store_->Wait(*fresh).ok());
  EXPECT_EQ(store_->Snapshot().rows_read, 4u);
  ExpectRow(*fresh, 2, 3);
  ExpectRow(*held, 0, 3);
  store_->Release(*held);
  store_->Release(*fresh);
  ReadAndCompare({3, 4});
  EXPECT_EQ(store_->Snapshot().rows_read, 4u);  // cached as before
}

TEST_P(RowStoreReaderTest, MoreRowsThanTheQueueDepthAllArrive) {
  options_.queue_depth = 4;
  Open();
  ReadAndCompare(RandomRows(256, kRows, 5));
}

TEST_P(RowStoreReaderTest, QueueDepthOneWorks) {
  options_.queue_depth = 1;
  Open();
  ReadAndCompare(RandomRows(40, kRows, 6));
}

TEST_P(RowStoreReaderTest, AnUncachedTableIsReadAgain) {
  spec_.cached = false;
  Open();
  ReadAndCompare({1, 2});
  ReadAndCompare({1, 2});
  EXPECT_EQ(store_->Snapshot().cache_hits, 0u);
  EXPECT_EQ(store_->Snapshot().rows_read, 4u);
}

TEST_P(RowStoreReaderTest, CacheOfZeroBytesKeepsNothing) {
  options_.cache_bytes = 0;
  Open();
  ReadAndCompare({1});
  ReadAndCompare({1});
  EXPECT_EQ(store_->Snapshot().rows_read, 2u);
  EXPECT_EQ(store_->Snapshot().cache_bytes, 0u);
}

TEST_P(RowStoreReaderTest, APrefixReadsOnlyItsBlocks) {
  Open();
  ReadAndCompare({17}, 1000);
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.bytes_useful, 1000u);
  EXPECT_LT(stats.bytes_read, 9520u);
}

TEST_P(RowStoreReaderTest, ACachedPrefixNeverAnswersForTheWholeRow) {
  Open();
  ReadAndCompare({17, 18}, 1000);
  ReadAndCompare({17, 18});
  ReadAndCompare({17, 18}, 2000);  // now a hit
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.cache_misses, 4u);
  EXPECT_EQ(stats.cache_hits, 2u);
}

TEST_P(RowStoreReaderTest, APinnedPrefixOutlivesTheWholeRowThatReplacesIt) {
  Open();
  auto prefix = store_->Submit(0, std::vector<uint64_t>{30}, 500);
  ASSERT_TRUE(store_->Wait(*prefix).ok());
  ReadAndCompare({30});
  ExpectRow(*prefix, 0, 30, 500);
  store_->Release(*prefix);
  ReadAndCompare({30});
}

TEST_P(RowStoreReaderTest, RowsStayPutWhileATicketHoldsThem) {
  options_.cache_bytes = 64 << 10;
  Open();
  auto held = store_->Submit(0, std::vector<uint64_t>{42, 43});
  ASSERT_TRUE(store_->Wait(*held).ok());
  const uint8_t* address = store_->Row(*held, 0).data();
  for (uint64_t seed = 0; seed < 5; ++seed) {
    ReadAndCompare(RandomRows(200, kRows, seed));
  }
  EXPECT_EQ(store_->Row(*held, 0).data(), address);
  ExpectRow(*held, 0, 42);
  ExpectRow(*held, 1, 43);
}

TEST_P(RowStoreReaderTest, SeveralTablesInSeveralFiles) {
  const std::string other = dir_.File("other");
  WriteFile(other, data_);
  TableSpec small;
  small.path = other;
  small.file_offset = 13;
  small.row_bytes = 200;
  small.row_stride = 232;
  small.row_count = 5000;
  small.cached = false;
  TableSpec same_file = spec_;
  same_file.file_offset = 100;
  same_file.row_count = 50;
  Open({spec_, small, same_file});
  std::vector<RowId> rows;
  for (uint64_t i = 0; i < 120; ++i) {
    rows.push_back({static_cast<int>(i % 3), i * 7 % (i % 3 == 0 ? kRows : i % 3 == 1 ? 5000 : 50)});
  }
  auto ticket = store_->SubmitRows(rows);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  ASSERT_TRUE(store_->Wait(*ticket).ok());
  for (size_t i = 0; i < rows.size(); ++i) {
    ExpectRowOf(i % 3 == 0 ? spec_ : i % 3 == 1 ? small : same_file, *ticket, i, rows[i].row);
  }
  store_->Release(*ticket);
}

TEST_P(RowStoreReaderTest, TheLastRowOfAFileThatEndsInTheMiddleOfABlock) {
  data_.resize(1344 + 9520 * kRows);  // no padding behind the last row
  WriteFile(path_, data_);
  Open();
  ReadAndCompare({kRows - 1, 0});
  ReadAndCompare({kRows - 1}, 10);
}

TEST_P(RowStoreReaderTest, AnEmptySubmissionIsReadyAtOnce) {
  Open();
  auto ticket = store_->Submit(0, {});
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(store_->Ready(*ticket));
  EXPECT_TRUE(store_->Wait(*ticket).ok());
  EXPECT_TRUE(store_->Row(*ticket, 0).empty());
}

TEST_P(RowStoreReaderTest, ARowOutOfRangeIsNamedAndNothingIsHeld) {
  options_.rows_pinned_max = 4;
  Open();
  for (int i = 0; i < 20; ++i) {
    auto ticket = store_->Submit(0, std::vector<uint64_t>{1, 2, kRows});
    ASSERT_EQ(ticket.status().code(), absl::StatusCode::kOutOfRange);
    EXPECT_THAT(std::string(ticket.status().message()), HasSubstr("row 400 "));
  }
  EXPECT_EQ(store_->Submit(1, std::vector<uint64_t>{0}).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(store_->Submit(0, std::vector<uint64_t>{0}, 9521).status().code(), absl::StatusCode::kOutOfRange);
  ReadAndCompare({1, 2, 3, 4});
}

TEST_P(RowStoreReaderTest, BoundsAreRefusedAndRecoverable) {
  options_.rows_pinned_max = 10;
  options_.tickets_max = 2;
  options_.rows_per_ticket_max = 12;
  Open();
  EXPECT_EQ(store_->Submit(0, std::vector<uint64_t>(13, 1)).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store_->Submit(0, std::vector<uint64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}).status().code(),
            absl::StatusCode::kResourceExhausted);
  auto first = store_->Submit(0, std::vector<uint64_t>{0, 1, 2, 3, 4});
  auto second = store_->Submit(0, std::vector<uint64_t>{5, 6, 7, 8, 9});
  ASSERT_TRUE(first.ok() && second.ok()) << first.status() << second.status();
  EXPECT_EQ(store_->Submit(0, std::vector<uint64_t>{0}).status().code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(store_->Wait(*first).ok());
  ASSERT_TRUE(store_->Wait(*second).ok());
  store_->Release(*first);
  ReadAndCompare({20, 21, 22, 23, 24});
  ExpectRow(*second, 4, 9);
}

TEST_P(RowStoreReaderTest, ReleasingBeforeWaitIsAllowed) {
  options_.queue_depth = 2;
  Open();
  for (uint64_t seed = 0; seed < 20; ++seed) {
    auto ticket = store_->Submit(0, RandomRows(100, kRows, seed));
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    store_->Release(*ticket);
  }
  ReadAndCompare(RandomRows(100, kRows, 99));
  store_->Poll();
}

TEST_P(RowStoreReaderTest, AReleasedTicketIsNotTheNextOne) {
  Open();
  auto first = store_->Submit(0, std::vector<uint64_t>{1});
  ASSERT_TRUE(store_->Wait(*first).ok());
  store_->Release(*first);
  auto second = store_->Submit(0, std::vector<uint64_t>{2});
  ASSERT_TRUE(store_->Wait(*second).ok());
  EXPECT_EQ(store_->Wait(*first).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(store_->Row(*first, 0).empty());
  store_->Release(*first);  // nothing
  ExpectRow(*second, 0, 2);
}

TEST_P(RowStoreReaderTest, PollAloneBringsEverything) {
  options_.queue_depth = 4;
  Open();
  const std::vector<uint64_t> rows = RandomRows(64, kRows, 8);
  auto ticket = store_->Submit(0, rows);
  for (int i = 0; i < 200'000 && store_->Snapshot().in_flight + store_->Snapshot().backlog > 0; ++i) {
    store_->Poll();
    usleep(100);
  }
  EXPECT_TRUE(store_->Ready(*ticket));
  ASSERT_TRUE(store_->Wait(*ticket).ok());
  EXPECT_EQ(store_->Snapshot().stall_ns, 0u);
  for (size_t i = 0; i < rows.size(); ++i) {
    ExpectRow(*ticket, i, rows[i]);
  }
}

TEST_P(RowStoreReaderTest, AShortSubmissionOvertakesALongOne) {
  options_.queue_depth = 2;
  options_.test_hooks.faults = FaultOptions();
  options_.test_hooks.faults->delay_ns_min = options_.test_hooks.faults->delay_ns_max =
      10'000'000;  // a quarter of a second for all of them
  Open();
  std::vector<uint64_t> many;
  for (uint64_t row = 0; row < 100; row += 2) {
    many.push_back(row);
  }
  auto prefill = store_->Submit(0, many);
  auto decode = store_->Submit(0, std::vector<uint64_t>{301});
  ASSERT_TRUE(store_->Wait(*decode).ok());
  EXPECT_FALSE(store_->Ready(*prefill));
  EXPECT_GT(store_->Snapshot().backlog, 30u);
  ASSERT_TRUE(store_->Wait(*prefill).ok());
}

TEST_P(RowStoreReaderTest, TheOwnerNeedNotBeTheCreator) {
  Open();
  std::thread owner([&] { ReadAndCompare(RandomRows(200, kRows, 11)); });
  std::thread watcher([&] {
    for (int i = 0; i < 100; ++i) {
      EXPECT_LE(store_->Snapshot().in_flight, 32u);
    }
  });
  owner.join();
  watcher.join();
  EXPECT_GT(store_->Snapshot().rows_read, 0u);
}

TEST_P(RowStoreReaderTest, AStoreMayDieWithReadsInFlight) {
  Open();
  auto ticket = store_->Submit(0, RandomRows(200, kRows, 12));
  ASSERT_TRUE(ticket.ok());
  store_.reset();
}

TEST_P(RowStoreReaderTest, MemoryIsItemisedAndFollowsTheOptions) {
  Open();
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_LE(stats.cache_bytes, options_.cache_bytes);
  EXPECT_GT(stats.cache_bytes, options_.cache_bytes * 9 / 10);
  EXPECT_GE(stats.held_bytes, 300u * 9520);
  EXPECT_GE(stats.buffer_bytes, 32u * 10240);
  EXPECT_GT(stats.other_bytes, 0u);
}

TEST_P(RowStoreReaderTest, HotRowsNameWhatIsCached) {
  Open();
  ReadAndCompare({1, 2, 3});
  std::vector<RowId> hot = store_->HotRows(10);
  ASSERT_EQ(hot.size(), 3u);
  Open();
  auto ticket = store_->SubmitRows(hot);
  ASSERT_TRUE(store_->Wait(*ticket).ok());
  store_->Release(*ticket);
  ReadAndCompare({1, 2, 3});
  EXPECT_EQ(store_->Snapshot().cache_hits, 3u);
}

TEST_F(RowStoreFixture, AKernelThreadMaySubmit) {
  options_.submission_polling = true;
  options_.queue_depth = 8;
  Open();
  if (store_->Snapshot().backend != "io_uring") {
    GTEST_SKIP() << store_->Snapshot().backend_reason;
  }
  for (uint64_t seed = 0; seed < 5; ++seed) {
    ReadAndCompare(RandomRows(100, kRows, seed));
    usleep(10'000);  // it falls asleep meanwhile, and has to be woken
  }
}

TEST_F(RowStoreFixture, BadSpecsAreRefusedWithAReason) {
  const auto code = [&](TableSpec spec) { return RowStore::Create({std::move(spec)}, options_).status().code(); };
  TableSpec spec = spec_;
  spec.row_bytes = 0;
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec = spec_;
  spec.row_stride = 9519;
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec = spec_;
  spec.row_count = UINT64_MAX / 9520 + 2;
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec = spec_;
  spec.file_offset = UINT64_MAX - 10;
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec = spec_;
  spec.row_bytes = uint64_t{1} << 60;
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec = spec_;
  spec.row_count = kRows + 1;
  EXPECT_EQ(code(spec), absl::StatusCode::kDataLoss);
  spec = spec_;
  spec.path += ".absent";
  EXPECT_EQ(code(spec), absl::StatusCode::kNotFound);
  spec = spec_;
  spec.path = "/dev/null";
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec = spec_;
  spec.checksums.crcs.assign(kRows - 1, 0);
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  spec = spec_;
  spec.checksums.crcs.assign(2 * kRows, 0);
  spec.checksums.segment_ends = {5000, 9519};
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(RowStore::Create({}, options_).status().code(), absl::StatusCode::kInvalidArgument);
  options_.queue_depth = 0;
  EXPECT_EQ(code(spec_), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace embergate::storage
