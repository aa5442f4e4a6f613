// Weights: memory, and the repacking of rows from the file's blocks into panels (packed_format.h).
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/kernels/dequantize.h"
#include "engine/kernels/float16.h"
#include "engine/kernels/matrix_impl.h"
#include "engine/kernels/panel_pack.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

constexpr int64_t kPanelsTogether = 4;  // that a thread packs at a time
constexpr size_t kHugePageBytes = size_t{2} << 20;

// Where chunk `c` of a plane of `bits` lies: see packed_format.h.
struct ChunkPlace {
  int vector;
  int shift;
};
ChunkPlace PlaceOf(int bits, int c) { return {c % bits, bits * (c / bits)}; }

// Writes bits [from, from + bits) of one row's 32 codes into a unit of a plane, four codes at a time. The unit starts
// as zeros.
void PackPlane(const uint8_t* code, int from, int bits, int row, uint8_t* unit) {
  const uint32_t mask = ((1u << bits) - 1) * 0x01010101u;
  for (int c = 0; c < 8; ++c) {
    const ChunkPlace place = PlaceOf(bits, c);
    uint8_t* bytes = unit + place.vector * kChunkBytes + row * 4;
    uint32_t codes;
    uint32_t word;
    std::memcpy(&codes, code + 4 * c, 4);
    std::memcpy(&word, bytes, 4);
    word |= (codes >> from & mask) << place.shift;
    std::memcpy(bytes, &word, 4);
  }
}

int UnpackCode(const uint8_t* unit, int bits, int row, int col) {
  const ChunkPlace place = PlaceOf(bits, col / 4);
  return unit[place.vector * kChunkBytes + row * 4 + col % 4] >> place.shift & ((1 << bits) - 1);
}

void PutHalf(uint8_t* scales, int64_t index, uint16_t half) { std::memcpy(scales + 2 * index, &half, 2); }

uint16_t GetHalf(const uint8_t* scales, int64_t index) { return LoadU16(scales + 2 * index); }

// The block that holds a unit, and the unit's place in it.
struct UnitPlace {
  uint8_t* scales;  // of the block
  uint8_t* low;     // of the unit
  uint8_t* high;
  int64_t block_units;
  int64_t in_block;
};

UnitPlace PlaceOfUnit(const PanelLayout& layout, uint8_t* panel, int64_t unit) {
  const int64_t in_block = unit % kBlockUnits;
  const PanelBlock block = BlockOf(layout, panel, unit - in_block);
  // Offsets from the panel, which is the caller's to write.
  return {panel + (block.scales - panel), panel + (block.low - panel) + in_block * layout.low_unit_bytes,
          panel + (block.high - panel) + in_block * layout.high_unit_bytes, block.units, in_block};
}

// Block `b` of a row, at row `row` of the panel.
void PackBlock(const QuantFormat& format, const PanelLayout& layout, const BlockCodes& codes, int64_t b, int row,
               uint8_t* panel) {
  const int units = format.block / kUnitCols;
  for (int u = 0; u < units; ++u) {
    const UnitPlace place = PlaceOfUnit(layout, panel, b * units + u);
    PackPlane(codes.code + u * kUnitCols, 0, format.low_bits, row, place.low);
    if (format.high_bits > 0) {
      PackPlane(codes.code + u * kUnitCols, format.low_bits, format.high_bits, row, place.high);
    }
  }
  const UnitPlace place = PlaceOfUnit(layout, panel, b * units);
  if (!format.sub_scales) {
    PutHalf(place.scales, place.in_block * kPanelRows + row, codes.d);
    if (format.has_min) {
      PutHalf(place.scales, (place.block_units + place.in_block) * kPanelRows + row, codes.m);
    }
    return;
  }
  uint8_t* block = place.scales + place.in_block / 8 * SubScaleBlockBytes(format);
  const int groups = 256 / format.group;
  for (int g = 0; g < groups; ++g) {
    block[g * kPanelRows + row] = static_cast<uint8_t>(codes.scale[g]);
    if (format.has_min) {
      block[(groups + g) * kPanelRows + row] = codes.min[g];
    }
  }
  uint8_t* factors = block + groups * kPanelRows * (format.has_min ? 2 : 1);
  PutHalf(factors, row, codes.d);
  if (format.has_min) {
    PutHalf(factors, kPanelRows + row, codes.m);
  }
}

