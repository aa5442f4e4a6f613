#include "engine/model/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
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

// What a position of a layer and head holds: something of all tokens up to it.
float Mark(const std::vector<int32_t>& tokens, int position, int layer, int head) {
  uint64_t hash = 0xCBF29CE484222325u + static_cast<uint64_t>(layer * 2 + head);
  for (int i = 0; i <= position; ++i) {
    hash = (hash ^ static_cast<uint64_t>(tokens[i])) * 0x100000001B3u;
    hash ^= hash >> 29;
  }
  return static_cast<float>(hash >> 41);
}

// Computes tokens[start, start + count) of a slot, as a model's step does.
void Compute(KvCache& cache, const ModelConfig& config, int slot, const std::vector<int32_t>& tokens, int start,
             int count) {
  ASSERT_TRUE(cache.Extend(slot, start, count).ok());
  for (int position = start; position < start + count; ++position) {
    for (const int layer : {0, 1}) {
      const int dim = config.layers[layer].head_dim;
      std::vector<float> k(2 * dim), v(2 * dim);
      for (int head = 0; head < 2; ++head) {
        k[head * dim] = Mark(tokens, position, layer, head);
        v[head * dim] = k[head * dim] + 0.5f;
      }
      cache.Store(layer, slot, position, k.data(), v.data());
    }
  }
}
void Commit(KvCache& cache, int slot, const std::vector<int32_t>& tokens, int start, int count) {
  cache.Commit(slot, absl::MakeConstSpan(tokens).subspan(start, count));
}

// That a token at position length - 1 (not stored yet: at position length) sees what it should.
void ExpectHolds(const KvCache& cache, const ModelConfig& config, int slot, const std::vector<int32_t>& tokens,
                 int length, bool stored = true) {
  const int first = std::max(0, length - config.window + (stored ? 0 : 1));
  for (const int layer : {0, 1}) {
    for (int position = layer == 0 ? first : 0; position < length; ++position) {
      for (int head = 0; head < 2; ++head) {
        const float mark = Mark(tokens, position, layer, head);
        ASSERT_EQ(KeyAt(cache, layer, slot, head, position), mark) << "layer " << layer << " position " << position;
        ASSERT_EQ(ValueAt(cache, layer, slot, head, position), mark + 0.5f);
      }
    }
  }
}

std::vector<int32_t> Tokens(int count, int salt) {
  std::vector<int32_t> tokens;
  for (int i = 0; i < count; ++i) {
    tokens.push_back(i * 31 + salt * 1000003);
  }
  return tokens;
}

KvLimits Keeping(KvLimits limits, uint64_t bytes = 0) {
  limits.keep_prefixes = true;
  limits.prefix_bytes = bytes;
  return limits;
}

// Opens with all but the last of the tokens to reuse, computes the rest in chunks, closes. Returns what was reused.
int RunOnce(KvCache& cache, const ModelConfig& config, int slot, const std::vector<int32_t>& tokens, int chunk = 8) {
  const auto reused = cache.OpenSlotWithPrefix(slot, static_cast<int>(tokens.size()),
                                               absl::MakeConstSpan(tokens).first(tokens.size() - 1), /*scope=*/0);
  EXPECT_TRUE(reused.ok()) << reused.status();
  ExpectHolds(cache, config, slot, tokens, *reused, /*stored=*/false);
  for (int start = *reused; start < static_cast<int>(tokens.size()); start += chunk) {
    const int count = std::min(chunk, static_cast<int>(tokens.size()) - start);
    Compute(cache, config, slot, tokens, start, count);
    ExpectHolds(cache, config, slot, tokens, start + count);
    Commit(cache, slot, tokens, start, count);
  }
  cache.CloseSlot(slot);
  return *reused;
}

