#pragma once
// Completion code for the shells, made from the commands and options that exist. Pure.
#include <map>
#include <string>
#include <vector>

namespace muster::cli {

// path of commands ("job submit") -> its sub-commands and long options
std::string completion_script(const std::string& shell, const std::map<std::string, std::vector<std::string>>& words);

}  // namespace muster::cli
