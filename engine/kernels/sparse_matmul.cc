#include "engine/kernels/sparse_matmul.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/kernels/column_format.h"
#include "engine/kernels/kernel_table.h"
#include "engine/kernels/matrix_impl.h"
#include "engine/kernels/panel_pack.h"

namespace embergate::engine {

using storage::TensorType;

// What both kinds of matrix hold.
struct SparseMatrixData {
  TensorType type = TensorType::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_bytes = 0;  // in the file
  int64_t appended = 0;
  HugeMemory memory;
};
struct RowMatrix::Impl : SparseMatrixData {};
struct ColumnMatrix::Impl : SparseMatrixData {
  int64_t groups() const { return cols / kUnitCols; }
  int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  int64_t tile_bytes() const { return groups() * kTileGroupBytes; }
  const uint8_t* tile(int64_t t) const { return memory.data() + t * tile_bytes(); }
};

namespace {

// Panels that are made, then multiplied, together: many enough that many tokens' activations are read from the second
// cache, few enough that the panels stay there too.
constexpr int64_t kScratchPanels = 8;
// Tokens whose sums of a tile stay in the first-level cache.
constexpr int kTokenBlock = 16;
// Groups whose columns are fetched ahead: about 2 us of memory's time.
constexpr int64_t kGroupsAhead = 6;

void CheckShape(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "embergate: sparse product: %s\n", what);
    std::abort();
  }
}

absl::Status Prepare(TensorType type, bool taken, int64_t rows, int64_t cols, SparseMatrixData& data) {
  constexpr int64_t kElementsMax = int64_t{1} << 40;
  const storage::TensorTypeTraits& traits = storage::TraitsOf(type);
  if (!taken || rows <= 0 || cols <= 0 || rows > kElementsMax / cols || cols % traits.block_elements != 0) {
    return absl::InvalidArgumentError(absl::StrCat("no sparse kernel takes a ", std::string(traits.name), " matrix of ",
                                                   rows, " rows and ", cols, " columns"));
  }
  data.type = type;
  data.rows = rows;
  data.cols = cols;
  data.row_bytes = cols / traits.block_elements * traits.block_bytes;
  return absl::OkStatus();
}

absl::Status Allocate(SparseMatrixData& data, int64_t bytes) {
  if (!data.memory.Allocate(static_cast<size_t>(bytes))) {
    return absl::ResourceExhaustedError(absl::StrCat("the system refused ", bytes, " bytes for a weight matrix"));
  }
  return absl::OkStatus();
}

// The number of whole rows in `file_bytes`.
absl::StatusOr<int64_t> CountRows(const SparseMatrixData& data, absl::Span<const uint8_t> file_bytes) {
  const int64_t size = static_cast<int64_t>(file_bytes.size());
  if (data.row_bytes == 0 || size % data.row_bytes != 0 || size / data.row_bytes > data.rows - data.appended) {
    return absl::InvalidArgumentError(absl::StrCat(size, " bytes are not whole rows (", data.row_bytes,
                                                   " bytes each) of the ", data.rows - data.appended, " missing"));
  }
  return size / data.row_bytes;
}

// Bit c of unit u's mask: whether q[c] is not zero. Eight bytes at a time: the top bit of each says so, a
// multiplication moves the eight bits together (the first byte's to the lowest).
uint32_t MaskOf(const ActivationUnit& unit) {
  uint32_t mask = 0;
  for (int i = 0; i < 4; ++i) {
    uint64_t q;
    std::memcpy(&q, unit.q + 8 * i, 8);
    constexpr uint64_t kLowSeven = 0x7f7f7f7f7f7f7f7fu;
    const uint64_t set = (((q & kLowSeven) + kLowSeven) | q) >> 7 & 0x0101010101010101u;
    mask |= static_cast<uint32_t>(set * 0x0102040810204080u >> 56) << (8 * i);
  }
  return mask;
}

}  // namespace

struct SparseScratch::Impl {
  int64_t panel_bytes_max = 0;       // of a worker's panels together
  std::vector<Matrix::Impl> panels;  // by worker; described anew for each product
  HugeMemory sums;                   // [workers][kTokenBlock][kTileRows] f32
  std::vector<uint32_t> masks;       // [tokens][groups]

