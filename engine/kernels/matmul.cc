// Products: quantising the activations, and cutting a product into tiles for the kernels in use.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "engine/kernels/kernel_table.h"
#include "engine/kernels/matrix_impl.h"

namespace embergate::engine {
namespace {

// Shapes were checked when the model was loaded: a mismatch here is a bug.
void CheckShape(bool ok, const char* what) {
  if (!ok) {
    std::fprintf(stderr, "embergate: product of matrices: %s\n", what);
    std::abort();
  }
}

// Tokens whose activations of one column block (96 * 32 units * 64 bytes = 192 KiB) stay in the second-level cache
// while the panels of a range pass over them.
constexpr int kTokenBlock = 96;
constexpr int64_t kPanelsPerRange = 8;

struct alignas(64) Scratch {
  float scale[2 * QuantTile::kPanelScales];
  float min[2 * QuantTile::kPanelScales];
};

// The accumulators of one panel: y itself where the panel is whole, otherwise a copy (rows past the end are padding).
class PanelOutput {
 public:
  PanelOutput(float* y, int64_t y_stride, int64_t rows_left, int tokens, float* copy)
      : y_(y), y_stride_(y_stride), rows_(std::min<int64_t>(rows_left, kPanelRows)), tokens_(tokens), copy_(copy) {}
  float* acc() const { return rows_ == kPanelRows ? y_ : copy_; }
  int64_t stride() const { return rows_ == kPanelRows ? y_stride_ : kPanelRows; }
  void Finish() const {
    for (int t = 0; rows_ != kPanelRows && t < tokens_; ++t) {
      std::copy_n(copy_ + t * kPanelRows, rows_, y_ + t * y_stride_);
    }
  }

