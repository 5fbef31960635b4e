#pragma once
// What a container engine's words about a failed pull mean: a stable code, whether waiting may help, and a sentence
// that says what to do. Docker and Podman word them differently and change them; the texts here were seen from both.
// Pure.
#include <string>
#include <string_view>

#include "base/result.h"
#include "model/image_name.h"

namespace muster::host {

struct ImageFault {
  std::string_view code;  // image_pull.not_found | denied | disk_full | wrong_architecture | tls | unreachable |
                          // interrupted | failed
  bool passing = false;   // the same pull may succeed a little later
};
ImageFault image_fault(int status, std::string_view said);
// The error for people and programs; `said` is cut.
Error image_error(const std::string& image, int status, std::string_view said);
// Whether the tag may be asked for again although it is here: no digest, and no tag or "latest".
bool asks_again(std::string_view image);

}  // namespace muster::host
