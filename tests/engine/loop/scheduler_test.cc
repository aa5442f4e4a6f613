// The scheduler's rules one by one, then a simulator that runs it through 100,000 random small workloads.
#include "engine/scheduler.h"

#include <algorithm>
#include <cstdint>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace embergate::engine {

inline bool operator==(const PlannedChunk& a, const PlannedChunk& b) {
  return a.sequence == b.sequence && a.tokens == b.tokens && a.logits == b.logits;
}
inline void PrintTo(const PlannedChunk& chunk, std::ostream* out) {
  *out << "{sequence " << chunk.sequence << ", tokens " << chunk.tokens << ", logits " << static_cast<int>(chunk.logits)
       << "}";
}

namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr LogitsWanted kNone = LogitsWanted::kNone;
constexpr LogitsWanted kLast = LogitsWanted::kLast;
constexpr LogitsWanted kAll = LogitsWanted::kAll;

struct Case {
  SchedulerLimits limits{256, 8, 128};
  std::vector<RunningSequence> running;
  std::vector<WaitingRequest> waiting;
  int slots_free = 0;
  int64_t kv_tokens_free = 0;
  int prefill_budget = 64;

  StepPlan Plan() const {
    SchedulerInput input;
    input.limits = limits;
    input.running = running;
    input.waiting = waiting;
    input.slots_free = slots_free;
    input.kv_tokens_free = kv_tokens_free;
    input.prefill_budget = prefill_budget;
    StepPlan plan;
    PlanStep(input, &plan);
    return plan;
  }
};

RunningSequence Running(int prefill_tokens, bool all_logits, bool last_logits, uint64_t served) {
  RunningSequence sequence;
  sequence.prefill_tokens = prefill_tokens;
  sequence.all_logits = all_logits;
  sequence.last_logits = last_logits;
  sequence.served_step = served;
  return sequence;
}
RunningSequence Decodes(uint64_t served = 0) { return Running(0, false, true, served); }
RunningSequence Prompt(int tokens, uint64_t served = 0) { return Running(tokens, false, true, served); }
RunningSequence Score(int tokens, uint64_t served = 0) { return Running(tokens, true, false, served); }
RunningSequence Batch(int computed, int64_t kv_tokens) {
  RunningSequence sequence = Decodes();
  sequence.preemptible = true;
  sequence.computed = computed;
  sequence.kv_tokens = kv_tokens;
  return sequence;
}
WaitingRequest Waiting(int64_t kv_tokens, bool preempts = false) { return {10, false, true, kv_tokens, preempts}; }

TEST(SchedulerTest, NothingToDoGivesAnEmptyPlan) {
  const StepPlan plan = Case{}.Plan();
  EXPECT_EQ(plan.admitted, 0);
  EXPECT_THAT(plan.chunks, IsEmpty());
}

TEST(SchedulerTest, ALonePromptGetsFullChunksAndLogitsOnlyAtItsEnd) {
  Case c;
  c.running = {Prompt(300)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 128, kNone}));
  c.running = {Prompt(128)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 128, kLast}));
}

TEST(SchedulerTest, StreamsComeFirstAndLimitThePromptBesideThem) {
  Case c;
  c.running = {Decodes(), Prompt(300), Decodes()};
  EXPECT_THAT(c.Plan().chunks,
              ElementsAre(PlannedChunk{0, 1, kLast}, PlannedChunk{2, 1, kLast}, PlannedChunk{1, 64, kNone}));
}

TEST(SchedulerTest, TheOldestPromptGetsHalfAndTheShortestTheRest) {
  Case c;
  c.running = {Decodes(), Prompt(1000), Prompt(500), Prompt(20)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 1, kLast}, PlannedChunk{1, 32, kNone},
                                           PlannedChunk{3, 20, kLast}, PlannedChunk{2, 8, kNone}));
  c.running = {Decodes(), Prompt(1000), Prompt(20)};
  EXPECT_THAT(c.Plan().chunks,
              ElementsAre(PlannedChunk{0, 1, kLast}, PlannedChunk{1, 40, kNone}, PlannedChunk{2, 20, kLast}))
      << "the oldest takes what the others leave";
}

TEST(SchedulerTest, WithoutStreamsPromptsShareTheWholeStep) {
  Case c;
  c.running = {Prompt(1000), Prompt(1000)};
  c.prefill_budget = 8;
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 128, kNone}, PlannedChunk{1, 128, kNone}));
}

