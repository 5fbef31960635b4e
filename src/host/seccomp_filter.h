#pragma once
// Our seccomp profile (deploy/seccomp.json, in the engines' format) as the program that the kernel runs, so that a
// sandbox without an engine has exactly the filter that an engine would load. Understands what the profile uses: a
// default action, names, argument tests; anything else is an error. Thread-safe: stateless.
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::host {

Result<Bytes> compile_seccomp(std::string_view profile);  // an array of struct sock_filter
Status load_seccomp(ByteView program);                    // into this thread, for ever; needs no_new_privs

}  // namespace muster::host
