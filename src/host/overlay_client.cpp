#include "host/overlay_client.h"

#include <arpa/inet.h>
#include <ifaddrs.h>
#include <net/if.h>

#include <algorithm>

#include "base/ipv4.h"
#include "base/log.h"
#include "host/links.h"

namespace muster::host {
namespace {

constexpr Millis kAgain{250}, kCompareEvery{3'000};
constexpr int kTriesMax = 40;  // of kAgain: netd and privd are back long before

Result<netd::Reply> checked(Result<netd::Reply> reply) {
  if (!reply.ok()) return reply;
  if (const auto* failed = std::get_if<netd::Failed>(&*reply)) {
    return error(static_cast<Code>(failed->code), "netd: " + failed->message, "overlay.refused");
  }
  return reply;
}

// What may go on to the control plane.
bool within_bounds(const session::NetReport& report) {
  return report.pairs.size() <= session::kNetPairsMax && report.seen.size() <= session::kNetSeenMax &&
         report.relays.size() <= session::kRelaysMax && report.carried.size() <= session::kNetCarriedMax &&
         report.forwarded.size() <= session::kNetForwardedMax &&
         std::all_of(report.pairs.begin(), report.pairs.end(), [](const auto& pair) {
           return pair.tries.size() <= session::kNetTriesMax && pair.relays.size() <= session::kRelaysMax;
         });
}

std::vector<netd::RelayAddress> relay_addresses(const std::vector<std::string>& relays) {
  std::vector<netd::RelayAddress> out;
  for (const auto& text : relays)
    if (auto at = netd::parse_relay(text)) out.push_back(std::move(*at));
  return out;
}

}  // namespace

std::vector<std::string> private_endpoints(std::uint16_t port) {
  std::vector<std::string> out;
  ifaddrs* list = nullptr;
  if (port == 0 || getifaddrs(&list) != 0) return out;
  std::set<std::string> left_out;
  for (const Link& link : Links().list())
    if (link.what != Link::What::Plain) left_out.insert(link.name);
  for (const ifaddrs* each = list; each != nullptr && out.size() < 8; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || each->ifa_addr->sa_family != AF_INET || (each->ifa_flags & IFF_LOOPBACK) != 0 ||
        (each->ifa_flags & IFF_UP) == 0)
      continue;
    const std::string_view name = each->ifa_name;  // "eth0:1" for one of several addresses
    if (left_out.contains(std::string(name.substr(0, name.find(':'))))) continue;
    const auto ip = ntohl(reinterpret_cast<const sockaddr_in*>(each->ifa_addr)->sin_addr.s_addr);
    if (!is_private(ip)) continue;
    in_addr raw{htonl(ip)};
    char text[INET_ADDRSTRLEN] = {};
    inet_ntop(AF_INET, &raw, text, sizeof text);
    out.push_back(std::string(text) + ":" + std::to_string(port));
  }
  freeifaddrs(list);
  return out;
}

OverlayClient::OverlayClient(Poller& poller, PrivdClient& privd, std::string socket, std::string store,
                             OverlayTrust trust)
    : poller_(poller), privd_(privd), path_(std::move(socket)), store_(std::move(store)), trust_(std::move(trust)) {
  connect();
  look();
}

OverlayClient::~OverlayClient() {
  *alive_ = false;
  if (fd_) poller_.unwatch(fd_.get());
  if (retry_ != 0) poller_.cancel(retry_);
}

std::vector<std::string> OverlayClient::lan_endpoints() const {
  return private_endpoints(udp_port_);
}

void OverlayClient::connect() {
  retry_ = 0;
  auto fd = connect_unix(path_, SocketKind::Seqpacket);
  if (!fd.ok() || !set_blocking(fd->get(), false).ok()) {
    retry_ = poller_.after(Millis(300), [this] { connect(); });
    return;
  }
  fd_ = std::move(*fd);
  poller_.watch(fd_.get(), true, false, [this](Poller::Ready) { on_readable(); });
  send(netd::GetInfo{}, [this](Result<netd::Reply> reply) {
    if (const auto* info = reply.ok() ? std::get_if<netd::Info>(&*reply) : nullptr) udp_port_ = info->udp_port;
  });
  if (mapped_) tell_mapped();
  for (const auto& [lease, known] : known_) {
    announce(lease, 0, [lease = lease](const Result<Attached>& done) {
      if (!done.ok())
        log_warn("agent", "{}: netd could not be told its network again: {}", lease.str(), done.error().message);
    });
  }
}

void OverlayClient::set_mapped(netd::SetMapped mapped) {
  if (mapped == mapped_) return;
  mapped_ = std::move(mapped);
  if (fd_) tell_mapped();
}

// A netd that is older than this agent knows no such request, and members get in where they did before.
void OverlayClient::tell_mapped() {
  send(*mapped_, [](const Result<netd::Reply>& reply) {
    if (!reply.ok()) log_warn("agent", "netd does not take what the router granted: {}", reply.error().message);
  });
}

void OverlayClient::look() {
  std::erase_if(networks_, [&](const auto& each) { return !known_.contains(each.first); });
  std::erase_if(paths_, [&](const auto& each) { return !known_.contains(each.first); });
  for (const auto& [lease, known] : known_) {
    if (!known.configured || !fd_) continue;
    send(netd::GetStats{lease.str()}, [this, lease = lease](Result<netd::Reply> reply) {
      const auto* stats = reply.ok() ? std::get_if<netd::Stats>(&*reply) : nullptr;
      if (stats != nullptr && known_.contains(lease)) networks_[lease] = *stats;
    });
    send(netd::GetPaths{lease.str()}, [this, lease = lease](Result<netd::Reply> reply) {
      auto* paths = reply.ok() ? std::get_if<netd::Paths>(&*reply) : nullptr;
      if (paths == nullptr || !known_.contains(lease) || !within_bounds(paths->report)) return;
      if (paths->report.udp_port != 0) udp_port_ = paths->report.udp_port;  // netd takes another one when it has moved
      paths->report.lease = lease;
      paths_[lease] = std::move(*paths);
    });
  }
  poller_.after(kCompareEvery, [this, alive = alive_] {
    if (*alive) look();
  });
}

void OverlayClient::lost() {
  if (!fd_) return;
  poller_.unwatch(fd_.get());
  fd_.reset();
  log_warn("agent", "lost netd; it is being restarted");
  auto waiting = std::move(waiting_);
  waiting_.clear();
  if (retry_ == 0) retry_ = poller_.after(Millis(100), [this] { connect(); });
  for (auto& done : waiting) done(error(Code::Unavailable, "netd went away", "netd.gone"));
}

void OverlayClient::on_readable() {
  while (fd_) {
    auto message = receive_large(fd_.get());
    if (!message.ok() && message.error().code == Code::NotFound) return;
    if (!message.ok() || message->text.empty() || waiting_.empty()) return lost();
    auto done = std::move(waiting_.front());
    waiting_.pop_front();
    done(checked(netd::decode_reply(message->text)));
  }
}

void OverlayClient::send(const netd::Request& request, Done done, int fd) {
  if (!fd_) {
    poller_.post([done = std::move(done)] { done(error(Code::Unavailable, "netd is not running", "netd.gone")); });
    return;
  }
  const Status sent = send_large(fd_.get(), netd::encode(request), fd >= 0 ? std::vector<int>{fd} : std::vector<int>{});
  if (!sent.ok()) {
    poller_.post([done = std::move(done), why = sent.error()] { done(why); });
    return;
  }
  waiting_.push_back(std::move(done));
}

void OverlayClient::hand_over(LeaseId lease, std::function<void(Result<Bytes>)> done) {
  Verb verb;
  verb.kind = VerbKind::Tun;
  verb.lease = lease.str();
  privd_.call(std::move(verb), [this, lease, done = std::move(done)](Result<PrivdReply> reply) {
    // Held already: netd kept the descriptor while we were away.
    const bool held = !reply.ok() && reply.error().field == "tun.held";
    if (!reply.ok() && !held) return done(reply.error());
    if (!held && reply->fds.empty()) return done(error(Code::Internal, "privd sent no TUN", "overlay.tun"));
    send(
        netd::AddLease{lease.str()},
        [done](Result<netd::Reply> answer) {
          if (!answer.ok()) return done(answer.error());
          const auto* key = std::get_if<netd::LeaseKey>(&*answer);
          if (key == nullptr) return done(error(Code::Internal, "netd gave an unexpected answer", "overlay.attach"));
          done(key->public_key);
        },
        held ? -1 : reply->fds[0].get());
  });
}

// Until the control plane says more, what was in force before stays in force. netd itself refuses older rosters than it
// has seen.
void OverlayClient::restore(LeaseId lease, Known& known) {
  auto kept = store_.load(lease);
  if (kept.ok() && kept->configured.address == known.attach.address &&
      kept->configured.prefix_bits == known.attach.prefix_bits) {
    auto& [configured, relays] = *kept;
    configured.machine_ca_pem = trust_.relay_ca_pem;
    configured.relay_ca_pem = trust_.relay_ca_pem;
    configured.relay_server_name = trust_.relay_server_name;
    known.configured = std::move(configured);
    known.relays = std::move(relays);
  } else if (kept.ok() || kept.error().code != Code::NotFound) {
    log_warn("agent", "{}", kept.ok() ? lease.str() + ": the kept overlay has another address" : kept.error().message);
    store_.remove(lease);
  }
}

void OverlayClient::attach(const Attach& attach, std::function<void(Result<Attached>)> done) {
  Known& known = known_[attach.lease];
  known.attach = attach;
  if (!known.configured) restore(attach.lease, known);
  announce(attach.lease, 0, std::move(done));
}

void OverlayClient::announce(LeaseId lease, int tries, std::function<void(Result<Attached>)> done) {
  hand_over(lease, [this, lease, tries, done = std::move(done)](Result<Bytes> key) mutable {
    const auto it = known_.find(lease);
    if (it == known_.end()) return done(error(Code::Cancelled, "the lease has ended", "overlay.missing"));
    if (!key.ok() && key.error().code == Code::Unavailable && tries < kTriesMax) {
      poller_.after(kAgain, [this, lease, tries, done = std::move(done), alive = alive_]() mutable {
        if (*alive) announce(lease, tries + 1, std::move(done));
      });
      return;
    }
    if (!key.ok()) return done(key.error());
    if (!it->second.configured) return done(Attached{std::move(*key), 0});
    const Known told = it->second;  // `done` may change what is known
    send(*told.configured, [lease, key = std::move(*key), done = std::move(done)](Result<netd::Reply> reply) {
      const auto* configured = reply.ok() ? std::get_if<netd::Configured>(&*reply) : nullptr;
      if (!reply.ok()) log_warn("agent", "{}: {}", lease.str(), reply.error().message);
      if (configured != nullptr)
        log_info("agent", "{}: its network is set again, roster {}", lease.str(), configured->epoch);
      done(Attached{key, configured == nullptr ? 0 : configured->epoch});
    });
    send_relays(lease, told);
  });
}

// A netd that is older than this agent knows no such request, and stays with the relays of Configure.
void OverlayClient::send_relays(LeaseId lease, const Known& known) {
  if (known.relays.relays.empty()) return;
  send(known.relays, [lease](const Result<netd::Reply>& reply) {
    if (!reply.ok())
      log_warn("agent", "{}: netd does not take the list of relays: {}", lease.str(), reply.error().message);
  });
}

void OverlayClient::configure(const agent::ConfigureNetwork& network, const Bytes& roster_key,
                              std::function<void(Status)> done) {
  const auto it = known_.find(network.lease);
  if (it == known_.end())
    return done(error(Code::FailedPrecondition, "the lease has no overlay yet", "overlay.missing"));
  netd::Configure request;
  request.lease = network.lease.str();
  request.address = it->second.attach.address;
  request.prefix_bits = it->second.attach.prefix_bits;
  request.roster = network.roster.bytes;
  request.signatures = network.roster.signatures;
  request.signers = {roster_key};
  request.relays = relay_addresses(network.relays);
  request.machine_ca_pem = trust_.relay_ca_pem;
  request.machines = network.roster.machines;
  request.relay_ca_pem = trust_.relay_ca_pem;
  request.relay_server_name = trust_.relay_server_name;
  request.relay_token = network.relay_token;
  request.psk = network.psk;
  if (it->second.configured) {  // what is not said again stays as it was, also for a restarted netd
    if (request.relay_token.empty()) request.relay_token = it->second.configured->relay_token;
    if (request.psk.empty()) request.psk = it->second.configured->psk;
  }
  it->second.configured = request;
  if (!network.grants.empty()) it->second.relays = {request.lease, network.grants};
  // Before netd takes it: what is kept is never older than what is in force.
  if (const Status kept = store_.save(network.lease, {request, it->second.relays}); !kept.ok())
    log_warn("agent", "{}: its network would not come back by itself: {}", network.lease.str(), kept.error().message);
  send(request, [done = std::move(done)](Result<netd::Reply> reply) {
    if (!reply.ok()) return done(reply.error());
    if (const auto* configured = std::get_if<netd::Configured>(&*reply);
        configured != nullptr && configured->rejected > 0) {
      log_warn("agent",
               "{} roster entries carry no genuine overlay key, or no proof that their machine is enrolled, and were "
               "left out",
               configured->rejected);
    }
    done({});
  });
  send_relays(network.lease, it->second);
}

void OverlayClient::believe(const std::string& ca_pem) {
  trust_.relay_ca_pem = ca_pem;
  for (auto& [lease, known] : known_) {
    if (!known.configured) continue;
    known.configured->machine_ca_pem = known.configured->relay_ca_pem = ca_pem;
    send(*known.configured, [lease = lease](Result<netd::Reply> reply) {
      if (!reply.ok()) log_warn("agent", "{}: netd did not take the new roots: {}", lease.str(), reply.error().message);
    });
  }
}

void OverlayClient::detach(LeaseId lease, bool forget_key, std::function<void(Status)> done) {
  const bool was = known_.erase(lease) > 0;
  store_.remove(lease);
  if (!was && !forget_key) return done({});
  send(netd::RemoveLease{lease.str()},
       [done = std::move(done)](Result<netd::Reply> reply) { done(reply.ok() ? Status{} : Status(reply.error())); });
}

}  // namespace muster::host
