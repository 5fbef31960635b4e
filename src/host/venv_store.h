#pragma once
// The virtual environments of this machine, one per lock, under <state>/venvs: built once by uv where it is installed,
// else by pip, under an own uid in a bubblewrap sandbox that has this machine's network but nothing of its files, from
// wheels only (no package's code runs) with every hash checked. What was built is written down file by file; before
// each use all of it is read again, and what does not match is thrown away and built anew. Bounds: kVenvsMax
// environments, the oldest unused go; a download cache of kCacheBytesMax. Thread-safe: one build or check at a time.
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>

#include "base/result.h"
#include "host/cgroup.h"
#include "host/layout.h"
#include "host/runtime.h"
#include "model/venv_image.h"

namespace muster::host {

inline constexpr std::size_t kVenvsMax = 6;
inline constexpr std::uint64_t kCacheBytesMax = std::uint64_t{8} << 30;

// One environment as a sandbox sees it.
struct Venv {
  std::string digest;       // "sha256:" + the lock's SHA-256
  std::string tree;         // on this machine; inside it is at kVenvPlace
  std::string interpreter;  // "/usr/bin/python3.11", the same inside
  std::string python;       // "3.11"
  std::string lock;         // the text
};
inline constexpr const char* kVenvPlace = "/opt/ray";

struct VenvStoreOptions {
  Layout layout;
  uid_t uid = kVenvBuildUid;
  gid_t gid = kVenvBuildUid;
  std::string bwrap, uv;  // paths; uv empty = pip
};

class VenvStore {
 public:
  VenvStore(VenvStoreOptions options, Cgroups& cgroups);
  // What is missing on this machine to build one; empty = nothing.
  std::string missing() const;
  // `lock` empty: the reference is resolved here, from `index` (empty = PyPI). Failures: venv.python | venv.tools |
  // venv.no_such_package | venv.hash_mismatch | venv.lock | venv.disk_full | venv.unreachable | venv.failed.
  Result<Venv> ensure(const VenvImage& image, const std::string& lock, const std::string& index,
                      const Runtime::Progress& progress);
  Result<Venv> locate(const std::string& digest) const;  // built and not known to be bad; not read again
  void prune(const std::set<std::string>& in_use);       // digests
  Status remove_everything();

 private:
  struct Build;
  std::string home() const { return options_.layout.venvs(); }
  std::string place(const std::string& digest) const;
  Result<std::string> interpreter(const std::string& python, std::string* minor) const;
  Result<Venv> build(const VenvImage& image, const std::string& lock, const std::string& index,
                     const Runtime::Progress& progress, bool fresh);
  Status run(Build& build, const std::vector<std::string>& words, std::string* out);
  Result<VenvLock> resolve(Build& build, const VenvImage& image);
  Status install(Build& build, const VenvLock& lock);

  VenvStoreOptions options_;
  Cgroups& cgroups_;
  std::mutex mutex_;
};

// The manifest of a tree: a line a file or link, sorted, with hash, size and mode. Reads every byte.
Result<std::string> venv_manifest(const std::string& tree);
// "name==version --hash=..." lines of uv, and the JSON report of pip, as packages.
Result<std::vector<VenvPackage>> parse_uv_lock(std::string_view text);
Result<std::vector<VenvPackage>> parse_pip_report(std::string_view text);
struct VenvFault {
  std::string_view code;
  bool passing = false;
};
VenvFault venv_fault(std::string_view said);  // of uv or pip

}  // namespace muster::host
