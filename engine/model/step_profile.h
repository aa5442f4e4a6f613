// Where a step's time goes. Every nanosecond between Start and Stop belongs to exactly one operation, so the parts add
// up to the step by construction.
#ifndef EMBERGATE_ENGINE_MODEL_STEP_PROFILE_H_
#define EMBERGATE_ENGINE_MODEL_STEP_PROFILE_H_

#include <array>
#include <chrono>
#include <cstdint>

namespace embergate::engine {

enum class StepOp {
  kPrepare,        // batch, row submissions, positions' angles
  kEmbed,          // look-up of the token embedding; 3n: the other streams too
  kPleProjection,  // model projection of the per-layer inputs
  kRowWait,        // computing waited for flash
  kPleRows,        // dequantised rows, normed and summed
  kNorm,           // norms and residual sums
  kQkv,
  kRopeStore,  // head norms, rotation, writing keys and values
  kAttention,
  kAttentionOut,
  kGateUp,
  kActivation,
  kDown,
  kPle,    // gate, product and projection of each layer's per-layer input
  kAltup,  // 3n: predict, correct, exit
  kLaurel,
  kHead,  // final norm, output matrix, softcap
  kCount,
};

inline const char* NameOf(StepOp op) {
  constexpr const char* kNames[] = {"prepare", "embed",      "ple_projection", "row_wait", "ple_rows", "norm",
                                    "qkv",     "rope_store", "attention",      "attn_out", "gate_up",  "activation",
                                    "down",    "ple",        "altup",          "laurel",   "head"};
  static_assert(sizeof(kNames) / sizeof(kNames[0]) == static_cast<size_t>(StepOp::kCount));
  return kNames[static_cast<int>(op)];
}

// Sums over steps. Threads: the engine thread. A mark costs one clock reading, about 25 ns; a step of a 35-layer model
// has some 400 of them: 10 us of 45 ms.
struct StepProfile {
  std::array<uint64_t, static_cast<size_t>(StepOp::kCount)> ns{};
  uint64_t steps = 0;
  uint64_t multiply_adds = 0;  // of the products really done, attention included
  uint64_t weight_bytes = 0;   // of the matrices that the products read, once per product
  uint64_t kv_bytes = 0;       // of the keys and values that the step's tokens see, once per token

  void Start() { last_ = Clock::now(); }
  // The time since the last mark belongs to `op`.
  void Mark(StepOp op) {
    const Clock::time_point now = Clock::now();
    ns[static_cast<int>(op)] +=
        static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now - last_).count());
    last_ = now;
  }
  uint64_t total_ns() const {
    uint64_t total = 0;
    for (const uint64_t op_ns : ns) {
      total += op_ns;
    }
    return total;
  }

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point last_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_STEP_PROFILE_H_
