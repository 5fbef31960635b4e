#include "model/workload_identity.h"

#include <algorithm>

namespace muster {

bool valid_audience(std::string_view text) {
  return !text.empty() && text.size() <= kAudienceBytesMax && std::all_of(text.begin(), text.end(), [](char c) {
    return c > ' ' && c < 0x7f && c != '"' && c != '\\' && c != ',';
  });
}

std::optional<std::vector<std::string>> parse_audiences(std::string_view text) {
  std::vector<std::string> out;
  while (true) {
    const auto end = std::min(text.find(','), text.size());
    if (!valid_audience(text.substr(0, end)) || out.size() >= kAudiencesMax) return {};
    out.emplace_back(text.substr(0, end));
    if (end == text.size()) return out;
    text.remove_prefix(end + 1);
  }
}

}  // namespace muster
