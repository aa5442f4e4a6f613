#include "tests/bench/cache_traces.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <list>
#include <map>
#include <random>
#include <set>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "storage/row_cache.h"

namespace embergate::bench {
namespace {

// The contents of all files that `command` prints.
std::string Output(const char* command) {
  std::string text;
  FILE* pipe = popen(command, "r");
  if (pipe == nullptr) {
    return text;
  }
  char buffer[65536];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) {
    text.append(buffer, n);
  }
  pclose(pipe);
  return text;
}

uint32_t HashId(const char* data, size_t size) {
  uint64_t hash = 1469598103934665603u;
  for (size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<unsigned char>(data[i])) * 1099511628211u;
  }
  return static_cast<uint32_t>((hash ^ hash >> 29) & 0x3ffff);
}

// Letters and digits in runs of at most five, a space belonging to the run that follows it, as subword vocabularies
// do; everything else by itself.
Trace Tokenize(const std::string& text) {
  Trace ids;
  size_t i = 0;
  while (i < text.size()) {
    size_t end = i + 1;
    if (text[i] == ' ' && end < text.size() && std::isalnum(static_cast<unsigned char>(text[end])) != 0) {
      ++end;
    }
    if (std::isalnum(static_cast<unsigned char>(text[end - 1])) != 0) {
      const size_t limit = std::min(text.size(), end + 4);
      while (end < limit && std::isalnum(static_cast<unsigned char>(text[end])) != 0) {
        ++end;
      }
    } else if (text[i] == ' ') {
      while (end < text.size() && text[end] == ' ' && end - i < 16) {
        ++end;  // indentation
      }
    }
    ids.push_back(HashId(text.data() + i, end - i));
    i = end;
  }
  return ids;
}

}  // namespace

Trace ZipfTrace(size_t length, uint32_t ids, double exponent, uint64_t seed) {
  std::vector<double> cumulative(ids);
  double sum = 0;
  for (uint32_t k = 0; k < ids; ++k) {
    sum += std::pow(k + 1, -exponent);
    cumulative[k] = sum;
  }
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<double> uniform(0, sum);
  Trace trace(length);
  for (uint32_t& id : trace) {
    id = static_cast<uint32_t>(std::lower_bound(cumulative.begin(), cumulative.end(), uniform(random)) -
                               cumulative.begin());
  }
  return trace;
}

Trace TextTrace(size_t length, uint64_t seed) {
  const Trace conversations[4] = {
      Tokenize(Output("cat /usr/share/common-licenses/* 2>/dev/null | head -c 1500000")),
      Tokenize(Output("cat /usr/share/doc/*/copyright 2>/dev/null | head -c 3000000")),
      Tokenize(Output("zcat -f /usr/share/man/man1/*.gz 2>/dev/null | head -c 3000000")),
      Tokenize(Output("cat /usr/lib/python3*/*.py 2>/dev/null | head -c 3000000")),
  };
  const Trace prompts = Tokenize(Output("zcat -f /usr/share/doc/*/changelog*.gz 2>/dev/null | head -c 3000000"));
  Trace trace;
  std::mt19937_64 random(seed);
  size_t position[4];
  for (size_t c = 0; c < 4; ++c) {
    position[c] = conversations[c].empty() ? 0 : random() % conversations[c].size();
  }
  size_t prompt_position = 0;
  bool any = false;
  for (const Trace& conversation : conversations) {
    any = any || conversation.size() > 10000;
  }
  while (any && trace.size() < length) {
    for (size_t c = 0; c < 4; ++c) {
      if (!conversations[c].empty()) {
        trace.push_back(conversations[c][position[c]++ % conversations[c].size()]);
      }
    }
    if (trace.size() % 20000 < 4 && prompts.size() > 2000) {
      for (int i = 0; i < 2000; ++i) {
        trace.push_back(prompts[prompt_position++ % prompts.size()]);
      }
    }
  }
  trace.resize(std::min(trace.size(), length));
  return trace;
}

uint64_t LruHits(const Trace& trace, size_t capacity) {
  std::list<uint32_t> order;
  std::unordered_map<uint32_t, std::list<uint32_t>::iterator> where;
  uint64_t hits = 0;
  for (uint32_t id : trace) {
    const auto found = where.find(id);
    if (found != where.end()) {
      ++hits;
      order.splice(order.begin(), order, found->second);
      continue;
    }
    if (order.size() == capacity) {
      where.erase(order.back());
      order.pop_back();
    }
    order.push_front(id);
    where[id] = order.begin();
  }
  return hits;
}

