#include "cli/archive.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "cli/config.h"
#include "crypto/hash.h"

namespace muster::cli {
namespace {

namespace fs = std::filesystem;

std::array<std::uint32_t, 256> crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c & 1) != 0 ? 0xedb88320U ^ (c >> 1) : c >> 1;
    table[i] = c;
  }
  return table;
}

std::uint32_t crc_update(std::uint32_t crc, std::string_view bytes) {
  static const auto table = crc_table();
  for (const char c : bytes) crc = table[(crc ^ static_cast<unsigned char>(c)) & 0xff] ^ (crc >> 8);
  return crc;
}

std::string little(std::uint64_t value, int bytes) {
  std::string out;
  for (int i = 0; i < bytes; ++i) out += static_cast<char>((value >> (8 * i)) & 0xff);
  return out;
}

// Writes, counts and hashes at once.
class Output {
 public:
  explicit Output(const std::string& path) : out_(path, std::ios::binary | std::ios::trunc) {}
  void put(std::string_view bytes) {
    out_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    hash_.update(as_bytes(bytes));
    size_ += bytes.size();
  }
  std::uint64_t size() const { return size_; }
  bool good() const { return out_.good(); }
  Result<std::string> finish() {
    out_.close();
    if (!out_) return error(Code::FailedPrecondition, "the temporary archive could not be written; is the disk full?");
    const auto digest = hash_.finish();
    return hex(digest);
  }

 private:
  std::ofstream out_;
  crypto::Sha256 hash_;
  std::uint64_t size_ = 0;
};

// Reads exactly item.bytes; a file that changes while it is packed is an error, not a torn archive.
Status each_chunk(const Item& item, const std::function<void(std::string_view)>& f) {
  std::ifstream in(item.path, std::ios::binary);
  std::string buffer(1 << 16, '\0');
  std::uint64_t left = item.bytes;
  while (left > 0) {
    in.read(buffer.data(), static_cast<std::streamsize>(std::min<std::uint64_t>(left, buffer.size())));
    const auto got = static_cast<std::size_t>(in.gcount());
    if (got == 0)
      return error(Code::FailedPrecondition,
                   item.path + " could not be read or changed while it was packed; try again");
    f(std::string_view(buffer).substr(0, got));
    left -= got;
  }
  return {};
}

void add_patterns(const fs::path& file, std::vector<std::string>& out) {
  std::ifstream in(file);
  for (std::string line; std::getline(in, line) && out.size() < 1'000;) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '/')) line.pop_back();
    if (line.empty() || line[0] == '#' || line[0] == '!' || line.find('[') != std::string::npos) continue;
    if (line[0] == '/') line.erase(0, 1);
    out.push_back(line);
  }
}

class Lister {
 public:
  Lister(const Selection& selection, Listing& out) : selection_(selection), out_(out), excludes_(selection.excludes) {}

  Status folder(const fs::path& root) {
    if (selection_.ignore_files) {
      for (const char* name : {".gitignore", ".rayignore"}) add_patterns(root / name, excludes_);
      excludes_.insert(excludes_.end(), {".git", "__pycache__"});
    }
    struct stat info {};
    if (stat(root.c_str(), &info) == 0) above_.emplace_back(info.st_dev, info.st_ino);
    TRY_VOID(walk(root, ""));
    std::sort(out_.items.begin(), out_.items.end(), [](const Item& a, const Item& b) { return a.name < b.name; });
    return {};
  }

  Status add(const fs::path& path, const std::string& name) {
    struct stat info {};
    if (lstat(path.c_str(), &info) != 0) return unreadable(path);
    const bool link = S_ISLNK(info.st_mode);
    if (link && selection_.follow_links && stat(path.c_str(), &info) != 0) return skip();
    Item item{.name = name, .path = path.string(), .mode = info.st_mode & 0777, .mtime = info.st_mtime};
    if (S_ISDIR(info.st_mode)) {
      if (selection_.follow_links && !enter(info)) return skip();
      item.entry = Entry::Folder;
      TRY_VOID(take(std::move(item)));
      TRY_VOID(walk(path, name + "/"));
      if (selection_.follow_links) above_.pop_back();
      return {};
    }
    if (S_ISLNK(info.st_mode)) {
      std::error_code failed;
      item.entry = Entry::Link;
      item.link = fs::read_symlink(path, failed).string();
      return failed ? unreadable(path) : take(std::move(item));
    }
    if (!S_ISREG(info.st_mode)) return skip();
    item.bytes = static_cast<std::uint64_t>(info.st_size);
    ++out_.files;
    return take(std::move(item));
  }

