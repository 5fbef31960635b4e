#pragma once
// What privd asks of whatever runs a lease's processes. Contract (tests/system/runtime_test.py runs it on every
// runtime): every call is idempotent; only objects of this machine's enrolment are ever looked at or touched; nothing
// of a lease runs after stop(); remove() also forgets its workspace; what ended by itself or by halt() stays listed
// until stop() or launch(). Reasons of failures are stable codes in Error::field. Calls block; calls for different
// leases may come from different threads, for one lease one at a time (except stop() and halt(), which may overtake).
#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "host/unix_socket.h"
#include "model/types.h"

namespace muster::host {

struct EngineInfo {
  std::string kind, version, api, arch, cgroup, gpu_mode /* none | nvidia | cdi | device */;
  std::vector<std::string> images;  // all that are here, also the owner's own: privd tells nobody of those
  std::map<std::string, std::int64_t> image_bytes;
  std::vector<RuntimeKind> runtimes;              // what may be used here
  std::vector<std::string> cdi;                   // names of GPUs in the engine's CDI specifications
  std::map<std::string, std::string> parts = {};  // of the engine, as it says: name -> version
  bool own_users = false;  // what runs in a lease is in a user namespace: ids inside are not the machine's
};
struct RegistryAuth {
  std::string username, password;
};
// An image that is here. `pinned` names the same content for other machines ("repository@sha256:..."); empty where
// nobody else can fetch it (imported by hand).
struct Pulled {
  std::string digest, pinned;
  std::string lock;  // of a virtual environment, for the other members
};
struct PullSpec {
  std::string image;
  RegistryAuth auth;
  std::string lock;  // of a pinned virtual environment; empty: what is here, or resolved anew
};
struct LaunchSpec {
  std::string lease, image;  // image: content digest "sha256:..."
  std::int64_t cpu_milli = 0, memory_bytes = 0, shm_bytes = 0, nofile = 65536, pids = 8192;
  std::vector<std::string> devices;        // UUIDs of GPUs and of MIG instances
  std::int64_t gpu_share_milli = 0;        // of the one device, 0 = whole ones
  std::int64_t gpu_memory_bytes = 0;       // that goes with the share, for the work to know; privd says it
  std::map<std::string, std::string> env;  // of the user; what we set wins
  std::uint32_t address = 0;               // overlay, host order
  int prefix_bits = 16;
  bool head = false;
  std::string group;
  std::int64_t root_bytes_max = 0, workspace_bytes_max = 0;  // watched by privd; 0 = not limited
  bool egress = false;                                       // a filtered way out will be opened in its namespace
};
struct Launched {
  std::string network;  // where the lease's network namespace can be entered
  std::vector<std::string> warnings;
};
struct LeaseState {
  std::string lease;
  bool namespace_up = false, running = false, exists = false;
  std::int64_t exit_code = 0;
  bool out_of_memory = false;
  pid_t namespace_pid = 0, main_pid = 0;  // 0: not running
  std::string reason;                     // of halt(); empty when it ended by itself
  std::string network;                    // as in Launched; empty when it is not up
  bool egress = false;                    // was launched with it
  std::uint32_t address = 0;              // overlay, where egress is
  int prefix_bits = 16;
};
struct Usage {
  std::string lease;
  std::uint64_t cpu_ns = 0, memory_bytes = 0, pids = 0;
};
struct ExecOpen {
  Fd stream;
  std::string exec;
};
// Bytes on disk, in whole blocks: what the processes wrote into their root, which dies with them, and the workspace,
// which outlives them.
struct DiskUse {
  std::uint64_t root_bytes = 0, workspace_bytes = 0;
  bool operator==(const DiskUse&) const = default;
};
enum class Place { Main, Probe };

class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual Result<EngineInfo> info() = 0;
  // done/total bytes; false cancels.
  using Progress = std::function<bool(std::uint64_t done, std::uint64_t total)>;
  // Waits a while for a registry that is away, and goes on with what came before.
  virtual Result<Pulled> pull(const PullSpec& spec, const Progress& progress) = 0;
  virtual Status start_probe(const std::string& lease, const std::string& image) = 0;
  virtual Status stop_probe(const std::string& lease) = 0;
  virtual Result<Launched> launch(const LaunchSpec& spec) = 0;
  virtual Status put_secret(const std::string& lease, ByteView ray_token) = 0;
  // A token that says who the lease's cluster or job is, beside the Ray token; replaced as a whole.
  virtual Status put_identity(const std::string& lease, const std::string& file, ByteView token) = 0;
  virtual Status put_blob(const std::string& lease, const std::string& blob, int source) = 0;
  virtual Status stop(const std::string& lease, int grace_s) = 0;
  virtual Status remove(const std::string& lease) = 0;
  virtual Result<std::vector<LeaseState>> list() = 0;
  // Of the engine behind; another one after each of its restarts, known at the latest when list() returns what the
  // restart did to containers.
  virtual std::uint64_t engine_life() { return 0; }
  virtual Result<Fd> connect_helper(const std::string& lease, Place place) = 0;
  virtual Result<ExecOpen> exec(const std::string& lease, const std::vector<std::string>& argv, bool tty) = 0;
  virtual Status resize(const std::string& lease, const std::string& exec, int rows, int cols) = 0;
  virtual Result<std::int64_t> exec_code(const std::string& lease, const std::string& exec) = 0;  // -1: still running
  virtual Result<Fd> connect_tcp(const std::string& lease, std::uint32_t address, std::uint16_t port) = 0;
  virtual Result<Fd> open_tun(const std::string& lease) = 0;  // the persistent TUN of the lease's namespace
  virtual Status read_archive(const std::string& lease, const std::string& path, int sink) = 0;  // a tar
  virtual Status write_archive(const std::string& lease, const std::string& path,
                               int source) = 0;  // a tar into that directory
  virtual Result<std::vector<Usage>> usage() = 0;
  // Counting may end early once a part has reached its `enough` (0 = count all).
  virtual Result<DiskUse> disk(const std::string& lease, const DiskUse& enough) = 0;
  virtual Status halt(const std::string& lease, const std::string& reason) = 0;  // kills at once
  virtual Result<std::string> logs(const std::string& lease,
                                   std::size_t bytes_max) = 0;  // last output of the main process
  virtual Status remove_everything() = 0;
};

}  // namespace muster::host
