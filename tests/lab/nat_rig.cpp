// The hands of tests/lab/nat_lab.py: netds as they are shipped (`muster-agent netd-process`), each in a namespace that
// stands for a machine, and clusters of two of them, made one after the other and measured.
//
//   muster-nat-rig AGENT DIR       lines on standard input, JSON lines on standard output
//
//   machine NAME HOST_NS LEASE_NS LAN|- [PROXY_URL]   starts a netd there       -> {"machine":NAME}
//   relay HOST PORT ID [REGION]                       one more muster-relay     -> {"relay":HOST}
//   pair ID A B SECONDS                               ID 1 to 250, once each; different machines side by side -> one
//   line
//   hold ID A B [C...]                                a cluster of those, until dropped; its addresses are
//                                                     100.64.ID.1 and so on -> {"held":ID}
//   look ID                                           the ways from each to each -> {"look":ID,"pairs":[...]}
//   drop ID                                           -> {"dropped":ID}
//   carry NAME on|off                                 its owner lets it carry for others -> {"carry":NAME}
//   stop NAME                                         its netd is killed -> {"stopped":NAME}
//
// First of all the relay's certificate and key and the controller's public key are written to DIR: relay.crt,
// relay.key, controller.pub. A pair is usable with the first echo of a small packet after both were configured, and
// direct when both ends say so; packets go on every 50 ms to see whether one is lost meanwhile. Ends its netds when its
// input ends.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>

#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>
#include <utility>

#include "crypto/cert.h"
#include "host/identity.h"
#include "host/layout.h"
#include "host/netd_client.h"
#include "host/netd_lab.h"
#include "host/tun.h"
#include "overlay/relay_protocol.h"
#include "overlay/roster.h"

namespace {

using namespace muster;
using Clock = std::chrono::steady_clock;
constexpr std::uint32_t kNet = 0x64400000;
constexpr std::size_t kSmall = 64, kFull = 1352;  // with IP and UDP headers the latter fills the tunnel

template <typename T>
T must(Result<T> result) {
  if (!result.ok()) {
    std::cerr << "muster-nat-rig: " << result.error().message << "\n";
    std::exit(1);
  }
  return std::move(*result);
}
void must(const Status& status) {
  if (!status.ok()) {
    std::cerr << "muster-nat-rig: " << status.error().message << "\n";
    std::exit(1);
  }
}
void say(const std::string& line) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  std::cout << line << std::endl;
}

struct Machine {
  std::string host, lease_ns;
  std::uint32_t lan = 0;
  crypto::SigningKey device = crypto::SigningKey::generate();
  pid_t pid = -1;
  std::uint16_t port = 0;
  std::unique_ptr<host::NetdClient> client;

