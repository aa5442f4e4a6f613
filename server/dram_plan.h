// The DRAM of a server by part, before anything is allocated: what --dram-budget is held against.
#ifndef EMBERGATE_SERVER_DRAM_PLAN_H_
#define EMBERGATE_SERVER_DRAM_PLAN_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/model/decoder_model.h"
#include "engine/model/language_model.h"
#include "server/model_host.h"
#include "storage/gguf_file.h"

namespace embergate::server {

// What the process needs besides model, engine and tokenizer, by part:
//   binary           pages of the executable and its libraries
//   grpc_buffers     gRPC's quota for all connections
//   requests         waiting requests at their bound; prompts and pending answers of the running ones
//   allocator_slack  what malloc holds without need, thread stacks, page tables
std::vector<engine::MemoryPart> ProcessParts(const ModelHostOptions& options, const engine::ModelLimits& limits);

// All parts of a server with these options.
absl::StatusOr<std::vector<engine::MemoryPart>> PlanDram(const storage::GgufFile& file, const engine::ModelInfo& info,
                                                         const ModelHostOptions& options, uint64_t tokenizer_bytes);

// Of these parts, what the process has once, however many models it holds.
uint64_t SharedBytes(const std::vector<engine::MemoryPart>& parts);
uint64_t TotalBytes(const std::vector<engine::MemoryPart>& parts);

// RESOURCE_EXHAUSTED when the budget (0 = none), less what another model takes of it, cannot hold the plan: lists the
// parts, the smallest budget that would do with these settings, and what each setting that could be lowered would save.
absl::Status CheckDramBudget(const storage::GgufFile& file, const engine::ModelInfo& info,
                             const ModelHostOptions& options, uint64_t tokenizer_bytes);

// Bounds what malloc keeps: two arenas, large blocks straight from the kernel and back to it. Call once, before threads
// are started.
void BoundAllocator();

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_DRAM_PLAN_H_
