// I2: nothing acknowledged is lost after any crash of the server, and nothing leaves before it is durable. I10: queues
// and memory are bounded.
#include <algorithm>

#include "crypto/hash.h"
#include "sim/checkers.h"

namespace muster::sim {
namespace {

Bytes digest_of(const Bytes& bytes) {
  const crypto::Digest digest = crypto::sha256(bytes);
  return Bytes(digest.begin(), digest.begin() + 8);
}

class NothingLost final : public Checker {
 public:
  NothingLost() : Checker("I2") {}
  void left(std::uint64_t seq, const Bytes& entry, const journal::Store& store, World& world) override {
    looked_at();
    // The store must hold it: a reply or a view of something that a crash undoes would be a lie.
    const auto stored = store.read_all(seq, 1);
    if (stored.ok() && (stored->empty() || stored->front() != entry))
      fail(world, "an entry left the engine before the store had it");
    if (seq > hashes_.size() + 1) fail(world, "an entry was left out");
    if (seq == hashes_.size() + 1) hashes_.push_back(digest_of(entry));
  }
  void answered(const engine::Reply& reply, World& world) override {
    looked_at();
    if (reply.seq > hashes_.size()) fail(world, "a reply left before its entry was durable");
  }
  void acknowledged(const std::string& request, const std::string& id, const control::State* state,
                    World& world) override {
    if (state != nullptr && !there(*state, id)) fail(world, id + " was acknowledged and is not there");
    const auto [known, fresh] = outcomes_.try_emplace(request, id);
    if (!fresh && known->second != id)
      fail(world, "the repeated request " + request + " made " + id + " beside " + known->second);
  }
  void started(const engine::Base& base, const journal::Store& store, World& world) override {
    looked_at();
    // Whatever left before the crash must still be there, byte for byte.
    if (base.seq < hashes_.size()) fail(world, "the tail moved back behind an acknowledged entry");
    const auto entries = store.read_all(1, 10'000'000);
    for (std::size_t i = 0; entries.ok() && i < std::min(entries->size(), hashes_.size()); ++i) {
      if (digest_of((*entries)[i]) != hashes_[i]) fail(world, "entry " + std::to_string(i + 1) + " changed");
    }
    // What was committed without an answer is now read back and thereby public.
    for (std::size_t i = hashes_.size(); entries.ok() && i < entries->size(); ++i)
      hashes_.push_back(digest_of((*entries)[i]));
    for (const auto& [request, id] : outcomes_) {
      if (!there(base.state, id)) fail(world, id + " was acknowledged and is not there");
    }
  }
  void durable(const engine::DurableEvent& event, const control::State&, World&) override {
    if (const auto* gone = std::get_if<control::Archived>(&event.event)) {
      for (const ClusterId id : gone->clusters) archived_.insert(id.str());
      for (const JobId id : gone->jobs) archived_.insert(id.str());
    }
  }

 private:
  bool there(const control::State& state, const std::string& id) const {
    if (archived_.contains(id)) return true;
    if (const auto cluster = ClusterId::parse(id)) return state.find_cluster(*cluster) != nullptr;
    if (const auto job = JobId::parse(id)) return state.find_job(*job) != nullptr;
    return true;
  }
  std::vector<Bytes> hashes_;  // of every entry that ever left
  std::map<std::string, std::string> outcomes_;
  std::set<std::string> archived_;
};

class Bounded final : public Checker {
 public:
  Bounded() : Checker("I10") {}
  void step(const View& view) override {
    if (view.queued > 4 * kLaneMax + 2)
      fail(view.world, "the engine queues " + std::to_string(view.queued) + " commands");
    if (view.world.steps % 64 != 0) return;
    looked_at();
    for (const auto& node : view.nodes) {
      if (node->core && node->core->observed_leases().size() > 64) fail(view.world, "an agent holds too many leases");
      if (node->disk.size() > 256 * 1024) fail(view.world, "an agent's memory grows without bound");
    }
    if (view.state == nullptr) return;
    if (view.state->requests.size() > 200'000) fail(view.world, "idempotency keys grow without bound");
    // Ended objects leave about an hour after their end; half an hour for what still holds them.
    if (view.world.steps % 4096 != 0) return;
    const auto stale = [&](WallTime ended) {
      return ended.ms != 0 && view.state->last_wall - ended > Millis(3 * 3'600'000);
    };
    for (const auto& [id, cluster] : view.state->clusters) {
      if (cluster.ended_at.ms == 0 || holds(*view.state, id)) continue;
      if (stale(std::max(cluster.ended_at, let_go_[id]))) fail(view.world, id.str() + " was never archived");
    }
    for (const auto& [id, job] : view.state->jobs)
      if (stale(job.ended_at)) fail(view.world, id.str() + " was never archived");
    for (const auto& [id, lease] : view.state->leases)
      if (stale(lease.ended_at)) fail(view.world, id.str() + " was never archived");
  }
  void durable(const engine::DurableEvent& event, const control::State& after, World&) override {
    const auto* ended = std::get_if<control::LeaseEnded>(&event.event);
    const Lease* lease = ended == nullptr ? nullptr : after.find_lease(ended->lease);
    if (lease != nullptr) let_go_[lease->cluster] = after.last_wall;
  }

 private:
  // An ended cluster stays for as long as somebody may still run a lease of it.
  static bool holds(const control::State& state, ClusterId id) {
    const std::vector<LeaseId> leases = state.cluster_leases(id);
    return std::any_of(leases.begin(), leases.end(),
                       [&](LeaseId lease) { return state.leases.at(lease).end == LeaseEnd::None; });
  }
  std::map<ClusterId, WallTime> let_go_;  // when its last lease ended
};

}  // namespace

CheckerPtr nothing_lost() {
  return std::make_unique<NothingLost>();
}
CheckerPtr bounded() {
  return std::make_unique<Bounded>();
}

}  // namespace muster::sim
