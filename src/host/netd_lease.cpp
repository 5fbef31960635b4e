#include "host/netd_lease.h"

#include <arpa/inet.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <tuple>
#include <utility>

#include "base/endian.h"
#include "base/ipv4.h"
#include "base/log.h"
#include "crypto/file.h"
#include "overlay/packet.h"

namespace muster::host {
namespace {
constexpr int kPacketsPerTurn = 64;  // then others get their turn
constexpr std::size_t kBytesPerTurn = 512 << 10;
constexpr std::size_t kInboxBytesMax = 8 << 20;
constexpr std::size_t kDatagramMax = 65'536;
constexpr std::size_t kSealed = 32;  // a datagram is longer than its packet by that
constexpr Millis kStampsAhead{600'000};
constexpr std::size_t kRelayRoom = 256 << 10;  // so much may wait before the relay, then bulk waits here
constexpr Millis kAfterServed{2};              // another lease, which waits for the same cap, comes first
constexpr Millis kRatesOver{1'000}, kRatesAtMost{30'000};
// Tests: of a way that is there for so long and on which less than that went meanwhile, at most so often each, with so
// much between any two of a machine; as long and as much as that, and in steps.
constexpr Millis kTestSettled{10'000}, kTestLook{2'000}, kTestAgain{6 * 3'600'000}, kTestApart{30'000};
constexpr std::uint64_t kTestQuiet = 16 << 10;  // bytes a second, both ways
constexpr std::uint64_t kTestLengthUs = 2'000'000, kTestRiseUs = 100'000;
constexpr std::size_t kTestBytes = 8 << 20, kTestStep = 128 << 10, kTestDisturbed = 128 << 10;
constexpr double kTestFirst = 128 << 10, kTestRise = 1.5, kTestFastest = 125e6;
constexpr Millis kTestEvery{5};
}  // namespace

// Shared with the relay threads; `owner` is only touched on netd's thread and cleared when the lease ends.
struct NetdLease::Inbox {
  struct Item {
    std::uint64_t relay;  // its number
    crypto::Key32 member;
    Bytes datagram;
    enum class Kind : std::uint8_t { Packet, Gone, Up, Down, Udp } kind = Kind::Packet;
    std::shared_ptr<Relay::Udp> udp = nullptr;  // of Udp
  };
  std::mutex mutex;
  std::vector<Item> items;  // under mutex
  std::size_t bytes = 0;    // under mutex
  NetdLease* owner = nullptr;

  static void put(const std::shared_ptr<Inbox>& self, Poller& poller, Item item) {
    bool first = false;
    {
      const std::lock_guard lock(self->mutex);
      if (self->bytes + item.datagram.size() > kInboxBytesMax) return;
      self->bytes += item.datagram.size();
      first = self->items.empty();
      self->items.push_back(std::move(item));
    }
    if (first) {
      poller.post([self] {
        if (self->owner != nullptr) self->owner->drain();
      });
    }
  }
};

// Through which leaves what waited: the owner's cap, the ways and the member.
class NetdLease::Exit : public overlay::Shaper::Gate {
 public:
  Exit(NetdLease& lease, const Now& now) : lease_(lease), now_(now) {}
  overlay::Shaper::Way way(std::uint32_t to) override { return lease_.way(to); }
  Millis wait(overlay::Load load) override {
    return lease_.bandwidth_.wait_up(load == overlay::Load::Control, now_.lease);
  }
  void pass(std::uint32_t to, overlay::Load load, ByteView packet) override {
    if (load == overlay::Load::Control) lease_.bandwidth_.up_control.charge(packet.size(), now_.lease);
    lease_.pumped_bulk_ = lease_.pumped_bulk_ || load == overlay::Load::Bulk;
    lease_.member_->from_tun(packet, now_, lease_);
    if (lease_.pacing_ == Pacing::On) lease_.member_->sent(to, packet.size() + kSealed, now_, lease_);
  }

 private:
  NetdLease& lease_;
  const Now& now_;
};

NetdLease::NetdLease(std::string name, std::string state_dir, const Shared& shared)
    : name_(std::move(name)),
      state_dir_(std::move(state_dir)),
      udp_(shared.udp),
      poller_(shared.poller),
      bandwidth_(shared.bandwidth),
      large_udp_(shared.large_udp),
      large_tun_(shared.tun_large, shared.tun_fault),
      outside_(shared.outside),
      pacing_(shared.pacing),
      udp_relay_(shared.udp_relay),
      crew_(shared.crew),
      inbox_(std::make_shared<Inbox>()),
      buffer_(overlay::OffloadHeader::kBytes + kDatagramMax) {
  inbox_->owner = this;
}

NetdLease::~NetdLease() {
  relays_.clear();  // joins their threads
  inbox_->owner = nullptr;
  if (pump_timer_ != 0) poller_.cancel(pump_timer_);
  if (test_timer_ != 0) poller_.cancel(test_timer_);
  if (test_) bandwidth_.testing = false;
  if (bulk_waits_) --bandwidth_.bulk_waits;
  close_tun();
}

Result<std::unique_ptr<NetdLease>> NetdLease::open(const std::string& name, const std::string& state_dir,
                                                   const Shared& shared) {
  std::unique_ptr<NetdLease> lease(new NetdLease(name, state_dir, shared));
  auto stored = crypto::read_secret_file(lease->file(".key"), 64);
  if (stored.ok() && stored->size() == 32) {
    lease->key_.secret = crypto::Secret32(*crypto::key32(*stored));
    lease->key_.public_key = crypto::x25519_public(lease->key_.secret);
    crypto::zeroise(*stored);
  } else if (stored.ok() || stored.error().code == Code::NotFound) {
    lease->key_ = crypto::x25519_generate();
    TRY_VOID(crypto::write_secret_file(lease->file(".key"), lease->key_.secret.bytes));
  } else {
    return stored.error();
  }
  if (const auto kept = crypto::read_secret_file(lease->file(".stamp"), 64); kept.ok() && kept->size() == 8)
    lease->stamps_from_ = WallTime{static_cast<std::int64_t>(load_be64(kept->data()) & ~(1ULL << 63))};
  lease->keep_stamps(std::max(read_clocks().wall, lease->stamps_from_));
  const auto seen = crypto::read_secret_file(lease->file(".roster"), 64);
  if (seen.ok() && seen->size() == 16) {
    lease->guard_ = overlay::RosterGuard(load_be64(seen->data()), load_be64(seen->data() + 8));
    lease->came_back_ = true;
  }
  if (auto psk = crypto::read_secret_file(lease->file(".psk"), 64); psk.ok() && psk->size() == 32) {
    lease->psk_ = crypto::Secret32(*crypto::key32(*psk));
    crypto::zeroise(*psk);
  }
  return lease;
}

void NetdLease::erase_files() {
  ::unlink(file(".key").c_str());
  ::unlink(file(".roster").c_str());
  ::unlink(file(".stamp").c_str());
  ::unlink(file(".psk").c_str());
}

// Well ahead, so that this is written every ten minutes of handshakes and not with each.
void NetdLease::keep_stamps(WallTime latest) {
  stamps_kept_ = latest + kStampsAhead;
  Bytes raw(8);
  store_be64(raw.data(), static_cast<std::uint64_t>(stamps_kept_.ms));
  const Status written = crypto::write_secret_file(file(".stamp"), raw);
  if (!written.ok()) log_warn("netd", "{}: {}", name_, written.error().message);
}

void NetdLease::close_tun() {
  if (!tun_) return;
  poller_.unwatch(tun_.get());
  tun_.reset();
}

Status NetdLease::set_tun(Fd tun) {
  ifreq request{};
  if (::ioctl(tun.get(), TUNGETIFF, &request) != 0 || (request.ifr_flags & IFF_TUN) == 0 ||
      (request.ifr_flags & IFF_NO_PI) == 0) {
    return error(Code::InvalidArgument, "the descriptor given for the lease is not a TUN device");
  }
  TRY_VOID(set_blocking(tun.get(), false));
  close_tun();
  tun_ = std::move(tun);
  offloads_ = (request.ifr_flags & IFF_VNET_HDR) != 0;
  arriving_.emplace(offloads_ && large_tun_.used());
  counted_ = {};
  poller_.watch(tun_.get(), true, false, [this](Poller::Ready) { read_tun(); });
  return {};
}

Result<netd::Configured> NetdLease::configure(const netd::Configure& config) {
  if (config.prefix_bits > 30 || config.address == 0)
    return error(Code::InvalidArgument, "the lease's overlay address is not usable");
  crypto::Secret32 psk = psk_;
  if (!config.psk.empty()) {
    const auto key = crypto::key32(config.psk);
    if (!key) return error(Code::InvalidArgument, "a pre-shared key has 32 bytes");
    psk = crypto::Secret32(*key);
    if (!crypto::equal(psk.bytes, psk_.bytes)) TRY_VOID(crypto::write_secret_file(file(".psk"), psk.bytes));
  }
  const bool same = member_ && address_ == config.address && prefix_bits_ == config.prefix_bits &&
                    crypto::equal(psk.bytes, psk_.bytes);
  if (!same) {
    if (config.roster.empty())
      return error(Code::FailedPrecondition, "the lease has no roster yet; send it with the configuration");
    if (member_) stamps_from_ = std::max(stamps_from_, member_->latest_stamp());
    member_ = std::make_unique<overlay::Member>(key_, config.address, config.prefix_bits, psk, guard_);
    member_->stamp_from(stamps_from_);
    member_->set_relay_only(outside_.owner.now().relay_only, read_clocks(), *this);  // before it knows anybody
    counted_from_ = read_clocks().wall;
    announce_relays(read_clocks());
    member_->set_public(public_, read_clocks(), *this);
    address_ = config.address;
    prefix_bits_ = config.prefix_bits;
    psk_ = psk;
  }
  netd::Configured out;
  if (!config.roster.empty()) {
    std::vector<crypto::Key32> signers;
    for (const Bytes& signer : config.signers) {
      const auto key = crypto::key32(signer);
      if (!key) return error(Code::InvalidArgument, "a roster signer's key has 32 bytes");
      signers.push_back(*key);
    }
    const auto before = std::pair(guard_.incarnation(), guard_.epoch());
    const auto machines = TRY(vouched(config));
    out.rejected = TRY(member_->set_roster(config.roster, config.signatures, signers, machines));
    guard_ = member_->guard();
    // The others still send with the sessions of our last life, and would not notice for long.
    if (std::exchange(came_back_, false)) member_->greet(read_clocks(), *this);
    if (before != std::pair(guard_.incarnation(), guard_.epoch())) {
      Bytes seen(16);
      store_be64(seen.data(), guard_.incarnation());
      store_be64(seen.data() + 8, guard_.epoch());
      TRY_VOID(crypto::write_secret_file(file(".roster"), seen));
    }
  }
  const bool other_name = relay_server_name_ != config.relay_server_name;
  relay_server_name_ = config.relay_server_name;
  if (relay_ca_pem_ != config.relay_ca_pem) {
    relay_ca_pem_ = config.relay_ca_pem;  // roots may change under a relay that stays
    for (Relay& relay : relays_) relay.client->set_ca(relay_ca_pem_);
  }
  if (!config.relay_token.empty()) relay_token_ = config.relay_token;
  std::vector<Relay> wanted;
  for (const Relay& known : relays_) {
    if (!relays_set_) break;
    wanted.push_back({0, known.at, known.region, known.token, nullptr});
  }
  // The token binds our key, so it comes one message later: no relay lets us in before.
  for (const netd::RelayAddress& at : config.relays)
    if (!relays_set_ && !relay_token_.empty()) wanted.push_back({0, at, {}, relay_token_, nullptr});
  want_relays(std::move(wanted), other_name);
  out.incarnation = guard_.incarnation();
  out.epoch = guard_.epoch();
  return out;
}

// Who once had a CA keeps asking for proofs, whatever is said later.
Result<std::optional<overlay::MachineProofs>> NetdLease::vouched(const netd::Configure& config) {
  if (!config.machine_ca_pem.empty() && config.machine_ca_pem != machine_ca_pem_) {
    machines_ = TRY(crypto::MachineVerifier::create(config.machine_ca_pem));
    machine_ca_pem_ = config.machine_ca_pem;
  }
  if (!machines_) return std::optional<overlay::MachineProofs>();
  return std::optional(overlay::MachineProofs{machines_.get(), config.machines, read_clocks().wall});
}

Status NetdLease::set_relays(const netd::SetRelays& request) {
  if (request.relays.empty()) return {};
  std::vector<Relay> wanted;
  for (const session::RelayGrant& grant : request.relays) {
    auto at = netd::parse_relay(grant.address);
    if (!at) return error(Code::InvalidArgument, "'" + grant.address.substr(0, 64) + "' is not a relay's HOST:PORT");
    wanted.push_back({0, std::move(*at), grant.region, grant.token, nullptr});
  }
  relays_set_ = true;
  want_relays(std::move(wanted), false);
  return {};
}

// Connections to relays that stay are kept, whatever else changes.
void NetdLease::want_relays(std::vector<Relay> wanted, bool all_anew) {
  wanted.resize(std::min(wanted.size(), overlay::kRelaysMax));
  bool same = wanted.size() == relays_.size() && !all_anew;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    Relay& relay = wanted[i];
    same = same && relay.at == relays_[i].at;
    const auto known = std::ranges::find_if(
        relays_, [&](const Relay& each) { return each.client != nullptr && each.at == relay.at && !all_anew; });
    if (known == relays_.end()) continue;
    relay.number = known->number;
    relay.client = std::move(known->client);
    relay.udp = std::move(known->udp);
    relay.client->set_token(relay.token);
  }
  relays_ = std::move(wanted);  // of those that are not wanted any more the threads are joined here
  for (Relay& relay : relays_)
    if (relay.client == nullptr) connect(relay);
  if (!same) announce_relays(read_clocks());
}

void NetdLease::connect(Relay& relay) {
  relay.number = next_relay_++;
  relay::ClientOptions options;
  options.endpoint.host = relay.at.host;
  options.endpoint.port = relay.at.port;
  options.endpoint.ca_pem = relay_ca_pem_;
  options.endpoint.server_name = relay_server_name_;
  options.overlay = key_;
  options.token = relay.token;
  relay.client = std::make_unique<relay::Client>(std::move(options));
  relay::ClientCallbacks callbacks;
  callbacks.on_packet = [inbox = inbox_, &poller = poller_, number = relay.number](const crypto::Key32& source,
                                                                                   ByteView payload) {
    Inbox::put(inbox, poller, {number, source, Bytes(payload.begin(), payload.end())});
  };
  callbacks.on_peer_gone = [inbox = inbox_, &poller = poller_, number = relay.number](const crypto::Key32& peer) {
    Inbox::put(inbox, poller, {number, peer, {}, Inbox::Item::Kind::Gone});
  };
  callbacks.on_state = [inbox = inbox_, &poller = poller_, number = relay.number, name = name_, at = relay.at](
                           relay::ClientState state, const std::string& detail) {
    if (state == relay::ClientState::Up) {
      log_info("netd", "{}: relay {}:{} is up", name, at.host, at.port);
      Inbox::put(inbox, poller, {number, {}, {}, Inbox::Item::Kind::Up});
    } else if (state == relay::ClientState::Waiting || state == relay::ClientState::Refused) {
      Inbox::put(inbox, poller, {number, {}, {}, Inbox::Item::Kind::Down});
    }
    if (state == relay::ClientState::Refused)
      log_warn("netd", "{}: relay {}:{} refuses us: {}", name, at.host, at.port, detail);
  };
  if (udp_relay_ == UdpRelay::On)
    callbacks.on_udp = [inbox = inbox_, &poller = poller_, number = relay.number](const overlay::UdpGrant& grant,
                                                                                  const overlay::Endpoint& at) {
      auto udp = std::make_shared<Relay::Udp>(
          Relay::Udp{overlay::UdpMemberLeg(grant, read_clocks().lease), at, grant.second_port, grant.second_port});
      Inbox::put(inbox, poller, {number, {}, {}, Inbox::Item::Kind::Udp, std::move(udp)});
    };
  relay.client->start(std::move(callbacks));
}

void NetdLease::announce_relays(const Now& now) {
  if (!member_) return;
  member_->set_relays(relays_.size(), now);
  for (std::size_t i = 0; i < relays_.size(); ++i)
    if (relays_[i].client->state() == relay::ClientState::Up) member_->relay_up(i, now);
}

void NetdLease::drain() {
  std::vector<Inbox::Item> items;
  {
    const std::lock_guard lock(inbox_->mutex);
    items.swap(inbox_->items);
    inbox_->bytes = 0;
  }
  const Now now = read_clocks();
  using Kind = Inbox::Item::Kind;
  for (const Inbox::Item& item : items) {
    const auto from = std::ranges::find(relays_, item.relay, &Relay::number);
    if (from == relays_.end()) continue;
    const auto relay = static_cast<std::size_t>(from - relays_.begin());
    if (item.kind == Kind::Udp) {
      take_udp(relay, item.udp, now);
    } else if (!member_) {
      continue;
    } else if (item.kind == Kind::Up) {
      member_->relay_up(relay, now);
      relay_came_up_ = true;
    } else if (item.kind == Kind::Down) {
      member_->relay_down(relay, now);
    } else if (!member_->knows(item.member)) {
      continue;
    } else if (item.kind == Kind::Gone) {
      member_->relay_lacks(relay, item.member, now);
    } else if (bandwidth_.admit(item.datagram, now.lease)) {
      if (from->udp != nullptr) from->udp->leg.wants(item.datagram.size(), now.lease);
      member_->from_relay(relay, item.member, item.datagram, now, *this);
    }
  }
  flush();
  udp_.flush();
}

bool NetdLease::relay_has_room(std::size_t relay) const {
  return relay >= relays_.size() || relays_[relay].by_udp() || relays_[relay].client->backlog() < kRelayRoom;
}

// A new connection brings a new leg. Until that one answers, packets go by TLS.
void NetdLease::take_udp(std::size_t relay, std::shared_ptr<Relay::Udp> udp, const Now& now) {
  const bool before = relays_[relay].by_udp();
  relays_[relay].udp = std::move(udp);
  if (before) changed_udp(relay, now);
  ask_udp(relay, now);
}

void NetdLease::changed_udp(std::size_t relay, const Now& now) {
  const Relay& r = relays_[relay];
  log_info("netd", "{}: relay {}:{} by {}", name_, r.at.host, r.at.port,
           r.by_udp() ? "UDP port " + std::to_string(r.udp->at.port) : "TLS");
  if (member_) member_->relay_changed(relay, now);
}

void NetdLease::ask_udp(std::size_t relay, const Now& now) {
  Relay& r = relays_[relay];
  if (r.udp == nullptr) return;
  const bool before = r.by_udp();
  const auto failed = r.udp->leg.failed();
  const Bytes ping = r.udp->leg.due(now.lease, micros());
  if (r.udp->leg.failed() != failed && r.udp->other_port != 0) std::swap(r.udp->at.port, r.udp->other_port);
  if (!ping.empty()) put_udp(r.udp->at, ping);
  if (before != r.by_udp()) changed_udp(relay, now);
}

void NetdLease::put_udp(const overlay::Endpoint& to, ByteView datagram) {
  if (to.kind == overlay::Endpoint::Kind::Udp6) return udp_.send6(to.six, to.port, datagram);
  udp_.send(to.ip, to.port, datagram);
}

bool NetdLease::from_udp_relay(const overlay::Endpoint& from, ByteView datagram, const Now& now) {
  using What = overlay::UdpMemberLeg::Taken::What;
  for (std::size_t i = 0; i < relays_.size(); ++i) {
    if (relays_[i].udp == nullptr || relays_[i].udp->leg.id() != overlay::udp_relay_id(datagram)) continue;
    if (relays_[i].udp->at != from) continue;
    const bool before = relays_[i].by_udp();
    const auto taken = relays_[i].udp->leg.take(datagram, now.lease, micros());
    if (before != relays_[i].by_udp()) changed_udp(i, now);
    if (taken.what == What::Refused) return true;
    const crypto::Key32* who =
        member_ && (taken.what == What::Data || taken.what == What::Gone) ? member_->named(taken.name) : nullptr;
    if (who != nullptr && taken.what == What::Gone) member_->relay_lacks(i, crypto::Key32(*who), now);
    if (who != nullptr && taken.what == What::Data && bandwidth_.admit(taken.payload, now.lease))
      member_->from_relay(i, crypto::Key32(*who), taken.payload, now, *this);
    if (taken.what == What::Nothing) ask_udp(i, now);
    return true;
  }
  return false;
}

overlay::Shaper::Way NetdLease::way(std::uint32_t to) const {
  const overlay::Way way = member_->way(to);
  return {way.bytes_s, way.member == nullptr || !way.relay || relay_has_room(*way.relay)};
}

// The TUN is always read: its own queue is one row for all, long, and loses what comes last. Who waits, waits here.
void NetdLease::pump(const Now& now) {
  if (!member_ || leaving_.empty()) return;
  pumped_bulk_ = false;
  Exit exit(*this, now);
  const std::uint64_t wait_us = leaving_.run(micros(), exit);
  if (const bool waits = leaving_.bulk_waits(); waits != bulk_waits_) {
    bandwidth_.bulk_waits += waits ? 1 : -1;
    bulk_waits_ = waits;
  }
  if (pump_timer_ != 0) poller_.cancel(std::exchange(pump_timer_, 0));
  if (wait_us == 0) return;
  const bool shared = pumped_bulk_ && bandwidth_.up.rate() > 0;
  const Millis wait = wait_us == 1 ? Millis(0) : Millis(wait_us / 1000 + 1) + (shared ? kAfterServed : Millis(0));
  pump_timer_ = poller_.after(wait, [inbox = inbox_] {
    if (inbox->owner != nullptr) inbox->owner->pump_and_flush();
  });
}

void NetdLease::pump_and_flush() {
  pump_timer_ = 0;
  pump(read_clocks());
  flush();
  udp_.flush();
}

void NetdLease::read_tun() {
  const Now now = read_clocks();
  std::size_t taken = 0;
  for (int i = 0; i < kPacketsPerTurn && taken < kBytesPerTurn; ++i) {
    const ssize_t n = ::read(tun_.get(), buffer_.data(), buffer_.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && (errno == EAGAIN || errno == EIO)) break;  // EIO: the device is down
    if (n <= 0) {
      log_warn("netd", "{}: the TUN device is gone; the agent gives a new one", name_);
      close_tun();
      break;
    }
    taken += static_cast<std::size_t>(n);
    if (member_) from_tun(std::span(buffer_).first(static_cast<std::size_t>(n)), now);
  }
  pump(now);
  flush();
  udp_.flush();
}

// Where nothing limits, a packet goes at once, without a copy.
void NetdLease::from_tun(std::span<std::uint8_t> read, const Now& now) {
  overlay::OffloadHeader header;
  if (offloads_) {
    if (read.size() <= overlay::OffloadHeader::kBytes) return;
    header = overlay::load_offload(read.data());
    read = read.subspan(overlay::OffloadHeader::kBytes);
  }
  const auto ends = overlay::packet_ends(read);
  if (!ends) return;  // between no two members
  const std::uint32_t to = ends->destination;
  tun_bytes_ += read.size();
  const auto [pace, room] = way(to);
  if (bandwidth_.up.rate() > 0 || pace > 0 || !room || leaving_.holds(to))
    return leaving_.push(to, header, read, micros());
  std::size_t bytes = 0;
  const bool many = header.gso != overlay::OffloadHeader::kNone;
  if (many) member_->hold(crew_);
  overlay::Segments segments(header, read);
  while (const auto packet = segments.next()) {
    member_->from_tun(*packet, now, *this);
    bytes += packet->size() + kSealed;
  }
  if (many) member_->release(crew_, now, *this);
  if (pacing_ == Pacing::On) member_->sent(to, bytes, now, *this);
}

void NetdLease::from_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram, const Now& now) {
  if (member_) member_->from_udp(ip, port, datagram, now, *this);
}

void NetdLease::from_udp6(const Ip6& ip, std::uint16_t port, ByteView datagram, const Now& now) {
  if (member_) member_->from_udp6(ip, port, datagram, now, *this);
}

void NetdLease::moved(bool elsewhere, bool slept_long, const Now& now) {
  for (const Relay& r : relays_) {
    if (elsewhere || slept_long) r.client->reconnect();
    if (r.udp != nullptr) r.udp->leg.hurry(now.lease);
  }
  if (member_) member_->moved(elsewhere, now);
}

void NetdLease::tick(const Now& now) {
  for (std::size_t i = 0; i < relays_.size(); ++i) ask_udp(i, now);
  if (!member_) return;
  member_->set_carries(bandwidth_.carry.offers() && !outside_.owner.now().relay_only, now, *this);
  member_->set_tests(bandwidth_.tests.offers(), now, *this);
  compares_udp_ = large_udp_.counts(now.lease);
  look_at_large(now);
  member_->tick(now, *this);
  look_for_test(now);
  flush();
  if (member_->latest_stamp() > stamps_kept_) keep_stamps(member_->latest_stamp());
}

// Of the direct ways that were never full and on which next to nothing goes, the one whose turn it is.
void NetdLease::look_for_test(const Now& now) {
  if (pacing_ == Pacing::Off || !bandwidth_.tests.offers() || now.lease - looked_for_test_ < kTestLook) return;
  const Millis passed = now.lease - std::exchange(looked_for_test_, now.lease);
  std::optional<overlay::MemberStats> due;
  for (const overlay::MemberStats& m : member_->stats()) {
    Quiet& quiet = quiet_[m.address];
    const std::uint64_t bytes = m.peer.rx_bytes + m.peer.tx_bytes;
    const std::uint64_t allowed =
        kTestQuiet * static_cast<std::uint64_t>(std::max<std::int64_t>(passed.count(), 1)) / 1000;
    if (quiet.since == LeaseTime{} || bytes - quiet.bytes > allowed) quiet.since = now.lease;
    quiet.bytes = bytes;
    const bool known = m.carries_bytes_s > 0 || (m.tested != LeaseTime{} && now.lease - m.tested < kTestAgain);
    if (known || !m.takes_tests || !m.peer.endpoint.direct() || m.since == LeaseTime{} ||
        now.lease - m.since < kTestSettled || now.lease - quiet.since < kTestSettled)
      continue;
    if (!due || m.tested < due->tested) due = m;
  }
  if (!due || test_ || bandwidth_.testing || now.lease < bandwidth_.next_test || !leaving_.empty()) return;
  if (!member_->begin_test(due->address, now)) return;
  bandwidth_.testing = true;
  tun_bytes_ = 0;
  const std::uint64_t micros_now = micros();
  test_ = Test{due->address, micros_now, micros_now, 0, kTestFirst};
  go_on_testing();
}

void NetdLease::go_on_testing() {
  test_timer_ = 0;
  if (!test_ || !member_) return;
  const Now now = read_clocks();
  const std::uint64_t micros_now = micros();
  Test& test = *test_;
  if (tun_bytes_ > kTestDisturbed || !leaving_.empty()) return end_test(now, "programs have something to send");
  if (micros_now - test.began_us > kTestLengthUs || test.sent >= kTestBytes) return end_test(now, "it was not full");
  if (!bandwidth_.tests.offers()) return end_test(now, "the owner's limit is reached");
  const auto owners = static_cast<double>(bandwidth_.tests.rate());
  const double cap =
      std::min({owners > 0 ? owners : kTestFastest, kTestFastest,
                bandwidth_.up.rate() > 0 ? static_cast<double>(bandwidth_.up.rate()) / 2 : kTestFastest});
  const auto risen = static_cast<int>((micros_now - test.began_us) / kTestRiseUs);
  double rate = kTestFirst;
  for (int i = 0; i < risen && rate < cap; ++i) rate *= kTestRise;
  test.bytes_s = std::min(rate, cap);
  const double wished = test.bytes_s * static_cast<double>(micros_now - test.last_us) / 1e6;
  const std::size_t bytes = std::min(kTestStep, static_cast<std::size_t>(wished));
  const bool room = bandwidth_.wait_up(false, now.lease) == Millis(0);
  if (room && bytes > 0 && bandwidth_.tests.admit(bytes, now.lease)) {
    test.last_us = micros_now;
    test.sent += bytes;
    if (!member_->fill(test.to, bytes, now, *this)) return end_test(now, "its end was met, or it is taken no more");
  }
  udp_.flush();
  test_timer_ = poller_.after(kTestEvery, [inbox = inbox_] {
    if (inbox->owner != nullptr) inbox->owner->go_on_testing();
  });
}

void NetdLease::end_test(const Now& now, const char* why) {
  udp_.flush();
  member_->end_test(test_->to);
  log_info("netd", "{}: a test of the way to member {} sent {} KiB, the last at {} KiB/s: {}", name_,
           test_->to & 0xffff, test_->sent >> 10, static_cast<std::size_t>(test_->bytes_s) >> 10, why);
  test_.reset();
  bandwidth_.testing = false;
  bandwidth_.next_test = now.lease + kTestApart;
}

// Where that one has just gone, by any other that is there.
void NetdLease::to_relay(std::size_t relay, const crypto::Key32& member, ByteView datagram) {
  if (relays_.empty()) return;
  if (bandwidth_.up.rate() > 0) bandwidth_.up.charge(datagram.size(), read_clocks().lease);
  for (std::size_t i = 0; i < relays_.size(); ++i) {
    Relay& r = relays_[(relay + i) % relays_.size()];
    const LeaseTime now = read_clocks().lease;
    if (r.udp != nullptr && r.udp->leg.wants(datagram.size(), now)) {
      wrapped_.clear();
      r.udp->leg.wrap(member, datagram, now, wrapped_);
      return put_udp(r.udp->at, wrapped_);
    }
    if (r.client->send(member, datagram)) return;
  }
}

// Whose owner hides it is silent here: the member asks for none of it, and none would leave.
void NetdLease::to_udp(std::uint32_t ip, std::uint16_t port, ByteView datagram) {
  if (outside_.owner.now().relay_only) return;
  if (bandwidth_.up.rate() > 0) bandwidth_.up.charge(datagram.size(), read_clocks().lease);
  udp_.send(ip, port, datagram);
}

void NetdLease::to_udp6(const Ip6& ip, std::uint16_t port, ByteView datagram) {
  if (outside_.owner.now().relay_only) return;
  if (bandwidth_.up.rate() > 0) bandwidth_.up.charge(datagram.size(), read_clocks().lease);
  udp_.send6(ip, port, datagram);
}

void NetdLease::to_tun(ByteView packet) {
  if (arriving_) arriving_->add(packet, *this);
}

bool NetdLease::may_reach(const overlay::Endpoint& to) {
  return outside_.ways.may_reach(to, read_clocks().lease);
}

// What this machine's own leases wait to send comes first.
bool NetdLease::may_carry(std::size_t bytes) {
  const LeaseTime now = read_clocks().lease;
  return bandwidth_.up.wait(now) == Millis(0) && bandwidth_.carry.admit(bytes, now);
}

std::uint64_t NetdLease::micros() const {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

void NetdLease::flush() {
  if (arriving_) arriving_->flush(*this);
}

// What has no room is lost, as in any queue; that is no refusal.
bool NetdLease::write(const overlay::OffloadHeader& header, ByteView packet) {
  if (!tun_) return true;
  auto before = overlay::store_offload(header);
  const std::array<iovec, 2> parts{
      {{before.data(), before.size()}, {const_cast<std::uint8_t*>(packet.data()), packet.size()}}};
  const ssize_t n =
      offloads_ ? ::writev(tun_.get(), parts.data(), parts.size()) : ::write(tun_.get(), packet.data(), packet.size());
  return n >= 0 || (errno != EINVAL && errno != EIO && errno != EMSGSIZE && errno != E2BIG && errno != EFAULT);
}

bool NetdLease::compares(const overlay::Endpoint& way) const {
  using Kind = overlay::Endpoint::Kind;
  return compares_udp_ &&
         (way.direct() || (way.kind == Kind::Relay && way.port < relays_.size() && relays_[way.port].by_udp()));
}

void NetdLease::fared(std::uint32_t member, std::uint64_t sent, std::uint64_t lost) {
  large_udp_.note(std::hash<std::string>{}(name_)*31 + member, sent, lost, read_clocks().lease);
}

void NetdLease::look_at_large(const Now& now) {
  if (!arriving_ || !offloads_) return;
  const overlay::Coalescer::Counts counts = arriving_->counts();
  if (counts.refused != counted_.refused) {
    log_warn("netd", "{}: the TUN refuses what it is given joined; it gets packets one by one", name_);
    large_tun_.refused(now.lease);
  }
  large_tun_.note(0, counts.data - counted_.data, counts.again - counted_.again, now.lease);
  counted_ = counts;
  large_tun_.asks_again(now.lease);
  if (large_tun_.tick(now.lease))
    log_info("netd", "{}: large packets for the container: {}", name_, session::text(large_tun_.state()));
  arriving_->set(large_tun_.used(), large_tun_.counts(now.lease), *this);
}

std::vector<NetdLease::MirrorAt> NetdLease::mirrors() const {
  std::vector<MirrorAt> out;
  for (const Relay& r : relays_) {
    const std::uint32_t ip = r.client->state() == relay::ClientState::Up ? r.client->address() : 0;
    if (ip != 0)
      out.push_back({overlay::Endpoint::udp(ip, r.at.port), r.udp == nullptr ? std::uint16_t{0} : r.udp->second_port});
  }
  return out;
}

void NetdLease::set_public(const std::vector<overlay::Endpoint>& endpoints, const Now& now) {
  public_ = endpoints;
  if (member_) member_->set_public(endpoints, now, *this);
}

void NetdLease::obey_owner(const Now& now) {
  if (member_) member_->set_relay_only(outside_.owner.now().relay_only, now, *this);
}

netd::Stats NetdLease::stats() const {
  netd::Stats out;
  out.tun = has_tun();
  out.incarnation = guard_.incarnation();
  out.epoch = guard_.epoch();
  for (const Relay& r : relays_) out.relay_up = out.relay_up || r.client->state() == relay::ClientState::Up;
  if (!relays_.empty()) out.relay_detail = relays_[0].at.host + ":" + std::to_string(relays_[0].at.port);
  if (!member_) return out;
  for (const overlay::MemberStats& m : member_->stats()) {
    out.peers.push_back({m.address, m.peer.rx_bytes, m.peer.tx_bytes, m.peer.last_handshake.ms,
                         overlay::format_endpoint(m.peer.endpoint)});
  }
  return out;
}

namespace {
std::uint64_t age(Millis passed) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(passed.count(), 0));
}
session::NetPlace place_of(const overlay::Endpoint& at) {
  const bool six = at.kind == overlay::Endpoint::Kind::Udp6;
  return {at.ip, at.port, six ? Bytes(at.six.begin(), at.six.end()) : Bytes()};
}
bool private_place(const overlay::Endpoint& at) {
  return at.kind == overlay::Endpoint::Kind::Udp6 ? is_unique_local(at.six) : is_private(at.ip);
}
session::NetPair pair_of(const overlay::MemberStats& m, const Now& now) {
  session::NetPair pair;
  pair.address = m.address;
  const bool used = m.peer.last_handshake.ms != 0;  // who never talked to us costs nothing, and has no way yet
  const auto& at = m.peer.endpoint;
  if (used && at.direct()) {
    pair.path = private_place(at) ? session::NetPath::Lan : session::NetPath::Direct;
    pair.at = place_of(at);
  } else if (used && m.by) {
    pair.path = session::NetPath::Peer;
    pair.by = *m.by;
  } else if (used) {
    pair.path = session::NetPath::Relay;
  }
  pair.mtu = static_cast<std::uint32_t>(m.mtu);
  pair.hidden = m.hidden;
  pair.rtt_us = m.rtt_us;
  pair.relay_rtt_us = m.relay_rtt_us;
  pair.relay = m.relay ? static_cast<std::uint32_t>(*m.relay) + 1 : 0;
  for (const overlay::RelayTried& t : m.relays)
    pair.relays.push_back({static_cast<std::uint32_t>(t.relay) + 1, t.sent, t.answered, t.rtt_us});
  pair.asked = m.asked;
  pair.lost = m.lost;
  pair.changes = m.changes;
  if (used && m.since != LeaseTime{}) pair.age_ms = age(now.lease - m.since);
  if (used) pair.handshake_age_ms = age(now.wall - m.peer.last_handshake);
  pair.rx_bytes = m.peer.rx_bytes;
  pair.tx_bytes = m.peer.tx_bytes;
  pair.carries_bytes_s = m.carries_bytes_s;
  if (m.carries_bytes_s > 0) pair.carries_age_ms = age(now.lease - m.carries_since);
  pair.tested = m.by_test;
  pair.at_least_bytes_s = m.at_least_bytes_s;
  if (m.at_least_bytes_s > 0) pair.at_least_age_ms = age(now.lease - m.at_least_since);
  const auto tried = [&](const overlay::Tried& t, session::NetOrigin origin) {
    if (pair.tries.size() < session::kNetTriesMax)
      pair.tries.push_back({place_of(t.at), origin, t.sent, t.answered, t.full, t.rtt_us, t.barred});
  };
  for (const overlay::Tried& t : m.carriers) tried(t, session::NetOrigin::Offered);
  for (const overlay::Tried& t : m.tried) tried(t, session::NetOrigin{static_cast<std::uint8_t>(t.origin)});
  return pair;
}
}  // namespace

