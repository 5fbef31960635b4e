#include "host/venv_store.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "crypto/hash.h"
#include "host/child.h"
#include "host/facts.h"
#include "host/json.h"
#include "host/lease_dirs.h"

extern char** environ;

namespace muster::host {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::minutes kStallMax{5}, kBuildMax{45};
constexpr std::chrono::seconds kSilenceMax{30};  // for an index that never answered
constexpr std::uint64_t kBegun = 32 << 20;       // more than the bare environment before any package
constexpr std::chrono::seconds kCountEvery{2};
constexpr const char* kCgroup = "venv-build";
constexpr const char* kUvPlace = "/uv";

std::string read_whole(const std::string& path, std::size_t max) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  std::string out = text.str();
  return out.size() > max ? std::string() : out;
}

std::string last_lines(const std::string& text) {
  std::string out = text.size() > 600 ? text.substr(text.size() - 600) : text;
  for (char& c : out) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte > 0x7e) c = ' ';
  }
  return out;
}

// Of the owner's environment only what leads to the package index.
std::vector<std::string> index_environment() {
  std::vector<std::string> out;
  for (char** each = environ; *each != nullptr; ++each) {
    const std::string_view text(*each);
    for (const std::string_view name :
         {"HTTP_PROXY=", "HTTPS_PROXY=", "NO_PROXY=", "ALL_PROXY=", "http_proxy=", "https_proxy=", "no_proxy=",
          "all_proxy=", "SSL_CERT_FILE=", "SSL_CERT_DIR=", "REQUESTS_CA_BUNDLE=", "PIP_INDEX_URL=", "PIP_CERT=",
          "UV_DEFAULT_INDEX=", "PIP_TRUSTED_HOST=", "UV_INSECURE_HOST="}) {
      if (text.starts_with(name)) out.emplace_back(text);
    }
  }
  return out;
}

std::string host_of(const std::string& url) {
  const auto start = url.find("://");
  if (start == std::string::npos) return {};
  const auto end = url.find('/', start + 3);
  const std::string host = url.substr(start + 3, end == std::string::npos ? end : end - start - 3);
  return host.substr(host.rfind('@') == std::string::npos ? 0 : host.rfind('@') + 1);
}

Error lock_refused(const Status& why) {
  return error(Code::InvalidArgument, "the lock of the virtual environment is refused: " + why.error().message,
               "venv.lock");
}

}  // namespace

struct VenvStore::Build {
  std::string dir, interpreter, minor, index;
  bool fresh = false;  // nothing of the download cache is believed
  Runtime::Progress progress;
  Clock::time_point counted, moved = Clock::now();
  std::uint64_t bytes = 0;

  // Called often: counts what came, says so, and whether to go on.
  bool tick() {
    const auto now = Clock::now();
    if (now - counted > kCountEvery) {
      counted = now;
      const std::uint64_t before = bytes;
      bytes = std::max(bytes, tree_bytes(dir, 0));
      if (bytes > before) moved = now;
    }
    return progress(bytes, 0);
  }
};

VenvStore::VenvStore(VenvStoreOptions options, Cgroups& cgroups) : options_(std::move(options)), cgroups_(cgroups) {}

std::string VenvStore::missing() const {
  if (options_.bwrap.empty()) return "bubblewrap (apt-get install bubblewrap)";
  std::string minor;
  if (!interpreter("3", &minor).ok()) return "Python 3 (apt-get install python3)";
  if (!options_.uv.empty()) return {};
  std::error_code ignored;
  const bool pip = fs::exists("/usr/lib/python" + minor + "/ensurepip/_bundled", ignored) ||
                   fs::exists("/usr/share/python-wheels", ignored) ||
                   fs::exists("/usr/local/lib/python" + minor + "/ensurepip/_bundled", ignored);
  return pip ? std::string() : "uv or pip (apt-get install python3-venv)";
}

std::string VenvStore::place(const std::string& digest) const {
  return home() + "/" + digest.substr(digest.find(':') + 1);
}

Result<std::string> VenvStore::interpreter(const std::string& python, std::string* minor) const {
  const std::string path = find_program("python" + python);
  if (path.empty())
    return error(Code::FailedPrecondition,
                 fmt::format("this machine has no python{}; install it, or ask for the version it has", python),
                 "venv.python");
  std::error_code failure;
  const std::string real = fs::canonical(path, failure).string();
  if (failure || !real.starts_with("/usr/"))
    return error(Code::FailedPrecondition,
                 fmt::format("{} lies outside of /usr, which is all that a sandbox sees", real), "venv.python");
  const auto name = real.substr(real.rfind('/') + 1);
  if (!name.starts_with("python3.") || name.size() > 12)
    return error(Code::FailedPrecondition, fmt::format("{} does not say its version in its name", real), "venv.python");
  *minor = name.substr(6);
  if (python != "3" && *minor != python)
    return error(Code::FailedPrecondition, fmt::format("{} is not Python {}", real, python), "venv.python");
  return real;
}

