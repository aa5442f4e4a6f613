#include "engine/stop_detector.h"

#include <algorithm>
#include <utility>

namespace embergate::engine {

StopDetector::StopDetector(std::vector<std::string> stops) {
  for (std::string& stop : stops) {
    Pattern pattern;
    pattern.text = std::move(stop);
    pattern.fallback.resize(pattern.text.size());
    for (size_t i = 1, length = 0; i < pattern.text.size(); ++i) {
      while (length > 0 && pattern.text[i] != pattern.text[length]) {
        length = pattern.fallback[length - 1];
      }
      length += pattern.text[i] == pattern.text[length] ? 1 : 0;
      pattern.fallback[i] = static_cast<int>(length);
    }
    patterns_.push_back(std::move(pattern));
  }
}

bool StopDetector::Feed(absl::string_view piece, bool allowed) {
  for (char byte : piece) {
    ++read_;
    size_t held = 0;
    for (size_t i = 0; i < patterns_.size(); ++i) {
      Pattern& pattern = patterns_[i];
      const int size = static_cast<int>(pattern.text.size());
      if (size == 0) {
        continue;
      }
      int state = pattern.state;
      while (state > 0 && pattern.text[state] != byte) {
        state = pattern.fallback[state - 1];
      }
      state += pattern.text[state] == byte ? 1 : 0;
      if (state == size) {
        if (allowed && (matched_ < 0 || pattern.text.size() > patterns_[matched_].text.size())) {
          matched_ = static_cast<int>(i);
        }
        state = pattern.fallback[size - 1];  // so that text[state] exists for the next byte
      }
      pattern.state = state;
      held = std::max(held, static_cast<size_t>(state));
    }
    held_ = held;
    if (matched_ >= 0) {
      match_end_ = read_;
      match_begin_ = read_ - patterns_[matched_].text.size();
      return true;
    }
  }
  return false;
}

}  // namespace embergate::engine
