// Two netds as they are shipped (`muster-agent netd-process`, under their own uid), each in a namespace that stands for
// a machine, with a lease namespace, a persistent TUN and a signed roster of two, for bench/overlay_throughput.py:
//
//   bench_overlay_rig AGENT DIR HOST_A LEASE_A LAN_A HOST_B LEASE_B LAN_B [PEERS]
//
// Namespaces exist; LAN_x is the machine's address. PEERS more members that nobody answers for stand in the roster.
// Prints "ready PID PID" (the netds); the first packet makes them find each other. Ends both when its input ends.
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "crypto/random.h"
#include "host/identity.h"
#include "host/layout.h"
#include "host/netd_client.h"
#include "host/tun.h"
#include "overlay/roster.h"

namespace {

using namespace muster;
constexpr std::uint32_t kNet = 0x64400000;
constexpr std::uint64_t kCluster = 3;

template <typename T>
T must(Result<T> result) {
  if (!result.ok()) {
    std::cerr << "bench_overlay_rig: " << result.error().message << "\n";
    std::exit(1);
  }
  return std::move(*result);
}
void must(const Status& status) {
  if (!status.ok()) {
    std::cerr << "bench_overlay_rig: " << status.error().message << "\n";
    std::exit(1);
  }
}

struct Machine {
  std::string host, lease;
  std::uint32_t lan = 0, address = 0;
  crypto::SigningKey device = crypto::SigningKey::generate();
  Bytes key;
  pid_t pid = -1;
  std::unique_ptr<host::NetdClient> client;

  void start(const std::string& agent, const std::string& dir) {
    const host::Layout layout{dir};
    must(host::make_directories(layout, host::find_accounts()));
    host::Fd listener = must(host::listen_unix(layout.netd_socket(), host::SocketKind::Seqpacket, 0, 0, 0600));
    pid = ::fork();
    if (pid == 0) {
      ::dup2(listener.get(), 3);
      ::fcntl(3, F_SETFD, 0);  // where it is 3 already
      const std::string space = "/run/netns/" + host;
      ::execlp("nsenter", "nsenter", ("--net=" + space).c_str(), agent.c_str(), "netd-process", "--state-dir",
               dir.c_str(), nullptr);
      ::_exit(127);
    }
    client = std::make_unique<host::NetdClient>(layout.netd_socket());
    host::TunSpec spec;
    spec.address = address;
    const host::Fd tun = must(host::create_tun("/run/netns/" + lease, spec));
    key = must(client->add_lease("lease-1", tun.get()));
  }
  overlay::RosterMember entry() {
    overlay::RosterMember m;
    m.slot = m.node = address & 255;
    m.address = address;
    m.overlay_key = *crypto::key32(key);
    m.device_key = device.public_key();
    m.overlay_signature = overlay::sign_overlay_key(device, kCluster, m.epoch, m.overlay_key);
    m.lan = {overlay::Endpoint::udp(lan, must(client->info()).udp_port)};
    return m;
  }
};

std::uint32_t ipv4(const char* text) {
  in_addr at{};
  if (::inet_pton(AF_INET, text, &at) != 1) std::exit(2);
  return ntohl(at.s_addr);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 9) return 2;
  const std::string agent = argv[1], dir = argv[2];
  Machine a, b;
  a.host = argv[3], a.lease = argv[4], a.lan = ipv4(argv[5]), a.address = kNet + 1;
  b.host = argv[6], b.lease = argv[7], b.lan = ipv4(argv[8]), b.address = kNet + 2;
  const int more = argc > 9 ? std::atoi(argv[9]) : 0;
  a.start(agent, dir + "/a");
  b.start(agent, dir + "/b");
  crypto::SigningKey controller = crypto::SigningKey::generate();
  overlay::Roster roster{kCluster, 1, 1, {a.entry(), b.entry()}};
  for (int i = 0; i < more; ++i) {
    Machine idle;
    idle.address = kNet + 16 + static_cast<std::uint32_t>(i);
    overlay::RosterMember m;
    m.slot = m.node = 16 + static_cast<std::uint64_t>(i);
    m.address = idle.address;
    m.overlay_key = crypto::x25519_generate().public_key;
    m.device_key = idle.device.public_key();
    m.overlay_signature = overlay::sign_overlay_key(idle.device, kCluster, m.epoch, m.overlay_key);
    roster.members.push_back(m);
  }
  for (Machine* m : {&a, &b}) {
    host::netd::Configure c;
    c.lease = "lease-1";
    c.address = m->address;
    c.roster = overlay::encode_roster(roster);
    c.signatures = {overlay::sign_roster(controller, c.roster)};
    c.signers = {Bytes(controller.public_key().begin(), controller.public_key().end())};
    must(m->client->configure(c));
  }
  std::printf("ready %d %d\n", a.pid, b.pid);
  std::fflush(stdout);
  std::string line;
  while (std::getline(std::cin, line)) {
  }
  for (const Machine* m : {&a, &b}) {
    ::kill(m->pid, SIGTERM);
    ::waitpid(m->pid, nullptr, 0);
  }
  return 0;
}
