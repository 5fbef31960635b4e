#include "crypto/machine_proof.h"

#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <algorithm>

#include "base/endian.h"
#include "crypto/openssl_ptr.h"
#include "crypto/sign.h"
#include "crypto/trust.h"

namespace muster::crypto {
namespace {

constexpr std::string_view kMachineDomain = "muster-machine-v1";
constexpr std::size_t kHeadBytes = 16, kHalf = 32, kKnownMax = 8192;
static_assert(kMachineProofBytes == kHeadBytes + 2 * kHalf);

using EcdsaPtr = std::unique_ptr<ECDSA_SIG, Free<ECDSA_SIG, ECDSA_SIG_free>>;

Bytes proof_head(const MachineProof& proof) {
  Bytes out;
  append_be(out, proof.node);
  append_be(out, static_cast<std::uint32_t>(proof.not_before.ms / 1000));
  append_be(out, static_cast<std::uint32_t>(proof.not_after.ms / 1000));
  return out;
}
Bytes proof_statement(const MachineProof& proof, const Key32& device_key) {
  return framed(kMachineDomain, {proof_head(proof), device_key});
}

bool signs_machines(EVP_PKEY* key) {
  return key != nullptr && EVP_PKEY_get_base_id(key) == EVP_PKEY_EC && EVP_PKEY_get_bits(key) == 256;
}

}  // namespace

Result<MachineProver> MachineProver::create(const KeyAndCert& ca) {
  KeyPtr key(PEM_read_bio_PrivateKey(read_bio(ca.key_pem).get(), nullptr, nullptr, const_cast<char*>("")));
  if (!signs_machines(key.get())) return error(Code::DataLoss, "the CA's key cannot be read; restore it from a backup");
  MachineProver out;
  out.key_ = std::move(key);
  return out;
}

Result<MachineProof> MachineProver::prove(std::uint64_t node, const Key32& device_key, WallTime now) const {
  const auto second = [](WallTime t) { return WallTime{t.ms / 1000 * 1000}; };
  MachineProof proof{node, second(now - kBackdate), second(now + kMachineProofLife), {}};
  const Bytes text = proof_statement(proof, device_key);
  const DigestPtr context(EVP_MD_CTX_new());
  std::array<std::uint8_t, 128> der;
  std::size_t size = der.size();
  if (EVP_DigestSignInit(context.get(), nullptr, EVP_sha256(), nullptr, key_.get()) != 1 ||
      EVP_DigestSign(context.get(), der.data(), &size, text.data(), text.size()) != 1)
    return error(Code::Internal, "signing a machine's proof failed");
  const unsigned char* at = der.data();
  const EcdsaPtr parts(d2i_ECDSA_SIG(nullptr, &at, static_cast<long>(size)));
  proof.signature.resize(2 * kHalf);
  if (!parts ||
      BN_bn2binpad(ECDSA_SIG_get0_r(parts.get()), proof.signature.data(), static_cast<int>(kHalf)) !=
          static_cast<int>(kHalf) ||
      BN_bn2binpad(ECDSA_SIG_get0_s(parts.get()), proof.signature.data() + kHalf, static_cast<int>(kHalf)) !=
          static_cast<int>(kHalf))
    return error(Code::Internal, "signing a machine's proof failed");
  return proof;
}

Bytes encode_machine_proofs(const std::vector<MachineProof>& proofs) {
  Bytes out;
  out.reserve(proofs.size() * kMachineProofBytes);
  for (const MachineProof& proof : proofs) {
    const Bytes head = proof_head(proof);
    out.insert(out.end(), head.begin(), head.end());
    MUSTER_CHECK(proof.signature.size() == 2 * kHalf);
    out.insert(out.end(), proof.signature.begin(), proof.signature.end());
  }
  return out;
}

Result<std::vector<MachineProof>> decode_machine_proofs(ByteView bytes, std::size_t count_max) {
  if (bytes.size() % kMachineProofBytes != 0 || bytes.size() / kMachineProofBytes > count_max)
    return error(Code::DataLoss, "the proofs of a roster's machines are damaged; the control plane sends them again");
  std::vector<MachineProof> out;
  for (; !bytes.empty(); bytes = bytes.subspan(kMachineProofBytes)) {
    const std::uint8_t* at = bytes.data();
    MachineProof proof;
    proof.node = load_be64(at);
    proof.not_before = WallTime{std::int64_t{load_be32(at + 8)} * 1000};
    proof.not_after = WallTime{std::int64_t{load_be32(at + 12)} * 1000};
    proof.signature.assign(at + kHeadBytes, at + kMachineProofBytes);
    out.push_back(std::move(proof));
  }
  return out;
}

struct MachineVerifier::Impl {
  std::vector<KeyPtr> keys;
};
MachineVerifier::MachineVerifier(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
MachineVerifier::~MachineVerifier() = default;

Result<std::unique_ptr<MachineVerifier>> MachineVerifier::create(std::string_view ca_pem) {
  const Trust trust = TRY(parse_trust(ca_pem));
  auto impl = std::make_unique<Impl>();
  for (const auto* list : {&trust.intermediates, &trust.roots}) {
    for (const std::string& pem : *list) {
      const CertPtr cert(PEM_read_bio_X509(read_bio(pem).get(), nullptr, nullptr, nullptr));
      KeyPtr key(cert ? X509_get_pubkey(cert.get()) : nullptr);
      if (signs_machines(key.get())) impl->keys.push_back(std::move(key));
    }
  }
  ERR_clear_error();
  if (impl->keys.empty())
    return error(Code::InvalidArgument, "the CA that vouches for machines is no P-256 certificate in PEM form");
  return std::unique_ptr<MachineVerifier>(new MachineVerifier(std::move(impl)));
}

bool MachineVerifier::genuine(const MachineProof& proof, const Key32& device_key, WallTime now) {
  if (proof.signature.size() != 2 * kHalf || now + kMachineProofSlack < proof.not_before ||
      proof.not_after + kMachineProofSlack < now)
    return false;
  const Bytes text = proof_statement(proof, device_key);
  const Digest known = sha256(framed(kMachineDomain, {text, proof.signature}));
  if (known_.contains(known)) return true;
  const EcdsaPtr parts(ECDSA_SIG_new());
  BIGNUM* r = BN_bin2bn(proof.signature.data(), kHalf, nullptr);
  BIGNUM* s = BN_bin2bn(proof.signature.data() + kHalf, kHalf, nullptr);
  if (!parts || ECDSA_SIG_set0(parts.get(), r, s) != 1) {
    BN_free(r);
    BN_free(s);
    return false;
  }
  std::array<std::uint8_t, 128> der;
  unsigned char* at = der.data();
  const int size = i2d_ECDSA_SIG(parts.get(), &at);
  const bool right = size > 0 && std::any_of(impl_->keys.begin(), impl_->keys.end(), [&](const KeyPtr& key) {
                       const DigestPtr context(EVP_MD_CTX_new());
                       return EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha256(), nullptr, key.get()) == 1 &&
                              EVP_DigestVerify(context.get(), der.data(), static_cast<std::size_t>(size), text.data(),
                                               text.size()) == 1;
                     });
  ERR_clear_error();
  if (!right) return false;
  if (known_.size() >= kKnownMax) known_.clear();
  known_.insert(known);
  return true;
}

}  // namespace muster::crypto
