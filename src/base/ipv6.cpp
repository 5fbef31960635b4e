#include "base/ipv6.h"

#include <fmt/format.h>

namespace muster {

std::string text_of(const Ip6& ip) {
  const auto group = [&](std::size_t i) { return ip[2 * i] << 8 | ip[2 * i + 1]; };
  // The longest run of zeros, the first of equals; one alone is written out.
  std::size_t gap = 8, length = 1;
  for (std::size_t i = 0, run = 0; i < 8; ++i) {
    run = group(i) == 0 ? run + 1 : 0;
    if (run > length) gap = i + 1 - run, length = run;
  }
  std::string out;
  for (std::size_t i = 0; i < 8; ++i) {
    if (i == gap) {
      out += "::";
      i += length - 1;
      continue;
    }
    if (!out.empty() && out.back() != ':') out += ':';
    out += fmt::format("{:x}", group(i));
  }
  return out;
}

}  // namespace muster
