#include "crypto/workload_token.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/check.h"
#include "crypto/signing_keys.h"

namespace muster::crypto {
namespace {

bool quotable(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c < 0x7f && c != '"' && c != '\\'; });
}

std::string audience_json(const std::vector<std::string>& audiences) {
  if (audiences.size() == 1) return "\"" + audiences.front() + "\"";
  std::string out;
  for (const std::string& each : audiences) out += (out.empty() ? "[\"" : ",\"") + each + "\"";
  return out + "]";
}

}  // namespace

std::string workload_subject(const WorkloadClaims& claims) {
  return fmt::format("org:{}:project:{}:cluster:{}{}", claims.org, claims.project, claims.cluster,
                     claims.job.empty() ? "" : ":job:" + claims.job);
}

bool valid_issuer(std::string_view text) {
  if (!text.starts_with("https://") || text.size() > 255 || text.size() < 9 || text.ends_with('/')) return false;
  text.remove_prefix(8);
  return text.front() != '/' && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' ||
                  c == ':' || c == '/' || c == '_' || c == '[' || c == ']';
         });
}

std::string make_workload_token(const SigningKey& key, const WorkloadClaims& claims) {
  MUSTER_CHECK(!claims.audiences.empty());
  for (const std::string* each : {&claims.issuer, &claims.org, &claims.project, &claims.cluster, &claims.job,
                                  &claims.org_id, &claims.project_id, &claims.cluster_id, &claims.lease_id, &claims.id})
    MUSTER_CHECK(quotable(*each));
  for (const std::string& each : claims.audiences) MUSTER_CHECK(quotable(each));
  const std::string header = fmt::format(R"({{"alg":"EdDSA","kid":"{}","typ":"JWT"}})", key_id_text(key.public_key()));
  std::string payload = fmt::format(R"({{"aud":{},"exp":{},"iat":{},"iss":"{}","jti":"{}","nbf":{},"sub":"{}",)",
                                    audience_json(claims.audiences), claims.expires.ms / 1000, claims.issued.ms / 1000,
                                    claims.issuer, claims.id, claims.issued.ms / 1000, workload_subject(claims));
  payload += fmt::format(R"("muster":{{"org":"{}","org_id":"{}","project":"{}","project_id":"{}",)", claims.org,
                         claims.org_id, claims.project, claims.project_id);
  payload += fmt::format(R"("cluster":"{}","cluster_id":"{}","lease_id":"{}")", claims.cluster, claims.cluster_id,
                         claims.lease_id);
  if (!claims.job.empty()) payload += fmt::format(R"(,"job_id":"{}")", claims.job);
  payload += "}}";
  std::string out = base64url(as_bytes(header)) + "." + base64url(as_bytes(payload));
  const Bytes signature = key.sign(as_bytes(out));
  return out + "." + base64url(signature);
}

std::string jwk_set(const std::vector<AccessKey>& keys) {
  std::string out;
  for (const AccessKey& each : keys)
    out += fmt::format(R"({}{{"kty":"OKP","crv":"Ed25519","use":"sig","alg":"EdDSA","kid":"{}","x":"{}"}})",
                       out.empty() ? "" : ",", key_id_text(each.key), base64url(each.key));
  return "{\"keys\":[" + out + "]}\n";
}

std::string discovery_document(std::string_view issuer) {
  return fmt::format(
      R"({{"issuer":"{0}","jwks_uri":"{0}/.well-known/jwks.json","response_types_supported":["id_token"],)"
      R"("subject_types_supported":["public"],"id_token_signing_alg_values_supported":["EdDSA"],)"
      R"("claims_supported":["iss","sub","aud","exp","iat","nbf","jti","muster"]}})"
      "\n",
      issuer);
}

}  // namespace muster::crypto
