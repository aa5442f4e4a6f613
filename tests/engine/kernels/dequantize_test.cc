// Each type's decoder against blocks written out by hand: the bytes are given, the values are worked out from the
// format's definition in the comment above each, so that a slip in a bit position cannot cancel itself.
#include "engine/kernels/dequantize.h"

#include <array>
#include <cmath>
#include <cstring>
#include <vector>

#include "engine/kernels/float16.h"
#include "engine/kernels/kernels.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

constexpr uint8_t kHalf1[2] = {0x00, 0x3c};   // 1.0
constexpr uint8_t kHalf2[2] = {0x00, 0x40};   // 2.0
constexpr uint8_t kHalf05[2] = {0x00, 0x38};  // 0.5

std::vector<float> Dequantize(TensorType type, const std::vector<uint8_t>& block) {
  std::vector<float> out(storage::TraitsOf(type).block_elements);
  EXPECT_EQ(block.size(), storage::TraitsOf(type).block_bytes);
  DequantizeRow(type, block.data(), static_cast<int64_t>(out.size()), out.data());
  return out;
}

void Put(std::vector<uint8_t>* block, size_t at, const uint8_t (&half)[2]) { std::memcpy(block->data() + at, half, 2); }

TEST(Float16Test, HalfRoundTripsEveryFiniteValue) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const float value = HalfToFloat(half);
    if ((half & 0x7c00) == 0x7c00 && (half & 0x3ff) != 0) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(value))));
    } else {
      ASSERT_EQ(FloatToHalf(value), half);
    }
  }
  EXPECT_EQ(HalfToFloat(0x3555), 0.333251953125f);
  EXPECT_EQ(HalfToFloat(0x0001), 0x1p-24f);
  EXPECT_EQ(FloatToHalf(65519.0f), 0x7bff);
  EXPECT_EQ(FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToHalf(1.0f + 0x1p-11f), 0x3c00);  // a tie goes to the even neighbour
  EXPECT_EQ(FloatToHalf(1.0f + 3 * 0x1p-11f), 0x3c02);
  EXPECT_EQ(FloatToBfloat16(1.0f + 0x1p-8f), 0x3f80);
  EXPECT_EQ(FloatToBfloat16(1.0f + 3 * 0x1p-8f), 0x3f82);
}

TEST(DequantizeTest, PlainFloats) {
  EXPECT_EQ(Dequantize(TensorType::kF32, {0x00, 0x00, 0xc0, 0xbf})[0], -1.5f);
  EXPECT_EQ(Dequantize(TensorType::kF16, {0x00, 0xbe})[0], -1.5f);
  EXPECT_EQ(Dequantize(TensorType::kBF16, {0xc0, 0xbf})[0], -1.5f);
}

// Byte 2 + i: element i in the low nibble, element i + 16 in the high one; value = d (q - 8).
TEST(DequantizeTest, Q4_0) {
  std::vector<uint8_t> block(18, 0x88);
  Put(&block, 0, kHalf05);
  block[2] = 0xf0;
  block[17] = 0x3a;
  const std::vector<float> out = Dequantize(TensorType::kQ4_0, block);
  EXPECT_EQ(out[0], -4.0f);
  EXPECT_EQ(out[16], 3.5f);
  EXPECT_EQ(out[15], 1.0f);
  EXPECT_EQ(out[31], -2.5f);
  EXPECT_EQ(out[1], 0.0f);
}

// value = d q + m.
TEST(DequantizeTest, Q4_1) {
  std::vector<uint8_t> block(20, 0x00);
  Put(&block, 0, kHalf05);
  Put(&block, 2, kHalf2);
  block[4] = 0xf1;
  block[19] = 0x30;
  const std::vector<float> out = Dequantize(TensorType::kQ4_1, block);
  EXPECT_EQ(out[0], 2.5f);
  EXPECT_EQ(out[16], 9.5f);
  EXPECT_EQ(out[15], 2.0f);
  EXPECT_EQ(out[31], 3.5f);
}

// Bit i of the word at 2 is element i's fifth bit; value = d (q - 16).
TEST(DequantizeTest, Q5_0) {
  std::vector<uint8_t> block(22, 0x00);
  Put(&block, 0, kHalf2);
  block[2] = 0x01;   // element 0
  block[5] = 0x80;   // element 31
  block[4] = 0x01;   // element 16
  block[6] = 0x27;   // elements 0 (7) and 16 (2)
  block[21] = 0xf0;  // elements 15 (0) and 31 (15)
  const std::vector<float> out = Dequantize(TensorType::kQ5_0, block);
  EXPECT_EQ(out[0], 14.0f);
  EXPECT_EQ(out[16], 4.0f);
  EXPECT_EQ(out[31], 30.0f);
  EXPECT_EQ(out[15], -32.0f);
}