uint64_t ClockHits(const Trace& trace, size_t capacity) {
  struct Frame {
    uint32_t id = 0;
    bool used = false;
  };
  std::vector<Frame> frames;
  std::unordered_map<uint32_t, size_t> where;
  size_t hand = 0;
  uint64_t hits = 0;
  for (uint32_t id : trace) {
    const auto found = where.find(id);
    if (found != where.end()) {
      ++hits;
      frames[found->second].used = true;
      continue;
    }
    if (frames.size() < capacity) {
      where[id] = frames.size();
      frames.push_back({id, false});
      continue;
    }
    while (frames[hand].used) {
      frames[hand].used = false;
      hand = (hand + 1) % capacity;
    }
    where.erase(frames[hand].id);
    where[id] = hand;
    frames[hand] = {id, false};
    hand = (hand + 1) % capacity;
  }
  return hits;
}

uint64_t S3FifoHits(const Trace& trace, size_t capacity) {
  struct Row {
    bool main = false;
    int uses = 0;
  };
  std::unordered_map<uint32_t, Row> rows;
  std::deque<uint32_t> small;
  std::deque<uint32_t> main;
  std::deque<uint32_t> ghost;
  std::unordered_set<uint32_t> ghosts;
  const size_t small_max = std::max<size_t>(1, capacity / 10);
  const size_t main_max = capacity - small_max;
  uint64_t hits = 0;
  const auto evict_main = [&] {
    while (true) {
      const uint32_t id = main.front();
      main.pop_front();
      if (rows[id].uses > 0) {
        --rows[id].uses;
        main.push_back(id);
        continue;
      }
      rows.erase(id);
      return;
    }
  };
  for (uint32_t id : trace) {
    const auto found = rows.find(id);
    if (found != rows.end()) {
      ++hits;
      found->second.uses = std::min(3, found->second.uses + 1);
      continue;
    }
    while (rows.size() >= capacity) {
      if (small.size() < small_max && !main.empty()) {
        evict_main();
        continue;
      }
      const uint32_t oldest = small.front();
      small.pop_front();
      if (rows[oldest].uses > 1) {
        rows[oldest] = {true, 0};
        main.push_back(oldest);
        if (main.size() > main_max) {
          evict_main();
        }
        continue;
      }
      rows.erase(oldest);
      ghosts.insert(oldest);
      ghost.push_back(oldest);
      if (ghost.size() > main_max) {
        ghosts.erase(ghost.front());
        ghost.pop_front();
      }
    }
    const bool known = ghosts.count(id) > 0;
    rows[id] = {known, 0};
    (known ? main : small).push_back(id);
  }
  return hits;
}

namespace {

// Least recently used first, by id.
class Order {
 public:
  size_t size() const { return where_.size(); }
  bool Has(uint32_t id) const { return where_.count(id) > 0; }
  uint32_t oldest() const { return order_.back(); }
  void Push(uint32_t id) {
    order_.push_front(id);
    where_[id] = order_.begin();
  }
  void Remove(uint32_t id) {
    order_.erase(where_[id]);
    where_.erase(id);
  }
  void Touch(uint32_t id) { order_.splice(order_.begin(), order_, where_[id]); }

 private:
  std::list<uint32_t> order_;
  std::unordered_map<uint32_t, std::list<uint32_t>::iterator> where_;
};

class Sketch {
 public:
  explicit Sketch(size_t capacity) : period_(40 * capacity) {
    size_t size = 1;
    while (size < 4 * capacity) {
      size *= 2;
    }
    for (auto& row : counts_) {
      row.resize(size);
    }
  }
  int Estimate(uint32_t id) const {
    int least = kMax;
    for (size_t i = 0; i < counts_.size(); ++i) {
      least = std::min<int>(least, counts_[i][PlaceOf(id, i)]);
    }
    return least;
  }
  void Add(uint32_t id) {
    const int before = Estimate(id);
    for (size_t i = 0; i < counts_.size(); ++i) {
      uint8_t& count = counts_[i][PlaceOf(id, i)];
      count = static_cast<uint8_t>(count == before && before < kMax ? count + 1 : count);
    }
    if (++added_ == period_) {
      added_ /= 2;
      for (auto& row : counts_) {
        for (uint8_t& count : row) {
          count /= 2;
        }
      }
    }
  }

 private:
  static constexpr int kMax = 63;
  size_t PlaceOf(uint32_t id, size_t row) const {
    uint64_t hash = (id + 1) * 0x9e3779b97f4a7c15u * (2 * row + 1);
    hash = (hash ^ hash >> 29) * 0xbf58476d1ce4e5b9u;
    return hash >> 32 & (counts_[row].size() - 1);
  }

  std::array<std::vector<uint8_t>, 4> counts_;
  size_t period_;
  size_t added_ = 0;
};

}  // namespace

