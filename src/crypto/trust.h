#pragma once
// Whom machines and people believe, as one PEM text: roots, the CAs under them that are in use, and those that were
// given up. What it says of roots and given-up CAs is signed by a root that is believed already, so a control plane
// whose roots are kept offline cannot make itself another. It carries a revision, and an older one is never taken
// again. The text is usable wherever a file of CA certificates is asked for; such a file alone (one CA that signs
// everything, as before there were roots) is a Trust of revision 0 that nobody signed. Values; any thread.
#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "crypto/cert.h"

namespace muster::crypto {

inline constexpr std::size_t kTrustBytesMax = 60 << 10;

struct Trust {
  std::string server_id;
  std::uint64_t revision = 0;
  std::vector<std::string> roots;          // certificates in PEM form that signed themselves, the newest first
  std::vector<std::string> intermediates;  // what roots vouch for and nobody gave up; not part of what is signed
  std::vector<std::string> given_up;       // CAs that count for nothing any more
  std::vector<Bytes> signatures;
  bool operator==(const Trust&) const = default;
};

// Strict in what it knows. CAs that no root in it vouches for, and those given up, are left out of `intermediates`.
Result<Trust> parse_trust(std::string_view text);
std::string trust_text(const Trust& trust);
std::string roots_pem(const Trust& trust);  // only the certificates of the roots
Status sign_trust(Trust& trust, const KeyAndCert& root);

// What is believed after `told` came over an authenticated link. Newer: it must be signed by a root of `before`. The
// same revision: the same statement, perhaps with other CAs under its roots. Refused: older ones, another server's,
// anything else; `before` then stays.
Result<Trust> believe(const Trust& before, const Trust& told);

bool gave_up(const Trust& trust, std::string_view cert_pem);
// Those of its CAs whose key this is, to be sent behind a certificate that the key signed; then the roots.
std::string chain_of(const Trust& trust, std::string_view ca_cert_pem);

}  // namespace muster::crypto