// Over the time since it was last looked at, where that was lately.
void NetdLease::add_rates(session::NetPair& pair, LeaseTime now) {
  Seen& seen = seen_[pair.address];
  const Millis passed = now - seen.at;
  if (passed >= kRatesOver) {
    const auto rate = [&](std::uint64_t bytes, std::uint64_t before) {
      return passed > kRatesAtMost || bytes < before
                 ? 0
                 : (bytes - before) * 1000 / static_cast<std::uint64_t>(passed.count());
    };
    seen = {now, pair.rx_bytes, pair.tx_bytes, rate(pair.rx_bytes, seen.rx_bytes), rate(pair.tx_bytes, seen.tx_bytes)};
  }
  pair.rx_bytes_s = seen.rx_bytes_s;
  pair.tx_bytes_s = seen.tx_bytes_s;
}

netd::Paths NetdLease::paths(const Now& now, const UdpRtt& of_mirror) {
  netd::Paths out;
  session::NetReport& report = out.report;
  for (const Relay& r : relays_) {
    const bool up = r.client->state() == relay::ClientState::Up;
    const std::string address = r.at.host + ":" + std::to_string(r.at.port);
    if (report.relay.empty() || (up && !report.relay_up)) report.relay = address;
    report.relay_up = report.relay_up || up;
    const std::uint32_t ip = up ? r.client->address() : 0;
    std::uint32_t udp_rtt = ip == 0 ? 0 : of_mirror(ip, r.at.port);
    if (udp_rtt == 0 && ip != 0 && r.udp != nullptr) udp_rtt = of_mirror(ip, r.udp->second_port);
    report.relays.push_back({address, r.region, up, up ? r.client->rtt_us() : 0, udp_rtt, r.by_udp()});
  }
  report.relay_only = outside_.owner.now().relay_only;
  report.in_tunnel = outside_.ways.outward_in_tunnel(now.lease);
  report.mapped = report.relay_only ? std::string() : outside_.mapped;
  for (const auto& at : public_)
    if (!report.relay_only && report.seen.size() < session::kNetSeenMax) report.seen.push_back(place_of(at));
  if (!member_) return out;
  for (const overlay::MemberStats& m : member_->stats()) {
    session::NetPair pair = pair_of(m, now);
    if (pair.path != session::NetPath::None) add_rates(pair, now.lease);
    out.limited += pair.carries_bytes_s > 0 ? 1 : 0;
    pair.relay_udp =
        pair.path == session::NetPath::Relay && m.relay && *m.relay < relays_.size() && relays_[*m.relay].by_udp();
    if (pair.path == session::NetPath::Relay) ++(pair.relay_udp ? out.relayed_udp : out.relayed);
    out.lan += pair.path == session::NetPath::Lan ? 1 : 0;
    out.direct += pair.path == session::NetPath::Direct ? 1 : 0;
    out.peer += pair.path == session::NetPath::Peer ? 1 : 0;
    report.pairs.push_back(std::move(pair));
  }
  std::erase_if(seen_, [&](const auto& each) { return now.lease - each.second.at > kRatesAtMost; });
  report.carries = member_->carries();
  report.large_udp = large_udp_.state();
  if (offloads_) report.large_tun = large_tun_.state();
  report.counted_from = counted_from_;
  for (const overlay::CarriedCount& c : member_->carried())
    report.carried.push_back({c.by, c.with, c.sent, c.received});
  std::ranges::stable_sort(report.carried, std::greater{}, [](const auto& c) { return c.sent + c.received; });
  report.carried.resize(std::min(report.carried.size(), session::kNetCarriedMax));
  for (const overlay::ForwardedCount& c : member_->forwarded()) report.forwarded.push_back({c.from, c.to, c.bytes});
  std::ranges::stable_sort(report.forwarded, std::greater{}, &session::NetForwarded::bytes);
  report.forwarded.resize(std::min(report.forwarded.size(), session::kNetForwardedMax));
  report.others = static_cast<std::uint32_t>(report.pairs.size());
  std::stable_sort(report.pairs.begin(), report.pairs.end(), [](const auto& x, const auto& y) {
    const auto rank = [](const session::NetPair& p) {
      return std::pair(p.path != session::NetPath::None, p.rx_bytes + p.tx_bytes);
    };
    return rank(x) > rank(y);
  });
  report.pairs.resize(std::min(report.pairs.size(), session::kNetPairsMax));
  return out;
}

}  // namespace muster::host