TEST(SchedulerTest, HeldPromptsLeaveTheStepToTheOthers) {
  Case c;
  c.running = {Prompt(100), Prompt(100), Prompt(100)};
  c.running[1].held = true;
  c.running[2].held = true;
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 100, kLast}));
  c.limits.step_tokens_max = 2;  // too few for everybody
  c.running[0] = Decodes();
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 1, kLast}));
}

TEST(SchedulerTest, ScoringIsCutToTheRowsOfLogits) {
  Case c;
  c.limits.logit_rows_max = 20;
  c.running = {Score(100)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 16, kAll}));
  c.running = {Decodes(), Decodes(), Score(18)};
  EXPECT_THAT(c.Plan().chunks,
              ElementsAre(PlannedChunk{0, 1, kLast}, PlannedChunk{1, 1, kLast}, PlannedChunk{2, 18, kAll}));
}

TEST(SchedulerTest, APromptWithoutARowForItsLastTokenKeepsItForLater) {
  Case c;
  c.limits.logit_rows_max = 1;
  c.running = {Decodes(4), Prompt(20, 3)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 1, kLast}, PlannedChunk{1, 16, kNone}));
  c.running = {Decodes(4), Prompt(1, 3)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{1, 1, kLast})) << "it waited longer than the stream";
  c.running = {Decodes(3), Prompt(1, 4)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 1, kLast}));
}

TEST(SchedulerTest, TooFewRowsRotateTheStreams) {
  Case c;
  c.limits.logit_rows_max = 2;
  c.running = {Decodes(9), Decodes(7), Decodes(8)};
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{1, 1, kLast}, PlannedChunk{2, 1, kLast}));
}

TEST(SchedulerTest, AdmissionIsInOrderAndWithinSlotsAndKv) {
  Case c;
  c.waiting = {Waiting(100), Waiting(200), Waiting(10)};
  c.slots_free = 3;
  c.kv_tokens_free = 250;
  EXPECT_EQ(c.Plan().admitted, 1) << "the third would fit, but nobody overtakes";
  c.kv_tokens_free = 310;
  EXPECT_EQ(c.Plan().admitted, 3);
  c.slots_free = 2;
  EXPECT_EQ(c.Plan().admitted, 2);
}

TEST(SchedulerTest, AnAdmittedRequestComputesInTheSameStep) {
  Case c;
  c.running = {Decodes()};
  c.waiting = {Waiting(100)};
  c.slots_free = 1;
  c.kv_tokens_free = 100;
  EXPECT_THAT(c.Plan().chunks, ElementsAre(PlannedChunk{0, 1, kLast}, PlannedChunk{1, 10, kLast}));
}

// ---- Pre-emption ----------------------------------------------------------------------------------
Preemption PreemptionOf(const Case& c) {
  SchedulerInput input;
  input.running = c.running;
  input.waiting = c.waiting;
  input.slots_free = c.slots_free;
  input.kv_tokens_free = c.kv_tokens_free;
  Preemption preemption;
  PlanPreemption(input, &preemption);
  return preemption;
}

TEST(PreemptionTest, ARequestThatGetsASlotAnywayTakesNobodys) {
  Case c;
  c.running = {Batch(5, 100)};
  c.waiting = {Waiting(100, true)};
  c.slots_free = 1;
  c.kv_tokens_free = 100;
  EXPECT_EQ(PreemptionOf(c).waiting, -1);
  c.waiting = {Waiting(100, false)};
  c.slots_free = 0;
  EXPECT_EQ(PreemptionOf(c).waiting, -1) << "batch work displaces nobody";
}

TEST(PreemptionTest, TheOneWithTheLeastToComputeAgainGivesItsSlot) {
  Case c;
  c.running = {Batch(50, 100), Batch(5, 100), Decodes(), Batch(5, 100)};
  c.waiting = {Waiting(80, false), Waiting(100, true), Waiting(100, true)};
  const Preemption preemption = PreemptionOf(c);
  EXPECT_EQ(preemption.waiting, 1) << "the first that may";
  EXPECT_THAT(preemption.victims, ElementsAre(3)) << "of equals the youngest";
}

