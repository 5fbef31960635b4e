#pragma once
// Result<T>: a value or an Error{code, message, field}. The one error system of Muster: exceptions of libraries stop at
// the adapter that calls them. A message says what happened, what it means and what to do; it never holds a secret.
#include <memory>
#include <string>
#include <string_view>
#include <utility>

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

// Nothing, or an Error of its own. Not a template, so that a Result costs the compiler little.
class Fault {
 public:
  Fault() = default;
  explicit Fault(Error error);
  Fault(const Fault& other) : error_(other.error_ == nullptr ? nullptr : copy(*other.error_)) {}
  Fault(Fault&& other) noexcept : error_(std::exchange(other.error_, nullptr)) {}
  Fault& operator=(Fault other) noexcept {
    std::swap(error_, other.error_);
    return *this;
  }
  ~Fault() {
    if (error_ != nullptr) drop();
  }
  explicit operator bool() const { return error_ != nullptr; }
  const Error& operator*() const { return *error_; }

 private:
  static Error* copy(const Error& error);
  void drop() noexcept;
  Error* error_ = nullptr;
};

template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}                      // NOLINT: implicit by design
  Result(Error error) : none_(), fault_(Fault(std::move(error))) {}  // NOLINT
  Result(const Result& other) : none_(), fault_(other.fault_) {
    if (ok()) std::construct_at(&value_, other.value_);
  }
  // What is moved from stays what it was, a value or an error.
  Result(Result&& other) noexcept : none_(), fault_(other.fault_) {  // NOLINT(performance-move-constructor-init)
    if (ok()) std::construct_at(&value_, std::move(other.value_));
  }
  Result& operator=(Result other) noexcept {
    if (ok()) std::destroy_at(&value_);
    fault_ = other.fault_;
    if (ok()) std::construct_at(&value_, std::move(other.value_));
    return *this;
  }
  ~Result() {
    if (ok()) std::destroy_at(&value_);
  }
  bool ok() const { return !fault_; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    MUSTER_CHECK(ok());
    return value_;
  }
  const T& value() const& {
    MUSTER_CHECK(ok());
    return value_;
  }
  T&& value() && {
    MUSTER_CHECK(ok());
    return std::move(value_);
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const {
    MUSTER_CHECK(!ok());
    return *fault_;
  }

 private:
  union {
    T value_;  // while there is no fault
    char none_;
  };
  Fault fault_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : fault_(std::move(error)) {}
  bool ok() const { return !fault_; }
  explicit operator bool() const { return ok(); }
  const Error& error() const {
    MUSTER_CHECK(!ok());
    return *fault_;
  }

 private:
  Fault fault_;
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
