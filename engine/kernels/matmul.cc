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

// Tokens whose activations of one column block (96 * 16 units * 64 bytes = 96 KiB) and sums (48 KiB) stay in the
// second-level cache while the panels of a range pass over them.
constexpr int kTokenBlock = 96;
constexpr int64_t kPanelsPerRange = 8;

struct alignas(64) Scratch {
  float scale[2 * QuantTile::kPanelScales];  // of two panels
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
  const Matrix::Impl* w = nullptr;
  const MatMulInput::Impl* x = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
};

// How a stream of weights that few tokens read from memory is fetched ahead of its use. Without that, the
// multiplications and the waiting for memory add up instead of overlapping.
struct Fetch {
  int64_t bytes;    // how far ahead, at least
  bool every_line;  // else one line per unit, to keep the core's own prefetcher going, which does the rest
};

// Measured, one thread, 6144 x 1536 in Q4_0 (share of what a plain loop reads). Intel Xeon: every line, one block
// ahead. AMD Zen 4: with one token its prefetcher keeps up and asking for every line makes it give way (63 %, with one
// line per unit 90 %); with more tokens it does not (2 tokens: 69 % without, 83 % with every line two blocks ahead).
Fetch FetchOf(int tokens) {
#if defined(__x86_64__)
  static const bool is_amd = __builtin_cpu_is("amd") != 0;
  if (is_amd) {
    return {8192, tokens > 1};
  }
#else
  (void)tokens;
#endif
  return {4096, true};
}

// Few tokens: each panel is streamed once, codes go from memory to registers.
void FewTokens(const Product& p, int64_t panel_begin, int64_t panel_end) {
  const MatMulTable& table = *Kernels().matmul;
  const QuantFormat& format = *p.w->format;
  const PanelLayout& layout = p.w->layout;
  Scratch scratch;
  alignas(64) float copy[16 * kPanelRows];
  QuantTile tile;
  tile.scale = scratch.scale;
  tile.min = format.has_min ? scratch.min : nullptr;
  tile.x_stride = p.x->units_per_token();
  tile.tokens = p.x->n;
  tile.ahead_step = layout.block_bytes / kBlockUnits;
  const Fetch fetch = FetchOf(p.x->n);
  tile.ahead_every_line = fetch.every_line;
  const int64_t ahead = (fetch.bytes + layout.block_bytes - 1) / layout.block_bytes * layout.block_bytes;
  for (int64_t i = panel_begin; i < panel_end; ++i) {
    const PanelOutput output(p.y + i * kPanelRows, p.y_stride, p.w->rows - i * kPanelRows, p.x->n, copy);
    tile.acc = output.acc();
    tile.acc_stride = output.stride();
    for (int64_t unit = 0; unit < layout.units; unit += kBlockUnits) {
      const PanelBlock block = BlockOf(layout, p.w->panel(i), unit);
      table.expand_scales(format, block.scales, block.units, scratch.scale, scratch.min);
      tile.units = block.units;
      tile.low = block.low;
      tile.high = block.high;
      tile.ahead = block.scales + ahead;
      tile.x = p.x->unit_data() + unit;
      tile.first = unit == 0;
      table.quant[format.index].packed(tile);
    }
    output.Finish();
  }
}

// Touches [from, from + bytes) once per line, `step`-th of `steps` parts of it.
void PrefetchPart(const uint8_t* from, int64_t bytes, int step, int steps) {
  const int64_t lines = (bytes + kChunkBytes - 1) / kChunkBytes;
  for (int64_t i = lines * step / steps; i < lines * (step + 1) / steps; ++i) {
    __builtin_prefetch(from + i * kChunkBytes, /*rw=*/0, /*locality=*/2);
  }
}

// to[t] = from[t] for `tokens` rows of `n` floats.
void CopyRows(const float* from, int64_t from_stride, int tokens, int64_t n, float* to, int64_t to_stride) {
  for (int t = 0; t < tokens; ++t, from += from_stride, to += to_stride) {
    if (n == 2 * kPanelRows) {
      std::memcpy(to, from, 2 * kPanelRows * sizeof(float));  // of constant size: a few moves instead of a call
    } else {
      std::copy_n(from, n, to);
    }
  }
}

