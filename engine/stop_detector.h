// Finds stop strings in a text that arrives in pieces.
#ifndef EMBERGATE_ENGINE_STOP_DETECTOR_H_
#define EMBERGATE_ENGINE_STOP_DETECTOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace embergate::engine {

//   StopDetector stop({"</s>", "END"});
//   stop.Feed("the E", true);   // no match; stop.held() == 1: the "E" may be the beginning of "END"
//   stop.Feed("ND of", true);   // match: stop.matched() == 1, stop.match_begin() == 4, stop.match_end() == 7
//
// The match is the one that a reader of single bytes would complete first (the longest of several that end
// together), so it does not depend on where the pieces are cut. One automaton per string (Knuth, Morris, Pratt):
// linear in the text, nothing is read twice. Threads: one. Feed allocates nothing.
class StopDetector {
 public:
  // Empty strings are ignored.
  explicit StopDetector(std::vector<std::string> stops);

  // Reads the next piece; true when a stop string is complete. With `allowed` false, matches that end in this piece
  // do not count (their bytes may still be the beginning of a later one). Not to be called after a match.
  bool Feed(absl::string_view piece, bool allowed);

  bool empty() const { return patterns_.empty(); }  // nothing to find
  // Bytes at the end of the text that could still become a stop string.
  size_t held() const { return held_; }
  int matched() const { return matched_; }  // index into the strings given; -1 = none
  // Byte offsets in the whole text.
  uint64_t match_begin() const { return match_begin_; }
  uint64_t match_end() const { return match_end_; }
  const std::string& stop(int index) const { return patterns_[index].text; }

 private:
  struct Pattern {
    std::string text;
    std::vector<int> fallback;  // [i] = length of the longest proper prefix of text[0..i] that is its suffix too
    int state = 0;              // bytes of text matched by the end of what was read
  };
  std::vector<Pattern> patterns_;
  uint64_t read_ = 0;
  size_t held_ = 0;
  int matched_ = -1;
  uint64_t match_begin_ = 0;
  uint64_t match_end_ = 0;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_STOP_DETECTOR_H_
