#include "base/result.h"

namespace muster {
Fault::Fault(Error error) : error_(new Error(std::move(error))) {}
Error* Fault::copy(const Error& error) {
  return new Error(error);
}
void Fault::drop() noexcept {
  delete error_;
}

std::string_view code_name(Code code) {
  switch (code) {
    case Code::InvalidArgument:
      return "invalid_argument";
    case Code::Unauthenticated:
      return "unauthenticated";
    case Code::PermissionDenied:
      return "permission_denied";
    case Code::NotFound:
      return "not_found";
    case Code::AlreadyExists:
      return "already_exists";
    case Code::FailedPrecondition:
      return "failed_precondition";
    case Code::ResourceExhausted:
      return "resource_exhausted";
    case Code::Unavailable:
      return "unavailable";
    case Code::DataLoss:
      return "data_loss";
    case Code::Internal:
      return "internal";
    case Code::Cancelled:
      return "cancelled";
    case Code::DeadlineExceeded:
      return "deadline_exceeded";
    case Code::Aborted:
      return "aborted";
    case Code::TooLarge:
      return "too_large";
    case Code::Unsupported:
      return "unsupported";
  }
  return "internal";
}
}  // namespace muster