// The word is at 4, after d and m; value = d q + m.
TEST(DequantizeTest, Q5_1) {
  std::vector<uint8_t> block(24, 0x00);
  Put(&block, 0, kHalf2);
  Put(&block, 2, kHalf05);
  block[5] = 0x02;  // element 9
  block[8 + 9] = 0x43;
  const std::vector<float> out = Dequantize(TensorType::kQ5_1, block);
  EXPECT_EQ(out[9], 38.5f);
  EXPECT_EQ(out[25], 8.5f);
  EXPECT_EQ(out[0], 0.5f);
}

TEST(DequantizeTest, Q8_0) {
  std::vector<uint8_t> block(34, 0x00);
  Put(&block, 0, kHalf05);
  block[2] = 0x80;
  block[33] = 0x7f;
  const std::vector<float> out = Dequantize(TensorType::kQ8_0, block);
  EXPECT_EQ(out[0], -64.0f);
  EXPECT_EQ(out[31], 63.5f);
  EXPECT_EQ(out[5], 0.0f);
}

// Group g of 16: scale in the low nibble of byte g, min in the high one. Codes: byte 16 + 32 (i / 128) + i % 32,
// bits 2 (i % 128 / 32). value = d scale q - m min.
TEST(DequantizeTest, Q2_K) {
  std::vector<uint8_t> block(84, 0x00);
  Put(&block, 80, kHalf2);
  Put(&block, 82, kHalf05);
  block[0] = 0x13;             // group 0 (elements 0..15): scale 3, min 1
  block[13] = 0xf5;            // group 13 (208..223): scale 5, min 15
  block[16 + 4] = 0x02;        // element 4: code 2
  block[16 + 32 + 20] = 0x30;  // element 128 + 64 + 20 = 212: bits 4..5 of byte 52 + 16 = 3
  const std::vector<float> out = Dequantize(TensorType::kQ2_K, block);
  EXPECT_EQ(out[4], 2 * 3 * 2 - 0.5f * 1);
  EXPECT_EQ(out[0], -0.5f);
  EXPECT_EQ(out[212], 2 * 5 * 3 - 0.5f * 15);
  EXPECT_EQ(out[208], -7.5f);
  EXPECT_EQ(out[16], 0.0f);
}

// value = d (scale - 32) (q + 4 high - 4). Scale g: low nibble in byte 96 + g % 8 (low half for g < 8), upper two
// bits in byte 104 + g % 4, bits 2 (g / 4). High bit of element i: byte i % 32, bit i / 32.
TEST(DequantizeTest, Q3_K) {
  std::vector<uint8_t> block(110, 0x00);
  Put(&block, 108, kHalf1);
  block[96 + 0] = 0x05;        // scale 0: 5
  block[104 + 0] = 0x02;       // + 2 * 16 = 37, so factor 5
  block[96 + 3] = 0x90;        // scale 11: 9
  block[104 + 3] = 0x30;       // + 3 * 16 = 57, so factor 25
  block[1] = 0x01;             // element 1's high bit
  block[32 + 1] = 0x03;        // element 1's low bits: 3
  block[17] = 0x20;            // element 5 * 32 + 17 = 177 (group 11): high bit
  block[32 + 32 + 17] = 0x08;  // element 128 + 32 + 17 = 177: bits 2..3 = 2
  const std::vector<float> out = Dequantize(TensorType::kQ3_K, block);
  EXPECT_EQ(out[1], 5 * 3.0f);
  EXPECT_EQ(out[0], 5 * -4.0f);
  EXPECT_EQ(out[177], 25 * 2.0f);
  EXPECT_EQ(out[176], 25 * -4.0f);
  EXPECT_EQ(out[16], -32 * -4.0f);  // scale 1 is 0 - 32
}

