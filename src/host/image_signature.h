#pragma once
// Whether an image is signed as cosign signs with a key: beside `repository@sha256:HEX` the tag `sha256-HEX.sig` names
// a manifest whose layers are payloads ("simple signing" JSON that names the digest), each with its signature as an
// annotation. Verified here, with keys that are here; nobody else is asked. What the registry says is hostile. Pure but
// for the source; blocking as that is.
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::host {

struct SignatureSource {
  std::function<Result<std::string>(const std::string& tag)> manifest;  // NotFound: there is none
  std::function<Result<std::string>(const std::string& digest, std::size_t bytes_max)> blob;
};
// pinned: "repository@sha256:..." of what was pulled; empty: it came by hand. Of each list one key must have signed it.
// Errors by `field`: image_signature.missing | wrong | no_registry, and what the source says.
Status check_image_signature(const SignatureSource& source, const std::string& pinned,
                             const std::vector<std::vector<std::string>>& keys);

struct SignatureLayer {
  std::string digest;  // of the payload
  Bytes signature;
};
Result<std::vector<SignatureLayer>> parse_signatures(std::string_view manifest);  // others' layers are passed over
bool payload_names(std::string_view payload, std::string_view digest);

}  // namespace muster::host
