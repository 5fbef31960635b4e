#include "host/venv_runtime.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "host/child.h"
#include "host/embedded.h"
#include "host/facts.h"
#include "host/netns.h"
#include "host/seccomp_filter.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr uid_t kInnerUid = 1000;
constexpr const char* kHome = "/home/ray";
constexpr const char* kOwnVenv = "/home/ray/venv";  // thin and writable, on top of the shared one
constexpr std::int64_t kShmDefault = std::int64_t{512} << 20;

// A file of the sandbox's root, owned by who runs in it.
Status put(const std::string& path, std::string_view text, mode_t mode) {
  return write_whole(path, as_bytes(text), mode, kVenvJobUid, kVenvJobUid);
}

Status own_dirs(const std::string& root, const std::vector<std::string>& parts) {
  for (const auto& part : parts) {
    const std::string path = root + part;
    TRY_VOID(make_dir(path, part == "/tmp" || part == "/var/tmp" ? 01777 : 0755));
    if (chown(path.c_str(), kVenvJobUid, kVenvJobUid) != 0)
      return error(Code::Unavailable, "cannot hand over " + path + ": " + errno_text(errno), "disk");
  }
  return {};
}

void show(std::vector<std::string>& options, const char* how, const std::string& from, const std::string& to) {
  options.insert(options.end(), {how, from, to});
}

// What engines hide of /proc as well: it tells about the machine, not about the sandbox.
void hide_proc(std::vector<std::string>& options) {
  for (const char* name :
       {"kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "interrupts"}) {
    const std::string path = fmt::format("/proc/{}", name);
    if (fs::exists(path)) show(options, "--ro-bind", "/dev/null", path);
  }
  for (const char* name : {"acpi", "asound", "scsi"}) {
    const std::string path = fmt::format("/proc/{}", name);
    if (fs::is_directory(path)) options.insert(options.end(), {"--tmpfs", path, "--remount-ro", path});
  }
}

// The owner's word counts, also that there is none.
std::string find_uv(const std::string& named) {
  if (named.empty()) return find_program("uv");
  return access(named.c_str(), X_OK) == 0 ? named : std::string();
}

std::int64_t most_files() {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  return limit.rlim_max == RLIM_INFINITY ? std::int64_t{1} << 20 : static_cast<std::int64_t>(limit.rlim_max);
}

}  // namespace

VenvRuntime::VenvRuntime(VenvOptions options)
    : options_(std::move(options)),
      dirs_(options_.layout, options_.secrets_root),
      cgroups_(options_.machine),
      store_({.layout = options_.layout, .bwrap = find_program("bwrap"), .uv = find_uv(options_.uv)}, cgroups_),
      bwrap_(find_program("bwrap")) {
  missing_ = store_.missing();
  if (missing_.empty() && !cgroups_.missing().empty())
    missing_ = "control groups for " + cgroups_.missing() + " (a kernel that has them, mounted at /sys/fs/cgroup)";
  auto compiled = compile_seccomp(seccomp_profile());
  if (compiled.ok())
    seccomp_ = std::move(*compiled);
  else
    missing_ = compiled.error().message;
}

std::string VenvRuntime::box(const std::string& lease, Place place) const {
  return dirs_.dir(lease) + (place == Place::Main ? "/box" : "/probe-box");
}
std::string VenvRuntime::group(const std::string& lease, Place place) const {
  return place == Place::Main ? lease : lease + "-probe";
}

bool VenvRuntime::holds(const std::string& lease) const {
  return read_box_state(box(lease)).known || read_box_state(box(lease, Place::Probe)).known ||
         netns_pinned(network(lease));
}

Result<EngineInfo> VenvRuntime::info() {
  if (!missing_.empty()) return error(Code::FailedPrecondition, "this machine lacks " + missing_, "venv.tools");
  EngineInfo out;
  out.kind = "venv";
  out.runtimes = {RuntimeKind::Venv};
  out.version = "bubblewrap";
  out.own_users = true;
  out.arch = machine_arch();
  out.cgroup = cgroups_.unified() ? "2" : "1";
  out.gpu_mode = fs::exists("/proc/driver/nvidia/gpus") ? "device" : "none";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(options_.layout.venvs(), ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.size() == 64 && out.images.size() < 64) out.images.push_back("sha256:" + name);
  }
  return out;
}

