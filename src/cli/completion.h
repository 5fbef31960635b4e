#pragma once
// Completion code for the shells, made from the commands and options that exist; names of clusters, jobs and machines
// are asked of `muster completion --names KIND` while one types. Pure.
#include <map>
#include <string>
#include <vector>

namespace muster::cli {

struct Completable {
  std::vector<std::string> words;  // sub-commands and long options
  std::string names;               // "clusters", "jobs", "nodes": what the first argument names; or empty
  bool files = false;              // arguments may be files
};
// path of commands ("job submit") -> what may follow
std::string completion_script(const std::string& shell, const std::map<std::string, Completable>& commands);

}  // namespace muster::cli
