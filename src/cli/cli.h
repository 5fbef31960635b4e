#pragma once
// The command `muster`: parses, runs one command, returns its exit code (docs/cli.md). Owns the process: signals,
// terminal, files.
namespace muster::cli {
int run(int argc, const char* const* argv);
}  // namespace muster::cli
