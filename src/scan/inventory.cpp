#include "scan/inventory.h"

#include <algorithm>
#include <cctype>

#include "scan/rpm.h"

namespace muster::scan {
namespace {

constexpr std::string_view kStatus = "var/lib/dpkg/status", kStatusFolder = "var/lib/dpkg/status.d/";

std::string_view next_line(std::string_view& text) {
  const auto end = text.find('\n');
  std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  if (line.ends_with('\r')) line.remove_suffix(1);
  return line;
}
std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}
// A field's value, if it is one that a version or a name can be.
std::string plain(std::string_view text) {
  text = trimmed(text);
  const bool fine = !text.empty() && text.size() <= kFieldMax &&
                    std::all_of(text.begin(), text.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; });
  return fine ? std::string(text) : std::string();
}

std::string unquoted(std::string_view text) {
  if (text.size() >= 2 && (text.front() == '"' || text.front() == '\'') && text.back() == text.front())
    text = text.substr(1, text.size() - 2);
  return plain(text);
}
// As OSV names the releases of distributions: Debian by the number alone, Alpine by "v" and two numbers, the others as
// each sees fit. Of one that it does not know: its own name, of which no record speaks.
std::string rpm_system(const std::string& id, const std::string& version) {
  const std::string major = version.substr(0, version.find('.'));
  if (id == "almalinux") return "AlmaLinux:" + major;
  if (id == "rocky") return "Rocky Linux:" + major;
  if (id == "rhel") return "Red Hat:enterprise_linux:" + major;
  if (id == "opensuse-leap") return "openSUSE:Leap " + version;
  if (id == "opensuse-tumbleweed") return "openSUSE:Tumbleweed";
  if (id == "sles")
    return "SUSE:Linux Enterprise Server " + major + (major == version ? "" : " SP" + version.substr(major.size() + 1));
  if (id == "azurelinux") return "Azure Linux:" + major;
  if (id == "photon") return "Photon OS:" + version;
  if (id == "mageia") return "Mageia:" + version;
  return {};
}
std::string system_of(std::string_view text) {
  std::string id, version;
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    if (line.starts_with("ID=")) id = unquoted(line.substr(3));
    if (line.starts_with("VERSION_ID=")) version = unquoted(line.substr(11));
  }
  if (id == "debian" && !version.empty()) return "Debian:" + version.substr(0, version.find('.'));
  if (id == "alpine" && !version.empty()) {
    const auto second = version.find('.', version.find('.') + 1);
    return "Alpine:v" + version.substr(0, second);
  }
  if (id == "wolfi") return "Wolfi";  // both have no releases
  if (id == "chainguard") return "Chainguard";
  if (id == "ubuntu" && !version.empty()) return "Ubuntu:" + version;
  if (std::string system = version.empty() ? "" : rpm_system(id, version); !system.empty()) return system;
  return id.empty() ? "" : id + (version.empty() ? "" : ":" + version);
}

// Where the image does not say what it is, what its packager suggests. What says that it is something else is that, and
// not what its packager suggests: advisories of Debian say nothing about a distribution made from it.
std::string_view family(const std::string& system, std::string_view suggested) {
  return system.empty() ? suggested : std::string_view(system);
}

void take_dpkg(Inventory& inventory, std::string_view text) {
  const std::string ecosystem(family(inventory.system, "Debian"));
  bool installed = true, any = false;
  Package package{.ecosystem = ecosystem};
  const auto flush = [&] {
    if (any && installed) add_package(inventory, std::move(package));
    package = Package{.ecosystem = ecosystem};
    installed = true, any = false;
  };
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    if (line.empty()) {
      flush();
    } else if (line.starts_with("Package:")) {
      any = true, package.name = plain(line.substr(8));
    } else if (line.starts_with("Version:")) {
      package.version = plain(line.substr(8));
    } else if (line.starts_with("Status:")) {
      installed = trimmed(line.substr(7)).ends_with(" installed");
    } else if (line.starts_with("Source:")) {  // "name" or "name (version)"
      const std::string_view value = trimmed(line.substr(7));
      const auto open = value.find('(');
      package.source = plain(value.substr(0, open));
      if (open != std::string_view::npos && value.ends_with(')'))
        package.source_version = plain(value.substr(open + 1, value.size() - open - 2));
    }
  }
  flush();
}

