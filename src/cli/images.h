#pragma once
// Which images may run, for `muster images policy`.
#include <optional>
#include <string>
#include <vector>

#include "cli/api.h"

namespace muster::cli {

struct ImagePolicyChange {                         // what is not named stays as it is
  std::vector<std::string> allow = {}, deny = {};  // patterns; "all" and "none" alone: no restriction
  std::vector<std::string> keys = {};              // files with public keys in PEM; "none" alone: no signatures
  std::optional<bool> require_digest = {};
  bool any() const { return !allow.empty() || !deny.empty() || !keys.empty() || require_digest; }
};
// Reads what holds at `target` (".../image-policy") and puts it back with the change; the answer is the new view.
Result<wire::Json> change_image_policy(Api& api, const std::string& target, const ImagePolicyChange& change);
std::string image_policy_text(const wire::Json& view);  // lines, the widest scope first
// Of `muster images verdicts`: a table, and for each image what was found.
std::string verdicts_text(const std::vector<wire::Json>& rows, bool findings, bool colour);

}  // namespace muster::cli
