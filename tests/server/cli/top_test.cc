// The live view: what a page of metrics says, and what is shown of two.
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/cli/metrics_page.h"
#include "server/cli/top_view.h"

namespace embergate::server {
namespace {

using ::testing::HasSubstr;

constexpr char kBefore[] =
    "# HELP embergate_build_info Always 1\n"
    "# TYPE embergate_build_info gauge\n"
    "embergate_build_info{version=\"1.2\"} 1\n"
    "embergate_ready 1\n"
    "embergate_model_info{name=\"a \\\"small\\\" model\",architecture=\"gemma4\"} 1\n"
    "embergate_dram_bytes{part=\"weights\"} 3145728\n"
    "embergate_dram_bytes{part=\"KV cache\"} 1048576\n"
    "embergate_dram_budget_bytes 8388608\n"
    "embergate_generation_tokens_total 100\n"
    "embergate_rows_requested_total 10\n"
    "embergate_row_cache_hits_total 0\n"
    "embergate_row_cache_misses_total 0\n"
    "embergate_flash_read_bytes_total 0\n"
    "embergate_inter_token_latency_seconds_bucket{le=\"0.01\"} 5\n"
    "embergate_inter_token_latency_seconds_bucket{le=\"0.02\"} 5\n"
    "embergate_inter_token_latency_seconds_bucket{le=\"+Inf\"} 5\n";

std::string After() {
  std::string text = kBefore;
  const auto replace = [&](const std::string& from, const std::string& to) {
    text.replace(text.find(from), from.size(), to);
  };
  replace("tokens_total 100", "tokens_total 150");
  replace("hits_total 0", "hits_total 30");
  replace("misses_total 0", "misses_total 10");
  replace("read_bytes_total 0", "read_bytes_total 2097152");
  replace("le=\"0.01\"} 5", "le=\"0.01\"} 5");
  replace("le=\"0.02\"} 5", "le=\"0.02\"} 15");
  replace("le=\"+Inf\"} 5", "le=\"+Inf\"} 15");
  return text;
}

std::string Shown(const MetricsPage& before, const MetricsPage& now, int width, int height = 100) {
  TopFrame frame;
  frame.address = "board:9464";
  frame.seconds = 2;
  frame.before = &before;
  frame.now = &now;
  frame.generated = {0, 10, 25};
  std::string text;
  const std::vector<std::string> lines = TopLines(frame, width, height);
  EXPECT_LE(lines.size(), static_cast<size_t>(height));
  for (const std::string& line : lines) {
    EXPECT_LE(Columns(line), static_cast<size_t>(width)) << line;
    text += line + "\n";
  }
  return text;
}

TEST(MetricsPageTest, ReadsNamesLabelsAndValues) {
  const MetricsPage page = MetricsPage::Parse(kBefore);
  EXPECT_EQ(page.Value("embergate_generation_tokens_total"), 100);
  EXPECT_EQ(page.Sum("embergate_dram_bytes"), 4 << 20);
  EXPECT_EQ(page.Label("embergate_model_info", "name"), "a \"small\" model");
  EXPECT_EQ(page.Label("embergate_model_info", "architecture"), "gemma4");
  const auto parts = page.By("embergate_dram_bytes", "part");
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[1].first, "KV cache");
  EXPECT_FALSE(page.Has("embergate_draining"));
  EXPECT_EQ(page.Value("embergate_draining"), 0);
}

TEST(MetricsPageTest, PassesOverWhatIsNoSample) {
  const MetricsPage page =
      MetricsPage::Parse("word\n{a=\"b\"} 1\nx{a=\"b 1\ny{a=b} 1\nz nothing\n\ngood{a=\"\\n\\\\\"} 2.5e3 1700000000\n");
  EXPECT_EQ(page.Value("good"), 2500);
  EXPECT_EQ(page.Label("good", "a"), "\n\\");
  EXPECT_FALSE(page.Has("x"));
  EXPECT_FALSE(page.Has("z"));
}

TEST(MetricsPageTest, QuantilesAreOfWhatCameBetween) {
  const MetricsPage before = MetricsPage::Parse(kBefore);
  const MetricsPage now = MetricsPage::Parse(After());
  const std::string name = "embergate_inter_token_latency_seconds";
  EXPECT_NEAR(QuantileBetween(before, now, name, 0.5), 0.015, 1e-9);  // ten, all between 10 and 20 ms
  EXPECT_NEAR(QuantileBetween(before, now, name, 1.0), 0.020, 1e-9);
  EXPECT_EQ(QuantileBetween(now, now, name, 0.5), -1) << "nothing came";
  EXPECT_EQ(QuantileBetween(before, now, "no_such_histogram", 0.5), -1);
}

TEST(TopViewTest, ShowsRatesOfTheInterval) {
  const MetricsPage before = MetricsPage::Parse(kBefore);
  const MetricsPage now = MetricsPage::Parse(After());
  const std::string text = Shown(before, now, 100);
  EXPECT_THAT(text, HasSubstr("embergate 1.2 at board:9464: ready, a \"small\" model"));
  EXPECT_THAT(text, HasSubstr("25.0/s generated"));
  EXPECT_THAT(text, HasSubstr("4.00 MiB of a budget of 8.00 MiB"));
  EXPECT_THAT(text, HasSubstr("1.00 MiB/s"));
  EXPECT_THAT(text, HasSubstr("75.0 % hits of 20 rows/s"));
  EXPECT_THAT(text, HasSubstr("15 ms median"));
  EXPECT_THAT(text, HasSubstr("▁▄█"));
}

TEST(TopViewTest, ServerStartedAnewShowsNoNegativeRates) {
  const MetricsPage before = MetricsPage::Parse(After());
  const MetricsPage now = MetricsPage::Parse(kBefore);
  const std::string text = Shown(before, now, 100);
  EXPECT_THAT(text, HasSubstr("0.0/s generated"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("-1")));
}

TEST(TopViewTest, FitsNarrowTerminalsAndShowsLoading) {
  Shown(MetricsPage::Parse(kBefore), MetricsPage::Parse(After()), 40);
  const MetricsPage loading = MetricsPage::Parse("embergate_ready 0\nembergate_load_progress_ratio 0.5\n");
  EXPECT_THAT(Shown(loading, loading, 80), HasSubstr("loading"));
}

TEST(TopViewTest, FitsLowTerminalsWithTheLargestPartsOfDram) {
  std::string page = kBefore;
  for (int i = 1; i <= 12; ++i) {
    absl::StrAppend(&page, "embergate_dram_bytes{part=\"part ", i, "\"} ", i * 1024, "\n");
  }
  const MetricsPage now = MetricsPage::Parse(page);
  EXPECT_THAT(Shown(now, now, 80, 100), HasSubstr("  part 1 "));
  const std::string text = Shown(now, now, 80, 20);
  EXPECT_THAT(text, HasSubstr("  weights "));
  EXPECT_THAT(text, HasSubstr("  part 12 "));
  EXPECT_THAT(text, HasSubstr("  8 smaller parts            36.0 KiB"));
  EXPECT_THAT(text, HasSubstr("\nprocessor"));
}

TEST(FetchMetricsTest, SaysWhyThereIsNone) {
  EXPECT_EQ(FetchMetrics("127.0.0.1:1", absl::Seconds(5)).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(FetchMetrics("nowhere", absl::Seconds(5)).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace embergate::server
