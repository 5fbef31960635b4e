#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <system_error>

#include "cli/archive.h"
#include "cli/table.h"

namespace muster::cli {
namespace fs = std::filesystem;

namespace {

std::optional<std::uint64_t> octal(std::string_view text) {
  std::uint64_t value = 0;
  bool any = false;
  for (const char c : text) {
    if (c == '\0' || c == ' ') {
      if (any) break;
      continue;
    }
    if (c < '0' || c > '7' || value > (std::uint64_t{1} << 50)) return {};
    value = value * 8 + static_cast<std::uint64_t>(c - '0');
    any = true;
  }
  return value;
}

std::string text_field(std::string_view field) {
  return std::string(field.substr(0, field.find('\0')));
}

// One record of a pax header: "<length> key=<value>\n".
std::string pax_value(std::string_view records, std::string_view key) {
  std::string out;
  const std::string wanted = std::string(key) + "=";
  while (!records.empty()) {
    const auto line = records.substr(0, records.find('\n'));
    const auto space = line.find(' ');
    if (space != std::string_view::npos && line.substr(space + 1, wanted.size()) == wanted)
      out = std::string(line.substr(space + 1 + wanted.size()));
    if (line.size() == records.size()) break;
    records.remove_prefix(line.size() + 1);
  }
  return out;
}

// "11 octal digits", or GNU's binary form for more than 8 GiB.
std::optional<std::uint64_t> size_field(std::string_view text) {
  if (static_cast<unsigned char>(text[0]) != 0x80) return octal(text);
  std::uint64_t value = 0;
  for (const char c : text.substr(1)) {
    if (value > (std::uint64_t{1} << 50)) return {};
    value = value << 8 | static_cast<unsigned char>(c);
  }
  return value;
}

bool safe_name(const fs::path& name) {
  if (name.empty() || name.is_absolute()) return false;
  return std::none_of(name.begin(), name.end(), [](const fs::path& part) { return part == ".."; });
}

// Whether a link at `name` (relative to the target) that points to `to` stays inside the target.
bool safe_link(const fs::path& name, const fs::path& to) {
  if (to.empty() || to.is_absolute()) return false;
  const fs::path meant = (name.parent_path() / to).lexically_normal();
  return meant == "." || safe_name(meant);
}

}  // namespace

struct Unpacker::Impl {
  fs::path target;
  std::string only_as;
  std::string head, long_name, long_link, meta;
  std::uint64_t left = 0, pad = 0;
  char kind = 0;
  std::uint32_t mode = 0;
  std::int64_t mtime = 0;
  bool ended = false;
  std::ofstream out;
  fs::path open_path;
  std::vector<std::pair<fs::path, std::uint32_t>> folders;  // their modes come last: one may forbid writing into it
  std::size_t files = 0, skipped = 0;

  Status start_entry() {
    const std::string block = std::move(head);
    head.clear();
    if (std::all_of(block.begin(), block.end(), [](char c) { return c == '\0'; })) {
      ended = true;
      return {};
    }
    unsigned sum = 0;
    for (std::size_t i = 0; i < 512; ++i) sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(block[i]);
    const std::string_view fields(block);
    const auto said = octal(fields.substr(148, 8));
    const auto size = size_field(fields.substr(124, 12));
    if (!said || *said != sum || !size) return error(Code::DataLoss, "what came back is not a tar stream");
    left = *size;
    pad = (512 - *size % 512) % 512;
    kind = block[156];
    meta.clear();
    if (kind == 'L' || kind == 'K' || kind == 'x' || kind == 'g')
      return left > 65'536 ? Status(error(Code::DataLoss, "a file name in the tar stream is too long")) : Status();
    std::string name = text_field(fields.substr(0, 100)), link = text_field(fields.substr(157, 100));
    const std::string prefix = text_field(fields.substr(345, 155));
    if (!prefix.empty() && block.compare(257, 6, std::string("ustar\0", 6)) == 0) name = prefix + "/" + name;
    if (!long_name.empty()) name = std::move(long_name);
    if (!long_link.empty()) link = std::move(long_link);
    long_name.clear();
    long_link.clear();
    mode = static_cast<std::uint32_t>(octal(fields.substr(100, 8)).value_or(0644)) & 0777;
    mtime = static_cast<std::int64_t>(octal(fields.substr(136, 12)).value_or(0));
    return open_entry(name, link);
  }

