#pragma once
// Folders as one stream: ZIP for job working directories, tar for file mounts and rsync. Packed archives are
// deterministic (sorted names, fixed times), so equal folders give equal SHA-256; bounds: 512 MiB, 100,000 files. A ZIP
// holds what links point to, as Ray's own packages do; a tar holds links, modes and empty folders. Unpacking never
// writes outside the target, whatever the stream says.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace muster::cli {

inline constexpr std::uint64_t kArchiveBytesMax = std::uint64_t{512} << 20;
inline constexpr std::size_t kArchiveFilesMax = 100'000;

enum class Entry : std::uint8_t { File, Folder, Link };
struct Item {
  std::string name;  // relative, with '/'
  std::string path;  // here
  Entry entry = Entry::File;
  std::uint64_t bytes = 0;
  std::uint32_t mode = 0644;
  std::int64_t mtime = 0;  // seconds
  std::string link;        // where a link points, as it says
};
struct Selection {
  std::vector<std::string> excludes;  // see matches()
  bool ignore_files = true;           // leave out .git, __pycache__ and what .gitignore and .rayignore at the top name
  bool follow_links = false;
  std::uint64_t bytes_max = kArchiveBytesMax;
  std::size_t items_max = kArchiveFilesMax;
};
struct Listing {
  std::vector<Item> items;  // sorted by name; a folder comes before what is in it
  std::uint64_t bytes = 0;
  std::size_t files = 0, skipped = 0;  // skipped: sockets, devices, links that lead nowhere or in circles
};
// What is in `source`: a folder, or one file under its own name.
Result<Listing> list_folder(const std::string& source, const Selection& selection);

// The items as a tar, piece by piece; a file that changes meanwhile is an error, not a torn archive.
class TarStream {
 public:
  enum class Times : std::uint8_t { Fixed, Kept };
  TarStream(std::vector<Item> items, Times times);
  ~TarStream();
  Result<std::string> next();  // empty: the end

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

struct Packed {
  std::string file, sha256;
  std::uint64_t bytes = 0;
  std::size_t files = 0, skipped = 0;
};
enum class Format : std::uint8_t { Zip, Tar };

// Packs `source` into a new temporary file; the caller removes it (TemporaryFile). as: the name of a single file
// inside, its own when empty.
Result<Packed> pack(const std::string& source, Format format, const std::vector<std::string>& excludes = {},
                    const std::string& as = {});
// A pattern is a name or path with * and ?, matched against the whole relative path and each of its parts.
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

// A tar stream (ustar, GNU long names, pax paths) from another machine, fed in pieces of any size. Links are made only
// when they stay inside the target; modes are kept without set-user-id bits; nothing is written through a link.
class Unpacker {
 public:
  explicit Unpacker(std::string target);              // an existing folder
  Unpacker(std::string target, std::string only_as);  // the one file that comes gets this name
  ~Unpacker();
  Status feed(std::string_view bytes);
  Status finish();  // DataLoss when the stream ended in the middle of a file
  std::size_t files() const;
  std::size_t skipped() const;  // links that lead outside, devices and the like

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace muster::cli