// One program in the build's sandbox: this machine's network and /usr, nothing else of it.
Status VenvStore::run(Build& build, const std::vector<std::string>& words, std::string* out) {
  Child child;
  child.argv = {options_.bwrap,
                "--unshare-user",
                "--unshare-pid",
                "--unshare-ipc",
                "--unshare-uts",
                "--new-session",
                "--die-with-parent",
                "--ro-bind",
                "/usr",
                "/usr",
                "--symlink",
                "usr/bin",
                "/bin",
                "--symlink",
                "usr/sbin",
                "/sbin",
                "--symlink",
                "usr/lib",
                "/lib",
                "--symlink",
                "usr/lib64",
                "/lib64",
                "--ro-bind",
                "/etc",
                "/etc",
                "--ro-bind-try",
                "/run/systemd/resolve",
                "/run/systemd/resolve",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--bind",
                build.dir + "/tree",
                kVenvPlace,
                "--bind",
                build.dir + "/tmp",
                "/tmp",
                "--bind",
                home() + "/cache",
                "/cache",
                "--chdir",
                "/tmp"};
  if (!options_.uv.empty()) child.argv.insert(child.argv.end(), {"--ro-bind", options_.uv, kUvPlace});
  child.argv.insert(child.argv.end(), words.begin(), words.end());
  child.env = index_environment();
  for (const char* each :
       {"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/cache", "LANG=C.UTF-8", "PIP_CACHE_DIR=/cache/pip",
        "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_INPUT=1", "PIP_ROOT_USER_ACTION=ignore", "UV_CACHE_DIR=/cache/uv",
        "UV_PYTHON_DOWNLOADS=never", "UV_NO_PROGRESS=1", "UV_NO_CONFIG=1", "UV_SYSTEM_CERTS=1", "UV_NATIVE_TLS=1"})
    child.env.emplace_back(each);
  if (!build.index.empty()) {
    std::erase_if(child.env,
                  [](const auto& e) { return e.starts_with("PIP_INDEX_URL=") || e.starts_with("UV_DEFAULT_"); });
    child.env.push_back("PIP_INDEX_URL=" + build.index);
    child.env.push_back("UV_DEFAULT_INDEX=" + build.index);
    if (build.index.starts_with("http://")) {
      child.env.push_back("PIP_TRUSTED_HOST=" + host_of(build.index));
      child.env.push_back("UV_INSECURE_HOST=" + host_of(build.index));
    }
  }
  if (build.fresh) child.env.insert(child.env.end(), {"PIP_NO_CACHE_DIR=1", "UV_NO_CACHE=1"});
  child.cgroups = cgroups_.entrances(kCgroup);
  child.uid = options_.uid;
  child.gid = options_.gid;
  const Ended ended = TRY(run_child(
      child, {}, {.out_max = 8 << 20, .timeout = std::chrono::duration_cast<Millis>(kBuildMax), .tick = [&build] {
                    return build.tick();
                  }}));
  if (ended.code == 0) {
    if (out != nullptr) *out = ended.out;
    return {};
  }
  const VenvFault fault = venv_fault(ended.err + ended.out);
  const Code code = fault.code == "venv.no_such_package" || fault.code == "venv.hash_mismatch" ? Code::InvalidArgument
                    : fault.code == "venv.tools" ? Code::FailedPrecondition
                                                 : Code::Unavailable;
  return error(code, fmt::format("the virtual environment could not be built: {}", last_lines(ended.err)),
               std::string(fault.code));
}

Result<VenvLock> VenvStore::resolve(Build& build, const VenvImage& image) {
  std::string said;
  VenvLock lock;
  lock.image = image;
  lock.image.lock.clear();
  lock.image.python = build.minor;
  lock.arch = machine_arch();
  TRY_VOID(write_whole(build.dir + "/tmp/wishes", as_bytes(venv_requirements(image)), 0644, 0, 0));
  if (!options_.uv.empty()) {
    TRY_VOID(run(build,
                 {kUvPlace, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--generate-hashes",
                  "--only-binary", ":all:", "--python", build.interpreter, "/tmp/wishes"},
                 &said));
    lock.packages = TRY(parse_uv_lock(said));
  } else {
    TRY_VOID(run(build,
                 {std::string(kVenvPlace) + "/bin/python", "-m", "pip", "install", "--dry-run", "--quiet",
                  "--ignore-installed", "--only-binary", ":all:", "--report", "-", "-r", "/tmp/wishes"},
                 &said));
    lock.packages = TRY(parse_pip_report(said));
  }
  const auto whole = parse_lock(lock_text(lock));
  if (!whole.ok()) return lock_refused(whole.error());
  return lock;
}

