#pragma once
// Where everything of one agent lives below its state directory. Two agents with different state directories share
// nothing. root-only: policy.json, config.json, leases/ (except each lease's run/, which belongs to the container's
// user).
#include <sys/types.h>

#include <string>

namespace muster::host {

inline constexpr uid_t kAgentUid = 64790;  // used unless the accounts muster-agent / muster-netd exist
inline constexpr uid_t kNetdUid = 64791;

struct Layout {
  std::string root = "/var/lib/muster";
  std::string config() const { return root + "/config.json"; }
  std::string policy() const { return root + "/policy.json"; }
  std::string paused() const { return root + "/paused"; }
  std::string leases() const { return root + "/leases"; }
  std::string lease(const std::string& id) const { return leases() + "/" + id; }
  std::string helper() const { return root + "/helper"; }
  std::string sockets() const { return root + "/run"; }
  std::string privd_socket() const { return sockets() + "/privd.sock"; }
  std::string agent_socket() const { return agent() + "/agent.sock"; }
  std::string netd_socket() const { return sockets() + "/netd.sock"; }
  std::string agent() const { return root + "/agent"; }  // owned by the agent's uid
  std::string device_key() const { return agent() + "/device.key"; }
  std::string certificate() const { return agent() + "/device.pem"; }
  std::string state() const { return agent() + "/state"; }
  std::string blobs() const { return agent() + "/blobs"; }
  std::string assignments() const { return agent() + "/assignments"; }
  std::string probes() const { return agent() + "/probes.json"; }
  std::string netd() const { return root + "/netd"; }  // owned by netd's uid
};

}  // namespace muster::host
