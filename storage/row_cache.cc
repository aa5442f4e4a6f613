#include "storage/row_cache.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "storage/base/status_macros.h"

namespace embergate::storage {
namespace {

uint64_t Mix(uint64_t key) {
  key ^= key >> 32;
  key *= 0xd6e8feb86659fd93u;
  key ^= key >> 32;
  key *= 0xd6e8feb86659fd93u;
  key ^= key >> 32;
  return key;
}

uint32_t PowerOfTwoAtLeast(uint64_t value) {
  uint32_t power = 1;
  while (power < value) {
    power *= 2;
  }
  return power;
}

}  // namespace

uint64_t RowCache::BytesPerCachedRow(uint32_t row_bytes) {
  // The index has two to four places per slot, the ghost table one to two ways.
  return SlotBytes(row_bytes) + sizeof(Entry) + 4 * sizeof(Id) + 2 * sizeof(Ghost);
}

absl::StatusOr<RowCache> RowCache::Create(const Options& options) {
  const uint64_t slots = static_cast<uint64_t>(options.rows_held_max) + options.rows_cached;
  const uint64_t slot_bytes = SlotBytes(options.row_bytes);
  if (slots == 0 || slots > (1u << 24) || slot_bytes == 0 || slot_bytes > (1u << 30)) {
    return absl::InvalidArgumentError(
        absl::StrCat("row cache: ", slots, " rows of ", options.row_bytes, " bytes are out of bounds"));
  }
  RowCache cache;
  cache.slot_bytes_ = static_cast<uint32_t>(slot_bytes);
  cache.rows_held_max_ = options.rows_held_max;
  cache.rows_cached_ = options.rows_cached;
  cache.probation_share_ = std::max<uint32_t>(1, static_cast<uint32_t>(slots / kProbationPart));
  EMBERGATE_ASSIGN_OR_RETURN(cache.slots_, MappedMemory::Create(slots * slot_bytes));
  cache.entries_.resize(slots);
  for (Id id = 0; id < slots; ++id) {
    cache.PushHead(cache.free_, Entry::Queue::kNone, static_cast<Id>(slots - 1 - id));
  }
  cache.index_.assign(PowerOfTwoAtLeast(2 * slots), kNone);
  cache.index_mask_ = static_cast<uint32_t>(cache.index_.size() - 1);
  if (options.rows_cached > 0) {
    cache.ghost_rows_ = static_cast<uint32_t>(slots);
    cache.ghosts_.assign(std::max(kGhostWays, PowerOfTwoAtLeast(slots)), Ghost());
    cache.ghost_mask_ = static_cast<uint32_t>(cache.ghosts_.size() / kGhostWays - 1);
  }
  return cache;
}

uint64_t RowCache::memory_bytes() const {
  return slots_.bytes() + entries_.size() * sizeof(Entry) + index_.size() * sizeof(Id) + ghosts_.size() * sizeof(Ghost);
}

RowCache::Id RowCache::Find(uint64_t key) const {
  for (uint32_t i = static_cast<uint32_t>(Mix(key)) & index_mask_; index_[i] != kNone; i = (i + 1) & index_mask_) {
    if (entries_[index_[i]].key == key) {
      return index_[i];
    }
  }
  return kNone;
}

void RowCache::IndexSet(uint64_t key, Id id) {
  uint32_t i = static_cast<uint32_t>(Mix(key)) & index_mask_;
  while (index_[i] != kNone && entries_[index_[i]].key != key) {
    i = (i + 1) & index_mask_;
  }
  if (index_[i] != kNone) {
    entries_[index_[i]].indexed = false;
  }
  index_[i] = id;
  entries_[id].indexed = true;
}

void RowCache::IndexErase(uint64_t key) {
  uint32_t hole = static_cast<uint32_t>(Mix(key)) & index_mask_;
  while (entries_[index_[hole]].key != key) {
    hole = (hole + 1) & index_mask_;
  }
  entries_[index_[hole]].indexed = false;
  // Close the hole: move back every later entry of the run that the hole would make unreachable.
  uint32_t i = hole;
  while (true) {
    i = (i + 1) & index_mask_;
    if (index_[i] == kNone) {
      break;
    }
    const uint32_t wish = static_cast<uint32_t>(Mix(entries_[index_[i]].key)) & index_mask_;
    if (((i - wish) & index_mask_) >= ((i - hole) & index_mask_)) {
      index_[hole] = index_[i];
      hole = i;
    }
  }
  index_[hole] = kNone;
}

void RowCache::PushHead(List& list, Entry::Queue queue, Id id) {
  Entry& entry = entries_[id];
  entry.queue = queue;
  entry.previous = kNone;
  entry.next = list.head;
  if (list.head != kNone) {
    entries_[list.head].previous = id;
  } else {
    list.tail = id;
  }
  list.head = id;
  ++list.count;
}

void RowCache::Unlink(Id id) {
  Entry& entry = entries_[id];
  List& list = entry.queue == Entry::Queue::kNone ? free_ : ListOf(entry.queue);
  (entry.previous != kNone ? entries_[entry.previous].next : list.head) = entry.next;
  (entry.next != kNone ? entries_[entry.next].previous : list.tail) = entry.previous;
  entry.previous = kNone;
  entry.next = kNone;
  entry.queue = Entry::Queue::kNone;
  --list.count;
}

void RowCache::Free(Id id) {
  Entry& entry = entries_[id];
  if (entry.indexed) {
    IndexErase(entry.key);
  }
  entry.state = State::kFree;
  PushHead(free_, Entry::Queue::kNone, id);
}

void RowCache::Remember(uint64_t key) {
  const uint64_t hash = Mix(key);
  Ghost* set = &ghosts_[(static_cast<uint32_t>(hash) & ghost_mask_) * kGhostWays];
  Ghost* oldest = set;
  for (uint32_t way = 0; way < kGhostWays; ++way) {
    // Differences of the clock, so that its wrap-around does no harm.
    if (static_cast<int32_t>(set[way].until - oldest->until) < 0) {
      oldest = &set[way];
    }
  }
  oldest->tag = static_cast<uint32_t>(hash >> 32) | 1;
  oldest->until = ghost_clock_ + ghost_rows_;
  ++ghost_clock_;
}

bool RowCache::Recall(uint64_t key) {
  if (ghosts_.empty()) {
    return false;
  }
  const uint64_t hash = Mix(key);
  Ghost* set = &ghosts_[(static_cast<uint32_t>(hash) & ghost_mask_) * kGhostWays];
  for (uint32_t way = 0; way < kGhostWays; ++way) {
    if (set[way].tag == (static_cast<uint32_t>(hash >> 32) | 1)) {
      const bool fresh = static_cast<int32_t>(set[way].until - ghost_clock_) > 0;
      set[way].tag = 0;
      return fresh;
    }
  }
  return false;
}

RowCache::Id RowCache::Evict() {
  while (true) {
    if (probation_.count > 0 && (probation_.count >= probation_share_ || main_.count == 0)) {
      const Id id = probation_.tail;
      Entry& entry = entries_[id];
      Unlink(id);
      if (entry.uses > 0) {
        entry.uses = 0;
        entry.home = Entry::Queue::kMain;
        PushHead(main_, Entry::Queue::kMain, id);
        continue;
      }
      Remember(entry.key);
      Free(id);
      return id;
    }
    if (main_.count == 0) {
      return kNone;
    }
    const Id id = main_.tail;
    Entry& entry = entries_[id];
    Unlink(id);
    if (entry.uses > 0) {
      --entry.uses;
      PushHead(main_, Entry::Queue::kMain, id);
      continue;
    }
    Remember(entry.key);
    Free(id);
    return id;
  }
}

RowCache::Id RowCache::TakeSlot() {
  if (free_.count == 0 && Evict() == kNone) {
    return kNone;
  }
  const Id id = free_.head;
  Unlink(id);
  return id;
}

void RowCache::Touch(Id id) {
  Entry& entry = entries_[id];
  entry.uses = static_cast<uint8_t>(std::min(kUsesMax, entry.uses + 1));
}

bool RowCache::Pin(Id id) {
  Entry& entry = entries_[id];
  if (entry.pins == 0 && entry.state == State::kReady) {
    if (held_ == rows_held_max_) {
      return false;
    }
    Unlink(id);
    ++held_;
  }
  ++entry.pins;
  return true;
}

RowCache::Id RowCache::Insert(uint64_t key, uint32_t bytes, bool keep) {
  if (held_ == rows_held_max_) {
    return kNone;
  }
  const Id older = Find(key);
  bool known = false;
  if (older != kNone) {
    Entry& entry = entries_[older];
    known = entry.home == Entry::Queue::kMain;
    if (entry.queue != Entry::Queue::kNone) {
      Unlink(older);
      Free(older);
    }
  }
  const Id id = TakeSlot();
  if (id == kNone) {
    return kNone;
  }
  Entry& entry = entries_[id];
  entry.key = key;
  entry.pins = 1;
  entry.bytes = bytes;
  entry.state = State::kReading;
  entry.failure = 0;
  entry.failure_errno = 0;
  entry.next_in_read = kNone;
  entry.uses = 0;
  entry.keep = keep && rows_cached_ > 0;
  entry.home = entry.keep && (known || Recall(key)) ? Entry::Queue::kMain : Entry::Queue::kProbation;
  IndexSet(key, id);
  ++held_;
  return id;
}

void RowCache::Unpin(Id id) {
  Entry& entry = entries_[id];
  --entry.pins;
  if (entry.pins > 0 || entry.state == State::kReading) {
    return;
  }
  --held_;
  if (entry.state == State::kReady && entry.keep && entry.indexed) {
    PushHead(ListOf(entry.home), entry.home, id);
  } else {
    Free(id);
  }
}

void RowCache::Complete(Id id) {
  Entry& entry = entries_[id];
  entry.state = State::kReady;
  if (entry.pins == 0) {
    ++entry.pins;
    Unpin(id);
  }
}

void RowCache::Fail(Id id) {
  Entry& entry = entries_[id];
  entry.state = State::kFailed;
  if (entry.indexed) {
    IndexErase(entry.key);
  }
  if (entry.pins == 0) {
    ++entry.pins;
    Unpin(id);
  }
}

void RowCache::Abandon(Id id) { Fail(id); }

void RowCache::Hottest(size_t count, std::vector<uint64_t>* keys) const {
  keys->clear();
  for (const List* list : {&main_, &probation_}) {
    for (Id id = list->head; id != kNone && keys->size() < count; id = entries_[id].next) {
      keys->push_back(entries_[id].key);
    }
  }
}

bool RowCache::CheckInvariants() const {
  uint32_t linked = 0;
  for (const List* list : {&free_, &probation_, &main_}) {
    uint32_t count = 0;
    Id previous = kNone;
    for (Id id = list->head; id != kNone; id = entries_[id].next) {
      const Entry& entry = entries_[id];
      const bool is_free = list == &free_;
      if (entry.previous != previous || ++count > entries_.size() || (entry.state == State::kFree) != is_free) {
        return false;
      }
      if (!is_free &&
          (entry.pins != 0 || entry.state != State::kReady || !entry.indexed || !entry.keep || Find(entry.key) != id)) {
        return false;
      }
      previous = id;
    }
    if (count != list->count || list->tail != previous) {
      return false;
    }
    linked += count;
  }
  uint32_t held = 0;
  uint32_t indexed = 0;
  for (Id id = 0; id < entries_.size(); ++id) {
    const Entry& entry = entries_[id];
    held += entry.state != State::kFree && (entry.pins > 0 || entry.state == State::kReading) ? 1 : 0;
    indexed += entry.indexed ? 1 : 0;
    if (entry.indexed && Find(entry.key) != id) {
      return false;
    }
  }
  uint32_t in_index = 0;
  for (Id id : index_) {
    in_index += id != kNone ? 1 : 0;
  }
  return held == held_ && held <= rows_held_max_ && linked + held == entries_.size() && indexed == in_index;
}

}  // namespace embergate::storage
