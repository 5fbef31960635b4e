#pragma once
// The identity token of a cluster or job, for services outside of the platform: a JWT (RFC 7519) signed with Ed25519
// (EdDSA, RFC 8037), to be checked against the JWK set that the control plane publishes. We only make them; nobody of
// the platform takes one for leave to do anything. Values; any thread.
#include <string>
#include <vector>

#include "base/time.h"
#include "crypto/access_token.h"
#include "crypto/sign.h"

namespace muster::crypto {

inline constexpr Millis kWorkloadLifetimeMax{3'600'000};

struct WorkloadClaims {
  std::string issuer;                      // "https://muster.example.org"
  std::string org, project, cluster, job;  // names; the job's id, empty: of the cluster alone
  std::string org_id, project_id, cluster_id, lease_id;
  std::vector<std::string> audiences;
  std::string id;  // differs for every token
  WallTime issued, expires;
};

// "org:acme:project:vision:cluster:train", and ":job:job-7" where a job has it.
std::string workload_subject(const WorkloadClaims& claims);
// Texts may hold printable ASCII without quotes and backslashes only.
std::string make_workload_token(const SigningKey& key, const WorkloadClaims& claims);
bool valid_issuer(std::string_view text);  // "https://HOST[:PORT][/PATH]", without a slash at its end

// What is published: {"keys": [...]}, and the discovery document that names where.
std::string jwk_set(const std::vector<AccessKey>& keys);
std::string discovery_document(std::string_view issuer);

}  // namespace muster::crypto
