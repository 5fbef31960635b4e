#include "crypto/workload_token.h"

#include <gtest/gtest.h>

#include "crypto/signing_keys.h"

namespace muster::crypto {
namespace {

WorkloadClaims claims_of_train() {
  WorkloadClaims out;
  out.issuer = "https://muster.example.org";
  out.org = "acme", out.project = "vision", out.cluster = "train", out.job = "job-7";
  out.org_id = "org-2", out.project_id = "project-3", out.cluster_id = "cluster-5", out.lease_id = "lease-9";
  out.audiences = {"sts.amazonaws.com"}, out.id = "0a";
  out.issued = WallTime{1'800'000'000'000}, out.expires = out.issued + kWorkloadLifetimeMax;
  return out;
}
std::string part(const std::string& token, int which) {
  std::string rest = token;
  for (int i = 0; i < which; ++i) rest = rest.substr(rest.find('.') + 1);
  return as_string(unbase64url(rest.substr(0, rest.find('.'))).value_or(Bytes()));
}

TEST(WorkloadToken, SaysWhoItIsAndIsSigned) {
  const auto key = SigningKey::generate();
  const std::string token = make_workload_token(key, claims_of_train());
  EXPECT_EQ(part(token, 0), R"({"alg":"EdDSA","kid":")" + key_id_text(key.public_key()) + R"(","typ":"JWT"})");
  EXPECT_EQ(part(token, 1),
            R"({"aud":"sts.amazonaws.com","exp":1800003600,"iat":1800000000,"iss":"https://muster.example.org",)"
            R"("jti":"0a","nbf":1800000000,"sub":"org:acme:project:vision:cluster:train:job:job-7",)"
            R"("muster":{"org":"acme","org_id":"org-2","project":"vision","project_id":"project-3","cluster":"train",)"
            R"("cluster_id":"cluster-5","lease_id":"lease-9","job_id":"job-7"}})");
  const auto dot = token.rfind('.');
  const auto signature = unbase64url(token.substr(dot + 1));
  ASSERT_TRUE(signature.has_value());
  EXPECT_TRUE(verify(key.public_key(), as_bytes(std::string_view(token).substr(0, dot)), *signature));
  WorkloadClaims cluster = claims_of_train();
  cluster.job.clear(), cluster.audiences = {"a", "https://b.example"};
  const std::string payload = part(make_workload_token(key, cluster), 1);
  EXPECT_NE(payload.find(R"("sub":"org:acme:project:vision:cluster:train",)"), std::string::npos);
  EXPECT_NE(payload.find(R"("aud":["a","https://b.example"])"), std::string::npos);
  EXPECT_EQ(payload.find("job_id"), std::string::npos);
}

TEST(WorkloadToken, IsNoAccessTokenEvenUnderTheSameKey) {
  const auto key = SigningKey::generate();
  EXPECT_FALSE(read_access_token(make_workload_token(key, claims_of_train()), {{key.public_key(), {}}},
                                 "https://muster.example.org", WallTime{1'800'000'000'000})
                   .ok());
}

TEST(WorkloadToken, TheKeySetNamesEachKeyByItsId) {
  const auto one = SigningKey::generate(), two = SigningKey::generate();
  const std::string set = jwk_set({{one.public_key(), {}}, {two.public_key(), WallTime{1}}});
  for (const auto* key : {&one, &two}) {
    EXPECT_NE(set.find("\"kid\":\"" + key_id_text(key->public_key()) + "\""), std::string::npos);
    EXPECT_NE(set.find("\"x\":\"" + base64url(key->public_key()) + "\""), std::string::npos);
  }
  EXPECT_NE(discovery_document("https://id.example").find("\"jwks_uri\":\"https://id.example/.well-known/jwks.json\""),
            std::string::npos);
}

TEST(WorkloadToken, AnIssuerIsAnHttpsAddress) {
  for (const char* good : {"https://muster.example.org", "https://10.0.0.1:8443", "https://a.example/x/y"})
    EXPECT_TRUE(valid_issuer(good)) << good;
  for (const char* bad :
       {"", "https://", "http://a.example", "https://a.example/", "https:///x", "https://a b", "https://a\"b"})
    EXPECT_FALSE(valid_issuer(bad)) << bad;
}

}  // namespace
}  // namespace muster::crypto
