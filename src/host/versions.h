#pragma once
// Which versions this machine runs containers with: kernel, engine, runtime, NVIDIA driver and toolkit, each as it says
// of itself and, where it is the distribution's, with the package's own version, since that is where mends of a
// distribution are counted (scan/known_holes.h). Reads files and runs programs of the machine as root; blocking.
#include <map>
#include <string>
#include <string_view>

#include "host/runtime.h"
#include "scan/known_holes.h"

namespace muster::host {

using Versions = std::map<std::string, scan::InstalledVersion>;

// Where it looks; tests have a tree of their own.
struct VersionSources {
  std::string root;                          // before /etc/os-release, /var/lib/dpkg/status, /proc/...
  std::string kernel_release, kernel_build;  // as uname says
  std::string nvidia_driver;                 // as NVML says; empty: see /proc/driver/nvidia/version
  std::string nvidia_toolkit;                // as nvidia-ctk says; "none": there is none
  std::map<std::string, std::string> rpm;    // package -> version, where rpm has them
};
VersionSources version_sources();
// engine_parts: by component, as the engine said; empty where it does not answer (then its parts are left out).
Versions installed_versions(const VersionSources& sources, const std::map<std::string, std::string>& engine_parts);

// Of the engine's answer to /version: name of a part -> its version, as components of a table of holes.
std::map<std::string, std::string> engine_parts_of(const std::map<std::string, std::string>& said);

}  // namespace muster::host
