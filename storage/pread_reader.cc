#include "storage/pread_reader.h"

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "storage/base/clock.h"

namespace embergate::storage {
namespace {

class PreadReader final : public BlockReader {
 public:
  PreadReader(absl::Span<const int> files, uint32_t queue_depth)
      : files_(files.begin(), files.end()), todo_(queue_depth), done_(queue_depth) {
    staged_.reserve(queue_depth);
  }

  ~PreadReader() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  absl::Status Start(uint32_t threads) {
    try {
      for (uint32_t i = 0; i < threads; ++i) {
        threads_.emplace_back([this] { Run(); });
      }
    } catch (const std::system_error& error) {
      if (threads_.empty()) {
        return absl::ResourceExhaustedError(absl::StrCat("pread reader: cannot start a thread: ", error.what()));
      }
      shortcomings_ = absl::StrCat("only ", threads_.size(), " of ", threads, " reader threads: ", error.what());
    }
    return absl::OkStatus();
  }

  absl::string_view name() const override { return "pread"; }
  const std::string& shortcomings() const override { return shortcomings_; }

  void Queue(absl::Span<const BlockRead> reads) override {
    for (const BlockRead& read : reads) {
      if (staged_.size() == todo_.capacity()) {
        abort();  // more than queue_depth: the caller's bug, and writing on would corrupt its own queue
      }
      staged_.push_back(read);
    }
  }

  absl::Status Flush() override {
    if (staged_.empty()) {
      return absl::OkStatus();
    }
    const size_t count = staged_.size();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      for (const BlockRead& read : staged_) {
        todo_.Push(read);
      }
    }
    staged_.clear();
    if (count == 1) {
      work_.notify_one();
    } else {
      work_.notify_all();
    }
    return absl::OkStatus();
  }

  size_t Reap(absl::Span<BlockCompletion> out, size_t min_count, uint64_t timeout_ns) override {
    (void)Flush();
    std::unique_lock<std::mutex> lock(mutex_);
    const size_t wanted = std::min(min_count, out.size());
    if (timeout_ns > 0 && done_.size() < wanted) {
      wanted_ = wanted;
      completed_.wait_for(lock, std::chrono::nanoseconds(timeout_ns), [&] { return done_.size() >= wanted; });
      wanted_ = 0;
    }
    size_t count = 0;
    while (count < out.size() && done_.size() > 0) {
      out[count++] = done_.Pop();
    }
    return count;
  }

 private:
  // First in, first out, in a fixed array.
  template <typename T>
  class Ring {
   public:
    explicit Ring(size_t capacity) : items_(capacity) {}
    size_t capacity() const { return items_.size(); }
    size_t size() const { return size_; }
    void Push(const T& item) {
      if (size_ == items_.size()) {
        abort();  // see Queue
      }
      items_[(head_ + size_++) % items_.size()] = item;
    }
    T Pop() {
      T item = items_[head_];
      head_ = (head_ + 1) % items_.size();
      --size_;
      return item;
    }

   private:
    std::vector<T> items_;
    size_t head_ = 0;
    size_t size_ = 0;
  };

  void Run() {
    pthread_setname_np(pthread_self(), "embergate-read");
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      work_.wait(lock, [&] { return stopping_ || todo_.size() > 0; });
      if (stopping_) {
        return;
      }
      const BlockRead read = todo_.Pop();
      lock.unlock();
      ssize_t result =
          pread(files_[static_cast<size_t>(read.file)], read.data, read.bytes, static_cast<off_t>(read.file_offset));
      if (result < 0) {
        result = -errno;
      }
      BlockCompletion completion;
      completion.tag = read.tag;
      completion.result = static_cast<int32_t>(result);
      completion.done_ns = MonotonicNs();
      lock.lock();
      done_.Push(completion);
      if (wanted_ > 0 && done_.size() >= wanted_) {
        completed_.notify_one();
      }
    }
  }

  const std::vector<int> files_;
  std::string shortcomings_;
  std::vector<BlockRead> staged_;  // owner thread only

  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable completed_;
  Ring<BlockRead> todo_;        // guarded by mutex_
  Ring<BlockCompletion> done_;  // guarded by mutex_
  size_t wanted_ = 0;           // guarded by mutex_: completions that Reap waits for
  bool stopping_ = false;       // guarded by mutex_

  std::vector<std::thread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockReader>> CreatePreadReader(absl::Span<const int> files,
                                                               const PreadReaderOptions& options) {
  auto reader = std::make_unique<PreadReader>(files, options.queue_depth);
  absl::Status status = reader->Start(std::max(1u, std::min(options.queue_depth, options.threads_max)));
  if (!status.ok()) {
    return status;
  }
  return absl::StatusOr<std::unique_ptr<BlockReader>>(std::move(reader));
}

}  // namespace embergate::storage