void PackRow(const Matrix::Impl& m, const uint8_t* file_row, int row, uint8_t* panel) {
  if (m.format == nullptr) {
    const size_t bytes = static_cast<size_t>(m.element_bytes);
    for (int64_t c = 0; c < m.cols; ++c) {
      std::memcpy(panel + static_cast<size_t>(c * kPanelRows + row) * bytes, file_row + static_cast<size_t>(c) * bytes,
                  bytes);
    }
    return;
  }
  const QuantFormat& format = *m.format;
  const int64_t block_bytes = storage::TraitsOf(m.type).block_bytes;
  BlockCodes codes;
  for (int64_t b = 0; b < m.cols / format.block; ++b) {
    DecodeBlock(format, file_row + b * block_bytes, &codes);
    PackBlock(format, m.layout, codes, b, row, panel);
  }
}

// Packs rows [row, end), all of one panel; `file_rows` starts with row `begin`.
void PackRows(const Matrix::Impl& m, const uint8_t* file_rows, int64_t begin, int64_t row, int64_t end) {
  uint8_t* panel = m.memory.data() + row / kPanelRows * m.layout.panel_bytes;
  const uint8_t* from = file_rows + (row - begin) * m.row_bytes;
  if (HasWordCodes(m.type) && end - row == kPanelRows) {  // most bytes of most files
    const uint8_t* rows[kPanelRows];
    for (const uint8_t*& to : rows) {
      to = from;
      from += m.row_bytes;
    }
    return PackPanel(m.type, m.layout, rows, panel);
  }
  for (; row < end; ++row, from += m.row_bytes) {
    PackRow(m, from, static_cast<int>(row % kPanelRows), panel);
  }
}

}  // namespace

namespace {

struct Mapping {
  uint8_t* data = nullptr;
  size_t bytes = 0;
};

// Zeroed pages; those of huge pages' size and more start on a huge page's border. No data when memory is refused.
Mapping MapPages(size_t bytes) {
  // One huge page more than needed is mapped, then the ends are given back.
  const bool huge = bytes >= kHugePageBytes;
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));  // 4, 16 or 64 KiB
  const size_t rounded = (bytes + page - 1) / page * page;
  const size_t mapped = huge ? rounded + kHugePageBytes : rounded;
  void* p = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    return {};
  }
  Mapping result{static_cast<uint8_t*>(p), mapped};
  if (huge) {
    const size_t address = reinterpret_cast<size_t>(p);
    const size_t head = (kHugePageBytes - address % kHugePageBytes) % kHugePageBytes;
    const size_t tail = mapped - head - rounded;
    // Both ends are whole pages. If the kernel refuses all the same, the mapping stays larger, which costs address
    // space and, where its last huge page is then whole, up to 2 MiB.
    if (tail > 0 && munmap(result.data + head + rounded, tail) == 0) {
      result.bytes -= tail;
    }
    if (head > 0 && munmap(result.data, head) == 0) {
      result.data += head;
      result.bytes -= head;
    }
    madvise(result.data, result.bytes, MADV_HUGEPAGE);  // advice: a system without huge pages is merely slower
  }
  return result;
}

// Huge pages that small matrices share; unmapped with the last of them. What nobody was given yet is not there either.
struct SharedPages {
  Mapping mapping;
  size_t used = 0;

  explicit SharedPages(Mapping pages) : mapping(pages) {}
  ~SharedPages() { munmap(mapping.data, mapping.bytes); }
  SharedPages(const SharedPages&) = delete;
  SharedPages& operator=(const SharedPages&) = delete;
};

