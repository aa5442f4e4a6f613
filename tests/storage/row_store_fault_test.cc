// What the row store does when the device, the kernel or the file misbehaves. Rows are right or their status says why
// not: never zeros, never another row.
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/page_cache.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

using testing::HasSubstr;

class RowStoreFaultTest : public RowStoreReaderTest {
 protected:
  RowStoreFaultTest() {
    options_.cache_bytes = 0;
    options_.test_hooks.faults = FaultOptions();
  }
  FaultOptions& faults() { return *options_.test_hooks.faults; }
  RowTicket SubmitAndWait(const std::vector<uint64_t>& rows, absl::Status* status) {
    auto ticket = store_->Submit(0, rows);
    EXPECT_TRUE(ticket.ok()) << ticket.status();
    *status = store_->Wait(*ticket);
    return *ticket;
  }
};

INSTANTIATE_TEST_SUITE_P(Readers, RowStoreFaultTest, testing::Values(ReaderKind::kUring, ReaderKind::kPread),
                         ReaderName);

TEST_P(RowStoreFaultTest, AnIoErrorIsRetried) {
  faults().io_error = 1;
  faults().faults_max = 2;
  Open();
  ReadAndCompare({3});
  EXPECT_EQ(store_->Snapshot().errors_io, 2u);
  EXPECT_EQ(store_->Snapshot().retries, 2u);
  EXPECT_EQ(store_->Snapshot().failures_in_a_row, 0u);
}

