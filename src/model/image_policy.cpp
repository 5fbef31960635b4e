#include "model/image_policy.h"

#include <algorithm>
#include <cctype>

#include "model/image_name.h"
#include "model/venv_image.h"

namespace muster {
namespace {

constexpr std::string_view kDigestPrefix = "sha256:";

std::string lower_case(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

struct Name {
  std::string repository, tag;
};
// The tag stands behind the last colon, unless that one belongs to a port.
Name name_and_tag(std::string_view text) {
  const auto slash = text.rfind('/'), colon = text.rfind(':');
  if (colon == std::string_view::npos || (slash != std::string_view::npos && colon < slash))
    return {std::string(text), {}};
  return {std::string(text.substr(0, colon)), std::string(text.substr(colon + 1))};
}

// With the registry and the folder that engines fill in. A first part with a star stands for registries as well.
std::string full_repository(std::string repository) {
  const auto slash = repository.find('/');
  const std::string first = repository.substr(0, slash);
  if (slash == std::string::npos)
    return first.find('*') != std::string::npos ? repository : "docker.io/library/" + repository;
  if (first.find_first_of(".:*") == std::string::npos && first != "localhost") return "docker.io/" + repository;
  const std::string host = lower_case(first), rest = repository.substr(slash);
  const bool hub = host == "docker.io" || host == "index.docker.io" || host == "registry-1.docker.io";
  if (!hub) return host + rest;
  const bool bare = rest.find_first_of("/*", 1) == std::string::npos;  // docker.io/python is library/python
  return "docker.io" + (bare ? "/library" + rest : rest);
}

// `*` is any run of characters. Linear in memory, and steps back only to the last star.
bool glob(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, from = 0;
  while (t < text.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      from = t;
    } else if (p < pattern.size() && pattern[p] == text[t]) {
      ++p, ++t;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      t = ++from;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

bool is_digest(std::string_view text) {
  return text.size() == kDigestPrefix.size() + 64 && text.starts_with(kDigestPrefix) &&
         std::all_of(text.begin() + kDigestPrefix.size(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

std::string_view without_digest(std::string_view image) {
  return image.substr(0, image.find('@'));
}

const std::string* first_match(const std::vector<std::string>& patterns, std::string_view image,
                               const std::vector<std::string>& digests) {
  const auto it = std::find_if(patterns.begin(), patterns.end(),
                               [&](const std::string& pattern) { return image_matches(pattern, image, digests); });
  return it == patterns.end() ? nullptr : &*it;
}

Status valid_patterns(const std::vector<std::string>& patterns, const std::string& field) {
  if (patterns.size() > kImagePatternsMax)
    return error(Code::InvalidArgument,
                 field + " has more than " + std::to_string(kImagePatternsMax) + " patterns; put a * into some", field);
  for (const std::string& pattern : patterns) {
    const auto wrong = [&](const std::string& why) {
      return error(Code::InvalidArgument, field + " has the pattern '" + pattern.substr(0, 80) + "', which " + why,
                   field);
    };
    if (pattern.empty() || pattern.size() > kImagePatternBytesMax)
      return wrong("is empty or longer than " + std::to_string(kImagePatternBytesMax) + " bytes");
    if (pattern.starts_with(kDigestPrefix)) {
      if (!is_digest(pattern)) return wrong("is no whole digest; write sha256: and 64 hex digits in lower case");
      continue;
    }
    if (pattern.find('@') != std::string::npos)
      return wrong("has a digest behind a name; write the name, or the digest alone");
    if (!std::all_of(pattern.begin(), pattern.end(), [](unsigned char c) { return c > 0x20 && c < 0x7f; }))
      return wrong("has characters that no image's name has");
  }
  return {};
}

}  // namespace

std::string full_image_name(std::string_view image) {
  const std::string_view name = without_digest(image);
  if (is_venv_image(name)) return std::string(name);
  const Name parts = name_and_tag(name);
  const bool pinned = name.size() != image.size();
  const std::string tag = !parts.tag.empty() ? parts.tag : pinned ? "" : "latest";
  return full_repository(parts.repository) + (tag.empty() ? "" : ":" + tag);
}

std::string image_digest(std::string_view image) {
  return image_pinned(image) ? std::string(image.substr(image.rfind('@') + 1)) : std::string();
}

bool image_matches(std::string_view pattern, std::string_view image, const std::vector<std::string>& digests) {
  if (pattern.starts_with(kDigestPrefix))
    return image_digest(image) == pattern || image == pattern ||
           std::find(digests.begin(), digests.end(), pattern) != digests.end();
  const std::string name = full_image_name(image);
  if (pattern == "*") return true;
  if (is_venv_image(pattern) || is_venv_image(name)) return glob(pattern, name);
  const Name wanted = name_and_tag(pattern), has = name_and_tag(name);
  return glob(full_repository(wanted.repository), has.repository) && (wanted.tag.empty() || glob(wanted.tag, has.tag));
}

std::optional<ImageRefusal> image_refusal(const ImagePolicy& policy, std::string_view whose, std::string_view image,
                                          const std::vector<std::string>& digests) {
  const std::string what = "the image " + std::string(image), by = "the image policy of " + std::string(whose);
  if (const std::string* pattern = first_match(policy.deny, image, digests))
    return ImageRefusal{"image_policy.denied",
                        what + " matches " + *pattern + ", which " + by +
                            " denies; take another image, or have the policy changed (muster images policy)"};
  if (!policy.allow.empty() && first_match(policy.allow, image, digests) == nullptr)
    return ImageRefusal{"image_policy.not_allowed",
                        what + " is none of those that " + by +
                            " allows; `muster images policy show` lists them: take one of them, or have yours added"};
  if (policy.require_digest && !image_pinned(image) && digests.empty())
    return ImageRefusal{"image_policy.no_digest", what + " is not named by its digest, as " + by + " requires; write " +
                                                      std::string(without_digest(image)) + "@sha256:..."};
  if (!policy.keys.empty() && is_venv_image(image))
    return ImageRefusal{"image_policy.unsigned", what + " is a virtual environment, which nobody can sign, and " + by +
                                                     " wants a signature; take an image of a registry"};
  return {};
}

Status validate(const ImagePolicy& policy, const std::string& field) {
  TRY_VOID(valid_patterns(policy.allow, field + ".allow"));
  TRY_VOID(valid_patterns(policy.deny, field + ".deny"));
  if (policy.keys.size() > kImageKeysMax)
    return error(Code::InvalidArgument,
                 field + ".keys has more than " + std::to_string(kImageKeysMax) + " keys; one signature is enough",
                 field + ".keys");
  for (const std::string& key : policy.keys)
    if (key.empty() || key.size() > kImageKeyBytesMax)
      return error(Code::InvalidArgument,
                   field + ".keys has a key that is empty or longer than " + std::to_string(kImageKeyBytesMax) +
                       " bytes; give public keys in PEM",
                   field + ".keys");
  return {};
}

}  // namespace muster
