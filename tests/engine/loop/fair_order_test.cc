#include "engine/fair_order.h"

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace embergate::engine {
namespace {

struct Waiting {
  std::string client;
  double tag = 0;
  double cost = 0;
  int arrived = 0;
};

Waiting ServeLowest(FairOrder& order, std::vector<Waiting>& queue) {
  const auto first =
      std::min_element(queue.begin(), queue.end(), [](const Waiting& a, const Waiting& b) { return a.tag < b.tag; });
  const Waiting served = *first;
  queue.erase(first);
  order.OnServed(served.tag);
  return served;
}

TEST(FairOrderTest, OneClientIsServedInOrderWhateverItsRequestsCost) {
  FairOrder order;
  double last = 0;
  for (double cost : {500.0, 1.0, 30.0, 2.0}) {
    const double tag = order.Arrive("a", cost, 1);
    EXPECT_GT(tag, last);
    last = tag;
  }
}

TEST(FairOrderTest, AnotherClientDoesNotWaitBehindAWholeBurst) {
  FairOrder order;
  std::vector<Waiting> queue;
  for (int i = 0; i < 20; ++i) {
    queue.push_back({"greedy", order.Arrive("greedy", 100, 1), 100, i});
  }
  ServeLowest(order, queue);
  queue.push_back({"modest", order.Arrive("modest", 100, 1), 100, 20});
  const std::string first = ServeLowest(order, queue).client;
  const std::string second = ServeLowest(order, queue).client;
  EXPECT_TRUE(first == "modest" || second == "modest");
}

TEST(FairOrderTest, SharesFollowTheWeightsWhileAllWait) {
  std::mt19937 random(2);
  FairOrder order;
  const std::map<std::string, double> weights = {{"a", 1}, {"b", 2}, {"c", 4}};
  std::map<std::string, double> served;
  std::vector<Waiting> queue;
  const auto arrive = [&](const std::string& client) {
    const double cost = 10 + static_cast<double>(random() % 200);
    queue.push_back({client, order.Arrive(client, cost, weights.at(client)), cost, 0});
  };
  for (const auto& [client, weight] : weights) {
    for (int i = 0; i < 5; ++i) {
      arrive(client);
    }
  }
  for (int i = 0; i < 7000; ++i) {
    const Waiting w = ServeLowest(order, queue);
    served[w.client] += w.cost;
    arrive(w.client);
  }
  EXPECT_NEAR(served["b"] / served["a"], 2, 0.1);
  EXPECT_NEAR(served["c"] / served["a"], 4, 0.2);
}

TEST(FairOrderTest, NobodyIsOvertakenForEver) {
  FairOrder order;
  std::vector<Waiting> queue;
  queue.push_back({"heavy", order.Arrive("heavy", 4000, 1), 4000, 0});
  int before = 0;
  for (int i = 0;; ++i) {
    ASSERT_LT(i, 1000);
    queue.push_back({"client" + std::to_string(i), order.Arrive("client" + std::to_string(i), 100, 1), 100, i});
    if (ServeLowest(order, queue).client == "heavy") {
      break;
    }
    ++before;
  }
  EXPECT_LE(before, 40);
}

TEST(FairOrderTest, ForgetsClientsThatAreGone) {
  FairOrder order;
  for (int i = 0; i < 20000; ++i) {
    const double tag = order.Arrive("client" + std::to_string(i), 100, 1);
    if (i % 2 == 0) {
      order.OnServed(tag);
    }
    ASSERT_LE(order.clients(), FairOrder::kClientsMax);
  }
}

}  // namespace
}  // namespace embergate::engine
