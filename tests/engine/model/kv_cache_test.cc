#include "engine/model/kv_cache.h"

#include <cstring>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "tests/engine/model/tiny_config.h"

namespace embergate::engine {
namespace {

constexpr int kBlock = KvCache::kBlock;

KvLimits Limits(int slots, int context, int64_t tokens = 0, int step = 8) {
  KvLimits limits;
  limits.slots = slots;
  limits.context_max = context;
  limits.tokens_max = tokens;
  limits.step_tokens_max = step;
  return limits;
}

std::unique_ptr<KvCache> Make(const ModelConfig& config, const KvLimits& limits) {
  auto cache = KvCache::Create(config, limits);
  EXPECT_TRUE(cache.ok()) << cache.status();
  return *std::move(cache);
}

// The key of a position as stored, first value of a KV head.
float KeyAt(const KvCache& cache, int layer, int slot, int head, int position) {
  float value;
  std::memcpy(&value,
              cache.KeyBlock(layer, slot, head, position / kBlock) + (position % kBlock) * cache.row_bytes(layer),
              sizeof(value));
  return value;
}
float ValueAt(const KvCache& cache, int layer, int slot, int head, int position) {
  float value;
  std::memcpy(&value,
              cache.ValueBlock(layer, slot, head, position / kBlock) + (position % kBlock) * cache.row_bytes(layer),
              sizeof(value));
  return value;
}

TEST(KvCacheTest, FullLayersKeepEveryPositionAndRingsTheWindow) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  auto cache = Make(config, Limits(3, 200));
  for (const int slot : {0, 2}) {
    ASSERT_TRUE(cache->OpenSlot(slot, 200).ok());
  }
  for (int position = 0; position < 200; ++position) {
    for (const int slot : {0, 2}) {
      for (const int layer : {0, 1}) {
        const int width = 2 * config.layers[layer].head_dim;
        std::vector<float> k(width), v(width);
        for (int head = 0; head < 2; ++head) {
          const float base = static_cast<float>(slot * 10000 + layer * 1000 + position + head * 100000);
          k[head * width / 2] = base;
          v[head * width / 2] = base + 0.5f;
        }
        cache->Store(layer, slot, position, k.data(), v.data());
      }
    }
    // After each position: a full layer still has all of them, a sliding one the window and a step before it.
    for (const int slot : {0, 2}) {
      for (int head = 0; head < 2; ++head) {
        for (int seen = 0; seen <= position; ++seen) {
          const float base = static_cast<float>(slot * 10000 + 1000 + seen + head * 100000);
          ASSERT_EQ(KeyAt(*cache, 1, slot, head, seen), base);
          ASSERT_EQ(ValueAt(*cache, 1, slot, head, seen), base + 0.5f);
        }
        for (int seen = std::max(0, position - 7 - 19); seen <= position; ++seen) {
          ASSERT_EQ(KeyAt(*cache, 0, slot, head, seen), static_cast<float>(slot * 10000 + seen + head * 100000));
        }
      }
    }
  }
}

TEST(KvCacheTest, ReservationsAreExactAndReturned) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  auto cache = Make(config, Limits(4, 10 * kBlock, 10 * kBlock));
  EXPECT_EQ(cache->FreeTokens(), 10 * kBlock);
  ASSERT_TRUE(cache->OpenSlot(0, kBlock + 1).ok());  // two pages
  EXPECT_EQ(cache->FreeTokens(), 8 * kBlock);
  EXPECT_EQ(cache->OpenSlot(0, 1).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(cache->OpenSlot(1, 9 * kBlock).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(cache->OpenSlot(1, 10 * kBlock + 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->OpenSlot(1, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->OpenSlot(4, 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache->OpenSlot(-1, 1).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(cache->OpenSlot(1, 8 * kBlock).ok());
  EXPECT_EQ(cache->FreeTokens(), 0);
  cache->CloseSlot(0);
  cache->CloseSlot(0);
  cache->CloseSlot(99);
  EXPECT_EQ(cache->FreeTokens(), 2 * kBlock);
  cache->CloseSlot(1);
  EXPECT_EQ(cache->FreeTokens(), 10 * kBlock);
  ASSERT_TRUE(cache->OpenSlot(2, 10 * kBlock).ok());
  std::set<const uint8_t*> blocks;
  for (int block = 0; block < 10; ++block) {
    blocks.insert(cache->KeyBlock(1, 2, 0, block));
  }
  EXPECT_EQ(blocks.size(), 10u);
}

TEST(KvCacheTest, BytesAreWhatThePlanSays) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  const KvLimits limits = Limits(3, 200);
  auto cache = Make(config, limits);
  EXPECT_EQ(cache->bytes(), *KvCache::BytesFor(config, limits));
  // One sliding layer: ring of 20 - 1 + 8 = 27 positions, one block; one full layer: 7 blocks per slot. K and V, two
  // heads, f32.
  EXPECT_EQ(cache->bytes(), 3u * (1 * kBlock * 2 * 2 * 4 * 4) + 3u * (7 * kBlock * 2 * 2 * 8 * 4));
}

TEST(KvCacheTest, TypeThatCannotHoldAHeadIsRefused) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  KvLimits limits = Limits(1, 64);
  limits.type = storage::TensorType::kQ8_0;
  const auto cache = KvCache::Create(config, limits);
  ASSERT_FALSE(cache.ok());
  EXPECT_EQ(cache.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(cache.status().message().find("Q8_0"), absl::string_view::npos);
}

}  // namespace
}  // namespace embergate::engine
