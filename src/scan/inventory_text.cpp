// Inventories as text, between a machine and the control plane.
#include <algorithm>
#include <charconv>

#include "scan/inventory.h"

namespace muster::scan {
namespace {

constexpr std::string_view kFirst = "muster-packages 1", kSystem = "system ", kSkipped = "skipped ";

Error strange(const std::string& why) {
  return error(Code::InvalidArgument, "a list of packages cannot be read: " + why);
}
// What a name or a version can be; systems and ecosystems may have blanks.
bool plain(std::string_view text, bool blanks) {
  return text.size() <= kFieldMax &&
         std::all_of(text.begin(), text.end(), [&](unsigned char c) { return c > (blanks ? 0x1f : 0x20) && c < 0x7f; });
}
std::string_view next(std::string_view& text, char end) {
  const auto at = text.find(end);
  const std::string_view out = text.substr(0, at);
  text.remove_prefix(at == std::string_view::npos ? text.size() : at + 1);
  return out;
}

}  // namespace

std::string inventory_text(const Inventory& inventory, std::size_t bytes_max) {
  constexpr std::size_t kHead = 2 * kFieldMax;  // for the lines before the packages
  std::string body, ecosystem;
  std::uint32_t skipped = inventory.skipped;
  for (const Package& each : inventory.packages) {
    std::string line = each.ecosystem == ecosystem ? std::string() : "=" + each.ecosystem + "\n";
    line += each.name + " " + each.version;
    if (each.source != each.name || each.source_version != each.version)
      line += " " + each.source + " " + each.source_version;
    line += "\n";
    const bool fine = plain(each.ecosystem, true) && plain(each.name, false) && plain(each.version, false) &&
                      plain(each.source, false) && plain(each.source_version, false);
    if (!fine || body.size() + line.size() + kHead > bytes_max) {
      ++skipped;
      continue;
    }
    ecosystem = each.ecosystem;
    body += line;
  }
  const std::string system = plain(inventory.system, true) ? inventory.system : "";
  return std::string(kFirst) + "\n" + std::string(kSystem) + system + "\n" + std::string(kSkipped) +
         std::to_string(skipped) + "\n" + body;
}

Result<Inventory> parse_inventory(std::string_view text) {
  Inventory out;
  if (next(text, '\n') != kFirst) return strange("its first line is another");
  std::string_view line = next(text, '\n');
  if (!line.starts_with(kSystem) || !plain(line, true)) return strange("it does not say its system");
  out.system = line.substr(kSystem.size());
  line = next(text, '\n');
  if (!line.starts_with(kSkipped)) return strange("it does not say what it left out");
  line.remove_prefix(kSkipped.size());
  const auto number = std::from_chars(line.data(), line.data() + line.size(), out.skipped);
  if (number.ec != std::errc() || number.ptr != line.data() + line.size()) return strange("that is no number");
  std::string ecosystem;
  while (!text.empty()) {
    line = next(text, '\n');
    if (line.starts_with('=')) {
      if (!plain(line, true) || line.size() == 1) return strange("an ecosystem");
      ecosystem = line.substr(1);
      continue;
    }
    Package package{.ecosystem = ecosystem};
    package.name = next(line, ' '), package.version = next(line, ' ');
    package.source = next(line, ' '), package.source_version = next(line, ' ');
    if (package.source.empty()) package.source = package.name;
    if (package.source_version.empty()) package.source_version = package.version;
    const bool fine = line.empty() && !package.name.empty() && !package.version.empty() && plain(package.name, false) &&
                      plain(package.version, false) && plain(package.source, false) &&
                      plain(package.source_version, false);
    if (ecosystem.empty() || !fine) return strange("a package");
    if (out.packages.size() >= kPackagesMax) return strange("it has too many packages");
    out.packages.push_back(std::move(package));
  }
  return out;
}

}  // namespace muster::scan
