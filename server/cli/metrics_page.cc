#include "server/cli/metrics_page.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"

namespace embergate::server {
namespace {

constexpr size_t kPageBytesMax = 8u << 20;

// name="value",...} with \\, \" and \n escaped; false if it is cut short. Leaves what follows the brace.
bool ParseLabels(absl::string_view& rest, std::map<std::string, std::string>& labels) {
  while (!absl::ConsumePrefix(&rest, "}")) {
    const size_t equals = rest.find("=\"");
    if (equals == absl::string_view::npos) {
      return false;
    }
    std::string& value = labels[std::string(rest.substr(0, equals))];
    rest.remove_prefix(equals + 2);
    while (!rest.empty() && rest[0] != '"') {
      if (rest[0] == '\\' && rest.size() > 1) {
        value += rest[1] == 'n' ? '\n' : rest[1];
        rest.remove_prefix(2);
      } else {
        value += rest[0];
        rest.remove_prefix(1);
      }
    }
    if (!absl::ConsumePrefix(&rest, "\"")) {
      return false;
    }
    absl::ConsumePrefix(&rest, ",");
  }
  return true;
}

struct Closer {
  int fd;
  ~Closer() { close(fd); }
};

bool WaitFor(int fd, short events, absl::Time end) {
  pollfd entry{fd, events, 0};
  const int64_t left = absl::ToInt64Milliseconds(end - absl::Now());
  return left > 0 && poll(&entry, 1, static_cast<int>(std::min<int64_t>(left, 60000))) == 1;
}

// A connected socket.
absl::StatusOr<int> Connect(const std::string& address, absl::Time end) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("\"", address, "\" is no HOST:PORT"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 1 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int code = getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found); code != 0) {
    return absl::UnavailableError(absl::StrCat(address, ": ", gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  int error = 0;
  for (const addrinfo* at = found; at != nullptr; at = at->ai_next) {
    const int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol);
    if (fd < 0) {
      error = errno;
      continue;
    }
    if (connect(fd, at->ai_addr, at->ai_addrlen) == 0) {
      return fd;
    }
    error = errno;
    if (error == EINPROGRESS) {
      socklen_t size = sizeof(error);
      error = WaitFor(fd, POLLOUT, end) ? 0 : ETIMEDOUT;
      if (error == 0 && getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 && error == 0) {
        return fd;
      }
    }
    close(fd);
  }
  return absl::UnavailableError(absl::StrCat(address, ": ", std::strerror(error)));
}

}  // namespace

MetricsPage MetricsPage::Parse(absl::string_view text) {
  MetricsPage page;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripSuffix(line, "\r");
    if (line.empty() || line[0] == '#') {
      continue;
    }
    const size_t end = line.find_first_of("{ ");
    if (end == absl::string_view::npos) {
      continue;
    }
    Sample sample;
    const std::string name(line.substr(0, end));
    line.remove_prefix(end);
    if (absl::ConsumePrefix(&line, "{") && !ParseLabels(line, sample.labels)) {
      continue;
    }
    line = absl::StripAsciiWhitespace(line);
    line = line.substr(0, line.find(' '));  // a time stamp may follow
    if (absl::SimpleAtod(line, &sample.value)) {
      page.samples_[name].push_back(std::move(sample));
    }
  }
  return page;
}

double MetricsPage::Value(const std::string& name) const {
  const auto it = samples_.find(name);
  return it == samples_.end() ? 0 : it->second.front().value;
}

double MetricsPage::Sum(const std::string& name) const {
  double sum = 0;
  if (const auto it = samples_.find(name); it != samples_.end()) {
    for (const Sample& sample : it->second) {
      sum += sample.value;
    }
  }
  return sum;
}

std::vector<std::pair<std::string, double>> MetricsPage::By(const std::string& name, const std::string& label) const {
  std::vector<std::pair<std::string, double>> out;
  if (const auto it = samples_.find(name); it != samples_.end()) {
    for (const Sample& sample : it->second) {
      const auto value = sample.labels.find(label);
      out.emplace_back(value == sample.labels.end() ? "" : value->second, sample.value);
    }
  }
  return out;
}

std::string MetricsPage::Label(const std::string& name, const std::string& label) const {
  const auto all = By(name, label);
  if (all.empty()) {
    return "";
  }
  return all.front().first;
}

double QuantileBetween(const MetricsPage& before, const MetricsPage& now, const std::string& histogram, double q) {
  const auto old = before.By(histogram + "_bucket", "le");
  const auto buckets = now.By(histogram + "_bucket", "le");
  const auto count = [&](size_t i) { return buckets[i].second - (i < old.size() ? old[i].second : 0); };
  if (buckets.empty() || count(buckets.size() - 1) <= 0) {
    return -1;
  }
  const double rank = q * count(buckets.size() - 1);
  double lower = 0;
  for (size_t i = 0; i < buckets.size(); ++i) {
    double upper = 0;
    if (!absl::SimpleAtod(buckets[i].first, &upper) || upper == std::numeric_limits<double>::infinity()) {
      return lower;
    }
    if (count(i) >= rank) {
      const double below = i > 0 ? count(i - 1) : 0;
      const double inside = count(i) - below;
      return lower + (upper - lower) * (inside > 0 ? (rank - below) / inside : 1);
    }
    lower = upper;
  }
  return lower;
}

absl::StatusOr<std::string> FetchMetrics(const std::string& address, absl::Duration limit) {
  const absl::Time end = absl::Now() + limit;
  absl::StatusOr<int> fd = Connect(address, end);
  if (!fd.ok()) {
    return fd.status();
  }
  const Closer closer{*fd};
  const std::string request = absl::StrCat("GET /metrics HTTP/1.0\r\nHost: ", address, "\r\n\r\n");
  if (send(*fd, request.data(), request.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(request.size())) {
    return absl::UnavailableError(absl::StrCat(address, ": ", std::strerror(errno)));
  }
  std::string response;
  char buffer[1 << 14];
  while (true) {
    if (!WaitFor(*fd, POLLIN, end)) {
      return absl::DeadlineExceededError(absl::StrCat(address, " does not answer"));
    }
    const ssize_t count = recv(*fd, buffer, sizeof(buffer), 0);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
      continue;
    }
    if (count < 0) {
      return absl::UnavailableError(absl::StrCat(address, ": ", std::strerror(errno)));
    }
    if (count == 0) {
      break;
    }
    response.append(buffer, static_cast<size_t>(count));
    if (response.size() > kPageBytesMax) {
      return absl::UnavailableError(absl::StrCat(address, " sends more than a page of metrics"));
    }
  }
  const size_t body = response.find("\r\n\r\n");
  if (body == std::string::npos || !absl::StartsWith(response, "HTTP/1.") || response.substr(8, 4) != " 200") {
    return absl::UnavailableError(
        absl::StrCat(address, " serves no metrics: ", response.substr(0, response.find('\r'))));
  }
  return response.substr(body + 4);
}

}  // namespace embergate::server
