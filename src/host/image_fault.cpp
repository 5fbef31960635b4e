#include "host/image_fault.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>

#include "base/bytes.h"

namespace muster::host {
namespace {

struct Sign {
  std::string_view text;
  ImageFault fault;
};
// In this order: "unauthorized" also appears where a registry hides that an image is missing.
constexpr std::array kSigns{
    Sign{"no space left on device", {"image_pull.disk_full", false}},
    Sign{"disk quota exceeded", {"image_pull.disk_full", false}},
    Sign{"no matching manifest for", {"image_pull.wrong_architecture", false}},
    Sign{"no image found in manifest list for architecture", {"image_pull.wrong_architecture", false}},
    Sign{"no image found in image index for architecture", {"image_pull.wrong_architecture", false}},
    Sign{"unauthorized", {"image_pull.denied", false}},
    Sign{"no basic auth credentials", {"image_pull.denied", false}},
    Sign{"authentication required", {"image_pull.denied", false}},
    Sign{"access to the resource is denied", {"image_pull.denied", false}},
    Sign{"invalid username/password", {"image_pull.denied", false}},
    Sign{"denied:", {"image_pull.denied", false}},
    Sign{"403 forbidden", {"image_pull.denied", false}},
    Sign{"manifest unknown", {"image_pull.not_found", false}},
    Sign{"name unknown", {"image_pull.not_found", false}},
    Sign{"repository does not exist", {"image_pull.not_found", false}},
    Sign{"not found: ", {"image_pull.not_found", false}},
    Sign{"no such image", {"image_pull.not_found", false}},
    Sign{"x509:", {"image_pull.tls", false}},
    Sign{"server gave http response to https client", {"image_pull.tls", false}},
    Sign{"unexpected eof", {"image_pull.interrupted", true}},
    Sign{"connection reset", {"image_pull.interrupted", true}},
    Sign{"broken pipe", {"image_pull.interrupted", true}},
    Sign{"filesystem layer verification failed", {"image_pull.interrupted", true}},
    Sign{"connection refused", {"image_pull.unreachable", true}},
    Sign{"no such host", {"image_pull.unreachable", true}},
    Sign{"no route to host", {"image_pull.unreachable", true}},
    Sign{"network is unreachable", {"image_pull.unreachable", true}},
    Sign{"i/o timeout", {"image_pull.unreachable", true}},
    Sign{"timeout exceeded", {"image_pull.unreachable", true}},
    Sign{"deadline exceeded", {"image_pull.unreachable", true}},
    Sign{"tls handshake timeout", {"image_pull.unreachable", true}},
    Sign{"temporary failure in name resolution", {"image_pull.unreachable", true}},
    Sign{"toomanyrequests", {"image_pull.unreachable", true}},
    Sign{"503 service unavailable", {"image_pull.unreachable", true}},
    Sign{"502 bad gateway", {"image_pull.unreachable", true}},
    Sign{": eof", {"image_pull.interrupted", true}},
    Sign{"not found", {"image_pull.not_found", false}},
};

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

}  // namespace

ImageFault image_fault(int status, std::string_view said) {
  const std::string text = lower(said);
  for (const Sign& sign : kSigns) {
    if (text.find(sign.text) != std::string::npos) return sign.fault;
  }
  if (status == 404) return {"image_pull.not_found", false};
  if (status == 401 || status == 403) return {"image_pull.denied", false};
  return {"image_pull.failed", status == 0 || status >= 500};
}

namespace {
// Cut, and text whatever the engine sent.
std::string plain_text(std::string_view said) {
  std::string out(said.substr(0, 300));
  if (!valid_utf8(out))
    std::replace_if(
        out.begin(), out.end(), [](char c) { return (c & 0x80) != 0; }, '?');
  return out;
}
}  // namespace

Error image_error(const std::string& image, int status, std::string_view said) {
  const ImageFault fault = image_fault(status, said);
  Code code = Code::Unavailable;
  if (fault.code == "image_pull.not_found") code = Code::NotFound;
  if (fault.code == "image_pull.wrong_architecture") code = Code::InvalidArgument;
  if (fault.code == "image_pull.denied") code = Code::PermissionDenied;
  if (fault.code == "image_pull.tls") code = Code::FailedPrecondition;
  return error(code, fmt::format("cannot pull {}: {}", image, plain_text(said)), std::string(fault.code));
}

bool asks_again(std::string_view image) {
  if (image.find('@') != std::string_view::npos || image.starts_with("sha256:")) return false;
  const std::string repository = image_repository(image);
  return repository.size() == image.size() || image.substr(repository.size()) == ":latest";
}

}  // namespace muster::host
