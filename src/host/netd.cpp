#include "host/netd.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <set>
#include <thread>
#include <utility>

#include "base/log.h"
#include "crypto/file.h"
#include "crypto/random.h"
#include "host/own_address.h"

namespace muster::host {
namespace {
constexpr std::size_t kOverlaysMax = 256, kAgentsMax = 8;
constexpr Millis kBeat{250};
constexpr std::size_t kMirrorsMax = 2 * overlay::kRelaysMax;  // of some both ports
constexpr Millis kMirrorEvery{20'000}, kMirrorHurry{1'000};   // conntrack forgets after 30 s
constexpr int kMirrorTries = 5;
constexpr int kMirrorSilent = 2;  // questions without an answer: the relay's second port is asked too
constexpr Millis kLookEvery{1'000}, kSlept{3'000}, kSleptLong{10'000};
constexpr int kSocketBuffer = 7 << 20;
constexpr std::size_t kOpenedAhead = 128;
constexpr Millis kPortAgain{10'000};
constexpr const char* kByOwner = "owner";

std::uint64_t steady_us() {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch())
          .count());
}

overlay::Endpoint endpoint_of(const sockaddr_in6& at) {
  if (at.sin6_family == AF_INET) {
    sockaddr_in four{};
    std::memcpy(&four, &at, sizeof four);
    return overlay::Endpoint::udp(ntohl(four.sin_addr.s_addr), ntohs(four.sin_port));
  }
  Ip6 six;
  std::memcpy(six.data(), &at.sin6_addr, six.size());
  return overlay::Endpoint::udp6(six, ntohs(at.sin6_port));
}

}  // namespace

Netd::Netd(NetdOptions options)
    : options_(std::move(options)),
      outside_(options_.network_file),
      faults_(kernel_faults(options_.kernel)),
      large_udp_(options_.udp_large, faults_.udp_segments),
      bandwidth_(options_.bandwidth_file, options_.state_dir + "/carried", options_.state_dir + "/tested"),
      crew_(options_.helpers) {}

Netd::~Netd() {
  leases_.clear();
  for (auto& [fd, owner] : agents_) poller_.unwatch(fd);
  if (udp_) poller_.unwatch(udp_.get());
  if (udp6_) poller_.unwatch(udp6_.get());
  if (listener_) poller_.unwatch(listener_.get());
}

Status Netd::start() {
  if (::mkdir(options_.state_dir.c_str(), 0700) != 0 && errno != EEXIST) {
    return error(Code::Unavailable, "netd cannot create its state directory " + options_.state_dir);
  }
  outside_.owner.refresh();  // before anything is sent
  if (!outside_.owner.now().endpoints.empty()) outside_.mapped = kByOwner;
  TRY_VOID(open_udp());
  poller_.watch(udp_.get(), true, false, [this](Poller::Ready) { read_udp(udp_.get()); });
  open_udp6();
  if (options_.socket_fd >= 0) {
    int listening = 0;
    socklen_t size = sizeof listening;
    if (::getsockopt(options_.socket_fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &size) != 0) {
      return error(Code::InvalidArgument, "the inherited descriptor is no socket");
    }
    if (listening != 0)
      listener_.reset(options_.socket_fd);
    else
      add_agent(Fd(options_.socket_fd));
  } else {
    listener_ = TRY(listen_unix(options_.socket_path, SocketKind::Seqpacket, ::geteuid(), ::getegid(), 0600));
  }
  if (listener_) {
    TRY_VOID(set_blocking(listener_.get(), false));
    poller_.watch(listener_.get(), true, false, [this](Poller::Ready) { accept_agent(); });
  }
  sender_.set_cut(large_udp_.used());
  for (const std::string_view fault : {faults_.udp_segments, faults_.tun_joins, faults_.udp_joins})
    if (!fault.empty()) log_warn("netd", "{}; large packets are off (docs/network.md)", fault);
  bandwidth_.refresh();
  poller_.after(kBeat, [this] { tick(); });
  log_info("netd", "ready, UDP port {}", port_);
  return {};
}

void Netd::run() {
  poller_.run();
}
void Netd::stop() {
  poller_.stop();
}

Status Netd::bind_udp(std::uint16_t port) {
  if (!udp_) udp_ = options_.udp_fd >= 0 ? Fd(std::exchange(options_.udp_fd, -1)) : open_udp_socket();
  if (!udp_) return error(Code::Unavailable, "netd cannot open a UDP socket: " + errno_text(errno));
  sockaddr_in at{};
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  if (::bind(udp_.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0) {
    return error(Code::Unavailable, "UDP port " + std::to_string(port) + " is not free: " + errno_text(errno));
  }
  socklen_t size = sizeof at;
  if (::getsockname(udp_.get(), reinterpret_cast<sockaddr*>(&at), &size) != 0) {
    return error(Code::Unavailable, "netd cannot read its UDP port: " + errno_text(errno));
  }
  port_ = ntohs(at.sin_port);
  if (faults_.udp_joins.empty()) net::UdpReceiver::join_by_kernel(udp_.get());
  sender_.set_fd(udp_.get());
  return {};
}

// Without IPv6 on this machine there is none, and no other is missed.
void Netd::open_udp6() {
  udp6_ = options_.udp6_fd >= 0 ? Fd(std::exchange(options_.udp6_fd, -1)) : open_udp_socket(UdpFamily::Six);
  if (!udp6_) return;
  for (const std::uint16_t port : {port_, std::uint16_t{0}}) {
    sockaddr_in6 at{};
    at.sin6_family = AF_INET6;
    at.sin6_port = htons(port);
    socklen_t size = sizeof at;
    if (::bind(udp6_.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0 ||
        ::getsockname(udp6_.get(), reinterpret_cast<sockaddr*>(&at), &size) != 0)
      continue;
    port6_ = ntohs(at.sin6_port);
    if (faults_.udp_joins.empty()) net::UdpReceiver::join_by_kernel(udp6_.get());
    sender_.set_fd6(udp6_.get());
    poller_.watch(udp6_.get(), true, false, [this](Poller::Ready) { read_udp(udp6_.get()); });
    return;
  }
  udp6_.reset();
}

Fd open_udp_socket(UdpFamily family) {
  const bool six = family == UdpFamily::Six;
  Fd fd(::socket(six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fd;
  const int on = 1, never = six ? IPV6_PMTUDISC_PROBE : IP_PMTUDISC_PROBE;
  if (six) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
  ::setsockopt(fd.get(), six ? IPPROTO_IPV6 : IPPROTO_IP, six ? IPV6_MTU_DISCOVER : IP_MTU_DISCOVER, &never,
               sizeof never);
  // A wish: without privileges the kernel caps them.
  for (const auto& [forced, plain] : {std::pair(SO_RCVBUFFORCE, SO_RCVBUF), std::pair(SO_SNDBUFFORCE, SO_SNDBUF)}) {
    if (::setsockopt(fd.get(), SOL_SOCKET, forced, &kSocketBuffer, sizeof kSocketBuffer) != 0)
      ::setsockopt(fd.get(), SOL_SOCKET, plain, &kSocketBuffer, sizeof kSocketBuffer);
  }
  return fd;
}

Status Netd::open_udp() {
  const std::string path = options_.state_dir + "/udp_port";
  if (options_.udp_port != 0) return bind_udp(options_.udp_port);
  if (const std::uint16_t wanted = fixed_port(); wanted != 0) {
    const Status bound = bind_udp(wanted);
    if (bound.ok()) return {};
    log_warn("netd", "{}; the owner wants it, another one is used until it is free", bound.error().message);
    asked_port_ = wanted;
  }
  const auto stored = crypto::read_secret_file(path, 16);
  if (stored.ok() && stored->size() == 2) {
    const auto last = static_cast<std::uint16_t>((*stored)[0] << 8 | (*stored)[1]);
    if (bind_udp(last).ok()) return {};
  }
  TRY_VOID(bind_udp(0));
  return keep_port();
}

Status Netd::keep_port() const {
  const Bytes raw = {static_cast<std::uint8_t>(port_ >> 8), static_cast<std::uint8_t>(port_)};
  return crypto::write_secret_file(options_.state_dir + "/udp_port", raw);
}

void Netd::accept_agent() {
  Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) return;
  const auto peer = peer_of(fd.get());
  const uid_t allowed = options_.agent_uid == static_cast<uid_t>(-1) ? ::geteuid() : options_.agent_uid;
  if (!peer.ok() || (peer->uid != 0 && peer->uid != allowed) || agents_.size() >= kAgentsMax) {
    log_warn("netd", "a connection that is not the agent's was refused");
    return;
  }
  add_agent(std::move(fd));
}

void Netd::add_agent(Fd fd) {
  const int number = fd.get();
  if (!set_blocking(number, false).ok()) return;
  agents_.emplace(number, std::move(fd));
  poller_.watch(number, true, false, [this, number](Poller::Ready) { serve_agent(number); });
}

void Netd::serve_agent(int fd) {
  auto message = receive_large(fd);
  if (!message.ok() && message.error().code == Code::NotFound) return;
  const bool closed = !message.ok() || (message->text.empty() && message->fds.empty());
  Status sent;
  if (!closed) {
    const auto request = netd::decode_request(message->text);
    const netd::Reply reply =
        request.ok()
            ? answer(*request, message->fds)
            : netd::Reply(netd::Failed{static_cast<std::uint8_t>(request.error().code), request.error().message});
    sent = send_large(fd, netd::encode(reply));
  }
  if (closed || !sent.ok()) {
    poller_.unwatch(fd);
    agents_.erase(fd);
  }
}

netd::Reply Netd::answer(const netd::Request& request, std::vector<Fd>& fds) {
  auto reply = std::visit([&](const auto& r) { return handle(r, fds); }, request);
  if (reply.ok()) return std::move(reply).value();
  return netd::Failed{static_cast<std::uint8_t>(reply.error().code), reply.error().message};
}

Result<NetdLease*> Netd::find(const std::string& lease) {
  const auto it = leases_.find(lease);
  if (it == leases_.end())
    return error(Code::NotFound, "netd does not know the lease " + lease.substr(0, 64) + "; add it again");
  return it->second.get();
}

NetdLease::Shared Netd::shared() {
  return {sender_, poller_,         bandwidth_,         large_udp_,         outside_,
          crew_,   options_.pacing, options_.udp_relay, options_.tun_large, faults_.tun_joins};
}

Result<netd::Reply> Netd::handle(const netd::AddLease& request, std::vector<Fd>& fds) {
  if (!netd::valid_lease_name(request.lease))
    return error(Code::InvalidArgument, "a lease name has 1 to 64 of a-z, 0-9 and -");
  auto it = leases_.find(request.lease);
  if (it == leases_.end()) {
    if (leases_.size() >= kOverlaysMax)
      return error(Code::ResourceExhausted, "netd holds 256 leases already; remove one first");
    it = leases_.emplace(request.lease, TRY(NetdLease::open(request.lease, options_.state_dir, shared()))).first;
    it->second->set_public(public_endpoints(), read_clocks());
  }
  if (!fds.empty()) TRY_VOID(it->second->set_tun(std::move(fds.front())));
  const auto& key = it->second->public_key();
  return netd::Reply(netd::LeaseKey{Bytes(key.begin(), key.end())});
}

Result<netd::Reply> Netd::handle(const netd::Configure& request, std::vector<Fd>&) {
  NetdLease* lease = TRY(find(request.lease));
  auto configured = lease->configure(request);
  sender_.flush();
  return netd::Reply(TRY(std::move(configured)));
}

Result<netd::Reply> Netd::handle(const netd::RemoveLease& request, std::vector<Fd>&) {
  if (!netd::valid_lease_name(request.lease))
    return error(Code::InvalidArgument, "a lease name has 1 to 64 of a-z, 0-9 and -");
  auto it = leases_.find(request.lease);
  // Unknown after a restart: its files may still be there.
  if (it == leases_.end())
    it = leases_.emplace(request.lease, TRY(NetdLease::open(request.lease, options_.state_dir, shared()))).first;
  it->second->erase_files();
  leases_.erase(it);
  return netd::Reply(netd::Done{});
}

Result<netd::Reply> Netd::handle(const netd::GetStats& request, std::vector<Fd>&) {
  return netd::Reply(TRY(find(request.lease))->stats());
}

Result<netd::Reply> Netd::handle(const netd::GetInfo&, std::vector<Fd>&) {
  netd::Info info;
  info.udp_port = port_;
  for (const auto& [name, lease] : leases_) {
    info.leases.push_back(
        {name, Bytes(lease->public_key().begin(), lease->public_key().end()), lease->has_tun(), lease->configured()});
  }
  return netd::Reply(std::move(info));
}

Result<netd::Reply> Netd::handle(const netd::GetPaths& request, std::vector<Fd>&) {
  netd::Paths paths = TRY(find(request.lease))->paths(read_clocks(), [this](std::uint32_t ip, std::uint16_t port) {
    const auto mirror = mirrors_.find({ip, port});
    return mirror == mirrors_.end() ? 0 : mirror->second.rtt_us;
  });
  paths.report.udp_port = port_;
  return netd::Reply(std::move(paths));
}

Result<netd::Reply> Netd::handle(const netd::SetRelays& request, std::vector<Fd>&) {
  NetdLease* lease = TRY(find(request.lease));
  TRY_VOID(lease->set_relays(request));
  sender_.flush();
  return netd::Reply(netd::Done{});
}

Result<netd::Reply> Netd::handle(const netd::SetMapped& request, std::vector<Fd>&) {
  if (request.places.size() > netd::kMappedMax || request.how.size() > session::kNetMappedMax)
    return error(Code::InvalidArgument, "a router leads from two places at most to this machine");
  mapped_ = request;
  outside_.mapped = outside_.owner.now().endpoints.empty() ? mapped_.how : kByOwner;
  tell_public(read_clocks());
  sender_.flush();
  return netd::Reply(netd::Done{});
}

void Netd::read_udp(int fd) {
  if (received_.receive(fd) == 0) return;
  const Now now = read_clocks();
  read_many(now);
  for (auto& [name, lease] : leases_) lease->flush();
  sender_.flush();
}

// As many at a time as stay in the nearest caches.
void Netd::read_many(const Now& now) {
  senders_.clear();
  arrived_.clear();
  received_.each(endpoint_of, [&](const overlay::Endpoint& from, ByteView datagram) {
    senders_.push_back(from);
    arrived_.push_back(datagram);
  });
  const std::size_t at_once = crew_.helps() ? kOpenedAhead : overlay::Device::kHeldAlone;
  for (std::size_t at = 0; at < arrived_.size(); at += at_once) {
    const auto some = std::span(arrived_).subspan(at, std::min(at_once, arrived_.size() - at));
    for (auto& [name, lease] : leases_) lease->open_ahead(some, now);
    for (std::size_t i = 0; i < some.size(); ++i) from_udp(some[i], senders_[at + i], now);
  }
  for (auto& [name, lease] : leases_) lease->open_ahead({}, now);  // the memory is another datagram's next time
}

// Often enough that a NAT does not forget the mapping that members were told, and at once when a relay came up: perhaps
// we are somewhere else now.
void Netd::ask_mirrors(const Now& now) {
  std::set<std::pair<std::uint32_t, std::uint16_t>> wanted;
  bool fresh = std::exchange(ask_now_, false);
  for (const auto& [name, lease] : leases_) {
    fresh = lease->take_relay_came_up() || fresh;
    for (const auto& [at, second_port] : lease->mirrors()) {
      if (wanted.size() + 1 >= kMirrorsMax) continue;
      wanted.emplace(at.ip, at.port);
      const auto first = mirrors_.find({at.ip, at.port});
      if (second_port != 0 && first != mirrors_.end() && first->second.unanswered >= kMirrorSilent)
        wanted.emplace(at.ip, second_port);
    }
  }
  bool changed = std::erase_if(mirrors_, [&](const auto& each) { return !wanted.contains(each.first); }) > 0;
  if (!at_ && !wanted.empty()) at_ = own_address(wanted.begin()->first);  // before anything leaves from there
  for (const auto& at : wanted) {
    Mirror& mirror = mirrors_[at];
    if (now.lease < mirror.next_ask && !fresh) continue;
    const bool hurry = mirror.unanswered < kMirrorTries;
    if (!hurry && mirror.seen) mirror.seen.reset(), mirror.rtt_us = 0, changed = true;
    mirror.asked_us = steady_us();
    ++mirror.unanswered;
    crypto::random_fill(mirror.transaction);
    mirror.next_ask = now.lease + (hurry ? kMirrorHurry : kMirrorEvery);
    sender_.send(at.first, at.second, overlay::stun_request(mirror.transaction));
  }
  if (changed) tell_public(now);
}

// True: it was an answer of a relay's mirror, or pretended to be.
bool Netd::from_mirror(ByteView datagram, std::uint32_t ip, std::uint16_t port, const Now& now) {
  if (!overlay::is_stun_answer(datagram)) return false;
  const auto it = mirrors_.find({ip, port});
  if (it == mirrors_.end()) return true;
  const auto seen = overlay::read_stun_answer(datagram, it->second.transaction);
  if (!seen) return true;
  if (const std::uint64_t asked = std::exchange(it->second.asked_us, 0); asked != 0) {
    const auto took = static_cast<std::uint32_t>(std::clamp<std::uint64_t>(steady_us() - asked, 1, UINT32_MAX));
    std::uint32_t& rtt = it->second.rtt_us;
    rtt = rtt == 0 ? took : static_cast<std::uint32_t>((std::uint64_t{rtt} * 3 + took) / 4);
  }
  it->second.unanswered = 0;
  it->second.next_ask = now.lease + kMirrorEvery + Millis(crypto::random_u32() % 5'000);
  if (it->second.seen == seen) return true;
  it->second.seen = seen;
  tell_public(now);
  return true;
}

// What others are told: first what the owner says, then what the router granted, then how relays see us.
std::vector<overlay::Endpoint> Netd::public_endpoints() {
  std::vector<overlay::Endpoint> seen = outside_.owner.now().endpoints;
  for (const session::NetPlace& place : mapped_.places) {
    if (!place.six.empty()) continue;
    const auto at = overlay::Endpoint::udp(place.ip, place.port);
    if (std::find(seen.begin(), seen.end(), at) == seen.end()) seen.push_back(at);
  }
  // Seen from the far end of a tunnel that is none of ours, and no way leads there.
  const LeaseTime now = read_clocks().lease;
  for (const auto& [at, mirror] : mirrors_)
    if (mirror.seen && outside_.ways.may_reach(overlay::Endpoint::udp(at.first, at.second), now) &&
        std::find(seen.begin(), seen.end(), *mirror.seen) == seen.end())
      seen.push_back(*mirror.seen);
  if (at6_ && port6_ != 0 && outside_.ways.may_reach(overlay::Endpoint::udp6(kFar6, 9), now))
    seen.push_back(overlay::Endpoint::udp6(*at6_, port6_));  // no NAT, no mirror
  return seen;
}

void Netd::tell_public(const Now& now) {
  for (auto& [name, lease] : leases_) lease->set_public(public_endpoints(), now);
}

// Another network, another address: what goes through the old one is dead, and nobody will say so. After a sleep the
// world has forgotten us as well.
void Netd::look_around(const Now& now) {
  const Millis passed = now.lease - std::exchange(ticked_, now.lease);
  const bool slept = passed >= kSlept && passed < now.lease - LeaseTime{};
  if (!slept && now.lease < next_look_) return;
  next_look_ = now.lease + kLookEvery;
  const auto six = own_address6();
  const auto four = mirrors_.empty() ? at_ : own_address(mirrors_.begin()->first.first);
  const bool moved = (at_ && four && *at_ != *four) || (at6_ && six && *at6_ != *six);
  const bool told = at6_ != six;
  if (four) at_ = four;
  at6_ = six;
  if (moved || slept) {
    log_info("netd", "{}: every way is tried again", moved ? "this machine has another address" : "awake again");
    ask_now_ = true;
    if (moved) take_another_port();
    for (auto& [name, lease] : leases_) lease->moved(moved, passed >= kSleptLong, now);
  }
  if (told || moved) tell_public(now);
}

// A router holds the old address's mappings for as long as anybody sends to them, and where it keeps ports they are in
// the way of the new address's: each of its flows would get another port, and nobody knew where to send to. From a new
// port there are no old mappings.
void Netd::take_another_port() {
  if (fixed_port() != 0) return;  // somebody's word, perhaps forwarded by the router
  const std::uint16_t before = port_;
  if (take_port(0)) log_info("netd", "UDP port {} now, {} before", port_, before);
}

std::uint16_t Netd::fixed_port() const {
  return options_.udp_port != 0 ? options_.udp_port : outside_.owner.now().udp_port;
}

// False: it is not free, and all is as before.
bool Netd::take_port(std::uint16_t port) {
  Fd old = std::move(udp_);
  poller_.unwatch(old.get());
  if (!options_.spare_udp_fds.empty()) {
    udp_ = Fd(options_.spare_udp_fds.back());
    options_.spare_udp_fds.pop_back();
  } else {
    udp_ = open_udp_socket();
  }
  const std::uint16_t before = port_;
  const Status bound = udp_ ? bind_udp(port) : error(Code::Unavailable, errno_text(errno));
  if (!bound.ok()) {
    if (port != asked_port_ || port == 0) log_warn("netd", "no other UDP port: {}", bound.error().message);
    if (udp_) options_.spare_udp_fds.push_back(udp_.release());  // as good as before
    udp_ = std::move(old);
    port_ = before;
    sender_.set_fd(udp_.get());
  } else {
    if (const Status kept = keep_port(); !kept.ok()) log_warn("netd", "{}", kept.error().message);
    for (auto& [at, mirror] : mirrors_) mirror.seen.reset(), mirror.unanswered = 0;
  }
  poller_.watch(udp_.get(), true, false, [this](Poller::Ready) { read_udp(udp_.get()); });
  return bound.ok();
}

// What the owner says counts at once, also the port that he forwards; one that is not free is tried again.
void Netd::obey_owner(const Now& now) {
  const bool changed = outside_.owner.refresh();
  if (changed || (asked_port_ != 0 && now.lease >= next_port_try_)) {
    const std::uint16_t wanted = options_.udp_port != 0 ? 0 : outside_.owner.now().udp_port;
    const bool took = wanted != 0 && wanted != port_ && take_port(wanted);
    if (took) log_info("netd", "UDP port {} now, as the owner wants it", port_);
    asked_port_ = wanted != 0 && wanted != port_ ? wanted : 0;
    next_port_try_ = now.lease + kPortAgain;
    if (took) ask_now_ = true;
    if (took && udp6_) {  // the same number by IPv6
      poller_.unwatch(udp6_.get());
      udp6_.reset();
      open_udp6();
    }
  }
  if (!changed) return;
  outside_.mapped = outside_.owner.now().endpoints.empty() ? mapped_.how : kByOwner;
  for (auto& [name, lease] : leases_) lease->obey_owner(now);
  tell_public(now);
}

// Whose it is shows in its index or its first MAC: every lease but one drops it unread.
void Netd::from_udp(ByteView datagram, const overlay::Endpoint& from, const Now& now) {
  const bool six = from.kind == overlay::Endpoint::Kind::Udp6;
  if (overlay::is_udp_relay(datagram)) {
    for (auto& [name, lease] : leases_)
      if (lease->from_udp_relay(from, datagram, now)) return;
    return;
  }
  if ((!six && from_mirror(datagram, from.ip, from.port, now)) || !bandwidth_.admit(datagram, now.lease)) return;
  for (auto& [name, lease] : leases_) {
    if (six)
      lease->from_udp6(from.six, from.port, datagram, now);
    else
      lease->from_udp(from.ip, from.port, datagram, now);
  }
}

void Netd::look_at_large(const Now& now) {
  if (large_udp_.asks_again(now.lease)) sender_.forgive();
  if (sender_.refused()) large_udp_.refused(now.lease);
  if (large_udp_.tick(now.lease)) {
    log_info("netd", "large datagrams: {}", session::text(large_udp_.state()));
    if (large_udp_.state() == session::NetLarge::Lost)
      log_warn("netd", "of what the kernel cut {} % got lost, of what went one by one {} %",
               large_udp_.trial().lost_large(), large_udp_.trial().lost_single());
  }
  // What one of the two sockets refuses, the sender knows.
  sender_.set_cut(large_udp_.used() || large_udp_.state() == session::NetLarge::Refused);
}

void Netd::tick() {
  const Now now = read_clocks();
  look_at_large(now);
  bandwidth_.refresh();
  obey_owner(now);
  look_around(now);
  bandwidth_.carry.tick(now);
  bandwidth_.tests.tick(now);
  ask_mirrors(now);
  for (auto& [name, lease] : leases_) lease->tick(now);
  sender_.flush();
  poller_.after(kBeat, [this] { tick(); });
}

Status run_netd(NetdOptions options) {
  sigset_t ends;
  sigemptyset(&ends);
  sigaddset(&ends, SIGTERM);
  sigaddset(&ends, SIGINT);
  pthread_sigmask(SIG_BLOCK, &ends, nullptr);
  Netd netd(std::move(options));
  TRY_VOID(netd.start());
  const Fd signals(::signalfd(-1, &ends, SFD_CLOEXEC));
  std::thread waiter([&] {
    signalfd_siginfo info;
    while (::read(signals.get(), &info, sizeof info) < 0 && errno == EINTR) {
    }
    netd.stop();
  });
  netd.run();
  waiter.join();
  return {};
}

}  // namespace muster::host