 private:
  Status walk(const fs::path& folder, const std::string& prefix) {
    std::error_code failed;
    for (fs::directory_iterator at(folder, failed), end; !failed && at != end; at.increment(failed)) {
      const std::string name = prefix + at->path().filename().string();
      const bool out = std::any_of(excludes_.begin(), excludes_.end(), [&](const auto& p) { return matches(p, name); });
      if (!out) TRY_VOID(add(at->path(), name));
    }
    return failed ? unreadable(folder, failed.message()) : Status();
  }

  // False: a link leads back into a folder that we are in.
  bool enter(const struct stat& info) {
    const std::pair<dev_t, ino_t> here{info.st_dev, info.st_ino};
    if (above_.size() >= 64 || std::find(above_.begin(), above_.end(), here) != above_.end()) return false;
    above_.push_back(here);
    return true;
  }

  Status take(Item item) {
    out_.bytes += item.bytes;
    out_.items.push_back(std::move(item));
    if (out_.items.size() > selection_.items_max)
      return error(Code::TooLarge, fmt::format("more than {} files; leave some out", selection_.items_max));
    if (out_.bytes > selection_.bytes_max)
      return error(Code::TooLarge, fmt::format("more than {} MiB; leave some out, or copy data with `muster rsync-up`",
                                               selection_.bytes_max >> 20));
    return {};
  }
  Status skip() {
    ++out_.skipped;
    return {};
  }
  static Status unreadable(const fs::path& path, const std::string& why = {}) {
    return error(Code::InvalidArgument,
                 fmt::format("{} cannot be read: {}", path.string(), why.empty() ? std::strerror(errno) : why));
  }

  const Selection& selection_;
  Listing& out_;
  std::vector<std::string> excludes_;
  std::vector<std::pair<dev_t, ino_t>> above_;
};

Status write_zip(const std::vector<Item>& items, Output& out) {
  std::string central;
  std::size_t count = 0;
  for (const auto& item : items) {
    if (item.entry != Entry::File) continue;
    ++count;
    std::uint32_t crc = 0xffffffffU;
    TRY_VOID(each_chunk(item, [&](std::string_view bytes) { crc = crc_update(crc, bytes); }));
    crc ^= 0xffffffffU;
    // version, UTF-8 flag, stored, 1980-01-01 00:00, crc, sizes, name length, no extra
    const std::string common = little(20, 2) + little(0x0800, 2) + little(0, 2) + little(0, 2) + little(0x21, 2) +
                               little(crc, 4) + little(item.bytes, 4) + little(item.bytes, 4) +
                               little(item.name.size(), 2) + little(0, 2);
    const std::uint64_t offset = out.size();
    out.put("PK\x03\x04" + common + item.name);
    std::uint32_t again = 0xffffffffU;
    TRY_VOID(each_chunk(item, [&](std::string_view bytes) {
      again = crc_update(again, bytes);
      out.put(bytes);
    }));
    if ((again ^ 0xffffffffU) != crc)
      return error(Code::FailedPrecondition, item.path + " changed while it was packed; try again");
    const std::uint32_t mode = ((item.mode & 0100) != 0 ? 0100755U : 0100644U) << 16;
    central += "PK\x01\x02" + little(0x0314, 2) + common + little(0, 2) + little(0, 2) + little(0, 2) +
               little(mode, 4) + little(offset, 4) + item.name;
  }
  const std::uint64_t start = out.size();
  out.put(central);
  // More than 65,535 entries: the zip64 end record and its locator carry the true numbers.
  const bool wide = count >= 0xffff;
  if (wide) {
    const std::uint64_t at = out.size();
    out.put("PK\x06\x06" + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 4) + little(0, 4) +
            little(count, 8) + little(count, 8) + little(central.size(), 8) + little(start, 8));
    out.put("PK\x06\x07" + little(0, 4) + little(at, 8) + little(1, 4));
  }
  const std::uint64_t shown = wide ? 0xffff : count;
  out.put("PK\x05\x06" + little(0, 4) + little(shown, 2) + little(shown, 2) + little(central.size(), 4) +
          little(start, 4) + little(0, 2));
  return {};
}

