#pragma once
// Who holds the signing keys, as the rest of the server sees it: it may be asked for signatures of fixed kinds, and
// tells public halves, never a key. SigningDesk (signing_desk.h) is the one with the keys and the policy; SignerLink
// (signer_socket.h) asks one in a process of its own. Everything that is asked is one operation with a list of byte
// strings, so that both ends share one encoding. Thread-safe; may block for a round trip on this machine.
#include <string>
#include <vector>

#include "crypto/access_token.h"
#include "crypto/machine_proof.h"
#include "crypto/signing_keys.h"
#include "model/types.h"
#include "overlay/relay_protocol.h"
#include "server/ca.h"
#include "wire/audit_views.h"

namespace muster::server {

enum class SignOp : std::uint8_t {
  View = 1,            // public halves; the folder is read anew, so a CA that followed is in use from here on
  Device = 2,          // a machine's certificate
  Server = 3,          // the certificate of musterd or of its relay, for names that the desk knows
  Proof = 4,           // that a machine is enrolled
  Roster = 5,          // a cluster's members
  Order = 6,           // what a machine shall do
  RelayToken = 7,      // leave to use the relay
  Head = 8,            // the journal's head
  Behind = 9,          // to be noted for `musterd ca`: machines that do not believe the newest roots
  KeysBehind = 10,     // the same for `musterd keys`: machines that do not know the newest statement of signing keys
  AccessToken = 11,    // of a login, for ten minutes
  AccessKeys = 12,     // public: which keys' access tokens are believed; the folder is read anew
  WorkloadToken = 13,  // who a cluster or job is, for an hour at most
  WorkloadKeys = 14    // public, as AccessKeys
};
inline constexpr std::uint8_t kSignOps = 14;

// Whom an identity token is for; its subject is made of the names by the one who signs.
struct WorkloadWanted {
  std::string issuer, org_name, project_name, cluster_name;
  OrgId org;
  ProjectId project;
  ClusterId cluster;
  LeaseId lease;
  JobId job;  // 0: of the cluster alone
  std::vector<std::string> audiences;
  Millis lifetime{0};
};

struct SignerView {
  crypto::Key32 roster_key{}, command_key{}, relay_key{};  // public, of those that sign now
  CaSet cas;                                               // its ca without the key
  std::string keys;                                        // the statement of signing keys; empty: an older signer's
};
// A signature and the id of the key that made it (crypto::short_key_id).
struct Signed {
  Bytes signature, key_id;
};

class Signer {
 public:
  virtual ~Signer() = default;
  Result<SignerView> view();
  // tpm: as of crypto::issue_device_certificate.
  Result<std::string> device_certificate(NodeId node, const crypto::Key32& device, Millis lifetime, ByteView tpm = {});
  Result<std::string> server_certificate(crypto::ServerRole role, std::string_view request_pem);
  Result<crypto::MachineProof> machine_proof(NodeId node, const crypto::Key32& device);
  Result<Signed> roster(ByteView roster_bytes);
  Result<Signed> order(ByteView signing_bytes);
  Result<Bytes> relay_token(const overlay::RelayToken& token);
  Result<wire::HeadView> head(std::uint64_t incarnation, std::uint64_t seq, ByteView hash);
  Result<std::string> access_token(PrincipalId account, TokenId session, Millis lifetime);
  Result<std::vector<crypto::AccessKey>> access_keys();
  Result<std::string> workload_token(const WorkloadWanted& wanted);
  Result<std::vector<crypto::AccessKey>> workload_keys();
  Status behind(const Behind& behind, SignOp which = SignOp::Behind);  // or KeysBehind

  using Fields = std::vector<Bytes>;
  virtual Result<Fields> ask(SignOp op, const Fields& fields) = 0;
};

// Both ends of a SignerView.
Signer::Fields view_fields(const SignerView& view);
Result<SignerView> parse_view(const Signer::Fields& fields);
Bytes number_field(std::uint64_t value);
Result<std::uint64_t> read_number(const Bytes& field);

}  // namespace muster::server
