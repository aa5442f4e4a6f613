// The order in which waiting requests get slots: fair between clients, in proportion to their weights.
#ifndef EMBERGATE_ENGINE_FAIR_ORDER_H_
#define EMBERGATE_ENGINE_FAIR_ORDER_H_

#include <string>
#include <unordered_map>

namespace embergate::engine {

// Self-clocked fair queueing: each request gets a tag when it arrives, and the lowest tag is served first. A client's
// tag grows by what its requests cost, so one that asks for much waits behind those that ask for little, and since
// the virtual time (the highest tag served) only grows, nobody is overtaken for ever. One client alone is served in
// the order of arrival. The shares are those of weighted deficit round robin, but without a quantum: with one as large
// as the dearest request, a client could send many small ones in a row; with a smaller one, dear requests sit out whole
// rounds. Source: Golestani, "A self-clocked fair queueing scheme" (INFOCOM 1994).
// A pure state machine. Threads: one. Remembers at most kClientsMax clients.
class FairOrder {
 public:
  static constexpr size_t kClientsMax = 1024;

  // The tag of a request that arrives now; cost > 0, weight > 0.
  double Arrive(const std::string& client, double cost, double weight);
  void OnServed(double tag);
  // The tag of a request that was served and comes back with `cost` of it left. Its client has paid for it: its other
  // requests keep their tags, and the order among them.
  double Return(double cost, double weight) const { return virtual_time_ + cost / weight; }
  size_t clients() const { return last_tag_.size(); }

 private:
  double virtual_time_ = 0;
  std::unordered_map<std::string, double> last_tag_;  // of clients whose last tag lies ahead of virtual time
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_FAIR_ORDER_H_
