// Thousands of damaged and hostile GGUF files, generated: each opens only if the damage is harmless, and is refused
// otherwise with a message that names the file and the byte, key or tensor. None crashes, and none makes the reader
// allocate more than 64 MB: every operator new of this program is counted, and (where no sanitizer needs the address
// space) the system refuses any mapping past that as well.
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "storage/gguf_file.h"
#include "tests/support/gguf_bytes.h"
#include "tests/support/sanitized.h"
#include "tests/support/temp_folder.h"

// ---- Counting allocations -----------------------------------------------------------------------

namespace {

std::atomic<uint64_t> g_live_bytes{0};
std::atomic<uint64_t> g_peak_bytes{0};
constexpr size_t kPrefix = 16;  // holds the size; keeps the alignment of malloc

void* CountedNew(size_t bytes) {
  auto* const block = static_cast<unsigned char*>(std::malloc(bytes + kPrefix));
  if (block == nullptr) {
    std::fprintf(stderr, "out of memory: %zu bytes asked for\n", bytes);
    std::abort();
  }
  *reinterpret_cast<size_t*>(block) = bytes;
  const uint64_t live = g_live_bytes.fetch_add(bytes) + bytes;
  uint64_t peak = g_peak_bytes.load();
  while (peak < live && !g_peak_bytes.compare_exchange_weak(peak, live)) {
  }
  return block + kPrefix;
}

void CountedDelete(void* pointer) {
  if (pointer != nullptr) {
    unsigned char* const block = static_cast<unsigned char*>(pointer) - kPrefix;
    g_live_bytes.fetch_sub(*reinterpret_cast<size_t*>(block));
    std::free(block);
  }
}

}  // namespace

void* operator new(size_t bytes) { return CountedNew(bytes); }
void* operator new[](size_t bytes) { return CountedNew(bytes); }
void operator delete(void* pointer) noexcept { CountedDelete(pointer); }
void operator delete[](void* pointer) noexcept { CountedDelete(pointer); }
void operator delete(void* pointer, size_t) noexcept { CountedDelete(pointer); }
void operator delete[](void* pointer, size_t) noexcept { CountedDelete(pointer); }

namespace embergate::storage {
namespace {

using test::ArrayEntry;
using test::Entry;
using test::GgufBytes;
using test::Le;
using test::RichGguf;
using test::Str;
using test::TensorInfo;
using ::testing::HasSubstr;
using enum GgufValueType;

constexpr uint64_t kBudgetBytes = 64'000'000;

// While it lives, allocations are counted from zero and the address space is limited.
class MemoryBudget {
 public:
  MemoryBudget() : before_(g_live_bytes.load()) {
    g_peak_bytes.store(before_);
#ifndef EMBERGATE_UNDER_SANITIZER
    getrlimit(RLIMIT_AS, &old_);
    struct rlimit tight = old_;
    tight.rlim_cur = AddressSpaceBytes() + kBudgetBytes;
    EXPECT_EQ(setrlimit(RLIMIT_AS, &tight), 0);
#endif
  }
  ~MemoryBudget() {
#ifndef EMBERGATE_UNDER_SANITIZER
    setrlimit(RLIMIT_AS, &old_);
#endif
  }
  uint64_t peak_bytes() const { return g_peak_bytes.load() - before_; }

 private:
  static uint64_t AddressSpaceBytes() {
    unsigned long pages = 0;
    if (FILE* const statm = std::fopen("/proc/self/statm", "r"); statm != nullptr) {
      EXPECT_EQ(std::fscanf(statm, "%lu", &pages), 1);
      std::fclose(statm);
    }
    return uint64_t{pages} * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
  }
  uint64_t before_;
  struct rlimit old_ {};
};

// Uses every getter on every key, and reads the ends of every tensor.
void ReadEverything(const GgufFile& file) {
  for (const std::string& key : file.keys()) {
    (void)file.GetUint(key);
    (void)file.GetInt(key);
    (void)file.GetFloat(key);
    (void)file.GetBool(key);
    (void)file.GetString(key);
    (void)file.GetInts(key);
    (void)file.GetFloats(key);
    if (const auto strings = file.GetStrings(key); strings.ok() && !strings->empty()) {
      volatile char last = strings->back().empty() ? '\0' : strings->back().back();
      (void)last;
    }
  }
  for (const GgufTensor& tensor : file.tensors()) {
    uint8_t byte = 0;
    EXPECT_TRUE(file.ReadTensor(tensor, 0, absl::MakeSpan(&byte, 1)).ok());
    EXPECT_TRUE(file.ReadTensor(tensor, tensor.bytes - 1, absl::MakeSpan(&byte, 1)).ok());
  }
}

class GgufMutantsTest : public ::testing::Test {
 protected:
  GgufMutantsTest() : fd_(memfd_create("mutant", MFD_CLOEXEC)), path_(absl::StrCat("/proc/self/fd/", fd_)) {
    EXPECT_GE(fd_, 0);
  }
  ~GgufMutantsTest() override { close(fd_); }

