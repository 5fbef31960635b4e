#pragma once
// `muster-agent image-check`: whether this machine finds a signature of one of the keys for an image, as it would
// before a lease runs it.
#include <string>
#include <vector>

namespace muster::host {

// image: "repository@sha256:...". Files with public keys in PEM; the account of the registry, where it needs one. Exit
// code: 0 signed, 3 not signed or not to be found out.
int image_check(const std::string& image, const std::vector<std::string>& key_files, const std::string& username,
                const std::string& password_file);

}  // namespace muster::host
