#pragma once
// Reasons travel as stable codes ("image_pull.denied", also behind another one: "head_failed:image_pull.denied"); here
// is the one place that says to people what a code means and what to do. Pure.
#include <string>
#include <string_view>

namespace muster {

std::string_view reason_sentence(std::string_view reason);  // of its last code; empty = none is known
std::string with_sentence(std::string_view reason);         // "image_pull.denied: the registry refuses ..."

}  // namespace muster
