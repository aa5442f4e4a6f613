// The progress bar's text, and what it writes to a terminal and to a file.
#include "server/cli/progress.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/cli/human.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr uint64_t kGiB = uint64_t{1} << 30;

TEST(HumanTest, BytesHaveThreeDigits) {
  EXPECT_EQ(HumanBytes(0), "0 B");
  EXPECT_EQ(HumanBytes(1023), "1023 B");
  EXPECT_EQ(HumanBytes(1024), "1.00 KiB");
  EXPECT_EQ(HumanBytes(215 << 20), "215 MiB");
  EXPECT_EQ(HumanBytes(3804812128), "3.54 GiB");
  EXPECT_EQ(HumanBytes((1 << 20) - 1), "1.00 MiB");
  EXPECT_EQ(HumanBytes(~uint64_t{0}), "16.0 EiB");
}

TEST(HumanTest, CountsDurationsAndDigits) {
  EXPECT_EQ(HumanCount(999), "999");
  EXPECT_EQ(HumanCount(4628569379), "4.63 B");
  EXPECT_EQ(HumanDuration(0.44), "0.4 s");
  EXPECT_EQ(HumanDuration(59.4), "59 s");
  EXPECT_EQ(HumanDuration(125), "2:05");
  EXPECT_EQ(HumanDuration(3723), "1:02:03");
  EXPECT_EQ(HumanDuration(-1), "?");
  EXPECT_EQ(GroupedDigits(7), "7");
  EXPECT_EQ(GroupedDigits(123456), "123 456");
  EXPECT_EQ(GroupedDigits(3804812128), "3 804 812 128");
}

TEST(ProgressBarTest, LineShowsShareRateAndTimeLeft) {
  const std::string line =
      ProgressBar::Line("writing", ProgressBar::Unit::kBytes, kGiB, 4 * kGiB, 2, 0.5 * kGiB, true, 100);
  EXPECT_EQ(line, "writing  [########........................]  25 %  1.00 GiB of 4.00 GiB  512 MiB/s  6.0 s left");
}

TEST(ProgressBarTest, FinishedLineShowsTheTimeTaken) {
  EXPECT_THAT(ProgressBar::Line("writing", ProgressBar::Unit::kBytes, kGiB, kGiB, 65, kGiB / 65.0, false, 100),
              HasSubstr("100 %  1.00 GiB of 1.00 GiB  15.8 MiB/s  in 1:05"));
}

TEST(ProgressBarTest, NarrowTerminalLosesTheBarThenTheTail) {
  const auto line = [](int width) {
    return ProgressBar::Line("writing", ProgressBar::Unit::kBytes, kGiB, 4 * kGiB, 2, 0.5 * kGiB, true, width);
  };
  EXPECT_THAT(line(70), Not(HasSubstr("[")));
  for (int width = 1; width < 120; ++width) {
    EXPECT_LE(line(width).size(), static_cast<size_t>(width));
  }
}

TEST(ProgressBarTest, UnknownTotalStillShowsTheAmount) {
  EXPECT_EQ(ProgressBar::Line("tokens", ProgressBar::Unit::kItems, 1500, 0, 3, 500, true, 80), "tokens  1.50 K  500/s");
}

TEST(ProgressBarTest, QuickWorkWritesNothingToALog) {
  std::FILE* const log = std::tmpfile();
  ASSERT_NE(log, nullptr);
  {
    ProgressBar bar("writing", ProgressBar::Unit::kBytes, log);
    for (uint64_t i = 0; i <= 100; ++i) {
      bar.Update(i, 100);
    }
    bar.Finish();
  }
  EXPECT_EQ(std::ftell(log), 0);
  std::fclose(log);
}

TEST(ProgressBarTest, TerminalGetsOneLineThatIsRedrawn) {
  const int master = ::posix_openpt(O_RDWR | O_NOCTTY);
  ASSERT_GE(master, 0);
  ASSERT_EQ(::grantpt(master), 0);
  ASSERT_EQ(::unlockpt(master), 0);
  const int slave = ::open(::ptsname(master), O_RDWR | O_NOCTTY);
  ASSERT_GE(slave, 0);
  std::FILE* const terminal = ::fdopen(slave, "w");
  {
    ProgressBar bar("writing", ProgressBar::Unit::kBytes, terminal);
    bar.Update(1, 100);
    std::this_thread::sleep_for(std::chrono::milliseconds(110));
    bar.Update(50, 100);
    bar.Update(51, 100);  // too soon to be drawn
    bar.Update(100, 100);
    bar.Finish();
  }
  std::string shown;
  pollfd readable = {master, POLLIN, 0};
  while (shown.find('\n') == std::string::npos && ::poll(&readable, 1, 10'000) == 1) {  // the kernel passes it on later
    char text[4096];
    const ssize_t got = ::read(master, text, sizeof(text));
    ASSERT_GT(got, 0);
    shown.append(text, static_cast<size_t>(got));
  }
  EXPECT_THAT(shown, HasSubstr("\rwriting  ["));
  EXPECT_THAT(shown, HasSubstr(" 50 %"));
  EXPECT_THAT(shown, Not(HasSubstr(" 51 %")));
  EXPECT_THAT(shown, HasSubstr("100 %"));
  EXPECT_EQ(std::count(shown.begin(), shown.end(), '\n'), 1);
  std::fclose(terminal);
  ::close(master);
}

}  // namespace
}  // namespace embergate::server
