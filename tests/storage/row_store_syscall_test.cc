// No system call per row: counted by tracing a child, as strace does.
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <optional>

#include "gtest/gtest.h"
#include "tests/storage/row_store_fixture.h"
#include "tests/support/sanitized.h"

namespace embergate::storage {
namespace {

// System calls of `body` after `prepare`, both in a child; nullopt if it cannot be traced or fails (returns false).
std::optional<int> CountCalls(const std::function<bool()>& prepare, const std::function<bool()>& body) {
  const pid_t child = fork();
  if (child == 0) {
    const bool traced = ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) == 0;
    if (!traced || !prepare()) {
      _exit(1);
    }
    kill(getpid(), SIGSTOP);
    const bool good = body();
    kill(getpid(), SIGSTOP);
    _exit(good ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  if (!WIFSTOPPED(status)) {
    return std::nullopt;
  }
  ptrace(PTRACE_SETOPTIONS, child, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
  int stops = 0;  // two for each call
  while (ptrace(PTRACE_SYSCALL, child, nullptr, nullptr) == 0 && waitpid(child, &status, 0) == child &&
         WIFSTOPPED(status) && WSTOPSIG(status) == (SIGTRAP | 0x80)) {
    ++stops;
  }
  ptrace(PTRACE_CONT, child, nullptr, nullptr);
  waitpid(child, &status, 0);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    return std::nullopt;
  }
  return stops / 2 - 2;  // getpid and kill, which is seen going in, and the end of the first kill
}

class RowStoreSyscallTest : public RowStoreFixture {
 protected:
  // Reads `rows` as one submission; whether all came.
  bool Read(const std::vector<uint64_t>& rows) {
    const auto ticket = store_->Submit(0, rows);
    if (!ticket.ok() || !store_->Wait(*ticket).ok()) {
      return false;
    }
    store_->Release(*ticket);
    return true;
  }
};

TEST_F(RowStoreSyscallTest, AHundredRowsTakeFarFewerCallsAndCachedOnesNone) {
  if (test::kSanitized) {
    GTEST_SKIP() << "a sanitizer calls the system itself";
  }
  options_.reader = ReaderKind::kUring;
  options_.cache_bytes = 4 << 20;
  if (!RowStore::Create({spec_}, options_).ok()) {
    GTEST_SKIP() << "no io_uring";
  }
  std::vector<uint64_t> rows;
  for (uint64_t row = 0; row < 200; ++row) {
    rows.push_back(2 * row);  // none beside another
  }
  const auto prepare = [&] {
    auto made = RowStore::Create({spec_}, options_);
    if (!made.ok()) {
      return false;
    }
    store_ = std::move(made).value();
    return Read({1});  // enables the ring
  };
  options_.merge_gap_bytes = 0;
  const std::optional<int> cold = CountCalls(prepare, [&] { return Read(rows); });
  if (!cold.has_value()) {
    GTEST_SKIP() << "processes cannot be traced here";
  }
  const std::optional<int> warm = CountCalls([&] { return prepare() && Read(rows); }, [&] { return Read(rows); });
  ASSERT_TRUE(warm.has_value());
  std::fprintf(stderr, "[ CALLS    ] %d for 200 rows from the device, %d for 200 cached ones\n", *cold, *warm);
  EXPECT_LE(*cold, 100);
  EXPECT_GE(*cold, 2) << "nothing was counted";
  EXPECT_LE(*warm, 0);
}

}  // namespace
}  // namespace embergate::storage
