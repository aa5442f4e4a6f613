// What `embergate top` shows, as lines of text made of two scrapes.
#ifndef EMBERGATE_SERVER_CLI_TOP_VIEW_H_
#define EMBERGATE_SERVER_CLI_TOP_VIEW_H_

#include <deque>
#include <string>
#include <vector>

#include "server/cli/metrics_page.h"

namespace embergate::server {

struct TopFrame {
  std::string address;
  double seconds = 1;  // between the two pages
  const MetricsPage* before = nullptr;
  const MetricsPage* now = nullptr;
  std::deque<double> generated;  // tokens a second of the frames so far, the newest last
};

// At most `height` lines of at most `width` columns; where the parts of DRAM are too many for that, the smallest ones
// are shown as one (and nothing else is left out: a screen of fewer than 15 lines is too small). Rates are between the
// two pages; a server that was started anew in between, whose counters are smaller, shows zeros.
std::vector<std::string> TopLines(const TopFrame& frame, int width, int height);

// Tokens generated a second.
double GenerationRate(const MetricsPage& before, const MetricsPage& now, double seconds);

// Columns that a UTF-8 text takes on a terminal, with each character taking one.
size_t Columns(const std::string& text);

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_CLI_TOP_VIEW_H_
