// Signatures as a hostile registry might serve them. The real registry: tests/system/images_test.py.
#include "host/image_signature.h"

#include <gtest/gtest.h>

#include <map>

#include "crypto/hash.h"
#include "crypto/sign.h"
#include "host/json.h"
#include "host/registry_reader.h"

namespace muster::host {
namespace {

const std::string kDigest = "sha256:" + std::string(64, 'a'), kOther = "sha256:" + std::string(64, 'b');

std::string public_pem(const crypto::SigningKey& key) {
  Bytes der = *unhex("302a300506032b6570032100");
  der.insert(der.end(), key.public_key().begin(), key.public_key().end());
  return "-----BEGIN PUBLIC KEY-----\n" + base64(der) + "\n-----END PUBLIC KEY-----\n";
}
std::string payload_of(const std::string& digest, const std::string& type = "cosign container image signature") {
  return to_text(json::object{
      {"critical", json::object{{"type", type}, {"image", json::object{{"docker-manifest-digest", digest}}}}}});
}

struct Registry {
  std::map<std::string, std::string> blobs;
  json::array layers;
  std::string asked_tag, text;
  bool there = true;

  void add(const std::string& payload, const Bytes& signature,
           const std::string& type = "application/vnd.dev.cosign.simplesigning.v1+json") {
    const std::string digest = "sha256:" + crypto::sha256_hex(as_bytes(payload));
    blobs[digest] = payload;
    layers.push_back(
        json::object{{"mediaType", type},
                     {"digest", digest},
                     {"annotations", json::object{{"dev.cosignproject.cosign/signature", base64(signature)}}}});
  }
  void sign(const crypto::SigningKey& key, const std::string& payload) { add(payload, key.sign(as_bytes(payload))); }
  SignatureSource source() {
    return {[this](const std::string& tag) -> Result<std::string> {
              asked_tag = tag;
              if (!there) return error(Code::NotFound, "no such tag");
              return text.empty() ? to_text(json::object{{"layers", layers}}) : text;
            },
            [this](const std::string& digest, std::size_t) -> Result<std::string> {
              const auto it = blobs.find(digest);
              if (it == blobs.end()) return error(Code::NotFound, "no such blob");
              return it->second;
            }};
  }
  std::string check(const std::vector<std::vector<std::string>>& keys,
                    const std::string& pinned = "r.example/app@" + kDigest) {
    const Status good = check_image_signature(source(), pinned, keys);
    return good.ok() ? "signed" : good.error().field;
  }
};

struct ImageSignature : ::testing::Test {
  crypto::SigningKey own = crypto::SigningKey::generate(), other = crypto::SigningKey::generate();
  std::string own_pem = public_pem(own), other_pem = public_pem(other);
  Registry registry;
};

TEST_F(ImageSignature, OneKeyOfEveryListIsEnough) {
  registry.sign(own, payload_of(kDigest));
  EXPECT_EQ(registry.check({{own_pem}}), "signed");
  EXPECT_EQ(registry.asked_tag, "sha256-" + std::string(64, 'a') + ".sig");
  EXPECT_EQ(registry.check({{other_pem, own_pem}}), "signed");
  EXPECT_EQ(registry.check({{other_pem}}), "image_signature.wrong");
  EXPECT_EQ(registry.check({{own_pem}, {other_pem}}), "image_signature.wrong");
  registry.sign(other, payload_of(kDigest));
  EXPECT_EQ(registry.check({{own_pem}, {other_pem}}), "signed");
}

TEST_F(ImageSignature, ItIsAboutThisDigestAndNothingElse) {
  registry.sign(own, payload_of(kOther));
  registry.sign(own, payload_of(kDigest, "another type"));
  registry.sign(own, "{}");
  registry.sign(own, "not even JSON");
  EXPECT_EQ(registry.check({{own_pem}}), "image_signature.wrong");
  EXPECT_EQ(registry.check({{own_pem}}, "r.example/app@" + kOther), "signed");
}

TEST_F(ImageSignature, WhatTheRegistrySaysIsHostile) {
  const std::string payload = payload_of(kDigest);
  registry.add(payload, other.sign(as_bytes(payload)));
  registry.add(payload, own.sign(as_bytes(payload)), "application/json");
  registry.add(payload, {});
  EXPECT_EQ(registry.check({{own_pem}}), "image_signature.wrong");
  registry.sign(own, payload);
  EXPECT_EQ(registry.check({{own_pem}}), "signed");
  for (auto& [digest, text] : registry.blobs) text += " ";
  EXPECT_EQ(registry.check({{own_pem}}), "image_signature.wrong") << "another payload than its digest says";
  registry.blobs.clear();
  EXPECT_EQ(registry.check({{own_pem}}), "image_signature.wrong");
  for (const char* text : {"x", "{}", R"({"layers":7})", R"({"layers":[1,{}]})"}) {
    registry.text = text;
    EXPECT_EQ(registry.check({{own_pem}}), "image_signature.wrong") << text;
  }
}

TEST_F(ImageSignature, NoSignatureAndNoRegistry) {
  registry.there = false;
  EXPECT_EQ(registry.check({{own_pem}}), "image_signature.missing");
  EXPECT_EQ(registry.check({{own_pem}}, ""), "image_signature.no_registry");
  EXPECT_EQ(registry.check({{own_pem}}, "app:1"), "image_signature.no_registry");
}

TEST(RegistryReader, ReadsWhatARegistryWants) {
  const auto bearer = parse_challenge(
      R"(Bearer realm="https://auth.example/token?x=1,2",service="registry.example",scope="repository:a/b:pull")");
  EXPECT_EQ(bearer, (std::map<std::string, std::string>{{"", "bearer"},
                                                        {"realm", "https://auth.example/token?x=1,2"},
                                                        {"service", "registry.example"},
                                                        {"scope", "repository:a/b:pull"}}));
  EXPECT_EQ(parse_challenge(R"(Basic realm="test")").at(""), "basic");
  for (const char* text : {"", "Bearer", "Bearer realm=", "Bearer realm=\"", "Bearer =\"\"\"", " ,,,"})
    (void)parse_challenge(text);
}

}  // namespace
}  // namespace muster::host
