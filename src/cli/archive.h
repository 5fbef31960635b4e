#pragma once
// Folders as one file: ZIP for job working directories, ustar for file mounts and rsync. Deterministic: sorted names,
// fixed times, so equal folders give equal SHA-256. Bounds: 512 MiB, 100,000 files. Symbolic links are left out and
// counted. Unpacking takes regular files and folders only, never outside the target.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace muster::cli {

inline constexpr std::uint64_t kArchiveBytesMax = std::uint64_t{512} << 20;
inline constexpr std::size_t kArchiveFilesMax = 100'000;

struct Packed {
  std::string file, sha256;
  std::uint64_t bytes = 0;
  std::size_t files = 0, skipped = 0;
};
enum class Format : std::uint8_t { Zip, Tar };

// Packs `source` (a folder, or one file under its own name) into a new temporary file; the caller removes it
// (TemporaryFile). Patterns: a name or path with * and ?, matched against the whole relative path and each of its
// parts. ".git" and
// "__pycache__" are always left out, and so is what a .gitignore at the top names in plain patterns.
Result<Packed> pack(const std::string& source, Format format, const std::vector<std::string>& excludes = {});
bool matches(std::string_view pattern, std::string_view path);

class TemporaryFile {
 public:
  explicit TemporaryFile(std::string path) : path_(std::move(path)) {}
  ~TemporaryFile();
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A tar stream (ustar, GNU long names, pax paths) from another machine, fed in pieces of any size.
class Unpacker {
 public:
  explicit Unpacker(std::string target);  // an existing folder
  ~Unpacker();
  Status feed(std::string_view bytes);
  Status finish();  // DataLoss when the stream ended in the middle of a file
  std::size_t files() const;
  std::size_t skipped() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace muster::cli
