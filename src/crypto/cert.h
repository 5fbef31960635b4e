#pragma once
// X.509 for Muster's own CA. CA and server keys are ECDSA P-256 (TLS stacks and browsers take them), device keys
// Ed25519 (they also sign overlay keys and hellos). Serial numbers are random; times are UTC; not_before is set five
// minutes back for clocks that lag. A device certificate carries the URI SAN spiffe://muster/node/<id>, a server's its
// role: spiffe://muster/server or spiffe://muster/relay. What `ca_pem` says may be a whole bundle (crypto/trust.h):
// roots are believed, the CAs under them help, those given up count for nothing. Pure functions over PEM text; any
// thread.
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "crypto/secret.h"
#include "crypto/sign.h"

namespace muster::crypto {

inline constexpr Millis kBackdate{300'000};  // how far not_before lies before the issue

struct KeyAndCert {
  std::string key_pem, cert_pem;
};

// A CA of its own that signs everything itself, as before there were roots.
Result<KeyAndCert> create_ca(std::string_view common_name, WallTime now,
                             Millis lifetime = Millis(10LL * 365 * 86'400'000));
// A root signs CAs and nothing else; those sign the rest.
Result<KeyAndCert> create_root(std::string_view common_name, WallTime now,
                               Millis lifetime = Millis(20LL * 365 * 86'400'000));
std::string new_ca_key();  // PKCS#8 PEM, secret
// What a root is shown to certify a CA's key; it proves possession of it.
Result<std::string> make_ca_request(std::string_view key_pem, std::string_view common_name);
// The certificate of a CA under this root; it ends no later than the root.
Result<std::string> certify_ca(const KeyAndCert& root, std::string_view request_pem, WallTime now, Millis lifetime);
Result<std::string> common_name(std::string_view cert_pem);
// Name and signature of the first certificate are this CA's; says nothing about times.
bool issued_by(std::string_view cert_pem, std::string_view ca_cert_pem);

// Who a server's certificate speaks for. Clients of the control plane take no other role, so a relay's key is worth
// nothing there.
enum class ServerRole : std::uint8_t { ControlPlane, Relay };

// sans: DNS names and IP addresses, told apart by their form. The key is new. Without a role it is a certificate as
// they were before roles, which the tests of upgrades need.
Result<KeyAndCert> issue_server_certificate(const KeyAndCert& ca, std::optional<ServerRole> role,
                                            std::string_view common_name, const std::vector<std::string>& sans,
                                            WallTime now, Millis lifetime);
// The same for a key that only its holder knows (P-256, PKCS#10 as make_ca_request makes them).
Result<std::string> certify_server(const KeyAndCert& ca, std::optional<ServerRole> role, std::string_view common_name,
                                   const std::vector<std::string>& sans, std::string_view request_pem, WallTime now,
                                   Millis lifetime);
// The role that the (first) certificate states; nullopt: none, as in certificates of before roles. An error where it
// names more than one. Says nothing about who signed it.
Result<std::optional<ServerRole>> server_role(std::string_view cert_pem);
bool key_fits(const KeyAndCert& pair);  // the key is the certificate's; false also where one cannot be read

Result<std::string> make_csr(const SigningKey& device_key, std::string_view common_name);
// Parses the request and checks its own signature; returns the Ed25519 public key that it proves possession of.
Result<Key32> verify_csr(std::string_view csr_pem);

// tpm: SHA-256 of a public key in the machine's TPM (crypto/tpm_key.h), to which it is bound by a second URI,
// spiffe://muster/tpm/<hex>: who shows the certificate must sign with that key too.
Result<std::string> issue_device_certificate(const KeyAndCert& ca, const Key32& device_key, std::string_view node_id,
                                             WallTime now, Millis lifetime = Millis(86'400'000), ByteView tpm = {});

struct DeviceCertificate {
  std::string node_id;  // "node-12"
  Key32 device_key{};
  WallTime not_before, not_after;
  std::string serial;  // hex
  Bytes tpm;           // SHA-256 of the public key in the machine's TPM, where it is bound to one
};
// Signed by this CA, valid at `now`, a client certificate with exactly one spiffe://muster/node/ name and an Ed25519
// key.
Result<DeviceCertificate> verify_device_certificate(std::string_view cert_pem, std::string_view ca_pem, WallTime now);

Status verify_chain(std::string_view cert_pem, std::string_view ca_pem, WallTime now);
Result<Bytes> certificate_sha256(std::string_view cert_pem);  // of the DER
Result<WallTime> certificate_expiry(std::string_view cert_pem);
struct Validity {
  WallTime not_before, not_after;
};
Result<Validity> certificate_validity(std::string_view cert_pem);  // of the first in a bundle
// In a PEM bundle, the certificate whose DER has this SHA-256.
Result<std::string> find_certificate(std::string_view bundle_pem, ByteView der_sha256);

}  // namespace muster::crypto
