#include "crypto/signing_keys.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "crypto/hash.h"
#include "crypto/openssl_ptr.h"
#include "crypto/sign.h"

namespace muster::crypto {
namespace {

constexpr std::string_view kKeysHead = "Muster signing keys 1\n", kKeysDomain = "muster-signing-keys-v1";
constexpr const char* kKeysSignature = "MUSTER SIGNING KEYS SIGNATURE";
constexpr std::array<std::string_view, kKeyKinds> kKindNames{"roster", "order", "relay-token"};
constexpr std::size_t kChainMax = 4, kServerNameMax = 128, kStatementSignatureMax = 128;

std::string statement_of(const SigningKeys& keys) {
  std::string out(kKeysHead);
  out += fmt::format("Server: {}\nRevision: {}\n", keys.server_id, keys.revision);
  for (const SigningKeyEntry& each : keys.keys)
    out += fmt::format("Key: {} {} {} {}\n", key_kind_name(each.kind), each.from.ms, each.until.ms, base64(each.key));
  return out;
}
Bytes signed_statement(const SigningKeys& keys) {
  return framed(kKeysDomain, {as_bytes(statement_of(keys))});
}

Error damaged_keys(const char* what) {
  return error(Code::InvalidArgument, fmt::format("a statement of signing keys is damaged: {}", what));
}

std::optional<std::string_view> take_line(std::string_view& text, std::string_view name) {
  const auto end = text.find('\n');
  if (end == std::string_view::npos || !text.starts_with(name)) return {};
  const std::string_view out = text.substr(name.size(), end - name.size());
  text.remove_prefix(end + 1);
  return out;
}
std::string_view take_word(std::string_view& line) {
  const auto end = std::min(line.find(' '), line.size());
  const std::string_view out = line.substr(0, end);
  line.remove_prefix(std::min(end + 1, line.size()));
  return out;
}
template <typename Number>
bool whole_number(std::string_view text, Number& out) {
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), out);
  return fault == std::errc() && end == text.data() + text.size();
}

std::optional<SigningKeyEntry> read_entry(std::string_view line) {
  SigningKeyEntry out;
  const auto kind = parse_key_kind(take_word(line));
  const bool times = whole_number(take_word(line), out.from.ms) && whole_number(take_word(line), out.until.ms);
  const auto raw = unbase64(line);
  const auto key = raw ? key32(*raw) : std::nullopt;
  if (!kind || !times || !key || out.from.ms < 0 || out.until.ms < 0) return {};
  out.kind = *kind;
  out.key = *key;
  return out;
}

CertPtr read_cert(std::string_view pem) {
  CertPtr cert(PEM_read_bio_X509(read_bio(pem).get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  return cert;
}

// What follows the statement: certificates, then the signature.
Status read_blocks(std::string_view text, SigningKeys& out) {
  const BioPtr bio = read_bio(text);
  for (;;) {
    char *name = nullptr, *header = nullptr;
    unsigned char* data = nullptr;
    long size = 0;
    if (PEM_read_bio(bio.get(), &name, &header, &data, &size) != 1) break;
    const std::string kind = name;
    const Bytes bytes(data, data + size);
    free_openssl(name);
    free_openssl(header);
    free_openssl(data);
    if (kind == kKeysSignature) {
      if (!out.signature.empty() || bytes.empty() || bytes.size() > kStatementSignatureMax)
        return damaged_keys("its signature");
      out.signature = bytes;
    } else if (kind == "CERTIFICATE" && out.chain.size() < kChainMax) {
      const unsigned char* at = bytes.data();
      const CertPtr cert(d2i_X509(nullptr, &at, size));
      if (!cert || at != bytes.data() + size) return damaged_keys("a certificate");
      const BioPtr pem(BIO_new(BIO_s_mem()));
      MUSTER_CHECK(PEM_write_bio(pem.get(), "CERTIFICATE", "", bytes.data(), size) > 0);
      char* start = nullptr;
      const long length = BIO_get_mem_data(pem.get(), &start);
      out.chain.emplace_back(start, static_cast<std::size_t>(length));
    } else {
      return damaged_keys("what follows it");
    }
  }
  ERR_clear_error();
  return out.signature.empty() || out.chain.empty() ? Status(damaged_keys("nobody signed it")) : Status();
}

bool may_vouch(const std::string& pem, const Trust& trust) {
  const CertPtr cert = read_cert(pem);
  if (!cert || X509_check_ca(cert.get()) != 1 || gave_up(trust, pem)) return false;
  return std::any_of(trust.roots.begin(), trust.roots.end(),
                     [&](const std::string& root) { return issued_by(pem, root); });
}

bool signed_with(const std::string& cert_pem, ByteView text, ByteView signature) {
  const CertPtr cert = read_cert(cert_pem);
  const DigestPtr context(EVP_MD_CTX_new());
  EVP_PKEY* key = cert ? X509_get0_pubkey(cert.get()) : nullptr;
  const bool good = key != nullptr && EVP_PKEY_get_base_id(key) == EVP_PKEY_EC &&
                    EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha256(), nullptr, key) == 1 &&
                    EVP_DigestVerify(context.get(), signature.data(), signature.size(), text.data(), text.size()) == 1;
  ERR_clear_error();
  return good;
}

}  // namespace

std::string_view key_kind_name(KeyKind kind) {
  return kKindNames[static_cast<std::size_t>(kind)];
}
std::optional<KeyKind> parse_key_kind(std::string_view name) {
  const auto found = std::find(kKindNames.begin(), kKindNames.end(), name);
  if (found == kKindNames.end()) return {};
  return static_cast<KeyKind>(found - kKindNames.begin());
}

