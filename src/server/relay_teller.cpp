#include "server/relay_teller.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "net/handoff.h"
#include "net/recall_frame.h"
#include "server/core_state.h"

namespace muster::server {
namespace {

constexpr Millis kAgain{1000}, kLook{200};
constexpr std::size_t kNewsMax = 10'000;  // then the relay gets everything again

Bytes frame_of(net::RecallFrame::Kind kind, const std::vector<std::pair<ClusterId, std::set<crypto::Key32>>>& left) {
  net::RecallFrame frame{kind, {}};
  for (const auto& [cluster, keys] : left)
    for (const auto& key : keys) frame.entries.emplace_back(cluster.value, key);
  return net::encode(frame);
}

}  // namespace

RelayTeller::RelayTeller(engine::Runner& runner, std::string handoff_path)
    : runner_(runner), path_(net::recall_path(handoff_path)) {}

RelayTeller::~RelayTeller() {
  stop();
}

void RelayTeller::start() {
  thread_ = std::thread([this] { run(); });
}

void RelayTeller::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

RelayTeller::Keys RelayTeller::left_of(const control::State& state, ClusterId id) {
  Keys now, left;
  const Cluster* cluster = state.find_cluster(id);
  for (const LeaseId lease_id : state.cluster_leases(id)) {
    const Lease* lease = state.find_lease(lease_id);
    const Slot* slot = lease == nullptr ? nullptr : state.find_slot(lease->slot);
    const auto key = slot == nullptr ? std::nullopt : crypto::key32(slot->overlay_key);
    if (key) (slot->in_roster ? now : left).insert(*key);
  }
  Keys& known = members_[id];
  for (const auto& key : known)
    if (!now.contains(key)) left.insert(key);
  if (cluster == nullptr)
    members_.erase(id);
  else
    known = std::move(now);
  return left;
}

Bytes RelayTeller::everything() {
  std::vector<std::pair<ClusterId, Keys>> left;
  runner_.read([&](const control::State& state, const scheduler::Scheduler&) {
    std::set<ClusterId> clusters;
    for (const auto& [id, keys] : members_) clusters.insert(id);  // those that ended while nobody listened, too
    for (const auto& [id, cluster] : state.clusters) clusters.insert(id);
    for (const ClusterId id : clusters) left.emplace_back(id, left_of(state, id));
  });
  return frame_of(net::RecallFrame::Kind::All, left);
}

void RelayTeller::on_events(const std::vector<engine::DurableEvent>& events) {
  const std::lock_guard lock(mutex_);
  if (!connected_) return;  // whoever connects gets everything
  std::vector<std::pair<ClusterId, Keys>> left;
  runner_.read([&](const control::State& state, const scheduler::Scheduler&) {
    std::set<ClusterId> changed;
    for (const auto& event : events)
      if (const ClusterId cluster = roster_changed_by(state, event.event)) changed.insert(cluster);
    for (const ClusterId cluster : changed)
      if (Keys keys = left_of(state, cluster); !keys.empty()) left.emplace_back(cluster, std::move(keys));
  });
  if (left.empty()) return;
  news_.push_back(frame_of(net::RecallFrame::Kind::More, left));
  wake_.notify_all();
}

bool RelayTeller::stopped_for(Millis time) {
  std::unique_lock lock(mutex_);
  return wake_.wait_for(lock, time, [this] { return stopping_; });
}

void RelayTeller::run() {
  bool told = false;
  while (true) {
    const auto fd = net::connect_unix(path_);
    if (fd.ok()) {
      told = false;
      if (!serve(fd->get())) return;
    } else if (!std::exchange(told, true)) {
      log_info("relay", "no relay takes recalls at {} yet: {}", path_, fd.error().message);
    }
    if (stopped_for(kAgain)) return;
  }
}

bool RelayTeller::serve(int fd) {
  Bytes out;
  {
    const std::lock_guard lock(mutex_);
    connected_ = true;
    news_.clear();
    out = everything();
  }
  std::size_t sent = 0;
  bool open = true;
  while (open) {
    while (sent < out.size()) {
      const ssize_t n = ::send(fd, out.data() + sent, out.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n > 0)
        sent += static_cast<std::size_t>(n);
      else if (errno == EAGAIN)
        break;
      else if (errno != EINTR)
        open = false, sent = out.size();
    }
    char byte = 0;  // the relay never speaks: an end is all that can be read
    if (open && ::recv(fd, &byte, 1, MSG_DONTWAIT) == 0) open = false;
    std::unique_lock lock(mutex_);
    if (open && sent == out.size()) {
      wake_.wait_for(lock, kLook, [this] { return stopping_ || !news_.empty(); });
      out.clear();
      sent = 0;
      for (const Bytes& frame : news_) out.insert(out.end(), frame.begin(), frame.end());
      open = news_.size() < kNewsMax;
      news_.clear();
    } else if (open) {
      wake_.wait_for(lock, Millis(20), [this] { return stopping_; });
    }
    if (stopping_) return false;
  }
  const std::lock_guard lock(mutex_);
  connected_ = false;
  return true;
}

}  // namespace muster::server