TEST(KvCacheTest, FullLayersKeepEveryPositionAndSlidingOnesTheWindow) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  auto cache = Make(config, Limits(3, 200));
  const std::vector<int32_t> a = Tokens(200, 1), b = Tokens(200, 2);
  ASSERT_TRUE(cache->OpenSlot(0, 200).ok());
  ASSERT_TRUE(cache->OpenSlot(2, 200).ok());
  for (int start = 0; start < 200; start += 8) {
    Compute(*cache, config, 0, a, start, 8);
    Compute(*cache, config, 2, b, start, 8);
    for (int t = start; t < start + 8; ++t) {  // all of the step's tokens at once see their windows
      ExpectHolds(*cache, config, 0, a, t + 1);
      ExpectHolds(*cache, config, 2, b, t + 1);
    }
    Commit(*cache, 0, a, start, 8);
    Commit(*cache, 2, b, start, 8);
  }
  // Seven blocks of the full layers; of the sliding ones, what window and step touched.
  const uint64_t sliding = kBlock * 2 * 2 * 4 * sizeof(float), full = kBlock * 2 * 2 * 8 * sizeof(float);
  EXPECT_EQ(cache->BytesOf({0}), 7 * full + 2 * sliding);
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
  EXPECT_EQ(cache->Extend(0, 0, 2 * kBlock + 1).code(), absl::StatusCode::kInvalidArgument);
  cache->CloseSlot(0);
  cache->CloseSlot(0);
  cache->CloseSlot(99);
  EXPECT_EQ(cache->FreeTokens(), 2 * kBlock);
  cache->CloseSlot(1);
  EXPECT_EQ(cache->FreeTokens(), 10 * kBlock);
  ASSERT_TRUE(cache->OpenSlot(2, 10 * kBlock).ok());
  std::set<const uint8_t*> blocks;
  for (int block = 0; block < 10; ++block) {
    ASSERT_TRUE(cache->Extend(2, block * kBlock, kBlock).ok());
    Commit(*cache, 2, Tokens(10 * kBlock, 3), block * kBlock, kBlock);
    blocks.insert(cache->KeyBlock(1, 2, 0, block));
  }
  EXPECT_EQ(blocks.size(), 10u);
}

TEST(KvCacheTest, BytesAreWhatThePlanSays) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  const KvLimits limits = Limits(3, 1000);
  auto cache = Make(config, limits);
  EXPECT_EQ(cache->bytes().slots, KvCache::BytesFor(config, limits)->slots);
  EXPECT_EQ(cache->bytes().prefixes, 0u);
  // A long context costs full layers only: 32 blocks per slot. Each slot's window of 20 touches 2 blocks, and 3 in a
  // step; one more for all. K and V, two heads, f32; the rest is bookkeeping.
  const uint64_t pages = 3 * 32 * (kBlock * 2 * 2 * 8 * 4) + (3 * 3 + 1) * (kBlock * 2 * 2 * 4 * 4);
  EXPECT_GE(cache->bytes().slots, pages);
  EXPECT_LE(cache->bytes().slots, pages + 3 * 32 * 400 + 3 * 400);
  KvLimits keeping = limits;
  keeping.keep_prefixes = true;
  keeping.prefix_bytes = 100000;
  EXPECT_GT(KvCache::BytesFor(config, keeping)->prefixes, 80000u);
  EXPECT_LE(KvCache::BytesFor(config, keeping)->prefixes, 100000u);
  EXPECT_EQ(KvCache::BytesFor(config, keeping)->slots, cache->bytes().slots);
}

TEST(KvCacheTest, PrefixIsReusedToTheToken) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  auto cache = Make(config, Keeping(Limits(2, 1000), 1 << 20));
  std::vector<int32_t> first = Tokens(300, 1);
  EXPECT_EQ(RunOnce(*cache, config, 0, first), 0);
  EXPECT_EQ(cache->FreeTokens(), 2 * 32 * kBlock);
  EXPECT_EQ(cache->prefix_stats().tokens_cached, 300);
  std::vector<int32_t> longer = first;
  longer.resize(350, 7);
  EXPECT_EQ(RunOnce(*cache, config, 1, longer), 300);  // 300 is no multiple of a block
  EXPECT_EQ(RunOnce(*cache, config, 0, first), 299);   // all but the last, whose logits are wanted
  for (const int common : {250, 256, 36, 10}) {
    std::vector<int32_t> other = first;
    other.resize(common);
    other.resize(300, -common);
    EXPECT_EQ(cache->CachedPrefix(other, 0), common);
    EXPECT_EQ(cache->CachedPrefix(other, 1), 0) << "another scope";
    EXPECT_EQ(RunOnce(*cache, config, 1, other), common);
  }
  EXPECT_EQ(RunOnce(*cache, config, 0, Tokens(300, 2)), 0);
  EXPECT_EQ(cache->prefix_stats().lookups, 8u);
  EXPECT_EQ(cache->prefix_stats().hits, 6u);
  EXPECT_EQ(cache->prefix_stats().tokens_reused, 300u + 299 + 250 + 256 + 36 + 10);
}

