#include "storage/checksum_file.h"

#include <sys/stat.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

using testing::HasSubstr;

class ChecksumFileTest : public RowStoreFixture {
 protected:
  ChecksumFileTest() {
    sums_.file_bytes = data_.size();
    ChecksumEntry table;
    table.name = "table";
    table.file_offset = spec_.file_offset;
    table.bytes = spec_.row_bytes * spec_.row_count;
    table.piece_bytes = spec_.row_bytes;
    table.segment_ends = {4080, 9520};
    ChecksumEntry rest;
    rest.name = "rest";
    rest.file_offset = 3;
    rest.bytes = data_.size() - 3;
    rest.piece_bytes = 1 << 20;
    rest.segment_ends = {1 << 20};
    sums_.entries = {table, rest};
  }
  absl::Status Compute() { return ComputeChecksums(path_, sums_, nullptr); }
  std::string Sidecar() { return dir_.File("table.crc32c"); }

  ChecksumFile sums_;
};

TEST_F(ChecksumFileTest, TheSumsAreThoseOfTheBytes) {
  uint64_t last = 0;
  uint64_t total = 0;
  ASSERT_TRUE(ComputeChecksums(path_, sums_, [&](uint64_t done, uint64_t all) {
                EXPECT_GE(done, last);
                last = done;
                total = all;
              }).ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(total, sums_.entries[0].bytes + sums_.entries[1].bytes);
  EXPECT_EQ(sums_.entries[0].crcs, ChecksumsOf(data_, spec_, {4080, 9520}).crcs);
  EXPECT_EQ(sums_.entries[1].crcs.size(), 4u);
  EXPECT_EQ(sums_.entries[1].crcs[3], Crc32c(absl::MakeConstSpan(data_).subspan(3 + (3u << 20))));
}

TEST_F(ChecksumFileTest, WhatIsWrittenIsReadAndProtectsTheStore) {
  ASSERT_TRUE(Compute().ok());
  const std::string sidecar = Sidecar();
  ASSERT_EQ(sidecar, ChecksumPathFor(path_));
  EXPECT_TRUE(LoadRowChecksums(spec_)->crcs.empty());  // none there yet
  ASSERT_TRUE(WriteChecksumFile(sidecar, sums_).ok());
  auto rows = LoadRowChecksums(spec_);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->crcs, sums_.entries[0].crcs);
  spec_.checksums = *rows;
  Open();
  ReadAndCompare(RandomRows(100, kRows, 1));
  ReadAndCompare(RandomRows(100, kRows, 2), 4080);
}

TEST_F(ChecksumFileTest, VerifyFindsExactlyTheDamagedPieces) {
  ASSERT_TRUE(Compute().ok());
  EXPECT_EQ(*VerifyChecksums(path_, sums_, nullptr, nullptr), 0u);
  data_[1344 + 9520 * 7 + 9000] ^= 1;
  WriteFile(path_, data_);
  std::vector<std::string> bad;
  const auto count = VerifyChecksums(
      path_, sums_,
      [&](const ChecksumEntry& entry, uint64_t piece) { bad.push_back(entry.name + std::to_string(piece)); }, nullptr);
  EXPECT_EQ(*count, 2u);
  EXPECT_THAT(bad, testing::ElementsAre("table7", "rest0"));
  data_.resize(data_.size() - 100);
  WriteFile(path_, data_);
  EXPECT_FALSE(VerifyChecksums(path_, sums_, nullptr, nullptr).ok());
}

TEST_F(ChecksumFileTest, AStaleOneIsRefusedNotIgnored) {
  ASSERT_TRUE(Compute().ok());
  ASSERT_TRUE(WriteChecksumFile(Sidecar(), sums_).ok());
  TableSpec other = spec_;
  other.file_offset += 32;
  EXPECT_EQ(LoadRowChecksums(other).status().code(), absl::StatusCode::kFailedPrecondition);
  data_.push_back(0);
  WriteFile(path_, data_);
  const auto rows = LoadRowChecksums(spec_);
  EXPECT_EQ(rows.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(rows.status().message()), HasSubstr("embergate checksum"));
}

// Every single-byte change and every cut is noticed, and none crashes; with the trailer made right again, the parser
// itself is put to the test.
TEST_F(ChecksumFileTest, DamagedFilesAreErrors) {
  sums_.entries[0].bytes = 9520 * 3;
  ASSERT_TRUE(Compute().ok());
  const std::string sidecar = Sidecar();
  ASSERT_TRUE(WriteChecksumFile(sidecar, sums_).ok());
  std::ifstream stream(sidecar, std::ios::binary);
  const std::vector<uint8_t> good((std::istreambuf_iterator<char>(stream)), std::istreambuf_iterator<char>());
  ASSERT_TRUE(ReadChecksumFile(sidecar).ok());
  std::mt19937 random(1);
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<uint8_t> bad = good;
    bad[i] = static_cast<uint8_t>(bad[i] + 1 + random() % 255);
    WriteFile(sidecar, bad);
    ASSERT_FALSE(ReadChecksumFile(sidecar).ok()) << i;
    const uint32_t crc = Crc32c(absl::MakeConstSpan(bad).first(bad.size() - 4));
    std::copy_n(reinterpret_cast<const uint8_t*>(&crc), 4, bad.end() - 4);
    WriteFile(sidecar, bad);
    (void)ReadChecksumFile(sidecar);  // right or wrong, it must end
    WriteFile(sidecar, {good.begin(), good.begin() + static_cast<ptrdiff_t>(i)});
    ASSERT_FALSE(ReadChecksumFile(sidecar).ok()) << i;
  }
  EXPECT_EQ(ReadChecksumFile(sidecar + ".absent").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace embergate::storage
