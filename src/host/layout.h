#pragma once
// Where everything of one agent lives below its state directory. Two agents with different state directories share
// nothing. root-only: policy.json, config.json, leases/ (except each lease's run/, which belongs to the container's
// user).
#include <sys/types.h>

#include <string>

namespace muster::host {

inline constexpr uid_t kAgentUid = 64790;  // used unless the accounts muster-agent, muster-netd, muster-egress exist
inline constexpr uid_t kNetdUid = 64791;
inline constexpr uid_t kVenvJobUid = 64792;    // who a tenant's processes are in a virtual environment
inline constexpr uid_t kVenvBuildUid = 64793;  // who builds virtual environments
inline constexpr uid_t kEgressUid = 64794;

struct Layout {
  std::string root = "/var/lib/muster";
  std::string config() const { return root + "/config.json"; }
  std::string policy() const { return root + "/policy.json"; }
  std::string paused() const { return root + "/paused"; }
  std::string leases() const { return root + "/leases"; }
  std::string lease(const std::string& id) const { return leases() + "/" + id; }
  std::string helper() const { return root + "/helper"; }
  std::string power() const { return root + "/power.json"; }         // power limits of GPUs before we lowered them
  std::string bandwidth() const { return root + "/run/bandwidth"; }  // what netd obeys; only root writes it
  std::string network() const { return root + "/run/network"; }      // the owner's word on ways; as that
  std::string sockets() const { return root + "/run"; }
  std::string privd_socket() const { return sockets() + "/privd.sock"; }
  std::string agent_socket() const { return agent() + "/agent.sock"; }
  std::string netd_socket() const { return sockets() + "/netd.sock"; }
  std::string egress_socket() const { return sockets() + "/egress.sock"; }
  std::string egress_volume() const { return root + "/egress_volume.json"; }  // bytes of this month
  std::string egress_table() const { return sockets() + "/egress_table"; }    // there while our nft table may be
  std::string agent() const { return root + "/agent"; }                       // owned by the agent's uid
  std::string device_key() const { return agent() + "/device.key"; }
  std::string tpm_key() const { return root + "/tpm.key.pem"; }  // wrapped by the TPM; root's, as what signs with it
  std::string certificate() const { return agent() + "/device.pem"; }
  std::string trust() const { return agent() + "/trust.pem"; }          // roots that were learnt since the enrolment
  std::string port_secret() const { return agent() + "/port.secret"; }  // names its mapping to a router (PCP)
  std::string signing_keys() const { return agent() + "/signing-keys.pem"; }  // as a believed CA stated them last
  std::string state() const { return agent() + "/state"; }
  std::string blobs() const { return agent() + "/blobs"; }
  std::string ordered_images() const { return agent() + "/images.json"; }
  std::string assignments() const { return agent() + "/assignments"; }
  std::string overlays() const { return agent() + "/overlays"; }  // of each lease, what netd is told of its network
  std::string packages() const { return agent() + "/packages"; }  // of images, beside their probes
  std::string probes() const { return agent() + "/probes.json"; }
  std::string venvs() const { return root + "/venvs"; }
  std::string netd() const { return root + "/netd"; }  // owned by netd's uid
};

}  // namespace muster::host
