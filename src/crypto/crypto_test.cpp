#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <set>

#include "crypto/aead.h"
#include "crypto/cert.h"
#include "crypto/cert_watch.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/machine_proof.h"
#include "crypto/password.h"
#include "crypto/random.h"
#include "crypto/sign.h"
#include "crypto/token.h"
#include "crypto/totp.h"
#include "crypto/x25519.h"

namespace muster::crypto {
namespace {

Bytes from_hex(std::string_view text) {
  return unhex(text).value();
}
Secret32 secret_hex(std::string_view text) {
  return Secret32(*key32(from_hex(text)));
}

TEST(Hash, PublishedVectors) {
  EXPECT_EQ(sha256_hex(as_bytes("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  Sha256 parts;
  parts.update(as_bytes("a"));
  parts.update(as_bytes("bc"));
  EXPECT_EQ(hex(parts.finish()), sha256_hex(as_bytes("abc")));
  // RFC 4231 test case 2, RFC 5869 test case 1, RFC 7693 appendix B.
  EXPECT_EQ(hex(hmac_sha256(as_bytes("Jefe"), as_bytes("what do ya want for nothing?"))),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(hex(hkdf_sha256(from_hex("0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b"),
                            from_hex("000102030405060708090a0b0c"), from_hex("f0f1f2f3f4f5f6f7f8f9"), 42)),
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865");
  EXPECT_EQ(hex(blake2s(as_bytes("abc"))), "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982");
  EXPECT_EQ(blake2s(as_bytes("a"), as_bytes("bc")), blake2s(as_bytes("abc")));
}

TEST(Hash, KeyedBlake2sKnownAnswer) {
  // The reference implementation's keyed test vector for an empty and a one-byte message under the key 00 01 .. 1f.
  Bytes key(32);
  for (std::size_t i = 0; i < key.size(); ++i) key[i] = static_cast<std::uint8_t>(i);
  EXPECT_EQ(hex(blake2s_keyed(key, {})), "48a8997da407876b3d79c0d92325ad3b89cbb754d86ab71aee047ad345fd2c49");
  EXPECT_EQ(hex(blake2s_keyed(key, from_hex("00"))),
            "40d15fee7c328830166ac3f918650f807e7e01e177258cdc0a39b11f598066f1");
  EXPECT_NE(hex(blake2s_mac16(key, {})), hex(blake2s_keyed(key, {})).substr(0, 32));  // the length is part of the hash
}

TEST(X25519, Rfc7748) {
  const auto shared =
      x25519_agree(secret_hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"),
                   *key32(from_hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")));
  ASSERT_TRUE(shared);
  EXPECT_EQ(hex(shared->bytes), "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
  EXPECT_FALSE(x25519_agree(x25519_generate().secret, Key32{}));
  const X25519Pair a = x25519_generate();
  const X25519Pair b = x25519_generate();
  EXPECT_EQ(x25519_agree(a.secret, b.public_key)->bytes, x25519_agree(b.secret, a.public_key)->bytes);
}

TEST(Sign, Rfc8032AndDomains) {
  const auto key =
      SigningKey::from_seed(from_hex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")).value();
  EXPECT_EQ(hex(key.public_key()), "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025");
  const Bytes signature = key.sign(from_hex("af82"));
  EXPECT_EQ(hex(signature),
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e971"
            "6ed28dc027beceea1ec40a");
  EXPECT_TRUE(verify(key.public_key(), from_hex("af82"), signature));
  EXPECT_FALSE(verify(key.public_key(), from_hex("af83"), signature));
  EXPECT_FALSE(verify(key.public_key(), from_hex("af82"), ByteView(signature).first(63)));
  const Bytes named = key.sign("a", {as_bytes("bc"), as_bytes("d")});
  EXPECT_TRUE(verify(key.public_key(), "a", {as_bytes("bc"), as_bytes("d")}, named));
  EXPECT_FALSE(verify(key.public_key(), "ab", {as_bytes("c"), as_bytes("d")}, named));
  EXPECT_FALSE(verify(key.public_key(), "a", {as_bytes("b"), as_bytes("cd")}, named));
}

TEST(Sign, PemRoundTrip) {
  const SigningKey key = SigningKey::generate();
  EXPECT_EQ(SigningKey::from_pem(key.to_pem())->public_key(), key.public_key());
  EXPECT_FALSE(SigningKey::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").ok());
}

TEST(Aead, Rfc8439) {
  const Secret32 key = secret_hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f");
  const Bytes ad = from_hex("50515253c0c1c2c3c4c5c6c7");
  const Bytes nonce = from_hex("070000004041424344454647");
  const std::string plain =
      "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be "
      "it.";
  Bytes sealed(plain.size() + kAeadTag);
  SealKey(key).seal_nonce(std::span<const std::uint8_t, 12>(nonce.data(), 12), ad, as_bytes(plain), sealed.data());
  EXPECT_EQ(hex(ByteView(sealed).first(16)), "d31a8d34648e60db7b86afbc53ef7ec2");
  EXPECT_EQ(hex(ByteView(sealed).last(16)), "1ae10b594f09e26a7e902ecbd0600691");
  Bytes opened(plain.size());
  OpenKey open(key);
  const std::span<const std::uint8_t, 12> n(nonce.data(), 12);
  EXPECT_TRUE(open.open_nonce(n, ad, sealed, opened.data()));
  EXPECT_EQ(as_string(opened), plain);
  for (std::size_t i : {std::size_t{0}, sealed.size() / 2, sealed.size() - 1}) {
    Bytes bad = sealed;
    bad[i] ^= 1;
    EXPECT_FALSE(open.open_nonce(n, ad, bad, opened.data()));
  }
  EXPECT_TRUE(open.open_nonce(n, ad, sealed, opened.data()));  // the context survives a forgery
}

TEST(Aead, SameContextManyNoncesAndEmpty) {
  const Secret32 key(random_key32());
  SealKey seal(key);
  OpenKey open(key);
  for (std::uint64_t counter = 0; counter < 64; ++counter) {
    const Bytes plain = random_bytes(static_cast<std::size_t>(counter));
    Bytes sealed(plain.size() + kAeadTag);
    seal.seal(counter, {}, plain, sealed.data());
    Bytes opened(plain.size() + 1);
    EXPECT_FALSE(open.open(counter + 1, {}, sealed, opened.data()));
    ASSERT_TRUE(open.open(counter, {}, sealed, opened.data()));
    opened.resize(plain.size());
    EXPECT_EQ(opened, plain);
  }
}

TEST(Aead, XChaChaDraftVectors) {
  // draft-irtf-cfrg-xchacha-03, 2.2.1 and A.3.1.
  const Secret32 key = secret_hex("000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f");
  const Bytes input = from_hex("000000090000004a0000000031415927");
  EXPECT_EQ(hex(hchacha20(key, std::span<const std::uint8_t, 16>(input.data(), 16)).bytes),
            "82413b4227b27bfed30e42508a877d73a0f9e4d58a74a853c12ec41326d3ecdc");
  const Secret32 key2 = secret_hex("808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f");
  const Bytes nonce = from_hex("404142434445464748494a4b4c4d4e4f5051525354555657");
  const std::span<const std::uint8_t, 24> n(nonce.data(), 24);
  const std::string plain =
      "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be "
      "it.";
  const Bytes sealed = xchacha_seal(key2, n, from_hex("50515253c0c1c2c3c4c5c6c7"), as_bytes(plain));
  EXPECT_EQ(hex(ByteView(sealed).last(16)), "c0875924c1c7987947deafd8780acf49");
  EXPECT_EQ(as_string(xchacha_open(key2, n, from_hex("50515253c0c1c2c3c4c5c6c7"), sealed).value()), plain);
  EXPECT_FALSE(xchacha_open(key2, n, {}, sealed));
}

TEST(Password, HashAndVerify) {
  const std::string encoded = hash_password("correct horse").value();
  EXPECT_TRUE(verify_password("correct horse", encoded));
  EXPECT_FALSE(verify_password("correct horsf", encoded));
  EXPECT_FALSE(verify_password("correct horse", encoded.substr(0, encoded.size() - 4)));
  EXPECT_FALSE(hash_password("short").ok());
  EXPECT_FALSE(outdated_hash(encoded));
}

// Made by other programs: OpenSSL 3.5's argon2id and Python's scrypt.
TEST(Password, OthersHashesHoldAndOldOnesAreToldApart) {
  const std::string argon =
      "$argon2id$v=19$m=65536,t=3,p=1$AAECAwQFBgcICQoLDA0ODw$48iJykDtAea2dx/Ipb8W41rWC0HJvV1+bWOt9R5QsP0";
  const std::string scrypt = "$scrypt$ln=15,r=8,p=1$AAECAwQFBgcICQoLDA0ODw$XGYmKKxOsQaKKH4qoqICriSOmNsE1h0zJ-c0LbbscJc";
  EXPECT_TRUE(verify_password("correct horse", argon));
  EXPECT_FALSE(verify_password("correct horsf", argon));
  EXPECT_FALSE(outdated_hash(argon));
  EXPECT_TRUE(verify_password("correct horse", scrypt));
  EXPECT_FALSE(verify_password("correct horsf", scrypt));
  EXPECT_TRUE(outdated_hash(scrypt));
  for (const char* odd :
       {"", "$argon2id$", "$argon2id$v=19$m=65536,t=3,p=1$", "$argon2id$v=19$m=65536,t=3,p=1$AAEC$",
        "$argon2id$v=19$m=4194304,t=3,p=1$AAECAwQFBgcICQoLDA0ODw$48iJykDtAea2dx", "$scrypt$ln=15,r=8,p=1$"})
    EXPECT_FALSE(verify_password("correct horse", odd)) << odd;
}

// RFC 4226 appendix D, RFC 6238 appendix B (SHA-1), RFC 4648 section 10.
TEST(Totp, VectorsOfTheStandards) {
  const ByteView secret = as_bytes("12345678901234567890");
  const char* counted[] = {"755224", "287082", "359152", "969429", "338314",
                           "254676", "287922", "162583", "399871", "520489"};
  for (std::uint64_t i = 0; i < 10; ++i) EXPECT_EQ(hotp(secret, i), counted[i]);
  const std::pair<std::int64_t, const char*> timed[] = {{59, "94287082"},         {1111111109, "07081804"},
                                                        {1111111111, "14050471"}, {1234567890, "89005924"},
                                                        {2000000000, "69279037"}, {20000000000, "65353130"}};
  for (const auto& [second, code] : timed) EXPECT_EQ(hotp(secret, totp_step(WallTime{second * 1000}), 8), code);
  const std::pair<const char*, const char*> texts[] = {{"", ""},
                                                       {"f", "MY"},
                                                       {"fo", "MZXQ"},
                                                       {"foo", "MZXW6"},
                                                       {"foob", "MZXW6YQ"},
                                                       {"fooba", "MZXW6YTB"},
                                                       {"foobar", "MZXW6YTBOI"}};
  for (const auto& [text, coded] : texts) EXPECT_EQ(base32(as_bytes(text)), coded);
  EXPECT_EQ(
      otpauth_uri("Muster a.example", "al:ice", secret),
      "otpauth://totp/Muster%20a.example:al%3Aice?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=Muster%20a.example");
}

TEST(Totp, OneStepEitherWayAndNeverTwice) {
  const Bytes secret = random_bytes(kTotpSecretBytes);
  const WallTime now{1'800'000'015'000};
  const std::uint64_t step = totp_step(now);
  for (const std::uint64_t good : {step - 1, step, step + 1})
    EXPECT_EQ(match_totp(secret, hotp(secret, good), now, 0).value_or(0), good);
  std::set<std::string> near = {hotp(secret, step - 1), hotp(secret, step), hotp(secret, step + 1)};
  for (const std::uint64_t bad : {step - 2, step + 2})
    if (!near.contains(hotp(secret, bad))) EXPECT_FALSE(match_totp(secret, hotp(secret, bad), now, 0));
  EXPECT_FALSE(match_totp(secret, hotp(secret, step - 1), now, step - 1)) << "used";
  if (near.size() == 3) EXPECT_FALSE(match_totp(secret, hotp(secret, step), now, step)) << "used";
  for (const char* odd : {"", "12345", "1234567", "abcdef"}) EXPECT_FALSE(match_totp(secret, odd, now, 0)) << odd;
}

TEST(Token, RoundTripAndDamage) {
  const NewToken api = make_api_token();
  EXPECT_EQ(*api_token_hash(api.text), api.hash);
  EXPECT_FALSE(api_token_hash(api.text.substr(1)).ok());
  EXPECT_FALSE(api_token_hash(api.text.substr(0, 20)).ok());
  const Bytes ca(32, 7);
  const NewToken join = make_join_token(ca, "muster.example.org:8443");
  const auto parts = parse_join_token(join.text + "\n");
  ASSERT_TRUE(parts.ok());
  EXPECT_EQ(parts->hash, join.hash);
  EXPECT_EQ(parts->ca_sha256, ca);
  EXPECT_EQ(parts->host, "muster.example.org:8443");
  EXPECT_EQ(parse_join_token(make_join_token(ca, "").text)->host, "");
  EXPECT_FALSE(parse_join_token("mj1.AAAA.BBBB").ok());
  EXPECT_FALSE(parse_join_token(join.text + "/..").ok());
}

TEST(File, SecretsKeepTheirMode) {
  char pattern[] = "/tmp/muster_crypto_XXXXXX";
  const std::string directory = mkdtemp(pattern);
  const std::string path = directory + "/key";
  ASSERT_TRUE(write_secret_file(path, as_bytes("one")).ok());
  ASSERT_TRUE(write_secret_file(path, as_bytes("two")).ok());
  EXPECT_EQ(as_string(*read_secret_file(path)), "two");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory), {}), 1);
  ASSERT_EQ(chmod(path.c_str(), 0640), 0);
  EXPECT_FALSE(read_secret_file(path).ok());
  EXPECT_EQ(read_secret_file(directory + "/none").error().code, Code::NotFound);
  std::filesystem::remove_all(directory);
}

class Certs : public ::testing::Test {
 protected:
  WallTime now{1'795'000'000'000};
  KeyAndCert ca = create_ca("Muster CA", now).value();
  SigningKey device = SigningKey::generate();
};

TEST_F(Certs, DeviceLife) {
  const std::string csr = make_csr(device, "machine").value();
  EXPECT_EQ(*verify_csr(csr), device.public_key());
  const std::string cert = issue_device_certificate(ca, device.public_key(), "node-12", now).value();
  const auto read = verify_device_certificate(cert, ca.cert_pem, now + 1h);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->node_id, "node-12");
  EXPECT_EQ(read->device_key, device.public_key());
  EXPECT_EQ(read->not_after, now + 24h);
  EXPECT_FALSE(verify_device_certificate(cert, ca.cert_pem, now + 25h).ok());
  EXPECT_FALSE(verify_device_certificate(cert, ca.cert_pem, now - 1h).ok());
  const KeyAndCert other = create_ca("Muster CA", now).value();
  EXPECT_FALSE(verify_device_certificate(cert, other.cert_pem, now).ok());
  EXPECT_FALSE(verify_device_certificate("nonsense", ca.cert_pem, now).ok());
}

TEST_F(Certs, ServerIsNoDeviceAndNoCa) {
  const auto server =
      issue_server_certificate(ca, ServerRole::ControlPlane, "muster", {"muster", "10.0.0.1", "::1"}, now, 24h).value();
  EXPECT_TRUE(verify_chain(server.cert_pem, ca.cert_pem, now).ok());
  EXPECT_FALSE(verify_device_certificate(server.cert_pem, ca.cert_pem, now).ok());
  const auto forged = issue_device_certificate(server, device.public_key(), "node-1", now).value();
  EXPECT_FALSE(verify_device_certificate(forged, ca.cert_pem, now).ok());
  EXPECT_FALSE(verify_device_certificate(forged, server.cert_pem, now).ok());
  EXPECT_FALSE(issue_server_certificate(ca, ServerRole::ControlPlane, "x", {"a,DNS:b"}, now, 24h).ok());
}

TEST_F(Certs, FingerprintFindsTheCa) {
  const auto server = issue_server_certificate(ca, ServerRole::ControlPlane, "muster", {"muster"}, now, 24h).value();
  const Bytes pin = certificate_sha256(ca.cert_pem).value();
  EXPECT_EQ(*find_certificate(server.cert_pem + ca.cert_pem, pin), ca.cert_pem);
  EXPECT_FALSE(find_certificate(server.cert_pem, pin).ok());
  EXPECT_EQ(*certificate_expiry(server.cert_pem), now + 24h);
}

TEST_F(Certs, TheirEndIsToldAtHalfAQuarterAndWhenItCame) {
  CertWatch watch;
  const auto server = issue_server_certificate(ca, ServerRole::ControlPlane, "muster", {"muster"}, now, 40h).value();
  ASSERT_TRUE(watch.set("server", server.cert_pem + ca.cert_pem, "copy the new one").ok());
  EXPECT_EQ(watch.left(now).at(0).second, 40h);
  EXPECT_TRUE(watch.warnings(now + 19h).empty());
  const auto half = watch.warnings(now + 21h);
  ASSERT_EQ(half.size(), 1u);
  EXPECT_NE(half[0].find("server has half"), std::string::npos) << half[0];
  EXPECT_NE(half[0].find("copy the new one"), std::string::npos);
  ASSERT_TRUE(watch.set("server", server.cert_pem, "copy the new one").ok());
  EXPECT_TRUE(watch.warnings(now + 29h).empty()) << "the same one is told once";
  EXPECT_EQ(watch.warnings(now + 31h).size(), 1u);
  EXPECT_EQ(watch.warnings(now + 41h).size(), 1u);
  EXPECT_EQ(watch.left(now + 41h).at(0).second, -1h);
  const auto next =
      issue_server_certificate(ca, ServerRole::ControlPlane, "muster", {"muster"}, now + 30h, 40h).value();
  ASSERT_TRUE(watch.set("server", next.cert_pem, "copy the new one").ok());
  EXPECT_TRUE(watch.warnings(now + 41h).empty());
  EXPECT_FALSE(watch.set("server", "nothing", "").ok());
}

TEST_F(Certs, AServersRoleIsInItsCertificate) {
  const auto role = [&](std::optional<ServerRole> wanted) {
    return server_role(issue_server_certificate(ca, wanted, "x", {"x"}, now, 24h)->cert_pem).value();
  };
  EXPECT_EQ(role(ServerRole::ControlPlane), ServerRole::ControlPlane);
  EXPECT_EQ(role(ServerRole::Relay), ServerRole::Relay);
  EXPECT_EQ(role({}), std::nullopt);
  EXPECT_EQ(server_role(ca.cert_pem).value(), std::nullopt);
  EXPECT_FALSE(server_role(issue_device_certificate(ca, device.public_key(), "node-1", now).value()).ok());
  EXPECT_FALSE(server_role("nonsense").ok());
  const auto one = issue_server_certificate(ca, ServerRole::Relay, "x", {"x"}, now, 24h).value();
  const auto two = issue_server_certificate(ca, ServerRole::Relay, "x", {"x"}, now, 24h).value();
  EXPECT_TRUE(key_fits(one));
  EXPECT_FALSE(key_fits({one.key_pem, two.cert_pem}));
  EXPECT_FALSE(key_fits({"", one.cert_pem}));
}

TEST_F(Certs, AMachinesProofIsForOneMachineOneKeyAndOneWeek) {
  const Key32 key = device.public_key(), other_key = SigningKey::generate().public_key();
  const MachineProof proof = prove_machine(ca, 12, key, now).value();
  const auto verifier = MachineVerifier::create(ca.cert_pem).value();
  for (int twice = 0; twice < 2; ++twice) {  // the second time it is remembered
    EXPECT_TRUE(verifier->genuine(proof, key, now));
    EXPECT_FALSE(verifier->genuine(proof, other_key, now));
    EXPECT_TRUE(verifier->genuine(proof, key, now + 7 * 24h + 23h)) << "clocks of machines are off";
    EXPECT_FALSE(verifier->genuine(proof, key, now + 8 * 24h + 1h));
    EXPECT_TRUE(verifier->genuine(proof, key, now - 23h));
    EXPECT_FALSE(verifier->genuine(proof, key, now - 25h));
    MachineProof moved = proof;
    moved.node = 13;
    EXPECT_FALSE(verifier->genuine(moved, key, now));
    moved = proof;
    moved.not_after = moved.not_after + 1h;
    EXPECT_FALSE(verifier->genuine(moved, key, now));
  }
  const KeyAndCert other = create_ca("Muster CA", now).value();
  EXPECT_FALSE(verifier->genuine(prove_machine(other, 12, key, now).value(), key, now));
  EXPECT_FALSE(MachineVerifier::create("nonsense").ok());
  const Bytes bytes = encode_machine_proofs({proof, proof});
  EXPECT_EQ(bytes.size(), 2 * kMachineProofBytes);
  EXPECT_EQ(decode_machine_proofs(bytes, 2).value(), (std::vector<MachineProof>{proof, proof}));
  EXPECT_FALSE(decode_machine_proofs(bytes, 1).ok());
  EXPECT_FALSE(decode_machine_proofs(ByteView(bytes).first(bytes.size() - 1), 2).ok());
  for (std::size_t i = 16; i < kMachineProofBytes; ++i) {
    MachineProof bad = proof;
    bad.signature[i - 16] ^= 1;
    EXPECT_FALSE(verifier->genuine(bad, key, now)) << i;
  }
  for (const std::uint8_t fill : {0, 255}) {
    MachineProof bad = proof;
    bad.signature.assign(64, fill);
    EXPECT_FALSE(verifier->genuine(bad, key, now));
  }
}

TEST_F(Certs, CsrWithForeignKeyOrDamageIsRefused) {
  std::string csr = make_csr(device, "machine").value();
  const std::size_t middle = csr.size() / 2;
  csr[middle] = csr[middle] == 'A' ? 'B' : 'A';
  EXPECT_FALSE(verify_csr(csr).ok());
}

}  // namespace
}  // namespace muster::crypto
