// Sequences of row ids to try replacement policies on, and the policies that the row cache is compared with.
#ifndef EMBERGATE_TESTS_BENCH_CACHE_TRACES_H_
#define EMBERGATE_TESTS_BENCH_CACHE_TRACES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace embergate::bench {

using Trace = std::vector<uint32_t>;

// `length` draws from `ids` ids whose k-th most frequent has probability ~ 1/k^exponent.
Trace ZipfTrace(size_t length, uint32_t ids, double exponent, uint64_t seed);

// What four conversations at once ask of the table when they read and write the texts of this machine (licences,
// package notes, manual pages, Python sources): words in pieces of at most five letters, each hashed to one of 262144
// ids; the four are interleaved token by token as decode does, and every 20,000 tokens one of them brings a prompt of
// 2,000 tokens in one go, taken from a text that is not used otherwise. Empty if this machine has no such texts.
Trace TextTrace(size_t length, uint64_t seed);

// Hits of `capacity` rows over the trace.
uint64_t LruHits(const Trace& trace, size_t capacity);
uint64_t ClockHits(const Trace& trace, size_t capacity);
uint64_t S3FifoHits(const Trace& trace, size_t capacity);  // as published
// W-TinyLFU: a window of a fifth, a segmented main part, admission by a count-min sketch that forgets.
uint64_t TinyLfuHits(const Trace& trace, size_t capacity);
// What no cache could afford: decayed counts of all ids, cached or not, at three time scales (half lives of 1,000,
// 30,000 and 300,000 tokens, tuned to these traces); evicts the least of 32 random rows. About the limit of what the
// past tells of the future.
uint64_t FullHistoryHits(const Trace& trace, size_t capacity);
uint64_t OptimumHits(const Trace& trace, size_t capacity);   // evicts what is used last; needs the future
uint64_t RowCacheHits(const Trace& trace, size_t capacity);  // the product's own

}  // namespace embergate::bench

#endif  // EMBERGATE_TESTS_BENCH_CACHE_TRACES_H_
