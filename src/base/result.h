#pragma once
// Result<T>: a value or an Error{code, message, field}. The one error system of Muster: exceptions of libraries stop at
// the adapter that calls them. A message says what happened, what it means and what to do; it never holds a secret.
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/check.h"

namespace muster {

// Stable codes: they appear in problem details (RFC 9457) and in exit codes. Never renumber.
enum class Code : unsigned char {
  InvalidArgument = 1,     // 400: the caller sent something wrong
  Unauthenticated = 2,     // 401
  PermissionDenied = 3,    // 403
  NotFound = 4,            // 404; a foreign object looks like a missing one
  AlreadyExists = 5,       // 409
  FailedPrecondition = 6,  // 409: the state does not allow it now
  ResourceExhausted = 7,   // 429: quota, rate, bound
  Unavailable = 8,         // 503: try again later
  DataLoss = 9,            // 500: stored bytes are damaged
  Internal = 10,           // 500: a fault of ours
  Cancelled = 11,          // 499
  DeadlineExceeded = 12,   // 504
  Aborted = 13,            // 409: lost a race (compare-and-swap), retry after re-reading
  TooLarge = 14,           // 413
  Unsupported = 15,        // 501/426: version or feature not understood
};
std::string_view code_name(Code code);  // "invalid_argument", ...

struct Error {
  Code code = Code::Internal;
  std::string message;
  std::string field = {};  // dotted path of the offending field, when one is at fault
  bool operator==(const Error&) const = default;
};

inline Error error(Code code, std::string message, std::string field = {}) {
  return Error{code, std::move(message), std::move(field)};
}

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}  // NOLINT: implicit by design
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    MUSTER_CHECK(ok());
    return std::get<0>(state_);
  }
  const T& value() const& {
    MUSTER_CHECK(ok());
    return std::get<0>(state_);
  }
  T&& value() && {
    MUSTER_CHECK(ok());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const {
    MUSTER_CHECK(!ok());
    return std::get<1>(state_);
  }

 private:
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    MUSTER_CHECK(!ok());
    return *error_;
  }

 private:
  std::optional<Error> error_;
};
using Status = Result<void>;

// TRY(expr): the value, or return the error to the caller. Not inside coroutines (g++ 12).
#define TRY(expr)                                                       \
  __extension__({                                                       \
    auto&& try_result_ = (expr);                                        \
    if (!try_result_.ok()) return ::muster::Error(try_result_.error()); \
    std::move(try_result_).value();                                     \
  })
#define TRY_VOID(expr)                                                  \
  do {                                                                  \
    auto&& try_status_ = (expr);                                        \
    if (!try_status_.ok()) return ::muster::Error(try_status_.error()); \
  } while (false)

}  // namespace muster
