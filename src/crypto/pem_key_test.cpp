// Keys and signatures that the openssl command made: "what was signed" by `openssl dgst -sha256 -sign` and by
// `openssl pkeyutl -sign -rawin`, as cosign writes them.
#include "crypto/pem_key.h"

#include <gtest/gtest.h>

namespace muster::crypto {
namespace {

constexpr std::string_view kP256 =
    "-----BEGIN PUBLIC KEY-----\n"
    "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE3c3UobLFEaViQN7CZcdC+AoYGHag\n"
    "4fFFCzwhVUZbyb7PCAxpI6h5kjuel8YJBRUhC2E24CKRJPEInf2ylhDEQw==\n"
    "-----END PUBLIC KEY-----\n";
constexpr std::string_view kEd25519 =
    "-----BEGIN PUBLIC KEY-----\n"
    "MCowBQYDK2VwAyEACOOtxY0GZCh08D0t5I2Pe2/e4Wmawf8V39OwOvMSwsM=\n"
    "-----END PUBLIC KEY-----\n";
constexpr std::string_view kP384 =
    "-----BEGIN PUBLIC KEY-----\n"
    "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAE2Q82LPPlcELMNjCb+C4x9pJCLL7K7spT\n"
    "aqv2VGOOIXzrjsYo2jXtl/cLZsr2PGa180lcArDsy/DVQV57dliMIBcrgdK3zhYk\n"
    "ELnUarq7sbGxO93PzOItlWLZUQBKvQPb\n"
    "-----END PUBLIC KEY-----\n";
constexpr std::string_view kByP256 =
    "MEYCIQDS+5XQB0zWnTf4VMOBWkc424hOrBK206zfyHH35pYbwAIhAJwXRYAm01D9BdUbycJZYMEZmzy0zEg2M1JLAt926/g8";
constexpr std::string_view kByEd25519 =
    "m1VHZiQZFl+19EtVMWPJuvaUkAd27Bx41JledsJ386G8hFuhBKmJRs5fpnwEm96XOAOhQ+r3V5i3fiFLdjZeAw==";

TEST(PemKey, VerifiesItsOwnSignaturesAlone) {
  const auto p256 = PemKey::parse(kP256), ed25519 = PemKey::parse(kEd25519);
  ASSERT_TRUE(p256.ok()) << p256.error().message;
  ASSERT_TRUE(ed25519.ok()) << ed25519.error().message;
  const Bytes by_p256 = *unbase64(kByP256), by_ed25519 = *unbase64(kByEd25519);
  const ByteView said = as_bytes("what was signed"), other = as_bytes("what was Signed");
  EXPECT_TRUE(p256->verify(said, by_p256));
  EXPECT_TRUE(ed25519->verify(said, by_ed25519));
  EXPECT_FALSE(p256->verify(other, by_p256));
  EXPECT_FALSE(ed25519->verify(other, by_ed25519));
  EXPECT_FALSE(p256->verify(said, by_ed25519));
  EXPECT_FALSE(ed25519->verify(said, by_p256));
  for (const auto& [key, whole] : {std::pair(*p256, by_p256), std::pair(*ed25519, by_ed25519)}) {
    for (std::size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(key.verify(said, ByteView(whole).first(n)));
    Bytes longer = whole;
    longer.push_back(0);
    EXPECT_FALSE(key.verify(said, longer));
  }
  EXPECT_EQ(p256->fingerprint(), "9606986ea78fe3eba096477d5eed2a0a45ec65a0458672df72feac59971c4935");
  EXPECT_EQ(p256->kind(), "p256");
  EXPECT_EQ(ed25519->kind(), "ed25519");
}

TEST(PemKey, RefusesWhatIsNoSuchKey) {
  const std::string twice = std::string(kP256) + std::string(kEd25519);
  for (const std::string_view pem :
       {std::string_view(), std::string_view("x"), kP384, std::string_view(twice), kP256.substr(0, 100),
        std::string_view("-----BEGIN PRIVATE KEY-----\n"), std::string_view("-----BEGIN CERTIFICATE-----\nAAAA\n")})
    EXPECT_EQ(PemKey::parse(pem).error().code, Code::InvalidArgument) << pem;
  EXPECT_NE(PemKey::parse("-----BEGIN PRIVATE KEY-----\n").error().message.find("private"), std::string::npos);
}

}  // namespace
}  // namespace muster::crypto
