#include "tests/support/scripted_model.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace embergate::testing {

using engine::Chunk;
using engine::LogitsWanted;

Script HashScript() {
  return [](absl::Span<const int32_t> context, absl::Span<float> logits) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (int32_t id : context) {
      hash = (hash ^ static_cast<uint64_t>(id)) * 0x100000001B3u;
      hash ^= hash >> 29;
    }
    for (size_t i = 0; i < logits.size(); ++i) {
      uint64_t x = hash + 0x9E3779B97F4A7C15u * (i + 1);
      x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
      x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
      logits[i] = static_cast<float>((x >> 40) & 0xFFFFFF) * (8.0f / 16777216.0f) - 4.0f;
    }
  };
}

Script TableScript(std::function<int32_t(absl::Span<const int32_t>)> next) {
  return [next = std::move(next)](absl::Span<const int32_t> context, absl::Span<float> logits) {
    std::fill(logits.begin(), logits.end(), 0.0f);
    logits[static_cast<size_t>(next(context))] = 10.0f;
  };
}

ScriptedModel::ScriptedModel(ScriptedModelOptions options) : options_(std::move(options)) {
  slots_.resize(static_cast<size_t>(options_.limits.slots_max));
  kv_free_ =
      options_.kv_tokens > 0 ? options_.kv_tokens : int64_t{options_.limits.context_max} * options_.limits.slots_max;
}

absl::Status ScriptedModel::OpenSlot(int slot, int tokens_max) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (slot < 0 || slot >= options_.limits.slots_max) {
    Violation(absl::StrCat("OpenSlot(", slot, ") of ", options_.limits.slots_max, " slots"));
    return absl::InvalidArgumentError("no such slot");
  }
  Slot& s = slots_[static_cast<size_t>(slot)];
  if (s.open) {
    Violation(absl::StrCat("OpenSlot(", slot, ") twice"));
  }
  if (tokens_max < 1 || tokens_max > options_.limits.context_max) {
    Violation(absl::StrCat("OpenSlot for ", tokens_max, " positions of ", options_.limits.context_max));
    return absl::InvalidArgumentError("never fits");
  }
  if (open_faults_ > 0) {
    --open_faults_;
    return open_fault_;
  }
  if (tokens_max > kv_free_) {
    return absl::ResourceExhaustedError("KV pool is full");
  }
  kv_free_ -= tokens_max;
  s = Slot{true, tokens_max, {}, 0};
  return absl::OkStatus();
}

absl::StatusOr<int> ScriptedModel::OpenSlotWithPrefix(int slot, int tokens_max, absl::Span<const int32_t> tokens,
                                                      uint64_t scope) {
  const absl::Status status = OpenSlot(slot, tokens_max);
  if (!status.ok()) {
    return status;
  }
  std::lock_guard<std::mutex> lock(mutex_);
  size_t best = 0;
  for (const std::vector<Slot>* list : {&slots_, &past_}) {
    for (const Slot& other : *list) {
      const size_t limit = other.scope == scope ? std::min(tokens.size(), other.tokens.size()) : 0;
      const auto end = tokens.begin() + static_cast<std::ptrdiff_t>(limit);
      best = std::max(
          best, static_cast<size_t>(std::mismatch(tokens.begin(), end, other.tokens.begin()).first - tokens.begin()));
    }
  }
  Slot& s = slots_[static_cast<size_t>(slot)];
  s.scope = scope;
  if (!options_.reuses_prefixes) {
    return 0;
  }
  s.tokens.assign(tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(best));
  return static_cast<int>(best);
}

void ScriptedModel::CloseSlot(int slot) {
  std::lock_guard<std::mutex> lock(mutex_);
  Slot& s = slots_[static_cast<size_t>(slot)];
  if (!s.open) {
    Violation(absl::StrCat("CloseSlot(", slot, ") of a closed slot"));
    return;
  }
  kv_free_ += s.reserved;
  if (options_.reuses_prefixes) {
    past_.push_back(s);
  }
  s = Slot{};
}

