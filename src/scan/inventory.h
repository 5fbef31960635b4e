#pragma once
// What is installed in an image, by its own package databases: dpkg (status, status.d), apk (lib/apk/db/installed), rpm
// (rpm.h) and Python (the METADATA of dist-info folders, PKG-INFO of egg-info). Advisories of distributions name source
// packages, so each package says its source too. Nothing of an image is trusted: text is bounded, what does not parse
// is skipped and counted. Pure.
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace muster::scan {

inline constexpr std::size_t kPackagesMax = 100'000, kFileMax = 64 << 20, kFieldMax = 512;

struct Package {
  std::string ecosystem;      // "Debian:12", "Ubuntu:24.04", "Alpine:v3.19", "AlmaLinux:9", "PyPI"
  std::string name, version;  // as installed
  std::string source, source_version;
  auto operator<=>(const Package&) const = default;
};
struct Inventory {
  std::string system;  // "Debian:12"; empty: not known
  std::vector<Package> packages;
  std::uint32_t skipped = 0;  // entries that could not be read
  bool readable() const { return !packages.empty(); }
};

// Is this file of a root file system, as "usr/lib/os-release", one that take() wants?
bool wanted(std::string_view path);
// Reads one such file into the inventory; os-release first, or the packages have no release. An empty one counts as
// skipped.
void take(Inventory& inventory, std::string_view path, std::string_view text);
// One package whose fields were read already; what its text form cannot say counts as skipped: no name or version, a
// name that begins with '=', a version beyond kFieldMax.
void add_package(Inventory& inventory, Package package);
// After the last file: sorted, each package once.
void settle(Inventory& inventory);
// Of all wanted files, in the right order.
Inventory inventory_of(const std::map<std::string, std::string>& files);
// An inventory on its way, at most `bytes_max` long: what does not fit counts as skipped. Lines:
//   muster-packages 1, system NAME, skipped N, then "=ECOSYSTEM" before its packages, which are "name version" and,
//   where they differ, "source source_version".
std::string inventory_text(const Inventory& inventory, std::size_t bytes_max);
Result<Inventory> parse_inventory(std::string_view text);
std::string python_name(std::string_view name);  // "zope-interface" of "Zope.Interface"

// The wanted files of an image's archive: `docker save` (layers on each other, whiteouts) or a plain tar of a root file
// system. `read` gives `size` bytes at `offset`; what is compressed is refused.
struct ArchiveSource {
  std::uint64_t size = 0;
  std::function<Result<std::string>(std::uint64_t offset, std::size_t size)> read;
};
Result<std::map<std::string, std::string>> files_of_archive(const ArchiveSource& archive);

}  // namespace muster::scan