void take_apk(Inventory& inventory, std::string_view text) {
  const std::string ecosystem(family(inventory.system, "Alpine"));
  Package package{.ecosystem = ecosystem};
  bool any = false;
  const auto flush = [&] {
    if (any) add_package(inventory, std::move(package));
    package = Package{.ecosystem = ecosystem};
    any = false;
  };
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    if (line.empty()) flush();
    if (line.starts_with("P:")) any = true, package.name = plain(line.substr(2));
    if (line.starts_with("V:")) package.version = plain(line.substr(2));
    if (line.starts_with("o:")) package.source = plain(line.substr(2));
  }
  flush();
}

void take_python(Inventory& inventory, std::string_view text) {
  Package package{.ecosystem = "PyPI"};
  while (!text.empty()) {
    const std::string_view line = next_line(text);
    if (line.empty()) break;  // the description follows
    if (line.starts_with("Name:") && package.name.empty()) package.name = python_name(plain(line.substr(5)));
    if (line.starts_with("Version:") && package.version.empty()) package.version = plain(line.substr(8));
  }
  add_package(inventory, std::move(package));
}

bool ends(std::string_view path, std::string_view folder, std::string_view file) {
  if (!path.ends_with(file)) return false;
  path.remove_suffix(file.size());
  return path.ends_with(folder);
}
bool of_python(std::string_view path) {
  return ends(path, ".dist-info/", "METADATA") || ends(path, ".egg-info/", "PKG-INFO") ||
         (path.ends_with(".egg-info") && path.find("-packages/") != std::string_view::npos);
}

}  // namespace

void add_package(Inventory& inventory, Package package) {
  if (package.source.empty()) package.source = package.name;
  if (package.source_version.empty()) package.source_version = package.version;
  const bool fine = !package.name.empty() && !package.version.empty() && !package.name.starts_with('=') &&
                    package.version.size() <= kFieldMax && package.source_version.size() <= kFieldMax;
  if (!fine || inventory.packages.size() >= kPackagesMax)
    ++inventory.skipped;
  else
    inventory.packages.push_back(std::move(package));
}

std::string python_name(std::string_view name) {
  std::string out;
  for (const unsigned char c : name) {
    const bool separator = c == '-' || c == '_' || c == '.';
    if (!separator)
      out.push_back(static_cast<char>(std::tolower(c)));
    else if (out.empty() || out.back() != '-')
      out.push_back('-');
  }
  return out;
}

bool wanted(std::string_view path) {
  if (path == "etc/os-release" || path == "usr/lib/os-release" || path == kStatus || path == "lib/apk/db/installed")
    return true;
  if (is_rpm_database(path)) return true;
  if (path.starts_with(kStatusFolder))
    return path.find('/', kStatusFolder.size()) == std::string_view::npos && !path.ends_with(".md5sums");
  return of_python(path);
}

void take(Inventory& inventory, std::string_view path, std::string_view text) {
  if (text.empty()) {  // a link that leads elsewhere
    ++inventory.skipped;
  } else if (path.ends_with("os-release")) {
    if (std::string system = system_of(text); !system.empty()) inventory.system = std::move(system);
  } else if (path == kStatus || path.starts_with(kStatusFolder)) {
    take_dpkg(inventory, text);
  } else if (path == "lib/apk/db/installed") {
    take_apk(inventory, text);
  } else if (is_rpm_database(path)) {
    take_rpm(inventory, text);
  } else if (of_python(path)) {
    take_python(inventory, text);
  }
}

Inventory inventory_of(const std::map<std::string, std::string>& files) {
  Inventory out;
  for (const char* path : {"usr/lib/os-release", "etc/os-release"})
    if (const auto it = files.find(path); it != files.end()) take(out, path, it->second);
  for (const auto& [path, text] : files)
    if (!path.ends_with("os-release")) take(out, path, text);
  settle(out);
  return out;
}

void settle(Inventory& inventory) {
  auto& packages = inventory.packages;
  std::sort(packages.begin(), packages.end());
  packages.erase(std::unique(packages.begin(), packages.end()), packages.end());
}

}  // namespace muster::scan
