// VenvStore's readers: manifests of trees, what uv and pip say. Pure but for reading the tree.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cctype>
#include <cerrno>
#include <filesystem>
#include <thread>

#include "crypto/hash.h"
#include "host/json.h"
#include "host/venv_store.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::size_t kFilesMax = 400'000;

Result<std::string> hash_file(const std::string& path) {
  const Fd file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file) return error(Code::Unavailable, "cannot read " + path + ": " + errno_text(errno), "disk");
  crypto::Sha256 hash;
  std::array<std::uint8_t, 1 << 17> buffer;
  while (true) {
    const ssize_t n = read(file.get(), buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error(Code::DataLoss, "cannot read " + path + ": " + errno_text(errno), "disk");
    if (n == 0) break;
    hash.update({buffer.data(), static_cast<std::size_t>(n)});
  }
  return hex(hash.finish());
}

Result<std::string> line_of(const std::string& path, const std::string& shown) {
  struct stat info {};
  if (lstat(path.c_str(), &info) != 0)
    return error(Code::Unavailable, "cannot look at " + path + ": " + errno_text(errno), "disk");
  if (S_ISLNK(info.st_mode)) {
    std::error_code failure;
    return fmt::format("{} -> {}\n", shown, fs::read_symlink(path, failure).string());
  }
  if (!S_ISREG(info.st_mode)) return error(Code::DataLoss, shown + " is neither a file nor a link", "venv.failed");
  return fmt::format("{} {} {:o} {}\n", shown, info.st_size, info.st_mode & 07777, TRY(hash_file(path)));
}

}  // namespace

Result<std::string> venv_manifest(const std::string& tree) {
  std::vector<std::string> paths;
  std::error_code failure;
  for (auto it = fs::recursive_directory_iterator(tree, failure); !failure && it != fs::recursive_directory_iterator();
       it.increment(failure)) {
    if (!it->is_directory(failure) || it->is_symlink(failure)) paths.push_back(it->path().string());
    if (paths.size() > kFilesMax)
      return error(Code::TooLarge, "the virtual environment has too many files", "venv.failed");
  }
  if (failure) return error(Code::Unavailable, "cannot read the virtual environment: " + failure.message(), "disk");
  std::sort(paths.begin(), paths.end());
  std::vector<Result<std::string>> lines(paths.size(), std::string());
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    for (std::size_t i = next++; i < paths.size(); i = next++)
      lines[i] = line_of(paths[i], paths[i].substr(tree.size() + 1));
  };
  std::thread second(work);
  work();
  second.join();
  std::string out;
  for (auto& line : lines) out += TRY(std::move(line));
  return out;
}

Result<std::vector<VenvPackage>> parse_uv_lock(std::string_view text) {
  std::vector<VenvPackage> out;
  const auto bad = [](std::string_view line) {
    return error(Code::Unavailable, fmt::format("uv's answer holds '{}'", line.substr(0, 100)), "venv.failed");
  };
  while (!text.empty()) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    while (!line.empty() && (line.back() == '\\' || line.back() == ' ')) line.remove_suffix(1);
    while (!line.empty() && line.front() == ' ') line.remove_prefix(1);
    if (line.empty() || line.front() == '#') continue;
    if (constexpr std::string_view option = "--hash=sha256:"; line.starts_with(option)) {
      if (out.empty()) return bad(line);
      out.back().hashes.emplace_back(line.substr(option.size()));
      continue;
    }
    line = line.substr(0, line.find(';'));  // markers: resolved for this machine, so they hold
    while (!line.empty() && line.back() == ' ') line.remove_suffix(1);
    const auto equals = line.find("==");
    if (equals == std::string_view::npos) return bad(line);
    const std::string_view name = line.substr(0, std::min(equals, line.find('[')));
    out.push_back({normal_package_name(name), std::string(line.substr(equals + 2)), {}});
    if (out.size() > kVenvPackagesMax) return bad("too many packages");
  }
  for (auto& package : out) std::sort(package.hashes.begin(), package.hashes.end());
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

Result<std::vector<VenvPackage>> parse_pip_report(std::string_view text) {
  const auto report = parse_value(text);
  const auto* object = report.ok() ? report->if_object() : nullptr;
  const auto* installs = object == nullptr ? nullptr : object->if_contains("install");
  if (installs == nullptr || !installs->is_array())
    return error(Code::Unavailable, "pip's report is not understood", "venv.failed");
  std::vector<VenvPackage> out;
  for (const auto& each : installs->get_array()) {
    VenvPackage package{
        normal_package_name(text_at(each, {"metadata", "name"})), text_at(each, {"metadata", "version"}), {}};
    std::string hash = text_at(each, {"download_info", "archive_info", "hashes", "sha256"});
    if (hash.empty()) {
      const std::string old = text_at(each, {"download_info", "archive_info", "hash"});
      if (old.starts_with("sha256=")) hash = old.substr(7);
    }
    if (hash.empty() || out.size() >= kVenvPackagesMax)
      return error(Code::Unavailable, "pip's report is not understood: " + package.name, "venv.failed");
    package.hashes.push_back(hash);
    out.push_back(std::move(package));
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return out;
}

VenvFault venv_fault(std::string_view said) {
  std::string text(said);
  std::transform(text.begin(), text.end(), text.begin(), [](unsigned char c) { return std::tolower(c); });
  struct Sign {
    std::string_view text;
    VenvFault fault;
  };
  static constexpr std::array kSigns{
      Sign{"no space left on device", {"venv.disk_full", false}},
      Sign{"disk quota exceeded", {"venv.disk_full", false}},
      Sign{"do not match the hashes", {"venv.hash_mismatch", false}},
      Sign{"hash mismatch", {"venv.hash_mismatch", false}},
      Sign{"ensurepip is not", {"venv.tools", false}},
      Sign{"no module named ensurepip", {"venv.tools", false}},
      Sign{"connection refused", {"venv.unreachable", true}},
      Sign{"connection reset", {"venv.unreachable", true}},
      Sign{"name or service not known", {"venv.unreachable", true}},
      Sign{"temporary failure in name resolution", {"venv.unreachable", true}},
      Sign{"failed to lookup address", {"venv.unreachable", true}},
      Sign{"network is unreachable", {"venv.unreachable", true}},
      Sign{"timed out", {"venv.unreachable", true}},
      Sign{"failed to fetch", {"venv.unreachable", true}},
      Sign{"error sending request", {"venv.unreachable", true}},
      Sign{"incompleteread", {"venv.unreachable", true}},
      Sign{"newconnectionerror", {"venv.unreachable", true}},
      Sign{"no matching distribution", {"venv.no_such_package", false}},
      Sign{"could not find a version", {"venv.no_such_package", false}},
      Sign{"no solution found", {"venv.no_such_package", false}},
      Sign{"was not found in the", {"venv.no_such_package", false}},
      Sign{"resolutionimpossible", {"venv.no_such_package", false}},
      Sign{"conflicting dependencies", {"venv.no_such_package", false}},
  };
  for (const Sign& sign : kSigns) {
    if (text.find(sign.text) != std::string::npos) return sign.fault;
  }
  return {"venv.failed", false};
}

}  // namespace muster::host