 private:
  float* y_;
  int64_t y_stride_;
  int64_t rows_;
  int tokens_;
  float* copy_;
};

struct Product {
  const Matrix::Impl& w;
  const MatMulInput::Impl& x;
  float* y;
  int64_t y_stride;
};

// The scales lie behind a panel's planes: the next block's are fetched while this one is computed.
void PrefetchBlockScales(const PanelLayout& layout, const uint8_t* panel, int64_t unit) {
  const int64_t unit_bytes = (layout.panel_bytes - layout.scale_offset) / layout.units;
  const uint8_t* scales = panel + layout.scale_offset + unit * unit_bytes;
  for (int64_t i = 0; i < kBlockUnits * unit_bytes; i += 64) {
    __builtin_prefetch(scales + i);
  }
}

// Few tokens: each panel is streamed once, codes go from memory to registers.
void FewTokens(const Product& p, int64_t panel_begin, int64_t panel_end) {
  const MatMulTable& table = *Kernels().matmul;
  const QuantFormat& format = *p.w.format;
  const PanelLayout& layout = p.w.layout;
  Scratch scratch;
  alignas(64) float copy[16 * kPanelRows];
  QuantTile tile;
  tile.scale = scratch.scale;
  tile.min = format.has_min ? scratch.min : nullptr;
  tile.x_stride = p.x.units_per_token();
  tile.tokens = p.x.n;
  for (int64_t i = panel_begin; i < panel_end; ++i) {
    const uint8_t* panel = p.w.panel(i);
    const PanelOutput output(p.y + i * kPanelRows, p.y_stride, p.w.rows - i * kPanelRows, p.x.n, copy);
    tile.acc = output.acc();
    tile.acc_stride = output.stride();
    for (int64_t unit = 0; unit < layout.units; unit += kBlockUnits) {
      tile.units = static_cast<int>(std::min<int64_t>(kBlockUnits, layout.units - unit));
      table.expand_scales(format, panel + layout.scale_offset, layout.units, unit, tile.units, scratch.scale,
                          scratch.min);
      if (unit + kBlockUnits < layout.units) {
        PrefetchBlockScales(layout, panel, unit + kBlockUnits);
      } else if (i + 1 < panel_end) {
        PrefetchBlockScales(layout, p.w.panel(i + 1), 0);
      }
      tile.low = panel + unit * layout.low_unit_bytes;
      tile.high = panel + layout.high_offset + unit * layout.high_unit_bytes;
      tile.x = p.x.unit_data() + unit;
      tile.first = unit == 0;
      table.quant[format.index].packed(tile);
    }
    output.Finish();
  }
}

// Many tokens: a block of a panel (or two) is unpacked to bytes once, then meets all tokens of a block.
void ManyTokens(const Product& p, int64_t panel_begin, int64_t panel_end) {
  const MatMulTable& table = *Kernels().matmul;
  const QuantFormat& format = *p.w.format;
  const QuantKernels& kernels = table.quant[format.index];
  const PanelLayout& layout = p.w.layout;
  const int64_t whole_panels = p.w.rows / kPanelRows;
  Scratch scratch;
  alignas(64) uint8_t unpacked[2 * QuantTile::kPanelBytes];
  alignas(64) float copy[kTokenBlock * kPanelRows];
  QuantTile tile;
  tile.low = unpacked;
  tile.high = nullptr;
  tile.scale = scratch.scale;
  tile.min = format.has_min ? scratch.min : nullptr;
  tile.x_stride = p.x.units_per_token();
  for (int token = 0; token < p.x.n; token += kTokenBlock) {
    const int tokens = std::min(kTokenBlock, p.x.n - token);
    for (int64_t unit = 0; unit < layout.units; unit += kBlockUnits) {
      tile.units = static_cast<int>(std::min<int64_t>(kBlockUnits, layout.units - unit));
      tile.first = unit == 0;
      for (int64_t i = panel_begin; i < panel_end; i += tile.panels) {
        tile.panels = i + table.unpacked_panels <= std::min(panel_end, whole_panels) ? table.unpacked_panels : 1;
        for (int k = 0; k < tile.panels; ++k) {
          const uint8_t* panel = p.w.panel(i + k);
          table.expand_scales(format, panel + layout.scale_offset, layout.units, unit, tile.units,
                              scratch.scale + k * QuantTile::kPanelScales, scratch.min + k * QuantTile::kPanelScales);
          kernels.unpack(panel + unit * layout.low_unit_bytes,
                         panel + layout.high_offset + unit * layout.high_unit_bytes, tile.units,
                         unpacked + k * QuantTile::kPanelBytes);
        }
        // Only a matrix's last panel is partial, and it is the last of its range: its copy survives the column blocks.
        const PanelOutput output(p.y + token * p.y_stride + i * kPanelRows, p.y_stride, p.w.rows - i * kPanelRows,
                                 tokens, copy);
        tile.acc_stride = output.stride();
        for (int t = 0; t < tokens; t += table.unpacked_tokens_max) {
          tile.tokens = std::min(table.unpacked_tokens_max, tokens - t);
          tile.x = p.x.unit_data() + (token + t) * tile.x_stride + unit;
          tile.acc = output.acc() + t * tile.acc_stride;
          kernels.unpacked(tile);
        }
        if (unit + tile.units == layout.units) {
          output.Finish();
        }
      }
    }
  }
}

void FloatProduct(const Product& p, int64_t panel_begin, int64_t panel_end) {
  const MatMulTable& table = *Kernels().matmul;
  const FloatTileFunction kernel = p.w.type == storage::TensorType::kF32   ? table.f32
                                   : p.w.type == storage::TensorType::kF16 ? table.f16
                                                                           : table.bf16;
  // 512 columns of a panel are 32 KiB in f32: the block stays in the first-level cache over all tokens of a block.
  constexpr int64_t kCols = 4 * kFloatRun;
  alignas(64) float copy[kTokenBlock * kPanelRows];
  FloatTile tile;
  tile.x_stride = p.x.stride;
  for (int token = 0; token < p.x.n; token += kTokenBlock) {
    const int tokens = std::min(kTokenBlock, p.x.n - token);
    for (int64_t i = panel_begin; i < panel_end; ++i) {
      const PanelOutput output(p.y + token * p.y_stride + i * kPanelRows, p.y_stride, p.w.rows - i * kPanelRows, tokens,
                               copy);
      tile.acc_stride = output.stride();
      for (int64_t col = 0; col < p.w.cols; col += kCols) {
        tile.cols = std::min(kCols, p.w.cols - col);
        tile.w = p.w.panel(i) + col * kPanelRows * p.w.element_bytes;
        tile.first = col == 0;
        for (int t = 0; t < tokens; t += table.float_tokens_max) {
          tile.tokens = std::min(table.float_tokens_max, tokens - t);
          tile.x = p.x.x + (token + t) * p.x.stride + col;
          tile.acc = output.acc() + t * tile.acc_stride;
          kernel(tile);
        }
      }
      output.Finish();
    }
  }
}

std::atomic<MatMulBackend> g_backend{MatMulBackend::kOwn};

// False when it is not oneDNN's turn, or it could not.
bool MultiplyWithOneDnn(const Matrix& w, const Product& p) {
  if (g_backend.load(std::memory_order_relaxed) != MatMulBackend::kOneDnn || p.x.n < kOneDnnTokensMin ||
      p.w.onednn_refused) {
    return false;
  }
  if (p.w.onednn == nullptr) {
    p.w.onednn = OneDnnWeights::Create(w);
  }
  if (p.w.onednn == nullptr || !p.w.onednn->Multiply(p.x.x, p.x.n, p.x.stride, p.y, p.y_stride)) {
    p.w.onednn_refused = true;
    p.w.onednn = nullptr;
    return false;
  }
  return true;
}

void SetInit(InitForm form, int bias, int group, int64_t units, ActivationUnit* unit) {
  for (int64_t u = 0; u < units; ++u, ++unit) {
    for (int h = 0; h < 2; ++h) {
      int a = unit->pairs[h][0];
      int b = unit->pairs[h][1];
      if (group == kUnitCols) {
        a = unit->pairs[0][0] + unit->pairs[1][0];
        b = unit->pairs[0][1] + unit->pairs[1][1];
      }
      if (form == InitForm::kTotals) {
        unit->init[h] = -bias * (a + b);
      } else if (form == InitForm::kMagicTotals) {
        unit->init[h] = 0x4b400000 - bias * (a + b);
      } else {
        const uint32_t low = static_cast<uint32_t>(-bias * a) & 0xffffu;
        const uint32_t high = static_cast<uint32_t>(-bias * b) & 0xffffu;
        unit->init[h] = static_cast<int32_t>(low | high << 16);
      }
    }
  }
}

}  // namespace

void MatMulInput::Impl::Prepare(int bias, int group, ThreadPool& pool) {
  const MatMulTable& table = *Kernels().matmul;
  if (quantized && init_bias == bias && init_group == group) {
    return;
  }
  const int64_t per_token = units_per_token();
  ActivationUnit* out = reinterpret_cast<ActivationUnit*>(units.data());
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(per_token, 1));
  pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      if (!quantized) {
        table.quantize(x + t * stride, cols, out + t * per_token);
      }
      SetInit(table.init_form, bias, group, cols / kUnitCols, out + t * per_token);
    }
  });
  quantized = true;
  init_bias = bias;
  init_group = group;
}

