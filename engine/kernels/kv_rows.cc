#include "engine/kernels/kv_rows.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "engine/kernels/kernel_table.h"

namespace embergate::engine {
namespace {

using storage::TensorType;

[[noreturn]] void NoSuchType(TensorType type) {
  std::fprintf(stderr, "embergate: KV rows of type %d\n", static_cast<int>(type));
  std::abort();  // KvCache accepts no other type: a bug
}

}  // namespace

void StoreKvRow(TensorType type, const float* x, int64_t n, uint8_t* out) {
  const KvRowTable& table = *Kernels().kv_rows;
  switch (type) {
    case TensorType::kF32:
      std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
      return;
    case TensorType::kF16:
      return table.store_f16(x, n, out);
    case TensorType::kQ8_0:
      return table.store_q8_0(x, n, out);
    case TensorType::kQ4_0:
      return table.store_q4_0(x, n, out);
    default:
      NoSuchType(type);
  }
}

void LoadKvRow(TensorType type, const uint8_t* row, int64_t n, float* out) {
  const KvRowTable& table = *Kernels().kv_rows;
  switch (type) {
    case TensorType::kQ8_0:
      return table.load_q8_0(row, n, out);
    case TensorType::kQ4_0:
      return table.load_q4_0(row, n, out);
    default:
      NoSuchType(type);
  }
}

}  // namespace embergate::engine
