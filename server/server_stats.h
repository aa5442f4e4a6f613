// Counters that the RPC handlers keep themselves; the engine and the row store have their own.
#ifndef EMBERGATE_SERVER_SERVER_STATS_H_
#define EMBERGATE_SERVER_SERVER_STATS_H_

#include <grpcpp/support/status.h>

#include <array>
#include <atomic>
#include <cstdint>

namespace embergate::server {

enum class Method { kGenerate, kScore, kTokenize, kDetokenize, kGetModelInfo };
inline constexpr std::array<const char*, 5> kMethodNames = {"Generate", "Score", "Tokenize", "Detokenize",
                                                            "GetModelInfo"};
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

  // Seconds that a generation held a slot, to estimate when the next slot is free.
  void CountServiceSeconds(double seconds) {
    service_us_.fetch_add(static_cast<uint64_t>(seconds * 1e6), std::memory_order_relaxed);
    services_.fetch_add(1, std::memory_order_relaxed);
  }
  // Mean of the above; 0 before the first.
  double MeanServiceSeconds() const {
    const uint64_t count = services_.load(std::memory_order_relaxed);
    return count == 0 ? 0 : 1e-6 * static_cast<double>(service_us_.load(std::memory_order_relaxed)) / count;
  }

  std::atomic<int64_t> streams_open{0};
  std::atomic<uint64_t> slow_readers{0};  // streams that ended because the client read too slowly

 private:
  std::array<std::array<std::atomic<uint64_t>, kGrpcCodes>, kMethodNames.size()> requests_{};
  std::atomic<uint64_t> service_us_{0};
  std::atomic<uint64_t> services_{0};
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SERVER_STATS_H_
