// After Create the row store allocates nothing, whatever it is asked to do. A program of its own, because it counts
// every allocation of the process.
#include <atomic>
#include <cstdlib>
#include <new>

#include "gtest/gtest.h"
#include "tests/storage/row_store_fixture.h"

namespace {

std::atomic<uint64_t> g_allocations{0};

void* Allocate(size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) {
    abort();
  }
  return memory;
}

}  // namespace

void* operator new(size_t bytes) { return Allocate(bytes); }
void* operator new[](size_t bytes) { return Allocate(bytes); }
void operator delete(void* memory) noexcept { free(memory); }
void operator delete[](void* memory) noexcept { free(memory); }
void operator delete(void* memory, size_t) noexcept { free(memory); }
void operator delete[](void* memory, size_t) noexcept { free(memory); }

namespace embergate::storage {
namespace {

class RowStoreAllocationTest : public RowStoreReaderTest {};

INSTANTIATE_TEST_SUITE_P(Readers, RowStoreAllocationTest, testing::Values(ReaderKind::kUring, ReaderKind::kPread),
                         ReaderName);

TEST_P(RowStoreAllocationTest, NothingAfterCreate) {
  spec_.checksums = ChecksumsOf(data_, spec_, {4080, 9520});
  options_.queue_depth = 8;
  options_.test_hooks.faults = FaultOptions();
  options_.test_hooks.faults->short_read = 0.1;
  options_.test_hooks.faults->torn = 0.1;
  options_.test_hooks.faults->interrupted = 0.1;
  options_.read_attempts_max = 50;
  Open();
  std::vector<std::vector<uint64_t>> submissions;
  std::vector<std::vector<RowId>> named;  // the same, each row with its table
  for (uint64_t seed = 0; seed < 40; ++seed) {
    submissions.push_back(RandomRows(seed % 3 == 0 ? 140 : 5, kRows, seed));
    named.emplace_back();
    for (const uint64_t row : submissions.back()) {
      named.back().push_back({0, row});
    }
  }
  uint64_t sum = 0;
  const uint64_t before = g_allocations.load();
  RowTicket previous;
  for (size_t i = 0; i < submissions.size(); ++i) {
    const uint64_t prefix = i % 4 == 0 ? 4080 : 0;
    auto ticket = i % 3 == 0   ? store_->Stage(0, submissions[i], prefix)
                  : i % 5 == 1 ? store_->SubmitRows(named[i], prefix)
                  : i % 5 == 2 ? store_->SubmitFresh(named[i])
                               : store_->Submit(0, submissions[i], prefix);
    if (!ticket.ok()) {
      abort();
    }
    if (previous.valid()) {
      if (i % 5 != 0 && !store_->Wait(previous).ok()) {
        abort();
      }
      if (i % 5 != 0) {
        sum += store_->Row(previous, 0)[0] + store_->Counts(previous).read;
      }
      store_->Poll();
      store_->Release(previous);
    }
    previous = *ticket;
  }
  if (!store_->Wait(previous).ok()) {
    abort();
  }
  store_->Release(previous);
  EXPECT_EQ(g_allocations.load() - before, 0u);
  EXPECT_GT(sum, 0u);
  EXPECT_GT(store_->Snapshot().retries, 10u);
  std::vector<int> proof(100);
  EXPECT_EQ(g_allocations.load() - before > 0, !proof.empty());  // the counter works
}

}  // namespace
}  // namespace embergate::storage
