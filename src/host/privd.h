#pragma once
// The privileged process: the only one that holds the container engine's socket and may enter namespaces. It has no
// network of its own; it answers typed verbs (one JSON object a message, see privd_verbs.h) on a unix socket whose peer
// must be the agent's uid, and applies the owner's policy to every one. Each verb runs on a thread of its own, at most
// kVerbsMax at once, one per lease at a time except stop, which may overtake. A lost client loses nothing: leases go
// on.
#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>

#include "crypto/tpm_key.h"
#include "host/disk_watch.h"
#include "host/egress_port.h"
#include "host/grants.h"
#include "host/layout.h"
#include "host/owner_guard.h"
#include "host/privd_verbs.h"
#include "host/runtime.h"
#include "host/versions.h"

namespace muster::host {

inline constexpr int kVerbsMax = 64;

struct PrivdOptions {
  Layout layout;
  uid_t agent_uid = kAgentUid;
  gid_t agent_gid = kAgentUid;
  // The key in the TPM that this machine's certificates are bound to; nullptr: there is none, or it cannot be used
  // (`tpm_fault` says why).
  std::shared_ptr<const crypto::TpmKey> tpm = nullptr;
  std::string tpm_fault = {};
};

class Privd {
 public:
  // egress may be null: then leases that need it are refused.
  Privd(PrivdOptions options, Runtime& runtime, EgressPort* egress = nullptr);
  ~Privd();
  Status listen();
  void run();   // until stop()
  void stop();  // from any thread

 private:
  struct Client {
    Fd fd;
    std::mutex mutex;
  };
  using ClientPtr = std::shared_ptr<Client>;
  void start(std::function<void()> work);  // on a thread of its own, which run() waits for
  void serve(ClientPtr client);
  void perform(const ClientPtr& client, Verb verb, std::vector<Fd> fds);
  Result<Answer> dispatch(const Verb& verb, std::vector<Fd>& fds, const ClientPtr& client);
  Result<Answer> launch(const Verb& verb);
  Result<Answer> open_archive(const Verb& verb, bool read);
  Result<Answer> pull(const Verb& verb, std::vector<Fd>& fds, const ClientPtr& client);
  Result<Answer> list();
  Result<Answer> usage();
  Versions versions_of(const EngineInfo& info);
  Status stop_lease(const std::string& lease, int grace_s);
  Status put_files(const Verb& verb, int source);
  Status open_egress(const LaunchSpec& spec, const std::string& network);
  void adopt_egress();
  void reply(const ClientPtr& client, const std::string& text, const std::vector<int>& fds);
  bool enter(const Verb& verb);
  void leave(const Verb& verb);

  const PrivdOptions options_;
  Runtime& runtime_;
  EgressPort* egress_;
  DiskWatch disk_watch_;
  Fd listener_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  int threads_ = 0, active_ = 0;       // of any kind, and verbs under way; under mutex_
  std::set<std::string> busy_;         // leases with a lifecycle verb under way; under mutex_
  std::set<std::uint64_t> cancelled_;  // pulls to give up; under mutex_
  std::mutex tpm_mutex_;
  std::mutex versions_mutex_;
  std::optional<VersionSources> versions_;  // of what was looked at last; under versions_mutex_
  LeaseTime versions_at_{0};
  Grants grants_;
  OwnerGuard guard_;
};

}  // namespace muster::host
