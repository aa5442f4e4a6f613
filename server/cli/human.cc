#include "server/cli/human.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace embergate::server {
namespace {

// `value` with three significant digits and the largest unit that leaves it at 1 or more.
std::string Scaled(uint64_t value, double step, const char* const* units, size_t unit_count) {
  double scaled = static_cast<double>(value);
  size_t unit = 0;
  while (unit + 1 < unit_count && scaled >= step - 0.5) {
    scaled /= step;
    ++unit;
  }
  const int decimals = unit == 0 || scaled >= 99.95 ? 0 : scaled >= 9.995 ? 1 : 2;
  const std::string number = absl::StrFormat("%.*f", decimals, scaled);
  return units[unit][0] == '\0' ? number : absl::StrCat(number, " ", units[unit]);
}

}  // namespace

std::string HumanBytes(uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  return Scaled(bytes, 1024, kUnits, std::size(kUnits));
}

std::string HumanCount(uint64_t count) {
  static constexpr const char* kUnits[] = {"", "K", "M", "B", "T"};
  return Scaled(count, 1000, kUnits, std::size(kUnits));
}

std::string HumanDuration(double seconds) {
  if (!(seconds >= 0)) {
    return "?";
  }
  if (seconds < 9.95) {
    return absl::StrFormat("%.1f s", seconds);
  }
  const auto whole = static_cast<int64_t>(std::min(std::round(seconds), 1e9));
  if (whole < 60) {
    return absl::StrCat(whole, " s");
  }
  if (whole < 3600) {
    return absl::StrFormat("%d:%02d", whole / 60, whole % 60);
  }
  return absl::StrFormat("%d:%02d:%02d", whole / 3600, whole / 60 % 60, whole % 60);
}

std::string GroupedDigits(uint64_t number) {
  const std::string digits = absl::StrCat(number);
  std::string grouped;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) {
      grouped.push_back(' ');
    }
    grouped.push_back(digits[i]);
  }
  return grouped;
}

}  // namespace embergate::server