uint64_t TinyLfuHits(const Trace& trace, size_t capacity) {
  const size_t window_max = std::max<size_t>(1, capacity / 5);
  const size_t main_max = capacity - window_max;
  const size_t protected_max = main_max * 4 / 5;
  Order window;
  Order probation;
  Order protected_rows;
  Sketch sketch(capacity);
  uint64_t hits = 0;
  for (const uint32_t id : trace) {
    sketch.Add(id);
    if (window.Has(id) || protected_rows.Has(id)) {
      ++hits;
      (window.Has(id) ? window : protected_rows).Touch(id);
      continue;
    }
    if (probation.Has(id)) {
      ++hits;
      probation.Remove(id);
      protected_rows.Push(id);
      if (protected_rows.size() > protected_max) {
        const uint32_t demoted = protected_rows.oldest();
        protected_rows.Remove(demoted);
        probation.Push(demoted);
      }
      continue;
    }
    window.Push(id);
    if (window.size() <= window_max) {
      continue;
    }
    const uint32_t candidate = window.oldest();
    window.Remove(candidate);
    if (probation.size() + protected_rows.size() < main_max) {
      probation.Push(candidate);
      continue;
    }
    Order& from = probation.size() > 0 ? probation : protected_rows;
    const uint32_t victim = from.oldest();
    if (sketch.Estimate(candidate) > sketch.Estimate(victim)) {
      from.Remove(victim);
      probation.Push(candidate);
    }
  }
  return hits;
}

uint64_t FullHistoryHits(const Trace& trace, size_t capacity) {
  constexpr std::array<double, 3> kHalfLives = {1000, 30000, 300000};
  constexpr std::array<double, 3> kWeights = {0.15, 1, 1};
  constexpr int kSamples = 32;
  constexpr size_t kNotCached = SIZE_MAX;
  struct Row {
    std::array<double, 3> counts{};
    uint64_t seen = 0;
    size_t place = kNotCached;
  };
  std::vector<Row> rows(*std::max_element(trace.begin(), trace.end()) + size_t{1});
  std::vector<uint32_t> cached;
  std::mt19937 random(1);
  uint64_t hits = 0;
  uint64_t now = 0;
  const auto value = [&](const Row& row) {
    double sum = 0;
    for (size_t i = 0; i < kHalfLives.size(); ++i) {
      sum +=
          kWeights[i] / kHalfLives[i] * row.counts[i] * std::exp2(-static_cast<double>(now - row.seen) / kHalfLives[i]);
    }
    return sum;
  };
  for (const uint32_t id : trace) {
    ++now;
    Row& row = rows[id];
    for (size_t i = 0; i < kHalfLives.size(); ++i) {
      row.counts[i] = row.counts[i] * std::exp2(-static_cast<double>(now - row.seen) / kHalfLives[i]) + 1;
    }
    row.seen = now;
    if (row.place != kNotCached) {
      ++hits;
      continue;
    }
    row.place = cached.size();
    if (cached.size() < capacity) {
      cached.push_back(id);
      continue;
    }
    uint32_t worst = cached[random() % cached.size()];
    for (int i = 1; i < kSamples; ++i) {
      const uint32_t other = cached[random() % cached.size()];
      worst = value(rows[other]) < value(rows[worst]) ? other : worst;
    }
    row.place = std::exchange(rows[worst].place, kNotCached);
    cached[row.place] = id;
  }
  return hits;
}

uint64_t OptimumHits(const Trace& trace, size_t capacity) {
  std::vector<size_t> next(trace.size());
  std::unordered_map<uint32_t, size_t> later;
  for (size_t i = trace.size(); i > 0; --i) {
    const auto found = later.find(trace[i - 1]);
    next[i - 1] = found == later.end() ? trace.size() + i : found->second;  // never again: distinct, beyond the end
    later[trace[i - 1]] = i - 1;
  }
  std::set<std::pair<size_t, uint32_t>> by_next_use;
  std::unordered_map<uint32_t, size_t> in_cache;
  uint64_t hits = 0;
  for (size_t i = 0; i < trace.size(); ++i) {
    const auto found = in_cache.find(trace[i]);
    if (found != in_cache.end()) {
      ++hits;
      by_next_use.erase({found->second, trace[i]});
    } else if (in_cache.size() == capacity) {
      const auto last = std::prev(by_next_use.end());
      in_cache.erase(last->second);
      by_next_use.erase(last);
    }
    in_cache[trace[i]] = next[i];
    by_next_use.insert({next[i], trace[i]});
  }
  return hits;
}

uint64_t RowCacheHits(const Trace& trace, size_t capacity) {
  // As many rows are held at a time as a decode step of four has.
  constexpr uint32_t kHeld = 4;
  auto made = storage::RowCache::Create({64, kHeld, static_cast<uint32_t>(capacity - kHeld)});
  if (!made.ok()) {
    abort();
  }
  storage::RowCache& cache = *made;
  uint64_t hits = 0;
  for (uint32_t id : trace) {
    storage::RowCache::Id entry = cache.Find(id);
    if (entry != storage::RowCache::kNone) {
      ++hits;
      if (!cache.Pin(entry)) {
        abort();
      }
      cache.Touch(entry);
    } else {
      entry = cache.Insert(id, 64, true);
      cache.Complete(entry);
    }
    cache.Unpin(entry);
  }
  return hits;
}

}  // namespace embergate::bench