TEST_P(RowStoreFaultTest, ALastingIoErrorEndsUnavailableAndNamesTheRow) {
  faults().io_error = 1;
  Open();
  absl::Status status;
  const RowTicket ticket = SubmitAndWait({3, 5}, &status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 3 of table 0"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
  EXPECT_THAT(std::string(status.message()), HasSubstr("byte 29904"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("Input/output error"));
  EXPECT_TRUE(store_->Row(ticket, 0).empty());
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_EQ(stats.rows_failed, 2u);
  EXPECT_EQ(stats.failures_in_a_row, 2u);
  EXPECT_EQ(stats.errors_io, 6u);
  EXPECT_EQ(stats.rows_read, 0u);
}

TEST_P(RowStoreFaultTest, OneBadBlockCostsOneRowOfAMergedRead) {
  // The middle of row 11, inside the read that brings rows 10 to 12.
  faults().bad_begin = 1344 + 11 * 9520 + 4000;
  faults().bad_end = faults().bad_begin + 100;
  options_.read_bytes_max = 1 << 20;
  Open();
  absl::Status status;
  const RowTicket ticket = SubmitAndWait({10, 11, 12, 300}, &status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  ExpectRow(ticket, 0, 10);
  EXPECT_EQ(store_->RowStatus(ticket, 1).code(), absl::StatusCode::kUnavailable);
  ExpectRow(ticket, 2, 12);
  ExpectRow(ticket, 3, 300);
  EXPECT_EQ(store_->Snapshot().rows_failed, 1u);
  store_->Release(ticket);
  ReadAndCompare({10, 12});
}

TEST_P(RowStoreFaultTest, AFailedRowIsTriedAgainByTheNextSubmission) {
  options_.cache_bytes = 1 << 20;
  faults().io_error = 1;
  faults().faults_max = 3;
  Open();
  absl::Status status;
  const RowTicket ticket = SubmitAndWait({3}, &status);
  EXPECT_FALSE(status.ok());
  ReadAndCompare({3});  // while the failed one is still held
  EXPECT_FALSE(store_->RowStatus(ticket, 0).ok());
  store_->Release(ticket);
  ReadAndCompare({3});
  EXPECT_EQ(store_->Snapshot().failures_in_a_row, 0u);
  EXPECT_EQ(store_->Snapshot().cache_hits, 1u);
}

TEST_P(RowStoreFaultTest, InterruptedAndTryAgainAreNotErrors) {
  faults().interrupted = 0.25;
  faults().try_again = 0.25;
  Open();
  ReadAndCompare(RandomRows(100, kRows, 1));
  EXPECT_EQ(store_->Snapshot().errors_io, 0u);
  EXPECT_GT(store_->Snapshot().retries, 50u);
}

TEST_P(RowStoreFaultTest, EndlessInterruptionsAreBounded) {
  faults().interrupted = 1;
  Open();
  absl::Status status;
  SubmitAndWait({1}, &status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
}

TEST_P(RowStoreFaultTest, AShortReadIsCompletedByASecondRead) {
  faults().short_read = 0.7;
  Open();
  ReadAndCompare(RandomRows(100, kRows, 2));
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_GT(stats.errors_short, 0u);
  EXPECT_EQ(stats.rows_failed, 0u);
}

// These count in pages, 16 KiB on some boards; what came, a few sectors, has to be progress all the same.
TEST_P(RowStoreFaultTest, AShortBufferedReadIsCompletedToo) {
  options_.direct_io = false;
  faults().short_read = 0.7;
  Open();
  ReadAndCompare(RandomRows(100, kRows, 2));
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_GT(stats.errors_short, 0u);
  EXPECT_EQ(stats.rows_failed, 0u);
}

TEST_P(RowStoreFaultTest, AnEndOfFileThatGoesAwayIsRetried) {
  faults().end_of_file = 1;
  faults().faults_max = 2;
  Open();
  ReadAndCompare({7});
}

TEST_P(RowStoreFaultTest, AnEndOfFileThatStaysIsDataLoss) {
  faults().end_of_file = 1;
  Open();
  absl::Status status;
  SubmitAndWait({7}, &status);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 7 "));
}

TEST_P(RowStoreFaultTest, CompletionsInAnyOrder) {
  faults().reorder = true;
  faults().delay_ns_max = 300'000;
  Open();
  for (uint64_t seed = 0; seed < 5; ++seed) {
    ReadAndCompare(RandomRows(100, kRows, seed));
  }
}

TEST_P(RowStoreFaultTest, ALostCompletionIsRecoveredByATimeout) {
  faults().lost = 1;
  faults().lost_max = 2;
  options_.read_timeout_ms = 500;  // no other read is as late, on a slow machine either
  Open();
  ReadAndCompare({1, 100, 200});
  EXPECT_EQ(store_->Snapshot().errors_timeout, 2u);
  EXPECT_EQ(store_->Snapshot().rows_failed, 0u);
  EXPECT_EQ(store_->Snapshot().in_flight, 0u);
}

TEST_P(RowStoreFaultTest, ALateCompletionGivesItsBufferBackAndHarmsNothing) {
  faults().late = 1;
  faults().late_ns = 60'000'000;
  faults().faults_max = 6;
  options_.queue_depth = 2;
  options_.read_timeout_ms = 25;
  options_.read_attempts_max = 10;
  Open();
  // 2 + 4 spare buffers: all are given up, and the store goes on with those that come back.
  ReadAndCompare(RandomRows(10, kRows, 4));
  std::this_thread::sleep_for(std::chrono::milliseconds(70));
  ReadAndCompare(RandomRows(100, kRows, 5));
  EXPECT_GE(store_->Snapshot().errors_timeout, 4u);
}

TEST_P(RowStoreFaultTest, ADeviceThatNeverAnswersEndsUnavailable) {
  faults().lost = 1;
  faults().lost_max = UINT64_MAX;
  options_.read_timeout_ms = 10;
  options_.queue_depth = 2;
  Open();
  absl::Status status;
  const RowTicket ticket = SubmitAndWait({1, 100, 200, 300}, &status);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("did not answer"));
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_FALSE(store_->RowStatus(ticket, i).ok());
  }
  store_->Release(ticket);
  auto again = store_->Submit(0, std::vector<uint64_t>{5});
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(store_->Wait(*again).code(), absl::StatusCode::kUnavailable);
}

TEST_P(RowStoreFaultTest, AReaderThatBreaksDownFailsWhatWaitsAndTakesNoMore) {
  faults().flushes_max = 1;
  options_.read_timeout_ms = 200;
  Open();
  absl::Status status;
  store_->Release(SubmitAndWait({1, 2}, &status));
  ASSERT_TRUE(status.ok()) << status;
  auto staged = store_->Stage(0, std::vector<uint64_t>{7});
  auto also_staged = store_->Stage(0, std::vector<uint64_t>{8, 9});
  ASSERT_TRUE(staged.ok() && also_staged.ok());
  store_->Send();
  for (const RowTicket ticket : {*staged, *also_staged}) {
    EXPECT_EQ(store_->Wait(ticket).code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(store_->Wait(ticket).message()), HasSubstr("broke down"));
    EXPECT_TRUE(store_->Row(ticket, 0).empty());
    store_->Release(ticket);
  }
  EXPECT_EQ(store_->Submit(0, std::vector<uint64_t>{3}).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(store_->Stage(0, std::vector<uint64_t>{3}).status().code(), absl::StatusCode::kUnavailable);
  // Those that are refused count too: readiness has to go down and stay down.
  EXPECT_EQ(store_->Snapshot().rows_failed, 5u);
  EXPECT_EQ(store_->Snapshot().failures_in_a_row, 5u);
}

TEST_P(RowStoreFaultTest, TornDataIsCaughtByTheChecksumAndReadAgain) {
  faults().torn = 0.3;
  options_.read_attempts_max = 20;
  spec_.checksums = ChecksumsOf(data_, spec_);
  Open();
  ReadAndCompare(RandomRows(200, kRows, 6));
  // Some tears hit only the block's bytes outside the row.
  EXPECT_GT(store_->Snapshot().errors_checksum, 20u);
  EXPECT_EQ(store_->Snapshot().rows_failed, 0u);
}

TEST_P(RowStoreFaultTest, AFileSystemThatRefusesDirectReadsIsReadBuffered) {
  faults().refuse_all = true;
  faults().refusals = 5;
  Open();
  if (!store_->Snapshot().direct_io) {
    GTEST_SKIP() << "no O_DIRECT here in the first place";
  }
  DropCache(path_);
  ReadAndCompare(RandomRows(100, kRows, 7));
  const RowStoreStats stats = store_->Snapshot();
  EXPECT_FALSE(stats.direct_io);
  EXPECT_FALSE(stats.direct_reason.empty());
  EXPECT_EQ(stats.rows_failed, 0u);
  // Its blocks are still those of direct reads, less than pages; the pages go all the same.
  EXPECT_LT(CachedPages(path_), 10u);
}

TEST_P(RowStoreFaultTest, LatenciesOfASlowDeviceAreInTheHistogram) {
  faults().delay_ns_min = faults().delay_ns_max = 2'000'000;
  Open();
  ReadAndCompare({1});
  ReadAndCompare({2});
  const RowStoreStats stats = store_->Snapshot();
  uint64_t above_2_ms = 0;
  for (size_t i = 7; i < stats.read_latency.counts.size(); ++i) {
    above_2_ms += stats.read_latency.counts[i];
  }
  EXPECT_EQ(above_2_ms, 2u);
  EXPECT_GE(stats.read_latency.sum_ns, 4'000'000u);
}

// ---- Files that are not what they were ----

class RowStoreIntegrityTest : public RowStoreReaderTest {
 protected:
  void Overwrite(uint64_t offset, const std::vector<uint8_t>& bytes) {
    const int fd = open(path_.c_str(), O_WRONLY);
    ASSERT_EQ(pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset)), static_cast<ssize_t>(bytes.size()));
    ASSERT_EQ(fsync(fd), 0);
    close(fd);
  }
};

INSTANTIATE_TEST_SUITE_P(Readers, RowStoreIntegrityTest, testing::Values(ReaderKind::kUring, ReaderKind::kPread),
                         ReaderName);

TEST_P(RowStoreIntegrityTest, AFlippedBitIsDataLossOfThatRowAlone) {
  spec_.checksums = ChecksumsOf(data_, spec_);
  Overwrite(1344 + 9 * 9520 + 5000, {static_cast<uint8_t>(data_[1344 + 9 * 9520 + 5000] ^ 16)});
  Open();
  auto ticket = store_->Submit(0, std::vector<uint64_t>{8, 9, 10});
  const absl::Status status = store_->Wait(*ticket);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 9 of table 0"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("checksum"));
  ExpectRow(*ticket, 0, 8);
  EXPECT_TRUE(store_->Row(*ticket, 1).empty());
  ExpectRow(*ticket, 2, 10);
  EXPECT_EQ(store_->Snapshot().errors_checksum, 3u);
}

TEST_P(RowStoreIntegrityTest, APrefixIsCheckedByItsOwnSegment) {
  spec_.checksums = ChecksumsOf(data_, spec_, {4080, 9520});
  Overwrite(1344 + 9 * 9520 + 5000, {static_cast<uint8_t>(data_[1344 + 9 * 9520 + 5000] ^ 16)});
  Open();
  ReadAndCompare({9, 10}, 4080);  // the damage lies behind it
  ReadAndCompare({9, 10}, 100);   // rounded up to the segment: a hit
  EXPECT_EQ(store_->Snapshot().cache_hits, 2u);
  auto ticket = store_->Submit(0, std::vector<uint64_t>{9}, 4081);
  EXPECT_EQ(store_->Wait(*ticket).code(), absl::StatusCode::kDataLoss);
}

TEST_P(RowStoreIntegrityTest, GroupsOfRowsUnderOneChecksum) {
  spec_.row_bytes = 200;
  spec_.row_stride = 232;
  spec_.row_count = 4003;
  spec_.checksums = ChecksumsOf(data_, spec_, {}, 16);
  Overwrite(1344 + 1000 * 232 + 7, {static_cast<uint8_t>(data_[1344 + 1000 * 232 + 7] ^ 1)});
  Overwrite(1344 + 2000 * 232 + 210, {1, 2, 3});  // in the gap behind row 2000: nobody's business
  Open();
  ReadAndCompare({0, 15, 16, 4002, 2000, 2001});
  auto ticket = store_->Submit(0, std::vector<uint64_t>{1007, 1008});
  EXPECT_EQ(store_->Wait(*ticket).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(store_->RowStatus(*ticket, 0).code(), absl::StatusCode::kDataLoss);
  ExpectRow(*ticket, 1, 1008);
}

TEST_P(RowStoreIntegrityTest, AFileWrittenToWhileOpenIsDataLoss) {
  Open();
  ReadAndCompare({1, 2});
  std::this_thread::sleep_for(std::chrono::milliseconds(10));  // a tick of the file system's clock
  Overwrite(1344 + 50 * 9520, std::vector<uint8_t>(100, 7));
  auto ticket = store_->Submit(0, std::vector<uint64_t>{100});
  const absl::Status status = store_->Wait(*ticket);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("row 100 "));
  EXPECT_EQ(store_->Snapshot().errors_changed, 1u);
  ReadAndCompare({1, 2});  // cached before the change: still the model's rows
}

TEST_P(RowStoreIntegrityTest, ChecksumsOutvoteATouchedFile) {
  spec_.checksums = ChecksumsOf(data_, spec_);
  Open();
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  Overwrite(1344 + 50 * 9520, std::vector<uint8_t>(100, 7));
  ReadAndCompare({100});
  auto ticket = store_->Submit(0, std::vector<uint64_t>{50});
  EXPECT_EQ(store_->Wait(*ticket).code(), absl::StatusCode::kDataLoss);
}

TEST_P(RowStoreIntegrityTest, ATruncatedFileIsDataLoss) {
  Open();
  ASSERT_EQ(truncate(path_.c_str(), 1344 + 100 * 9520), 0);
  auto ticket = store_->Submit(0, std::vector<uint64_t>{99, 100, 399});
  EXPECT_EQ(store_->Wait(*ticket).code(), absl::StatusCode::kDataLoss);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(store_->RowStatus(*ticket, i).code(), absl::StatusCode::kDataLoss) << i;
  }
}