Result<Pulled> VenvRuntime::pull(const PullSpec& spec, const Progress& progress) {
  if (!missing_.empty()) return error(Code::FailedPrecondition, "this machine lacks " + missing_, "venv.tools");
  const auto wanted = parse_venv_image(spec.image);
  if (!wanted.ok()) return error(Code::InvalidArgument, wanted.error().message, "venv.reference");
  const Venv venv = TRY(store_.ensure(*wanted, spec.lock, options_.index ? options_.index() : std::string(), progress));
  std::set<std::string> used{venv.digest};
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(options_.layout.leases(), ignored)) {
    const auto spec = read_box_spec(entry.path().string() + "/box");
    if (spec.ok()) used.insert(spec->image);
  }
  store_.prune(used);
  VenvImage pinned = *wanted;
  pinned.python = venv.python;
  pinned.lock = venv.digest.substr(venv.digest.find(':') + 1);
  return Pulled{venv.digest, venv_text(pinned), venv.lock};
}

// A fresh root: what programs expect to find, nothing of this machine but /usr, which is mounted.
Status VenvRuntime::make_root(const std::string& root, const Venv& venv, const LaunchSpec& spec) {
  std::error_code failure;
  TRY_VOID(remove_tree(root));
  TRY_VOID(make_dir(root, 0700));
  const std::string site = fmt::format("{}/lib/python{}/site-packages", kOwnVenv, venv.python);
  TRY_VOID(own_dirs(root, {"", "/etc", "/home", kHome, "/tmp", "/var", "/var/tmp", "/run", "/opt", "/mnt", kOwnVenv,
                           fmt::format("{}/bin", kOwnVenv), fmt::format("{}/lib", kOwnVenv),
                           fmt::format("{}/lib/python{}", kOwnVenv, venv.python), site}));
  chmod(root.c_str(), 0700);
  for (const char* name : {"bin", "sbin", "lib", "lib64", "lib32"}) {
    const fs::path target = fs::read_symlink(fs::path("/") / name, failure);
    if (!failure) fs::create_symlink(target, root + "/" + name, failure);
  }
  TRY_VOID(put(root + "/etc/passwd",
               "root:x:0:0:root:/root:/usr/sbin/nologin\nray:x:1000:1000:ray:/home/ray:/bin/bash\n"
               "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
               0644));
  TRY_VOID(put(root + "/etc/group", "root:x:0:\nray:x:1000:\nnogroup:x:65534:\n", 0644));
  TRY_VOID(put(root + "/etc/hosts", "127.0.0.1 localhost\n", 0644));
  TRY_VOID(put(root + "/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n", 0644));
  TRY_VOID(put(root + "/etc/resolv.conf", lease_resolver(spec), 0644));
  // A thin environment of the lease's own on top of the shared one, so that `pip install` has somewhere to write.
  const std::string own = root + kOwnVenv;
  TRY_VOID(put(own + "/pyvenv.cfg",
               fmt::format("home = {}\ninclude-system-site-packages = false\nversion = {}\n",
                           fs::path(venv.interpreter).parent_path().string(), venv.python),
               0644));
  for (const auto& name : {std::string("python"), std::string("python3"), "python" + venv.python})
    fs::create_symlink(venv.interpreter, own + "/bin/" + name, failure);
  TRY_VOID(
      put(root + site + "/muster.pth", fmt::format("{}/lib/python{}/site-packages\n", kVenvPlace, venv.python), 0644));
  for (const char* name : {"pip", "pip3"}) {
    TRY_VOID(put(own + "/bin/" + name,
                 fmt::format("#!{}/bin/python\nimport sys\nfrom pip._internal.cli.main import main\nsys.exit(main())\n",
                             kOwnVenv),
                 0755));
  }
  return {};
}

