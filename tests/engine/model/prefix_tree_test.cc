#include "engine/model/prefix_tree.h"

#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr int kBlock = PrefixTree::kBlock;
constexpr int kWindow = 2 * kBlock;

// Block number `n`: tokens that no other number has.
std::vector<int32_t> Block(int n, int count = kBlock) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), n * 100);
  return tokens;
}

// Inserts blocks first, first + 1, ... as a path, with pages of the same numbers; returns its nodes.
std::vector<int> Path(PrefixTree& tree, int first, int count, int parent = PrefixTree::kRoot) {
  std::vector<int> nodes;
  for (int n = first; n < first + count; ++n) {
    parent = tree.Insert(parent, 0, Block(n), {n, n});
    EXPECT_NE(parent, PrefixTree::kNone);
    nodes.push_back(parent);
  }
  return nodes;
}

TEST(PrefixTreeTest, FindsExactBlocksAndTheNearest) {
  PrefixTree tree(8, kWindow, true);
  const std::vector<int> nodes = Path(tree, 0, 2);
  EXPECT_EQ(tree.Child(PrefixTree::kRoot, 0, Block(0)), nodes[0]);
  EXPECT_EQ(tree.Child(nodes[0], 0, Block(1)), nodes[1]);
  EXPECT_EQ(tree.Child(PrefixTree::kRoot, 0, Block(1)), PrefixTree::kNone);
  std::vector<int32_t> other = Block(1);
  other[20] = -1;
  int common = 0;
  EXPECT_EQ(tree.NearestChild(nodes[0], 0, other, &common), nodes[1]);
  EXPECT_EQ(common, 20);
  EXPECT_EQ(tree.NearestChild(nodes[1], 0, other, &common), PrefixTree::kNone);
  EXPECT_EQ(common, 0);
}

TEST(PrefixTreeTest, ScopesShareNothing) {
  PrefixTree tree(8, kWindow, true);
  const int node = tree.Insert(PrefixTree::kRoot, 7, Block(0), {0, 0});
  int common = 0;
  EXPECT_EQ(tree.Child(PrefixTree::kRoot, 7, Block(0)), node);
  EXPECT_EQ(tree.Child(PrefixTree::kRoot, 8, Block(0)), PrefixTree::kNone);
  EXPECT_EQ(tree.NearestChild(PrefixTree::kRoot, 8, Block(0), &common), PrefixTree::kNone);
}

TEST(PrefixTreeTest, LongerBlockReplacesItsBeginning) {
  PrefixTree tree(8, kWindow, true);
  tree.Insert(PrefixTree::kRoot, 0, Block(0, 10), {0, 0});
  tree.Insert(PrefixTree::kRoot, 0, Block(5, 10), {1, 1});
  EXPECT_EQ(tree.cached_tokens(), 20);
  tree.Insert(PrefixTree::kRoot, 0, Block(0), {2, 2});
  EXPECT_EQ(tree.node_count(), 2);
  EXPECT_EQ(tree.cached_tokens(), 10 + kBlock);
  EXPECT_THAT(tree.freed_full(), ElementsAre(0));
  EXPECT_THAT(tree.freed_sliding(), ElementsAre(0));
}

TEST(PrefixTreeTest, LeavesGoFirstAndPinnedNever) {
  PrefixTree tree(8, kWindow, true);
  const std::vector<int> a = Path(tree, 0, 3);
  const std::vector<int> b = Path(tree, 3, 1);
  tree.Pin(a[0]);
  tree.Pin(a[1]);
  EXPECT_EQ(tree.cached_nodes(), 2);
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_FALSE(tree.EvictNode());
  EXPECT_THAT(tree.freed_full(), UnorderedElementsAre(2, 3));
  tree.Unpin(a[1]);
  tree.Unpin(a[0]);
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_THAT(tree.freed_full(), UnorderedElementsAre(2, 3, 1, 0));
  EXPECT_EQ(tree.node_count(), 0);
  EXPECT_EQ(tree.cached_windows(), 0);
  EXPECT_EQ(tree.evicted(), 4u);
}

