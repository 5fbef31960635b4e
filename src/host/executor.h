#pragma once
// Performs the operations of the agent core (agent/ops.h) through privd, the helpers in the containers, the overlay
// port and the blob cache; tells results and events back. Every operation may come again. Poller's thread only. Bounds:
// blob cache kBlobCacheMax bytes, one helper line per lease, probes remembered 64. A registry is asked for signatures
// on a thread of its own.
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "agent/ops.h"
#include "crypto/sign.h"
#include "host/blob_cache.h"
#include "host/helper_link.h"
#include "host/image_lists.h"
#include "host/layout.h"
#include "host/ordered_images.h"
#include "host/overlay_port.h"
#include "host/privd_client.h"

namespace muster::host {

struct ExecutorHooks {
  std::function<void(agent::OpResult)> result;
  std::function<void(agent::RuntimeEvent)> event;
};

class Executor {
 public:
  Executor(Poller& poller, PrivdClient& privd, OverlayPort& overlay, const crypto::SigningKey& device, Layout layout,
           ExecutorHooks hooks);
  ~Executor();
  // Finds what runs already (containers, helpers, keys); waits a little for the helpers to speak.
  void adopt(std::function<void(agent::Found)> done);
  void start(agent::OpId id, const agent::Op& op);
  void cancel(agent::OpId id);
  // Which key signed a roster, of those that are believed now; empty: none of them.
  void set_roster_signer(std::function<Bytes(const session::SignedRoster&)> find) { roster_signer_ = std::move(find); }
  const OrderedImages& ordered_images() const { return ordered_; }

 private:
  struct Run {
    std::unique_ptr<HelperLink> link;
    bool connecting = false, wanted = false, ray_started = false, hello_seen = false;
    HelperHello hello;
    Assignment assignment;
    std::string digest, pinned;
    Bytes overlay_key, overlay_signature;
    std::uint64_t roster_epoch = 0;
    agent::OpId setup = 0, drain = 0;
    std::map<std::pair<std::uint64_t, std::uint32_t>, agent::OpId> log_reads;
    std::map<std::pair<std::uint64_t, std::uint32_t>, std::uint64_t> log_bytes;
  };
  struct Probe {
    std::unique_ptr<HelperLink> link;
    LeaseId lease;
    std::string digest;
    RuntimeKind runtime = RuntimeKind::Docker;
    int tries = 0;
    std::optional<ImageProbe> found;  // then it is asked for its lists
    ImageLists lists;
  };

  void perform(agent::OpId id, const agent::EnsureImage& op);
  void perform(agent::OpId id, const agent::ProbeImage& op);
  void perform(agent::OpId id, const agent::CreateLease& op);
  void perform(agent::OpId id, const agent::ConfigureNetwork& op);
  void perform(agent::OpId id, const agent::RunSetup& op);
  void perform(agent::OpId id, const agent::StartRay& op);
  void perform(agent::OpId id, const agent::PutIdentity& op);
  void perform(agent::OpId id, const agent::DrainRay& op);
  void perform(agent::OpId id, const agent::StopLease& op);
  void perform(agent::OpId id, const agent::RemoveLease& op);
  void perform(agent::OpId id, const agent::SubmitJob& op);
  void perform(agent::OpId id, const agent::StopJob& op);
  void perform(agent::OpId id, const agent::ReadJobLog& op);
  void perform(agent::OpId id, const agent::FindBlob& op);
  void perform(agent::OpId id, const agent::WriteBlob& op);

  void admit(agent::OpId id, const agent::EnsureImage& op, agent::ImageReady ready);
  void check_signatures(agent::OpId id, const agent::EnsureImage& op, agent::ImageReady ready,
                        std::vector<std::vector<std::string>> keys);
  void succeed(agent::OpId id);
  void succeed(agent::OpId id, agent::ImageReady value);
  void fail(agent::OpId id, const Error& why, std::string_view fallback);
  void fail_code(agent::OpId id, std::string reason, bool permanent, std::string output = {});
  void call(VerbKind kind, LeaseId lease, PrivdDone done);
  void connect_helper(LeaseId lease);
  void helper_closed(LeaseId lease);
  void on_helper(LeaseId lease, HelperEvent event);
  void tell_job(LeaseId lease, const HelperJob& job);
  void with_helper(agent::OpId id, LeaseId lease, std::function<void(Run&)> order, int tries = 0);
  void connect_probe(agent::OpId id);
  void on_probe(agent::OpId id, HelperEvent event);
  void ask_lists(agent::OpId id, ImageProbe found);
  void end_lists(agent::OpId id, bool whole);
  void end_probe(agent::OpId id, Result<ImageProbe> outcome);
  void copy_files(agent::OpId id, LeaseId lease, std::vector<FileMount> files, std::size_t next,
                  std::vector<std::string> commands, int tries = 0);
  void send_job(agent::OpId id, const agent::SubmitJob& op);
  void check_engine();
  void check_engine_in(Millis delay);
  void engine_gone(const std::string& why);
  void engine_back(const PrivdReply& listed);
  void tell_ends(const PrivdReply& listed);
  void listed(const PrivdReply& reply);
  void tell_last_words(LeaseId lease, const std::string& reason, std::int32_t code);
  void adopt_listed(const json::object& listed, std::function<void(agent::Found)> done);
  agent::Found found_now(const std::vector<LeaseId>& running, const std::vector<LeaseId>& known);
  Bytes keep_lock(int fd);
  Bytes lock_of(const std::string& pinned);
  void save_assignment(const Assignment& assignment, const std::string& image);  // digest and pinned reference
  bool load_assignment(LeaseId lease, Run& run);
  void load_probes();
  void save_probes();

  Poller& poller_;
  PrivdClient& privd_;
  OverlayPort& overlay_;
  const crypto::SigningKey& device_;
  Layout layout_;
  ExecutorHooks hooks_;
  BlobCache blobs_;
  std::function<Bytes(const session::SignedRoster&)> roster_signer_;
  std::map<LeaseId, Run> runs_;
  std::map<agent::OpId, Probe> probing_;
  std::map<std::string, ImageProbe> probes_;
  PackageBook packages_{layout_.packages()};
  std::map<agent::OpId, std::uint64_t> pulls_;  // op -> privd call
  // What ended inside of containers since the engine was asked last, and what this question is about: whether it ended
  // by itself or the engine took it along is known with the answer.
  struct Ends {
    std::map<LeaseId, agent::RayExited> ray;
    std::vector<agent::OpId> setups;
    bool empty() const { return ray.empty() && setups.empty(); }
  };
  Ends ended_, asked_;
  bool engine_up_ = true, checking_ = false, adopting_ = false;
  std::uint64_t engine_timer_ = 0, engine_life_ = 0;
  std::shared_ptr<bool> alive_;
  // For threads that ask a registry: where they post to while this lives.
  struct Door {
    std::mutex mutex;
    Poller* poller = nullptr;  // under mutex
  };
  std::shared_ptr<Door> door_ = std::make_shared<Door>();
  OrderedImages ordered_{layout_.ordered_images()};
  std::set<std::string> signed_;  // "digest keys" that were found good, bounded
};

}  // namespace muster::host
