#include "server/relay_teller.h"

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>

#include "base/log.h"
#include "net/handoff.h"
#include "relay/client.h"
#include "server/context.h"
#include "server/core_state.h"
#include "server/relay_book.h"
#include "server/signing_desk.h"
#include "server/signing_keys.h"

namespace muster::server {
namespace {

constexpr Millis kAgain{1000}, kLook{200}, kFarLook{500}, kFarDial{3'000};
constexpr std::size_t kNewsMax = 10'000;                   // then the relay gets everything again
constexpr Millis kGoneKept = SigningDesk::kRelayTokenMax;  // no token holds longer
constexpr Millis kControlToken{3'600'000};
constexpr std::size_t kFarEntries = 1'600;  // that fit into one frame of the relay protocol

net::RecallFrame recall_of(net::RecallFrame::Kind kind,
                           const std::vector<std::pair<ClusterId, std::set<crypto::Key32>>>& left) {
  net::RecallFrame frame{kind, {}, {}};
  for (const auto& [cluster, keys] : left)
    for (const auto& key : keys) frame.entries.emplace_back(cluster.value, key);
  return frame;
}

// The same in frames of the relay protocol's size: the first of its kind, the others add to it.
void append_chunks(std::deque<Bytes>& out, const net::RecallFrame& recall) {
  net::RecallFrame part{recall.kind, {}, {}};
  std::size_t at = 0;
  do {
    const std::size_t end = std::min(recall.entries.size(), at + kFarEntries);
    part.entries.assign(recall.entries.begin() + static_cast<std::ptrdiff_t>(at),
                        recall.entries.begin() + static_cast<std::ptrdiff_t>(end));
    out.push_back(net::encode(part));
    part.kind = net::RecallFrame::Kind::More;
    at = end;
  } while (at < recall.entries.size());
}

std::optional<net::Endpoint> endpoint_of_relay(const std::string& address) {
  net::Endpoint out;
  const auto colon = address.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  out.host = address.substr(0, colon);
  out.server_name = net::kRelayName;
  const auto [end, fault] = std::from_chars(address.data() + colon + 1, address.data() + address.size(), out.port);
  if (fault != std::errc() || end != address.data() + address.size()) return std::nullopt;
  return out;
}

}  // namespace

// A relay on another machine. `chunks`, `told` and the map that holds it: with the mutex; else the far thread's own.
struct RelayTeller::Far {
  std::string id;
  crypto::X25519Pair key = crypto::x25519_generate();
  std::unique_ptr<relay::Client> client;
  std::shared_ptr<const CaSet> cas;
  WallTime renew;  // the token
  Bytes keys;      // the statement of signing keys that it is told
  std::atomic<bool> came_up{false};
  bool told = false;         // everything, since it came up
  std::deque<Bytes> chunks;  // that it has not taken yet
};

RelayTeller::RelayTeller(Context& context, std::string handoff_path)
    : context_(context), path_(handoff_path.empty() ? std::string() : net::recall_path(handoff_path)) {}

RelayTeller::~RelayTeller() {
  stop();
}

void RelayTeller::start() {
  if (!path_.empty()) thread_ = std::thread([this] { run(); });
  far_thread_ = std::thread([this] { run_far(); });
}

void RelayTeller::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  if (far_thread_.joinable()) far_thread_.join();
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
  const WallTime wall = read_clocks().wall;
  auto& gone = gone_[id];
  for (const auto& key : members_[id]) gone.try_emplace(key, wall);
  std::erase_if(gone, [&](const auto& each) { return now.contains(each.first) || wall - each.second > kGoneKept; });
  for (const auto& [key, since] : gone) left.insert(key);
  if (gone.empty()) gone_.erase(id);
  if (cluster == nullptr)
    members_.erase(id);
  else
    members_[id] = std::move(now);
  return left;
}

RelayTeller::Left RelayTeller::everybody() {
  Left left;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    std::set<ClusterId> clusters;
    for (const auto& [id, keys] : members_) clusters.insert(id);  // those that ended while nobody listened, too
    for (const auto& [id, keys] : gone_) clusters.insert(id);
    for (const auto& [id, cluster] : state.clusters) clusters.insert(id);
    for (const ClusterId id : clusters) left.emplace_back(id, left_of(state, id));
  });
  return left;
}

void RelayTeller::on_events(const std::vector<engine::DurableEvent>& events) {
  const std::lock_guard lock(mutex_);
  const bool far = std::ranges::any_of(far_, [](const auto& each) { return each.second->told; });
  if (!connected_ && !far) return;  // whoever connects gets everything
  Left left;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    std::set<ClusterId> changed;
    for (const auto& event : events)
      if (const ClusterId cluster = roster_changed_by(state, event.event)) changed.insert(cluster);
    for (const ClusterId cluster : changed)
      if (Keys keys = left_of(state, cluster); !keys.empty()) left.emplace_back(cluster, std::move(keys));
  });
  if (left.empty()) return;
  const auto recall = recall_of(net::RecallFrame::Kind::More, left);
  if (connected_) news_.push_back(net::encode(recall));
  for (auto& [address, relay] : far_) {
    if (!relay->told) continue;
    append_chunks(relay->chunks, recall);
    if (relay->chunks.size() > kNewsMax) relay->told = false, relay->came_up = true;
  }
  wake_.notify_all();
}

