#include "host/embedded.h"

#define MUSTER_EMBED(symbol, path)          \
  __asm__(                                  \
      ".pushsection .rodata\n"              \
      ".global " #symbol "_begin\n" #symbol \
      "_begin:\n"                           \
      ".incbin \"" MUSTER_SOURCE_DIR path   \
      "\"\n"                                \
      ".global " #symbol "_end\n" #symbol   \
      "_end:\n"                             \
      ".byte 0\n"                           \
      ".popsection\n");                     \
  extern "C" const char symbol##_begin[];   \
  extern "C" const char symbol##_end[]

MUSTER_EMBED(muster_ray_helper, "/src/host/ray_helper.py");
MUSTER_EMBED(muster_ray_warm, "/src/host/ray_warm.py");
MUSTER_EMBED(muster_ray_jobs, "/src/host/ray_jobs.py");
MUSTER_EMBED(muster_seccomp, "/deploy/seccomp.json");

namespace muster::host {

std::string_view ray_helper_source() {
  return {muster_ray_helper_begin, static_cast<std::size_t>(muster_ray_helper_end - muster_ray_helper_begin)};
}
std::string_view ray_warm_source() {
  return {muster_ray_warm_begin, static_cast<std::size_t>(muster_ray_warm_end - muster_ray_warm_begin)};
}
std::string_view ray_jobs_source() {
  return {muster_ray_jobs_begin, static_cast<std::size_t>(muster_ray_jobs_end - muster_ray_jobs_begin)};
}
std::string_view seccomp_profile() {
  return {muster_seccomp_begin, static_cast<std::size_t>(muster_seccomp_end - muster_seccomp_begin)};
}

}  // namespace muster::host