Result<BoxSpec> VenvRuntime::describe(const LaunchSpec& spec, const Venv& venv, Place place, Launched* told) {
  const bool main = place == Place::Main;
  const std::string dir = dirs_.dir(spec.lease);
  BoxSpec out;
  out.bwrap = bwrap_;
  out.image = venv.digest;
  out.uid = kVenvJobUid;
  out.inner_uid = kInnerUid;
  out.seccomp = seccomp_;
  out.directory = kHome;
  out.cgroups = cgroups_.entrances(group(spec.lease, place));
  out.command = {fmt::format("{}/bin/python", kOwnVenv), "-u", "/muster/helper/ray_helper.py"};
  out.nofile = spec.nofile > 0 ? spec.nofile : 65536;
  if (const std::int64_t most = most_files(); out.nofile > most) {
    if (told != nullptr)
      told->warnings.push_back(
          fmt::format("nofile {} was lowered to {}, the most this machine allows", out.nofile, most));
    out.nofile = most;
  }
  auto& o = out.options;
  o = {"--unshare-user",
       "--uid",
       std::to_string(kInnerUid),
       "--gid",
       std::to_string(kInnerUid),
       "--unshare-pid",
       "--unshare-ipc",
       "--unshare-uts",
       "--hostname",
       spec.lease,
       "--disable-userns",
       "--die-with-parent",
       "--new-session"};
  show(o, "--bind", dir + (main ? "/root" : "/probe-root"), "/");
  show(o, "--ro-bind", "/usr", "/usr");
  for (const char* name : {"/bin", "/sbin", "/lib", "/lib64", "/lib32"}) {
    if (fs::is_directory(name) && !fs::is_symlink(name)) show(o, "--ro-bind", name, name);
  }
  for (const char* name : {"/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d", "/etc/alternatives", "/etc/ssl",
                           "/etc/ca-certificates", "/etc/localtime", "/etc/mime.types"})
    show(o, "--ro-bind-try", name, name);
  o.insert(o.end(), {"--proc", "/proc", "--dev", "/dev"});
  hide_proc(o);
  o.insert(o.end(), {"--size", std::to_string(spec.shm_bytes > 0 ? spec.shm_bytes : kShmDefault), "--perms", "1777",
                     "--tmpfs", "/dev/shm"});
  show(o, "--ro-bind", venv.tree, kVenvPlace);
  show(o, "--bind", dir + (main ? "/run" : "/probe"), "/muster/run");
  show(o, "--ro-bind", options_.layout.helper(), "/muster/helper");
  std::map<std::string, std::string> env{
      {"PATH", fmt::format("{}/bin:{}/bin:/usr/local/bin:/usr/bin:/bin", kOwnVenv, kVenvPlace)},
      {"HOME", kHome},
      {"USER", "ray"},
      {"LANG", "C.UTF-8"},
      {"VIRTUAL_ENV", kOwnVenv},
      {"PYTHONUNBUFFERED", "1"}};
  if (main) {
    out.network = network(spec.lease);
    out.sysfs = dir + "/sys";
    show(o, "--ro-bind", out.sysfs, "/sys");
    for (const char* hidden : {"/sys/firmware", "/sys/kernel", "/sys/fs", "/sys/devices/virtual/powercap"})
      if (fs::is_directory(hidden)) o.insert(o.end(), {"--tmpfs", hidden});
    // Its own memory limit where programs look for it.
    show(o, "--ro-bind", cgroups_.memory_path(spec.lease),
         cgroups_.unified() ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory");
    show(o, "--ro-bind", dir + "/blobs", "/muster/run/blobs");
    show(o, "--bind", dir + "/workspace", "/tmp/ray");
    show(o, "--ro-bind", dirs_.secrets(spec.lease), "/muster/secrets");
    std::string visible = "void";
    if (!spec.devices.empty()) {
      for (const auto& file : TRY(gpu_device_files(spec.devices, "/proc/driver/nvidia")))
        show(o, "--dev-bind", file, file);
      visible = fmt::format("{}", fmt::join(spec.devices, ","));
    }
    for (const auto& [key, value] : lease_environment(spec, visible)) env[key] = value;
  } else {
    o.emplace_back("--unshare-net");
    env["MUSTER_HELPER_STATE"] = "/tmp/muster_probe.json";
  }
  o.insert(o.end(), {"--chdir", kHome, "--clearenv"});
  for (const auto& [key, value] : env) {
    o.insert(o.end(), {"--setenv", key, value});
    out.env.push_back(key + "=" + value);
  }
  return out;
}

Status VenvRuntime::start_box(const std::string& lease, Place place) {
  const std::string dir = box(lease, place);
  for (const auto* stale : {"/exit.json", "/state.json"}) unlink((dir + stale).c_str());
  TRY_VOID(
      cgroups_.create("boxes", {}));  // beside the leases, so that whatever ends the agent's service leaves them alone
  Child child;
  child.program = "/proc/self/exe";
  child.argv = {"muster-agent", "venv-box", dir};
  child.env = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
  child.cgroups = cgroups_.entrances("boxes");
  child.detached = true;
  TRY(start_child(child));
  for (int i = 0; i < 1500; ++i) {  // a loaded machine needs its time
    const BoxState state = read_box_state(dir);
    if (state.running && state.main != 0) return {};
    if (fs::exists(dir + "/exit.json")) {
      const std::string said = read_box_output(dir, 2000);
      return error(Code::Unavailable, fmt::format("the sandbox ended at once: {}", said.empty() ? "no word" : said),
                   "container.start");
    }
    std::this_thread::sleep_for(Millis(20));
  }
  return error(Code::DeadlineExceeded, "the sandbox did not start within 30 s", "container.start");
}

// Nothing of it runs or is left but what the lease keeps.
Status VenvRuntime::end_box(const std::string& lease, Place place) {
  const std::string dir = box(lease, place);
  TRY_VOID(cgroups_.kill_all(group(lease, place), Millis(20'000)));
  for (int i = 0; i < 500 && read_box_state(dir).running; ++i) std::this_thread::sleep_for(Millis(20));
  TRY_VOID(cgroups_.remove(group(lease, place)));
  TRY_VOID(remove_tree(dirs_.dir(lease) + (place == Place::Main ? "/root" : "/probe-root")));
  return remove_tree(dir);
}

Result<Launched> VenvRuntime::launch(const LaunchSpec& spec) {
  Launched told;
  if (!missing_.empty()) return error(Code::FailedPrecondition, "this machine lacks " + missing_, "venv.tools");
  TRY_VOID(dirs_.prepare(spec.lease));
  TRY_VOID(dirs_.remember_limits(spec));
  TRY_VOID(dirs_.remember_egress(spec));
  const Venv venv = TRY(store_.locate(spec.image));
  TRY_VOID(pin_netns(network(spec.lease)));
  told.network = network(spec.lease);
  if (options_.make_tun) TRY_VOID(options_.make_tun(told.network, spec));
  const std::string dir = box(spec.lease);
  if (read_box_state(dir).running) {
    const auto described = read_box_spec(dir);
    if (described.ok() && described->image == spec.image) return told;
  }
  TRY_VOID(end_box(spec.lease, Place::Main));
  dirs_.clear_halted(spec.lease);
  TRY_VOID(make_dir(dir, 0700));
  TRY_VOID(make_dir(dirs_.dir(spec.lease) + "/sys", 0755));
  TRY_VOID(make_root(dirs_.dir(spec.lease) + "/root", venv, spec));
  TRY_VOID(
      cgroups_.create(group(spec.lease, Place::Main),
                      {.memory_bytes = spec.memory_bytes,
                       .cpu_milli = std::min<std::int64_t>(spec.cpu_milli, 1000 * std::thread::hardware_concurrency()),
                       .pids = spec.pids}));
  const BoxSpec described = TRY(describe(spec, venv, Place::Main, &told));
  TRY_VOID(write_box_spec(dir, described));
  TRY_VOID(dirs_.hand_over(spec.lease, kVenvJobUid, kVenvJobUid));
  unlink((dirs_.dir(spec.lease) + "/run/helper.sock").c_str());
  TRY_VOID(start_box(spec.lease, Place::Main));
  return told;
}

Status VenvRuntime::start_probe(const std::string& lease, const std::string& image) {
  TRY_VOID(dirs_.prepare(lease));
  const Venv venv = TRY(store_.locate(image));
  TRY_VOID(end_box(lease, Place::Probe));
  const std::string dir = box(lease, Place::Probe);
  TRY_VOID(make_dir(dir, 0700));
  TRY_VOID(make_root(dirs_.dir(lease) + "/probe-root", venv, LaunchSpec{}));
  TRY_VOID(cgroups_.create(group(lease, Place::Probe), {.memory_bytes = std::int64_t{2} << 30, .pids = 512}));
  LaunchSpec spec;
  spec.lease = lease;
  spec.nofile = 4096;
  TRY_VOID(write_box_spec(dir, TRY(describe(spec, venv, Place::Probe, nullptr))));
  TRY_VOID(dirs_.hand_over(lease, kVenvJobUid, kVenvJobUid));
  return start_box(lease, Place::Probe);
}

Status VenvRuntime::stop_probe(const std::string& lease) {
  return end_box(lease, Place::Probe);
}

Status VenvRuntime::stop(const std::string& lease, int grace_s) {
  TRY_VOID(end_box(lease, Place::Probe));
  const BoxState state = read_box_state(box(lease));
  if (grace_s > 0 && state.running && state.main > 0 && kill(state.main, SIGTERM) == 0) {
    for (int i = 0; i < grace_s * 20 && read_box_state(box(lease)).running; ++i)
      std::this_thread::sleep_for(Millis(50));
  }
  TRY_VOID(end_box(lease, Place::Main));
  unpin_netns(network(lease));
  {
    const std::lock_guard lock(mutex_);
    std::erase_if(controls_, [&](const auto& each) { return each.first.starts_with(lease + "/"); });
  }
  dirs_.forget_secrets(lease);
  dirs_.clear_halted(lease);
  return {};
}

Status VenvRuntime::remove(const std::string& lease) {
  TRY_VOID(stop(lease, 0));
  return dirs_.remove(lease);
}

Status VenvRuntime::remove_everything() {
  for (const auto& state : TRY(list())) TRY_VOID(remove(state.lease));
  TRY_VOID(store_.remove_everything());
  for (const char* name : {"boxes", "venv-build"}) (void)cgroups_.remove(name).ok();
  cgroups_.remove_all();
  std::error_code ignored;
  fs::remove_all(dirs_.secrets_root(), ignored);
  return {};
}

}  // namespace muster::host