// The first pages with room for `bytes`, or new ones. Null when memory is refused.
std::shared_ptr<SharedPages> PagesWithRoom(size_t bytes, std::vector<std::weak_ptr<SharedPages>>& all) {
  constexpr size_t kSharedBytes = 16 * kHugePageBytes;
  all.erase(std::remove_if(all.begin(), all.end(), [](const auto& pages) { return pages.expired(); }), all.end());
  for (const std::weak_ptr<SharedPages>& candidate : all) {
    std::shared_ptr<SharedPages> pages = candidate.lock();
    if (pages != nullptr && pages->mapping.bytes - pages->used >= bytes) {
      return pages;
    }
  }
  const Mapping mapping = MapPages(kSharedBytes);
  if (mapping.data == nullptr) {
    return nullptr;
  }
  auto pages = std::make_shared<SharedPages>(mapping);
  all.push_back(pages);
  return pages;
}

}  // namespace

HugeMemory::~HugeMemory() {
  if (data_ != nullptr && shared_ == nullptr) {
    munmap(data_, bytes_);
  }
}

bool HugeMemory::Allocate(size_t bytes) {
  constexpr size_t kSharedMin = 64 << 10;  // below this pages do not matter
  if (bytes >= kSharedMin && bytes < kHugePageBytes) {
    static std::mutex mutex;
    static auto& all = *new std::vector<std::weak_ptr<SharedPages>>();  // never destroyed: matrices may outlive it
    const std::lock_guard<std::mutex> lock(mutex);
    const size_t rounded = (bytes + 63) / 64 * 64;
    const std::shared_ptr<SharedPages> pages = PagesWithRoom(rounded, all);
    if (pages == nullptr) {
      return false;
    }
    data_ = pages->mapping.data + pages->used;
    bytes_ = rounded;
    pages->used += rounded;
    shared_ = pages;
    return true;
  }
  const Mapping mapping = MapPages(bytes);
  data_ = mapping.data;
  bytes_ = mapping.bytes;
  return data_ != nullptr;
}

Matrix::Matrix() : impl_(std::make_unique<Impl>()) {}
Matrix::~Matrix() = default;
Matrix::Matrix(Matrix&&) noexcept = default;
Matrix& Matrix::operator=(Matrix&&) noexcept = default;

absl::StatusOr<Matrix> Matrix::Create(TensorType type, int64_t rows, int64_t cols) {
  constexpr int64_t kElementsMax = int64_t{1} << 40;
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  if (!IsSupportedWeightType(type) || rows <= 0 || cols <= 0 || rows > kElementsMax / cols ||
      cols % traits.block_elements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("no kernel takes a ", std::string(traits.name), " matrix of ", rows,
                                                   " rows and ", cols, " columns (columns must be a multiple of ",
                                                   traits.block_elements, ")"));
  }
  Matrix matrix;
  Impl& impl = *matrix.impl_;
  impl.type = type;
  impl.format = FindQuantFormat(type);
  impl.rows = rows;
  impl.cols = cols;
  impl.row_bytes = cols / traits.block_elements * traits.block_bytes;
  if (impl.format != nullptr) {
    impl.layout = MakePanelLayout(*impl.format, cols);
  } else {
    impl.element_bytes = traits.block_bytes;
    impl.layout.panel_bytes = cols * kPanelRows * impl.element_bytes;
  }
  const size_t bytes = static_cast<size_t>(impl.panels() * impl.layout.panel_bytes);
  if (!impl.memory.Allocate(bytes)) {
    return absl::ResourceExhaustedError(absl::StrCat("the system refused ", bytes, " bytes for a weight matrix"));
  }
  return matrix;
}

