// The rows that are in DRAM: those that tickets hold and those kept in the hope of another use, in one array of equal
// slots, found by key.
//
// Invariants
//   - A slot is in exactly one place: the free list; a queue (probation or main), if it is indexed, complete, kept and
//     nobody pins it; or outside both, if it is pinned or being read ("held").
//   - held <= rows_held_max, and slots = rows_held_max + rows_cached, so Insert always finds a free or an evictable
//   slot.
//     The share that tickets do not use at the moment serves as cache too.
//   - The index maps a key to the newest entry of that key. An older one (a prefix that a longer read superseded, or
//     a failed row) stays valid for those who pin it and is freed with the last pin.
//   - Bytes of a slot do not move and are not rewritten while it is held.
//
// Replacement: S3-FIFO's idea (a row must prove itself in a small probation queue before it may displace one of the
// main queue; a ghost list of keys remembers those who just left), with two changes. Pinning suggests one: a row leaves
// its queue while pinned and re-enters at the head, so eviction never has to step over pinned rows. And rows that leave
// the main queue are remembered, too: they have proven themselves before. A scan of any length passes through probation
// and leaves the main queue as it was.
#ifndef EMBERGATE_STORAGE_ROW_CACHE_H_
#define EMBERGATE_STORAGE_ROW_CACHE_H_

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "storage/buffer_pool.h"

namespace embergate::storage {

// Threads: one owner. All memory is taken at Create.
class RowCache {
 public:
  using Id = uint32_t;
  static constexpr Id kNone = UINT32_MAX;

  struct Options {
    uint32_t row_bytes = 0;      // the longest row; slots are this, rounded up to 64
    uint32_t rows_held_max = 0;  // pinned or being read
    uint32_t rows_cached = 0;    // beyond those; 0: rows are dropped as soon as nobody pins them
  };

  enum class State : uint8_t { kFree, kReading, kReady, kFailed };

  struct Entry {
    uint64_t key = 0;
    uint32_t pins = 0;
    uint32_t bytes = 0;  // of the row: asked for while kReading, there when kReady
    State state = State::kFree;
    // The caller's: why the row failed, the next row of the same read, the last submission that named it.
    uint8_t failure = 0;
    int32_t failure_errno = 0;
    uint32_t next_in_read = kNone;
    uint32_t mark = 0;

   private:
    friend class RowCache;
    enum class Queue : uint8_t { kNone, kProbation, kMain };
    Queue queue = Queue::kNone;
    Queue home = Queue::kProbation;  // where it goes when the last pin is gone
    uint8_t uses = 0;                // after the first, since it entered its queue; saturates at kUsesMax
    bool keep = false;               // may be cached
    bool indexed = false;
    Id previous = kNone;
    Id next = kNone;
  };

  // Whole cache lines, so that neighbours never share one.
  static constexpr uint64_t SlotBytes(uint64_t row_bytes) { return (row_bytes + 63) / 64 * 64; }
  // What a cached row of `row_bytes` costs at most, index and ghost list included.
  static uint64_t BytesPerCachedRow(uint32_t row_bytes);

  static absl::StatusOr<RowCache> Create(const Options& options);

  // The newest entry of `key` that has not failed, or kNone.
  Id Find(uint64_t key) const;
  // Counts a use of an entry that was found.
  void Touch(Id id);

  // Adds one pin. False if the entry was held by nobody and rows_held_max is reached.
  bool Pin(Id id);
  // A new entry in state kReading with one pin, in the index in place of any older one of that key. `keep` false: the
  // slot is freed with the last pin. kNone if rows_held_max is reached.
  Id Insert(uint64_t key, uint32_t bytes, bool keep);
  // Removes one pin. A ready row goes to its queue; a failed one is freed; one still being read waits for Complete,
  // Fail or Abandon.
  void Unpin(Id id);

  // The end of a read. Complete: `bytes(id)` holds entry(id).bytes good bytes. Fail: the row is out of the index.
  void Complete(Id id);
  void Fail(Id id);
  // The read of an entry that nobody pins was never started: frees it.
  void Abandon(Id id);

  Entry& entry(Id id) { return entries_[id]; }
  const Entry& entry(Id id) const { return entries_[id]; }
  uint8_t* data(Id id) { return slots_.data() + static_cast<uint64_t>(id) * slot_bytes_; }
  const uint8_t* data(Id id) const { return slots_.data() + static_cast<uint64_t>(id) * slot_bytes_; }

  uint32_t rows_held() const { return held_; }
  uint32_t rows_held_max() const { return rows_held_max_; }
  uint32_t rows_kept() const { return probation_.count + main_.count; }
  uint32_t slots() const { return static_cast<uint32_t>(entries_.size()); }
  uint32_t slot_bytes() const { return slot_bytes_; }
  uint64_t memory_bytes() const;

  // Keys of up to `count` kept rows, the most valued first.
  void Hottest(size_t count, std::vector<uint64_t>* keys) const;

  // Walks everything and checks the invariants. For tests.
  bool CheckInvariants() const;

 private:
  struct List {
    Id head = kNone;
    Id tail = kNone;
    uint32_t count = 0;
  };
  // One way of the ghost table: remembers a key as `tag` until `until` evictions from probation have passed.
  struct Ghost {
    uint32_t tag = 0;
    uint32_t until = 0;
  };
  static constexpr uint32_t kGhostWays = 4;
  static constexpr uint32_t kProbationPart = 14;  // of all slots; measured on text: 10 and 20 are worse by 0.03 points
  static constexpr int kUsesMax = 7;              // 3 costs a tenth of a point of hit rate on text, more gain nothing

  void IndexSet(uint64_t key, Id id);
  void IndexErase(uint64_t key);
  void PushHead(List& list, Entry::Queue queue, Id id);
  void Unlink(Id id);
  List& ListOf(Entry::Queue queue) { return queue == Entry::Queue::kMain ? main_ : probation_; }
  void Free(Id id);
  Id TakeSlot();
  Id Evict();
  void Remember(uint64_t key);
  bool Recall(uint64_t key);

  uint32_t slot_bytes_ = 0;
  uint32_t rows_held_max_ = 0;
  uint32_t rows_cached_ = 0;
  uint32_t probation_share_ = 0;  // rows that probation may have before main has to give
  uint32_t held_ = 0;
  MappedMemory slots_;
  std::vector<Entry> entries_;
  List free_;
  List probation_;
  List main_;
  std::vector<Id> index_;  // open addressing, linear probing, a power of two, at most half full
  uint32_t index_mask_ = 0;
  std::vector<Ghost> ghosts_;
  uint32_t ghost_mask_ = 0;
  uint32_t ghost_rows_ = 0;
  uint32_t ghost_clock_ = 1;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_ROW_CACHE_H_
