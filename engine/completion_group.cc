#include "engine/completion_group.h"

#include <algorithm>
#include <utility>

namespace embergate::engine {

CompletionGroup::CompletionGroup(int count, TokenSink* sink)
    : sink_(sink), members_(static_cast<size_t>(count)), running_(count) {
  for (int i = 0; i < count; ++i) {
    members_[static_cast<size_t>(i)].group = this;
    members_[static_cast<size_t>(i)].index = i;
  }
}

GenerateRequest CompletionGroup::Part(const GenerateRequest& request, int index) {
  GenerateRequest part = request;
  if (index > 0) {
    // SplitMix64: neighbouring seeds of a client and neighbouring answers get unrelated streams.
    uint64_t x = request.sampling.seed + 0x9E3779B97F4A7C15u * static_cast<uint64_t>(index);
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    part.sampling.seed = x ^ (x >> 31);
    part.prompt_logprobs = false;
    part.prompt_top_logprobs = 0;
    part.prompt_progress = false;
  }
  return part;
}

void CompletionGroup::Member::OnStart(int prompt_tokens) {
  if (!group->started_) {
    group->started_ = true;
    group->sink_->OnStart(prompt_tokens);
  }
}

void CompletionGroup::Member::OnPrompt(std::vector<PositionLogprobs> logprobs) {
  group->sink_->OnPrompt(std::move(logprobs));
}

void CompletionGroup::Member::OnPromptProgress(int done, int cached) {
  if (!group->answering_) {  // another answer may have begun while this one was set aside
    group->sink_->OnPromptProgress(done, cached);
  }
}

void CompletionGroup::Member::OnTokens(TokenEvent event) {
  event.completion = index;
  group->answering_ = true;
  group->sink_->OnTokens(std::move(event));
}

void CompletionGroup::Member::OnFinish(FinishEvent event) {
  event.completion = index;
  group->Finish(*this, std::move(event));
}

void CompletionGroup::Finish(Member& member, FinishEvent event) {
  member.cancelled = nullptr;
  const Receipt& part = event.receipt;
  Receipt receipt = whole_.receipt;
  if (member.index == 0) {
    receipt.prompt_tokens = part.prompt_tokens;  // the prompt counts once
    receipt.cached_tokens = part.cached_tokens;
    receipt.queue_seconds = part.queue_seconds;
    receipt.prefill_seconds = part.prefill_seconds;
  }
  receipt.generated_tokens += part.generated_tokens;
  receipt.decode_seconds = std::max(receipt.decode_seconds, part.decode_seconds);
  receipt.row_wait_seconds = std::max(receipt.row_wait_seconds, part.row_wait_seconds);
  receipt.rows_requested += part.rows_requested;
  receipt.rows_from_cache += part.rows_from_cache;
  receipt.rows_read += part.rows_read;
  receipt.flash_bytes += part.flash_bytes;
  receipt.kv_bytes_peak = std::max(receipt.kv_bytes_peak, part.kv_bytes_peak);  // of all that were there with it
  receipt.preemptions += part.preemptions;
  if (part.energy_joules.has_value()) {
    receipt.energy_joules = receipt.energy_joules.value_or(0) + *part.energy_joules;
  }
  if (whole_.status.ok() && (member.index == 0 || !event.status.ok())) {
    // The first error is the request's; without one, it ends as answer 0 does.
    whole_.reason = event.reason;
    whole_.status = event.status;
    whole_.stop_string = event.stop_string;
    whole_.stop_id = event.stop_id;
    whole_.cumulative_logprob = event.cumulative_logprob;
  }
  whole_.receipt = receipt;
  if (!event.status.ok()) {
    for (Member& other : members_) {
      if (other.cancelled != nullptr) {
        other.cancelled->store(true, std::memory_order_relaxed);
      }
    }
  }
  sink_->OnCompletion(std::move(event));
  if (--running_ == 0) {
    TokenSink* const sink = sink_;
    FinishEvent whole = std::move(whole_);
    delete this;
    sink->OnFinish(std::move(whole));
  }
}

}  // namespace embergate::engine
