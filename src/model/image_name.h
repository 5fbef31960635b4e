#pragma once
// The parts of an image's name, as every engine reads them: [REGISTRY/]REPOSITORY[:TAG][@DIGEST]. Pure.
#include <string>
#include <string_view>

namespace muster {

// "registry.example:5000/team/app" of "registry.example:5000/team/app:1@sha256:..."
std::string image_repository(std::string_view image);
// "registry.example:5000"; "docker.io" for names without a host.
std::string image_registry(std::string_view image);
// Settled for good: it ends with the digest of its content.
bool image_pinned(std::string_view image);
// A registry as people write it at `registry login`: a host name or address, with a port or without.
bool valid_registry(std::string_view host);

}  // namespace muster
