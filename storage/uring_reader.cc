#include "storage/uring_reader.h"

#include <errno.h>
#include <liburing.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "storage/base/clock.h"

// Absent from the headers of older liburing releases; the values are the kernel's.
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif

namespace embergate::storage {
namespace {

// By system call: liburing 2.3 declares these two but its shared library does not export them. 0 or errno.
int RegisterRestrictions(int ring_fd, io_uring_restriction* rules, unsigned count) {
  return syscall(__NR_io_uring_register, ring_fd, IORING_REGISTER_RESTRICTIONS, rules, count) < 0 ? errno : 0;
}
int EnableRing(int ring_fd) {
  return syscall(__NR_io_uring_register, ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0) < 0 ? errno : 0;
}
// Asks a ring that is not enabled yet for nothing. The kernel says EBADFD; a filter in front of it says something else.
int TryEnter(int ring_fd) { return syscall(__NR_io_uring_enter, ring_fd, 0, 0, 0, nullptr, 0) < 0 ? errno : 0; }

bool IsRefusal(int error) { return error == EPERM || error == EACCES || error == ENOSYS; }

// What an administrator can do about a refused io_uring_setup.
std::string ExplainSetupError(int error) {
  switch (error) {
    case ENOSYS:
      return "this kernel has no io_uring, or a seccomp profile hides it (ENOSYS): allow io_uring_setup, "
             "io_uring_enter and io_uring_register in the container's profile";
    case EPERM:
    case EACCES: {
      std::ifstream sysctl("/proc/sys/kernel/io_uring_disabled");
      int disabled = 0;
      if (sysctl >> disabled && disabled != 0) {
        return absl::StrCat("sysctl kernel.io_uring_disabled is ", disabled, ": set it to 0",
                            disabled == 1 ? ", or run in the group of kernel.io_uring_group" : "");
      }
      return absl::StrCat("refused (", strerror(error),
                          "), most likely by a container's seccomp profile: allow io_uring_setup, io_uring_enter and "
                          "io_uring_register in it");
    }
    case ENOMEM:
      return "no memory for the ring (ENOMEM): raise RLIMIT_MEMLOCK (ulimit -l) or the memory limit";
    case EMFILE:
    case ENFILE:
      return absl::StrCat("no file descriptor for the ring (", strerror(error), "): raise ulimit -n");
    default:
      return absl::StrCat("io_uring_setup failed: ", strerror(error));
  }
}

class UringReader final : public BlockReader {
 public:
  UringReader() = default;

  ~UringReader() override {
    if (ring_made_) {
      io_uring_queue_exit(&ring_);
    }
  }

  absl::Status Init(absl::Span<const int> files, absl::Span<uint8_t> landing, const UringReaderOptions& options) {
    queue_depth_ = options.queue_depth;
    int error = SetUp(options);
    if (error != 0) {
      return absl::UnavailableError(ExplainSetupError(error));
    }
    ring_made_ = true;
    if ((ring_.features & IORING_FEAT_EXT_ARG) == 0) {
      return absl::UnavailableError("this kernel's io_uring cannot wait with a timeout (it needs Linux 5.11 or later)");
    }
    if (error = TryEnter(ring_.ring_fd); IsRefusal(error)) {
      return absl::UnavailableError(ExplainSetupError(error));
    }
    error = -io_uring_register_files(&ring_, files.data(), static_cast<unsigned>(files.size()));
    if (IsRefusal(error)) {
      return absl::UnavailableError(ExplainSetupError(error));
    }
    if (error != 0) {
      return absl::UnavailableError(absl::StrCat("registering files with io_uring failed: ", strerror(error),
                                                 error == EMFILE ? " (raise ulimit -n)" : ""));
    }
    RegisterBuffers(landing, options);
    Restrict();
    return absl::OkStatus();
  }

  absl::string_view name() const override { return "io_uring"; }
  const std::string& shortcomings() const override { return shortcomings_; }

  void Queue(absl::Span<const BlockRead> reads) override {
    for (const BlockRead& read : reads) {
      io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
      if (sqe == nullptr) {
        abort();  // more than queue_depth reads outstanding: the caller's bug
      }
      if (buffers_registered_) {
        io_uring_prep_read_fixed(sqe, read.file, read.data, read.bytes, read.file_offset, 0);
      } else {
        io_uring_prep_read(sqe, read.file, read.data, read.bytes, read.file_offset);
      }
      sqe->flags |= IOSQE_FIXED_FILE;
      sqe->user_data = read.tag;
      ++staged_;
    }
  }

  absl::Status Flush() override {
    // EINTR, EAGAIN and EBUSY leave the entries staged: the next Flush or Reap takes them.
    if (EnableOnce() && staged_ > 0) {
      Account(io_uring_submit(&ring_));
    }
    return broken_;
  }
  absl::Status broken() const override { return broken_; }

