#include "host/versions.h"

#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <sstream>
#include <vector>

#include "host/child.h"
#include "host/nvml.h"

namespace muster::host {
namespace {

using scan::InstalledVersion;

constexpr std::size_t kStatusMax = 64 << 20, kVersionTextMax = 96;

std::string whole_file(const std::string& path, std::size_t max) {
  std::ifstream file(path, std::ios::binary);
  std::string text;
  std::array<char, 1 << 16> part{};
  while (file && text.size() < max) {
    file.read(part.data(), static_cast<std::streamsize>(part.size()));
    text.append(part.data(), static_cast<std::size_t>(file.gcount()));
  }
  return text;
}

// "debian:12" of an os-release; empty where it says nothing.
std::string distribution(const std::string& root) {
  std::istringstream lines(whole_file(root + "/etc/os-release", 1 << 16));
  std::string id, release;
  for (std::string line; std::getline(lines, line);) {
    std::erase(line, '"');
    if (line.starts_with("ID=")) id = line.substr(3, 32);
    if (line.starts_with("VERSION_ID=")) release = line.substr(11, 32);
  }
  return id.empty() ? std::string() : id + (release.empty() ? "" : ":" + release);
}

// The distribution's packages that hold a component. Those of other suppliers (docker-ce, containerd.io, NVIDIA's own)
// count as upstream does.
const std::map<std::string_view, std::string_view>& package_names() {
  static const std::map<std::string_view, std::string_view> names{
      {scan::kDocker, "docker.io"}, {scan::kPodman, "podman"}, {scan::kContainerd, "containerd"},
      {scan::kRunc, "runc"},        {scan::kCrun, "crun"},
  };
  return names;
}

std::map<std::string, std::string> dpkg_versions(const std::string& root) {
  std::map<std::string, std::string> out;
  std::istringstream lines(whole_file(root + "/var/lib/dpkg/status", kStatusMax));
  std::string name, version;
  bool installed = false;
  const auto entry_ends = [&] {
    const bool ours = std::any_of(package_names().begin(), package_names().end(),
                                  [&](const auto& each) { return each.second == name; });
    if (installed && ours && !version.empty()) out[name] = version;
    name.clear(), version.clear(), installed = false;
  };
  for (std::string line; std::getline(lines, line);) {
    if (line.empty()) entry_ends();
    if (line.starts_with("Package: ")) name = line.substr(9, 128);
    if (line.starts_with("Version: ")) version = line.substr(9, kVersionTextMax);
    if (line.starts_with("Status: ")) installed = line.ends_with(" installed");
  }
  entry_ends();
  return out;
}

// Of "1:1.1.5+ds1-1+deb12u1": "1.1.5".
std::string upstream_of_package(std::string version) {
  if (const auto colon = version.find(':'); colon != std::string::npos) version.erase(0, colon + 1);
  if (const auto dash = version.rfind('-'); dash != std::string::npos) version.erase(dash);
  return scan::upstream_version(version);
}

std::string numbers_of(std::string_view release) {
  std::size_t n = 0;
  while (n < release.size() && (release[n] == '.' || (release[n] >= '0' && release[n] <= '9'))) ++n;
  return std::string(release.substr(0, n));
}

std::string word_after(std::string_view text, std::string_view before) {
  const auto at = text.find(before);
  if (at == std::string_view::npos) return {};
  text.remove_prefix(at + before.size());
  return std::string(text.substr(0, std::min(text.find_first_of(" \t\r\n,)"), kVersionTextMax)));
}

// A kernel's release alone says little: distributions go on mending "6.1.0" and "5.14.0" for years. Debian's says its
// version in the build, Ubuntu's in a file; of others the release is all there is.
InstalledVersion kernel_version(const VersionSources& sources, const std::string& system) {
  InstalledVersion out;
  out.upstream = numbers_of(sources.kernel_release);
  if (const std::string debian = word_after(sources.kernel_build, " Debian "); !debian.empty()) {
    out.upstream = upstream_of_package(debian);
    out.system = system, out.package = "linux", out.package_version = debian;
    return out;
  }
  std::istringstream ubuntu(whole_file(sources.root + "/proc/version_signature", 256));
  std::string name, package, upstream;
  if (ubuntu >> name >> package >> upstream && name == "Ubuntu") {
    out.upstream = numbers_of(upstream);
    out.system = system, out.package = "linux", out.package_version = package.substr(0, package.rfind('-'));
    return out;
  }
  // One of the distribution's, by its mark in the release ("el9", "fc40", "amzn2023"); else somebody built it.
  for (const std::string_view mark : {".el", ".fc", ".amzn", ".oe", ".azl", "-default", "-lts"}) {
    if (sources.kernel_release.find(mark) == std::string::npos) continue;
    out.system = system.empty() ? "its distribution" : system, out.package = "linux";
    out.package_version = sources.kernel_release.substr(0, kVersionTextMax);
  }
  return out;
}

void attach_package(InstalledVersion& version, std::string_view component, const std::string& system,
                    const std::map<std::string, std::string>& packages) {
  const auto name = package_names().find(component);
  if (name == package_names().end() || system.empty()) return;
  const auto found = packages.find(std::string(name->second));
  // Another one was put beside it by hand: the package says nothing of that.
  if (found == packages.end() || upstream_of_package(found->second) != scan::upstream_version(version.upstream)) return;
  version.system = system, version.package = found->first, version.package_version = found->second;
}

std::string said_by(const std::vector<std::string>& argv) {
  Child child;
  child.argv = argv;
  child.env = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"};
  const auto ended = run_child(std::move(child), {}, {.out_max = 64 << 10, .timeout = Millis(10'000)});
  return ended.ok() && ended->code == 0 ? ended->out : std::string();
}

std::string toolkit_said() {
  for (const char* name : {"nvidia-ctk", "nvidia-container-cli"}) {
    const std::string program = find_program(name);
    if (program.empty()) continue;
    const std::string said = said_by({program, "--version"});
    const std::string version =
        word_after(said, said.find("cli-version: ") != std::string::npos ? "cli-version: " : "version ");
    return version.empty() ? "?" : version;
  }
  for (const char* path : {"/usr/bin/nvidia-container-runtime", "/usr/local/nvidia/toolkit/nvidia-container-runtime"})
    if (access(path, F_OK) == 0) return "?";
  return "none";
}

}  // namespace

VersionSources version_sources() {
  VersionSources out;
  utsname names{};
  uname(&names);
  out.kernel_release = names.release, out.kernel_build = names.version;
  out.nvidia_driver = Nvml::instance().driver_version();
  out.nvidia_toolkit = toolkit_said();
  if (const std::string rpm = find_program("rpm"); !rpm.empty() && access("/var/lib/dpkg/status", F_OK) != 0) {
    std::istringstream lines(said_by(
        {rpm, "-q", "--qf", "%{NAME} %{VERSION}-%{RELEASE}\\n", "runc", "crun", "containerd", "podman", "docker.io"}));
    for (std::string line; std::getline(lines, line);)
      if (const auto space = line.find(' ');
          space != std::string::npos && line.find(' ', space + 1) == std::string::npos)
        out.rpm[line.substr(0, space)] = line.substr(space + 1, kVersionTextMax);
  }
  return out;
}

std::map<std::string, std::string> engine_parts_of(const std::map<std::string, std::string>& said) {
  std::map<std::string, std::string> out;
  for (const auto& [name, version] : said) {
    if (name == "Engine") out[std::string(scan::kDocker)] = version;
    if (name == "Podman Engine") out[std::string(scan::kPodman)] = version;
    if (name == "containerd") out[std::string(scan::kContainerd)] = version;
    // Podman says the whole output: "runc version 1.1.5+ds1\ncommit: ..."; Docker the version alone.
    const bool oci = name.starts_with("OCI Runtime");
    for (const std::string_view runtime : {scan::kRunc, scan::kCrun}) {
      if (name != runtime && !(oci && name.find(runtime) != std::string::npos)) continue;
      const std::string inner = word_after(version, " version ");
      out[std::string(runtime)] = inner.empty() ? version.substr(0, version.find_first_of(" \n")) : inner;
    }
  }
  if (out.empty()) return out;
  for (const std::string_view each : {scan::kDocker, scan::kPodman, scan::kContainerd, scan::kRunc, scan::kCrun})
    out.try_emplace(std::string(each), "none");
  return out;
}

Versions installed_versions(const VersionSources& sources, const std::map<std::string, std::string>& engine_parts) {
  Versions out;
  const std::string system = distribution(sources.root);
  const auto packages = sources.rpm.empty() ? dpkg_versions(sources.root) : sources.rpm;
  out[std::string(scan::kLinux)] = kernel_version(sources, system);
  const auto put = [&](std::string_view component, const std::string& said) {
    InstalledVersion version;
    version.none = said == "none";
    if (!version.none && said != "?") version.upstream = scan::upstream_version(said.substr(0, kVersionTextMax));
    if (!version.none) attach_package(version, component, system, packages);
    out[std::string(component)] = std::move(version);
  };
  for (const auto& [component, said] : engine_parts) put(component, said);
  std::string driver = sources.nvidia_driver;
  if (driver.empty())
    driver = word_after(whole_file(sources.root + "/proc/driver/nvidia/version", 4096), "Kernel Module  ");
  put(scan::kNvidiaDriver, driver.empty() ? "none" : driver);
  if (!sources.nvidia_toolkit.empty()) put(scan::kNvidiaToolkit, sources.nvidia_toolkit);
  return out;
}

}  // namespace muster::host
