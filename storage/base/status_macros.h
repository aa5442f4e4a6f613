// Two macros that pass an error on. Statements: neither may be the sole body of an unbraced `if`.
#ifndef EMBERGATE_STORAGE_BASE_STATUS_MACROS_H_
#define EMBERGATE_STORAGE_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define EMBERGATE_CONCAT_INNER_(a, b) a##b
#define EMBERGATE_CONCAT_(a, b) EMBERGATE_CONCAT_INNER_(a, b)

// Returns from the calling function with `expr`'s status unless that is OK.
#define EMBERGATE_RETURN_IF_ERROR(expr)      \
  do {                                       \
    absl::Status embergate_status_ = (expr); \
    if (!embergate_status_.ok()) {           \
      return embergate_status_;              \
    }                                        \
  } while (false)

// `EMBERGATE_ASSIGN_OR_RETURN(auto x, MakeX());`: assigns the value, or returns the error.
#define EMBERGATE_ASSIGN_OR_RETURN(lhs, expr) \
  EMBERGATE_ASSIGN_OR_RETURN_IMPL_(EMBERGATE_CONCAT_(embergate_statusor_, __LINE__), lhs, expr)
#define EMBERGATE_ASSIGN_OR_RETURN_IMPL_(statusor, lhs, expr) \
  auto statusor = (expr);                                     \
  if (!statusor.ok()) {                                       \
    return std::move(statusor).status();                      \
  }                                                           \
  lhs = std::move(statusor).value()

#endif  // EMBERGATE_STORAGE_BASE_STATUS_MACROS_H_
