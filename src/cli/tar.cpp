// TarStream: ustar with GNU long names, one piece at a time.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>

#include "cli/archive.h"

namespace muster::cli {
namespace {

constexpr std::size_t kPiece = 64 << 10;

std::string header(const std::string& name, const Item& item, char kind, std::uint64_t bytes, std::int64_t mtime) {
  std::string block(512, '\0');
  const auto put = [&](std::size_t at, std::string_view text) { block.replace(at, text.size(), text); };
  put(0, name.substr(0, 100));
  put(100, fmt::format("{:07o}", item.mode));
  put(108, "0000000");
  put(116, "0000000");
  // Eleven octal digits reach 8 GiB; above, the size stands in binary with the high bit set, as GNU tar has it.
  if (bytes < (std::uint64_t{1} << 33)) {
    put(124, fmt::format("{:011o}", bytes));
  } else {
    block[124] = static_cast<char>(0x80);
    for (std::size_t i = 0; i < 8; ++i) block[135 - i] = static_cast<char>((bytes >> (8 * i)) & 0xff);
  }
  put(136, fmt::format("{:011o}", std::clamp<std::int64_t>(mtime, 0, (std::int64_t{1} << 33) - 1)));
  put(148, "        ");
  block[156] = kind;
  put(157, std::string_view(item.link).substr(0, 100));
  put(257, std::string("ustar\0", 6) + "00");
  unsigned sum = 0;
  for (const char c : block) sum += static_cast<unsigned char>(c);
  put(148, fmt::format("{:06o}", sum) + std::string("\0 ", 2));
  return block;
}

std::string padding(std::uint64_t bytes) {
  return std::string((512 - bytes % 512) % 512, '\0');
}

std::string long_text(char kind, const std::string& text) {
  const std::string body = text + '\0';
  return header("././@LongLink", Item{}, kind, body.size(), 0) + body + padding(body.size());
}

}  // namespace

struct TarStream::Impl {
  std::vector<Item> items;
  Times times;
  std::size_t at = 0;
  std::uint64_t left = 0, pad = 0;
  std::ifstream file;
  bool ended = false;

  std::string begin(const Item& item) {
    const char kind = item.entry == Entry::File ? '0' : item.entry == Entry::Folder ? '5' : '2';
    const std::string name = item.entry == Entry::Folder ? item.name + "/" : item.name;
    std::string out;
    if (item.link.size() > 100) out += long_text('K', item.link);
    if (name.size() > 100) out += long_text('L', name);
    out += header(name, item, kind, item.bytes, times == Times::Kept ? item.mtime : 0);
    if (item.entry == Entry::File) {
      file.close();
      file.clear();
      file.open(item.path, std::ios::binary);
      left = item.bytes;
      pad = (512 - item.bytes % 512) % 512;
    }
    return out;
  }
};

TarStream::TarStream(std::vector<Item> items, Times times) : impl_(std::make_unique<Impl>()) {
  impl_->items = std::move(items);
  impl_->times = times;
}
TarStream::~TarStream() = default;

Result<std::string> TarStream::next() {
  Impl& s = *impl_;
  std::string out;
  while (out.size() < kPiece && !s.ended) {
    if (s.left > 0) {
      std::string piece(static_cast<std::size_t>(std::min<std::uint64_t>(s.left, kPiece)), '\0');
      s.file.read(piece.data(), static_cast<std::streamsize>(piece.size()));
      const auto got = static_cast<std::size_t>(s.file.gcount());
      if (got == 0)
        return error(Code::FailedPrecondition,
                     s.items[s.at - 1].path + " could not be read or changed while it was packed; try again");
      out.append(piece, 0, got);
      s.left -= got;
    } else if (s.pad > 0) {
      out += padding(512 - s.pad);
      s.pad = 0;
    } else if (s.at < s.items.size()) {
      out += s.begin(s.items[s.at++]);
    } else {
      out += std::string(1024, '\0');
      s.ended = true;
    }
  }
  return out;
}

}  // namespace muster::cli
