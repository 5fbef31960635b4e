#include <fmt/format.h>

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

// The path= record of a pax header: "<length> path=<value>\n".
std::string pax_path(std::string_view records) {
  std::string out;
  while (!records.empty()) {
    const auto line = records.substr(0, records.find('\n'));
    const auto space = line.find(' ');
    if (space != std::string_view::npos && line.substr(space + 1, 5) == "path=")
      out = std::string(line.substr(space + 6));
    if (line.size() == records.size()) break;
    records.remove_prefix(line.size() + 1);
  }
  return out;
}

bool safe_name(const fs::path& name) {
  if (name.empty() || name.is_absolute()) return false;
  return std::none_of(name.begin(), name.end(), [](const fs::path& part) { return part == ".."; });
}

}  // namespace

struct Unpacker::Impl {
  fs::path target;
  std::string head, long_name, meta;
  std::uint64_t left = 0, pad = 0;
  char kind = 0;
  bool ended = false;
  std::ofstream out;
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
    const auto said = octal(std::string_view(block).substr(148, 8));
    const auto size = octal(std::string_view(block).substr(124, 12));
    if (!said || *said != sum || !size) return error(Code::DataLoss, "what came back is not a tar stream");
    left = *size;
    pad = (512 - *size % 512) % 512;
    kind = block[156];
    meta.clear();
    if (kind == 'L' || kind == 'x' || kind == 'g')
      return left > 65'536 ? Status(error(Code::DataLoss, "a file name in the tar stream is too long")) : Status();
    std::string name = text_field(std::string_view(block).substr(0, 100));
    const std::string prefix = text_field(std::string_view(block).substr(345, 155));
    if (!prefix.empty() && block.compare(257, 6, std::string("ustar\0", 6)) == 0) name = prefix + "/" + name;
    if (!long_name.empty()) name = std::move(long_name);
    long_name.clear();
    return open_entry(name, octal(std::string_view(block).substr(100, 8)).value_or(0));
  }

  Status open_entry(const std::string& name, std::uint64_t mode) {
    const fs::path relative = fs::path(name).lexically_normal();
    if (!safe_name(relative))
      return error(Code::DataLoss, "the tar stream names a file outside the target: " + clean(name));
    std::error_code failed;
    const fs::path path = target / relative;
    // A link in the way (ours or one sent) must not lead the write elsewhere.
    for (fs::path part = path; part != target && part.has_relative_path(); part = part.parent_path())
      if (fs::is_symlink(fs::symlink_status(part, failed)))
        return error(Code::FailedPrecondition, part.string() + " is a symbolic link; not written through");
    if (kind == '5') {
      fs::create_directories(path, failed);
    } else if (kind == '0' || kind == '\0') {
      fs::create_directories(path.parent_path(), failed);
      out.open(path, std::ios::binary | std::ios::trunc);
      if (!out) return error(Code::FailedPrecondition, path.string() + " cannot be written");
      if ((mode & 0100) != 0) fs::permissions(path, fs::perms::owner_exec, fs::perm_options::add, failed);
      ++files;
    } else {
      ++skipped;
    }
    return failed ? Status(error(Code::FailedPrecondition, path.string() + ": " + failed.message())) : Status();
  }

  Status body(std::string_view bytes) {
    if (kind == 'L' || kind == 'x')
      meta += bytes;
    else if (out.is_open() && !out.write(bytes.data(), static_cast<std::streamsize>(bytes.size())))
      return error(Code::FailedPrecondition, "a file could not be written; is the disk full?");
    return {};
  }

  void end_entry() {
    if (kind == 'L') long_name = text_field(meta);
    if (kind == 'x') {
      if (auto path = pax_path(meta); !path.empty()) long_name = std::move(path);
    }
    if (out.is_open()) out.close();
  }
};

Unpacker::Unpacker(std::string target) : impl_(std::make_unique<Impl>()) {
  impl_->target = fs::path(target).lexically_normal();
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
  return {};
}

}  // namespace muster::cli
