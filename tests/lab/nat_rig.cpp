// The hands of tests/lab/nat_lab.py: netds as they are shipped (`muster-agent netd-process`), each in a namespace that
// stands for a machine, and clusters of two of them, made one after the other and measured.
//
//   muster-nat-rig AGENT DIR       lines on standard input, JSON lines on standard output
//
//   machine NAME HOST_NS LEASE_NS LAN|- 4|6 [PROXY_URL]   starts a netd there      -> {"machine":NAME,"pid":PID}
//   relay HOST PORT ID REGION [IPV6_HOST]   one more muster-relay                                  -> {"relay":HOST}
//   pair ID A B SECONDS         ID 1 to 250, once each; different machines side by side                  -> one line
//   watch ID A B small|full     joins them, and keeps packets going every 20 ms                    -> {"watch":ID}
//   mark ID                     what is told counts from now on                                    -> {"mark":ID}
//   look ID                     ways, packets, and how long none came (longest, and just now)      -> {"look":ID,...}
//   end ID                                                                                         -> {"end":ID}
//   hold ID A B [C...]          a cluster of those, until dropped; its addresses are 100.64.ID.1 and so on ->
//   {"held":ID} look ID                     of such a cluster: the ways from each to each             ->
//   {"look":ID,"pairs":[...]} drop ID -> {"dropped":ID} carry NAME on|off           its owner lets it carry for others
//   -> {"carry":NAME} stop NAME                   its netd is killed                                             ->
//   {"stopped":NAME}
//   owner NAME LINE[;LINE...]   what its owner says of ways (owner_network.h)                     -> {"owner":NAME}
//   map NAME [pcp|natpmp|upnp]  keeps its port reachable through its router, as the agent does   ->
//   {"map":NAME,"how":...} mapped NAME                 how it is mapped now -> {"map":NAME,...}
//
// 4 or 6 says by which family that machine finds the relays. First of all the relay's certificate and
// key and the controller's public key are written to DIR: relay.crt, relay.key, controller.pub. A pair is usable with
// the first echo of a small packet after both were configured, and direct when both ends say so; packets go on every 50
// ms to see whether one is lost meanwhile. Ends its netds when its input ends.
#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>

#include <atomic>
#include <fstream>
#include <iostream>
#include <map>
#include <mutex>
#include <sstream>

#include "crypto/cert.h"
#include "crypto/file.h"
#include "host/identity.h"
#include "host/layout.h"
#include "host/netd_client.h"
#include "host/netd_lab.h"
#include "host/port_mapper.h"
#include "host/tun.h"
#include "overlay/member.h"
#include "overlay/relay_protocol.h"
#include "overlay/roster.h"

namespace {

using namespace muster;
using Clock = std::chrono::steady_clock;
constexpr std::uint32_t kNet = 0x64400000;
// With IP and UDP headers kFull fills the tunnel, and kRelayed as much of it as a relay carries.
constexpr std::size_t kSmall = 64, kFull = overlay::kInnerMtu - 28, kRelayed = overlay::kRelayedMtu - 28;

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
  bool six = false;  // finds the relays by IPv6
  std::uint32_t lan = 0;
  crypto::SigningKey device = crypto::SigningKey::generate();
  pid_t pid = -1;
  std::uint16_t port = 0;
  std::unique_ptr<host::NetdClient> client;  // of one thread; pairs have threads of their own and share machines
  std::unique_ptr<std::mutex> asking = std::make_unique<std::mutex>();
  host::MapState mapping;  // under asking
  std::unique_ptr<host::PortMapper> mapper;

