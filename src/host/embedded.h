#pragma once
// Files of the source tree carried inside the binary: the Ray helper (three files) and the seccomp profile.
#include <string_view>

namespace muster::host {

std::string_view ray_helper_source();
std::string_view seccomp_profile();
std::string_view ray_warm_source();
std::string_view ray_jobs_source();

}  // namespace muster::host