Status VenvStore::install(Build& build, const VenvLock& lock) {
  TRY_VOID(write_whole(build.dir + "/tmp/lock", as_bytes(lock_text(lock)), 0644, 0, 0));
  const std::string python = std::string(kVenvPlace) + "/bin/python";
  if (!options_.uv.empty()) {
    return run(build,
               {kUvPlace, "pip", "install", "--quiet", "--python", python, "--require-hashes", "--no-deps",
                "--only-binary", ":all:", "--link-mode", "copy", "--compile-bytecode", "-r", "/tmp/lock"},
               nullptr);
  }
  return run(build,
             {python, "-m", "pip", "install", "--quiet", "--require-hashes", "--no-deps", "--only-binary",
              ":all:", "-r", "/tmp/lock"},
             nullptr);
}

Result<Venv> VenvStore::build(const VenvImage& image, const std::string& lock_given, const std::string& index,
                              const Runtime::Progress& progress, bool fresh) {
  Build build;
  build.progress = progress;
  build.index = index;
  build.fresh = fresh;
  build.interpreter = TRY(interpreter(image.python, &build.minor));
  TRY_VOID(make_dir(options_.layout.root, 0755));
  TRY_VOID(make_dir(home(), 0755));
  TRY_VOID(make_dir(home() + "/cache", 0700));
  if (tree_bytes(home() + "/cache", kCacheBytesMax) >= kCacheBytesMax) {
    std::error_code ignored;
    fs::remove_all(home() + "/cache", ignored);
    TRY_VOID(make_dir(home() + "/cache", 0700));
  }
  build.dir = home() + "/build";
  struct Clean {
    std::string dir;
    ~Clean() {
      std::error_code ignored;
      fs::remove_all(dir, ignored);
    }
  } clean{build.dir};
  std::error_code ignored;
  fs::remove_all(build.dir, ignored);  // of a build that was cut off
  TRY_VOID(make_dir(build.dir, 0711));
  for (const auto* part : {"/tree", "/tmp"}) TRY_VOID(make_dir(build.dir + part, 0755));
  for (const auto& path : {build.dir + "/tree", build.dir + "/tmp", home() + "/cache"}) {
    if (chown(path.c_str(), options_.uid, options_.gid) != 0)
      return error(Code::Unavailable, "cannot hand over " + path + ": " + errno_text(errno), "disk");
  }
  TRY_VOID(cgroups_.create(kCgroup, {.memory_bytes = std::int64_t{4} << 30, .pids = 1024}));
  const std::string venv_dir = kVenvPlace;
  if (options_.uv.empty())
    TRY_VOID(run(build, {build.interpreter, "-m", "venv", venv_dir}, nullptr));
  else
    TRY_VOID(run(build, {kUvPlace, "venv", "--quiet", "--allow-existing", "--python", build.interpreter, venv_dir},
                 nullptr));
  VenvLock lock;
  if (lock_given.empty()) {
    lock = TRY(resolve(build, image));
  } else {
    auto parsed = parse_lock(lock_given);
    if (!parsed.ok()) return lock_refused(parsed.error());
    lock = std::move(*parsed);
  }
  TRY_VOID(install(build, lock));
  const std::string text = lock_text(lock);
  Venv out;
  out.digest = "sha256:" + crypto::sha256_hex(as_bytes(text));
  out.tree = place(out.digest) + "/tree";
  out.interpreter = build.interpreter;
  out.python = build.minor;
  out.lock = text;
  const std::string manifest = TRY(venv_manifest(build.dir + "/tree"));
  fs::remove_all(build.dir + "/tmp", ignored);
  const json::object about{{"lock", out.digest},
                           {"manifest", crypto::sha256_hex(as_bytes(manifest))},
                           {"interpreter", out.interpreter},
                           {"python", out.python}};
  TRY_VOID(write_whole(build.dir + "/lock", as_bytes(text), 0644, 0, 0));
  TRY_VOID(write_whole(build.dir + "/manifest", as_bytes(manifest), 0644, 0, 0));
  TRY_VOID(write_whole(build.dir + "/about.json", as_bytes(to_text(about)), 0644, 0, 0));
  fs::remove_all(place(out.digest), ignored);
  std::error_code failure;
  fs::rename(build.dir, place(out.digest), failure);
  if (failure) return error(Code::Unavailable, "cannot keep the virtual environment: " + failure.message(), "disk");
  return out;
}

