#include "engine/fair_order.h"

#include <algorithm>

namespace embergate::engine {

double FairOrder::Arrive(const std::string& client, double cost, double weight) {
  if (last_tag_.size() >= kClientsMax && last_tag_.count(client) == 0) {
    for (auto it = last_tag_.begin(); it != last_tag_.end();) {
      it = it->second <= virtual_time_ ? last_tag_.erase(it) : std::next(it);
    }
    if (last_tag_.size() >= kClientsMax) {
      last_tag_.clear();  // more clients than could ever wait: their requests were cancelled
    }
  }
  double& last = last_tag_[client];
  last = std::max(last, virtual_time_) + cost / weight;
  return last;
}

void FairOrder::OnServed(double tag) { virtual_time_ = std::max(virtual_time_, tag); }

}  // namespace embergate::engine
