#pragma once
// A virtual environment as an image: "venv:ray==2.60.0,python3.11,numpy==1.26.4". Exact versions only: Ray's is a must,
// python3 means whichever 3.x the first machine has. Resolving it gives a lock, the exact wheels with their hashes, and
// the reference pinned by the lock's SHA-256: "venv:ray==2.60.0,python3.11@sha256:...". Both are plain text with one
// spelling per meaning, so equal digests mean equal environments. Pure; what comes from machines is hostile and
// bounded.
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace muster {

inline constexpr std::size_t kVenvLockBytesMax = 512 << 10;
inline constexpr std::size_t kVenvPackagesMax = 500;  // of a lock
inline constexpr std::size_t kVenvWishesMax = 64;     // of a reference

struct VenvImage {
  std::string ray;                              // "2.60.0"
  std::string python;                           // "3" or "3.11"
  std::map<std::string, std::string> packages;  // beside Ray: name (normalised) -> version
  std::string lock;                             // SHA-256 in hex; empty = not resolved
  bool operator==(const VenvImage&) const = default;
};

bool is_venv_image(std::string_view image);  // starts with "venv:"
Result<VenvImage> parse_venv_image(std::string_view image);
std::string venv_text(const VenvImage& image);
// What is asked of the package index, one requirement a line: Ray with what a cluster needs of it, pip, the wishes.
std::string venv_requirements(const VenvImage& image);

struct VenvPackage {
  std::string name, version;
  std::vector<std::string> hashes;  // SHA-256 in hex, sorted
  bool operator==(const VenvPackage&) const = default;
};
struct VenvLock {
  VenvImage image;                    // with the exact minor version of Python; without the lock's digest
  std::string arch;                   // "x86_64" | "aarch64"
  std::vector<VenvPackage> packages;  // by name
  bool operator==(const VenvLock&) const = default;
};

std::string lock_text(const VenvLock& lock);
// Only what lock_text writes, and only where it fulfils its own reference.
Result<VenvLock> parse_lock(std::string_view text);
// Does the lock belong to that reference (pinned or not)? The digest is the caller's to check.
Status lock_fulfils(const VenvLock& lock, const VenvImage& image);
std::string normal_package_name(std::string_view name);  // as Python's index has it: lower case, runs of -_. are one -

}  // namespace muster