Result<Venv> VenvStore::locate(const std::string& digest) const {
  const std::string dir = place(digest);
  const auto about = parse_object(read_whole(dir + "/about.json", 1 << 16));
  const std::string lock = read_whole(dir + "/lock", kVenvLockBytesMax);
  if (!about.ok() || lock.empty() || "sha256:" + crypto::sha256_hex(as_bytes(lock)) != digest)
    return error(Code::NotFound, "this virtual environment is not on this machine", "venv.missing");
  Venv out;
  out.digest = digest;
  out.tree = dir + "/tree";
  out.interpreter = text_at(*about, {"interpreter"});
  out.python = text_at(*about, {"python"});
  out.lock = lock;
  if (access(out.interpreter.c_str(), X_OK) != 0)
    return error(Code::NotFound, "the Python of this virtual environment is gone", "venv.missing");
  return out;
}

Result<Venv> VenvStore::ensure(const VenvImage& image, const std::string& lock, const std::string& index,
                               const Runtime::Progress& progress) {
  const std::lock_guard guard(mutex_);
  std::string digest;
  if (!lock.empty()) {
    const auto parsed = parse_lock(lock);
    if (!parsed.ok()) return lock_refused(parsed.error());
    const Status fulfils = lock_fulfils(*parsed, image);
    if (!fulfils.ok()) return lock_refused(fulfils);
    if (parsed->arch != machine_arch())
      return error(Code::InvalidArgument,
                   fmt::format("the lock is for {}, this machine is {}", parsed->arch, machine_arch()), "venv.lock");
    digest = "sha256:" + crypto::sha256_hex(as_bytes(lock));
    if (!image.lock.empty() && digest != "sha256:" + image.lock)
      return error(Code::DataLoss, "the lock does not have the digest of the reference", "venv.lock");
  } else if (!image.lock.empty()) {
    digest = "sha256:" + image.lock;
  }
  std::string known_lock = lock;
  bool fresh = false;
  if (!digest.empty()) {
    const auto here = locate(digest);
    if (here.ok()) {
      known_lock = here->lock;
      const auto manifest = venv_manifest(here->tree);
      const std::string wanted = read_whole(place(digest) + "/manifest", 16 << 20);
      const auto about = parse_object(read_whole(place(digest) + "/about.json", 1 << 16));
      const bool genuine = about.ok() && crypto::sha256_hex(as_bytes(wanted)) == text_at(*about, {"manifest"});
      if (manifest.ok() && genuine && *manifest == wanted) {
        utimensat(AT_FDCWD, place(digest).c_str(), nullptr, 0);
        return here;
      }
      log_warn("privd", "virtual environment {} is damaged on disk; it is built anew", digest);
      fresh = true;
    }
    if (known_lock.empty())
      return error(Code::NotFound, "the lock of this virtual environment is not here", "venv.lock_missing");
  }
  auto moved = Clock::now();
  std::uint64_t most = 0;  // over all tries: only what no try had counts as moving on
  for (int tries = 1;; ++tries) {
    auto built = build(
        image, known_lock, index,
        [&](std::uint64_t done, std::uint64_t total) {
          if (done > most) moved = Clock::now();
          most = std::max(most, done);
          return progress(done, total);
        },
        fresh);
    if (built.ok() || built.error().code == Code::Cancelled) return built;
    if (!venv_fault(built.error().message).passing || Clock::now() - moved > (most > kBegun ? kStallMax : kSilenceMax))
      return built;
    log_info("privd", "{}; trying again", built.error().message);
    const auto again = Clock::now() + std::chrono::seconds(std::min(1 << std::min(tries, 4), 15));
    while (Clock::now() < again) {
      if (!progress(most, 0)) return error(Code::Cancelled, "no longer wanted", "cancelled");
      std::this_thread::sleep_for(Millis(250));
    }
  }
}

void VenvStore::prune(const std::set<std::string>& in_use) {
  const std::lock_guard guard(mutex_);
  std::vector<std::pair<fs::file_time_type, fs::path>> all;
  std::error_code failure;
  for (const auto& entry : fs::directory_iterator(home(), failure)) {
    const std::string name = entry.path().filename().string();
    if (name.size() == 64) all.emplace_back(entry.last_write_time(failure), entry.path());
  }
  std::sort(all.begin(), all.end());
  std::size_t over = all.size() > kVenvsMax ? all.size() - kVenvsMax : 0;
  for (const auto& [at, path] : all) {
    if (over == 0) break;
    if (in_use.contains("sha256:" + path.filename().string())) continue;
    fs::remove_all(path, failure);
    --over;
  }
}

Status VenvStore::remove_everything() {
  const std::lock_guard guard(mutex_);
  std::error_code failure;
  fs::remove_all(home(), failure);
  (void)cgroups_.remove(kCgroup).ok();
  if (failure) return error(Code::Unavailable, "cannot remove the virtual environments: " + failure.message(), "disk");
  return {};
}

}  // namespace muster::host