  // Whether it opened. Checks the message if it did not, and the memory either way.
  bool TryMutant(const std::string& bytes) {
    ++mutants_;
    EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(bytes.size())), 0);
    EXPECT_EQ(pwrite(fd_, bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    return TryPath(path_);
  }
  bool TryPath(const std::string& path) {
    bool opened = false;
    uint64_t peak = 0;
    absl::Status status;
    {
      MemoryBudget budget;
      auto file = GgufFile::Open(path);
      opened = file.ok();
      if (opened) {
        ReadEverything(**file);
      } else {
        status = file.status();
      }
      peak = budget.peak_bytes();
    }
    EXPECT_LE(peak, kBudgetBytes);
    peak_ = std::max(peak_, peak);
    if (!opened) {
      const std::string message(status.message());
      EXPECT_THAT(message, HasSubstr(path.substr(0, path.find("-0000"))));
      EXPECT_TRUE(absl::StrContains(message, "at byte ") || absl::StrContains(message, "tensor") ||
                  absl::StrContains(message, "key '"))
          << message;
      EXPECT_LT(message.size(), 1000u) << message;
    }
    return opened;
  }

  int fd_;
  std::string path_;
  int mutants_ = 0;
  uint64_t peak_ = 0;
};

TEST_F(GgufMutantsTest, TruncationAtEveryByteIsRefused) {
  const GgufBytes file = RichGguf();
  const std::string bytes = file.Build();
  ASSERT_TRUE(TryMutant(bytes)) << "the file itself must open";
  // The last tensor, a scalar, takes bytes 608 to 612 of the data; what follows is padding.
  const size_t complete = bytes.size() - file.data.size() + 612;
  for (size_t length = 0; length < bytes.size(); ++length) {
    ASSERT_EQ(TryMutant(bytes.substr(0, length)), length >= complete) << length;
  }
  EXPECT_GT(mutants_, 1000);
}

TEST_F(GgufMutantsTest, BitFlipsAreRefusedOrHarmless) {
  const GgufBytes file = RichGguf();
  const std::string bytes = file.Build();
  const size_t header_bytes = file.Header().size();
  std::mt19937_64 random(20240611);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string mutant = bytes;
    for (uint64_t flips = 1 + random() % 3; flips > 0; --flips) {
      mutant[random() % header_bytes] ^= static_cast<char>(1 << random() % 8);
    }
    refused += TryMutant(mutant) ? 0 : 1;
  }
  EXPECT_GT(refused, 500) << "flips of names and values are harmless, those of lengths and types are not";
}

TEST_F(GgufMutantsTest, HostileNumbersAtEveryOffsetAreRefusedOrHarmless) {
  const GgufBytes file = RichGguf();
  const std::string bytes = file.Build();
  const size_t header_bytes = file.Header().size();
  constexpr uint64_t kHostile[] = {0,          0x7f,       0xffff,           0x7fffffff,         0xffffffff,
                                   1ull << 40, 1ull << 61, (1ull << 63) - 1, 0xffffffffffffffe0, ~0ull};
  int refused = 0;
  for (size_t at = 0; at + 8 <= header_bytes; ++at) {
    for (const uint64_t value : kHostile) {
      std::string mutant = bytes;
      mutant.replace(at, 8, Le(value));
      refused += TryMutant(mutant) ? 0 : 1;
    }
  }
  EXPECT_GT(mutants_, 5000);
  EXPECT_GT(refused, mutants_ / 2);
}

TEST_F(GgufMutantsTest, HostileDimensionsAreRefused) {
  constexpr uint64_t kHostile[] = {0, 0x100000000, 1ull << 32 | 1, 1ull << 59, 1ull << 62, 1ull << 63, ~0ull};
  for (const uint32_t type : {0u, 1u, 2u, 8u, 12u, 14u, 27u, 39u}) {
    for (const uint64_t hostile : kHostile) {
      for (size_t place = 0; place < 4; ++place) {
        GgufBytes file;
        std::vector<uint64_t> dims = {256, 2, 2, 2};
        dims[place] = hostile;
        file.tensors = {TensorInfo("hostile", dims, type, 0)};
        file.data = std::string(64 << 10, 'x');
        EXPECT_FALSE(TryMutant(file.Build())) << type << " " << hostile << " " << place;
      }
    }
  }
  EXPECT_GT(mutants_, 200);
}

TEST_F(GgufMutantsTest, HostileOffsetsAreRefused) {
  for (uint64_t shift = 12; shift < 64; ++shift) {
    for (const uint64_t offset : {uint64_t{1} << shift, ~((uint64_t{1} << shift) - 1), (uint64_t{1} << shift) - 32}) {
      GgufBytes file;
      file.tensors = {TensorInfo("first", {64}, 0, 0), TensorInfo("hostile", {64}, 0, offset)};
      file.data = std::string(1024, 'x');
      EXPECT_FALSE(TryMutant(file.Build())) << offset;
    }
  }
}

// ---- Files that want memory ---------------------------------------------------------------------

TEST_F(GgufMutantsTest, AsManyTensorsWithAsLongNamesAsAllowed) {
  GgufBytes file;
  for (int i = 0; i < 32768; ++i) {
    std::string name = absl::StrCat(i, "-");
    name.resize(255, 'n');
    file.tensors.push_back(TensorInfo(name, {1, 1, 1, 1}, 24, static_cast<uint64_t>(i) * 32));
  }
  file.data = std::string(32768 * 32, 'x');
  EXPECT_TRUE(TryMutant(file.Build()));
  EXPECT_GT(peak_, 10'000'000u) << "the counter counts nothing?";
}

TEST_F(GgufMutantsTest, ArraysOfAFullHeader) {
  // 39 MB of empty strings, of bytes, and of nested empty arrays: 8 and 1 byte each in the file, more in memory.
  constexpr uint64_t kBytes = 39'000'000;
  GgufBytes strings;
  strings.entries = {ArrayEntry("s", kString, kBytes / 8, std::string(kBytes, '\0'))};
  EXPECT_TRUE(TryMutant(strings.Build()));
  GgufBytes small_enough;
  small_enough.entries = {ArrayEntry("s", kString, 1 << 20, std::string(8 << 20, '\0')),
                          ArrayEntry("b", kU8, 1 << 20, std::string(1 << 20, '\0')),
                          ArrayEntry("fill", kU8, 30'000'000, std::string(30'000'000, '\0'))};
  EXPECT_TRUE(TryMutant(small_enough.Build()));
  GgufBytes nested;
  std::string inner;
  for (int i = 0; i < 1'000'000; ++i) {
    inner += Le(uint32_t{0}) + Le(uint64_t{0});
  }
  nested.entries = {ArrayEntry("n", kArray, 1'000'000, inner)};
  EXPECT_TRUE(TryMutant(nested.Build()));
}

TEST_F(GgufMutantsTest, HeaderPastTheLimit) {
  GgufBytes file;
  file.entries = {ArrayEntry("big", kU8, 60'000'000, std::string(60'000'000, 'x'))};
  EXPECT_FALSE(TryMutant(file.Build()));
}

TEST_F(GgufMutantsTest, SparseFileOfATerabyteThatClaimsEverything) {
  test::TempFolder folder;
  const std::vector<std::string> starts = {
      "GGUF" + Le(uint32_t{3}) + Le(uint64_t{1} << 34) + Le(uint64_t{0}),
      "GGUF" + Le(uint32_t{3}) + Le(uint64_t{0}) + Le(uint64_t{1} << 34),
      "GGUF" + Le(uint32_t{3}) + Le(uint64_t{0}) + Le(uint64_t{1}) + Str("k") + Le(uint32_t{8}) + Le(uint64_t{1} << 39),
      "GGUF" + Le(uint32_t{3}) + Le(uint64_t{0}) + Le(uint64_t{1}) + Str("k") + Le(uint32_t{9}) + Le(uint32_t{8}) +
          Le(uint64_t{1} << 36),
      "GGUF" + Le(uint32_t{3}) + Le(uint64_t{0}) + Le(uint64_t{1}) + Str("k") + Le(uint32_t{9}) + Le(uint32_t{9}) +
          Le(uint64_t{1} << 36),
      "GGUF" + Le(uint32_t{3}) + Le(uint64_t{0}) + Le(uint64_t{1}) + Str("k") + Le(uint32_t{9}) + Le(uint32_t{12}) +
          Le(uint64_t{1} << 36),
  };
  for (const std::string& start : starts) {
    const std::string path = folder.Write("sparse.gguf", start);
    std::error_code error;
    std::filesystem::resize_file(path, uint64_t{1} << 40, error);
    if (error) {
      GTEST_SKIP() << "no sparse file of a terabyte here: " << error.message();
    }
    EXPECT_FALSE(TryPath(path));
  }
}

TEST_F(GgufMutantsTest, ManyPartsWithFullHeaders) {
  test::TempFolder folder;
  for (int i = 0; i < 3; ++i) {
    GgufBytes part;
    part.entries = {Entry("split.no", kU16, Le(static_cast<uint16_t>(i))), Entry("split.count", kU16, Le(uint16_t{3})),
                    Entry("split.tensors.count", kI32, Le(int32_t{0})),
                    ArrayEntry("fill", kU8, 30'000'000, std::string(30'000'000, '\0'))};
    folder.Write(absl::StrCat("m-0000", i + 1, "-of-00003.gguf"), part.Build());
  }
  EXPECT_FALSE(TryPath(folder.File("m-00001-of-00003.gguf"))) << "30 MB of header in each of three parts";
}

}  // namespace
}  // namespace embergate::storage
