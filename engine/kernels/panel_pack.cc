#include "engine/kernels/panel_pack.h"

#include <cstring>

#include "engine/kernels/column_format.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));

constexpr int kHalfBytes = 2;  // of a block's scale, which comes first
constexpr uint64_t kNibbles = 0x0f0f0f0f0f0f0f0fu;
const uint8_t kZeros[64] = {};

template <typename T>
T Load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
template <typename T>
void Store(T value, uint8_t* p) {
  std::memcpy(p, &value, sizeof(value));
}

Bytes ZipLow(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
Bytes ZipHigh(Bytes a, Bytes b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// out[w] = word w of each of the four rows.
void TransposeWords(const Words* rows, Words* out) {
  const Words a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const Words b = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const Words c = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const Words d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  out[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
  out[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  out[2] = __builtin_shufflevector(c, d, 0, 1, 4, 5);
  out[3] = __builtin_shufflevector(c, d, 2, 3, 6, 7);
}

// Where 8 rows of a tile lie in each column: the byte, and how far the nibbles are shifted. column_format.h draws it.
struct EightRows {
  int byte;
  int shift;
};
EightRows PlaceOf(int row) {
  return {row / kHalfRows * 64 + row % 32 / 8 * 16 + row % 64 / 32 * 8, row % kHalfRows / 64 * 4};
}

// Where a unit's codes and its 16 scales go, for types with one plane and one f16 per 32.
struct UnitPlace {
  uint8_t* codes;
  uint8_t* scales;
};
UnitPlace PlaceOfUnit(const PanelLayout& layout, uint8_t* panel, int64_t unit) {
  const int64_t in_block = unit % kBlockUnits;
  const PanelBlock block = BlockOf(layout, panel, unit - in_block);
  // Offsets from the panel, which is the caller's to write.
  return {panel + (block.low - panel) + in_block * layout.low_unit_bytes,
          panel + (block.scales - panel) + in_block * kHalfBytes * kPanelRows};
}

template <int kWords>  // of a block: 4 or 8
void PackWordPanel(const PanelLayout& layout, const uint8_t* const* rows, uint8_t* panel) {
  constexpr int64_t kBlockBytes = kHalfBytes + 4 * kWords;
  for (int64_t b = 0; b < layout.units; ++b) {
    const UnitPlace unit = PlaceOfUnit(layout, panel, b);
    for (int row = 0; row < kPanelRows; row += 4) {
      const uint8_t* block[4];
      for (int i = 0; i < 4; ++i) {
        const uint8_t* from = rows[row + i];
        block[i] = from == nullptr ? kZeros : from + b * kBlockBytes;
        std::memcpy(unit.scales + (row + i) * kHalfBytes, block[i], kHalfBytes);
      }
      for (int w = 0; w < kWords; w += 4) {
        const int at = kHalfBytes + 4 * w;
        const Words in[4] = {Load<Words>(block[0] + at), Load<Words>(block[1] + at), Load<Words>(block[2] + at),
                             Load<Words>(block[3] + at)};
        Words out[4];
        TransposeWords(in, out);
        for (int i = 0; i < 4; ++i) {
          Store(out[i], unit.codes + (w + i) * kChunkBytes + row * 4);
        }
      }
    }
  }
}

}  // namespace

bool HasWordCodes(TensorType type) {
  return type == TensorType::kQ4_0 || type == TensorType::kIQ4_NL || type == TensorType::kQ8_0;
}

void PackPanel(TensorType type, const PanelLayout& layout, const uint8_t* const* rows, uint8_t* panel) {
  if (type == TensorType::kQ8_0) {
    PackWordPanel<8>(layout, rows, panel);
  } else {
    PackWordPanel<4>(layout, rows, panel);
  }
}

void PackTileRows(const uint8_t* const* rows, int64_t groups, int row, uint8_t* tile) {
  constexpr int64_t kBlockBytes = kHalfBytes + 16;
  const EightRows place = PlaceOf(row);
  for (int64_t g = 0; g < groups; ++g) {
    uint8_t* group = tile + g * kTileGroupBytes;
    Bytes v[8];
    for (int i = 0; i < 8; ++i) {
      const uint8_t* block = kZeros;
      if (rows[i] != nullptr) {
        block = rows[i] + g * kBlockBytes;
        std::memcpy(group + kTileScalesOffset + (row + i) * kHalfBytes, block, kHalfBytes);
      }
      v[i] = Load<Bytes>(block + kHalfBytes);
    }
    // Byte c of each row becomes column c: three rounds of interleaving row i with row i + 4.
    for (int round = 0; round < 3; ++round) {
      Bytes next[8];
      for (int i = 0; i < 4; ++i) {
        next[2 * i] = ZipLow(v[i], v[i + 4]);
        next[2 * i + 1] = ZipHigh(v[i], v[i + 4]);
      }
      std::memcpy(v, next, sizeof(v));
    }
    uint8_t columns[128];
    std::memcpy(columns, v, sizeof(columns));
    for (int c = 0; c < 16; ++c) {
      const uint64_t codes = Load<uint64_t>(columns + 8 * c);
      for (int high = 0; high < 2; ++high) {
        uint8_t* to = group + (c + 16 * high) * kColumnBytes + place.byte;
        Store(Load<uint64_t>(to) | (codes >> (4 * high) & kNibbles) << place.shift, to);
      }
    }
  }
}

void ExpandTileRows(const PanelLayout& layout, const uint8_t* tile, int row, uint8_t* panel) {
  for (int64_t g = 0; g < layout.units; ++g) {
    const uint8_t* group = tile + g * kTileGroupBytes;
    const UnitPlace unit = PlaceOfUnit(layout, panel, g);
    std::memcpy(unit.scales, group + kTileScalesOffset + row * kHalfBytes, kHalfBytes * kPanelRows);
    for (int eight = 0; eight < 2; ++eight) {
      const EightRows place = PlaceOf(row + 8 * eight);
      for (int c = 0; c < 4; ++c) {  // the plane's vector: columns 4c.. in low nibbles, 16 + 4c.. in high ones
        Bytes v[4];
        for (int j = 0; j < 4; ++j) {
          const uint8_t* column = group + (4 * c + j) * kColumnBytes + place.byte;
          const uint64_t low = Load<uint64_t>(column) >> place.shift & kNibbles;
          const uint64_t high = Load<uint64_t>(column + 16 * kColumnBytes) >> place.shift & kNibbles;
          const uint64_t both[2] = {low | high << 4, 0};
          std::memcpy(&v[j], both, sizeof(both));
        }
        const Bytes even = ZipLow(v[0], v[2]);
        const Bytes odd = ZipLow(v[1], v[3]);
        uint8_t* to = unit.codes + c * kChunkBytes + 32 * eight;
        Store(ZipLow(even, odd), to);
        Store(ZipHigh(even, odd), to + 16);
      }
    }
  }
}

}  // namespace embergate::engine
