// What an open file tells of itself, against what can be tried from outside.
#include "storage/table_file.h"

#include "gtest/gtest.h"
#include "tests/storage/page_cache.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

class TableFileTest : public ::testing::Test {
 protected:
  TableFileTest() : path_(dir_.File("table")) { WriteFile(path_, RandomBytes(40 * PageBytes() + 100, 1)); }

  // The smallest block that the file system reads directly, found by trying; 0 if it reads none.
  uint32_t SmallestDirectBlock() const {
    const int fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    void* const memory = aligned_alloc(4096, 8192);
    uint32_t block = 512;
    while (fd >= 0 && block <= 4096 && pread(fd, memory, block, block) != static_cast<ssize_t>(block)) {
      block *= 2;
    }
    free(memory);
    close(fd);
    return fd >= 0 && block <= 4096 ? block : 0;
  }

  ScratchDir dir_;
  const std::string path_;
};

TEST_F(TableFileTest, ItsAlignmentIsTheSmallestThatWorks) {
  const uint32_t block = SmallestDirectBlock();
  const auto file = TableFile::Open(path_, true);
  ASSERT_TRUE(file.ok()) << file.status();
  if (block == 0) {
    EXPECT_FALSE(file->direct());
    EXPECT_FALSE(file->direct_reason().empty());
    GTEST_SKIP() << "no O_DIRECT on this file system";
  }
  EXPECT_TRUE(file->direct()) << file->direct_reason();
  EXPECT_EQ(file->alignment(), block);
  EXPECT_EQ(file->bytes(), 40 * PageBytes() + 100);
}

TEST_F(TableFileTest, WithoutDirectReadsItCountsInPages) {
  auto file = TableFile::Open(path_, true);
  ASSERT_TRUE(file.ok() && file->StopDirect().ok());
  EXPECT_FALSE(file->direct());
  EXPECT_FALSE(file->direct_reason().empty());
  char byte = 0;
  EXPECT_EQ(pread(file->fd(), &byte, 1, 7), 1) << "a read of any size";
  const auto buffered = TableFile::Open(path_, false);
  ASSERT_TRUE(buffered.ok());
  EXPECT_EQ(buffered->alignment(), PageBytes());
  EXPECT_TRUE(buffered->direct_reason().empty()) << "it was not asked for";
}

TEST_F(TableFileTest, DropsThePagesThatARangeTouchesAndNoOther) {
  const auto file = TableFile::Open(path_, false);
  ASSERT_TRUE(file.ok());
  DropCache(path_);
  for (size_t page = 0; page < 8; ++page) {
    ReadPage(path_, page);
  }
  ASSERT_EQ(CachedPages(path_), 8u);
  file->DropPages(3 * PageBytes() - 1, 2);  // the last byte of page 2, the first of page 3
  const std::vector<bool> resident = ResidentPages(path_);
  for (size_t page = 0; page < 8; ++page) {
    EXPECT_EQ(resident[page], page != 2 && page != 3) << page;
  }
}

TEST_F(TableFileTest, KnowsWhenItWasChangedAndRemembers) {
  auto file = TableFile::Open(path_, true);
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE(file->CheckUnchanged().ok());
  // Another file at the same path is none of its business.
  const std::string other = dir_.File("other");
  WriteFile(other, RandomBytes(100, 2));
  auto second = TableFile::Open(other, true);
  ASSERT_TRUE(second.ok());
  ASSERT_EQ(rename(other.c_str(), path_.c_str()), 0);
  EXPECT_TRUE(file->CheckUnchanged().ok());
  ASSERT_EQ(truncate(path_.c_str(), 50), 0);
  EXPECT_EQ(second->CheckUnchanged().code(), absl::StatusCode::kDataLoss);
  ASSERT_EQ(truncate(path_.c_str(), 100), 0);
  EXPECT_EQ(second->CheckUnchanged().code(), absl::StatusCode::kDataLoss) << "what was there is gone";
  EXPECT_TRUE(second->changed());
}

}  // namespace
}  // namespace embergate::storage
