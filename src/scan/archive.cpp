// Archives of images: a tar of layers, which are tars, each over the ones before.
#include <algorithm>
#include <optional>

#include "scan/inventory.h"
#include "wire/json.h"

namespace muster::scan {
namespace {

constexpr std::size_t kBlock = 512, kNameMax = 4096, kEntriesMax = 4'000'000, kLayersMax = 256;
constexpr std::size_t kKeptMax = 256 << 20;  // of all wanted files

Error broken(const std::string& why) {
  return error(Code::InvalidArgument, "the archive of the image cannot be read: " + why);
}

std::uint64_t number_of(std::string_view field) {
  if (!field.empty() && (static_cast<unsigned char>(field[0]) & 0x80) != 0) {  // binary, as GNU tar has large sizes
    std::uint64_t out = 0;
    for (const char c : field.substr(field.size() - 8)) out = out << 8 | static_cast<unsigned char>(c);
    return out;
  }
  std::uint64_t out = 0;
  for (const char c : field) {
    if (c >= '0' && c <= '7')
      out = out * 8 + static_cast<std::uint64_t>(c - '0');
    else if (c != ' ')
      break;
  }
  return out;
}
std::string text_of(std::string_view field) {
  return std::string(field.substr(0, field.find('\0')));
}
std::string cleaned(std::string_view name) {
  while (name.starts_with("./") || name.starts_with("/")) name.remove_prefix(name[0] == '/' ? 1 : 2);
  return std::string(name);
}
// The last `key` of a pax header: "LENGTH path=VALUE\n".
std::optional<std::string> pax_value(std::string_view text, std::string_view key) {
  std::optional<std::string> out;
  while (!text.empty()) {
    const std::uint64_t length = [&] {
      std::uint64_t n = 0;
      for (const char c : text.substr(0, 10)) {
        if (c < '0' || c > '9') break;
        n = n * 10 + static_cast<std::uint64_t>(c - '0');
      }
      return n;
    }();
    if (length == 0 || length > text.size()) break;
    const std::string_view record = text.substr(0, length);
    text.remove_prefix(length);
    const auto blank = record.find(' ');
    if (blank == std::string_view::npos || !record.substr(blank + 1).starts_with(key)) continue;
    std::string_view value = record.substr(blank + 1 + key.size());
    if (value.ends_with('\n')) value.remove_suffix(1);
    out = std::string(value);
  }
  return out;
}

struct Entry {
  std::string name, link;  // link: what a hard link is another name of
  char kind = '0';
  std::uint64_t offset = 0, size = 0;
};
// Calls `each` for every entry of the tar between two offsets, until it says stop.
template <class Each>
Status walk(const ArchiveSource& archive, std::uint64_t at, std::uint64_t end, Each each) {
  std::string long_name, long_link;
  for (std::size_t n = 0; at + kBlock <= end; ++n) {
    if (n > kEntriesMax) return broken("it has too many entries");
    const std::string header = TRY(archive.read(at, kBlock));
    if (header.size() < kBlock) return broken("it ends in the middle");
    if (header.find_first_not_of('\0') == std::string::npos) return {};
    const std::string_view block(header);
    if (block.substr(257, 5) != "ustar") return broken("it is no tar, or compressed; unpack it first");
    Entry entry;
    entry.kind = block[156] == '\0' ? '0' : block[156];
    entry.size = number_of(block.substr(124, 12));
    entry.offset = at + kBlock;
    if (entry.size > end - entry.offset) return broken("an entry is longer than the archive");
    at = entry.offset + (entry.size + kBlock - 1) / kBlock * kBlock;
    if (entry.kind == 'L' || entry.kind == 'K' || entry.kind == 'x') {
      if (entry.size > kNameMax * 4) {
        if (entry.kind != 'x') return broken("a name is too long");
        continue;
      }
      const std::string said = TRY(archive.read(entry.offset, static_cast<std::size_t>(entry.size)));
      if (entry.kind == 'L') long_name = text_of(said);
      if (entry.kind == 'K') long_link = text_of(said);
      if (entry.kind == 'x') long_name = pax_value(said, "path=").value_or(long_name);
      if (entry.kind == 'x') long_link = pax_value(said, "linkpath=").value_or(long_link);
      continue;
    }
    if (entry.kind == 'g') continue;
    const std::string prefix = text_of(block.substr(345, 155)), name = text_of(block.substr(0, 100));
    entry.name = cleaned(!long_name.empty() ? long_name : prefix.empty() ? name : prefix + "/" + name);
    entry.link = cleaned(!long_link.empty() ? long_link : text_of(block.substr(157, 100)));
    long_name.clear(), long_link.clear();
    TRY_VOID(each(entry));
  }
  return {};
}

using Files = std::map<std::string, std::string>;

Status keep(const ArchiveSource& archive, const Entry& entry, Files& files, std::size_t& kept) {
  const bool link = entry.kind == '1' || entry.kind == '2';
  if (!wanted(entry.name) || (!link && entry.kind != '0')) return {};
  const auto same = entry.kind == '1' ? files.find(entry.link) : files.end();
  const std::uint64_t size = same != files.end() ? same->second.size() : link ? 0 : entry.size;
  if (size > kFileMax || kept + size > kKeptMax)
    return broken(entry.name + " and the like are too large to be lists of packages");
  kept += static_cast<std::size_t>(size);
  if (same != files.end()) {
    files[entry.name] = std::string(same->second);
  } else if (link) {  // what leads elsewhere was not read, and says so by being empty
    if (!entry.name.ends_with("os-release")) files[entry.name].clear();
  } else {
    files[entry.name] = TRY(archive.read(entry.offset, static_cast<std::size_t>(size)));
  }
  return {};
}

void erase_below(Files& files, const std::string& folder) {
  for (auto it = files.lower_bound(folder); it != files.end() && it->first.starts_with(folder);) it = files.erase(it);
}

// What a layer takes away goes first: its own files stand wherever they come in it.
Status add_layer(const ArchiveSource& archive, const Entry& layer, Files& files, std::size_t& kept) {
  Files added;
  TRY_VOID(walk(archive, layer.offset, layer.offset + layer.size, [&](const Entry& entry) -> Status {
    const auto slash = entry.name.rfind('/');
    const std::string folder = slash == std::string::npos ? "" : entry.name.substr(0, slash + 1);
    const std::string leaf = entry.name.substr(folder.size());
    if (leaf == ".wh..wh..opq") {
      erase_below(files, folder);
    } else if (leaf.starts_with(".wh.")) {
      files.erase(folder + leaf.substr(4));
      erase_below(files, folder + leaf.substr(4) + "/");
    } else if (entry.kind != '0' && entry.kind != '5') {  // a link where a file or folder was
      files.erase(entry.name);
      erase_below(files, entry.name + "/");
    }
    return keep(archive, entry, added, kept);
  }));
  for (auto& [path, text] : added) files[path] = std::move(text);
  return {};
}

}  // namespace

Result<std::map<std::string, std::string>> files_of_archive(const ArchiveSource& archive) {
  std::map<std::string, Entry> parts;  // of `docker save`
  Files files;
  std::size_t kept = 0;
  std::string manifest;
  TRY_VOID(walk(archive, 0, archive.size, [&](const Entry& entry) -> Status {
    if (entry.name == "manifest.json" && entry.kind == '0' && entry.size <= (1 << 20))
      manifest = TRY(archive.read(entry.offset, static_cast<std::size_t>(entry.size)));
    const bool part =
        entry.name.ends_with("layer.tar") || entry.name.starts_with("blobs/") || entry.name.ends_with(".tar");
    if (part && parts.size() < 4 * kLayersMax) parts[entry.name] = entry;
    return keep(archive, entry, files, kept);
  }));
  if (manifest.empty()) return files;
  files.clear(), kept = 0;
  const auto said = wire::parse_json(manifest);
  if (!said.ok() || said->items().size() != 1) return broken("its manifest.json does not name exactly one image");
  const auto& layers = said->items()[0]["Layers"].items();
  if (layers.empty() || layers.size() > kLayersMax) return broken("its manifest.json names no layers, or too many");
  for (const auto& layer : layers) {
    const auto part = parts.find(layer.text());
    if (part == parts.end() || part->second.kind != '0')
      return broken("the layer " + layer.text().substr(0, 100) + " is missing");
    TRY_VOID(add_layer(archive, part->second, files, kept));
  }
  return files;
}

}  // namespace muster::scan
