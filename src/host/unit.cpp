#include "host/unit.h"

#include <fmt/format.h>

namespace muster::host {
namespace {

// In a unit '%' starts a specifier and a quoted word may hold blanks.
std::string word(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '%') out += '%';
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

}  // namespace

// KillMode=process: privd, netd and the agent end with their supervisor; what leases run outlives a restart of the
// service. It may not gain privileges beyond root's, but it enters namespaces and talks to the container engine, so
// most sandboxing of systemd's would break it; the agent process confines itself (src/host/sandbox.cpp). Above all it
// gets no option that gives it a mount namespace of its own (any Protect..., Private..., ReadOnlyPaths): what pins the
// namespaces of leases are mounts, which would end with the service.
std::string unit_text(const std::string& program, const std::string& state_dir) {
  return fmt::format(
      "[Unit]\n"
      "Description=Muster agent: lends this machine to Ray clusters\n"
      "After=network-online.target docker.service podman.socket\n"
      "Wants=network-online.target\n"
      "StartLimitIntervalSec=0\n"
      "\n"
      "[Service]\n"
      "ExecStart={} run --state-dir {}\n"
      "Restart=always\n"
      "RestartSec=2\n"
      "KillMode=process\n"
      "TimeoutStopSec=20\n"
      "LimitNOFILE=65536\n"
      "NoNewPrivileges=yes\n"
      "LockPersonality=yes\n"
      "CapabilityBoundingSet=~CAP_SYSLOG CAP_SYS_MODULE CAP_SYS_BOOT\n"
      "RestrictRealtime=yes\n"
      "\n"
      "[Install]\n"
      "WantedBy=multi-user.target\n",
      word(program), word(state_dir));
}

}  // namespace muster::host
