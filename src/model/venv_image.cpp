#include "model/venv_image.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace muster {
namespace {

constexpr std::string_view kScheme = "venv:", kDigest = "@sha256:", kHeading = "# muster venv lock 1";

Error wrong(std::string_view image, std::string_view why) {
  return error(
      Code::InvalidArgument,
      fmt::format("'{}' {}; write it like venv:ray==2.60.0,python3.11,numpy==1.26.4", image.substr(0, 200), why),
      "image");
}

bool is_hex(std::string_view text, std::size_t size) {
  return text.size() == size &&
         std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_name(std::string_view text) {
  if (text.empty() || text.size() > 100 || std::isalnum(static_cast<unsigned char>(text.front())) == 0 ||
      std::isalnum(static_cast<unsigned char>(text.back())) == 0)
    return false;
  return std::all_of(text.begin(), text.end(),
                     [](unsigned char c) { return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.'; });
}

// Of one exact release: no ranges, no wildcards, no URLs.
bool is_version(std::string_view text) {
  if (text.empty() || text.size() > 60 || std::isdigit(static_cast<unsigned char>(text.front())) == 0) return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isdigit(c) != 0 || (c >= 'a' && c <= 'z') || c == '.' || c == '+' || c == '!' || c == '-' || c == '_';
  });
}

bool is_python(std::string_view text) {
  if (text == "3") return true;
  return text.size() >= 3 && text.size() <= 4 && text.starts_with("3.") &&
         std::all_of(text.begin() + 2, text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> out;
  while (true) {
    const auto end = text.find(at);
    out.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return out;
    text.remove_prefix(end + 1);
  }
}

// At commas that are not between brackets.
std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> out;
  std::size_t start = 0, depth = 0;
  for (std::size_t i = 0; i <= text.size(); ++i) {
    if (i < text.size() && text[i] == '[') ++depth;
    if (i < text.size() && text[i] == ']' && depth > 0) --depth;
    if (i == text.size() || (text[i] == ',' && depth == 0)) {
      out.push_back(text.substr(start, i - start));
      start = i + 1;
    }
  }
  return out;
}

Result<VenvPackage> parse_package(std::string_view line) {
  const auto words = split(line, ' ');
  VenvPackage out;
  const auto equals = words[0].find("==");
  if (equals == std::string_view::npos) return error(Code::InvalidArgument, "a lock line is not NAME==VERSION");
  out.name = std::string(words[0].substr(0, equals));
  out.version = std::string(words[0].substr(equals + 2));
  if (!is_name(out.name) || normal_package_name(out.name) != out.name || !is_version(out.version))
    return error(Code::InvalidArgument, "a lock line is not NAME==VERSION");
  for (std::size_t i = 1; i < words.size(); ++i) {
    constexpr std::string_view option = "--hash=sha256:";
    if (!words[i].starts_with(option) || !is_hex(words[i].substr(option.size()), 64))
      return error(Code::InvalidArgument, "a lock line holds something else than SHA-256 hashes");
    out.hashes.emplace_back(words[i].substr(option.size()));
  }
  const bool ordered = std::is_sorted(out.hashes.begin(), out.hashes.end()) &&
                       std::adjacent_find(out.hashes.begin(), out.hashes.end()) == out.hashes.end();
  if (out.hashes.empty() || !ordered)
    return error(Code::InvalidArgument, "a lock line has no hashes, or unsorted ones");
  return out;
}

// "python3.11", "ray[default]==2.60.0" or "numpy==1.26.4".
Status read_word(std::string_view image, std::string_view word, VenvImage& out) {
  if (word.starts_with("python") && is_python(word.substr(6))) {
    if (!out.python.empty()) return wrong(image, "names Python twice");
    out.python = std::string(word.substr(6));
    return {};
  }
  const auto equals = word.find("==");
  const std::string_view left = word.substr(0, equals), name = left.substr(0, left.find('['));
  if (equals == std::string_view::npos || !is_name(name) || !is_version(word.substr(equals + 2)))
    return wrong(image, fmt::format("holds '{}', which is not NAME==VERSION", word));
  const std::string_view extras = left.substr(name.size());
  const std::string normal = normal_package_name(name);
  if (normal == "ray") {
    if (!out.ray.empty()) return wrong(image, "names Ray twice");
    if (!extras.empty() && extras != "[default]" && extras != "[client]" && extras != "[default,client]" &&
        extras != "[client,default]")
      return wrong(
          image,
          fmt::format("asks for {}; default and client are always there, name other packages by themselves", left));
    out.ray = std::string(word.substr(equals + 2));
    return {};
  }
  if (!extras.empty())
    return wrong(image, fmt::format("holds '{}': extras are not understood, name the packages", word));
  if (!out.packages.emplace(normal, word.substr(equals + 2)).second)
    return wrong(image, fmt::format("names {} twice", normal));
  return {};
}

}  // namespace

std::string normal_package_name(std::string_view name) {
  std::string out;
  for (const unsigned char c : name) {
    if (c == '-' || c == '_' || c == '.') {
      if (out.empty() || out.back() != '-') out.push_back('-');
    } else {
      out.push_back(static_cast<char>(std::tolower(c)));
    }
  }
  return out;
}

bool is_venv_image(std::string_view image) {
  return image.starts_with(kScheme);
}

Result<VenvImage> parse_venv_image(std::string_view image) {
  if (!is_venv_image(image)) return wrong(image, "does not start with venv:");
  if (image.size() > 512) return wrong(image, "is longer than 512 characters");
  VenvImage out;
  std::string_view rest = image.substr(kScheme.size());
  if (const auto at = rest.find('@'); at != std::string_view::npos) {
    const std::string_view digest = rest.substr(at);
    if (!digest.starts_with(kDigest) || !is_hex(digest.substr(kDigest.size()), 64))
      return wrong(image, "does not end with @sha256: and 64 hex digits");
    out.lock = std::string(digest.substr(kDigest.size()));
    rest = rest.substr(0, at);
  }
  for (const std::string_view word : split_words(rest)) TRY_VOID(read_word(image, word, out));
  if (out.ray.empty()) return wrong(image, "names no version of Ray");
  if (out.packages.size() > kVenvWishesMax)
    return wrong(image, fmt::format("names more than {} packages", kVenvWishesMax));
  if (out.python.empty()) out.python = "3";
  if (!out.lock.empty() && out.python == "3") return wrong(image, "is pinned but leaves Python's version open");
  return out;
}

std::string venv_text(const VenvImage& image) {
  std::string out = fmt::format("{}ray=={},python{}", kScheme, image.ray, image.python);
  for (const auto& [name, version] : image.packages) out += fmt::format(",{}=={}", name, version);
  if (!image.lock.empty()) out += fmt::format("{}{}", kDigest, image.lock);
  return out;
}

std::string venv_requirements(const VenvImage& image) {
  std::string out = fmt::format("ray[client,default]=={}\n", image.ray);
  if (!image.packages.contains("pip")) out += "pip\n";
  for (const auto& [name, version] : image.packages) out += fmt::format("{}=={}\n", name, version);
  return out;
}

std::string lock_text(const VenvLock& lock) {
  std::string out = fmt::format("{}\n# {}\n# {}\n", kHeading, venv_text(lock.image), lock.arch);
  for (const auto& package : lock.packages) {
    out += fmt::format("{}=={}", package.name, package.version);
    for (const auto& hash : package.hashes) out += " --hash=sha256:" + hash;
    out += "\n";
  }
  return out;
}

Result<VenvLock> parse_lock(std::string_view text) {
  if (text.size() > kVenvLockBytesMax) return error(Code::TooLarge, "a lock has at most 512 KiB");
  const auto lines = split(text, '\n');
  if (lines.size() < 5 || lines[0] != kHeading || !lines[1].starts_with("# ") || !lines[2].starts_with("# ") ||
      !lines.back().empty())
    return error(Code::InvalidArgument, "this is not a lock of a virtual environment");
  VenvLock out;
  out.image = TRY(parse_venv_image(lines[1].substr(2)));
  out.arch = std::string(lines[2].substr(2));
  if (!out.image.lock.empty() || out.image.python == "3" || (out.arch != "x86_64" && out.arch != "aarch64"))
    return error(Code::InvalidArgument, "a lock's heading must name Python's version and the architecture");
  if (lines.size() - 4 > kVenvPackagesMax) return error(Code::TooLarge, "a lock has too many packages");
  for (std::size_t i = 3; i + 1 < lines.size(); ++i) {
    auto package = TRY(parse_package(lines[i]));
    if (!out.packages.empty() && out.packages.back().name >= package.name)
      return error(Code::InvalidArgument, "a lock's packages must be sorted, each once");
    out.packages.push_back(std::move(package));
  }
  TRY_VOID(lock_fulfils(out, out.image));
  if (lock_text(out) != text) return error(Code::InvalidArgument, "a lock must be spelled in the one way there is");
  return out;
}

Status lock_fulfils(const VenvLock& lock, const VenvImage& image) {
  const auto version = [&](std::string_view name) -> std::string {
    const auto found =
        std::lower_bound(lock.packages.begin(), lock.packages.end(), name,
                         [](const VenvPackage& package, std::string_view n) { return package.name < n; });
    return found != lock.packages.end() && found->name == name ? found->version : std::string();
  };
  if (version("ray") != image.ray)
    return error(Code::InvalidArgument,
                 fmt::format("the lock holds Ray '{}', asked was {}", version("ray"), image.ray));
  if (image.python != "3" && lock.image.python != image.python)
    return error(Code::InvalidArgument,
                 fmt::format("the lock is for Python {}, asked was {}", lock.image.python, image.python));
  for (const auto& [name, wanted] : image.packages) {
    if (version(name) != wanted)
      return error(Code::InvalidArgument,
                   fmt::format("the lock holds {} '{}', asked was {}", name, version(name), wanted));
  }
  return {};
}

}  // namespace muster