// Many tokens: a block of a panel (or two) is unpacked to bytes once, then meets all tokens of a block. The sums of a
// range stay in a compact buffer until they are complete: in y they are a row apart, which costs a page and often the
// same few sets of the first-level cache for each token.
void ManyTokens(const Product& p, int64_t panel_begin, int64_t panel_end) {
  const MatMulTable& table = *Kernels().matmul;
  const QuantFormat& format = *p.w->format;
  const QuantKernels& kernels = table.quant[format.index];
  const PanelLayout& layout = p.w->layout;
  Scratch scratch;
  alignas(64) uint8_t unpacked[2 * QuantTile::kPanelBytes];
  alignas(64) float sums[kPanelsPerRange * kTokenBlock * kPanelRows];
  QuantTile tile;
  tile.low = unpacked;
  tile.high = nullptr;
  tile.ahead = unpacked;
  tile.scale = scratch.scale;
  tile.min = format.has_min ? scratch.min : nullptr;
  tile.x_stride = p.x->units_per_token();
  const int blocks = (p.x->n + kTokenBlock - 1) / kTokenBlock;
  const int tile_tokens = table.unpacked_tokens_max;
  const int block_tokens = ((p.x->n + blocks - 1) / blocks + tile_tokens - 1) / tile_tokens * tile_tokens;
  for (int token = 0; token < p.x->n; token += block_tokens) {
    const int tokens = std::min(block_tokens, p.x->n - token);
    const int tiles = (tokens + tile_tokens - 1) / tile_tokens;
    for (int64_t unit = 0; unit < layout.units; unit += kBlockUnits) {
      tile.first = unit == 0;
      for (int64_t i = panel_begin; i < panel_end; i += tile.panels) {
        tile.panels = i + table.unpacked_panels <= panel_end ? table.unpacked_panels : 1;
        for (int k = 0; k < tile.panels; ++k) {
          const PanelBlock block = BlockOf(layout, p.w->panel(i + k), unit);
          table.expand_scales(format, block.scales, block.units, scratch.scale + k * QuantTile::kPanelScales,
                              scratch.min + k * QuantTile::kPanelScales);
          kernels.unpack(block.low, block.high, block.units, unpacked + k * QuantTile::kPanelBytes);
          tile.units = block.units;
        }
        tile.acc_stride = tile.panels * kPanelRows;
        float* acc = sums + (i - panel_begin) * block_tokens * kPanelRows;
        // The blocks that come next: of the next panels, or the first panels' next.
        const int64_t next = i + tile.panels < panel_end ? i + tile.panels : panel_begin;
        const int64_t next_unit = next > i ? unit : unit + kBlockUnits;
        const uint8_t* const ahead = p.w->panel(next) + next_unit / kBlockUnits * layout.block_bytes;
        const bool last = unit + kBlockUnits >= layout.units;
        const int64_t rows = std::min(tile.acc_stride, p.w->rows - i * kPanelRows);
        float* y = p.y + token * p.y_stride + i * kPanelRows;
        for (int t = 0; t < tiles; ++t) {
          if (next_unit < layout.units) {
            for (int k = 0; k < tile.panels; ++k) {
              PrefetchPart(ahead + k * layout.panel_bytes, layout.block_bytes, t, tiles);
            }
          }
          tile.tokens = std::min(tile_tokens, tokens - t * tile_tokens);
          tile.x = p.x->unit_data() + (token + t * tile_tokens) * tile.x_stride + unit;
          tile.acc = acc + t * tile_tokens * tile.acc_stride;
          if (last) {
            // Into y as each tile is complete: its misses overlap with the next tile's multiplications.
            for (int k = 0; k < tile.tokens; ++k) {
              __builtin_prefetch(y + k * p.y_stride, /*rw=*/1);
              __builtin_prefetch(y + k * p.y_stride + rows - 1, /*rw=*/1);
            }
          }
          kernels.unpacked(tile);
          if (last) {
            CopyRows(tile.acc, tile.acc_stride, tile.tokens, rows, y, p.y_stride);
            y += tile.tokens * p.y_stride;
          }
        }
      }
    }
  }
}

