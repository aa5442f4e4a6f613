// Collects what is wrong with a request, field by field.
#ifndef EMBERGATE_SERVER_VIOLATIONS_H_
#define EMBERGATE_SERVER_VIOLATIONS_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "server/status_mapping.h"

namespace embergate::server {

class Violations {
 public:
  // `description` never quotes text of the request: it may end in a log.
  void Add(std::string field, std::string description) {
    // A bound on what a hostile request can make us say; the first ones are what helps.
    if (violations_.size() < 64) {
      violations_.push_back({std::move(field), std::move(description)});
    }
  }
  bool empty() const { return violations_.empty(); }
  absl::Status ToStatus() const { return empty() ? absl::OkStatus() : BadRequestError(violations_); }

 private:
  std::vector<FieldViolation> violations_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_SERVER_VIOLATIONS_H_
