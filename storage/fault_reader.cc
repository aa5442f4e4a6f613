#include "storage/fault_reader.h"

#include <errno.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "storage/base/clock.h"

namespace embergate::storage {
namespace {

class FaultReader final : public BlockReader {
 public:
  FaultReader(std::unique_ptr<BlockReader> inner, uint32_t queue_depth, const FaultOptions& options)
      : inner_(std::move(inner)), options_(options), random_(options.seed), reads_(queue_depth) {
    free_.reserve(queue_depth);
    for (uint32_t i = 0; i < queue_depth; ++i) {
      free_.push_back(queue_depth - 1 - i);
    }
    due_.reserve(queue_depth);
    scratch_.resize(queue_depth);
  }

  absl::string_view name() const override { return inner_->name(); }
  const std::string& shortcomings() const override { return inner_->shortcomings(); }

  void Queue(absl::Span<const BlockRead> reads) override {
    for (const BlockRead& read : reads) {
      const uint32_t slot = free_.back();
      free_.pop_back();
      Held& held = reads_[slot];
      held = Held();
      held.read = read;
      held.fault = Draw(read);
      switch (held.fault) {
        case Fault::kIoError:
          Finish(slot, -EIO);
          break;
        case Fault::kInterrupted:
          Finish(slot, -EINTR);
          break;
        case Fault::kTryAgain:
          Finish(slot, -EAGAIN);
          break;
        case Fault::kRefused:
          Finish(slot, -EINVAL);
          break;
        case Fault::kEndOfFile:
          Finish(slot, 0);
          break;
        default: {
          BlockRead forwarded = read;
          forwarded.tag = slot;
          if (held.fault == Fault::kShort) {
            forwarded.bytes = static_cast<uint32_t>(1 + random_() % std::max(1u, read.bytes / 512 - 1)) * 512;
            forwarded.bytes = std::min(forwarded.bytes, read.bytes);
          }
          inner_->Queue(absl::MakeConstSpan(&forwarded, 1));
        }
      }
    }
  }

  absl::Status broken() const override { return inner_->broken(); }

  absl::Status Flush() override {
    if (flushes_++ >= options_.flushes_max) {
      return absl::UnavailableError("the reader broke down (injected)");
    }
    return inner_->Flush();
  }

  size_t Reap(absl::Span<BlockCompletion> out, size_t min_count, uint64_t timeout_ns) override {
    const size_t wanted = std::min(min_count, out.size());
    const uint64_t deadline_ns = MonotonicNs() + timeout_ns;
    uint64_t wait_ns = 0;
    size_t count = 0;
    while (true) {
      const size_t reaped = inner_->Reap(absl::MakeSpan(scratch_), wait_ns > 0 ? 1 : 0, wait_ns);
      for (size_t i = 0; i < reaped; ++i) {
        const uint32_t slot = static_cast<uint32_t>(scratch_[i].tag);
        if (reads_[slot].fault == Fault::kTorn && scratch_[i].result > 0) {
          Tear(reads_[slot].read, static_cast<uint32_t>(scratch_[i].result));
        }
        Finish(slot, scratch_[i].result);
      }
      const uint64_t now_ns = MonotonicNs();
      uint64_t next_ns = deadline_ns;
      count += TakeDue(out.subspan(count), now_ns, &next_ns);
      if (count >= wanted || now_ns >= deadline_ns || timeout_ns == 0) {
        return count;
      }
      wait_ns = std::max<uint64_t>(1, std::min(next_ns, deadline_ns) - now_ns);
    }
  }

 private:
  enum class Fault {
    kNone,
    kIoError,
    kInterrupted,
    kTryAgain,
    kRefused,
    kEndOfFile,
    kShort,
    kTorn,
    kLate,
    kLost,
  };
  struct Held {
    BlockRead read;
    Fault fault = Fault::kNone;
    int32_t result = 0;
    uint64_t due_ns = 0;
  };