  template <typename Ask>
  auto ask(Ask question) const {
    const std::lock_guard lock(*asking);
    return must(question(*client));
  }
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

// What it says of a router goes to netd, as from the agent.
void keep_mapped(Machine& m, const std::string& by) {
  using host::MapBy;
  host::MapOptions options;
  options.look = options.look_upnp = options.again = Millis(2'000);
  if (!by.empty()) options.by = {by == "pcp" ? MapBy::Pcp : by == "natpmp" ? MapBy::NatPmp : MapBy::Upnp};
  m.mapper.reset();
  m.mapping = {};
  host::lab::inside(m.host, [&] {
    m.mapper = std::make_unique<host::PortMapper>(
        Bytes(32, 7),
        [&m](const host::MapState& state) {
          const std::lock_guard lock(*m.asking);
          m.mapping = state;
          host::netd::SetMapped told;
          if (state.mapping) told = {{{state.mapping->ip, state.mapping->port, {}}}, map_by_text(state.mapping->how)};
          must(m.client->set_mapped(told));
        },
        options);
    m.mapper->want(m.port);
  });
}
std::string mapping_text(const Machine& m, const std::string& name) {
  const std::lock_guard lock(*m.asking);
  const auto& mapping = m.mapping.mapping;
  return fmt::format("{{\"map\":\"{}\",\"how\":\"{}\",\"at\":\"{}\",\"detail\":\"{}\"}}", name,
                     mapping ? map_by_text(mapping->how) : "",
                     mapping ? fmt::format("{}:{}", host::ip4_text(mapping->ip), mapping->port) : "", m.mapping.detail);
}

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

// "203.0.113.21:7000", and so on.
std::string tries_text(const session::NetPair& pair) {
  std::string out;
  for (const session::NetTry& each : pair.tries)
    out += fmt::format("{}\"{}:{}\"", out.empty() ? "" : ",", host::ip4_text(each.at.ip), each.at.port);
  return out;
}

struct Relay {
  std::string host, host6, id, region;
  std::uint16_t port = 0;
};
// Who signs, what the relays' certificate is trusted by, and where they are.
struct Platform {
  crypto::KeyAndCert ca;
  crypto::SigningKey controller = crypto::SigningKey::generate();
  std::vector<Relay> relays;
};

// Machines in a cluster of their own, until destroyed.
class Joined {
 public:
  Joined(const Platform& platform, std::uint32_t id, std::vector<Machine*> machines)
      : platform_(platform),
        machines_(std::move(machines)),
        net_(kNet + id * 256),
        lease_("lease-" + std::to_string(id)),
        tun_("m" + std::to_string(id)),
        roster_{id, 1, 1, {}},
        port_(static_cast<std::uint16_t>(20'000 + id)) {
    for (std::uint32_t i = 0; i < machines_.size(); ++i) {
      Machine& m = *machines_[i];
      const host::Fd fd =
          must(host::create_tun("/run/netns/" + m.lease_ns, host::TunSpec{tun_, net_ + i + 1, 24, 1420}));
      overlay::RosterMember member;
      member.slot = member.node = i + 1;
      member.address = net_ + i + 1;
      member.overlay_key = *crypto::key32(m.ask([&](auto& netd) { return netd.add_lease(lease_, fd.get()); }));
      member.device_key = m.device.public_key();
      member.overlay_signature = overlay::sign_overlay_key(m.device, id, member.epoch, member.overlay_key);
      if (m.lan != 0) member.lan = {overlay::Endpoint::udp(m.lan, m.port)};
      roster_.members.push_back(member);
    }
  }
  ~Joined() {
    for (Machine* m : machines_) {
      if (m->pid > 0) m->ask([&](auto& netd) { return netd.remove_lease(lease_); });
      (void)host::remove_tun("/run/netns/" + m->lease_ns, tun_).ok();
    }
  }
  Joined(const Joined&) = delete;
  Joined& operator=(const Joined&) = delete;

  void configure() const {
    const Bytes bytes = overlay::encode_roster(roster_);
    for (std::size_t i = 0; i < machines_.size(); ++i) {
      host::netd::Configure c;
      c.lease = lease_;
      c.address = roster_.members[i].address;
      c.prefix_bits = 24;
      c.roster = bytes;
      c.signatures = {overlay::sign_roster(platform_.controller, bytes)};
      c.signers = {Bytes(platform_.controller.public_key().begin(), platform_.controller.public_key().end())};
      c.relay_ca_pem = platform_.ca.cert_pem;
      machines_[i]->ask([&](auto& netd) { return netd.configure(c); });
      host::netd::SetRelays grants{c.lease, {}};
      for (const Relay& relay : platform_.relays) {
        const std::string host = machines_[i]->six ? "[" + relay.host6 + "]" : relay.host;
        if (machines_[i]->six && relay.host6.empty()) continue;
        grants.relays.push_back(
            {host + ":" + std::to_string(relay.port), relay.region,
             overlay::sign_relay_token(platform_.controller, {relay.id, roster_.cluster, roster_.members[i].overlay_key,
                                                              read_clocks().wall + Millis(3'600'000)})});
      }
      machines_[i]->ask([&](auto& netd) { return netd.set_relays(grants); });
    }
  }
  session::NetReport report_of(std::size_t end) const {
    return machines_[end]->ask([&](auto& netd) { return netd.paths(lease_); }).report;
  }
  session::NetPair seen_by(std::size_t end) const {
    const auto report = report_of(end);
    return report.pairs.empty() ? session::NetPair{} : report.pairs[0];
  }
  host::lab::Echo echo() const { return {machines_[1]->lease_ns, port_}; }
  Pinger pinger() const { return {machines_[0]->lease_ns, net_ + 2, port_}; }
  // All ways of all members, and what is counted of those that others carry, as parts of a JSON object.
  std::string all() const {
    std::string pairs, counts;
    for (std::size_t i = 0; i < machines_.size(); ++i) {
      if (machines_[i]->pid < 0) continue;
      const auto report = report_of(i);
      for (const session::NetPair& pair : report.pairs) {
        const std::string relay = pair.relay == 0 ? "" : report.relays.at(pair.relay - 1).address;
        pairs += fmt::format(
            "{}{{\"from\":{},\"to\":{},\"path\":\"{}\",\"relay\":\"{}\",\"udp\":{},\"by\":{},\"rtt_us\":{},\"changes\":"
            "{},\"hidden\":{},\"tries\":[{}]}}",
            pairs.empty() ? "" : ",", i + 1, pair.address & 255, name_of(pair.path), relay, pair.relay_udp,
            pair.by & 255, pair.rtt_us, pair.changes, pair.hidden, tries_text(pair));
      }
      for (const session::NetCarried& c : report.carried)
        counts += fmt::format("{}{{\"at\":{},\"by\":{},\"with\":{},\"sent\":{},\"received\":{}}}",
                              counts.empty() ? "" : ",", i + 1, c.by & 255, c.with & 255, c.sent, c.received);
    }
    return fmt::format("\"pairs\":[{}],\"carried\":[{}]", pairs, counts);
  }

 private:
  const Platform& platform_;
  std::vector<Machine*> machines_;
  std::uint32_t net_;
  std::string lease_, tun_;
  overlay::Roster roster_;
  std::uint16_t port_;
};

// The ends' ways, as parts of a JSON object.
std::string ways(const session::NetPair& a, const session::NetPair& b) {
  return fmt::format(
      "\"path_a\":\"{}\",\"path_b\":\"{}\",\"rtt_a_us\":{},\"rtt_b_us\":{},\"mtu_a\":{},\"mtu_b\":{},\"six\":{},"
      "\"udp_a\":{},\"udp_b\":{},\"changes\":{}",
      name_of(a.path), name_of(b.path), a.rtt_us, b.rtt_us, a.mtu, b.mtu, !a.at.six.empty(), a.relay_udp, b.relay_udp,
      a.changes + b.changes);
}

// A pair whose packets never stop, and what became of them.
class Watch {
 public:
  Watch(const Platform& platform, std::uint32_t id, Machine& a, Machine& b, std::size_t size)
      : joined_(platform, id, {&a, &b}), size_(size), echo_(joined_.echo()), pinger_(joined_.pinger()) {
    joined_.configure();
    mark();
    thread_ = std::thread([this] {
      while (!stop_) {
        const auto next = Clock::now() + Millis(20);
        pinger_.send(size_);
        ++sent_;
        do {
          if (pinger_.receive()) came();
        } while (Clock::now() < next);
      }
    });
  }
  ~Watch() {
    stop_ = true;
    thread_.join();
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;
  void mark() {
    const std::lock_guard lock(mutex_);
    sent_ = came_ = 0;
    last_ = Clock::now();
    longest_ = Millis(0);
  }
  std::string look() {
    const auto a = joined_.seen_by(0), b = joined_.seen_by(1);
    const std::lock_guard lock(mutex_);
    const Millis silent = std::chrono::duration_cast<Millis>(Clock::now() - last_);
    return fmt::format("{},\"sent\":{},\"came\":{},\"silent_ms\":{},\"longest_ms\":{}", ways(a, b), sent_.load(),
                       came_.load(), silent.count(), std::max(longest_, silent).count());
  }

 private:
  void came() {
    const std::lock_guard lock(mutex_);
    ++came_;
    const auto now = Clock::now();
    longest_ = std::max(longest_, std::chrono::duration_cast<Millis>(now - last_));
    last_ = now;
  }
  Joined joined_;
  std::size_t size_;
  host::lab::Echo echo_;
  Pinger pinger_;
  std::mutex mutex_;
  std::atomic<std::uint64_t> sent_{0}, came_{0};
  Clock::time_point last_;  // under mutex_, as longest_
  Millis longest_{0};
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class Rig {
 public:
  Rig(std::string agent, std::string dir) : agent_(std::move(agent)), dir_(std::move(dir)) {
    const WallTime now = read_clocks().wall;
    platform_.ca = must(crypto::create_ca("lab", now));
    const auto server =
        must(crypto::issue_server_certificate(platform_.ca, crypto::ServerRole::Relay, std::string(net::kRelayName),
                                              {std::string(net::kRelayName)}, now, Millis(86'400'000)));
    std::ofstream(dir_ + "/relay.crt") << server.cert_pem << platform_.ca.cert_pem;
    std::ofstream(dir_ + "/relay.key") << server.key_pem;
    std::ofstream(dir_ + "/controller.pub") << base64(platform_.controller.public_key()) << "\n";
    say("{\"ready\":true}");
  }
  ~Rig() {
    for (auto& thread : threads_) thread.join();
    watches_.clear();
    held_.clear();
    for (const auto& [name, m] : machines_) m->mapper.reset();
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
    if (verb == "machine") return add(in);
    if (verb == "carry" || verb == "stop" || verb == "owner" || verb == "map" || verb == "mapped")
      return change(verb, in);
    if (verb == "relay") {
      Relay& relay = platform_.relays.emplace_back();
      in >> relay.host >> relay.port >> relay.id >> relay.region >> relay.host6;
      return say(fmt::format("{{\"relay\":\"{}\"}}", relay.host));
    }
    std::uint32_t id = 0;
    in >> id;
    if (verb == "pair") {
      std::string a, b;
      int seconds = 0;
      in >> a >> b >> seconds;
      Machine &one = find(a), &other = find(b);
      threads_.emplace_back([this, id, &one, &other, seconds, names = fmt::format("\"a\":\"{}\",\"b\":\"{}\"", a, b)] {
        pair(id, one, other, seconds, names);
      });
    } else if (verb == "watch") {
      std::string a, b, size;
      in >> a >> b >> size;
      watches_[id] = std::make_unique<Watch>(platform_, id, find(a), find(b), size == "full" ? kRelayed : kSmall);
      say(fmt::format("{{\"watch\":{}}}", id));
    } else if (watches_.contains(id) && verb == "mark") {
      watches_[id]->mark();
      say(fmt::format("{{\"mark\":{}}}", id));
    } else if (watches_.contains(id) && verb == "look") {
      say(fmt::format("{{\"look\":{},{}}}", id, watches_[id]->look()));
    } else if (watches_.contains(id) && verb == "end") {
      watches_.erase(id);
      say(fmt::format("{{\"end\":{}}}", id));
    } else if (verb == "hold") {
      std::vector<Machine*> machines;
      for (std::string name; in >> name;) machines.push_back(&find(name));
      held_[id] = std::make_unique<Joined>(platform_, id, machines);
      held_[id]->configure();
      say(fmt::format("{{\"held\":{}}}", id));
    } else if (held_.contains(id) && verb == "look") {
      say(fmt::format("{{\"look\":{},{}}}", id, held_[id]->all()));
    } else if (held_.contains(id) && verb == "drop") {
      held_.erase(id);
      say(fmt::format("{{\"dropped\":{}}}", id));
    } else {
      must(error(Code::InvalidArgument, "not understood: " + line));
    }
  }

 private:
  void add(std::istream& in) {
    std::string name, lan, family, proxy;
    auto m = std::make_unique<Machine>();
    in >> name >> m->host >> m->lease_ns >> lan >> family >> proxy;
    m->six = family == "6";
    in_addr at{};
    if (::inet_pton(AF_INET, lan.c_str(), &at) == 1) m->lan = ntohl(at.s_addr);
    m->start(agent_, dir_ + "/" + name, proxy);
    say(fmt::format("{{\"machine\":\"{}\",\"pid\":{}}}", name, m->pid));
    machines_[name] = std::move(m);
  }
  void change(const std::string& verb, std::istream& in) {
    std::string name, value;
    in >> name >> value;
    Machine& m = find(name);
    if (verb == "owner") {
      std::string more;
      std::getline(in, more);
      std::string lines = value + more + "\n";
      std::ranges::replace(lines, ';', '\n');
      must(crypto::write_public_file(host::Layout{dir_ + "/" + name}.network(), as_bytes(lines)));
      std::this_thread::sleep_for(Millis(600));  // netd looks four times a second
      m.port = m.ask([](auto& netd) { return netd.info(); }).udp_port;
      return say(fmt::format("{{\"owner\":\"{}\"}}", name));
    }
    if (verb == "map") {
      keep_mapped(m, value);
      const auto until = Clock::now() + Millis(20'000);
      const auto there = [&] {
        const std::lock_guard lock(*m.asking);
        return m.mapping.mapping.has_value();
      };
      while (!there() && Clock::now() < until) std::this_thread::sleep_for(Millis(50));
    }
    if (verb == "map" || verb == "mapped") return say(mapping_text(m, name));
    if (verb == "stop") {
      ::kill(m.pid, SIGKILL);
      ::waitpid(std::exchange(m.pid, -1), nullptr, 0);
      return say(fmt::format("{{\"stopped\":\"{}\"}}", name));
    }
    std::ofstream(host::Layout{dir_ + "/" + name}.bandwidth()) << "0 0 " << (value == "on" ? 1 : 0) << " 0 0\n";
    say(fmt::format("{{\"carry\":\"{}\"}}", name));
  }
  Machine& find(const std::string& name) {
    if (!machines_.contains(name)) must(error(Code::NotFound, "no such machine: " + name));
    return *machines_[name];
  }

  void pair(std::uint32_t id, Machine& a, Machine& b, int seconds, const std::string& names) {
    const Joined joined(platform_, id, {&a, &b});
    const host::lab::Echo echo = joined.echo();
    Pinger pinger = joined.pinger();
    const auto began = Clock::now();
    const auto passed = [&] { return std::chrono::duration_cast<Millis>(Clock::now() - began).count(); };
    joined.configure();
    std::int64_t usable = -1, direct = -1;
    while (usable < 0 && passed() < 15'000) {
      pinger.send(kSmall);
      if (pinger.receive()) usable = passed();
    }
    session::NetPair seen[2];
    const auto look = [&] {
      for (std::size_t i = 0; i < 2; ++i) seen[i] = joined.seen_by(i);
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
    look();
    // On a narrow way programs are told so by their first large packet, each end by its own.
    const bool narrow = std::min(seen[0].mtu, seen[1].mtu) < overlay::kInnerMtu;
    for (int i = 0; narrow && i < 3; ++i) {
      pinger.send(kFull);
      pinger.receive();
    }
    while (pinger.receive()) {
    }
    pinger.restart();
    for (int i = 0; usable >= 0 && i < 5; ++i) pinger.send(kFull);
    for (int i = 0; i < 50 && pinger.came() < pinger.sent(); ++i) pinger.receive();
    look();
    const bool full = pinger.sent() > 0 && pinger.came() == pinger.sent();
    say(fmt::format("{{\"pair\":{},{},\"usable_ms\":{},\"direct_ms\":{},{},\"lost\":{},\"full\":{}}}", id, names,
                    usable, direct, ways(seen[0], seen[1]), lost, full));
  }

  std::string agent_, dir_;
  Platform platform_;
  std::map<std::string, std::unique_ptr<Machine>> machines_;
  std::map<std::uint32_t, std::unique_ptr<Watch>> watches_;
  std::map<std::uint32_t, std::unique_ptr<Joined>> held_;
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
