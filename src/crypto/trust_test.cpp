#include "crypto/trust.h"

#include <gtest/gtest.h>

#include "crypto/machine_proof.h"

namespace muster::crypto {
namespace {

using namespace std::chrono_literals;

constexpr WallTime kTrustNow{1'795'000'000'000};
constexpr Millis kYear{365LL * 86'400'000};

KeyAndCert under(const KeyAndCert& root, const std::string& name, const std::string& key = new_ca_key()) {
  return {key, *certify_ca(root, *make_ca_request(key, name), kTrustNow, kYear)};
}

class Roots : public ::testing::Test {
 protected:
  Trust first() const {
    Trust trust{"srv-1", 1, {root.cert_pem}, {ca.cert_pem}, {}, {}};
    EXPECT_TRUE(sign_trust(trust, root).ok());
    return trust;
  }
  // Another root beside it, under which the CA in use is certified too.
  Trust second() const {
    Trust trust = first();
    trust.revision = 2;
    trust.roots.insert(trust.roots.begin(), next_root.cert_pem);
    trust.intermediates.insert(trust.intermediates.begin(), under(next_root, "CA", ca.key_pem).cert_pem);
    trust.signatures.clear();
    EXPECT_TRUE(sign_trust(trust, root).ok());
    return trust;
  }
  KeyAndCert root = *create_root("root", kTrustNow), next_root = *create_root("next root", kTrustNow);
  KeyAndCert ca = under(root, "CA"), next_ca = under(root, "next CA");
  SigningKey device = SigningKey::generate();
};

TEST_F(Roots, WhatACaUnderThemSignsIsBelieved) {
  const std::string cert = *issue_device_certificate(ca, device.public_key(), "node-3", kTrustNow);
  const std::string all = trust_text(first());
  const auto read = verify_device_certificate(cert, all, kTrustNow + 1h);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->node_id, "node-3");
  EXPECT_FALSE(verify_device_certificate(cert, root.cert_pem, kTrustNow).ok()) << "the way to the root is missing";
  EXPECT_FALSE(verify_device_certificate(cert, ca.cert_pem, kTrustNow).ok()) << "only a root is believed by itself";
  const std::string by_root = *issue_device_certificate(root, device.public_key(), "node-3", kTrustNow);
  EXPECT_TRUE(verify_device_certificate(by_root, all, kTrustNow).ok());
  // A CA cannot make CAs: its certificate says so.
  const KeyAndCert below = under(ca, "below");
  const std::string deep = *issue_device_certificate(below, device.public_key(), "node-3", kTrustNow);
  EXPECT_FALSE(verify_device_certificate(deep, all + below.cert_pem, kTrustNow).ok());
  EXPECT_EQ(*common_name(ca.cert_pem), "CA");
  EXPECT_LE(certificate_expiry(*certify_ca(root, *make_ca_request(new_ca_key(), "x"), kTrustNow, 100 * kYear))->ms,
            certificate_expiry(root.cert_pem)->ms);
  EXPECT_FALSE(
      certify_ca({next_root.key_pem, root.cert_pem}, *make_ca_request(new_ca_key(), "x"), kTrustNow, kYear).ok());
  EXPECT_FALSE(certify_ca(root, *make_csr(device, "x"), kTrustNow, kYear).ok()) << "no P-256 key";
}

TEST_F(Roots, AnotherCaIsBelievedAndOneGivenUpNoMore) {
  Trust trust = first();
  trust.intermediates.insert(trust.intermediates.begin(), next_ca.cert_pem);
  const std::string old_cert = *issue_device_certificate(ca, device.public_key(), "node-3", kTrustNow);
  const std::string new_cert = *issue_device_certificate(next_ca, device.public_key(), "node-3", kTrustNow);
  for (const auto& cert : {old_cert, new_cert})
    EXPECT_TRUE(verify_device_certificate(cert, trust_text(trust), kTrustNow).ok());
  const MachineProof old_proof = *prove_machine(ca, 3, device.public_key(), kTrustNow);
  const MachineProof new_proof = *prove_machine(next_ca, 3, device.public_key(), kTrustNow);
  auto verifier = *MachineVerifier::create(trust_text(trust));
  EXPECT_TRUE(verifier->genuine(old_proof, device.public_key(), kTrustNow));
  EXPECT_TRUE(verifier->genuine(new_proof, device.public_key(), kTrustNow));
  trust.given_up = {ca.cert_pem};
  EXPECT_TRUE(gave_up(trust, ca.cert_pem));
  const std::string left = trust_text(trust);
  EXPECT_FALSE(verify_device_certificate(old_cert, left, kTrustNow).ok());
  EXPECT_TRUE(verify_device_certificate(new_cert, left, kTrustNow).ok());
  verifier = *MachineVerifier::create(left);
  EXPECT_FALSE(verifier->genuine(old_proof, device.public_key(), kTrustNow));
  EXPECT_TRUE(verifier->genuine(new_proof, device.public_key(), kTrustNow));
}

TEST_F(Roots, AnotherRootIsTakenOnTheWordOfOneThatIsBelieved) {
  const Trust known = *parse_trust(root.cert_pem);  // as of an enrolment
  const auto learnt = believe(known, first());
  ASSERT_TRUE(learnt.ok()) << learnt.error().message;
  EXPECT_EQ(learnt->revision, 1u);
  const auto both = believe(*learnt, second());
  ASSERT_TRUE(both.ok()) << both.error().message;
  EXPECT_EQ(both->roots, (std::vector{next_root.cert_pem, root.cert_pem}));
  EXPECT_EQ(believe(*both, first()).error().code, Code::FailedPrecondition) << "older";
  // Signed by the new root alone: good for who knows it, not for who was away.
  Trust alone = second();
  alone.revision = 3;
  alone.roots = {next_root.cert_pem};
  alone.signatures.clear();
  ASSERT_TRUE(sign_trust(alone, next_root).ok());
  EXPECT_TRUE(believe(*both, alone).ok());
  EXPECT_EQ(believe(*learnt, alone).error().code, Code::PermissionDenied);
  EXPECT_TRUE(parse_trust(trust_text(alone))->intermediates.size() == 1) << "the CA under the root that went, goes";
}

TEST_F(Roots, NobodyElseCanChangeThem) {
  const Trust known = first();
  Trust forged = known;
  forged.revision = 2;
  forged.roots.push_back(next_root.cert_pem);
  EXPECT_EQ(believe(known, forged).error().code, Code::PermissionDenied) << "the signature is of revision 1";
  forged.signatures.clear();
  EXPECT_FALSE(believe(known, forged).ok());
  ASSERT_TRUE(sign_trust(forged, next_root).ok());
  EXPECT_FALSE(believe(known, forged).ok()) << "signed by the root that it brings";
  ASSERT_TRUE(sign_trust(forged, ca).ok());
  EXPECT_FALSE(believe(known, forged).ok()) << "a CA in the control plane's hands is no root";
  Trust same = forged;
  same.revision = 1;
  EXPECT_FALSE(believe(known, same).ok()) << "another statement of the same revision";
  Trust other = second();
  other.server_id = "srv-2";
  other.signatures.clear();
  ASSERT_TRUE(sign_trust(other, root).ok());
  EXPECT_FALSE(believe(known, other).ok()) << "another control plane's";
  // Other CAs under the same roots need no signature: the roots vouch for them, and for no stranger's.
  Trust more = known;
  more.intermediates = {next_ca.cert_pem, under(next_root, "stranger").cert_pem};
  const auto taken = believe(known, *parse_trust(trust_text(more)));
  ASSERT_TRUE(taken.ok());
  EXPECT_EQ(taken->intermediates, std::vector{next_ca.cert_pem});
  EXPECT_FALSE(sign_trust(more, {root.key_pem, next_root.cert_pem}).ok());
}

TEST_F(Roots, AreReadStrictly) {
  Trust trust = second();
  trust.given_up = {next_ca.cert_pem};
  const std::string text = trust_text(trust);
  EXPECT_EQ(*parse_trust(text), trust);
  EXPECT_EQ(parse_trust(root.cert_pem + ca.cert_pem)->revision, 0u) << "a file of CA certificates";
  EXPECT_EQ(chain_of(trust, ca.cert_pem), trust.intermediates[1] + trust.intermediates[0] + roots_pem(trust));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    return changed;
  };
  EXPECT_FALSE(parse_trust("").ok());
  EXPECT_FALSE(parse_trust(ca.cert_pem).ok()) << "no root";
  EXPECT_FALSE(parse_trust(with("Revision: 2", "Revision: 0")).ok());
  EXPECT_FALSE(parse_trust(with("Revision: 2", "Revision: 2x")).ok());
  EXPECT_FALSE(parse_trust(with("Server: srv-1\n", "")).ok());
  EXPECT_FALSE(parse_trust(with("-----BEGIN CERTIFICATE-----\nM", "-----BEGIN CERTIFICATE-----\nN")).ok());
  EXPECT_FALSE(parse_trust(text + *issue_device_certificate(ca, device.public_key(), "node-1", kTrustNow)).ok());
  EXPECT_FALSE(parse_trust(std::string(kTrustBytesMax + 1, 'x')).ok());
  std::string many;
  for (int i = 0; i < 40; ++i) many += root.cert_pem;
  EXPECT_FALSE(parse_trust(many).ok());
  EXPECT_FALSE(believe(first(), *parse_trust(with("Revision: 2", "Revision: 9"))).ok()) << "the head is signed too";
}

}  // namespace
}  // namespace muster::crypto