absl::Status Matrix::AppendRows(absl::Span<const uint8_t> file_bytes, ThreadPool* pool) {
  Impl& impl = *impl_;
  const int64_t size = static_cast<int64_t>(file_bytes.size());
  if (impl.row_bytes == 0 || size % impl.row_bytes != 0 || size / impl.row_bytes > impl.rows - impl.appended) {
    return absl::InvalidArgumentError(absl::StrCat(size, " bytes are not whole rows (", impl.row_bytes,
                                                   " bytes each) of the ", impl.rows - impl.appended, " missing"));
  }
  const int64_t begin = impl.appended;
  const int64_t end = begin + size / impl.row_bytes;
  const int64_t first_panel = begin / kPanelRows;
  const int64_t panels = (end + kPanelRows - 1) / kPanelRows - first_panel;
  const auto pack = [&](int64_t from, int64_t to, int) {
    for (int64_t p = first_panel + from; p < first_panel + to; ++p) {
      PackRows(impl, file_bytes.data(), begin, std::max(begin, p * kPanelRows), std::min(end, (p + 1) * kPanelRows));
    }
  };
  if (pool != nullptr) {
    pool->ParallelFor(panels, kPanelsTogether, pack);
  } else {
    pack(0, panels, 0);
  }
  impl.appended = end;
  return absl::OkStatus();
}

bool Matrix::complete() const { return impl_->rows > 0 && impl_->appended == impl_->rows; }
TensorType Matrix::type() const { return impl_->type; }
int64_t Matrix::rows() const { return impl_->rows; }
int64_t Matrix::cols() const { return impl_->cols; }
size_t Matrix::resident_bytes() const {
  return impl_->memory.bytes() + (impl_->onednn == nullptr ? 0 : impl_->onednn->bytes());
}

void Matrix::DequantizeRowTo(int64_t row, float* out) const {
  const Impl& m = *impl_;
  const uint8_t* panel = m.panel(row / kPanelRows);
  const int r = static_cast<int>(row % kPanelRows);
  if (m.format == nullptr) {
    for (int64_t c = 0; c < m.cols; ++c) {
      DequantizeRow(m.type, panel + (c * kPanelRows + r) * m.element_bytes, 1, out + c);
    }
    return;
  }
  const QuantFormat& f = *m.format;
  for (int64_t first = 0; first < m.cols; first += f.group) {
    const int64_t unit = first / kUnitCols;
    const int64_t in_block = unit % kBlockUnits;
    const PanelBlock place = BlockOf(m.layout, panel, unit - in_block);
    float scale;
    float min = 0;
    if (f.sub_scales) {
      const uint8_t* block = place.scales + in_block / 8 * SubScaleBlockBytes(f);
      const int groups = 256 / f.group;
      const int64_t at = first % 256 / f.group * kPanelRows + r;
      const uint8_t* factors = block + groups * kPanelRows * (f.has_min ? 2 : 1);
      scale = HalfToFloat(GetHalf(factors, r)) * static_cast<float>(static_cast<int8_t>(block[at]));
      if (f.has_min) {
        min = -HalfToFloat(GetHalf(factors, kPanelRows + r)) * static_cast<float>(block[groups * kPanelRows + at]);
      }
    } else {
      const int64_t at = in_block * kPanelRows + r;
      scale = HalfToFloat(GetHalf(place.scales, at));
      if (f.has_min) {
        min = HalfToFloat(GetHalf(place.scales, place.units * kPanelRows + at));
      }
    }
    const uint8_t* low = place.low + in_block * m.layout.low_unit_bytes;
    const uint8_t* high = place.high + in_block * m.layout.high_unit_bytes;
    for (int i = 0; i < f.group; ++i) {
      const int col = static_cast<int>(first % kUnitCols) + i;
      int level = UnpackCode(low, f.low_bits, r, col);
      if (f.high_bits > 0) {
        level |= UnpackCode(high, f.high_bits, r, col) << f.low_bits;
      }
      if (f.code_book) {
        level = kIq4Levels[level];
      } else if (f.low_bits == 8) {
        level = static_cast<int8_t>(level);
      } else if (!f.has_min) {
        level -= f.bias;
      }
      out[first + i] = f.has_min ? scale * static_cast<float>(level) + min : scale * static_cast<float>(level);
    }
  }
}

}  // namespace embergate::engine
