#include "host/image_signature.h"

#include <algorithm>

#include "crypto/hash.h"
#include "crypto/pem_key.h"
#include "host/json.h"
#include "model/image_policy.h"

namespace muster::host {
namespace {

constexpr std::string_view kPayloadType = "application/vnd.dev.cosign.simplesigning.v1+json";
constexpr std::string_view kAnnotation = "dev.cosignproject.cosign/signature";
constexpr std::string_view kSays = "cosign container image signature";
constexpr std::size_t kSignaturesMax = 64, kPayloadMax = 64 << 10;

Error unsigned_image(std::string why, std::string code) {
  return error(Code::PermissionDenied, std::move(why), std::move(code));
}

}  // namespace

Result<std::vector<SignatureLayer>> parse_signatures(std::string_view manifest) {
  const json::object object = TRY(parse_object(manifest));
  const auto* layers = object.if_contains("layers");
  if (layers == nullptr || !layers->is_array())
    return error(Code::InvalidArgument, "the manifest of signatures has no layers", "image_signature.wrong");
  std::vector<SignatureLayer> out;
  for (const auto& layer : layers->get_array()) {
    if (out.size() >= kSignaturesMax) break;
    if (text_at(layer, {"mediaType"}) != kPayloadType) continue;
    auto signature = unbase64(text_at(layer, {"annotations", kAnnotation}));
    std::string digest = text_at(layer, {"digest"});
    if (signature && !signature->empty() && digest.starts_with("sha256:") && digest.size() == 71)
      out.push_back({std::move(digest), std::move(*signature)});
  }
  return out;
}

bool payload_names(std::string_view payload, std::string_view digest) {
  const auto object = parse_object(payload);
  return object.ok() && text_at(*object, {"critical", "type"}) == kSays &&
         text_at(*object, {"critical", "image", "docker-manifest-digest"}) == digest;
}

Status check_image_signature(const SignatureSource& source, const std::string& pinned,
                             const std::vector<std::vector<std::string>>& lists) {
  const std::string digest = image_digest(pinned);
  if (digest.empty())
    return unsigned_image("the image did not come from a registry, so nothing says who made it",
                          "image_signature.no_registry");
  std::vector<std::vector<crypto::PemKey>> wanted;
  for (const auto& list : lists) {
    auto& keys = wanted.emplace_back();
    for (const std::string& pem : list) keys.push_back(TRY(crypto::PemKey::parse(pem)));
  }
  std::string tag = digest + ".sig";
  tag[tag.find(':')] = '-';
  const auto manifest = source.manifest(tag);
  if (!manifest.ok() && manifest.error().code == Code::NotFound)
    return unsigned_image(pinned + " is not signed: its registry has no " + tag, "image_signature.missing");
  if (!manifest.ok()) return manifest.error();
  const auto layers = parse_signatures(*manifest);
  for (const SignatureLayer& layer : layers.ok() ? *layers : std::vector<SignatureLayer>{}) {
    if (wanted.empty()) break;
    const auto payload = source.blob(layer.digest, kPayloadMax);
    if (!payload.ok() && payload.error().code == Code::NotFound) continue;
    if (!payload.ok()) return payload.error();
    if ("sha256:" + crypto::sha256_hex(as_bytes(*payload)) != layer.digest || !payload_names(*payload, digest))
      continue;
    std::erase_if(wanted, [&](const auto& keys) {
      return std::any_of(keys.begin(), keys.end(),
                         [&](const crypto::PemKey& key) { return key.verify(as_bytes(*payload), layer.signature); });
    });
  }
  if (wanted.empty()) return {};
  return unsigned_image("none of the keys that a policy names has signed " + pinned, "image_signature.wrong");
}

}  // namespace muster::host