  Status open_entry(const std::string& name, const std::string& link) {
    fs::path relative = fs::path(name).lexically_normal();
    if (relative.filename().empty() && relative.has_parent_path()) relative = relative.parent_path();  // "a/" is a
    if (!safe_name(relative))
      return error(Code::DataLoss, "the tar stream names a file outside the target: " + clean(name));
    if (!only_as.empty() && (kind == '0' || kind == '\0')) relative = only_as;
    std::error_code failed;
    const fs::path path = target / relative;
    // A link on the way (ours or one sent) must not lead the write elsewhere; one in its place is replaced.
    for (fs::path part = path.parent_path(); part != target && part.has_relative_path(); part = part.parent_path())
      if (fs::is_symlink(fs::symlink_status(part, failed)))
        return error(Code::FailedPrecondition, part.string() + " is a symbolic link; not written through");
    const bool link_there = relative != "." && fs::is_symlink(fs::symlink_status(path, failed));
    if (link_there && kind != '5') fs::remove(path, failed);
    failed.clear();
    if (kind == '5') {
      if (link_there)
        return error(Code::FailedPrecondition, path.string() + " is a symbolic link; not written through");
      fs::create_directories(path, failed);
      if (folders.size() < 1'000'000 && relative != ".") folders.emplace_back(path, mode);
    } else if (kind == '0' || kind == '\0') {
      fs::create_directories(path.parent_path(), failed);
      out.open(path, std::ios::binary | std::ios::trunc);
      if (!out) return error(Code::FailedPrecondition, path.string() + " cannot be written");
      open_path = path;
      ++files;
    } else if (kind == '2' && safe_link(relative, link)) {
      fs::create_directories(path.parent_path(), failed);
      if (!failed) fs::create_symlink(link, path, failed);
      ++files;
    } else {
      ++skipped;
    }
    return failed ? Status(error(Code::FailedPrecondition, path.string() + ": " + failed.message())) : Status();
  }

  Status body(std::string_view bytes) {
    if (kind == 'L' || kind == 'K' || kind == 'x')
      meta += bytes;
    else if (out.is_open() && !out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())))
      return error(Code::FailedPrecondition, "a file could not be written; is the disk full?");
    return {};
  }

  void end_entry() {
    if (kind == 'L') long_name = text_field(meta);
    if (kind == 'K') long_link = text_field(meta);
    if (kind == 'x') {
      if (auto path = pax_value(meta, "path"); !path.empty()) long_name = std::move(path);
      if (auto link = pax_value(meta, "linkpath"); !link.empty()) long_link = std::move(link);
    }
    if (!out.is_open()) return;
    out.close();
    chmod(open_path.c_str(), mode);
    const timespec times[2] = {{0, UTIME_OMIT}, {mtime, 0}};
    utimensat(AT_FDCWD, open_path.c_str(), times, AT_SYMLINK_NOFOLLOW);
  }
};

Unpacker::Unpacker(std::string target) : Unpacker(std::move(target), {}) {}
Unpacker::Unpacker(std::string target, std::string only_as) : impl_(std::make_unique<Impl>()) {
  impl_->target = fs::path(target).lexically_normal();
  if (impl_->target.filename().empty() && impl_->target.has_parent_path()) impl_->target = impl_->target.parent_path();
  impl_->only_as = std::move(only_as);
}
Unpacker::~Unpacker() = default;
std::size_t Unpacker::files() const {
  return impl_->files;
}
std::size_t Unpacker::skipped() const {
  return impl_->skipped;
}

Status Unpacker::feed(std::string_view bytes) {
  Impl& s = *impl_;
  while (!bytes.empty() && !s.ended) {
    if (s.left > 0) {
      const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(s.left, bytes.size()));
      TRY_VOID(s.body(bytes.substr(0, take)));
      s.left -= take;
      bytes.remove_prefix(take);
      if (s.left == 0) s.end_entry();
    } else if (s.pad > 0) {
      const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(s.pad, bytes.size()));
      s.pad -= take;
      bytes.remove_prefix(take);
    } else {
      const auto take = std::min(512 - s.head.size(), bytes.size());
      s.head += bytes.substr(0, take);
      bytes.remove_prefix(take);
      if (s.head.size() < 512) continue;
      TRY_VOID(s.start_entry());
      if (!s.ended && s.left == 0) s.end_entry();
    }
  }
  return {};
}

Status Unpacker::finish() {
  if (impl_->left > 0 || (!impl_->ended && !impl_->head.empty()))
    return error(Code::DataLoss, "the stream ended in the middle of a file; try again");
  for (auto folder = impl_->folders.rbegin(); folder != impl_->folders.rend(); ++folder)
    chmod(folder->first.c_str(), folder->second);
  return {};
}

}  // namespace muster::cli