int64_t ScriptedModel::FreeKvTokens() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return kv_free_;
}

uint64_t ScriptedModel::KvBytes(absl::Span<const int> slots) const {
  std::lock_guard<std::mutex> lock(mutex_);
  size_t positions = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    const std::vector<int32_t>& tokens = slots_[static_cast<size_t>(slots[i])].tokens;
    size_t shared = 0;
    for (size_t before = 0; options_.reuses_prefixes && before < i; ++before) {
      const std::vector<int32_t>& other = slots_[static_cast<size_t>(slots[before])].tokens;
      const size_t limit = std::min(tokens.size(), other.size());
      size_t common = 0;
      while (common < limit && tokens[common] == other[common]) {
        ++common;
      }
      shared = std::max(shared, common);
    }
    positions += tokens.size() - shared;
  }
  return positions * 100;
}

absl::StatusOr<storage::RowTicket> ScriptedModel::PrefetchRows(absl::Span<const int32_t> tokens) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (tokens.empty()) {
    Violation("PrefetchRows of nothing");
  }
  if (!options_.has_rows) {
    return storage::RowTicket{};
  }
  if (tickets_.size() >= static_cast<size_t>(options_.tickets_max)) {
    return absl::ResourceExhaustedError("too many tickets");
  }
  const uint32_t index = next_ticket_++;
  tickets_[index] = Ticket{{tokens.begin(), tokens.end()}, steps_};
  return storage::RowTicket{index, 1};
}

void ScriptedModel::ReleaseRows(storage::RowTicket ticket) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!ticket.valid() || tickets_.erase(ticket.index) == 0) {
    Violation(absl::StrCat("ReleaseRows of ticket ", ticket.index, ", which is not held"));
  }
}

void ScriptedModel::TakeRows(const Chunk& chunk, SeenChunk* seen) {
  if (!chunk.rows.valid()) {
    return;
  }
  const auto it = tickets_.find(chunk.rows.index);
  if (it == tickets_.end()) {
    Violation(absl::StrCat("Step with ticket ", chunk.rows.index, ", which is not held"));
    return;
  }
  if (absl::MakeConstSpan(it->second.tokens) != chunk.tokens) {
    Violation(absl::StrCat("Step with rows of other tokens (slot ", chunk.slot, ", start ", chunk.start, ")"));
  }
  seen->had_rows = true;
  seen->rows_before_last_step = it->second.step + 1 < steps_;
  tickets_.erase(it);
}

