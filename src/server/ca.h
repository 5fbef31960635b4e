#pragma once
// The CAs of a data folder. A root vouches for CAs and for nothing else; one CA is in use and signs servers, machines
// and proofs. In DIR/keys: ca.key.pem and ca.cert.pem (in use), trust.pem and trust-N.pem (crypto/trust.h: what is
// believed, and each revision of it), root.key.pem unless the root's key is kept elsewhere. A folder of before roots
// has one CA that signs itself and no trust.pem. Each change is one file renamed over another, in an order that a crash
// may cut anywhere; musterd serve takes notice on SIGHUP and every hour. Blocking; one caller at a time (a lock file).
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/cert.h"
#include "crypto/trust.h"

namespace muster::server {

struct DataDir;

inline constexpr Millis kCaLifetime{365LL * 86'400'000};
// So long after another CA took over nothing that the one before signed is in use any more: certificates of machines,
// and proofs in rosters.
inline constexpr Millis kCaSettles{9LL * 86'400'000};

// An earlier statement: machines that were away are led over it to the newest.
struct Revision {
  std::uint64_t number = 0;
  std::string text;
};

struct CaSet {
  crypto::KeyAndCert ca;  // in use
  crypto::Trust trust;
  std::string text;               // of trust
  std::string ever;               // the CAs given up too: whose certificates machines may still hold
  std::vector<Revision> history;  // the oldest first
  Bytes pin;                      // SHA-256 of the newest root: in join tokens, printed by init
  bool root_here = false;
  std::string chain() const { return crypto::chain_of(trust, ca.cert_pem); }  // to be sent behind what the CA signed
};

std::string ca_id(std::string_view cert_pem);  // 16 hex digits

// root_out: where the root's key and certificate go, for a place that is offline; empty: the key stays in DIR/keys.
Status create_cas(const DataDir& dir, const std::string& server_id, const std::string& root_out, WallTime now);
Result<CaSet> load_cas(const DataDir& dir);
Result<CaSet> ca_set(const std::string& ca_cert_pem, const std::string& trust_text);  // without keys and history
// Lets another CA follow the one that nears its end, where the root's key lies here.
Status follow_ca(const DataDir& dir, WallTime now);

// Below, root: a file as root_out wrote it; empty: the key in DIR/keys. What is printed by `musterd ca` is the
// caller's. While several roots are believed Safe waits for the machines that do not know the newest yet.
enum class When : std::uint8_t { Safe, Now };
Status rotate_ca(const DataDir& dir, const std::string& root, When when, WallTime now);
Result<std::string> request_ca(const DataDir& dir);  // for sign_request: the new key waits in DIR/keys/next.key.pem
Result<std::string> sign_request(const std::string& root, std::string_view request_pem, WallTime now);
Status install_ca(const DataDir& dir, std::string_view cert_pem, When when, WallTime now);
// The CA in use is certified under another root too, and both are believed. In a folder of before roots this is how it
// gets its first.
Status add_root(const DataDir& dir, const std::string& root, const std::string& root_out, WallTime now);
// A root or CA is believed no longer. Safe: only where nobody needs it any more.
Status retire_ca(const DataDir& dir, const std::string& id, const std::string& root, When when, WallTime now);
Status take_root_out(const DataDir& dir, const std::string& root_out);

// Which enrolled machines do not believe the newest revision yet, as the serving musterd last wrote it.
struct Behind {
  std::uint64_t revision = 0;
  std::vector<std::string> machines;
};
Status write_behind(const DataDir& dir, const Behind& behind);
Result<Behind> read_behind(const DataDir& dir);
Status write_behind_file(const DataDir& dir, const std::string& name, const Behind& behind);
Result<Behind> read_behind_file(const DataDir& dir, const std::string& name);

}  // namespace muster::server