  float* SumsOf(int worker) const {
    return reinterpret_cast<float*>(sums.data()) + int64_t{worker} * kTokenBlock * kTileRows;
  }
  // Makes every worker's panels those of a matrix of `type` and `cols`; returns how many they hold.
  int64_t Describe(TensorType type, int64_t cols) {
    for (Matrix::Impl& w : panels) {
      w.type = type;
      w.format = FindQuantFormat(type);
      w.cols = cols;
      w.layout = MakePanelLayout(*w.format, cols);
    }
    const int64_t count = std::min(kScratchPanels, panel_bytes_max / panels[0].layout.panel_bytes);
    CheckShape(count > 0, "the matrix exceeds what was reserved");
    return count;
  }
};

RowMatrix::RowMatrix() : impl_(std::make_unique<Impl>()) {}
RowMatrix::~RowMatrix() = default;
RowMatrix::RowMatrix(RowMatrix&&) noexcept = default;
RowMatrix& RowMatrix::operator=(RowMatrix&&) noexcept = default;

bool RowMatrix::Takes(TensorType type) { return HasWordCodes(type); }

absl::StatusOr<RowMatrix> RowMatrix::Create(TensorType type, int64_t rows, int64_t cols) {
  RowMatrix matrix;
  Impl& impl = *matrix.impl_;
  absl::Status status = Prepare(type, Takes(type), rows, cols, impl);
  if (status.ok()) {
    status = Allocate(impl, rows * impl.row_bytes);
  }
  if (!status.ok()) {
    return status;
  }
  return matrix;
}

absl::Status RowMatrix::AppendRows(absl::Span<const uint8_t> file_bytes) {
  const absl::StatusOr<int64_t> count = CountRows(*impl_, file_bytes);
  if (!count.ok()) {
    return count.status();
  }
  if (*count > 0) {
    std::memcpy(impl_->memory.data() + impl_->appended * impl_->row_bytes, file_bytes.data(), file_bytes.size());
  }
  impl_->appended += *count;
  return absl::OkStatus();
}

bool RowMatrix::complete() const { return impl_->rows > 0 && impl_->appended == impl_->rows; }
TensorType RowMatrix::type() const { return impl_->type; }
int64_t RowMatrix::rows() const { return impl_->rows; }
int64_t RowMatrix::cols() const { return impl_->cols; }
size_t RowMatrix::resident_bytes() const { return impl_->memory.bytes(); }

ColumnMatrix::ColumnMatrix() : impl_(std::make_unique<Impl>()) {}
ColumnMatrix::~ColumnMatrix() = default;
ColumnMatrix::ColumnMatrix(ColumnMatrix&&) noexcept = default;
ColumnMatrix& ColumnMatrix::operator=(ColumnMatrix&&) noexcept = default;

bool ColumnMatrix::Takes(TensorType type) { return type == TensorType::kQ4_0; }

absl::StatusOr<ColumnMatrix> ColumnMatrix::Create(TensorType type, int64_t rows, int64_t cols) {
  ColumnMatrix matrix;
  Impl& impl = *matrix.impl_;
  absl::Status status = Prepare(type, Takes(type), rows, cols, impl);
  if (status.ok()) {
    status = Allocate(impl, impl.tiles() * impl.tile_bytes());
  }
  if (!status.ok()) {
    return status;
  }
  return matrix;
}

absl::Status ColumnMatrix::AppendRows(absl::Span<const uint8_t> file_bytes) {
  Impl& impl = *impl_;
  const absl::StatusOr<int64_t> count = CountRows(impl, file_bytes);
  if (!count.ok()) {
    return count.status();
  }
  const uint8_t* from = file_bytes.data();
  const int64_t end = impl.appended + *count;
  while (impl.appended < end) {
    const uint8_t* eight[8] = {};
    const int64_t row = impl.appended;
    for (int64_t i = row % 8; i < 8 && impl.appended < end; ++i) {
      eight[i] = from;
      from += impl.row_bytes;
      ++impl.appended;
    }
    uint8_t* tile = impl.memory.data() + row / kTileRows * impl.tile_bytes();
    PackTileRows(eight, impl.groups(), static_cast<int>(row % kTileRows / 8 * 8), tile);
  }
  return absl::OkStatus();
}