TEST(PrefixTreeTest, UsedPathsStayLongest) {
  PrefixTree tree(16, kWindow, true);
  const std::vector<int> a = Path(tree, 0, 2);
  const std::vector<int> b = Path(tree, 2, 2);
  tree.Touch(a[1], true);
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_THAT(tree.freed_full(), ElementsAre(3, 2));
  // One that was used long ago ages: the clock overtakes it.
  int rounds = 0;
  for (; tree.Child(PrefixTree::kRoot, 0, Block(0)) != PrefixTree::kNone && rounds < 100; ++rounds) {
    tree.Touch(tree.Insert(PrefixTree::kRoot, 0, Block(10 + rounds), {10 + rounds, 10 + rounds}), false);
    EXPECT_TRUE(tree.EvictNode());
  }
  EXPECT_GT(rounds, 1);
  EXPECT_LT(rounds, 10);
}

TEST(PrefixTreeTest, FewTokensAreWorthLess) {
  PrefixTree tree(8, kWindow, true);
  const int full = tree.Insert(PrefixTree::kRoot, 0, Block(0), {0, 0});
  tree.Insert(PrefixTree::kRoot, 0, Block(1, 5), {1, 1});
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_THAT(tree.freed_full(), ElementsAre(1));
  EXPECT_EQ(tree.Child(PrefixTree::kRoot, 0, Block(0)), full);
}

TEST(PrefixTreeTest, WindowsBehindTheLastOneGoFirst) {
  PrefixTree tree(8, kWindow, true);
  const std::vector<int> a = Path(tree, 0, 5);
  tree.Touch(a[4], false);  // a sequence ended here: the last two windows are those to go on with
  EXPECT_TRUE(tree.EvictWindow());
  EXPECT_TRUE(tree.EvictWindow());
  EXPECT_TRUE(tree.EvictWindow());
  EXPECT_THAT(tree.freed_sliding(), ElementsAre(0, 1, 2));
  EXPECT_THAT(tree.freed_full(), IsEmpty());
}

TEST(PrefixTreeTest, LeafWithoutItsWindowIsWorthless) {
  PrefixTree tree(8, kWindow, true);
  const std::vector<int> a = Path(tree, 0, 4);
  const std::vector<int> b = Path(tree, 4, 1);
  tree.Touch(a[3], true);
  for (const int node : {a[0], a[1], a[3], b[0]}) {
    tree.PinWindow(node);
  }
  EXPECT_TRUE(tree.EvictWindow());  // of a[2], which a sequence at the end of a[3] needs
  EXPECT_THAT(tree.freed_sliding(), ElementsAre(2));
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_THAT(tree.freed_full(), ElementsAre(3));  // used, but of no use
  EXPECT_TRUE(tree.EvictNode());
  EXPECT_THAT(tree.freed_full(), ElementsAre(3, 2));
  EXPECT_TRUE(tree.EvictNode());  // at a[1] one could go on: it has been used, b has not
  EXPECT_THAT(tree.freed_full(), ElementsAre(3, 2, 4));
}

TEST(PrefixTreeTest, WithoutRetainingNothingStays) {
  PrefixTree tree(8, kWindow, false);
  std::vector<int> nodes;
  int parent = PrefixTree::kRoot;
  for (int n = 0; n < 2; ++n) {
    parent = tree.Insert(parent, 0, Block(n), {n, n});
    tree.Pin(parent);
    tree.PinWindow(parent);
    nodes.push_back(parent);
  }
  tree.UnpinWindow(nodes[0]);
  EXPECT_THAT(tree.freed_sliding(), ElementsAre(0));
  EXPECT_FALSE(tree.has_window(nodes[0]));
  tree.UnpinWindow(nodes[1]);
  tree.Unpin(nodes[1]);
  tree.Unpin(nodes[0]);
  EXPECT_THAT(tree.freed_full(), ElementsAre(1, 0));
  EXPECT_THAT(tree.freed_sliding(), ElementsAre(0, 1));
  EXPECT_EQ(tree.node_count(), 0);
}

TEST(PrefixTreeTest, FullTreeTakesNoMore) {
  PrefixTree tree(1, 0, true);
  EXPECT_NE(tree.Insert(PrefixTree::kRoot, 0, Block(0), {0, -1}), PrefixTree::kNone);
  EXPECT_EQ(tree.Insert(PrefixTree::kRoot, 0, Block(1), {1, -1}), PrefixTree::kNone);
}

}  // namespace
}  // namespace embergate::engine
