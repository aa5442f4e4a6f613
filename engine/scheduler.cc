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

// Rule 1: how many of the waiting get slots; what is then left of slots and KV.
int Admitted(const SchedulerInput& input, int* slots, int64_t* kv_tokens) {
  int admitted = 0;
  *slots = input.slots_free;
  *kv_tokens = input.kv_tokens_free;
  for (const WaitingRequest& request : input.waiting) {
    if (*slots == 0 || request.kv_tokens > *kv_tokens) {
      break;
    }
    --*slots;
    *kv_tokens -= request.kv_tokens;
    ++admitted;
  }
  return admitted;
}

}  // namespace

void PlanPreemption(const SchedulerInput& input, Preemption* preemption) {
  preemption->waiting = -1;
  preemption->victims.clear();
  preemption->order.clear();
  for (int i = 0; i < static_cast<int>(input.running.size()); ++i) {
    if (input.running[i].preemptible) {
      preemption->order.push_back(i);
    }
  }
  if (preemption->order.empty()) {
    return;
  }
  int slots = 0;
  int64_t kv_tokens = 0;
  int wanting = Admitted(input, &slots, &kv_tokens);
  while (wanting < static_cast<int>(input.waiting.size()) && !input.waiting[wanting].preempts) {
    ++wanting;
  }
  if (wanting == static_cast<int>(input.waiting.size())) {
    return;
  }
  const int64_t kv_wanted = input.waiting[wanting].kv_tokens;
  if (slots > 0 && kv_wanted <= kv_tokens) {
    // There is room behind one that does not fit: nobody need lose anything for it.
    preemption->waiting = wanting;
    return;
  }
  std::sort(preemption->order.begin(), preemption->order.end(), [&](int a, int b) {
    const int x = input.running[a].computed;
    const int y = input.running[b].computed;
    return x != y ? x < y : a > b;
  });
  for (const int i : preemption->order) {
    preemption->victims.push_back(i);
    ++slots;
    kv_tokens += input.running[i].kv_tokens;
    if (slots > 0 && kv_wanted <= kv_tokens) {
      preemption->waiting = wanting;
      break;
    }
  }
  if (preemption->waiting < 0) {
    preemption->victims.clear();
    return;
  }
  // The cheapest first may have gathered more than it needs: leave out whom it can do without, the dearest first.
  for (size_t i = preemption->victims.size(); i-- > 0 && preemption->victims.size() > 1;) {
    const int64_t kv = input.running[preemption->victims[i]].kv_tokens;
    if (slots > 1 && kv_tokens - kv >= kv_wanted) {
      --slots;
      kv_tokens -= kv;
      preemption->victims.erase(preemption->victims.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
}

void PlanStep(const SchedulerInput& input, StepPlan* plan) {
  plan->admitted = 0;
  plan->chunks.clear();
  plan->order.clear();

  int slots = 0;
  int64_t kv_tokens = 0;
  plan->admitted = Admitted(input, &slots, &kv_tokens);
  const int running = static_cast<int>(input.running.size());
  const auto sequence = [&](int index) {
    if (index < running) {
      return input.running[index];
    }
    const WaitingRequest& request = input.waiting[index - running];
    RunningSequence fresh;
    fresh.prefill_tokens = request.prefill_tokens;
    fresh.all_logits = request.all_logits;
    fresh.last_logits = request.last_logits;
    return fresh;
  };

  Left left{input.limits.step_tokens_max, input.limits.logit_rows_max};
  int decodes = 0;
  int prompts = 0;
  int prompts_at_row = 0;  // prompts that cannot advance without a row of logits
  const auto at_row = [](const RunningSequence& s) {
    return s.prefill_tokens > 0 && (s.all_logits || (s.last_logits && s.prefill_tokens == 1));
  };
  for (const RunningSequence& s : input.running) {
    if (s.held) {
      continue;
    }
    decodes += s.prefill_tokens == 0 ? 1 : 0;
    prompts += s.prefill_tokens > 0 ? 1 : 0;
    prompts_at_row += at_row(s) ? 1 : 0;
  }
  const int prompt_tokens_max = decodes > 0 ? std::max(input.prefill_budget, 1) : input.limits.step_tokens_max;
  const bool few_tokens = decodes + prompts > left.tokens || prompts > prompt_tokens_max;
  const bool few_rows = decodes + prompts_at_row > left.logit_rows;
  for (int i = 0; i < running; ++i) {
    if (!input.running[i].held && (few_tokens || input.running[i].prefill_tokens == 0 || at_row(input.running[i]))) {
      plan->order.push_back(i);
    }
  }
  if (few_tokens || few_rows) {
    std::sort(plan->order.begin(), plan->order.end(), [&](int a, int b) {
      const uint64_t x = input.running[a].served_step;
      const uint64_t y = input.running[b].served_step;
      return x != y ? x < y : a < b;
    });
  }
  int prompt_tokens = 0;
  for (int i : plan->order) {
    if (left.tokens == 0) {
      break;
    }
    PlannedChunk chunk{i, 0, LogitsWanted::kNone};
    if (input.running[i].prefill_tokens > 0) {
      Extend(input.running[i], prompt_tokens < prompt_tokens_max ? 1 : 0, input.limits.chunk_max, &left, &chunk);
      prompt_tokens += chunk.tokens;
    } else if (left.logit_rows > 0) {
      --left.tokens;
      --left.logit_rows;
      chunk = {i, 1, LogitsWanted::kLast};
    }
    if (chunk.tokens > 0) {
      plan->chunks.push_back(chunk);
    }
  }

  left.tokens = std::min(left.tokens, prompt_tokens_max - prompt_tokens);
  plan->order.clear();
  for (int i = 0; i < running + plan->admitted; ++i) {
    if (sequence(i).prefill_tokens > 0 && !sequence(i).held) {
      plan->order.push_back(i);
    }
  }
  const auto extend = [&](int index, int tokens) {
    const auto existing = std::find_if(plan->chunks.begin(), plan->chunks.end(),
                                       [&](const PlannedChunk& chunk) { return chunk.sequence == index; });
    PlannedChunk chunk = existing != plan->chunks.end() ? *existing : PlannedChunk{index, 0, LogitsWanted::kNone};
    Extend(sequence(index), tokens, input.limits.chunk_max, &left, &chunk);
    if (existing != plan->chunks.end()) {
      *existing = chunk;
    } else if (chunk.tokens > 0) {
      plan->chunks.push_back(chunk);
    }
  };
  if (plan->order.empty()) {
    return;
  }
  const int oldest = plan->order.front();
  if (plan->order.size() == 1) {
    extend(oldest, left.tokens);
    return;
  }
  extend(oldest, (left.tokens + 1) / 2);
  std::sort(plan->order.begin() + 1, plan->order.end(), [&](int a, int b) {
    const int x = sequence(a).prefill_tokens;
    const int y = sequence(b).prefill_tokens;
    return x != y ? x < y : a < b;
  });
  for (size_t i = 1; i < plan->order.size(); ++i) {
    extend(plan->order[i], left.tokens);
  }
  extend(oldest, left.tokens);
}

}  // namespace embergate::engine