bool ColumnMatrix::complete() const { return impl_->rows > 0 && impl_->appended == impl_->rows; }
TensorType ColumnMatrix::type() const { return impl_->type; }
int64_t ColumnMatrix::rows() const { return impl_->rows; }
int64_t ColumnMatrix::cols() const { return impl_->cols; }
size_t ColumnMatrix::resident_bytes() const { return impl_->memory.bytes(); }

SparseScratch::SparseScratch() : impl_(std::make_unique<Impl>()) {}
SparseScratch::~SparseScratch() = default;
SparseScratch::SparseScratch(SparseScratch&&) noexcept = default;
SparseScratch& SparseScratch::operator=(SparseScratch&&) noexcept = default;

namespace {

// Panels of Q4_0; of Q8_0, whose panels are twice as large, fewer fit.
int64_t ScratchPanelBytes(int64_t cols_max) {
  const int64_t cols = (cols_max + kUnitCols - 1) / kUnitCols * kUnitCols;
  return kScratchPanels * MakePanelLayout(*FindQuantFormat(TensorType::kQ4_0), cols).panel_bytes;
}

}  // namespace

uint64_t SparseScratch::BytesFor(int tokens_max, int64_t cols_max, int workers) {
  return static_cast<uint64_t>(workers) * (ScratchPanelBytes(cols_max) + kTokenBlock * kTileRows * sizeof(float)) +
         static_cast<uint64_t>(tokens_max) * ((cols_max + kUnitCols - 1) / kUnitCols) * sizeof(uint32_t);
}

absl::StatusOr<SparseScratch> SparseScratch::Create(int tokens_max, int64_t cols_max, int workers) {
  SparseScratch scratch;
  Impl& impl = *scratch.impl_;
  impl.panel_bytes_max = ScratchPanelBytes(cols_max);
  impl.panels = std::vector<Matrix::Impl>(static_cast<size_t>(workers));
  bool allocated = impl.sums.Allocate(static_cast<size_t>(workers) * kTokenBlock * kTileRows * sizeof(float));
  for (Matrix::Impl& panels : impl.panels) {
    allocated = allocated && panels.memory.Allocate(static_cast<size_t>(impl.panel_bytes_max));
  }
  if (!allocated) {
    return absl::ResourceExhaustedError("no memory for the scratch of sparse products");
  }
  impl.masks.resize(static_cast<size_t>(tokens_max) * ((cols_max + kUnitCols - 1) / kUnitCols));
  return scratch;
}

uint64_t SparseScratch::bytes() const {
  uint64_t bytes = impl_->sums.bytes() + impl_->masks.size() * sizeof(uint32_t);
  for (const Matrix::Impl& panels : impl_->panels) {
    bytes += panels.memory.bytes();
  }
  return bytes;
}