TEST(KvCacheTest, RunningSequencesShareAndDiverge) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  for (const bool keep : {false, true}) {
    KvLimits limits = Limits(3, 320, 2 * 320);
    limits.keep_prefixes = keep;
    auto cache = Make(config, limits);
    const std::vector<int32_t> a = Tokens(320, 1);
    std::vector<int32_t> b = a;
    std::fill(b.begin() + 205, b.end(), 5);
    ASSERT_EQ(*cache->OpenSlotWithPrefix(0, 320, a, 0), 0);
    for (int start = 0; start < 208; start += 8) {
      Compute(*cache, config, 0, a, start, 8);
      Commit(*cache, 0, a, start, 8);
    }
    // The other goes on from the middle of a's block that is not full; a's own rows stay a's.
    ASSERT_EQ(*cache->OpenSlotWithPrefix(1, 320, b, 0), 205);
    EXPECT_EQ(cache->FreeTokens(), 2 * 320 - 320 - (10 - 6) * kBlock);  // six blocks are shared
    // The window of 20 reaches into the sixth and seventh block, of which the sixth is shared.
    const uint64_t full = kBlock * 2 * 2 * 8 * sizeof(float), sliding = kBlock * 2 * 2 * 4 * sizeof(float);
    EXPECT_EQ(cache->BytesOf({0}), 7 * full + 2 * sliding);
    EXPECT_EQ(cache->BytesOf({1}), 7 * full + 2 * sliding);
    EXPECT_EQ(cache->BytesOf({0, 1}), 8 * full + 3 * sliding);
    EXPECT_EQ(cache->BytesOf({1, 0, 2}), 8 * full + 3 * sliding) << "a closed slot holds nothing";
    for (int start = 208; start < 320; start += 8) {
      Compute(*cache, config, 0, a, start, 8);
      Compute(*cache, config, 1, b, start - 3, 8);
      ExpectHolds(*cache, config, 0, a, start + 8);
      ExpectHolds(*cache, config, 1, b, start + 5);
      Commit(*cache, 0, a, start, 8);
      Commit(*cache, 1, b, start - 3, 8);
    }
    cache->CloseSlot(0);
    ExpectHolds(*cache, config, 1, b, 317);
    cache->CloseSlot(1);
    EXPECT_EQ(cache->FreeTokens(), 2 * 320);
    EXPECT_EQ(cache->prefix_stats().tokens_cached, keep ? 320 + 317 - 192 : 0);
  }
}

TEST(KvCacheTest, WhatFailedIsNeverShared) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  auto cache = Make(config, Keeping(Limits(2, 320)));
  const std::vector<int32_t> a = Tokens(320, 1);
  ASSERT_EQ(*cache->OpenSlotWithPrefix(0, 320, a, 0), 0);
  Compute(*cache, config, 0, a, 0, 40);
  Commit(*cache, 0, a, 0, 40);
  ASSERT_TRUE(cache->Extend(0, 40, 100).ok());
  cache->Spoil(0);
  EXPECT_EQ(cache->CachedPrefix(a, 0), 32);
  cache->CloseSlot(0);
  EXPECT_EQ(cache->CachedPrefix(a, 0), 32);
  EXPECT_EQ(cache->FreeTokens(), 2 * 320);
  ASSERT_TRUE(cache->OpenSlot(0, 320).ok());  // asks for no sharing, so it gives none
  Compute(*cache, config, 0, a, 0, 100);
  Commit(*cache, 0, a, 0, 100);
  EXPECT_EQ(cache->CachedPrefix(a, 0), 32);
  cache->CloseSlot(0);
  EXPECT_EQ(cache->CachedPrefix(a, 0), 32);
}

// Slots never lack what they reserved, and what is cached besides never loses its own share.
TEST(KvCacheTest, CachedPrefixesGiveWayToReservationsDownToTheirShare) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 20);
  KvLimits limits = Keeping(Limits(2, 320), 30000);
  auto cache = Make(config, limits);
  const uint64_t block = kBlock * 2 * 2 * (4 + 8) * sizeof(float);
  const int64_t share = static_cast<int64_t>(cache->bytes().prefixes / block);
  ASSERT_GE(share, 3);
  for (int round = 0; round < 20; ++round) {
    RunOnce(*cache, config, round % 2, Tokens(320, round), 16);
    EXPECT_EQ(cache->FreeTokens(), 2 * 320);
  }
  EXPECT_GE(cache->prefix_stats().tokens_cached, (20 + share - 1) * kBlock);  // idle: the whole pool
  EXPECT_GT(cache->prefix_stats().blocks_evicted, 100u);
  for (const int slot : {0, 1}) {
    ASSERT_EQ(*cache->OpenSlotWithPrefix(slot, 320, Tokens(320, 100 + slot), 0), 0);
    const std::vector<int32_t> tokens = Tokens(320, 100 + slot);
    for (int start = 0; start < 320; start += 8) {
      Compute(*cache, config, slot, tokens, start, 8);
      Commit(*cache, slot, tokens, start, 8);
    }
  }
  EXPECT_EQ(cache->FreeTokens(), 0);
  EXPECT_EQ(cache->prefix_stats().tokens_cached, share * kBlock);
}

