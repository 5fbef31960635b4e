#pragma once
// The data directory of musterd and the keys in it. Secrets are files of mode 0600 under DIR/keys; what muster-relay
// needs lies in DIR/relay: a key and a certificate of its own, with the role and the name of a relay, good for nothing
// else. The journal, logs and blobs lie beside. Made once by create_identity, then only read; both certificates are
// renewed by the CA in use when a third of their life is left or another CA took over, each with a new key; the CA
// itself where the root's key lies here. Values; any thread.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/cert.h"
#include "crypto/secret.h"
#include "server/ca.h"

namespace muster::server {

struct AtRest;
class DirLock;

struct DataDir {
  std::string root;
  std::shared_ptr<const AtRest> at_rest = {};  // the keys of a folder that is encrypted (server/at_rest.h)
  std::shared_ptr<DirLock> lock = {};
  // A secret file in it, sealed where the folder is; path: as key() gives it. Errors: crypto/file.h, DataLoss.
  Result<Bytes> read(const std::string& path) const;
  Status write(const std::string& path, ByteView data) const;
  std::string key(const std::string& name) const { return root + "/keys/" + name; }
  std::string journal() const { return root + "/journal.db"; }
  std::string logs() const { return root + "/logs"; }
  std::string blobs() const { return root + "/blobs"; }
  std::string addresses() const { return root + "/addresses.db"; }
  std::string refused_log() const { return root + "/refused.log"; }
  std::string known_holes() const { return root + "/known-holes.json"; }
  std::string hole_policy() const { return root + "/hole-policy.json"; }
  std::string advisories() const { return root + "/advisories"; }
  std::string scan_policy() const { return root + "/scan-policy.json"; }
  std::string relay() const { return root + "/relay"; }
};

class Signer;

struct RelayEntry {
  std::string address, region, id;  // host:port; where it is; its name in tokens
  bool operator==(const RelayEntry&) const = default;
};
std::vector<RelayEntry> parse_relay_lines(const std::string& text,
                                          const std::string& server_id);  // server/relay_book.h

struct Identity {
  std::string server_id;               // public, random, never changes
  std::vector<std::string> sans;       // names of the server certificate
  std::vector<RelayEntry> relay_list;  // as they were at the start; those of now: server/relay_book.h
  CaSet cas;                           // without its key
  crypto::KeyAndCert tls;
  crypto::Key32 roster_key{}, command_key{}, relay_key{};  // public, of those that signed at the start
  std::string keys;                                        // the statement of signing keys; empty: an older signer's
  std::shared_ptr<Signer> signer;                          // who has the keys
  crypto::Secret32 secret;                                 // derives Ray tokens and pre-shared keys
  // The name in its tokens of the relay on this machine (muster-relay --relay-id): the first one's host:port.
  const std::string& relay_id() const { return relay_list.empty() ? server_id : relay_list.front().address; }
};

struct NewIdentity {
  std::vector<std::string> sans, relays;
  std::string root_out = {};  // where the root's key goes; empty: it stays
};
Result<Identity> create_identity(const DataDir& dir, const NewIdentity& wanted, WallTime now);
// Renews the certificates when due. In a folder of before relays had their own key, the one that both held is replaced,
// first in musterd and then in DIR/relay. Without a signer the keys in DIR/keys are used in this process.
Result<Identity> load_identity(const DataDir& dir, WallTime now, std::shared_ptr<Signer> signer = nullptr);
bool holds_platform(const DataDir& dir);  // made by create_identity, whole
std::vector<std::string> lines_of(const std::string& text);

}  // namespace muster::server
