#include "model/image_name.h"

#include <algorithm>
#include <cctype>

namespace muster {

std::string image_repository(std::string_view image) {
  std::string_view name = image.substr(0, image.find('@'));
  const auto slash = name.rfind('/'), colon = name.rfind(':');
  if (colon != std::string_view::npos && (slash == std::string_view::npos || colon > slash))
    name = name.substr(0, colon);
  return std::string(name);
}

std::string image_registry(std::string_view image) {
  const auto slash = image.find('/');
  const std::string_view first = image.substr(0, slash);
  const bool host =
      slash != std::string_view::npos && (first.find_first_of(".:") != std::string_view::npos || first == "localhost");
  return host ? std::string(first) : "docker.io";
}

bool image_pinned(std::string_view image) {
  const auto at = image.rfind("@sha256:");
  return at != std::string_view::npos && image.size() == at + 8 + 64;
}

bool valid_registry(std::string_view host) {
  if (host.empty() || host.size() > 255) return false;
  const auto colon = host.rfind(':');
  const std::string_view name = host.substr(0, colon);
  if (colon != std::string_view::npos) {
    const std::string_view port = host.substr(colon + 1);
    if (port.empty() || port.size() > 5 ||
        !std::all_of(port.begin(), port.end(), [](unsigned char c) { return std::isdigit(c) != 0; }))
      return false;
  }
  return !name.empty() && name.front() != '-' && name.front() != '.' &&
         std::all_of(name.begin(), name.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '.'; });
}

}  // namespace muster