Bytes short_key_id(ByteView public_key) {
  const Digest digest = sha256(public_key);
  return {digest.begin(), digest.begin() + kKeyIdBytes};
}
std::string key_id_text(ByteView public_key) {
  return hex(short_key_id(public_key));
}

Result<SigningKeys> parse_signing_keys(std::string_view text) {
  if (text.size() > kSigningKeysBytesMax) return error(Code::TooLarge, "a statement of signing keys is too large");
  if (!text.starts_with(kKeysHead)) return damaged_keys("its first line");
  SigningKeys out;
  std::string_view rest = text.substr(kKeysHead.size());
  const auto server = take_line(rest, "Server: ");
  const auto revision = take_line(rest, "Revision: ");
  if (!server || server->empty() || server->size() > kServerNameMax || !revision ||
      !whole_number(*revision, out.revision) || out.revision == 0)
    return damaged_keys("its head");
  out.server_id = *server;
  while (const auto line = take_line(rest, "Key: ")) {
    const auto entry = read_entry(*line);
    if (!entry || out.keys.size() == kSigningKeysMax) return damaged_keys("a key");
    out.keys.push_back(*entry);
  }
  if (statement_of(out) != text.substr(0, text.size() - rest.size())) return damaged_keys("its form");
  TRY_VOID(read_blocks(rest, out));
  return out;
}

std::string signing_keys_text(const SigningKeys& keys) {
  std::string out = statement_of(keys);
  for (const std::string& pem : keys.chain) out += pem;
  const BioPtr bio(BIO_new(BIO_s_mem()));
  MUSTER_CHECK(PEM_write_bio(bio.get(), kKeysSignature, "", keys.signature.data(),
                             static_cast<long>(keys.signature.size())) > 0);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return out.append(text, static_cast<std::size_t>(size));
}

Status sign_signing_keys(SigningKeys& keys, const KeyAndCert& ca, const Trust& trust) {
  const KeyPtr key(PEM_read_bio_PrivateKey(read_bio(ca.key_pem).get(), nullptr, nullptr, const_cast<char*>("")));
  const Bytes text = signed_statement(keys);
  const DigestPtr context(EVP_MD_CTX_new());
  Bytes signature(kStatementSignatureMax);
  std::size_t size = signature.size();
  if (!key || EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key.get()) != 1 ||
      EVP_DigestSign(context.get(), signature.data(), &size, text.data(), text.size()) != 1) {
    ERR_clear_error();
    return error(Code::DataLoss, "the CA's key cannot be read; restore it from a backup");
  }
  signature.resize(size);
  keys.signature = std::move(signature);
  keys.chain.clear();
  for (const auto* list : {&trust.intermediates, &trust.roots}) {
    for (const std::string& pem : *list) {
      if (keys.chain.size() < kChainMax && key_fits({ca.key_pem, pem})) keys.chain.push_back(pem);
    }
  }
  if (keys.chain.empty()) return error(Code::DataLoss, "no certificate of the CA in use is known");
  return {};
}

bool vouched_for(const SigningKeys& keys, const Trust& trust) {
  const Bytes text = signed_statement(keys);
  return std::any_of(keys.chain.begin(), keys.chain.end(), [&](const std::string& pem) {
    return may_vouch(pem, trust) && signed_with(pem, text, keys.signature);
  });
}

Result<SigningKeys> believe(const SigningKeys& before, const SigningKeys& told, const Trust& trust) {
  if (!before.server_id.empty() && told.server_id != before.server_id)
    return error(Code::PermissionDenied,
                 fmt::format("the signing keys told are those of {}, not of {}", told.server_id, before.server_id));
  const bool counts = before.revision != 0 && vouched_for(before, trust);
  if (counts && told.revision < before.revision)
    return error(Code::FailedPrecondition, fmt::format("signing keys of revision {} are known already, {} is older",
                                                       before.revision, told.revision));
  if (counts && told.revision == before.revision && told.keys != before.keys)
    return error(Code::PermissionDenied, "the signing keys told are others under the same revision");
  if (!vouched_for(told, trust))
    return error(Code::PermissionDenied, "the signing keys told are not signed by a CA that is believed here");
  return told;
}

std::vector<Key32> believed_keys(const SigningKeys& keys, KeyKind kind, WallTime now) {
  std::vector<SigningKeyEntry> found;
  for (const SigningKeyEntry& each : keys.keys) {
    if (each.kind == kind && (each.until.ms == 0 || now < each.until)) found.push_back(each);
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.from > b.from; });
  std::vector<Key32> out;
  for (const SigningKeyEntry& each : found) out.push_back(each.key);
  return out;
}

const SigningKeyEntry* signing_key(const SigningKeys& keys, KeyKind kind, WallTime now) {
  const SigningKeyEntry* out = nullptr;
  for (const SigningKeyEntry& each : keys.keys) {
    const bool signs = each.kind == kind && each.from <= now && (each.until.ms == 0 || now < each.until);
    if (signs && (out == nullptr || out->from < each.from)) out = &each;
  }
  return out;
}

std::optional<Key32> signer_of(const std::vector<Key32>& believed, ByteView id, ByteView message, ByteView signature) {
  for (const Key32& key : believed) {
    const Bytes own = short_key_id(key);
    if (!id.empty() && !std::equal(id.begin(), id.end(), own.begin(), own.end())) continue;
    if (verify(key, message, signature)) return key;
  }
  return {};
}

}  // namespace muster::crypto
