#pragma once
// Who this machine is: its configuration (public facts of the control plane), device key and certificate, and enrolment
// with a one-time token. The key is made here and never leaves; config.json is root's and public, the key file is the
// agent's alone.
#include <string>
#include <vector>

#include "base/result.h"
#include "crypto/sign.h"
#include "crypto/signing_keys.h"
#include "crypto/tpm_key.h"
#include "crypto/trust.h"
#include "host/layout.h"
#include "model/types.h"

namespace muster::host {

struct Config {
  std::string server;            // "https://host[:port]"
  std::string node_id, machine;  // machine: first 12 hex digits of the device key's SHA-256
  std::string name, server_id, ca_pem;
  Bytes roster_key, command_key;  // Ed25519 public; those that it enrolled with
  std::vector<std::string> relays;
  std::map<std::string, std::string> labels;
  Bytes tpm_key = {};    // public half of the key in the TPM that certificates are bound to; empty: none
  std::string tpm = {};  // where that TPM is; empty: the machine's own
  bool operator==(const Config&) const = default;
};
Result<Config> load_config(const Layout& layout);
Status save_config(const Layout& layout, const Config& config);
// Whom this machine believes: the roots that it enrolled with, or what a root of those led it to since.
crypto::Trust load_trust(const Layout& layout, const Config& config);

// The key in the TPM that this machine joined with. Before other threads run.
Result<crypto::TpmKey> load_tpm_key(const Layout& layout, const Config& config);

// Whose rosters and orders this machine takes: the keys that it enrolled with (revision 0), or what a CA that it
// believes stated since.
crypto::SigningKeys load_signing_keys(const Layout& layout, const Config& config);

struct Accounts {
  uid_t agent_uid = kAgentUid, netd_uid = kNetdUid, egress_uid = kEgressUid;
  gid_t agent_gid = kAgentUid, netd_gid = kNetdUid, egress_gid = kEgressUid;
};
Accounts find_accounts();  // the named accounts where they exist
Status make_directories(const Layout& layout, const Accounts& accounts);

// When to ask for the next certificate: at two thirds of this one's life and up to a tenth later, so that a fleet does
// not come at once. `jitter` in [0, 1).
struct RenewalPlan {
  WallTime renew_at, ends_at;
  Millis check_every{60'000};
};
Result<RenewalPlan> plan_renewal(const std::string& certificate_pem, const std::string& ca_pem, double jitter);

// A key in the TPM beside the device key, to which certificates are bound: where there is one and OpenSSL's provider
// for it, always, never.
enum class TpmUse : std::uint8_t { Auto, Require, Off };
struct JoinOptions {
  Layout layout;
  std::string server, token, name;
  std::map<std::string, std::string> labels;
  TpmUse tpm = TpmUse::Auto;
  std::string tpm_at;  // as the TSS names it; empty: the machine's own
};
// Enrols and writes key, certificate and configuration. FailedPrecondition when this state directory is enrolled
// already. The key is stored before it is sent, and an answer that got lost is asked for again with the same key and
// token: by this call a few times, by the next `join` when this one was killed.
Result<Config> join(const JoinOptions& options);

}  // namespace muster::host