SparseWork MatMulRows(const RowMatrix& w, const int32_t* rows, int64_t count, MatMulInput& x, float* y,
                      int64_t y_stride, SparseScratch& scratch, ThreadPool& pool) {
  const RowMatrix::Impl& matrix = w.impl();
  MatMulInput::Impl& input = x.impl();
  CheckShape(matrix.cols == input.cols, "the input's width is not the matrix's");
  CheckShape(w.complete(), "rows are missing");
  CheckShape(count <= matrix.rows, "more rows than the matrix has");
  if (input.n == 0 || count == 0) {
    return {};
  }
  SparseScratch::Impl& s = scratch.impl();
  const int64_t panels_max = s.Describe(matrix.type, matrix.cols);
  const QuantFormat& format = *s.panels[0].format;
  input.Prepare(Kernels().matmul->quant[format.index].bias, format.group, pool);
  const int64_t panels = (count + kPanelRows - 1) / kPanelRows;
  const auto row_of = [&](int64_t i) {
    return matrix.memory.data() + (rows == nullptr ? i : rows[i]) * matrix.row_bytes;
  };
  const int64_t grain = std::clamp<int64_t>(panels / (4 * pool.threads()), 1, panels_max);
  pool.ParallelFor(panels, grain, [&](int64_t begin, int64_t end, int worker) {
    Matrix::Impl& made = s.panels[static_cast<size_t>(worker)];
    for (int64_t first = begin; first < end; first += panels_max) {
      const int64_t last = std::min(end, first + panels_max);
      made.rows = std::min(last * kPanelRows, count) - first * kPanelRows;
      for (int64_t p = first; p < last; ++p) {
        const uint8_t* sixteen[kPanelRows];
        for (int64_t i = 0; i < kPanelRows; ++i) {
          const int64_t at = p * kPanelRows + i;
          sixteen[i] = at < count ? row_of(at) : nullptr;
          // Rows that lie apart: the processor does not see what comes next.
          if (rows != nullptr && at + kPanelRows < std::min(count, end * kPanelRows)) {
            const uint8_t* next = row_of(at + kPanelRows);
            for (int64_t line = 0; line < matrix.row_bytes; line += 64) {
              __builtin_prefetch(next + line);
            }
          }
        }
        PackPanel(matrix.type, made.layout, sixteen, made.memory.data() + (p - first) * made.layout.panel_bytes);
      }
      MultiplyPanels(made, input, y + first * kPanelRows, y_stride, 0, last - first);
    }
  });
  return {static_cast<uint64_t>(count * matrix.row_bytes), static_cast<uint64_t>(count * matrix.cols * input.n)};
}

namespace {

// Lists each token's columns in `masks`; returns how many there are in all, and the bytes of weights that they take.
uint64_t MarkColumns(const ColumnMatrix::Impl& w, const MatMulInput::Impl& x, uint32_t* masks, ThreadPool& pool,
                     uint64_t* bytes) {
  const int64_t groups = w.groups();
  pool.ParallelFor(x.n, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t g = 0; g < groups; ++g) {
        masks[t * groups + g] = MaskOf(x.unit_data()[t * x.units_per_token() + g]);
      }
    }
  });
  uint64_t active = 0;
  int64_t columns_read = 0;
  int64_t groups_read = 0;
  for (int64_t g = 0; g < groups; ++g) {
    uint32_t together = 0;
    for (int64_t t = 0; t < x.n; ++t) {
      const uint32_t mask = masks[t * groups + g];
      active += static_cast<uint64_t>(__builtin_popcount(mask));
      together |= mask;
    }
    columns_read += __builtin_popcount(together);
    groups_read += together != 0 ? 1 : 0;
  }
  *bytes = static_cast<uint64_t>(w.tiles() * (columns_read * kColumnBytes + groups_read * 2 * kTileRows));
  return active;
}

void Prefetch(const uint8_t* group, uint32_t mask) {
  if (mask == 0) {
    return;
  }
  for (uint32_t left = mask; left != 0; left &= left - 1) {
    const uint8_t* column = group + __builtin_ctz(left) * kColumnBytes;
    __builtin_prefetch(column);
    __builtin_prefetch(column + 64);
  }
  for (int i = 0; i < 2 * kTileRows; i += 64) {
    __builtin_prefetch(group + kTileScalesOffset + i);
  }
}

