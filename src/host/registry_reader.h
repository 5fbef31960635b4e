#pragma once
// Reads manifests and small blobs of one repository of an image registry (OCI distribution), as the container engine
// would: over TLS that the system's roots or the engine's own certs.d vouch for, plain HTTP only to this machine, with
// the registry's account by Basic or by a token of whom the registry names. The registry is not trusted: answers are
// bounded, redirects lead to HTTPS alone and carry no account. Blocking; one thread.
#include <map>
#include <string>

#include "base/result.h"
#include "host/runtime.h"
#include "net/net.h"

namespace muster::host {

class RegistryReader {
 public:
  // repository: "registry.example:5000/team/app". Errors: NotFound, PermissionDenied, else Unavailable.
  RegistryReader(std::string repository, RegistryAuth auth);
  Result<std::string> manifest(const std::string& tag);
  Result<std::string> blob(const std::string& digest, std::size_t bytes_max);

 private:
  Result<net::Response> ask(const std::string& path, const std::string& accept, std::size_t bytes_max);
  Result<net::Response> get(const std::string& url, std::map<std::string, std::string> headers, std::size_t bytes_max);
  Status authorise(const std::string& challenge);

  std::string host_, path_, base_;  // "ghcr.io", "team/app", "https://ghcr.io"
  RegistryAuth auth_;
  std::string authorisation_;  // header, once the registry said what it wants
};

// The parts of `Bearer realm="https://...",service="..."`: lower-case scheme under "", then the parameters.
std::map<std::string, std::string> parse_challenge(std::string_view text);

}  // namespace muster::host
