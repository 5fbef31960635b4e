#include "host/lease_dirs.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <sstream>
#include <thread>
#include <vector>

#include "base/log.h"
#include "base/time.h"
#include "crypto/random.h"
#include "egress/ruleset.h"
#include "host/embedded.h"
#include "host/json.h"
#include "model/workload_identity.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kBlock = 4096;
// That often a directory that was emptied is looked at again: who is dying may still write.
constexpr int kLateWrites = 25;
constexpr std::size_t kOpenMax = 128;  // directories at a time: a tree can be deeper than there are descriptors

struct CloseDir {
  void operator()(DIR* dir) const { closedir(dir); }
};
using Dir = std::unique_ptr<DIR, CloseDir>;

// Relative to a directory that is open and never through a link: whoever runs inside may swap anything at any moment,
// and nests as deep as he likes, deeper than any path is long.
Dir open_dir(int parent, const char* name) {
  Fd fd(openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  DIR* const dir = fd ? fdopendir(fd.get()) : nullptr;
  if (dir != nullptr) fd.release();
  return Dir(dir);
}

const dirent* next_entry(const Dir& dir) {
  const dirent* entry = readdir(dir.get());
  while (entry != nullptr && (std::string_view(entry->d_name) == "." || std::string_view(entry->d_name) == ".."))
    entry = readdir(dir.get());
  return entry;
}

std::uint64_t bytes_of(const struct stat& info) {
  const auto blocks = static_cast<std::uint64_t>(std::max<blkcnt_t>(0, info.st_blocks)) * 512;
  const auto links = S_ISREG(info.st_mode) ? std::max<nlink_t>(1, info.st_nlink) : nlink_t{1};
  return std::max(kBlock, blocks / links);
}

bool on_tmpfs(const std::string& path) {
  struct statfs info {};
  return statfs(path.c_str(), &info) == 0 && static_cast<long>(info.f_type) == static_cast<long>(TMPFS_MAGIC);
}

std::string read_small(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str().substr(0, 4096);
}

}  // namespace

Status make_dir(const std::string& path, mode_t mode) {
  if (mkdir(path.c_str(), mode) != 0 && errno != EEXIST) {
    return error(Code::Unavailable, fmt::format("cannot make {}: {}", path, errno_text(errno)), "disk");
  }
  chmod(path.c_str(), mode);
  return {};
}

std::string choose_secrets_root(const Layout& layout) {
  const std::string leaf = "muster-" + std::to_string(std::hash<std::string>{}(layout.root));
  for (const std::string base : {"/run", "/dev/shm"}) {
    if (on_tmpfs(base)) return base + "/" + leaf;
  }
  log_warn("privd",
           "this machine has no tmpfs at /run or /dev/shm: cluster secrets are kept on its disk while a lease runs");
  return layout.root + "/secrets";
}

Status write_whole(const std::string& path, ByteView data, mode_t mode, uid_t uid, gid_t gid) {
  const std::string part = path + ".part";
  unlink(part.c_str());
  Fd file(open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode));
  if (!file) return error(Code::Unavailable, "cannot write " + path + ": " + errno_text(errno), "disk");
  if (write(file.get(), data.data(), data.size()) != static_cast<ssize_t>(data.size()) ||
      fchown(file.get(), uid, gid) != 0 || fchmod(file.get(), mode) != 0 || rename(part.c_str(), path.c_str()) != 0) {
    return error(Code::Unavailable, "cannot write " + path + ": " + errno_text(errno), "disk");
  }
  return {};
}

