#include "storage/row_cache.h"

#include <map>
#include <random>

#include "gtest/gtest.h"

namespace embergate::storage {
namespace {

RowCache Make(uint32_t held, uint32_t cached, uint32_t row_bytes = 100) {
  auto cache = RowCache::Create({row_bytes, held, cached});
  EXPECT_TRUE(cache.ok()) << cache.status();
  return std::move(cache).value();
}

// Uses a row as a submission does; whether it was there.
bool Use(RowCache& cache, uint64_t key) {
  const RowCache::Id id = cache.Find(key);
  if (id != RowCache::kNone) {
    EXPECT_TRUE(cache.Pin(id));
    cache.Touch(id);
    EXPECT_EQ(cache.data(id)[0], static_cast<uint8_t>(key));
    cache.Unpin(id);
    return true;
  }
  const RowCache::Id made = cache.Insert(key, 100, true);
  EXPECT_NE(made, RowCache::kNone);
  cache.data(made)[0] = static_cast<uint8_t>(key);
  cache.Complete(made);
  cache.Unpin(made);
  return false;
}

TEST(RowCacheTest, ARowIsFoundUntilItsSlotIsNeeded) {
  RowCache cache = Make(2, 8);
  for (uint64_t key = 0; key < 10; ++key) {
    EXPECT_FALSE(Use(cache, key));
  }
  EXPECT_EQ(cache.rows_kept(), 10u);
  EXPECT_NE(cache.Find(0), RowCache::kNone);
  EXPECT_FALSE(Use(cache, 10));
  EXPECT_EQ(cache.rows_kept(), 10u);
  EXPECT_TRUE(cache.CheckInvariants());
}

TEST(RowCacheTest, AScanDoesNotFlushTheHotRows) {
  RowCache cache = Make(20, 180);
  for (int round = 0; round < 4; ++round) {
    for (uint64_t key = 0; key < 100; ++key) {
      Use(cache, key);
    }
  }
  for (uint64_t key = 1000; key < 6000; ++key) {
    Use(cache, key);
  }
  int kept = 0;
  for (uint64_t key = 0; key < 100; ++key) {
    kept += cache.Find(key) != RowCache::kNone ? 1 : 0;
  }
  EXPECT_GE(kept, 90);
  EXPECT_TRUE(cache.CheckInvariants());
}

TEST(RowCacheTest, HeldRowsAreNeverEvictedAndBounded) {
  RowCache cache = Make(3, 5);
  const RowCache::Id a = cache.Insert(1, 100, true);
  const RowCache::Id b = cache.Insert(2, 100, true);
  cache.data(a)[0] = 11;
  cache.Complete(a);
  for (uint64_t key = 10; key < 60; ++key) {
    Use(cache, key);
  }
  EXPECT_EQ(cache.Find(1), a);
  EXPECT_EQ(cache.data(a)[0], 11);
  const RowCache::Id c = cache.Insert(3, 100, true);
  ASSERT_NE(c, RowCache::kNone);
  EXPECT_EQ(cache.Insert(4, 100, true), RowCache::kNone);
  EXPECT_FALSE(cache.Pin(cache.Find(59)));
  EXPECT_TRUE(cache.Pin(a));  // held already
  cache.Unpin(a);
  cache.Fail(b);
  EXPECT_EQ(cache.Find(2), RowCache::kNone);
  EXPECT_EQ(cache.rows_held(), 3u);  // its ticket still asks for its status
  cache.Unpin(b);
  EXPECT_EQ(cache.rows_held(), 2u);
  EXPECT_TRUE(cache.CheckInvariants());
}

TEST(RowCacheTest, ANewerEntryTakesTheKeyAndTheOlderOneLivesOnWhilePinned) {
  RowCache cache = Make(4, 4);
  const RowCache::Id prefix = cache.Insert(7, 10, true);
  cache.Complete(prefix);
  const RowCache::Id whole = cache.Insert(7, 100, true);
  cache.Complete(whole);
  EXPECT_EQ(cache.Find(7), whole);
  EXPECT_EQ(cache.entry(prefix).state, RowCache::State::kReady);
  cache.Unpin(prefix);
  EXPECT_EQ(cache.entry(prefix).state, RowCache::State::kFree);
  EXPECT_EQ(cache.Find(7), whole);
  cache.Unpin(whole);
  EXPECT_EQ(cache.rows_kept(), 1u);
  EXPECT_TRUE(cache.CheckInvariants());
}

TEST(RowCacheTest, WithoutACacheNothingIsKept) {
  RowCache cache = Make(4, 0);
  Use(cache, 1);
  EXPECT_EQ(cache.Find(1), RowCache::kNone);
  EXPECT_EQ(cache.rows_kept(), 0u);
}

TEST(RowCacheTest, RowsOfAnUncachedTableAreNotKept) {
  RowCache cache = Make(4, 4);
  const RowCache::Id id = cache.Insert(1, 100, false);
  cache.Complete(id);
  EXPECT_EQ(cache.Find(1), id);  // others may share it while it is held
  cache.Unpin(id);
  EXPECT_EQ(cache.Find(1), RowCache::kNone);
}

TEST(RowCacheTest, MemoryPerRowIsWhatItSays) {
  for (uint32_t rows : {100u, 1000u, 5000u}) {
    RowCache cache = Make(1, rows, 9520);
    EXPECT_LE(cache.memory_bytes(), (rows + 1) * RowCache::BytesPerCachedRow(9520));
  }
}

TEST(RowCacheTest, RandomUseKeepsTheInvariants) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 20; ++round) {
    RowCache cache = Make(1 + random() % 20, random() % 50);
    std::vector<RowCache::Id> pinned;
    std::vector<RowCache::Id> reading;
    for (int step = 0; step < 3000; ++step) {
      const uint64_t key = random() % 100;
      switch (random() % 6) {
        case 0:
        case 1: {
          const RowCache::Id id = cache.Find(key);
          if (id == RowCache::kNone || cache.entry(id).bytes < 50) {
            const RowCache::Id made = cache.Insert(key, random() % 2 == 0 ? 40 : 100, random() % 5 != 0);
            if (made != RowCache::kNone) {
              pinned.push_back(made);
              reading.push_back(made);
            }
          } else if (cache.Pin(id)) {
            cache.Touch(id);
            pinned.push_back(id);
          }
          break;
        }
        case 2:
        case 3:
          if (!reading.empty()) {
            const size_t i = random() % reading.size();
            if (random() % 8 == 0) {
              cache.Fail(reading[i]);
            } else {
              cache.Complete(reading[i]);
            }
            reading.erase(reading.begin() + static_cast<ptrdiff_t>(i));
          }
          break;
        default:
          if (!pinned.empty()) {
            const size_t i = random() % pinned.size();
            cache.Unpin(pinned[i]);
            pinned.erase(pinned.begin() + static_cast<ptrdiff_t>(i));
          }
      }
      if (step % 50 == 0) {
        ASSERT_TRUE(cache.CheckInvariants()) << round << " " << step;
      }
    }
  }
}

}  // namespace
}  // namespace embergate::storage
