#include "engine/scheduler.h"

#include <algorithm>

namespace embergate::engine {
namespace {

constexpr int kTile = 8;  // tokens that a kernel computes together

// What a step still has to give.
struct Left {
  int tokens = 0;
  int logit_rows = 0;
};

// Adds up to `tokens` more tokens of a prompt to the chunk, within what is left.
void Extend(const RunningSequence& sequence, int tokens, int chunk_max, Left* left, PlannedChunk* chunk) {
  const int before = chunk->tokens;
  int after = std::min({before + std::min(tokens, left->tokens), sequence.prefill_tokens, chunk_max});
  if (sequence.all_logits) {
    after = std::min(after, before + left->logit_rows);
  } else if (sequence.last_logits && after == sequence.prefill_tokens && left->logit_rows == 0) {
    --after;  // no row left to sample from: keep the last token for the next step
  }
  if (after < sequence.prefill_tokens && after > kTile) {
    after = std::max(after - after % kTile, before);
  }
  if (after <= before) {
    return;
  }
  left->tokens -= after - before;
  chunk->tokens = after;
  if (sequence.all_logits) {
    left->logit_rows -= after - before;
    chunk->logits = LogitsWanted::kAll;
  } else if (sequence.last_logits && after == sequence.prefill_tokens) {
    --left->logit_rows;
    chunk->logits = LogitsWanted::kLast;
  }
}

}  // namespace

void PlanStep(const SchedulerInput& input, StepPlan* plan) {
  plan->admitted = 0;
  plan->chunks.clear();
  plan->order.clear();

  int slots = input.slots_free;
  int64_t kv_tokens = input.kv_tokens_free;
  for (const WaitingRequest& request : input.waiting) {
    if (slots == 0 || request.kv_tokens > kv_tokens) {
      break;
    }
    --slots;
    kv_tokens -= request.kv_tokens;
    ++plan->admitted;
  }
  const int running = static_cast<int>(input.running.size());
  const auto sequence = [&](int index) {
    if (index < running) {
      return input.running[index];
    }
    const WaitingRequest& request = input.waiting[index - running];
    return RunningSequence{request.prefill_tokens, request.all_logits, request.last_logits, 0};
  };

  Left left{input.limits.step_tokens_max, input.limits.logit_rows_max};
  int decodes = 0;
  int prompts_at_row = 0;  // prompts that cannot advance without a row of logits
  const auto at_row = [](const RunningSequence& s) {
    return s.prefill_tokens > 0 && (s.all_logits || (s.last_logits && s.prefill_tokens == 1));
  };
  for (int i = 0; i < running; ++i) {
    decodes += input.running[i].prefill_tokens == 0 ? 1 : 0;
    prompts_at_row += at_row(input.running[i]) ? 1 : 0;
    if (input.running[i].prefill_tokens == 0 || at_row(input.running[i])) {
      plan->order.push_back(i);
    }
  }
  // Too few rows or tokens for all: whoever waited longest goes first, prompts among them.
  if (decodes + prompts_at_row > std::min(left.tokens, left.logit_rows)) {
    std::sort(plan->order.begin(), plan->order.end(), [&](int a, int b) {
      const uint64_t x = input.running[a].served_step;
      const uint64_t y = input.running[b].served_step;
      return x != y ? x < y : a < b;
    });
  }
  Left kept;  // for those prompts
  for (int i : plan->order) {
    if (left.tokens == 0 || left.logit_rows == 0) {
      break;
    }
    --left.tokens;
    --left.logit_rows;
    if (input.running[i].prefill_tokens == 0) {
      plan->chunks.push_back({i, 1, LogitsWanted::kLast});
    } else {
      ++kept.tokens;
      ++kept.logit_rows;
    }
  }
  left.tokens += kept.tokens;
  left.logit_rows += kept.logit_rows;

  if (decodes > 0) {
    left.tokens = std::min(left.tokens, std::max(input.prefill_budget, 1));
  }
  plan->order.clear();
  for (int i = 0; i < running + plan->admitted; ++i) {
    if (sequence(i).prefill_tokens > 0) {
      plan->order.push_back(i);
    }
  }
  if (plan->order.empty() || left.tokens == 0) {
    return;
  }
  const int oldest = plan->order.front();
  const size_t first = plan->chunks.size();
  plan->chunks.push_back({oldest, 0, LogitsWanted::kNone});
  const bool alone = plan->order.size() == 1;
  Extend(sequence(oldest), alone ? left.tokens : (left.tokens + 1) / 2, input.limits.chunk_max, &left,
         &plan->chunks[first]);
  if (!alone) {
    std::sort(plan->order.begin() + 1, plan->order.end(), [&](int a, int b) {
      const int x = sequence(a).prefill_tokens;
      const int y = sequence(b).prefill_tokens;
      return x != y ? x < y : a < b;
    });
    for (size_t i = 1; i < plan->order.size() && left.tokens > 0; ++i) {
      PlannedChunk chunk{plan->order[i], 0, LogitsWanted::kNone};
      Extend(sequence(chunk.sequence), left.tokens, input.limits.chunk_max, &left, &chunk);
      if (chunk.tokens > 0) {
        plan->chunks.push_back(chunk);
      }
    }
    Extend(sequence(oldest), left.tokens, input.limits.chunk_max, &left, &plan->chunks[first]);
  }
  if (plan->chunks[first].tokens == 0) {
    plan->chunks.erase(plan->chunks.begin() + static_cast<std::ptrdiff_t>(first));
  }
}

}  // namespace embergate::engine
