#include "server/dram_plan.h"

#include <malloc.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "engine/engine.h"
#include "server/process_memory.h"
#include "storage/base/status_macros.h"

namespace embergate::server {
namespace {

using engine::MemoryPart;

// Of 69 MB of mapped code and data, 22 MB were resident in a server under load; statically linked ones have less.
constexpr uint64_t kBinaryBytes = 28u << 20;
// Measured under load with the settings of BoundAllocator: 4 to 9 MiB more than the parts' sum.
constexpr uint64_t kAllocatorSlackBytes = 16u << 20;
constexpr int kArenas = 2;
constexpr int kTrimBytes = 1 << 20;
constexpr int kMmapBytes = 256 << 10;

std::string Mebibytes(uint64_t bytes) { return absl::StrCat((bytes + (1u << 20) - 1) >> 20, " MiB"); }

// A setting that could be lowered, and how.
struct Reduction {
  std::string flag;
  ModelHostOptions options;
};

std::vector<Reduction> Reductions(const ModelHostOptions& options, const engine::ModelInfo& info) {
  std::vector<Reduction> reductions;
  const auto add = [&](std::string flag, auto change) {
    ModelHostOptions lowered = options;
    change(lowered);
    reductions.push_back({std::move(flag), std::move(lowered)});
  };
  const engine::DecoderOptions& decoder = options.decoder;
  const int context =
      decoder.context_max > 0 ? std::min(decoder.context_max, info.context_trained) : info.context_trained;
  if (context > 1024) {
    add(absl::StrCat("--context ", context / 2), [&](ModelHostOptions& o) { o.decoder.context_max = context / 2; });
  }
  if (decoder.slots_max > 1) {
    add(absl::StrCat("--slots ", decoder.slots_max / 2),
        [](ModelHostOptions& o) { o.decoder.slots_max = std::max(1, o.decoder.slots_max / 2); });
  }
  if (decoder.kv_type != engine::KvType::kQ8_0 && decoder.kv_type != engine::KvType::kQ4_0) {
    add("--kv-type q8_0", [](ModelHostOptions& o) { o.decoder.kv_type = engine::KvType::kQ8_0; });
  }
  if (decoder.step_tokens_max > 64) {
    add(absl::StrCat("--step-tokens ", decoder.step_tokens_max / 2),
        [](ModelHostOptions& o) { o.decoder.step_tokens_max /= 2; });
  }
  if (decoder.rows.cache_bytes > (4u << 20)) {
    add("--row-cache 4MiB", [](ModelHostOptions& o) { o.decoder.rows.cache_bytes = 4u << 20; });
  }
  if (decoder.prefix_cache_bytes > 0) {
    add("--prefix-cache 0", [](ModelHostOptions& o) { o.decoder.prefix_cache_bytes = 0; });
  }
  if (options.engine.waiting_bytes_max > (4 << 20)) {
    add("--queue-bytes 4MiB", [](ModelHostOptions& o) { o.engine.waiting_bytes_max = 4 << 20; });
  }
  if (options.transport_bytes_max > (8u << 20)) {
    add("--grpc-buffers 8MiB", [](ModelHostOptions& o) { o.transport_bytes_max = 8u << 20; });
  }
  if (decoder.table_resident) {
    add("leaving out --table-resident", [](ModelHostOptions& o) { o.decoder.table_resident = false; });
  }
  return reductions;
}

}  // namespace

uint64_t TotalBytes(const std::vector<MemoryPart>& parts) {
  uint64_t total = 0;
  for (const MemoryPart& part : parts) {
    total += part.bytes;
  }
  return total;
}

uint64_t SharedBytes(const std::vector<MemoryPart>& parts) {
  uint64_t shared = 0;
  for (const MemoryPart& part : parts) {
    if (part.name == "binary" || part.name == "grpc_buffers" || part.name == "allocator_slack") {
      shared += part.bytes;
    }
  }
  return shared;
}

std::vector<MemoryPart> ProcessParts(const ModelHostOptions& options, const engine::ModelLimits& limits) {
  const uint64_t slots = static_cast<uint64_t>(limits.slots_max);
  // Of a running request: prompt and answer as ids, twice, and the answer that waits for a slow client.
  const uint64_t running = static_cast<uint64_t>(limits.context_max) * 2 * sizeof(int32_t) + options.pending_bytes_max;
  return {{"binary", kBinaryBytes},
          {"grpc_buffers", options.transport_bytes_max},
          {"requests", static_cast<uint64_t>(options.engine.waiting_bytes_max) + slots * running},
          {"allocator_slack", kAllocatorSlackBytes}};
}

absl::StatusOr<std::vector<MemoryPart>> PlanDram(const storage::GgufFile& file, const engine::ModelInfo& info,
                                                 const ModelHostOptions& options, uint64_t tokenizer_bytes) {
  EMBERGATE_ASSIGN_OR_RETURN(std::vector<MemoryPart> parts, engine::DecoderModel::Plan(file, options.decoder));
  engine::ModelLimits limits;
  limits.vocab_size = info.vocab_size;
  limits.slots_max = options.decoder.slots_max;
  limits.context_max = options.decoder.context_max > 0 ? std::min(options.decoder.context_max, info.context_trained)
                                                       : info.context_trained;
  limits.logit_rows_max =
      std::min(options.decoder.logit_rows_max > 0 ? options.decoder.logit_rows_max : options.decoder.slots_max,
               options.decoder.step_tokens_max);
  for (MemoryPart& part : engine::Engine::PlanMemory(limits)) {
    parts.push_back(std::move(part));
  }
  parts.push_back({"tokenizer", tokenizer_bytes});
  for (MemoryPart& part : ProcessParts(options, limits)) {
    parts.push_back(std::move(part));
  }
  return parts;
}

absl::Status CheckDramBudget(const storage::GgufFile& file, const engine::ModelInfo& info,
                             const ModelHostOptions& options, uint64_t tokenizer_bytes) {
  if (options.decoder.dram_budget_bytes == 0) {
    return absl::OkStatus();
  }
  const uint64_t budget =
      options.decoder.dram_budget_bytes - std::min(options.decoder.dram_budget_bytes, options.dram_taken_bytes);
  EMBERGATE_ASSIGN_OR_RETURN(const std::vector<MemoryPart> parts, PlanDram(file, info, options, tokenizer_bytes));
  const uint64_t needed = TotalBytes(parts);
  if (needed <= budget) {
    return absl::OkStatus();
  }
  std::vector<std::string> lines;
  for (const MemoryPart& part : parts) {
    lines.push_back(absl::StrCat(part.name, " ", Mebibytes(part.bytes)));
  }
  std::vector<std::string> savings;
  for (const Reduction& reduction : Reductions(options, info)) {
    const auto lowered = PlanDram(file, info, reduction.options, tokenizer_bytes);
    if (lowered.ok() && TotalBytes(*lowered) + (1u << 20) <= needed) {
      savings.push_back(absl::StrCat(reduction.flag, " saves ", Mebibytes(needed - TotalBytes(*lowered))));
    }
  }
  return absl::ResourceExhaustedError(
      absl::StrCat("the DRAM budget of ", Mebibytes(budget), " cannot hold this model: ", absl::StrJoin(lines, ", "),
                   "; the smallest budget that would do with these settings is ", Mebibytes(needed), " (", needed,
                   " bytes)", savings.empty() ? "" : "; to need less: ", absl::StrJoin(savings, ", ")));
}

void BoundAllocator() {
  // Each arena keeps what its threads freed: gRPC's threads come and go, and by default there may be 8 per CPU.
  mallopt(M_ARENA_MAX, kArenas);
  // Setting these also keeps glibc from raising them whenever a large block is freed.
  mallopt(M_TRIM_THRESHOLD, kTrimBytes);
  mallopt(M_MMAP_THRESHOLD, kMmapBytes);
}

}  // namespace embergate::server
