#include "crypto/trust.h"

#include <fmt/format.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <charconv>

#include "crypto/openssl_ptr.h"
#include "crypto/sign.h"

namespace muster::crypto {
namespace {

constexpr std::string_view kTrustHead = "Muster trust 1\n", kTrustDomain = "muster-trust-v1";
constexpr const char *kCertificateBlock = "CERTIFICATE", *kGivenUpBlock = "MUSTER GIVEN UP",
                     *kSignatureBlock = "MUSTER TRUST SIGNATURE";
constexpr std::size_t kCertificatesMax = 32, kSignaturesMax = 4, kServerIdMax = 128;

struct Block {
  std::string name;
  Bytes data;
};
Result<std::vector<Block>> blocks_of(std::string_view text) {
  std::vector<Block> out;
  const BioPtr bio = read_bio(text);
  for (;;) {
    char *name = nullptr, *header = nullptr;
    unsigned char* data = nullptr;
    long size = 0;
    if (PEM_read_bio(bio.get(), &name, &header, &data, &size) != 1) break;
    out.push_back({name, Bytes(data, data + size)});
    free_openssl(name);
    free_openssl(header);
    free_openssl(data);
    if (out.size() > 3 * kCertificatesMax)
      return error(Code::TooLarge, "a bundle of CA certificates holds too many of them");
  }
  ERR_clear_error();
  return out;
}

std::string block_text(const char* name, ByteView data) {
  const BioPtr bio(BIO_new(BIO_s_mem()));
  MUSTER_CHECK(PEM_write_bio(bio.get(), name, "", data.data(), static_cast<long>(data.size())) > 0);
  char* text = nullptr;
  const long size = BIO_get_mem_data(bio.get(), &text);
  return {text, static_cast<std::size_t>(size)};
}

CertPtr cert_of(ByteView der) {
  const unsigned char* at = der.data();
  CertPtr cert(d2i_X509(nullptr, &at, static_cast<long>(der.size())));
  if (at != der.data() + der.size()) cert.reset();
  ERR_clear_error();
  return cert;
}
CertPtr cert_of(std::string_view pem) {
  CertPtr cert(PEM_read_bio_X509(read_bio(pem).get(), nullptr, nullptr, nullptr));
  ERR_clear_error();
  return cert;
}

// "Key: value" lines of the head, in their order.
Result<std::string_view> head_line(std::string_view& text, std::string_view key) {
  const auto end = text.find('\n');
  if (end == std::string_view::npos || !text.starts_with(key))
    return error(Code::InvalidArgument, fmt::format("the head of a trust file lacks its line '{}'", key));
  const std::string_view value = text.substr(key.size(), end - key.size());
  text.remove_prefix(end + 1);
  return value;
}

Status read_head(std::string_view text, Trust& out) {
  text.remove_prefix(kTrustHead.size());
  out.server_id = TRY(head_line(text, "Server: "));
  const std::string_view number = TRY(head_line(text, "Revision: "));
  const auto [end, fault] = std::from_chars(number.data(), number.data() + number.size(), out.revision);
  if (fault != std::errc() || end != number.data() + number.size() || out.revision == 0 || out.server_id.empty() ||
      out.server_id.size() > kServerIdMax)
    return error(Code::InvalidArgument, "the head of a trust file is damaged");
  return {};
}

std::string certificates(const std::vector<std::string>& list) {
  std::string out;
  for (const std::string& each : list) out += each;
  return out;
}

std::string statement_text(const Trust& trust) {
  std::string out(kTrustHead);
  out += fmt::format("Server: {}\nRevision: {}\n", trust.server_id, trust.revision) + certificates(trust.roots);
  for (const std::string& pem : trust.given_up) {
    const auto found = blocks_of(pem);
    MUSTER_CHECK(found.ok() && found->size() == 1);
    out += block_text(kGivenUpBlock, found->front().data);
  }
  return out;
}
Bytes statement(const Trust& trust) {
  return framed(kTrustDomain, {as_bytes(statement_text(trust))});
}

bool signed_by_one_of(const Trust& trust, const std::vector<std::string>& roots) {
  const Bytes text = statement(trust);
  for (const std::string& pem : roots) {
    const CertPtr root = cert_of(std::string_view(pem));
    for (const Bytes& signature : trust.signatures) {
      const DigestPtr context(EVP_MD_CTX_new());
      const bool good =
          root &&
          EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha256(), nullptr, X509_get0_pubkey(root.get())) == 1 &&
          EVP_DigestVerify(context.get(), signature.data(), signature.size(), text.data(), text.size()) == 1;
      ERR_clear_error();
      if (good) return true;
    }
  }
  return false;
}

bool has(const std::vector<std::string>& list, const std::string& each) {
  return std::find(list.begin(), list.end(), each) != list.end();
}

// Leaves those CAs that count.
void keep_vouched(Trust& trust) {
  std::vector<std::string> kept;
  for (const std::string& pem : trust.intermediates) {
    const bool vouched = std::any_of(trust.roots.begin(), trust.roots.end(),
                                     [&](const std::string& root) { return issued_by(pem, root); });
    if (vouched && !has(trust.given_up, pem) && !has(kept, pem)) kept.push_back(pem);
  }
  trust.intermediates = std::move(kept);
}

}  // namespace

