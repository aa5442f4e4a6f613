// A TokenSink that writes everything down, and complains when events come in a wrong order.
#ifndef EMBERGATE_TESTS_SUPPORT_RECORDING_SINK_H_
#define EMBERGATE_TESTS_SUPPORT_RECORDING_SINK_H_

#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/token_sink.h"

namespace embergate::testing {

// Threads: any; read the members after WaitForFinish, or with an engine that is stepped by hand.
class RecordingSink : public engine::TokenSink {
 public:
  void OnStart(int prompt_tokens) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Check(starts == 0 && events == 0 && !finish.has_value(), "OnStart out of order");
    ++starts;
    started_with = prompt_tokens;
  }
  void OnPrompt(std::vector<engine::PositionLogprobs> positions) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Check(starts == 1 && events == 0 && !finish.has_value() && !positions.empty(), "OnPrompt out of order or empty");
    ++prompt_pieces;
    for (auto& position : positions) {
      prompt.push_back(std::move(position));
    }
  }
  void OnPromptProgress(int done, int cached) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Check(starts == 1 && events == 0 && !finish.has_value(), "OnPromptProgress out of order");
    Check(progress.empty() || progress.back().first < done, "OnPromptProgress does not go on");
    progress.emplace_back(done, cached);
  }
  void OnTokens(engine::TokenEvent event) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Check(starts == 1 && !finish.has_value(), "OnTokens out of order");
    Check(!event.ids.empty() || !event.text.empty(), "OnTokens without anything");
    Check(event.logprobs.empty() || event.logprobs.size() == event.ids.size(), "OnTokens: logprobs and ids disagree");
    ++events;
    text += event.text;
    ids.insert(ids.end(), event.ids.begin(), event.ids.end());
    std::vector<int32_t>& own = ids_of[event.completion];
    own.insert(own.end(), event.ids.begin(), event.ids.end());
    for (auto& position : event.logprobs) {
      logprobs.push_back(std::move(position));
    }
    pieces.push_back(std::move(event));
    changed_.notify_all();
  }
  void OnCompletion(engine::FinishEvent event) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Check(!finish.has_value(), "OnCompletion after OnFinish");
    completions.push_back(std::move(event));
  }
  void OnFinish(engine::FinishEvent event) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Check(!finish.has_value(), "OnFinish twice");
    finish = std::move(event);
    changed_.notify_all();
  }

  void WaitForFinish() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return finish.has_value(); });
  }
  // Until `count` tokens came or the stream ended.
  void WaitForTokens(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return ids.size() >= count || finish.has_value(); });
  }
  bool finished() {
    std::lock_guard<std::mutex> lock(mutex_);
    return finish.has_value();
  }

  int starts = 0;
  int started_with = -1;
  int events = 0;
  int prompt_pieces = 0;
  std::vector<engine::PositionLogprobs> prompt;
  std::vector<std::pair<int, int>> progress;  // done, cached
  std::vector<int32_t> ids;
  std::map<int, std::vector<int32_t>> ids_of;    // of each of several answers
  std::vector<engine::FinishEvent> completions;  // in the order in which they ended
  std::string text;
  std::vector<engine::PositionLogprobs> logprobs;
  std::vector<engine::TokenEvent> pieces;
  std::optional<engine::FinishEvent> finish;
  std::vector<std::string> violations;

 private:
  void Check(bool ok, const char* what) {
    if (!ok) {
      violations.emplace_back(what);
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace embergate::testing

#endif  // EMBERGATE_TESTS_SUPPORT_RECORDING_SINK_H_