absl::Status ScriptedModel::Step(absl::Span<Chunk> chunks, absl::Span<float> logits, engine::StepTimes* times) {
  std::function<void(uint64_t)> on_step;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    on_step = on_step_;
    ++steps_;
  }
  if (on_step) {
    on_step(steps_);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  const engine::ModelLimits& limits = options_.limits;
  const size_t width = static_cast<size_t>(limits.vocab_size);
  std::vector<SeenChunk> seen;
  std::vector<bool> used(slots_.size());
  size_t row = 0;
  size_t tokens = 0;
  const absl::Status whole = step_fault_ ? step_fault_(steps_) : absl::OkStatus();
  for (Chunk& chunk : chunks) {
    SeenChunk view{chunk.slot, chunk.start, static_cast<int>(chunk.tokens.size()), false, false, chunk.logits};
    TakeRows(chunk, &view);
    seen.push_back(view);
    tokens += chunk.tokens.size();
    Slot& slot = slots_.at(static_cast<size_t>(chunk.slot));
    if (used[static_cast<size_t>(chunk.slot)]) {
      Violation(absl::StrCat("slot ", chunk.slot, " twice in one step"));
    }
    used[static_cast<size_t>(chunk.slot)] = true;
    if (!slot.open || chunk.tokens.empty() || chunk.start != static_cast<int>(slot.tokens.size()) ||
        chunk.start + static_cast<int>(chunk.tokens.size()) > slot.reserved) {
      Violation(absl::StrCat("slot ", chunk.slot, " (open ", slot.open, ", holds ", slot.tokens.size(), " of ",
                             slot.reserved, "): chunk of ", chunk.tokens.size(), " at ", chunk.start));
    }
    chunk.status = chunk_fault_ ? chunk_fault_(steps_, chunk) : absl::OkStatus();
    chunk.rows_used = {chunk.tokens.size(), chunk.tokens.size() / 2, chunk.tokens.size() - chunk.tokens.size() / 2,
                       4096 * (chunk.tokens.size() - chunk.tokens.size() / 2)};
    for (size_t i = 0; i < chunk.tokens.size(); ++i) {
      const int32_t id = chunk.tokens[i];
      if (id < 0 || id >= limits.vocab_size) {
        Violation(absl::StrCat("token ", id, " outside the vocabulary"));
      }
      slot.tokens.push_back(id);
      const bool wanted =
          chunk.logits == LogitsWanted::kAll || (chunk.logits == LogitsWanted::kLast && i + 1 == chunk.tokens.size());
      if (!wanted) {
        continue;
      }
      if ((row + 1) * width > logits.size()) {
        Violation("logits span too small");
        continue;
      }
      options_.script(slot.tokens, logits.subspan(row * width, width));
      ++row;
    }
  }
  if (row * width != logits.size()) {
    Violation(absl::StrCat("logits span of ", logits.size(), " for ", row, " rows"));
  }
  if (chunks.empty() || tokens > static_cast<size_t>(limits.step_tokens_max) ||
      row > static_cast<size_t>(limits.logit_rows_max)) {
    Violation(absl::StrCat("step of ", chunks.size(), " chunks, ", tokens, " tokens, ", row, " rows"));
  }
  seen_.push_back(std::move(seen));
  const absl::Duration duration = options_.step_base + options_.step_per_token * static_cast<double>(tokens);
  if (options_.clock != nullptr) {
    options_.clock->Advance(duration);
  }
  if (times != nullptr) {
    times->total_ns = static_cast<uint64_t>(absl::ToInt64Nanoseconds(duration));
    times->row_wait_ns = times->total_ns / 10;
  }
  return whole;
}

void ScriptedModel::set_step_fault(std::function<absl::Status(uint64_t)> fault) {
  std::lock_guard<std::mutex> lock(mutex_);
  step_fault_ = std::move(fault);
}

void ScriptedModel::set_chunk_fault(std::function<absl::Status(uint64_t, const Chunk&)> fault) {
  std::lock_guard<std::mutex> lock(mutex_);
  chunk_fault_ = std::move(fault);
}

void ScriptedModel::set_on_step(std::function<void(uint64_t)> on_step) {
  std::lock_guard<std::mutex> lock(mutex_);
  on_step_ = std::move(on_step);
}

void ScriptedModel::FailOpenSlot(absl::Status status, int times) {
  std::lock_guard<std::mutex> lock(mutex_);
  open_fault_ = std::move(status);
  open_faults_ = times;
}

uint64_t ScriptedModel::steps() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return steps_;
}

std::vector<std::vector<SeenChunk>> ScriptedModel::seen() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return seen_;
}

std::vector<std::string> ScriptedModel::violations() const {
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::string> all = violations_;
  for (size_t i = 0; i < slots_.size(); ++i) {
    if (slots_[i].open) {
      all.push_back(absl::StrCat("slot ", i, " still open"));
    }
  }
  if (!tickets_.empty()) {
    all.push_back(absl::StrCat(tickets_.size(), " tickets still held"));
  }
  return all;
}

std::vector<int32_t> ScriptedModel::Greedy(std::vector<int32_t> prompt, int tokens) const {
  std::vector<float> logits(static_cast<size_t>(options_.limits.vocab_size));
  std::vector<int32_t> generated;
  for (int i = 0; i < tokens; ++i) {
    options_.script(prompt, absl::MakeSpan(logits));
    const auto id = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    generated.push_back(id);
    prompt.push_back(id);
  }
  return generated;
}

}  // namespace embergate::testing
