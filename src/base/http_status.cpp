#include "base/http_status.h"

namespace muster {

int http_status(Code code) {
  switch (code) {
    case Code::InvalidArgument:
      return 400;
    case Code::Unauthenticated:
      return 401;
    case Code::PermissionDenied:
      return 403;
    case Code::NotFound:
      return 404;
    case Code::AlreadyExists:
    case Code::FailedPrecondition:
    case Code::Aborted:
      return 409;
    case Code::ResourceExhausted:
      return 429;
    case Code::Unavailable:
      return 503;
    case Code::DataLoss:
    case Code::Internal:
      return 500;
    case Code::Cancelled:
      return 499;
    case Code::DeadlineExceeded:
      return 504;
    case Code::TooLarge:
      return 413;
    case Code::Unsupported:
      return 501;
  }
  return 500;
}

}  // namespace muster