// value = d scale q - m min; scales as UnpackSixBitScales says.
TEST(DequantizeTest, Q4_K) {
  std::vector<uint8_t> block(144, 0x00);
  Put(&block, 0, kHalf05);
  Put(&block, 2, kHalf2);
  block[4] = 0x80 | 9;        // scale 0 = 9; upper bits of scale 4 = 2
  block[8] = 0xc0 | 7;        // min 0 = 7; upper bits of min 4 = 3
  block[12] = 0x5a;           // scale 4 = 10 + 32 = 42; min 4 = 5 + 48 = 53
  block[16] = 0x0c;           // element 0: 12
  block[16 + 64 + 1] = 0x0d;  // element 128 + 1 (group 4): 13
  block[16 + 31] = 0xb0;      // element 32 + 31 (group 1, scale 0): 11
  const std::vector<float> out = Dequantize(TensorType::kQ4_K, block);
  EXPECT_EQ(out[0], 0.5f * 9 * 12 - 14);
  EXPECT_EQ(out[1], -14.0f);
  EXPECT_EQ(out[129], 0.5f * 42 * 13 - 106);
  EXPECT_EQ(out[63], 0.0f);
}

TEST(DequantizeTest, Q5_K) {
  std::vector<uint8_t> block(176, 0x00);
  Put(&block, 0, kHalf1);
  Put(&block, 2, kHalf2);
  block[4 + 1] = 3;            // scale 1
  block[8 + 1] = 4;            // min 1
  block[16 + 6] = 0x02;        // element 32 + 6: fifth bit
  block[48 + 6] = 0x50;        // element 32 + 6: 5
  block[4 + 11] = 0x21;        // scale 7 = 1, min 7 = 2
  block[16 + 30] = 0x80;       // element 224 + 30: fifth bit
  block[48 + 96 + 30] = 0x70;  // element 224 + 30: 7
  const std::vector<float> out = Dequantize(TensorType::kQ5_K, block);
  EXPECT_EQ(out[38], 3 * 21 - 8.0f);
  EXPECT_EQ(out[39], -8.0f);
  EXPECT_EQ(out[254], 23 - 4.0f);
}

TEST(DequantizeTest, Q6_K) {
  std::vector<uint8_t> block(210, 0x00);
  Put(&block, 208, kHalf05);
  block[192 + 0] = 0xff;       // group 0: scale -1
  block[192 + 7] = 10;         // group 7 (112..127)
  block[192 + 11] = 3;         // group 11 (176..191)
  block[0] = 0x01;             // element 0: low 1
  block[128] = 0x03;           // element 0: high 3
  block[63] = 0xe0;            // element 64 + 63 = 127: low 14
  block[128 + 31] = 0x80;      // element 127: bits 6..7 = 2
  block[64 + 32 + 18] = 0x05;  // element 128 + 32 + 18 = 178: low 5
  block[160 + 18] = 0x04;      // element 178: bits 2..3 = 1
  const std::vector<float> out = Dequantize(TensorType::kQ6_K, block);
  EXPECT_EQ(out[0], 0.5f * -1 * (49 - 32));
  EXPECT_EQ(out[1], 0.5f * -1 * -32);
  EXPECT_EQ(out[127], 0.5f * 10 * (46 - 32));
  EXPECT_EQ(out[178], 0.5f * 3 * (21 - 32));
}

TEST(DequantizeTest, Iq4Nl) {
  std::vector<uint8_t> block(18, 0x00);
  Put(&block, 0, kHalf2);
  block[2] = 0xf8;
  const std::vector<float> out = Dequantize(TensorType::kIQ4_NL, block);
  EXPECT_EQ(out[0], 2.0f * 1);
  EXPECT_EQ(out[16], 2.0f * 113);
  EXPECT_EQ(out[1], 2.0f * -127);
}

TEST(DequantizeTest, Iq4Xs) {
  std::vector<uint8_t> block(136, 0x00);
  Put(&block, 0, kHalf1);
  block[2] = 0x02;           // group 0: upper bits 2
  block[3] = 0x40;           // group 7: upper bits 1
  block[4] = 0x03;           // group 0: 3 + 32 - 32 = 3
  block[4 + 3] = 0xf0;       // group 7: 15 + 16 - 32 = -1
  block[8 + 5] = 0x9e;       // elements 5 (14) and 21 (9)
  block[8 + 7 * 16] = 0x70;  // elements 224 (0) and 240 (7)
  const std::vector<float> out = Dequantize(TensorType::kIQ4_XS, block);
  EXPECT_EQ(out[5], 3.0f * 89);
  EXPECT_EQ(out[21], 3.0f * 13);
  EXPECT_EQ(out[224], 127.0f);
  EXPECT_EQ(out[240], 10.0f);
  EXPECT_EQ(out[32], -32.0f * -127);  // group 1: scale 0 - 32
}

}  // namespace
}  // namespace embergate::engine
