#include "cli/archive.h"

#include <fmt/format.h>
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

struct Item {
  std::string name;
  fs::path path;
  std::uint64_t bytes = 0;
  bool executable = false;
};

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
                   item.path.string() + " could not be read or changed while it was packed; try again");
    f(std::string_view(buffer).substr(0, got));
    left -= got;
  }
  return {};
}

std::vector<std::string> gitignore(const fs::path& root) {
  std::vector<std::string> out;
  std::ifstream in(root / ".gitignore");
  for (std::string line; std::getline(in, line) && out.size() < 1'000;) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ' || line.back() == '/')) line.pop_back();
    if (line.empty() || line[0] == '#' || line[0] == '!' || line.find('[') != std::string::npos) continue;
    if (line[0] == '/') line.erase(0, 1);
    out.push_back(line);
  }
  return out;
}

Result<std::vector<Item>> collect(const fs::path& source, std::vector<std::string> excludes, std::size_t& skipped) {
  std::error_code failed;
  std::vector<Item> items;
  const auto status = fs::status(source, failed);
  if (failed || !fs::exists(status)) return error(Code::NotFound, source.string() + " does not exist");
  const auto executable = [](const fs::file_status& s) {
    return (s.permissions() & fs::perms::owner_exec) != fs::perms::none;
  };
  if (fs::is_regular_file(status))
    return std::vector<Item>{{source.filename().string(), source, fs::file_size(source), executable(status)}};
  if (!fs::is_directory(status))
    return error(Code::InvalidArgument, source.string() + " is neither a file nor a folder");
  for (auto& pattern : gitignore(source)) excludes.push_back(std::move(pattern));
  excludes.insert(excludes.end(), {".git", "__pycache__"});
  std::uint64_t total = 0;
  fs::recursive_directory_iterator at(source, fs::directory_options::none, failed), end;
  for (; !failed && at != end; at.increment(failed)) {
    const std::string name = at->path().lexically_relative(source).generic_string();
    const auto kind = at->symlink_status(failed);
    if (failed) break;
    if (std::any_of(excludes.begin(), excludes.end(), [&](const auto& pattern) { return matches(pattern, name); })) {
      if (fs::is_directory(kind)) at.disable_recursion_pending();
      continue;
    }
    if (fs::is_directory(kind)) continue;
    if (!fs::is_regular_file(kind)) {
      ++skipped;
      continue;
    }
    items.push_back({name, at->path(), at->file_size(failed), executable(kind)});
    total += items.back().bytes;
    if (items.size() > kArchiveFilesMax)
      return error(Code::TooLarge,
                   fmt::format("{} holds more than {} files; leave some out", source.string(), kArchiveFilesMax));
    if (total > kArchiveBytesMax)
      return error(Code::TooLarge, fmt::format("{} holds more than {} MiB; leave some out, or put data into a dataset",
                                               source.string(), kArchiveBytesMax >> 20));
  }
  if (failed) return error(Code::InvalidArgument, fmt::format("{}: {}", source.string(), failed.message()));
  std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.name < b.name; });
  return items;
}

Status write_zip(const std::vector<Item>& items, Output& out) {
  std::string central;
  for (const auto& item : items) {
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
      return error(Code::FailedPrecondition, item.path.string() + " changed while it was packed; try again");
    const std::uint32_t mode = (item.executable ? 0100755U : 0100644U) << 16;
    central += "PK\x01\x02" + little(0x0314, 2) + common + little(0, 2) + little(0, 2) + little(0, 2) +
               little(mode, 4) + little(offset, 4) + item.name;
  }
  const std::uint64_t start = out.size();
  out.put(central);
  // More than 65,535 entries: the zip64 end record and its locator carry the true numbers.
  const bool wide = items.size() >= 0xffff;
  if (wide) {
    const std::uint64_t at = out.size();
    out.put("PK\x06\x06" + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 4) + little(0, 4) +
            little(items.size(), 8) + little(items.size(), 8) + little(central.size(), 8) + little(start, 8));
    out.put("PK\x06\x07" + little(0, 4) + little(at, 8) + little(1, 4));
  }
  const std::uint64_t shown = wide ? 0xffff : items.size();
  out.put("PK\x05\x06" + little(0, 4) + little(shown, 2) + little(shown, 2) + little(central.size(), 4) +
          little(start, 4) + little(0, 2));
  return {};
}

std::string tar_header(const std::string& name, std::uint64_t bytes, bool executable, char kind) {
  std::string block(512, '\0');
  const auto put = [&](std::size_t at, std::string_view text) { block.replace(at, text.size(), text); };
  put(0, name.substr(0, 100));
  put(100, executable ? "0000755" : "0000644");
  put(108, "0000000");
  put(116, "0000000");
  put(124, fmt::format("{:011o}", bytes));
  put(136, "00000000000");
  put(148, "        ");
  block[156] = kind;
  put(257, std::string("ustar\0", 6) + "00");
  unsigned sum = 0;
  for (const char c : block) sum += static_cast<unsigned char>(c);
  put(148, fmt::format("{:06o}", sum) + std::string("\0 ", 2));
  return block;
}

std::string padding(std::uint64_t bytes) {
  return std::string((512 - bytes % 512) % 512, '\0');
}

Status write_tar(const std::vector<Item>& items, Output& out) {
  for (const auto& item : items) {
    if (item.name.size() > 100) {
      const std::string name = item.name + '\0';
      out.put(tar_header("././@LongLink", name.size(), false, 'L'));
      out.put(name + padding(name.size()));
    }
    out.put(tar_header(item.name, item.bytes, item.executable, '0'));
    TRY_VOID(each_chunk(item, [&](std::string_view bytes) { out.put(bytes); }));
    out.put(padding(item.bytes));
  }
  out.put(std::string(1024, '\0'));
  return {};
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

Result<Packed> pack(const std::string& source, Format format, const std::vector<std::string>& excludes) {
  try {
    Packed packed;
    fs::path root = fs::path(source);
    if (!source.empty() && source.back() == '/') root = fs::path(source.substr(0, source.size() - 1));
    const auto items = TRY(collect(root, excludes, packed.skipped));
    std::string name = (fs::temp_directory_path() / "muster-XXXXXX").string();
    const int fd = mkstemp(name.data());
    if (fd < 0)
      return error(Code::FailedPrecondition, fmt::format("no temporary file can be made: {}", std::strerror(errno)));
    close(fd);
    Output out(name);
    const Status written = format == Format::Zip ? write_zip(items, out) : write_tar(items, out);
    auto digest = out.finish();
    if (!written.ok() || !digest.ok()) {
      unlink(name.c_str());
      return written.ok() ? digest.error() : written.error();
    }
    packed.file = name;
    packed.sha256 = *digest;
    packed.bytes = out.size();
    packed.files = items.size();
    return packed;
  } catch (const fs::filesystem_error& fault) {
    return error(Code::InvalidArgument, fault.what());
  }
}

}  // namespace muster::cli
