// The tables of kernels, one per instruction set, and which of them is in use. Internal to engine/kernels.
//
// The files that fill these tables are compiled with flags for their instruction set: they must not use inline
// functions of shared headers (the linker keeps one copy, and it may be theirs).
#ifndef EMBERGATE_ENGINE_KERNELS_KERNEL_TABLE_H_
#define EMBERGATE_ENGINE_KERNELS_KERNEL_TABLE_H_

#include <cstddef>
#include <cstdint>

#include "engine/kernels/packed_format.h"

namespace embergate::engine {

// Contracts as in kernels.h, where the functions have the same names.
struct ElementwiseTable {
  float (*dot)(const float* a, const float* b, int64_t n);
  void (*rms_norm)(const float* x, const float* w, int64_t n, float eps, float* y);
  void (*gelu_tanh_mul)(const float* gate, const float* up, int64_t n, float* out);
  void (*add_scaled)(const float* a, const float* b, float s, int64_t n, float* out);
  void (*scale)(const float* a, float s, int64_t n, float* out);
  void (*softcap)(float* x, float cap, int64_t n);
  void (*rotate_half)(float* x, const float* cos, const float* sin, int64_t d);
};

// A panel, or two side by side, times `tokens` tokens over `units` units: acc[t * acc_stride + 0..15 (0..31)], started
// from zero if `first`.
//   low, high  planes of the first unit
//   scale      f32 [unit][32 / group][16]; min the same, null if the type has none
//   x          token t's units at x + t * x_stride
struct QuantTile {
  const uint8_t* low;
  const uint8_t* high;
  const float* scale;
  const float* min;
  const ActivationUnit* x;
  int64_t x_stride;
  int tokens;
  int units;
  float* acc;
  int64_t acc_stride;
  bool first;
  // Of `packed` only: what will be read later, to be fetched while this is computed, `ahead_step` bytes for each unit.
  const uint8_t* ahead = nullptr;
  int64_t ahead_step = 0;
  bool ahead_every_line = true;  // else one line of each unit: see FetchOf in matmul.cc
  // Of `unpacked` only: the second panel's codes and scales follow the first's at these distances.
  int panels = 1;
  static constexpr int64_t kPanelBytes = kBlockUnits * kUnpackedUnitBytes;
  static constexpr int64_t kPanelScales = kBlockUnits * 2 * kPanelRows;
};

// One panel times `tokens` tokens over `cols` columns, at most kFloatRun or a multiple of it.
//   w   [cols][16] elements; x token t at x + t * x_stride
struct FloatTile {
  const uint8_t* w;
  const float* x;
  int64_t x_stride;
  int tokens;
  int64_t cols;
  float* acc;
  int64_t acc_stride;
  bool first;
};

using QuantTileFunction = void (*)(const QuantTile& tile);
using UnpackFunction = void (*)(const uint8_t* low, const uint8_t* high, int units, uint8_t* out);
using FloatTileFunction = void (*)(const FloatTile& tile);

struct QuantKernels {
  QuantTileFunction packed = nullptr;    // reads the planes; tokens <= packed_tokens_max
  UnpackFunction unpack = nullptr;       // planes -> one byte per code, chunk by chunk
  QuantTileFunction unpacked = nullptr;  // reads what `unpack` wrote (tile.low); tokens <= unpacked_tokens_max
  int bias = 0;                          // that `packed` and `unpacked` expect in ActivationUnit::init
};

struct MatMulTable {
  int packed_tokens_max;
  int unpacked_tokens_max;
  int unpacked_panels;  // that `unpacked` takes at once: 1 or 2
  int float_tokens_max;
  InitForm init_form;
  QuantKernels quant[kQuantFormatCount];  // by QuantFormat::index
  FloatTileFunction f32;
  FloatTileFunction f16;
  FloatTileFunction bf16;
  // f32 scales (and mins, adjusted by the bias) of the `units` units of a block from its scale part.
  void (*expand_scales)(const QuantFormat& format, const uint8_t* scales, int units, float* scale, float* min);
  // All of a unit but `init`, for cols / 32 units.
  void (*quantize)(const float* x, int64_t cols, ActivationUnit* out);
};

// Positions per row of scores: kAttentionBlock of attention.h.
inline constexpr int kAttentionRow = 32;

// What will be read next: fetched little by little while something else is computed.
struct FetchAhead {
  const uint8_t* data = nullptr;
  int64_t bytes = 0;
};

// Parts of attention.cc over one KV block; rows are `row_bytes` apart, `count` of them.
struct AttentionTable {
  // scores[i * kAttentionRow + k] = q[i] . keys[k]
  using ScoresFunction = void (*)(const float* const* q, int queries, int dim, const uint8_t* keys, int64_t row_bytes,
                                  int count, const FetchAhead& ahead, float* scores);
  // out[i] = out[i] * rescale[i] + sum over p of weights[i * kAttentionRow + p] * values[p]
  using ValuesFunction = void (*)(const float* weights, const float* rescale, int queries, int dim,
                                  const uint8_t* values, int64_t row_bytes, int count, const FetchAhead& ahead,
                                  float* const* out);
  ScoresFunction scores_f32;
  ScoresFunction scores_f16;
  // Turns scores [begin, end) of a row into weights e^(score - maximum), all others into 0; updates the running
  // maximum and sum and returns what the earlier sums are to be multiplied by.
  float (*softmax)(float* scores, int begin, int end, float* maximum, float* sum);
  ValuesFunction values_f32;
  ValuesFunction values_f16;
  float (*exp)(float x);
};

// Parts of kv_rows.cc. n is a multiple of 8 for f16, of 32 for the others.
struct KvRowTable {
  void (*store_f16)(const float* x, int64_t n, uint8_t* out);
  void (*store_q8_0)(const float* x, int64_t n, uint8_t* out);
  void (*store_q4_0)(const float* x, int64_t n, uint8_t* out);
  void (*load_q8_0)(const uint8_t* row, int64_t n, float* out);
  void (*load_q4_0)(const uint8_t* row, int64_t n, float* out);
};

// Parts of machine_limits.cc.
struct MachineTable {
  uint64_t (*read)(const uint8_t* p, size_t bytes);          // every byte, once
  int64_t (*integer_loop)(int64_t rounds, int32_t* result);  // returns the operations done
  const char* integer_loop_name;
};

struct SparseTable;  // column_format.h

struct KernelTable {
  const char* name;
  const ElementwiseTable* elementwise;
  const AttentionTable* attention;
  const MachineTable* machine;
  const MatMulTable* matmul;
  const KvRowTable* kv_rows;
  const SparseTable* sparse;
};

// The table in use.
const KernelTable& Kernels();

extern const ElementwiseTable kRefElementwise;
extern const AttentionTable kRefAttention;
extern const MachineTable kRefMachine;
extern const MatMulTable kRefMatMul;
extern const KvRowTable kRefKvRows;
#if defined(__x86_64__)
extern const MatMulTable kAvx2MatMul;
extern const MatMulTable kAvx512MatMul;
extern const ElementwiseTable kAvx2Elementwise;
extern const ElementwiseTable kAvx512Elementwise;
extern const AttentionTable kAvx2Attention;
extern const KvRowTable kAvx2KvRows;
extern const AttentionTable kAvx512Attention;
extern const MachineTable kAvx2Machine;
extern const MachineTable kAvx512Machine;
#elif defined(__aarch64__)
extern const MatMulTable kNeonMatMul;
extern const MatMulTable kNeonDotMatMul;
extern const MatMulTable kNeonI8mmMatMul;
extern const ElementwiseTable kNeonElementwise;
extern const AttentionTable kNeonAttention;
extern const KvRowTable kNeonKvRows;
extern const MachineTable kNeonMachine;
extern const MachineTable kNeonDotMachine;
extern const MachineTable kNeonI8mmMachine;
#endif

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_KERNELS_KERNEL_TABLE_H_
