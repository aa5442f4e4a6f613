// Counters that the RPC handlers keep themselves; the engine and the row store have their own.
#ifndef EMBERGATE_SERVER_SERVER_STATS_H_
#define EMBERGATE_SERVER_SERVER_STATS_H_

#include <grpcpp/support/status.h>

#include <array>
#include <atomic>
#include <cstdint>

namespace embergate::server {

enum class Method { kGenerate, kGenerateOnce, kScore, kTokenize, kDetokenize, kGetModelInfo };
inline constexpr std::array<const char*, 6> kMethodNames = {"Generate", "GenerateOnce", "Score",
                                                            "Tokenize", "Detokenize",   "GetModelInfo"};
inline constexpr int kGrpcCodes = 17;  // OK .. UNAUTHENTICATED
const char* GrpcCodeName(grpc::StatusCode code);

// Threads: any. Relaxed counters; Prometheus reads them one by one.
class ServerStats {
 public:
  void CountRequest(Method method, grpc::StatusCode code) {
    const int index = code >= 0 && code < kGrpcCodes ? code : grpc::StatusCode::UNKNOWN;
    requests_[static_cast<size_t>(method)][static_cast<size_t>(index)].fetch_add(1, std::memory_order_relaxed);
  }
  uint64_t requests(Method method, grpc::StatusCode code) const {
    return requests_[static_cast<size_t>(method)][static_cast<size_t>(code)].load(std::memory_order_relaxed);
  }

  std::atomic<uint64_t> slow_readers{0};  // streams that ended because the client read too slowly
  // Settings, keys and certificates that were read again, and those that could not be used.
  std::atomic<uint64_t> reloads{0};
  std::atomic<uint64_t> reload_failures{0};
  // Another model in place of the one that was served: while that finished its streams, after it had, or not at all.
  std::atomic<uint64_t> model_changes_beside{0};
  std::atomic<uint64_t> model_changes_drained{0};
  std::atomic<uint64_t> model_changes_failed{0};

 private:
  std::array<std::array<std::atomic<uint64_t>, kGrpcCodes>, kMethodNames.size()> requests_{};
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SERVER_STATS_H_