TEST(PreemptionTest, KvIsGatheredFromAsFewAsWillDo) {
  Case c;
  c.slots_free = 1;
  c.kv_tokens_free = 20;
  c.running = {Batch(50, 200), Batch(5, 30), Batch(10, 40)};
  c.waiting = {Waiting(90, true)};
  EXPECT_THAT(PreemptionOf(c).victims, ElementsAre(1, 2)) << "30 + 40 + 20 are enough";
  c.waiting = {Waiting(120, true)};
  EXPECT_THAT(PreemptionOf(c).victims, ElementsAre(0)) << "200 alone will do, so the cheap ones stay";
  c.waiting = {Waiting(291, true)};
  EXPECT_EQ(PreemptionOf(c).waiting, -1);
  EXPECT_THAT(PreemptionOf(c).victims, IsEmpty()) << "nobody is set aside in vain";
}

TEST(PreemptionTest, ASlotBehindOneThatDoesNotFitCostsNobodyAnything) {
  Case c;
  c.slots_free = 1;
  c.kv_tokens_free = 50;
  c.running = {Batch(5, 100)};
  c.waiting = {Waiting(80, false), Waiting(40, true)};
  EXPECT_EQ(PreemptionOf(c).waiting, 1);
  EXPECT_THAT(PreemptionOf(c).victims, IsEmpty());
}

// ---- Simulator ------------------------------------------------------------------------------------
// A workload is a list of requests with arrival steps. Each simulated sequence carries what it still needs; the
// simulator applies plans as the step loop would and checks every plan against the limits.
struct SimRequest {
  int arrival = 0;
  int prefill = 0;
  bool all_logits = false;
  int decode = 0;  // tokens to generate; 0 = scoring
  int64_t kv = 0;
  bool batch = false;
};

struct SimSequence {
  RunningSequence view;
  SimRequest request;
  int decode_left = 0;
  int64_t kv = 0;
  uint64_t oldest_since = 0;  // when it became the oldest prompt
};

class Simulator {
 public:
  explicit Simulator(std::mt19937& random) {
    const auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    slots_ = 1 + below(5);
    limits_.step_tokens_max = slots_ + below(30);
    limits_.logit_rows_max = 1 + below(8);
    limits_.chunk_max = 1 + below(20);
    budget_ = 1 + below(12);
    kv_total_ = 20 + below(100);
    int arrival = 0;
    for (int i = 0, n = 1 + below(8); i < n; ++i) {
      SimRequest request;
      arrival += below(3);
      request.arrival = arrival;
      request.prefill = 1 + below(15);
      request.all_logits = below(5) == 0;
      request.decode = request.all_logits && below(2) == 0 ? 0 : 1 + below(5);
      request.kv = std::min<int64_t>(request.prefill + request.decode, kv_total_);
      request.batch = below(3) == 0;
      requests_.push_back(request);
      work_ += request.prefill + request.decode;
    }
  }

  int preemptions() const { return preemptions_; }

  void Run() {
    int64_t kv_free = kv_total_;
    size_t arrived = 0;
    std::vector<SimRequest> waiting;
    std::vector<SimSequence> running;
    StepPlan plan;
    // Every step computes at least one token, so the steps are no more than work plus idle time before arrivals. Each
    // request that takes slots can make all the others compute again, once.
    const uint64_t steps_max =
        static_cast<uint64_t>(work_ * static_cast<int64_t>(requests_.size()) + requests_.back().arrival + 1);
    for (uint64_t step = 1;; ++step) {
      ASSERT_LE(step, steps_max + 1) << "no progress";
      while (arrived < requests_.size() && requests_[arrived].arrival < static_cast<int>(step)) {
        waiting.push_back(requests_[arrived++]);
      }
      if (waiting.empty() && running.empty()) {
        if (arrived == requests_.size()) {
          return;
        }
        continue;
      }
      std::vector<RunningSequence> views;
      for (const SimSequence& s : running) {
        views.push_back(s.view);
      }
      std::vector<WaitingRequest> queue;
      for (const SimRequest& r : waiting) {
        queue.push_back({r.prefill, r.all_logits, r.decode > 0, r.kv, !r.batch});
      }
      ASSERT_NO_FATAL_FAILURE(Preempt(views, queue, &waiting, &running, &kv_free));
      views.clear();
      for (const SimSequence& s : running) {
        views.push_back(s.view);
      }
      queue.clear();
      for (const SimRequest& r : waiting) {
        queue.push_back({r.prefill, r.all_logits, r.decode > 0, r.kv, !r.batch});
      }
      SchedulerInput input;
      input.limits = limits_;
      input.running = views;
      input.waiting = queue;
      input.slots_free = slots_ - static_cast<int>(running.size());
      input.kv_tokens_free = kv_free;
      input.prefill_budget = budget_;
      PlanStep(input, &plan);
      ASSERT_FALSE(plan.chunks.empty());
      Admit(plan, step, &waiting, &running, &kv_free);
      ASSERT_NO_FATAL_FAILURE(Apply(plan, step, views.size(), &running, &kv_free));
    }
  }