Result<Trust> parse_trust(std::string_view text) {
  if (text.size() > kTrustBytesMax) return error(Code::TooLarge, "a bundle of CA certificates is too large");
  Trust out;
  if (text.starts_with(kTrustHead)) TRY_VOID(read_head(text, out));
  const std::vector<Block> blocks = TRY(blocks_of(text));
  for (const Block& block : blocks) {
    if (block.name == kSignatureBlock) {
      out.signatures.push_back(block.data);
      continue;
    }
    const bool gone = block.name == kGivenUpBlock;
    if (!gone && block.name != kCertificateBlock) continue;
    const CertPtr cert = cert_of(ByteView(block.data));
    if (!cert) return error(Code::InvalidArgument, "a bundle of CA certificates holds one that is damaged");
    const std::string pem = block_text(kCertificateBlock, block.data);
    if (!gone && X509_check_ca(cert.get()) == 0)
      return error(Code::InvalidArgument, "a bundle of CA certificates holds one that is not a CA's");
    (gone ? out.given_up : issued_by(pem, pem) ? out.roots : out.intermediates).push_back(pem);
  }
  if (out.roots.empty()) return error(Code::InvalidArgument, "this holds no certificate of a CA in PEM form");
  if (out.roots.size() + out.intermediates.size() + out.given_up.size() > kCertificatesMax ||
      out.signatures.size() > kSignaturesMax)
    return error(Code::TooLarge, "a bundle of CA certificates holds too many of them");
  keep_vouched(out);
  return out;
}

std::string trust_text(const Trust& trust) {
  if (trust.revision == 0) return certificates(trust.roots) + certificates(trust.intermediates);
  std::string out = statement_text(trust);
  for (const Bytes& signature : trust.signatures) out += block_text(kSignatureBlock, signature);
  return out + certificates(trust.intermediates);
}

std::string roots_pem(const Trust& trust) {
  return certificates(trust.roots);
}

Status sign_trust(Trust& trust, const KeyAndCert& root) {
  const KeyPtr key(PEM_read_bio_PrivateKey(read_bio(root.key_pem).get(), nullptr, nullptr, const_cast<char*>("")));
  const Bytes text = statement(trust);
  const DigestPtr context(EVP_MD_CTX_new());
  Bytes signature(128);
  std::size_t size = signature.size();
  if (!key || !key_fits(root) || EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key.get()) != 1 ||
      EVP_DigestSign(context.get(), signature.data(), &size, text.data(), text.size()) != 1) {
    ERR_clear_error();
    return error(Code::InvalidArgument, "the root's key cannot sign: key and certificate must belong together");
  }
  signature.resize(size);
  trust.signatures.push_back(std::move(signature));
  return {};
}

Result<Trust> believe(const Trust& before, const Trust& told) {
  if (!before.server_id.empty() && told.server_id != before.server_id)
    return error(Code::PermissionDenied,
                 fmt::format("the roots told are those of {}, not of {}", told.server_id, before.server_id));
  if (told.revision < before.revision)
    return error(Code::FailedPrecondition,
                 fmt::format("roots of revision {} are known already, {} is older", before.revision, told.revision));
  const bool same = told.revision == before.revision;
  if (same ? told.roots != before.roots || told.given_up != before.given_up : !signed_by_one_of(told, before.roots))
    return error(Code::PermissionDenied, "the roots told are not signed by a root that is believed here");
  Trust out = told;
  if (same) out.signatures = before.signatures;
  return out;
}

bool gave_up(const Trust& trust, std::string_view cert_pem) {
  const auto found = blocks_of(cert_pem);
  return found.ok() && !found->empty() && has(trust.given_up, block_text(kCertificateBlock, found->front().data));
}

std::string chain_of(const Trust& trust, std::string_view ca_cert_pem) {
  const CertPtr ca = cert_of(ca_cert_pem);
  std::string out;
  // The oldest root's first: programs that are not ours take the first way, and may know the oldest root only.
  for (auto at = trust.intermediates.rbegin(); at != trust.intermediates.rend(); ++at) {
    const std::string& pem = *at;
    const CertPtr each = cert_of(std::string_view(pem));
    if (ca && each && EVP_PKEY_eq(X509_get0_pubkey(ca.get()), X509_get0_pubkey(each.get())) == 1) out += pem;
  }
  return out + certificates(trust.roots);
}

}  // namespace muster::crypto
