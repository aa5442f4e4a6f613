#include "server/response_builder.h"

#include <algorithm>
#include <utility>

#include "server/version.h"
#include "storage/stats.h"

namespace embergate::server {
namespace {

v1::FinishReason ReasonToProto(engine::FinishReason reason) {
  switch (reason) {
    case engine::FinishReason::kStop:
      return v1::FINISH_REASON_STOP;
    case engine::FinishReason::kStopString:
      return v1::FINISH_REASON_STOP_STRING;
    case engine::FinishReason::kLength:
      return v1::FINISH_REASON_LENGTH;
    case engine::FinishReason::kContextFull:
      return v1::FINISH_REASON_CONTEXT_FULL;
    case engine::FinishReason::kTimeLimit:
      return v1::FINISH_REASON_TIME_LIMIT;
    case engine::FinishReason::kCancelled:
    case engine::FinishReason::kDeadline:
    case engine::FinishReason::kError:
      break;  // these end with a status
  }
  return v1::FINISH_REASON_UNSPECIFIED;
}

// Why an answer ended, in any of the messages that tell it.
template <typename Proto>
void FillEnd(const engine::FinishEvent& from, Proto& to) {
  to.set_reason(ReasonToProto(from.reason));
  if (from.reason == engine::FinishReason::kStop && from.stop_id >= 0) {
    to.set_stop_id(from.stop_id);
  }
  to.set_stop_string(from.stop_string);
}

}  // namespace

void FillLogprobs(const engine::PositionLogprobs& from, v1::PositionLogprobs& to) {
  to.mutable_chosen()->set_id(from.chosen.id);
  to.mutable_chosen()->set_logprob(from.chosen.logprob);
  to.mutable_top()->Reserve(static_cast<int>(from.top.size()));
  for (const engine::TokenLogprob& token : from.top) {
    v1::TokenLogprob& proto = *to.add_top();
    proto.set_id(token.id);
    proto.set_logprob(token.logprob);
  }
}

void FillReceipt(const engine::Receipt& from, v1::Receipt& to) {
  to.set_queue_seconds(from.queue_seconds);
  to.set_prefill_seconds(from.prefill_seconds);
  to.set_decode_seconds(from.decode_seconds);
  to.set_flash_wait_seconds(from.row_wait_seconds);
  to.set_rows_requested(from.rows_requested);
  to.set_rows_from_cache(from.rows_from_cache);
  to.set_rows_read(from.rows_read);
  to.set_flash_bytes(from.flash_bytes);
  to.set_kv_bytes_peak(from.kv_bytes_peak);
  if (from.energy_joules.has_value()) {
    to.set_energy_joules(*from.energy_joules);
  }
  to.set_preemptions(from.preemptions);
}

void FillStarted(const engine::GenerateRequest& from, const std::string& request_id, v1::Started& to) {
  to.set_input_tokens(static_cast<int32_t>(from.prompt.size()));
  to.set_seed(from.sampling.seed);
  to.set_max_tokens(from.stop.tokens_max);
  to.set_request_id(request_id);
}

void FillCompletion(const engine::FinishEvent& from, v1::CompletionFinished& to) {
  to.set_completion(from.completion);
  FillEnd(from, to);
  to.set_output_tokens(from.receipt.generated_tokens);
  to.set_cumulative_logprob(from.cumulative_logprob);
}

void FillFinished(const engine::FinishEvent& from, v1::Finished& to) {
  FillEnd(from, to);
  FillUsage(from.receipt, *to.mutable_usage());
  FillReceipt(from.receipt, *to.mutable_receipt());
}

void FillAnswer(const engine::FinishEvent& from, bool one_of_several, v1::Delta content, v1::Answer& to) {
  to.set_completion(from.completion);
  *to.mutable_text() = std::move(*content.mutable_text());
  *to.mutable_thinking() = std::move(*content.mutable_thinking());
  to.mutable_ids()->Swap(content.mutable_ids());
  to.mutable_logprobs()->Swap(content.mutable_logprobs());
  to.mutable_tool_calls()->Swap(content.mutable_tool_calls());
  to.set_malformed_tool_call(content.malformed_tool_call());
  FillEnd(from, to);
  to.set_output_tokens(from.receipt.generated_tokens);
  if (one_of_several) {
    to.set_cumulative_logprob(from.cumulative_logprob);
  }
}

void FillUsage(const engine::Receipt& from, v1::Usage& to) {
  to.set_input_tokens(from.prompt_tokens);
  to.set_cached_tokens(from.cached_tokens);
  to.set_output_tokens(from.generated_tokens);
}

void FillSampling(const engine::SamplingParams& from, v1::Sampling& to) {
  to.set_temperature(from.temperature);
  to.set_top_k(from.top_k);
  to.set_top_p(from.top_p);
  to.set_min_p(from.min_p);
  to.set_typical_p(from.typical_p);
  to.set_repetition_penalty(from.repetition_penalty);
  to.set_presence_penalty(from.presence_penalty);
  to.set_frequency_penalty(from.frequency_penalty);
  to.set_penalty_window(from.penalty_window);
}

void FillModelInfo(const ServedModel& model, const RequestLimits& limits, v1::GetModelInfoResponse& to) {
  const engine::ModelInfo& info = model.info;
  to.set_name(info.name);
  to.set_architecture(info.architecture);
  to.set_parameters(info.parameters);
  to.set_weight_types(info.weight_types);
  to.set_layers(info.layers);
  to.set_hidden_size(info.hidden_size);
  to.set_vocab_size(model.limits.vocab_size);
  to.set_context_trained(info.context_trained);
  to.mutable_limits()->set_context_tokens(model.limits.context_max);
  to.mutable_limits()->set_concurrent_requests(model.limits.slots_max);
  to.mutable_limits()->set_waiting_requests(model.waiting_max);
  to.mutable_limits()->set_prompt_bytes(limits.prompt_bytes_max);
  FillSampling(model.sampling, *to.mutable_default_sampling());
  to.set_has_tokenizer(model.tokenizer != nullptr);
  if (model.chat_format.has_value() && model.tokenizer != nullptr) {
    to.set_chat_format(ChatFormatName(*model.chat_format));
  }
  to.mutable_eos_ids()->Assign(model.eos_ids.begin(), model.eos_ids.end());
  to.set_bos_id(model.tokenizer != nullptr ? model.tokenizer->vocabulary().bos_id : -1);
  v1::Memory& memory = *to.mutable_memory();
  memory.set_budget_bytes(model.dram_budget_bytes);
  uint64_t total = 0;
  if (model.memory) {
    for (const engine::MemoryPart& part : model.memory()) {
      v1::Memory::Part& proto = *memory.add_parts();
      proto.set_name(part.name);
      proto.set_bytes(part.bytes);
      total += part.bytes;
    }
  }
  memory.set_total_bytes(total);
  v1::Flash& flash = *to.mutable_flash();
  flash.set_file_bytes(info.file_bytes);
  flash.set_table_bytes(info.table_bytes);
  if (model.row_stats) {
    const storage::RowStoreStats stats = model.row_stats();
    flash.set_reader(stats.backend);
    flash.set_reader_reason(stats.backend_reason);
    flash.set_direct_io(stats.direct_io);
  }
  to.set_server_version(kVersion);
}

const char* ChatFormatName(engine::ChatFormat format) {
  switch (format) {
    case engine::ChatFormat::kGemma3n:
      return "gemma3n";
    case engine::ChatFormat::kGemma4:
      return "gemma4";
  }
  return "";
}

}  // namespace embergate::server