TEST_P(RowStoreIntegrityTest, AFileReplacedByRenamingStaysReadable) {
  Open();
  const std::string other = dir_.File("other");
  WriteFile(other, RandomBytes(data_.size(), 77));
  ASSERT_EQ(rename(other.c_str(), path_.c_str()), 0);
  ReadAndCompare(RandomRows(50, kRows, 3));  // the old file, by its descriptor
}

// ---- Buffered reads ----

TEST_P(RowStoreReaderTest, BufferedReadsLeaveNothingInThePageCache) {
  options_.direct_io = false;
  options_.cache_bytes = 0;
  Open();
  DropCache(path_);
  ASSERT_LT(CachedPages(path_), 10u);
  ReadAndCompare(RandomRows(200, kRows, 9));
  EXPECT_FALSE(store_->Snapshot().direct_io);
  EXPECT_TRUE(store_->Snapshot().direct_reason.empty());
  EXPECT_LT(CachedPages(path_), 10u);
}

TEST_P(RowStoreReaderTest, BufferedReadsLeaveOthersPagesAlone) {
  options_.direct_io = false;
  options_.cache_bytes = 0;
  Open();
  DropCache(path_);
  const size_t last = ResidentPages(path_).size() - 1;
  ReadPage(path_, 0);     // somebody else's
  ReadPage(path_, last);  // far from the rows below
  ReadAndCompare({10, 11, 12});
  EXPECT_TRUE(ResidentPages(path_)[0]);
  EXPECT_TRUE(ResidentPages(path_)[last]);
  EXPECT_EQ(CachedPages(path_), 2u);
}

TEST_P(RowStoreReaderTest, DirectReadsNeverEnterThePageCache) {
  Open();
  if (!store_->Snapshot().direct_io) {
    GTEST_SKIP() << "no O_DIRECT on this file system";
  }
  DropCache(path_);
  ReadAndCompare(RandomRows(200, kRows, 9));
  EXPECT_LT(CachedPages(path_), 10u);
}

TEST_P(RowStoreReaderTest, AMemoryFileSystemWorksToo) {
  char name[] = "/dev/shm/row_store_test_XXXXXX";
  const int fd = mkstemp(name);
  if (fd < 0) {
    GTEST_SKIP() << "no /dev/shm";
  }
  close(fd);
  WriteFile(name, data_);
  spec_.path = name;
  Open();
  ReadAndCompare(RandomRows(200, kRows, 10));
  unlink(name);
}

}  // namespace
}  // namespace embergate::storage