 private:
  // Applies PlanPreemption, and checks that it sets aside neither the wrong ones nor more than it needs.
  void Preempt(const std::vector<RunningSequence>& views, const std::vector<WaitingRequest>& queue,
               std::vector<SimRequest>* waiting, std::vector<SimSequence>* running, int64_t* kv_free) {
    SchedulerInput input;
    input.running = views;
    input.waiting = queue;
    input.slots_free = slots_ - static_cast<int>(running->size());
    input.kv_tokens_free = *kv_free;
    Preemption preemption;
    PlanPreemption(input, &preemption);
    if (preemption.waiting < 0) {
      ASSERT_TRUE(preemption.victims.empty());
      return;
    }
    const SimRequest wanting = (*waiting)[static_cast<size_t>(preemption.waiting)];
    ASSERT_FALSE(wanting.batch);
    std::sort(preemption.victims.begin(), preemption.victims.end());
    ASSERT_EQ(std::unique(preemption.victims.begin(), preemption.victims.end()), preemption.victims.end());
    int64_t freed = 0;
    for (const int victim : preemption.victims) {
      ASSERT_TRUE((*running)[static_cast<size_t>(victim)].view.preemptible);
      freed += (*running)[static_cast<size_t>(victim)].kv;
    }
    // Those before it that get slots anyway keep them.
    int slots = input.slots_free + static_cast<int>(preemption.victims.size());
    int64_t kv = *kv_free + freed;
    int slots_free = input.slots_free;
    int64_t kv_left = *kv_free;
    for (const WaitingRequest& request : queue) {
      if (slots_free == 0 || request.kv_tokens > kv_left) {
        break;
      }
      --slots_free;
      --slots;
      kv_left -= request.kv_tokens;
      kv -= request.kv_tokens;
    }
    ASSERT_GE(slots, 1);
    ASSERT_GE(kv, wanting.kv);
    for (const int victim : preemption.victims) {
      ASSERT_TRUE(slots == 1 || kv - (*running)[static_cast<size_t>(victim)].kv < wanting.kv) << "one too many";
    }
    waiting->erase(waiting->begin() + preemption.waiting);
    waiting->insert(waiting->begin(), wanting);
    for (auto victim = preemption.victims.rbegin(); victim != preemption.victims.rend(); ++victim) {
      const SimSequence& s = (*running)[static_cast<size_t>(*victim)];
      SimRequest again = s.request;
      // Its generated tokens, but for the last one, which is computed as the first step's.
      again.prefill = s.request.prefill + std::max(0, s.request.decode - s.decode_left);
      again.decode = s.decode_left;
      again.all_logits = false;
      *kv_free += s.kv;
      waiting->push_back(again);
      running->erase(running->begin() + *victim);
    }
    ++preemptions_;
  }

  void Admit(const StepPlan& plan, uint64_t step, std::vector<SimRequest>* waiting, std::vector<SimSequence>* running,
             int64_t* kv_free) {
    for (int i = 0; i < plan.admitted; ++i) {
      const SimRequest& r = (*waiting)[static_cast<size_t>(i)];
      SimSequence s;
      s.view = Running(r.prefill, r.all_logits, r.decode > 0, step);
      s.view.preemptible = r.batch;
      s.view.kv_tokens = r.kv;
      s.request = r;
      s.decode_left = r.decode;
      s.kv = r.kv;
      running->push_back(s);
      *kv_free -= r.kv;
    }
    waiting->erase(waiting->begin(), waiting->begin() + plan.admitted);
    EXPECT_GE(*kv_free, 0);
    EXPECT_LE(running->size(), static_cast<size_t>(slots_));
  }

