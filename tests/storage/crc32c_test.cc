#include "storage/crc32c.h"

#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace embergate::storage {
namespace {

absl::Span<const uint8_t> Bytes(const char* text) { return {reinterpret_cast<const uint8_t*>(text), strlen(text)}; }

TEST(Crc32cTest, PublishedValues) {
  // The check value of the CRC catalogues, and the examples of RFC 3720, B.4.
  std::vector<uint8_t> ascending(32);
  std::vector<uint8_t> descending(32);
  for (uint8_t i = 0; i < 32; ++i) {
    ascending[i] = i;
    descending[i] = static_cast<uint8_t>(31 - i);
  }
  for (const Crc32cBackend& backend : Crc32cBackends()) {
    SCOPED_TRACE(backend.name);
    EXPECT_EQ(backend.crc(Bytes("123456789"), 0), 0xe3069283u);
    EXPECT_EQ(backend.crc(std::vector<uint8_t>(32, 0), 0), 0x8a9136aau);
    EXPECT_EQ(backend.crc(std::vector<uint8_t>(32, 0xff), 0), 0x62a8ab43u);
    EXPECT_EQ(backend.crc(ascending, 0), 0x46dd794eu);
    EXPECT_EQ(backend.crc(descending, 0), 0x113fdb5cu);
    EXPECT_EQ(backend.crc({}, 0), 0u);
  }
}

// Every length across the borders of the lanes and of the folded blocks, at every misalignment of a word.
TEST(Crc32cTest, EachWayAndItsCopyEqualTheTables) {
  std::mt19937 random(1);
  std::vector<uint8_t> data(12000);
  for (uint8_t& byte : data) {
    byte = static_cast<uint8_t>(random());
  }
  std::vector<size_t> lengths;
  for (size_t n = 0; n < 620; ++n) {
    lengths.push_back(n);
  }
  for (size_t n : {1535, 1536, 1537, 1727, 1728, 1729, 3071, 3072, 3073, 9520, 9527, 11999}) {
    lengths.push_back(n);
  }
  for (size_t n : lengths) {
    const size_t offset = std::min<size_t>(n % 8, data.size() - n);
    const absl::Span<const uint8_t> span = absl::MakeConstSpan(data).subspan(offset, n);
    const uint32_t start = n % 3 == 0 ? 0 : random();
    const uint32_t expected = Crc32cPortable(span, start);
    for (const Crc32cBackend& backend : Crc32cBackends()) {
      ASSERT_EQ(backend.crc(span, start), expected) << n << " by " << backend.name;
      std::vector<uint8_t> copy(n + 16, 0xcc);
      ASSERT_EQ(backend.copy(copy.data() + 8, span, start), expected) << n << " by " << backend.name;
      ASSERT_TRUE(std::equal(span.begin(), span.end(), copy.begin() + 8)) << n << " by " << backend.name;
      for (size_t i = 0; i < 8; ++i) {
        ASSERT_EQ(copy[i], 0xcc);
        ASSERT_EQ(copy[n + 8 + i], 0xcc);
      }
    }
  }
}

TEST(Crc32cTest, ContinuesWhereItStopped) {
  const absl::Span<const uint8_t> text = Bytes("rows of a multi-gigabyte table at the price of flash");
  EXPECT_EQ(Crc32c(text.subspan(20), Crc32c(text.first(20))), Crc32c(text));
  std::vector<uint8_t> copy(text.size());
  EXPECT_EQ(CopyWithCrc32c(copy.data(), text), Crc32cPortable(text));
  EXPECT_TRUE(std::equal(text.begin(), text.end(), copy.begin()));
  EXPECT_EQ(Crc32cBackends().back().name, "tables");
}

}  // namespace
}  // namespace embergate::storage
