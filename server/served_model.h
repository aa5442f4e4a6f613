// What the RPCs need of a loaded model: plain references, owned by whoever loaded it (ModelHost, or a test).
#ifndef EMBERGATE_SERVER_SERVED_MODEL_H_
#define EMBERGATE_SERVER_SERVED_MODEL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/engine.h"
#include "engine/model/decoder_model.h"
#include "engine/model/language_model.h"
#include "engine/request.h"
#include "engine/text/chat.h"
#include "engine/text/tokenizer.h"
#include "storage/stats.h"

namespace embergate::server {

// Threads: immutable once served; what it points to may be used from any thread. Outlives every ModelUse of it.
struct ServedModel {
  engine::Engine* engine = nullptr;
  const engine::Tokenizer* tokenizer = nullptr;  // null: token ids only
  engine::ModelInfo info;
  engine::ModelLimits limits;
  std::optional<engine::ChatFormat> chat_format;
  engine::SamplingParams sampling;  // defaults of requests
  std::vector<int32_t> eos_ids;
  int waiting_max = 0;
  int64_t kv_tokens_max = 0;  // positions of the attention cache, all requests together
  uint64_t dram_budget_bytes = 0;                           // 0 = none
  std::function<std::vector<engine::MemoryPart>()> memory;  // may be empty
  std::function<storage::RowStoreStats()> row_stats;        // may be empty: no table on flash
};

// A call's hold on the model that it was let in with: the owner of the model keeps it until nobody holds it any more
// (Lifecycle::AwaitUnused). Giving up the last hold frees nothing, so any thread may, the engine's among them.
using ModelUse = std::shared_ptr<const ServedModel>;

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_SERVED_MODEL_H_
