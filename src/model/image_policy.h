#pragma once
// What a policy of images says about one: whether its name and digests may run. A pattern is a name as engines read it,
// with `*` for anything, slashes too: "ghcr.io/team/*", "muster/ray", "python:3.11*", "venv:*"; without a tag it means
// every tag, without a registry docker.io's. "sha256:..." means one digest: of the manifest, or of the image as the
// engine names it. Pure; patterns may be hostile.
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/types.h"

namespace muster {

inline constexpr std::size_t kImagePatternsMax = 32, kImagePatternBytesMax = 200;
inline constexpr std::size_t kImageKeysMax = 4, kImageKeyBytesMax = 800;

// "docker.io/library/python:3.11" of "python:3.11@sha256:..."; a virtual environment as it is, without its digest.
std::string full_image_name(std::string_view image);
// "sha256:..." of an image that is named by its digest; empty: it is not.
std::string image_digest(std::string_view image);
// digests: those that are known, besides the one in the name.
bool image_matches(std::string_view pattern, std::string_view image, const std::vector<std::string>& digests = {});

struct ImageRefusal {
  std::string code;  // image_policy.denied | image_policy.not_allowed | image_policy.no_digest |
                     // image_policy.unsigned
  std::string text;  // what stands against it and what to do: "the image x matches ..."
  bool operator==(const ImageRefusal&) const = default;
};
// whose: "project default", of which it is the policy. Signatures are another matter (host/image_signature.h).
std::optional<ImageRefusal> image_refusal(const ImagePolicy& policy, std::string_view whose, std::string_view image,
                                          const std::vector<std::string>& digests = {});
// Bounds and sanity; whether keys are keys is not looked at.
Status validate(const ImagePolicy& policy, const std::string& field);

}  // namespace muster