  size_t Reap(absl::Span<BlockCompletion> out, size_t min_count, uint64_t timeout_ns) override {
    if (!EnableOnce()) {
      return Take(out);
    }
    size_t count = Take(out);
    const uint64_t deadline_ns = timeout_ns == 0 ? 0 : MonotonicNs() + timeout_ns;
    const size_t wanted = std::min(min_count, out.size());
    while (true) {
      if (count < wanted && timeout_ns > 0) {
        const uint64_t now_ns = MonotonicNs();
        if (now_ns >= deadline_ns) {
          (void)Flush();
          return count;
        }
        const uint64_t left_ns = deadline_ns - now_ns;
        __kernel_timespec left = {};
        left.tv_sec = static_cast<int64_t>(left_ns / 1'000'000'000u);
        left.tv_nsec = static_cast<int64_t>(left_ns % 1'000'000'000u);
        io_uring_cqe* unused = nullptr;
        const int result =
            io_uring_submit_and_wait_timeout(&ring_, &unused, static_cast<unsigned>(wanted - count), &left, nullptr);
        AccountWait(result);
        count += Take(out.subspan(count));
        if (!broken_.ok()) {
          return count;
        }
        continue;
      }
      // Without waiting: hand over what is staged, and let deferred completions run.
      if (staged_ > 0 || (deferred_ && count == 0)) {
        Account(io_uring_submit_and_get_events(&ring_));
        count += Take(out.subspan(count));
      }
      return count;
    }
  }

 private:
  int SetUp(const UringReaderOptions& options) {
    if (options.fake_setup_errno != 0) {
      return options.fake_setup_errno;
    }
    const unsigned preferences[] = {
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_SUBMIT_ALL,
        0,
    };
    int error = EINVAL;
    for (unsigned flags : preferences) {
      if (options.submission_polling) {
        if ((flags & IORING_SETUP_DEFER_TASKRUN) != 0) {
          continue;  // the kernel does not combine the two
        }
        flags = (flags & ~static_cast<unsigned>(IORING_SETUP_COOP_TASKRUN)) | IORING_SETUP_SQPOLL;
      }
      io_uring_params params = {};
      // Twice the reads for completions: a completion that comes after its read was given up must still fit.
      params.flags = flags | IORING_SETUP_R_DISABLED | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
      params.cq_entries = 2 * queue_depth_;
      params.sq_thread_idle = 2;  // milliseconds
      error = -io_uring_queue_init_params(queue_depth_, &ring_, &params);
      if (error != EINVAL) {
        deferred_ = error == 0 && (flags & IORING_SETUP_DEFER_TASKRUN) != 0;
        return error;
      }
    }
    return error;
  }

  void RegisterBuffers(absl::Span<uint8_t> landing, const UringReaderOptions& options) {
    int error = options.fake_register_buffers_errno;
    if (error == 0) {
      iovec whole = {landing.data(), landing.size()};
      error = -io_uring_register_buffers(&ring_, &whole, 1);
    }
    buffers_registered_ = error == 0;
    if (error == ENOMEM) {
      shortcomings_ = absl::StrCat("buffers not registered: ", landing.size(),
                                   " bytes are more than RLIMIT_MEMLOCK allows (raise ulimit -l)");
    } else if (error != 0) {
      shortcomings_ = absl::StrCat("buffers not registered: ", strerror(error));
    }
  }

  // From the moment the ring is enabled it takes reads of registered files and nothing else, whatever else in this
  // process gets hold of it. Kernels before 5.10 cannot; those were refused above.
  void Restrict() {
    io_uring_restriction rules[4] = {};
    rules[0].opcode = IORING_RESTRICTION_SQE_OP;
    rules[0].sqe_op = IORING_OP_READ_FIXED;
    rules[1].opcode = IORING_RESTRICTION_SQE_OP;
    rules[1].sqe_op = IORING_OP_READ;
    rules[2].opcode = IORING_RESTRICTION_SQE_FLAGS_REQUIRED;
    rules[2].sqe_flags = IOSQE_FIXED_FILE;
    rules[3].opcode = IORING_RESTRICTION_REGISTER_OP;
    rules[3].register_op = IORING_REGISTER_ENABLE_RINGS;
    const int error = RegisterRestrictions(ring_.ring_fd, rules, 4);
    if (error != 0) {
      absl::StrAppend(&shortcomings_, shortcomings_.empty() ? "" : "; ", "ring not restricted: ", strerror(error));
    }
  }

  // Whether the ring is usable.
  bool EnableOnce() {
    if (!enabled_ && broken_.ok()) {
      const int error = EnableRing(ring_.ring_fd);
      if (error != 0) {
        broken_ = absl::UnavailableError(absl::StrCat("enabling the io_uring failed: ", strerror(error)));
      }
      enabled_ = error == 0;
    }
    return broken_.ok();
  }

  // `result` of a submission: entries taken, or -errno.
  void Account(int result) {
    if (result >= 0) {
      staged_ -= std::min<size_t>(staged_, static_cast<size_t>(result));
    } else if (result != -EINTR && result != -EAGAIN && result != -EBUSY && result != -ETIME) {
      broken_ = absl::UnavailableError(absl::StrCat("io_uring_enter failed: ", strerror(-result)));
    }
  }

  // As Account for a wait, whose result says nothing about the submission when it timed out: the ring itself knows.
  void AccountWait(int result) {
    Account(std::min(result, 0));
    staged_ = io_uring_sq_ready(&ring_);
  }

  size_t Take(absl::Span<BlockCompletion> out) {
    size_t count = 0;
    unsigned head;
    io_uring_cqe* cqe;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      if (count == out.size()) {
        break;
      }
      out[count].tag = cqe->user_data;
      out[count].result = cqe->res;
      out[count].done_ns = 0;
      ++count;
    }
    io_uring_cq_advance(&ring_, static_cast<unsigned>(count));
    return count;
  }

  io_uring ring_ = {};
  bool ring_made_ = false;
  bool deferred_ = false;
  bool buffers_registered_ = false;
  bool enabled_ = false;
  uint32_t queue_depth_ = 0;
  size_t staged_ = 0;
  absl::Status broken_;
  std::string shortcomings_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockReader>> CreateUringReader(absl::Span<const int> files, absl::Span<uint8_t> landing,
                                                               const UringReaderOptions& options) {
  auto reader = std::make_unique<UringReader>();
  absl::Status status = reader->Init(files, landing, options);
  if (!status.ok()) {
    return status;
  }
  return absl::StatusOr<std::unique_ptr<BlockReader>>(std::move(reader));
}

}  // namespace embergate::storage