void FloatProduct(const Product& p, int64_t panel_begin, int64_t panel_end) {
  const MatMulTable& table = *Kernels().matmul;
  const FloatTileFunction kernel = p.w->type == storage::TensorType::kF32   ? table.f32
                                   : p.w->type == storage::TensorType::kF16 ? table.f16
                                                                            : table.bf16;
  // 512 columns of a panel are 32 KiB in f32: the block stays in the first-level cache over all tokens of a block.
  constexpr int64_t kCols = 4 * kFloatRun;
  alignas(64) float copy[kTokenBlock * kPanelRows];
  FloatTile tile;
  tile.x_stride = p.x->stride;
  for (int token = 0; token < p.x->n; token += kTokenBlock) {
    const int tokens = std::min(kTokenBlock, p.x->n - token);
    for (int64_t i = panel_begin; i < panel_end; ++i) {
      const PanelOutput output(p.y + token * p.y_stride + i * kPanelRows, p.y_stride, p.w->rows - i * kPanelRows,
                               tokens, copy);
      tile.acc_stride = output.stride();
      for (int64_t col = 0; col < p.w->cols; col += kCols) {
        tile.cols = std::min(kCols, p.w->cols - col);
        tile.w = p.w->panel(i) + col * kPanelRows * p.w->element_bytes;
        tile.first = col == 0;
        for (int t = 0; t < tokens; t += table.float_tokens_max) {
          tile.tokens = std::min(table.float_tokens_max, tokens - t);
          tile.x = p.x->x + (token + t) * p.x->stride + col;
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
  if (g_backend.load(std::memory_order_relaxed) != MatMulBackend::kOneDnn || p.x->n < kOneDnnTokensMin ||
      p.w->onednn_refused) {
    return false;
  }
  if (p.w->onednn == nullptr) {
    p.w->onednn = OneDnnWeights::Create(w);
  }
  if (p.w->onednn == nullptr || !p.w->onednn->Multiply(p.x->x, p.x->n, p.x->stride, p.y, p.y_stride)) {
    p.w->onednn_refused = true;
    p.w->onednn = nullptr;
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

void MultiplyPanels(const Matrix::Impl& w, const MatMulInput::Impl& x, float* y, int64_t y_stride, int64_t panel_begin,
                    int64_t panel_end) {
  const Product product{&w, &x, y, y_stride};
  if (x.n <= Kernels().matmul->packed_tokens_max) {
    FewTokens(product, panel_begin, panel_end);
  } else {
    ManyTokens(product, panel_begin, panel_end);
  }
}

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

namespace {

constexpr size_t kProductsMax = 8;

// The panels of several products as one row of work: product i's are [first[i], first[i + 1]).
struct ProductList {
  size_t count = 0;
  Product products[kProductsMax];
  int64_t first[kProductsMax + 1] = {};

  void Add(const Product& product) {
    products[count] = product;
    first[count + 1] = first[count] + product.w->panels();
    ++count;
  }
  int64_t panels() const { return first[count]; }
  // fn(product, begin, end) for the parts of [begin, end).
  template <class F>
  void ForParts(int64_t begin, int64_t end, F fn) const {
    for (size_t i = 0; i < count; ++i) {
      const int64_t from = std::max(begin, first[i]);
      const int64_t to = std::min(end, first[i + 1]);
      if (from < to) {
        fn(products[i], from - first[i], to - first[i]);
      }
    }
  }
};

// Panels [begin, end) of a product, for all tokens.
void Multiply(const Product& p, int64_t begin, int64_t end) {
  if (p.w->format == nullptr) {
    return FloatProduct(p, begin, end);
  }
  if (p.x->n <= Kernels().matmul->packed_tokens_max) {
    return FewTokens(p, begin, end);
  }
  for (int64_t i = begin; i < end; i += kPanelsPerRange) {
    ManyTokens(p, i, std::min(end, i + kPanelsPerRange));
  }
}

void CheckProduct(const Matrix& w, const MatMulInput::Impl& x) {
  CheckShape(w.impl().cols == x.cols, "the input's width is not the matrix's");
  CheckShape(w.complete(), "rows are missing");
}

void PrepareFor(const Matrix::Impl& w, MatMulInput::Impl& x, ThreadPool& pool) {
  if (w.format != nullptr) {
    x.Prepare(Kernels().matmul->quant[w.format->index].bias, w.format->group, pool);
  }
}

// Whether both matrices read the activations in the same form.
bool ReadSameInput(const Matrix::Impl& a, const Matrix::Impl& b) {
  if (a.format == nullptr || b.format == nullptr) {
    return a.format == b.format;
  }
  const MatMulTable& table = *Kernels().matmul;
  return a.format->group == b.format->group && table.quant[a.format->index].bias == table.quant[b.format->index].bias;
}

// Panels of the shortest range: the kernels for many tokens take them two at a time.
int64_t Grain(const MatMulInput::Impl& x) {
  const MatMulTable& table = *Kernels().matmul;
  return x.n <= table.packed_tokens_max ? 1 : table.unpacked_panels;
}

}  // namespace

void MatMul(const Matrix& w, MatMulInput& x, float* y, int64_t y_stride, ThreadPool& pool) {
  const MatMulOutput output{&w, y, y_stride};
  MatMulAll(absl::MakeConstSpan(&output, 1), x, pool);
}

void MatMulAll(absl::Span<const MatMulOutput> outputs, MatMulInput& x, ThreadPool& pool) {
  MatMulInput::Impl& input = x.impl();
  CheckShape(outputs.size() <= kProductsMax, "too many at once");
  for (const MatMulOutput& output : outputs) {
    CheckProduct(*output.w, input);
  }
  if (input.n == 0) {
    return;
  }
  bool done[kProductsMax] = {};
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (done[i]) {
      continue;
    }
    const Matrix::Impl& w = outputs[i].w->impl();
    ProductList list;
    for (size_t k = i; k < outputs.size(); ++k) {
      const Matrix& other = *outputs[k].w;
      if (done[k] || !ReadSameInput(w, other.impl())) {
        continue;
      }
      done[k] = true;
      const Product product{&other.impl(), &input, outputs[k].y, outputs[k].y_stride};
      if (other.impl().format != nullptr || !MultiplyWithOneDnn(other, product)) {
        list.Add(product);
      }
    }
    if (list.count == 0) {
      continue;
    }
    PrepareFor(w, input, pool);
    pool.ParallelFor(list.panels(), Grain(input),
                     [&](int64_t begin, int64_t end, int) { list.ForParts(begin, end, Multiply); });
  }
}

void MatMulGated(const Matrix& gate, const Matrix& up, MatMulInput& x, float* y, float* scratch, int64_t y_stride,
                 ThreadPool& pool) {
  MatMulInput::Impl& input = x.impl();
  CheckProduct(gate, input);
  CheckProduct(up, input);
  CheckShape(gate.rows() == up.rows(), "gate and up differ");
  if (input.n == 0) {
    return;
  }
  const Product gate_product{&gate.impl(), &input, y, y_stride};
  const Product up_product{&up.impl(), &input, scratch, y_stride};
  const auto activate = [&](int64_t row_begin, int64_t row_end) {
    for (int64_t t = 0; t < input.n; ++t) {
      float* out = y + t * y_stride + row_begin;
      GeluTanhMul(out, scratch + t * y_stride + row_begin, row_end - row_begin, out);
    }
  };
  // Few tokens: a product that is read from its first byte to its last keeps the core's prefetcher going; every change
  // from gate to up costs it about a microsecond.
  const bool in_one_pass =
      input.n > Kernels().matmul->packed_tokens_max && ReadSameInput(gate.impl(), up.impl()) &&
      (gate.impl().format != nullptr || g_backend.load(std::memory_order_relaxed) == MatMulBackend::kOwn);
  if (!in_one_pass) {
    const MatMulOutput outputs[] = {{&gate, y, y_stride}, {&up, scratch, y_stride}};
    MatMulAll(outputs, x, pool);
    constexpr int64_t kGrain = 2048;  // some microseconds, so that one token's share out, too
    pool.ParallelFor(gate.rows(), kGrain, [&](int64_t begin, int64_t end, int) { activate(begin, end); });
    return;
  }
  PrepareFor(gate.impl(), input, pool);
  pool.ParallelFor(gate.impl().panels(), Grain(input), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; i += kPanelsPerRange) {
      const int64_t next = std::min(end, i + kPanelsPerRange);
      Multiply(gate_product, i, next);
      Multiply(up_product, i, next);
      activate(i * kPanelRows, std::min(gate.rows(), next * kPanelRows));
    }
  });
}

}  // namespace embergate::engine