// Tile `tile` for tokens [begin, end), at most kTokenBlock of them.
void MultiplyTile(const ColumnMatrix::Impl& w, const MatMulInput::Impl& x, const uint32_t* masks, int64_t tile,
                  int64_t begin, int64_t end, float* sums, float* y, int64_t y_stride) {
  const SparseTable& table = *Kernels().sparse;
  const int64_t groups = w.groups();
  std::memset(sums, 0, static_cast<size_t>((end - begin) * kTileRows) * sizeof(float));
  const uint8_t* group = w.tile(tile);
  uint8_t columns[kUnitCols];
  ColumnTask task;
  task.columns = columns;
  for (int64_t g = 0; g < groups; ++g, group += kTileGroupBytes) {
    if (begin == 0 && g + kGroupsAhead < groups) {
      Prefetch(group + kGroupsAhead * kTileGroupBytes, masks[g + kGroupsAhead]);
    }
    task.group = group;
    for (int64_t t = begin; t < end; ++t) {
      const uint32_t mask = masks[t * groups + g];
      if (mask == 0) {
        continue;
      }
      task.count = 0;
      for (uint32_t left = mask; left != 0; left &= left - 1) {
        columns[task.count++] = static_cast<uint8_t>(__builtin_ctz(left));
      }
      const ActivationUnit& unit = x.unit_data()[t * x.units_per_token() + g];
      task.x = &unit;
      task.init =
          static_cast<int16_t>(-8 * (unit.pairs[0][0] + unit.pairs[0][1] + unit.pairs[1][0] + unit.pairs[1][1]));
      task.acc = sums + (t - begin) * kTileRows;
      table.columns(task);
    }
  }
  const int64_t rows = std::min<int64_t>(kTileRows, w.rows - tile * kTileRows);
  for (int64_t t = begin; t < end; ++t) {
    std::copy_n(sums + (t - begin) * kTileRows, rows, y + t * y_stride + tile * kTileRows);
  }
}

void MultiplyWhole(const ColumnMatrix::Impl& w, const MatMulInput::Impl& x, float* y, int64_t y_stride,
                   SparseScratch::Impl& s, ThreadPool& pool) {
  const int64_t panels_max = s.Describe(w.type, w.cols);
  const int64_t panels = (w.rows + kPanelRows - 1) / kPanelRows;
  pool.ParallelFor(panels, panels_max, [&](int64_t begin, int64_t end, int worker) {
    Matrix::Impl& made = s.panels[static_cast<size_t>(worker)];
    for (int64_t first = begin; first < end; first += panels_max) {
      const int64_t last = std::min(end, first + panels_max);
      made.rows = std::min(last * kPanelRows, w.rows) - first * kPanelRows;
      for (int64_t p = first; p < last; ++p) {
        const int64_t row = p * kPanelRows;
        ExpandTileRows(made.layout, w.tile(row / kTileRows), static_cast<int>(row % kTileRows),
                       made.memory.data() + (p - first) * made.layout.panel_bytes);
      }
      MultiplyPanels(made, x, y + first * kPanelRows, y_stride, 0, last - first);
    }
  });
}

}  // namespace

SparseWork MatMulColumns(const ColumnMatrix& w, MatMulInput& x, float* y, int64_t y_stride, SparseScratch& scratch,
                         ThreadPool& pool, float dense_above) {
  const ColumnMatrix::Impl& matrix = w.impl();
  MatMulInput::Impl& input = x.impl();
  CheckShape(matrix.cols == input.cols, "the input's width is not the matrix's");
  CheckShape(w.complete(), "rows are missing");
  SparseScratch::Impl& s = scratch.impl();
  CheckShape(static_cast<size_t>(input.n * matrix.groups()) <= s.masks.size(), "more tokens than were reserved");
  if (input.n == 0) {
    return {};
  }
  const QuantFormat& format = *FindQuantFormat(matrix.type);
  input.Prepare(Kernels().matmul->quant[format.index].bias, format.group, pool);
  uint64_t bytes = 0;
  const uint64_t active = MarkColumns(matrix, input, s.masks.data(), pool, &bytes);
  if (static_cast<float>(active) > dense_above * static_cast<float>(input.n * matrix.cols)) {
    MultiplyWhole(matrix, input, y, y_stride, s, pool);
    return {static_cast<uint64_t>(matrix.tiles() * matrix.tile_bytes()),
            static_cast<uint64_t>(matrix.rows * matrix.cols * input.n)};
  }
  const int64_t blocks = (input.n + kTokenBlock - 1) / kTokenBlock;
  pool.ParallelFor(matrix.tiles() * blocks, 1, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t token = item % blocks * kTokenBlock;
      MultiplyTile(matrix, input, s.masks.data(), item / blocks, token, std::min<int64_t>(input.n, token + kTokenBlock),
                   s.SumsOf(worker), y, y_stride);
    }
  });
  return {bytes, active * static_cast<uint64_t>(matrix.rows)};
}

}  // namespace embergate::engine
