#pragma once
// What every runtime keeps on disk for one lease: run/ (the helper's socket, owned by the container's user), probe/,
// blobs/ (read-only inside), workspace/ (outlives the container), the Ray helper, secrets on a tmpfs, the watched
// limits and why the lease was halted. Content below run/, probe/ and workspace/ is hostile: it is never followed, only
// counted and removed. Thread rule: one lifecycle call a lease at a time.
#include <sys/types.h>

#include <map>
#include <string>

#include "base/bytes.h"
#include "base/result.h"
#include "host/layout.h"
#include "host/runtime.h"

namespace muster::host {

// Where ids inside a container's user namespace lie outside: `size` of them from 0 on, one behind the other. Without a
// namespace of its own they are the machine's.
struct IdMap {
  static constexpr std::uint32_t kAll = UINT32_MAX;
  std::uint32_t uids = 0, gids = 0, size = kAll;  // the first ones outside
  bool operator==(const IdMap&) const = default;
};

class LeaseDirs {
 public:
  LeaseDirs(Layout layout, std::string secrets_root);  // secrets_root empty: chosen
  std::string dir(const std::string& lease) const { return layout_.lease(lease); }
  std::string secrets(const std::string& lease) const { return secrets_root_ + "/" + lease; }
  const std::string& secrets_root() const { return secrets_root_; }

  Status prepare(const std::string& lease);  // idempotent
  Status prepare_helper();                   // what all leases share: the helper's programs and the seccomp profile
  // To who runs in it, by the ids inside. What its workspace holds from before under another map is moved to this one;
  // nobody may run in it then. Of Place::Probe only probe/ is handed over, and what runs is not touched.
  // InvalidArgument: the ids are beyond the map.
  Status hand_over(const std::string& lease, uid_t uid, gid_t gid, const IdMap& map = {}, Place place = Place::Main);
  Status put_secret(const std::string& lease, ByteView ray_token);  // 0400, owned by who runs in it
  Status put_identity(const std::string& lease, const std::string& file, ByteView token);  // the same beside it
  Status put_blob(const std::string& lease, const std::string& blob, int source);
  Result<Fd> connect_helper(const std::string& lease, Place place);
  void forget_secrets(const std::string& lease);
  Status remove(const std::string& lease);

  Status remember_limits(const LaunchSpec& spec);
  DiskUse limits(const std::string& lease) const;  // 0 = none
  // That the lease was launched with egress, and how its overlay was addressed, so that a restarted privd knows.
  Status remember_egress(const LaunchSpec& spec);
  void recall_egress(LeaseState& state) const;
  Status mark_halted(const std::string& lease, const std::string& reason);
  std::string halted(const std::string& lease) const;
  void clear_halted(const std::string& lease);

 private:
  Layout layout_;
  std::string secrets_root_;
};

// What a lease's processes find in their environment: the user's, and ours, which wins. `visible`: its GPUs, or "void".
std::map<std::string, std::string> lease_environment(const LaunchSpec& spec, const std::string& visible);
// The lease's /etc/resolv.conf. Never the host's own: that would tell a tenant about the owner's network.
std::string lease_resolver(const LaunchSpec& spec);
std::string choose_secrets_root(const Layout& layout);  // on a tmpfs where the host has one
Status make_dir(const std::string& path, mode_t mode);
// Blocks below a directory, on its file system only, links not followed; every entry counts at least one block. Ends
// early at `enough` (0 = never), and counts as `enough` what is both too deep and too wide to be walked.
std::uint64_t tree_bytes(const std::string& path, std::uint64_t enough);
// The directory with all below it, however deep; links are removed, not followed. Nobody may run inside any more.
Status remove_tree(const std::string& path);
// A file of ours, complete before it gets its name.
Status write_whole(const std::string& path, ByteView data, mode_t mode, uid_t uid, gid_t gid);

}  // namespace muster::host