// Empty while tokens are signed by the key that the folder was made with: relays of before know no statement.
Bytes RelayTeller::keys_to_tell() const {
  const auto keys = context_.keys.get();
  return ever_changed(keys->statement, crypto::KeyKind::RelayToken) ? to_bytes(keys->text) : Bytes();
}

void RelayTeller::keys_changed() {
  Bytes keys = keys_to_tell();
  const std::lock_guard lock(mutex_);
  if (connected_ && !keys.empty()) news_.push_back(net::encode({net::RecallFrame::Kind::Keys, {}, std::move(keys)}));
  wake_.notify_all();
}

// ---- relays on other machines
void RelayTeller::run_far() {
  while (true) {
    follow_list();
    tell_far();
    if (stopped_for(kFarLook)) break;
  }
  std::map<std::string, std::unique_ptr<Far>> ended;
  {
    const std::lock_guard lock(mutex_);
    ended.swap(far_);
  }
}

// Those of the list have a connection each; tokens are renewed at half their time.
void RelayTeller::follow_list() {
  const auto list = context_.relays->relays();
  const WallTime wall = read_clocks().wall;
  std::vector<std::unique_ptr<Far>> ended;
  std::vector<std::pair<std::string, std::string>> fresh;
  {
    const std::lock_guard lock(mutex_);
    for (auto it = far_.begin(); it != far_.end();) {
      const bool listed = std::ranges::any_of(
          *list, [&](const RelayEntry& each) { return each.address == it->first && !each.region.empty(); });
      if (!listed) ended.push_back(std::move(it->second));
      it = listed ? std::next(it) : far_.erase(it);
    }
    for (const RelayEntry& each : *list)
      if (!each.region.empty() && !far_.contains(each.address)) fresh.emplace_back(each.address, each.id);
  }
  for (const auto& [address, id] : fresh) {
    auto endpoint = endpoint_of_relay(address);
    if (!endpoint) continue;
    auto relay = std::make_unique<Far>();
    relay->id = id;
    relay->cas = context_.cas.get();
    endpoint->ca_pem = relay->cas->text;
    relay::ClientOptions options;
    options.endpoint = std::move(*endpoint);
    options.overlay = relay->key;
    options.dial_time = kFarDial;
    relay->client = std::make_unique<relay::Client>(std::move(options));
    const std::lock_guard lock(mutex_);
    far_.emplace(address, std::move(relay));
  }
  const Bytes keys = keys_to_tell();
  for (auto& [address, relay] : far_) {  // only this thread changes the map
    if (relay->keys != keys) {
      relay->client->set_keys(keys);
      relay->keys = keys;
      relay->renew = WallTime{0};
    }
    if (wall >= relay->renew) {
      auto token = context_.identity.signer->relay_token(
          {relay->id, overlay::kControlCluster, relay->key.public_key, wall + kControlToken});
      relay->renew = wall + (token.ok() ? kControlToken / 2 : Millis(60'000));
      if (token.ok())
        relay->client->set_token(std::move(*token));
      else
        log_warn("relay", "{} hears of no member that leaves: {}", address, token.error().message);
    }
    if (const auto cas = context_.cas.get(); cas != relay->cas) relay->client->set_ca((relay->cas = cas)->text);
    if (relay->client->state() != relay::ClientState::Stopped) continue;
    relay->client->start({[](const crypto::Key32&, ByteView) {},
                          {},
                          [far = relay.get(), name = address](relay::ClientState state, const std::string& detail) {
                            if (state == relay::ClientState::Up) {
                              far->came_up = true;
                              log_info("relay", "{} is told which members leave", name);
                            } else if (state == relay::ClientState::Refused) {
                              log_warn("relay", "{} refuses to be told which members leave: {}", name, detail);
                            }
                          }});
  }
}

void RelayTeller::tell_far() {
  const std::lock_guard lock(mutex_);
  for (auto& [address, relay] : far_) {
    const bool up = relay->client->state() == relay::ClientState::Up;
    if (!up) relay->told = false, relay->chunks.clear();
    if (up && relay->came_up.exchange(false)) {
      relay->chunks.clear();
      append_chunks(relay->chunks, recall_of(net::RecallFrame::Kind::All, everybody()));
      relay->told = true;
    }
    while (!relay->chunks.empty() && relay->client->recall(relay->chunks.front())) relay->chunks.pop_front();
  }
}

// ---- the one here
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
    if (Bytes keys = keys_to_tell(); !keys.empty())
      out = net::encode({net::RecallFrame::Kind::Keys, {}, std::move(keys)});
    const Bytes all = net::encode(recall_of(net::RecallFrame::Kind::All, everybody()));
    out.insert(out.end(), all.begin(), all.end());
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
