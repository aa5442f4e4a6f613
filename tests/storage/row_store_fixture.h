// A reference file of random bytes and tables over it: every row that a store hands out is compared with it.
#ifndef EMBERGATE_TESTS_STORAGE_ROW_STORE_FIXTURE_H_
#define EMBERGATE_TESTS_STORAGE_ROW_STORE_FIXTURE_H_

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "storage/crc32c.h"
#include "storage/row_store.h"

namespace embergate::storage {

// A directory that vanishes with the object. On a disk, not on tmpfs: O_DIRECT is what is tested.
class ScratchDir {
 public:
  ScratchDir() {
    std::string path = "row_store_test_XXXXXX";
    if (mkdtemp(path.data()) == nullptr) {
      abort();
    }
    char* absolute = realpath(path.c_str(), nullptr);
    path_ = absolute;
    free(absolute);
  }
  ~ScratchDir() {
    for (const std::string& file : files_) {
      unlink(file.c_str());
    }
    rmdir(path_.c_str());
  }
  std::string File(const std::string& name) {
    files_.push_back(path_ + "/" + name);
    return files_.back();
  }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

inline std::vector<uint8_t> RandomBytes(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint8_t> data(bytes);
  for (uint8_t& byte : data) {
    byte = static_cast<uint8_t>(random());
  }
  return data;
}

inline void WriteFile(const std::string& path, const std::vector<uint8_t>& data) {
  std::ofstream file(path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(data.data()), static_cast<std::streamsize>(data.size()));
  ASSERT_TRUE(file.good());
}

inline uint64_t StrideOf(const TableSpec& spec) { return spec.row_stride == 0 ? spec.row_bytes : spec.row_stride; }

inline absl::Span<const uint8_t> TrueRow(const std::vector<uint8_t>& data, const TableSpec& spec, uint64_t row) {
  return absl::MakeConstSpan(data).subspan(spec.file_offset + row * StrideOf(spec), spec.row_bytes);
}

inline RowChecksums ChecksumsOf(const std::vector<uint8_t>& data, const TableSpec& spec,
                                std::vector<uint64_t> segment_ends = {}, uint32_t rows_per_group = 1) {
  RowChecksums sums;
  sums.segment_ends = segment_ends;
  sums.rows_per_group = rows_per_group;
  if (segment_ends.empty()) {
    segment_ends.push_back(spec.row_bytes);
  }
  for (uint64_t first = 0; first < spec.row_count; first += rows_per_group) {
    if (rows_per_group > 1) {
      uint32_t crc = 0;
      for (uint64_t row = first; row < std::min<uint64_t>(spec.row_count, first + rows_per_group); ++row) {
        crc = Crc32c(TrueRow(data, spec, row), crc);
      }
      sums.crcs.push_back(crc);
      continue;
    }
    uint64_t begin = 0;
    for (uint64_t end : segment_ends) {
      sums.crcs.push_back(Crc32c(TrueRow(data, spec, first).subspan(begin, end - begin)));
      begin = end;
    }
  }
  return sums;
}

inline std::vector<uint64_t> RandomRows(size_t count, uint64_t row_count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<uint64_t> rows(count);
  for (uint64_t& row : rows) {
    row = random() % row_count;
  }
  return rows;
}

// One table of unaligned rows, as the per-layer embeddings of Gemma 4 E2B are (35 x 256 in Q8_0: 9520 bytes).
class RowStoreFixture : public testing::Test {
 protected:
  static constexpr uint64_t kRows = 400;

  RowStoreFixture() : path_(dir_.File("table")), data_(RandomBytes(9520 * kRows + 1344 + 77, 1)) {
    WriteFile(path_, data_);
    spec_.path = path_;
    spec_.file_offset = 1344;
    spec_.row_bytes = 9520;
    spec_.row_count = kRows;
    options_.rows_pinned_max = 300;
    options_.rows_per_ticket_max = 256;
    options_.tickets_max = 8;
    options_.cache_bytes = 1 << 20;
    options_.read_timeout_ms = 2000;
  }

  void Open() { Open({spec_}); }
  void Open(std::vector<TableSpec> specs) {
    auto made = RowStore::Create(std::move(specs), options_);
    ASSERT_TRUE(made.ok()) << made.status();
    store_ = std::move(made).value();
  }

  // Checks the i-th row of a ticket against the file.
  void ExpectRow(RowTicket ticket, size_t i, uint64_t row, uint64_t prefix = 0) {
    ExpectRowOf(spec_, ticket, i, row, prefix);
  }
  void ExpectRowOf(const TableSpec& spec, RowTicket ticket, size_t i, uint64_t row, uint64_t prefix = 0) {
    ASSERT_TRUE(store_->RowStatus(ticket, i).ok()) << store_->RowStatus(ticket, i);
    const absl::Span<const uint8_t> truth =
        TrueRow(data_, spec, row).first(prefix == 0 ? static_cast<size_t>(spec.row_bytes) : prefix);
    const absl::Span<const uint8_t> got = store_->Row(ticket, i);
    ASSERT_EQ(got.size(), truth.size());
    ASSERT_TRUE(std::equal(got.begin(), got.end(), truth.begin())) << "row " << row;
  }

  // Submits, waits, compares every byte, releases.
  void ReadAndCompare(const std::vector<uint64_t>& rows, uint64_t prefix = 0) {
    auto ticket = store_->Submit(0, rows, prefix);
    ASSERT_TRUE(ticket.ok()) << ticket.status();
    const absl::Status status = store_->Wait(*ticket);
    ASSERT_TRUE(status.ok()) << status;
    for (size_t i = 0; i < rows.size(); ++i) {
      ExpectRow(*ticket, i, rows[i], prefix);
    }
    store_->Release(*ticket);
  }

  ScratchDir dir_;
  std::string path_;
  std::vector<uint8_t> data_;
  TableSpec spec_;
  RowStoreOptions options_;
  std::unique_ptr<RowStore> store_;
};

// Both readers run the same suite.
class RowStoreReaderTest : public RowStoreFixture, public testing::WithParamInterface<ReaderKind> {
 protected:
  RowStoreReaderTest() { options_.reader = GetParam(); }
};

inline std::string ReaderName(const testing::TestParamInfo<ReaderKind>& info) {
  return info.param == ReaderKind::kUring ? "Uring" : "Pread";
}

}  // namespace embergate::storage

#endif  // EMBERGATE_TESTS_STORAGE_ROW_STORE_FIXTURE_H_
