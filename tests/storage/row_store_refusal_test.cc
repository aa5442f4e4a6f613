// A container or kernel that refuses io_uring, for real: a seccomp filter in a child process.
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <functional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

using testing::HasSubstr;

// From now on one of this process's system calls answers `error`.
bool RefuseUring(int error, uint32_t call = SYS_io_uring_setup) {
  sock_filter program[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  sock_fprog filter = {4, program};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0;
}

class RowStoreRefusalTest : public RowStoreFixture {
 protected:
  // Runs `body` in a child and returns what it returns (77: could not be set up).
  int InChild(const std::function<int()>& body) {
    const pid_t child = fork();
    if (child == 0) {
      _exit(body());
    }
    int status = 0;
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
  }
  // 0 if all rows came through `backend` and its reason contains `reason`.
  int ReadThrough(const std::string& backend, const std::string& reason) {
    auto store = RowStore::Create({spec_}, options_);
    if (!store.ok()) {
      return 1;
    }
    const std::vector<uint64_t> rows = RandomRows(200, kRows, 1);
    auto ticket = (*store)->Submit(0, rows);
    if (!ticket.ok() || !(*store)->Wait(*ticket).ok()) {
      return 2;
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      const absl::Span<const uint8_t> truth = TrueRow(data_, spec_, rows[i]);
      const absl::Span<const uint8_t> row = (*store)->Row(*ticket, i);
      if (!std::equal(truth.begin(), truth.end(), row.begin(), row.end())) {
        return 3;
      }
    }
    const RowStoreStats stats = (*store)->Snapshot();
    if (stats.backend != backend) {
      return 4;
    }
    return stats.backend_reason.find(reason) != std::string::npos ? 0 : 5;
  }
};

TEST_F(RowStoreRefusalTest, ASeccompFilterMeansPreadWithTheReason) {
  for (int error : {EPERM, ENOSYS, EACCES}) {
    const int result = InChild([&] { return RefuseUring(error) ? ReadThrough("pread", "seccomp") : 77; });
    if (result == 77) {
      GTEST_SKIP() << "no seccomp here";
    }
    EXPECT_EQ(result, 0) << strerror(error);
  }
}

// A profile that was given one of the three calls and not the others.
TEST_F(RowStoreRefusalTest, AFilterOfAnyOfItsCallsMeansPreadWithTheReason) {
  for (const uint32_t call : {SYS_io_uring_enter, SYS_io_uring_register}) {
    for (const int error : {EPERM, ENOSYS}) {
      const int result = InChild([&] { return RefuseUring(error, call) ? ReadThrough("pread", "seccomp") : 77; });
      if (result == 77) {
        GTEST_SKIP() << "no seccomp here";
      }
      EXPECT_EQ(result, 0) << call << " " << strerror(error);
    }
  }
}

// A ring that stops working altogether: whoever waits learns it at once, and so does everybody after.
TEST_F(RowStoreRefusalTest, ARingThatBreaksDownEndsEveryWait) {
  options_.reader = ReaderKind::kUring;
  options_.cache_bytes = 0;
  options_.read_timeout_ms = 60'000;
  if (!RowStore::Create({spec_}, options_).ok()) {
    GTEST_SKIP() << "no io_uring";
  }
  const int result = InChild([&] {
    auto store = RowStore::Create({spec_}, options_);
    const std::vector<uint64_t> rows = RandomRows(100, kRows, 1);
    auto good = (*store)->Submit(0, rows);
    if (!good.ok() || !(*store)->Wait(*good).ok()) {
      return 1;
    }
    (*store)->Release(*good);
    auto caught = (*store)->Submit(0, rows);  // more than are sent at once
    if (!RefuseUring(EOWNERDEAD, SYS_io_uring_enter)) {
      return 77;
    }
    alarm(20);
    const absl::Status status = (*store)->Wait(*caught);
    if (!absl::IsUnavailable(status) || status.message().find("restart") == absl::string_view::npos) {
      return 2;
    }
    const uint64_t failed = (*store)->Snapshot().rows_failed;
    if (!absl::IsUnavailable((*store)->Submit(0, rows).status())) {
      return 3;
    }
    return (*store)->Snapshot().rows_failed == failed + 100 && (*store)->Snapshot().in_flight == 0 ? 0 : 4;
  });
  if (result == 77) {
    GTEST_SKIP() << "no seccomp here";
  }
  EXPECT_EQ(result, 0);
}

TEST_F(RowStoreRefusalTest, UringByNameFailsInstead) {
  options_.reader = ReaderKind::kUring;
  for (int error : {ENOSYS, EPERM, ENOMEM, EMFILE}) {
    options_.test_hooks.uring_setup_errno = error;
    EXPECT_EQ(RowStore::Create({spec_}, options_).status().code(), absl::StatusCode::kUnavailable);
  }
}

TEST_F(RowStoreRefusalTest, EachRefusalSaysWhatToDo) {
  const auto reason = [&](int error) {
    options_.test_hooks.uring_setup_errno = error;
    Open();
    EXPECT_EQ(store_->Snapshot().backend, "pread");
    ReadAndCompare(RandomRows(50, kRows, 2));
    return store_->Snapshot().backend_reason;
  };
  EXPECT_THAT(reason(ENOSYS), HasSubstr("seccomp"));
  EXPECT_THAT(reason(EPERM), testing::AnyOf(HasSubstr("seccomp"), HasSubstr("io_uring_disabled")));
  EXPECT_THAT(reason(ENOMEM), HasSubstr("RLIMIT_MEMLOCK"));
  EXPECT_THAT(reason(EMFILE), HasSubstr("ulimit -n"));
  EXPECT_THAT(reason(EINVAL), HasSubstr("Invalid argument"));
}

TEST_F(RowStoreRefusalTest, WithoutRegisteredBuffersTheRingStillWorks) {
  options_.test_hooks.uring_register_buffers_errno = ENOMEM;
  options_.reader = ReaderKind::kUring;
  auto store = RowStore::Create({spec_}, options_);
  if (!store.ok()) {
    GTEST_SKIP() << store.status();
  }
  EXPECT_EQ(ReadThrough("io_uring", "RLIMIT_MEMLOCK"), 0);
}

// A user without CAP_IPC_LOCK, and a limit that the ring fits in but the landing buffers do not.
TEST_F(RowStoreRefusalTest, ALowMemlockLimitIsReportedAndSurvived) {
  options_.reader = ReaderKind::kUring;
  if (geteuid() != 0 || !RowStore::Create({spec_}, options_).ok()) {
    GTEST_SKIP() << "needs root, to become somebody else, and io_uring";
  }
  ASSERT_EQ(chmod(path_.c_str(), 0644), 0);
  ASSERT_EQ(chmod(path_.substr(0, path_.rfind('/')).c_str(), 0755), 0);
  const int result = InChild([&] {
    const rlimit little = {128 << 10, 128 << 10};
    if (setrlimit(RLIMIT_MEMLOCK, &little) != 0 || setgid(65534) != 0 || setuid(65534) != 0 ||
        access(path_.c_str(), R_OK) != 0) {
      return 77;
    }
    return ReadThrough("io_uring", "RLIMIT_MEMLOCK");
  });
  if (result == 77) {
    GTEST_SKIP() << "the scratch folder is closed to other users";
  }
  EXPECT_EQ(result, 0);
}

}  // namespace
}  // namespace embergate::storage
