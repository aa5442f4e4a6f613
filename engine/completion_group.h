// The answers of one request that asks for several: each is a sequence of its own, and their events become one stream.
#ifndef EMBERGATE_ENGINE_COMPLETION_GROUP_H_
#define EMBERGATE_ENGINE_COMPLETION_GROUP_H_

#include <atomic>
#include <cstdint>
#include <vector>

#include "engine/request.h"
#include "engine/token_sink.h"

namespace embergate::engine {

// Passes the sequences' events on, marked with the answer's index; OnStart and what concerns the prompt come from
// answer 0 alone. Each answer's end is told by OnCompletion, the last one's followed by OnFinish for the request as a
// whole. When one ends with an error the others are cancelled.
//
// Threads: the engine's. Lifetime: the maker owns it until it has submitted all sequences, then it owns itself: it
// deletes itself after the last OnFinish.
class CompletionGroup {
 public:
  // `sink` is borrowed.
  CompletionGroup(int count, TokenSink* sink);

  int size() const { return static_cast<int>(members_.size()); }
  TokenSink* sink(int index) { return &members_[static_cast<size_t>(index)]; }
  // How to cancel an answer; borrowed until it has ended.
  void set_cancelled(int index, std::atomic<bool>* cancelled) {
    members_[static_cast<size_t>(index)].cancelled = cancelled;
  }

  // The request that answer `index` is computed as: with a random stream of its own. Answer 0 is what the request
  // would give alone.
  static GenerateRequest Part(const GenerateRequest& request, int index);

 private:
  struct Member : TokenSink {
    void OnStart(int prompt_tokens) override;
    void OnPrompt(std::vector<PositionLogprobs> logprobs) override;
    void OnPromptProgress(int done, int cached) override;
    void OnTokens(TokenEvent event) override;
    void OnFinish(FinishEvent event) override;
    CompletionGroup* group = nullptr;
    int index = 0;
    std::atomic<bool>* cancelled = nullptr;  // null once it has ended
  };
  void Finish(Member& member, FinishEvent event);

  TokenSink* const sink_;
  std::vector<Member> members_;
  int running_;
  bool started_ = false;
  bool answering_ = false;  // tokens have been given out
  FinishEvent whole_;
};

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_COMPLETION_GROUP_H_