  void Apply(const StepPlan& plan, uint64_t step, size_t before, std::vector<SimSequence>* running, int64_t* kv_free) {
    int tokens = 0;
    int rows = 0;
    int prompt_tokens = 0;
    bool decodes = false;
    std::vector<bool> used(running->size());
    const bool any_decode = std::any_of(running->begin(), running->begin() + static_cast<std::ptrdiff_t>(before),
                                        [](const SimSequence& s) { return s.view.prefill_tokens == 0; });
    for (const PlannedChunk& chunk : plan.chunks) {
      ASSERT_GE(chunk.sequence, 0);
      ASSERT_LT(chunk.sequence, static_cast<int>(running->size()));
      SimSequence& s = (*running)[static_cast<size_t>(chunk.sequence)];
      ASSERT_FALSE(used[static_cast<size_t>(chunk.sequence)]) << "twice in one step";
      used[static_cast<size_t>(chunk.sequence)] = true;
      ASSERT_GE(chunk.tokens, 1);
      tokens += chunk.tokens;
      s.view.served_step = step;
      s.view.computed += chunk.tokens;
      if (s.view.prefill_tokens == 0) {
        ASSERT_EQ(chunk.tokens, 1);
        ASSERT_EQ(chunk.logits, kLast);
        decodes = true;
        ++rows;
        --s.decode_left;
        continue;
      }
      ASSERT_LE(chunk.tokens, std::min(s.view.prefill_tokens, limits_.chunk_max));
      prompt_tokens += chunk.tokens;
      s.view.prefill_tokens -= chunk.tokens;
      const bool ends = s.view.prefill_tokens == 0;
      ASSERT_EQ(chunk.logits, s.view.all_logits ? kAll : ends && s.view.last_logits ? kLast : kNone);
      rows += s.view.all_logits ? chunk.tokens : chunk.logits == kLast ? 1 : 0;
      if (ends && s.view.last_logits) {
        --s.decode_left;  // the first token is sampled from the prompt's last position
      }
    }
    ASSERT_LE(tokens, limits_.step_tokens_max);
    ASSERT_LE(rows, limits_.logit_rows_max);
    if (any_decode) {
      ASSERT_LE(prompt_tokens, budget_) << "prompts stall streams";
      ASSERT_TRUE(decodes || rows == limits_.logit_rows_max) << "streams wait without need";
    }
    CheckFairness(step, running);
    const auto ended = [](const SimSequence& s) { return s.view.prefill_tokens == 0 && s.decode_left <= 0; };
    for (const SimSequence& s : *running) {
      *kv_free += ended(s) ? s.kv : 0;
    }
    running->erase(std::remove_if(running->begin(), running->end(), ended), running->end());
  }

  // Streams and the oldest prompt are served at least once in as many steps as there are slots: even a single row or
  // token per step goes round.
  void CheckFairness(uint64_t step, std::vector<SimSequence>* running) {
    bool first_prompt = true;
    for (SimSequence& s : *running) {
      const bool is_prompt = s.view.prefill_tokens > 0;
      if (is_prompt && !first_prompt) {
        continue;  // the oldest may hold it up; its turn comes
      }
      if (is_prompt && s.oldest_since == 0) {
        s.oldest_since = step;
      }
      first_prompt = first_prompt && !is_prompt;
      ASSERT_LE(step - std::max(s.view.served_step, s.oldest_since), static_cast<uint64_t>(slots_))
          << (is_prompt ? "the oldest prompt starves" : "a stream starves");
    }
  }

  SchedulerLimits limits_;
  int preemptions_ = 0;
  int slots_ = 0;
  int budget_ = 0;
  int64_t kv_total_ = 0;
  int64_t work_ = 0;
  std::vector<SimRequest> requests_;
};

TEST(SchedulerTest, HundredThousandRandomWorkloadsEndWithinTheLimitsAndStarveNobody) {
  std::mt19937 random(20);
  int64_t preemptions = 0;
  for (int i = 0; i < 100000; ++i) {
    Simulator simulator(random);
    simulator.Run();
    preemptions += simulator.preemptions();
    if (HasFatalFailure() || HasNonfatalFailure()) {
      FAIL() << "workload " << i;
    }
  }
  EXPECT_GT(preemptions, 10000) << "the workloads should exercise them";
}

}  // namespace
}  // namespace embergate::engine