  Fault Draw(const BlockRead& read) {
    if (read.file_offset < options_.bad_end && read.file_offset + read.bytes > options_.bad_begin) {
      return Fault::kIoError;
    }
    if (options_.refuse_all && refused_ < options_.refusals) {
      ++refused_;
      return Fault::kRefused;
    }
    double draw = std::uniform_real_distribution<double>(0, 1)(random_);
    if (faults_ >= options_.faults_max) {
      return Fault::kNone;
    }
    const std::pair<double, Fault> chances[] = {
        {options_.io_error, Fault::kIoError},
        {options_.interrupted, Fault::kInterrupted},
        {options_.try_again, Fault::kTryAgain},
        {options_.short_read, Fault::kShort},
        {options_.end_of_file, Fault::kEndOfFile},
        {options_.torn, Fault::kTorn},
        {options_.late, Fault::kLate},
        {options_.lost, Fault::kLost},
    };
    for (const auto& [chance, fault] : chances) {
      if (draw < chance) {
        if (fault == Fault::kLost && lost_++ >= options_.lost_max) {
          return Fault::kNone;
        }
        ++faults_;
        return fault;
      }
      draw -= chance;
    }
    return Fault::kNone;
  }

  void Tear(const BlockRead& read, uint32_t bytes) {
    const uint32_t length = static_cast<uint32_t>(1 + random_() % std::min(512u, bytes));
    const uint32_t start = static_cast<uint32_t>(random_() % (bytes - length + 1));
    for (uint32_t i = 0; i < length; ++i) {
      read.data[start + i] = static_cast<uint8_t>(read.data[start + i] + 1 + random_() % 255);
    }
  }

  void Finish(uint32_t slot, int32_t result) {
    Held& held = reads_[slot];
    held.result = result;
    if (held.fault == Fault::kLost) {
      // Its slot stays taken, as its buffer does.
      return;
    }
    uint64_t delay_ns = options_.delay_ns_min;
    if (options_.delay_ns_max > options_.delay_ns_min) {
      delay_ns += random_() % (options_.delay_ns_max - options_.delay_ns_min + 1);
    }
    held.due_ns = MonotonicNs() + delay_ns + (held.fault == Fault::kLate ? options_.late_ns : 0);
    due_.push_back(slot);
  }

  size_t TakeDue(absl::Span<BlockCompletion> out, uint64_t now_ns, uint64_t* next_ns) {
    if (options_.reorder) {
      std::shuffle(due_.begin(), due_.end(), random_);
    }
    size_t count = 0;
    size_t kept = 0;
    for (uint32_t slot : due_) {
      const Held& held = reads_[slot];
      if (held.due_ns <= now_ns && count < out.size()) {
        out[count].tag = held.read.tag;
        out[count].result = held.result;
        out[count].done_ns = held.due_ns;
        ++count;
        free_.push_back(slot);
      } else {
        *next_ns = std::min(*next_ns, held.due_ns);
        due_[kept++] = slot;
      }
    }
    due_.resize(kept);
    return count;
  }

  const std::unique_ptr<BlockReader> inner_;
  const FaultOptions options_;
  std::mt19937_64 random_;
  std::vector<Held> reads_;     // by slot; the inner reader's tag is the slot
  std::vector<uint32_t> free_;  // slots
  std::vector<uint32_t> due_;   // slots of finished reads that wait for their time
  std::vector<BlockCompletion> scratch_;
  uint64_t flushes_ = 0;
  uint64_t refused_ = 0;
  uint64_t faults_ = 0;
  uint64_t lost_ = 0;
};

}  // namespace

std::unique_ptr<BlockReader> CreateFaultReader(std::unique_ptr<BlockReader> inner, uint32_t queue_depth,
                                               const FaultOptions& options) {
  return std::make_unique<FaultReader>(std::move(inner), queue_depth, options);
}

}  // namespace embergate::storage
