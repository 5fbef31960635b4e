#pragma once
// A runtime environment as a Ray user writes it, made into what can travel: a local working_dir becomes the folder to
// pack, local requirement and conda files become their contents. What would not work from here is refused with the way
// to go instead. Reads local files; errors name the key.
#include <string>
#include <vector>

#include "base/result.h"

namespace muster::cli {

struct RuntimeEnv {
  std::string json;                   // empty: nothing asked
  std::string working_dir;            // a folder here
  std::vector<std::string> excludes;  // patterns not packed
};
// `text`: JSON or YAML. `folder`: what relative paths start from.
Result<RuntimeEnv> resolve_runtime_env(const std::string& text, const std::string& folder);

}  // namespace muster::cli
