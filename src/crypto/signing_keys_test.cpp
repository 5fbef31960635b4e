#include "crypto/signing_keys.h"

#include <gtest/gtest.h>

#include "crypto/sign.h"

namespace muster::crypto {
namespace {

using namespace std::chrono_literals;

constexpr WallTime kNow{1'795'000'000'000};
constexpr Millis kAYear{365LL * 86'400'000};

class Statements : public ::testing::Test {
 protected:
  static KeyAndCert certified(const KeyAndCert& by, const std::string& name) {
    const std::string key = new_ca_key();
    return {key, *certify_ca(by, *make_ca_request(key, name), kNow, kAYear)};
  }
  Trust trust_of(const std::vector<KeyAndCert>& cas) const {
    Trust out{"srv-1", 1, {root.cert_pem}, {}, {}, {}};
    for (const auto& each : cas) out.intermediates.push_back(each.cert_pem);
    EXPECT_TRUE(sign_trust(out, root).ok());
    return out;
  }
  SigningKeys stated(std::uint64_t revision, std::vector<SigningKeyEntry> keys, const KeyAndCert& by) const {
    SigningKeys out{"srv-1", revision, std::move(keys), {}, {}};
    EXPECT_TRUE(sign_signing_keys(out, by, trust_of({by})).ok());
    return out;
  }
  // What a machine enrolled with.
  SigningKeys first() const { return {"srv-1", 0, {{KeyKind::Roster, old.public_key(), {}, {}}}, {}, {}}; }
  std::vector<SigningKeyEntry> both() const {
    return {{KeyKind::Roster, old.public_key(), {}, kNow + 1h}, {KeyKind::Roster, next.public_key(), kNow, {}}};
  }
  KeyAndCert root = *create_root("root", kNow), ca = certified(root, "CA"), other_ca = certified(root, "other CA");
  SigningKey old = SigningKey::generate(), next = SigningKey::generate(), thief = SigningKey::generate();
};

TEST_F(Statements, AreOneTextAndReadStrictly) {
  const SigningKeys keys = stated(7, both(), ca);
  const std::string text = signing_keys_text(keys);
  ASSERT_TRUE(parse_signing_keys(text).ok()) << parse_signing_keys(text).error().message;
  EXPECT_EQ(*parse_signing_keys(text), keys);
  EXPECT_EQ(signing_keys_text(*parse_signing_keys(text)), text);
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string out = text;
    const auto at = out.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return out.replace(at, from.size(), to);
  };
  for (const std::string& bad :
       {std::string(), text.substr(0, text.size() / 2), text.substr(0, text.find("-----BEGIN")),
        changed("keys 1\n", "keys 2\n"), changed("Revision: 7", "Revision: 07"), changed("Revision: 7", "Revision: 0"),
        changed("Server: srv-1", "Server: "), changed("Key: roster ", "Key: rooster "),
        changed("roster 0", "roster -1"), changed("roster 0 ", "roster 0  "),
        changed("MUSTER SIGNING", "ANOTHER SIGNING"), text + text.substr(text.find("-----BEGIN MUSTER"))})
    EXPECT_FALSE(parse_signing_keys(bad).ok()) << bad;
  SigningKeys many = keys;
  many.keys.resize(kSigningKeysMax + 1, keys.keys.front());
  EXPECT_FALSE(parse_signing_keys(signing_keys_text(many)).ok());
}

TEST_F(Statements, AreBelievedOnTheWordOfABelievedCaAndNobodyElses) {
  const Trust trust = trust_of({ca});
  ASSERT_TRUE(believe(first(), stated(7, both(), ca), trust).ok());
  // The keys themselves vouch for nothing, nor does a CA of the attacker's own, nor a machine's or a server's key.
  const KeyAndCert his_root = *create_root("root", kNow);
  const KeyAndCert his = certified(his_root, "CA");
  const std::vector<SigningKeyEntry> wish{{KeyKind::Roster, thief.public_key(), kNow, {}}};
  EXPECT_EQ(believe(first(), stated(8, wish, his), trust).error().code, Code::PermissionDenied);
  const auto server = *issue_server_certificate(ca, ServerRole::ControlPlane, "muster", {"muster"}, kNow, kAYear);
  SigningKeys forged{"srv-1", 8, wish, {}, {}};
  ASSERT_TRUE(sign_signing_keys(forged, server, trust_of({server})).ok() || forged.chain.empty());
  forged.chain = {server.cert_pem};
  EXPECT_FALSE(believe(first(), forged, trust).ok()) << "a server's certificate is no CA's";
  const auto by_root = *issue_server_certificate(root, ServerRole::ControlPlane, "muster", {"muster"}, kNow, kAYear);
  forged.chain.clear();
  Trust with = trust;
  with.intermediates = {by_root.cert_pem};
  ASSERT_TRUE(sign_signing_keys(forged, by_root, with).ok());
  EXPECT_FALSE(believe(first(), forged, trust).ok()) << "nor where one CA signs everything";
  // A word of the right CA that was changed on its way.
  SigningKeys moved = stated(8, both(), ca);
  moved.keys[1].key = thief.public_key();
  EXPECT_FALSE(believe(first(), moved, trust).ok());
  moved = stated(8, both(), ca);
  moved.revision = 9;
  EXPECT_FALSE(believe(first(), moved, trust).ok());
  moved = stated(8, both(), ca);
  moved.server_id = "srv-2";
  EXPECT_FALSE(believe(first(), moved, trust).ok());
  // A CA under a believed root that this machine has not heard of yet.
  EXPECT_TRUE(believe(first(), stated(8, both(), other_ca), trust).ok());
}

TEST_F(Statements, NeverGoBack) {
  const Trust trust = trust_of({ca, other_ca});
  const SigningKeys seven = stated(7, both(), ca), eight = stated(8, {both()[1]}, ca);
  const SigningKeys known = *believe(first(), eight, trust);
  EXPECT_EQ(believe(known, seven, trust).error().code, Code::FailedPrecondition);
  EXPECT_FALSE(believe(known, stated(8, both(), ca), trust).ok()) << "other keys under the same revision";
  EXPECT_TRUE(believe(known, stated(8, {both()[1]}, other_ca), trust).ok()) << "the same, signed by another CA";
  // A CA that was stolen may have said any number: once it is given up, that holds nothing back.
  const SigningKeys his =
      *believe(first(), stated(1'000'000, {{KeyKind::Roster, thief.public_key(), kNow, {}}}, other_ca), trust);
  EXPECT_FALSE(believe(his, eight, trust).ok());
  Trust after = trust;
  after.given_up = {other_ca.cert_pem};
  after.intermediates = {ca.cert_pem};
  ASSERT_TRUE(believe(his, eight, after).ok());
  EXPECT_FALSE(believe(*believe(his, eight, after), his, after).ok()) << "what it signed counts for nothing";
}

TEST_F(Statements, BothCountDuringAChangeAndOneAfterIt) {
  const SigningKeys keys = stated(7, both(), ca);
  const Bytes message = to_bytes("a roster"), by_old = old.sign(message), by_next = next.sign(message);
  const auto taken = [&](WallTime now, const Bytes& id, const Bytes& signature) {
    return signer_of(believed_keys(keys, KeyKind::Roster, now), id, message, signature).has_value();
  };
  EXPECT_TRUE(taken(kNow, short_key_id(old.public_key()), by_old));
  EXPECT_TRUE(taken(kNow, short_key_id(next.public_key()), by_next));
  EXPECT_TRUE(taken(kNow, {}, by_old)) << "one that does not say which key it is by";
  EXPECT_FALSE(taken(kNow, short_key_id(next.public_key()), by_old)) << "one that says another";
  EXPECT_FALSE(taken(kNow, {}, thief.sign(message)));
  EXPECT_FALSE(taken(kNow + 1h, {}, by_old)) << "its time is over";
  EXPECT_TRUE(taken(kNow + 1h, {}, by_next));
  EXPECT_TRUE(believed_keys(keys, KeyKind::Order, kNow).empty()) << "a key is for one kind";
  EXPECT_EQ(signing_key(keys, KeyKind::Roster, kNow - 1ms)->key, old.public_key());
  EXPECT_EQ(signing_key(keys, KeyKind::Roster, kNow)->key, next.public_key());
  EXPECT_EQ(signing_key(keys, KeyKind::Order, kNow), nullptr);
}

}  // namespace
}  // namespace muster::crypto
