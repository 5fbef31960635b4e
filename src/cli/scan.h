#pragma once
// `muster images scan`: what is known to be wrong with an image, found out on this machine alone.
#include <string>

#include "base/result.h"
#include "scan/verdict.h"

namespace CLI {
class App;
}

namespace muster::cli {

struct Shell;

// The lists of packages in the archive or folder at `path`, and what the records below `database` say of them.
Result<scan::Facts> scan_image(const std::string& path, const std::string& database);
// What a scanner plug-in says: run as `program path`, it prints a report (scan/verdict.h) and ends with 0.
Result<scan::Facts> ask_scanner(const std::string& program, const std::string& path);
std::string verdict_text(const scan::Facts& facts, const scan::Verdict& verdict, bool colour);
void add_scan(CLI::App& images, Shell& shell);

}  // namespace muster::cli