std::uint64_t tree_bytes(const std::string& path, std::uint64_t enough) {
  struct stat info {};
  std::vector<Dir> open, later;  // `open` from a root down; `later` are the roots of what lies deeper
  later.push_back(open_dir(AT_FDCWD, path.c_str()));
  if (!later.back() || fstat(dirfd(later.back().get()), &info) != 0) return 0;
  const dev_t device = info.st_dev;
  std::uint64_t sum = bytes_of(info);
  while (enough == 0 || sum < enough) {
    if (open.empty()) {
      if (later.empty()) break;
      open.push_back(std::move(later.back()));
      later.pop_back();
    }
    const dirent* entry = next_entry(open.back());
    if (entry == nullptr) {
      open.pop_back();
      continue;
    }
    const int here = dirfd(open.back().get());
    if (fstatat(here, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    sum += bytes_of(info);
    if (!S_ISDIR(info.st_mode) || info.st_dev != device) continue;
    auto& rest = open.size() < kOpenMax ? open : later;
    if (rest.size() >= kOpenMax) return std::max(sum, enough);  // built to be beyond counting: as good as full
    if (Dir inner = open_dir(here, entry->d_name)) rest.push_back(std::move(inner));
  }
  return sum;
}

Status remove_tree(const std::string& path) {
  struct Level {
    Dir dir;
    std::string name;
  };
  std::vector<Level> open;
  open.push_back({open_dir(AT_FDCWD, path.c_str()), {}});
  int failure = 0;
  if (!open.back().dir) {  // nothing, or what is no directory: itself, never what it leads to
    if (unlink(path.c_str()) == 0 || errno == ENOENT) return {};
    return error(Code::Unavailable, fmt::format("cannot remove {}: {}", path, errno_text(errno)), "disk");
  }
  const int top = dirfd(open.back().dir.get());
  int again = kLateWrites;
  for (bool moved = false; !open.empty();) {
    const int here = dirfd(open.back().dir.get());
    const dirent* entry = next_entry(open.back().dir);
    if (entry == nullptr && open.size() == 1 && moved) {
      rewinddir(open.back().dir.get());
      moved = false;
      continue;
    }
    if (entry == nullptr) {
      const bool first = open.size() == 1;
      const int above = first ? AT_FDCWD : dirfd(open[open.size() - 2].dir.get());
      if (unlinkat(above, first ? path.c_str() : open.back().name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT) {
        if (errno == ENOTEMPTY && failure == 0 && again-- > 0) {
          std::this_thread::sleep_for(Millis(20));
          rewinddir(open.back().dir.get());
          continue;
        }
        failure = errno;
      }
      open.pop_back();
      continue;
    }
    const std::string name = entry->d_name;
    if (unlinkat(here, name.c_str(), 0) == 0 || errno == ENOENT) continue;
    Dir inner = errno == EISDIR || errno == EPERM ? open_dir(here, name.c_str()) : Dir();
    if (!inner) {
      failure = errno;
    } else if (open.size() < kOpenMax) {
      open.push_back({std::move(inner), name});
    } else if (renameat(here, name.c_str(), top, hex(crypto::random_bytes(16)).c_str()) == 0) {
      moved = true;  // beside the top, to be removed from there
    } else {
      failure = errno;
    }
  }
  if (failure != 0)
    return error(Code::Unavailable, fmt::format("cannot remove all of {}: {}", path, errno_text(failure)), "disk");
  return {};
}

std::map<std::string, std::string> lease_environment(const LaunchSpec& spec, const std::string& visible) {
  std::map<std::string, std::string> env = spec.env;
  const std::map<std::string, std::string> ours{
      {"NVIDIA_VISIBLE_DEVICES", visible},
      {"RAY_AUTH_MODE", "token"},
      {"RAY_AUTH_TOKEN_PATH", "/muster/secrets/ray_token"},
      {"RAY_USAGE_STATS_ENABLED", "0"},
      {"RAY_gcs_rpc_server_reconnect_timeout_s", "600"},
      {"RAY_health_check_period_ms", "1000"},
      {"RAY_health_check_timeout_ms", "2000"},
      {"RAY_health_check_failure_threshold", "5"},
      {"RAY_grpc_client_keepalive_time_ms", "5000"},
      {"RAY_grpc_client_keepalive_timeout_ms", "10000"},
      {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "2"},
      {"RAY_CLOUD_INSTANCE_ID", spec.lease},
      {"RAY_NODE_TYPE_NAME", spec.group.empty() ? (spec.head ? "head" : "worker") : spec.group},
      {"NCCL_SOCKET_IFNAME", "muster0"},
      {"GLOO_SOCKET_IFNAME", "muster0"},
      {"MUSTER_HELPER_SOCKET", "/muster/run/helper.sock"},
      {"MUSTER_HELPER_WARM", "1"}};
  for (const auto& [key, value] : ours) env[key] = value;
  if (spec.gpu_share_milli > 0) {
    const double share = static_cast<double>(spec.gpu_share_milli) / kGpuMilli;
    env["MUSTER_GPU_SHARE"] = fmt::format("{:g}", share);
    env["MUSTER_GPU_MEMORY_BYTES"] = std::to_string(spec.gpu_memory_bytes);
    // Nothing keeps the memory of a shared GPU apart. Frameworks that would take all of it at once are told otherwise,
    // unless the user has.
    if (!spec.devices.empty() && !spec.devices.front().starts_with("MIG-")) {
      env.try_emplace("XLA_PYTHON_CLIENT_MEM_FRACTION", fmt::format("{:.3g}", share * 0.9));
      env.try_emplace("TF_FORCE_GPU_ALLOW_GROWTH", "true");
    }
  }
  env.erase("RAY_AUTH_TOKEN");
  if (env.contains(std::string(kIdentityAudienceEnv))) env["MUSTER_IDENTITY_TOKEN_FILE"] = "/muster/secrets/identity";
  if (spec.head) {
    env["RAY_gcs_storage"] = "rocksdb";
    env["RAY_gcs_storage_path"] = "/tmp/ray/muster_gcs";
  }
  return env;
}

// With egress every question is turned to the egress process, wherever it goes; without it nobody is asked, and
// programs hear so at once.
std::string lease_resolver(const LaunchSpec& spec) {
  if (spec.egress) return fmt::format("nameserver {}\noptions timeout:4 attempts:2\n", egress::kLeaseNameServer);
  return "# This cluster has no way out to the internet (muster: {egress: true} asks for one).\nnameserver 127.0.0.1\n";
}

LeaseDirs::LeaseDirs(Layout layout, std::string secrets_root)
    : layout_(std::move(layout)), secrets_root_(std::move(secrets_root)) {
  if (secrets_root_.empty()) secrets_root_ = choose_secrets_root(layout_);
}

Status LeaseDirs::prepare(const std::string& lease) {
  TRY_VOID(make_dir(layout_.root, 0755));
  TRY_VOID(make_dir(layout_.leases(), 0711));
  TRY_VOID(make_dir(dir(lease), 0711));
  for (const auto* part : {"/run", "/probe", "/blobs", "/workspace"}) {
    const std::string path = dir(lease) + part;
    if (!fs::exists(path)) TRY_VOID(make_dir(path, 0755));
  }
  if (!fs::exists(dir(lease) + "/run/blobs")) TRY_VOID(make_dir(dir(lease) + "/run/blobs", 0755));
  TRY_VOID(make_dir(secrets_root_, 0711));
  TRY_VOID(make_dir(secrets(lease), 0755));
  return prepare_helper();
}

Status LeaseDirs::prepare_helper() {
  TRY_VOID(make_dir(layout_.helper(), 0755));
  for (const auto& [name, text] :
       {std::pair("/ray_warm.py", ray_warm_source()), std::pair("/ray_jobs.py", ray_jobs_source()),
        std::pair("/ray_helper.py", ray_helper_source())})
    TRY_VOID(write_whole(layout_.helper() + name, as_bytes(text), 0644, geteuid(), getegid()));
  return write_whole(layout_.helper() + "/seccomp.json", as_bytes(seccomp_profile()), 0644, geteuid(), getegid());
}

namespace {

constexpr std::size_t kLinkedMax = 1 << 20;

std::string map_text(const IdMap& map) {
  return fmt::format("{} {} {}\n", map.uids, map.gids, map.size);
}

// Moves what lies in `from` to the same place in `to`; other owners stay as they are.
std::uint32_t moved_id(std::uint32_t id, std::uint32_t from, std::uint32_t to, std::uint32_t size) {
  return id >= from && id - from < size ? to + (id - from) : id;
}

// On its file system only, links not followed and themselves moved. A file with several names is moved once.
Status move_owners(const std::string& path, const IdMap& from, const IdMap& to) {
  const std::uint32_t size = std::min(from.size, to.size);
  std::set<ino_t> done;
  struct stat info {};
  std::vector<Dir> open;
  open.push_back(open_dir(AT_FDCWD, path.c_str()));
  if (!open.back() || fstat(dirfd(open.back().get()), &info) != 0) return {};
  const dev_t device = info.st_dev;
  while (!open.empty()) {
    const dirent* entry = next_entry(open.back());
    if (entry == nullptr) {
      open.pop_back();
      continue;
    }
    const int here = dirfd(open.back().get());
    if (fstatat(here, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0 || info.st_dev != device) continue;
    const bool folder = S_ISDIR(info.st_mode);
    if (!folder && info.st_nlink > 1 && !done.insert(info.st_ino).second) continue;
    const uid_t uid = moved_id(info.st_uid, from.uids, to.uids, size);
    const gid_t gid = moved_id(info.st_gid, from.gids, to.gids, size);
    if ((uid != info.st_uid || gid != info.st_gid) && fchownat(here, entry->d_name, uid, gid, AT_SYMLINK_NOFOLLOW) != 0)
      return error(Code::Unavailable, fmt::format("cannot hand over what is in {}: {}", path, errno_text(errno)),
                   "disk");
    if (!folder) {
      if (done.size() > kLinkedMax)
        return error(Code::Unavailable, path + " has too many files of several names", "disk");
      continue;
    }
    if (open.size() >= kOpenMax)
      return error(Code::Unavailable, path + " is too deep to be handed to other user ids", "disk");
    if (Dir inner = open_dir(here, entry->d_name)) open.push_back(std::move(inner));
  }
  return {};
}

}  // namespace

Status LeaseDirs::hand_over(const std::string& lease, uid_t uid, gid_t gid, const IdMap& map, Place place) {
  if (uid >= map.size || gid >= map.size)
    return error(
        Code::InvalidArgument,
        fmt::format("the image runs as user {} of group {}; a lease has the ids below {} here", uid, gid, map.size),
        "image.user");
  IdMap before;
  const std::string kept = dir(lease) + "/ids";
  if (std::ifstream file(kept); file && !(file >> before.uids >> before.gids >> before.size)) before = {};
  if (place == Place::Main && before != map) {
    TRY_VOID(move_owners(dir(lease) + "/workspace", before, map));
    TRY_VOID(write_whole(kept, as_bytes(map_text(map)), 0600, geteuid(), getegid()));
  }
  uid += map.uids, gid += map.gids;
  for (const std::string part : {"/run", "/probe", "/workspace"}) {
    if (place == Place::Probe && part != "/probe") continue;
    // The container could have replaced what is inside; the directory itself sits in ours.
    const std::string path = dir(lease) + part;
    if (lchown(path.c_str(), uid, gid) != 0)
      return error(Code::Unavailable, "cannot hand over " + path + ": " + errno_text(errno), "disk");
  }
  return {};
}

Status LeaseDirs::put_secret(const std::string& lease, ByteView ray_token) {
  return put_identity(lease, "ray_token", ray_token);
}

Status LeaseDirs::put_identity(const std::string& lease, const std::string& file, ByteView token) {
  struct stat owner {};
  if (lstat((dir(lease) + "/run").c_str(), &owner) != 0)
    return error(Code::FailedPrecondition, "the lease has no container", "container.missing");
  return write_whole(secrets(lease) + "/" + file, token, 0400, owner.st_uid, owner.st_gid);
}

Status LeaseDirs::put_blob(const std::string& lease, const std::string& blob, int source) {
  const std::string blobs = dir(lease) + "/blobs";
  if (!fs::is_directory(blobs))
    return error(Code::FailedPrecondition, "the lease has no container", "container.missing");
  const std::string path = blobs + "/" + blob, part = path + ".part";
  unlink(part.c_str());
  Fd file(open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0644));
  if (!file) return error(Code::Unavailable, "cannot write a blob: " + errno_text(errno), "disk");
  char buffer[65536];
  while (true) {
    const ssize_t n = read(source, buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n == 0) break;
    if (n < 0 || write(file.get(), buffer, static_cast<std::size_t>(n)) != n) {
      unlink(part.c_str());
      return error(Code::Unavailable, "cannot write a blob: " + errno_text(errno), "disk");
    }
  }
  fchmod(file.get(), 0644);
  if (rename(part.c_str(), path.c_str()) != 0)
    return error(Code::Unavailable, "cannot write a blob: " + errno_text(errno), "disk");
  return {};
}

Result<Fd> LeaseDirs::connect_helper(const std::string& lease, Place place) {
  return connect_beneath(dir(lease) + (place == Place::Main ? "/run" : "/probe"), "helper.sock");
}

void LeaseDirs::forget_secrets(const std::string& lease) {
  std::error_code ignored;
  fs::remove_all(secrets(lease), ignored);
  rmdir(secrets_root_.c_str());  // stays while another lease has secrets there; made again when needed
}

Status LeaseDirs::remove(const std::string& lease) {
  return remove_tree(dir(lease));
}

Status LeaseDirs::remember_limits(const LaunchSpec& spec) {
  const json::object limits{{"root_bytes", spec.root_bytes_max}, {"workspace_bytes", spec.workspace_bytes_max}};
  return write_whole(dir(spec.lease) + "/limits.json", as_bytes(to_text(limits)), 0600, geteuid(), getegid());
}

DiskUse LeaseDirs::limits(const std::string& lease) const {
  const auto object = parse_object(read_small(dir(lease) + "/limits.json"));
  if (!object.ok()) return {};
  const auto number = [&](const char* key) {
    return static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(*object, {key})));
  };
  return {number("root_bytes"), number("workspace_bytes")};
}

Status LeaseDirs::remember_egress(const LaunchSpec& spec) {
  const std::string path = dir(spec.lease) + "/egress.json";
  if (!spec.egress) return unlink(path.c_str()) == 0 || errno == ENOENT ? Status{} : error(Code::Unavailable, path);
  const json::object way{{"address", spec.address}, {"prefix_bits", spec.prefix_bits}};
  return write_whole(path, as_bytes(to_text(way)), 0600, geteuid(), getegid());
}

void LeaseDirs::recall_egress(LeaseState& state) const {
  const auto object = parse_object(read_small(dir(state.lease) + "/egress.json"));
  state.egress = object.ok();
  if (!state.egress) return;
  state.address = static_cast<std::uint32_t>(int_at(*object, {"address"}));
  state.prefix_bits = static_cast<int>(int_at(*object, {"prefix_bits"}, 16));
}

Status LeaseDirs::mark_halted(const std::string& lease, const std::string& reason) {
  return write_whole(dir(lease) + "/halted", as_bytes(reason), 0600, geteuid(), getegid());
}

std::string LeaseDirs::halted(const std::string& lease) const {
  return read_small(dir(lease) + "/halted");
}

void LeaseDirs::clear_halted(const std::string& lease) {
  unlink((dir(lease) + "/halted").c_str());
}

}  // namespace muster::host