  void start(const std::string& agent, const std::string& dir, const std::string& proxy) {
    const host::Layout layout{dir};
    must(host::make_directories(layout, host::find_accounts()));
    host::Fd listener = must(host::listen_unix(layout.netd_socket(), host::SocketKind::Seqpacket, 0, 0, 0600));
    pid = ::fork();
    if (pid == 0) {
      if (!proxy.empty()) ::setenv("HTTPS_PROXY", proxy.c_str(), 1);
      const int log = ::open((dir + "/netd.log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(log, 1);
      ::dup2(log, 2);
      ::dup2(listener.get(), 3);
      ::fcntl(3, F_SETFD, 0);  // where it is 3 already
      ::execlp("nsenter", "nsenter", ("--net=/run/netns/" + host).c_str(), agent.c_str(), "netd-process", "--state-dir",
               dir.c_str(), nullptr);
      ::_exit(127);
    }
    client = std::make_unique<host::NetdClient>(layout.netd_socket());
    port = must(client->info()).udp_port;
  }
};

// A socket in a machine's lease that sends numbered packets to an echo and remembers which came back.
class Pinger {
 public:
  Pinger(const std::string& ns, std::uint32_t to, std::uint16_t port) {
    host::lab::inside(ns, [&] { fd_ = host::lab::Echo::bound_udp(0); });
    const timeval timeout{0, 20'000};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(to);
    at.sin_port = htons(port);
    ::connect(fd_, reinterpret_cast<const sockaddr*>(&at), sizeof at);
  }
  ~Pinger() { ::close(fd_); }
  Pinger(const Pinger&) = delete;
  Pinger& operator=(const Pinger&) = delete;
  void send(std::size_t size) {
    std::vector<std::uint32_t> data(size / 4, sent_);
    if (::send(fd_, data.data(), data.size() * 4, 0) > 0) ++sent_;
  }
  bool receive() {  // waits 20 ms at most
    std::vector<std::uint32_t> data(512);
    const ssize_t n = ::recv(fd_, data.data(), data.size() * 4, 0);
    if (n > 0) ++came_;
    return n > 0;
  }
  std::uint32_t sent() const { return sent_; }
  std::uint32_t came() const { return came_; }
  void restart() { sent_ = came_ = 0; }

 private:
  int fd_ = -1;
  std::uint32_t sent_ = 0, came_ = 0;
};

std::string_view name_of(session::NetPath path) {
  static constexpr std::array<std::string_view, 5> kNames = {"none", "relay", "lan", "direct", "peer"};
  return kNames.at(static_cast<std::size_t>(path));
}

class Rig {
 public:
  Rig(std::string agent, std::string dir) : agent_(std::move(agent)), dir_(std::move(dir)) {
    const WallTime now = read_clocks().wall;
    ca_ = must(crypto::create_ca("lab", now));
    const auto server =
        must(crypto::issue_server_certificate(ca_, crypto::ServerRole::Relay, std::string(net::kRelayName),
                                              {std::string(net::kRelayName)}, now, Millis(86'400'000)));
    std::ofstream(dir_ + "/relay.crt") << server.cert_pem << ca_.cert_pem;
    std::ofstream(dir_ + "/relay.key") << server.key_pem;
    std::ofstream(dir_ + "/controller.pub") << base64(controller_.public_key()) << "\n";
    say("{\"ready\":true}");
  }
  ~Rig() {
    for (auto& thread : threads_) thread.join();
    for (const auto& [name, m] : machines_)
      if (m->pid > 0) ::kill(m->pid, SIGTERM);
    for (const auto& [name, m] : machines_)
      if (m->pid > 0) ::waitpid(m->pid, nullptr, 0);
  }
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  void obey(const std::string& line) {
    std::istringstream in(line);
    std::string verb;
    in >> verb;
    if (verb == "machine") {
      std::string name, lan, proxy;
      auto m = std::make_unique<Machine>();
      in >> name >> m->host >> m->lease_ns >> lan >> proxy;
      in_addr at{};
      if (::inet_pton(AF_INET, lan.c_str(), &at) == 1) m->lan = ntohl(at.s_addr);
      m->start(agent_, dir_ + "/" + name, proxy);
      machines_[name] = std::move(m);
      say(fmt::format("{{\"machine\":\"{}\"}}", name));
    } else if (verb == "relay") {
      std::string host, port, number, region;
      in >> host >> port >> number >> region;
      relays_.push_back({host + ":" + port, region, to_bytes(number)});
      say(fmt::format("{{\"relay\":\"{}\"}}", host));
    } else if (verb == "pair") {
      std::uint32_t id = 0;
      std::string a, b;
      int seconds = 0;
      in >> id >> a >> b >> seconds;
      if (!machines_.contains(a) || !machines_.contains(b)) must(error(Code::NotFound, "no such machine: " + line));
      threads_.emplace_back([this, id, a, b, seconds] { pair(id, a, b, seconds); });
    } else if (verb == "hold") {
      std::uint32_t id = 0;
      in >> id;
      std::vector<Machine*> members;
      for (std::string name; in >> name;) {
        if (!machines_.contains(name)) must(error(Code::NotFound, "no such machine: " + line));
        members.push_back(machines_.at(name).get());
      }
      configure(id, members, make(id, members));
      held_[id] = members;
      say(fmt::format("{{\"held\":{}}}", id));
    } else if (verb == "look") {
      std::uint32_t id = 0;
      in >> id;
      look(id);
    } else if (verb == "drop") {
      std::uint32_t id = 0;
      in >> id;
      drop(id, held_[id]);
      held_.erase(id);
      say(fmt::format("{{\"dropped\":{}}}", id));
    } else if (verb == "carry" || verb == "stop") {
      std::string name, value;
      in >> name >> value;
      if (!machines_.contains(name)) must(error(Code::NotFound, "no such machine: " + line));
      Machine& m = *machines_.at(name);
      if (verb == "stop") {
        ::kill(m.pid, SIGKILL);
        ::waitpid(std::exchange(m.pid, -1), nullptr, 0);
        say(fmt::format("{{\"stopped\":\"{}\"}}", name));
        return;
      }
      std::ofstream(host::Layout{dir_ + "/" + name}.bandwidth()) << "0 0 " << (value == "on" ? 1 : 0) << " 0 0\n";
      say(fmt::format("{{\"carry\":\"{}\"}}", name));
    } else {
      must(error(Code::InvalidArgument, "not understood: " + line));
    }
  }

 private:
  static std::string lease_of(std::uint32_t id) { return "lease-" + std::to_string(id); }
  static std::string tun_of(std::uint32_t id) { return "m" + std::to_string(id); }

  // A cluster's members, each with a TUN and a key.
  overlay::Roster make(std::uint32_t id, const std::vector<Machine*>& machines) {
    const std::uint32_t net = kNet + id * 256;
    overlay::Roster roster{id, 1, 1, {}};
    for (std::uint32_t i = 0; i < machines.size(); ++i) {
      Machine& m = *machines[i];
      const host::Fd fd =
          must(host::create_tun("/run/netns/" + m.lease_ns, host::TunSpec{tun_of(id), net + i + 1, 24, 1380}));
      overlay::RosterMember member;
      member.slot = member.node = i + 1;
      member.address = net + i + 1;
      member.overlay_key = *crypto::key32(must(m.client->add_lease(lease_of(id), fd.get())));
      member.device_key = m.device.public_key();
      member.overlay_signature = overlay::sign_overlay_key(m.device, id, member.epoch, member.overlay_key);
      if (m.lan != 0) member.lan = {overlay::Endpoint::udp(m.lan, m.port)};
      roster.members.push_back(member);
    }
    return roster;
  }
  void configure(std::uint32_t id, const std::vector<Machine*>& machines, const overlay::Roster& roster) {
    const Bytes bytes = overlay::encode_roster(roster);
    for (std::size_t i = 0; i < machines.size(); ++i) {
      host::netd::Configure c;
      c.lease = lease_of(id);
      c.address = roster.members[i].address;
      c.prefix_bits = 24;
      c.roster = bytes;
      c.signatures = {overlay::sign_roster(controller_, bytes)};
      c.signers = {Bytes(controller_.public_key().begin(), controller_.public_key().end())};
      c.relay_ca_pem = ca_.cert_pem;
      must(machines[i]->client->configure(c));
      host::netd::SetRelays grants{c.lease, relays_};
      for (session::RelayGrant& each : grants.relays)
        each.token = overlay::sign_relay_token(controller_, {as_string(each.token), id, roster.members[i].overlay_key,
                                                             read_clocks().wall + Millis(3'600'000)});
      must(machines[i]->client->set_relays(grants));
    }
  }
  static void drop(std::uint32_t id, const std::vector<Machine*>& machines) {
    for (Machine* m : machines) {
      if (m->pid > 0) must(m->client->remove_lease(lease_of(id)));
      (void)host::remove_tun("/run/netns/" + m->lease_ns, tun_of(id)).ok();
    }
  }
  void look(std::uint32_t id) {
    std::string pairs;
    const auto& machines = held_[id];
    std::string counts;
    for (std::size_t i = 0; i < machines.size(); ++i) {
      if (machines[i]->pid < 0) continue;
      const auto report = must(machines[i]->client->paths(lease_of(id))).report;
      for (const session::NetPair& pair : report.pairs) {
        const std::string relay = pair.relay == 0 ? "" : report.relays.at(pair.relay - 1).address;
        pairs += fmt::format(
            "{}{{\"from\":{},\"to\":{},\"path\":\"{}\",\"relay\":\"{}\",\"by\":{},\"rtt_us\":{},\"changes\":{}}}",
            pairs.empty() ? "" : ",", i + 1, pair.address & 255, name_of(pair.path), relay, pair.by & 255, pair.rtt_us,
            pair.changes);
      }
      for (const session::NetCarried& c : report.carried)
        counts += fmt::format("{}{{\"at\":{},\"by\":{},\"with\":{},\"sent\":{},\"received\":{}}}",
                              counts.empty() ? "" : ",", i + 1, c.by & 255, c.with & 255, c.sent, c.received);
    }
    say(fmt::format("{{\"look\":{},\"pairs\":[{}],\"carried\":[{}]}}", id, pairs, counts));
  }

  void pair(std::uint32_t id, const std::string& a_name, const std::string& b_name, int seconds) {
    const std::vector<Machine*> ends = {machines_.at(a_name).get(), machines_.at(b_name).get()};
    const std::string lease = lease_of(id);
    const std::uint32_t net = kNet + id * 256;
    const overlay::Roster roster = make(id, ends);
    const std::uint16_t port = static_cast<std::uint16_t>(20'000 + id);
    const host::lab::Echo echo(ends[1]->lease_ns, port);
    Pinger pinger(ends[0]->lease_ns, net + 2, port);
    const auto began = Clock::now();
    const auto passed = [&] { return std::chrono::duration_cast<Millis>(Clock::now() - began).count(); };
    configure(id, ends, roster);
    std::int64_t usable = -1, direct = -1;
    while (usable < 0 && passed() < 15'000) {
      pinger.send(kSmall);
      if (pinger.receive()) usable = passed();
    }
    session::NetPair seen[2];
    const auto look = [&] {
      for (std::size_t i = 0; i < 2; ++i) {
        const auto paths = must(ends[i]->client->paths(lease));
        if (!paths.report.pairs.empty()) seen[i] = paths.report.pairs[0];
      }
      return seen[0].path > session::NetPath::Relay && seen[1].path > session::NetPath::Relay;
    };
    while (pinger.receive()) {
    }
    pinger.restart();
    while (usable >= 0 && passed() < usable + seconds * 1000 && (direct < 0 || passed() < direct + 1'500)) {
      pinger.send(kSmall);
      const auto next = Clock::now() + Millis(50);
      while (Clock::now() < next) pinger.receive();
      if (direct < 0 && look()) direct = passed();
    }
    for (int i = 0; i < 50 && pinger.came() < pinger.sent(); ++i) pinger.receive();
    const std::uint32_t lost = pinger.sent() - std::min(pinger.came(), pinger.sent());
    pinger.restart();
    for (int i = 0; usable >= 0 && i < 5; ++i) pinger.send(kFull);
    for (int i = 0; i < 50 && pinger.came() < pinger.sent(); ++i) pinger.receive();
    look();
    const bool full = pinger.sent() > 0 && pinger.came() == pinger.sent();
    drop(id, ends);
    say(
        fmt::format("{{\"pair\":{},\"a\":\"{}\",\"b\":\"{}\",\"usable_ms\":{},\"direct_ms\":{},\"path_a\":\"{}\","
                    "\"path_b\":\"{}\",\"rtt_a_us\":{},\"rtt_b_us\":{},\"lost\":{},\"full\":{}}}",
                    id, a_name, b_name, usable, direct, name_of(seen[0].path), name_of(seen[1].path), seen[0].rtt_us,
                    seen[1].rtt_us, lost, full));
  }

  std::string agent_, dir_;
  crypto::KeyAndCert ca_;
  crypto::SigningKey controller_ = crypto::SigningKey::generate();
  std::vector<session::RelayGrant> relays_;  // with the name of each where its token will stand
  std::map<std::uint32_t, std::vector<Machine*>> held_;
  std::map<std::string, std::unique_ptr<Machine>> machines_;
  std::vector<std::thread> threads_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::cerr << "usage: muster-nat-rig AGENT DIR; see tests/lab/nat_lab.py\n";
    return 2;
  }
  ::signal(SIGPIPE, SIG_IGN);
  Rig rig(argv[1], argv[2]);
  std::string line;
  while (std::getline(std::cin, line)) rig.obey(line);
  return 0;
}