// Sequences that share random prefixes come, grow by random chunks, fail and go; whatever is reused or shared, each
// sees the marks of its own tokens, and in the end everything is free again.
TEST(KvCacheTest, RandomSequencesSeeTheirOwnTokens) {
  const ModelConfig config = TinyConfig(4, 2, 4, 8, 40);
  constexpr int kSlots = 4, kContext = 260, kStep = 48;
  for (const uint64_t share : {0, 20000}) {
    std::mt19937 random(static_cast<uint32_t>(11 + share));
    auto cache = Make(config, Keeping(Limits(kSlots, kContext, 500, kStep), share));
    struct Running {
      std::vector<int32_t> tokens;
      int length = 0;
    };
    std::map<int, Running> running;
    std::vector<std::vector<int32_t>> past = {Tokens(kContext, 0)};
    uint64_t reused_tokens = 0;
    int refused = 0;
    for (int event = 0; event < 4000; ++event) {
      const int slot = static_cast<int>(random() % kSlots);
      if (running.count(slot) == 0) {
        std::vector<int32_t> tokens = past[random() % past.size()];
        tokens.resize(1 + random() % kContext);
        for (size_t i = random() % (tokens.size() + 40); i < tokens.size(); ++i) {
          tokens[i] = static_cast<int32_t>(random() % 3);
        }
        const auto reused = cache->OpenSlotWithPrefix(slot, static_cast<int>(tokens.size()),
                                                      absl::MakeConstSpan(tokens).first(tokens.size() - 1), 0);
        if (!reused.ok()) {
          ASSERT_EQ(reused.status().code(), absl::StatusCode::kResourceExhausted);
          ++refused;
          continue;
        }
        ExpectHolds(*cache, config, slot, tokens, *reused, /*stored=*/false);
        reused_tokens += *reused;
        if (past.size() < 12) {
          past.push_back(tokens);
        } else {
          past[random() % past.size()] = tokens;
        }
        running[slot] = {std::move(tokens), *reused};
      } else if (random() % 20 == 0) {
        cache->Extend(slot, running[slot].length, 0).IgnoreError();
        if (random() % 2 == 0) {
          cache->Spoil(slot);
        }
        cache->CloseSlot(slot);
        running.erase(slot);
      }
      // A step of all slots together.
      int left = kStep;
      std::vector<std::pair<int, int>> chunks;
      for (auto& [s, r] : running) {
        const int count = std::min<int>({left, static_cast<int>(r.tokens.size()) - r.length,
                                         1 + static_cast<int>(random() % (random() % 4 == 0 ? kStep : 4))});
        if (count > 0) {
          Compute(*cache, config, s, r.tokens, r.length, count);
          chunks.emplace_back(s, count);
          left -= count;
        }
      }
      for (const auto& [s, count] : chunks) {
        Running& r = running[s];
        if (event % 16 == 0) {
          ExpectHolds(*cache, config, s, r.tokens, r.length + 1);
          ExpectHolds(*cache, config, s, r.tokens, r.length + count);
        }
        Commit(*cache, s, r.tokens, r.length, count);
        r.length += count;
        if (r.length == static_cast<int>(r.tokens.size())) {
          cache->CloseSlot(s);
          running.erase(s);
        }
      }
      ASSERT_FALSE(HasFatalFailure());
    }
    for (const auto& [slot, r] : running) {
      cache->CloseSlot(slot);
    }
    EXPECT_EQ(cache->FreeTokens(), 512);
    EXPECT_GT(reused_tokens, 5000u);
    EXPECT_GT(refused, 10);
    // Nothing has leaked: reservations of everything, twice in a row, find all pages.
    for (int round = 0; round < 2; ++round) {
      for (const int slot : {0, 1}) {
        const std::vector<int32_t> tokens = Tokens(256, 1000 + 2 * round + slot);
        ASSERT_EQ(*cache->OpenSlotWithPrefix(slot, 256, tokens, 0), 0);
        for (int start = 0; start < 256; start += 32) {
          Compute(*cache, config, slot, tokens, start, 32);
          Commit(*cache, slot, tokens, start, 32);
        }
      }
      EXPECT_EQ(cache->FreeTokens(), 0);
      cache->CloseSlot(0);
      cache->CloseSlot(1);
    }
  }
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