MatMulInput::MatMulInput(int tokens_max, int64_t cols_max) : impl_(std::make_unique<Impl>()) {
  impl_->tokens_max = tokens_max;
  impl_->cols_max = cols_max;
  const size_t units =
      static_cast<size_t>(tokens_max) * static_cast<size_t>(Impl::PaddedUnits((cols_max + kUnitCols - 1) / kUnitCols));
  CheckShape(impl_->units.Allocate(std::max<size_t>(units, 1) * sizeof(ActivationUnit)), "no memory for activations");
}

MatMulInput::~MatMulInput() = default;

void MatMulInput::Set(const float* x, int n, int64_t cols, int64_t stride) {
  CheckShape(n <= impl_->tokens_max && cols <= impl_->cols_max, "the input exceeds what was reserved");
  impl_->x = x;
  impl_->n = n;
  impl_->cols = cols;
  impl_->stride = stride;
  impl_->quantized = false;
}

size_t MatMulInput::resident_bytes() const { return impl_->units.bytes(); }

absl::Status SetMatMulBackend(MatMulBackend backend) {
  if (backend == MatMulBackend::kOneDnn && !OneDnnWeights::Available()) {
    return absl::UnimplementedError("this build has no oneDNN; use the own kernels");
  }
  g_backend.store(backend, std::memory_order_relaxed);
  return absl::OkStatus();
}

void MatMul(const Matrix& w, MatMulInput& x, float* y, int64_t y_stride, ThreadPool& pool) {
  const Matrix::Impl& matrix = w.impl();
  MatMulInput::Impl& input = x.impl();
  CheckShape(matrix.cols == input.cols, "the input's width is not the matrix's");
  CheckShape(w.complete(), "rows are missing");
  if (input.n == 0) {
    return;
  }
  const Product product{matrix, input, y, y_stride};
  const MatMulTable& table = *Kernels().matmul;
  // Ranges long enough that taking one (about 50 ns) is nothing, short enough that unequal cores finish together.
  const int64_t share = std::max<int64_t>(1, matrix.panels() / (8 * pool.threads()));
  if (matrix.format == nullptr) {
    if (MultiplyWithOneDnn(w, product)) {
      return;
    }
    pool.ParallelFor(matrix.panels(), std::min(share, kPanelsPerRange),
                     [&](int64_t begin, int64_t end, int) { FloatProduct(product, begin, end); });
    return;
  }
  input.Prepare(table.quant[matrix.format->index].bias, matrix.format->group, pool);
  if (input.n <= table.packed_tokens_max) {
    pool.ParallelFor(matrix.panels(), share, [&](int64_t begin, int64_t end, int) { FewTokens(product, begin, end); });
  } else {
    pool.ParallelFor(matrix.panels(), std::min(share, kPanelsPerRange), [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; i += kPanelsPerRange) {
        ManyTokens(product, i, std::min(end, i + kPanelsPerRange));
      }
    });
  }
}

}  // namespace embergate::engine
