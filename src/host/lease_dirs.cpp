#include "host/lease_dirs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fts.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>

#include "base/log.h"
#include "egress/ruleset.h"
#include "host/embedded.h"
#include "host/json.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::uint64_t kBlock = 4096;

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
  std::string root = path;
  char* const roots[] = {root.data(), nullptr};
  FTS* walk = fts_open(roots, FTS_PHYSICAL | FTS_XDEV | FTS_NOCHDIR, nullptr);
  if (walk == nullptr) return 0;
  std::uint64_t sum = 0;
  while (const FTSENT* entry = fts_read(walk)) {
    if (entry->fts_info == FTS_DP || entry->fts_statp == nullptr || entry->fts_info == FTS_NS) continue;
    const auto& info = *entry->fts_statp;
    const auto blocks = static_cast<std::uint64_t>(std::max<blkcnt_t>(0, info.st_blocks)) * 512;
    const auto links = entry->fts_info == FTS_F ? std::max<nlink_t>(1, info.st_nlink) : nlink_t{1};
    sum += std::max(kBlock, blocks / links);
    if (enough > 0 && sum >= enough) break;
  }
  fts_close(walk);
  return sum;
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
  env.erase("RAY_AUTH_TOKEN");
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

Status LeaseDirs::hand_over(const std::string& lease, uid_t uid, gid_t gid) {
  for (const auto* part : {"/run", "/probe", "/workspace"}) {
    // The container could have replaced what is inside; the directory itself sits in ours.
    const std::string path = dir(lease) + part;
    if (lchown(path.c_str(), uid, gid) != 0)
      return error(Code::Unavailable, "cannot hand over " + path + ": " + errno_text(errno), "disk");
  }
  return {};
}

Status LeaseDirs::put_secret(const std::string& lease, ByteView ray_token) {
  struct stat owner {};
  if (lstat((dir(lease) + "/run").c_str(), &owner) != 0)
    return error(Code::FailedPrecondition, "the lease has no container", "container.missing");
  return write_whole(secrets(lease) + "/ray_token", ray_token, 0400, owner.st_uid, owner.st_gid);
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
  std::error_code failure;
  fs::remove_all(dir(lease), failure);
  if (failure) return error(Code::Unavailable, "cannot remove the workspace: " + failure.message(), "disk");
  return {};
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