Status write_tar(std::vector<Item> items, Output& out) {
  TarStream tar(std::move(items), TarStream::Times::Fixed);
  for (;;) {
    const std::string piece = TRY(tar.next());
    if (piece.empty()) return {};
    out.put(piece);
  }
}

bool glob(std::string_view pattern, std::string_view text) {
  std::size_t p = 0, t = 0, star = std::string_view::npos, mark = 0;
  while (t < text.size()) {
    if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == text[t]) && pattern[p] != '*')
      ++p, ++t;
    else if (p < pattern.size() && pattern[p] == '*')
      star = p++, mark = t;
    else if (star != std::string_view::npos)
      p = star + 1, t = ++mark;
    else
      return false;
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace

bool matches(std::string_view pattern, std::string_view path) {
  while (pattern.substr(0, 3) == "**/") pattern.remove_prefix(3);
  if (pattern.size() > 3 && pattern.substr(pattern.size() - 3) == "/**") pattern.remove_suffix(3);
  if (pattern.empty()) return false;
  if (glob(pattern, path)) return true;
  if (pattern.find('/') != std::string_view::npos) return false;
  const auto slash = path.rfind('/');
  return slash != std::string_view::npos && glob(pattern, path.substr(slash + 1));
}

TemporaryFile::~TemporaryFile() {
  if (!path_.empty()) unlink(path_.c_str());
}

Result<Listing> list_folder(const std::string& source, const Selection& selection) {
  fs::path root(source);
  if (source.size() > 1 && source.back() == '/') root = fs::path(source.substr(0, source.size() - 1));
  std::error_code failed;
  const auto status = fs::status(root, failed);
  if (failed || !fs::exists(status)) return error(Code::NotFound, source + " does not exist");
  Listing out;
  Lister lister(selection, out);
  Status done;
  if (fs::is_directory(status)) {
    done = lister.folder(root);
  } else if (fs::is_regular_file(status)) {
    done = lister.add(fs::canonical(root, failed), root.filename().string());
  } else {
    return error(Code::InvalidArgument, source + " is neither a file nor a folder");
  }
  if (!done.ok()) return error(done.error().code, source + ": " + done.error().message);
  return out;
}

Result<Packed> pack(const std::string& source, Format format, const std::vector<std::string>& excludes,
                    const std::string& as) {
  const bool zip = format == Format::Zip;
  Listing listing = TRY(list_folder(source, {.excludes = excludes, .follow_links = zip}));
  if (std::error_code failed; !as.empty() && listing.items.size() == 1 && fs::is_regular_file(source, failed))
    listing.items[0].name = as;
  std::string name = (fs::temp_directory_path() / "muster-XXXXXX").string();
  const int fd = mkstemp(name.data());
  if (fd < 0)
    return error(Code::FailedPrecondition, fmt::format("no temporary file can be made: {}", std::strerror(errno)));
  close(fd);
  Packed packed{.file = name, .sha256 = {}, .files = listing.files, .skipped = listing.skipped};
  Output out(name);
  const Status written = zip ? write_zip(listing.items, out) : write_tar(std::move(listing.items), out);
  auto digest = out.finish();
  if (!written.ok() || !digest.ok()) {
    unlink(name.c_str());
    return written.ok() ? digest.error() : written.error();
  }
  packed.sha256 = *digest;
  packed.bytes = out.size();
  return packed;
}

}  // namespace muster::cli
