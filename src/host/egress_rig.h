#pragma once
// For tests of the way out: a machine (namespace H, on a LAN with a router), a lease's namespace L on it that holds
// `lo` and nothing else, and the rest of the world (namespace I) that is the router, the resolver and a public host at
// once. Needs root, iproute2 and nft. The public addresses are real ones; nothing leaves the namespaces.
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/prctl.h>

#include <cstring>
#include <fstream>
#include <map>
#include <mutex>

#include "host/egress_sockets.h"
#include "host/lease_route.h"
#include "host/netd_lab.h"
#include "host/nft.h"

namespace muster::host::lab {

inline constexpr const char *kPublic4 = "45.33.32.10", *kPublic6 = "2606:4700:aaaa::10", *kRouter4 = "192.168.77.1",
                            *kMachine4 = "192.168.77.2", *kRouter6 = "2600:1700:77:1::1",
                            *kMachine6 = "2600:1700:77:1::2";

class World {
 public:
  World() : tag_("me" + std::to_string(::getpid() % 100'000)) {
    for (const std::string& n : {h(), l(), i()}) sh("ip netns add " + n + " && ip -n " + n + " link set lo up");
    sh("ip link add " + tag_ + "a netns " + h() + " type veth peer name " + tag_ + "b netns " + i());
    for (const auto& [n, dev, four, six] :
         {std::tuple(h(), tag_ + "a", kMachine4, kMachine6), std::tuple(i(), tag_ + "b", kRouter4, kRouter6)}) {
      sh("ip netns exec " + n + " sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf." + dev + ".accept_dad=0");
      sh("ip -n " + n + " addr add " + four + "/24 dev " + dev);
      sh("ip -n " + n + " addr add " + six + "/64 dev " + dev + " nodad");
      sh("ip -n " + n + " link set " + dev + " up");
    }
    for (const char* own : {kPublic4, "10.1.1.1", "169.254.169.254", "100.70.1.1", "45.33.33.10"})
      sh("ip -n " + i() + " addr add " + own + "/32 dev lo");
    for (const char* own : {kPublic6, "2600:1700:77:2::1", "2002:a01:101::1", "64:ff9b::a01:101"})
      sh("ip -n " + i() + " addr add " + own + "/128 dev lo nodad");
    sh("ip -n " + h() + " route add default via " + kRouter4);
    sh("ip -n " + h() + " -6 route add default via " + kRouter6);
    holder_ = spawn_sleep(Pair::path(l()));
    char pattern[] = "/tmp/muster_egress_XXXXXX";
    dir_ = mkdtemp(pattern);
  }
  ~World() {
    if (holder_ > 0) ::kill(holder_, SIGKILL), ::waitpid(holder_, nullptr, 0);
    for (const std::string& n : {h(), l(), i()}) sh("ip netns del " + n);
    sh("rm -rf " + dir_);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;
  std::string h() const { return tag_ + "h"; }
  std::string l() const { return tag_ + "l"; }
  std::string i() const { return tag_ + "i"; }
  const std::string& dir() const { return dir_; }
  pid_t holder() const { return holder_; }
  std::string network() const { return "/proc/" + std::to_string(holder_) + "/ns/net"; }

 private:
  static pid_t spawn_sleep(const std::string& ns) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      if (::setns(::open(ns.c_str(), O_RDONLY | O_CLOEXEC), CLONE_NEWNET) != 0) ::_exit(127);
      const int null = ::open("/dev/null", O_RDWR);
      for (int fd = 0; fd < 3; ++fd) ::dup2(null, fd);
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::execl("/bin/sleep", "sleep", "600", nullptr);
      ::_exit(127);
    }
    return pid;
  }
  std::string tag_, dir_;
  pid_t holder_ = -1;
};

// A socket made inside a namespace stays in it.
inline Fd socket_in(const std::string& ns, int family, int type) {
  Fd fd;
  inside(ns, [&] { fd = Fd(::socket(family, type | SOCK_CLOEXEC, 0)); });
  const timeval patience{8, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  return fd;
}

// Listens on every address of a namespace; says "hello\n", then echoes, until the other side ends.
class Greeter {
 public:
  Greeter(const std::string& ns, std::uint16_t port) : listener_(socket_in(ns, AF_INET6, SOCK_STREAM)) {
    const int no = 0, yes = 1;
    ::setsockopt(listener_.get(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof no);
    ::setsockopt(listener_.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    const SocketAddress at = socket_address(*egress::parse_ip("::"), port);
    EXPECT_EQ(::bind(listener_.get(), at.get(), at.size), 0);
    EXPECT_EQ(::listen(listener_.get(), 64), 0);
    thread_ = std::thread([this] { serve(); });
  }
  ~Greeter() {
    stop_ = true;
    thread_.join();
    for (auto& each : talks_) each.join();
  }
  Greeter(const Greeter&) = delete;
  Greeter& operator=(const Greeter&) = delete;
  int greeted() const { return greeted_; }

 private:
  void serve() {
    while (!stop_) {
      pollfd wait{listener_.get(), POLLIN, 0};
      if (::poll(&wait, 1, 50) <= 0) continue;
      const int fd = ::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0) continue;
      ++greeted_;
      talks_.emplace_back([this, fd] { talk(fd); });
    }
  }
  void talk(int fd) {
    const Fd owned(fd);
    bool open = ::send(fd, "hello\n", 6, MSG_NOSIGNAL) == 6;
    std::vector<char> buffer(65'536);
    while (open && !stop_) {
      pollfd wait{fd, POLLIN, 0};
      if (::poll(&wait, 1, 50) <= 0) continue;
      const ssize_t n = ::recv(fd, buffer.data(), buffer.size(), 0);
      open = n > 0 && ::send(fd, buffer.data(), static_cast<std::size_t>(n), MSG_NOSIGNAL) == n;
    }
  }
  Fd listener_;
  std::atomic<bool> stop_{false};
  std::atomic<int> greeted_{0};
  std::thread thread_;
  std::vector<std::thread> talks_;
};

// A resolver: answers A and AAAA from a table, over UDP and TCP; a name of many addresses is cut over UDP.
class Resolver {
 public:
  using Names = std::map<std::string, std::vector<std::string>>;
  std::atomic<int> asked{0};

  Resolver(const std::string& ns, const char* address, Names names) : names_(std::move(names)) {
    udp_ = socket_in(ns, AF_INET, SOCK_DGRAM);
    tcp_ = socket_in(ns, AF_INET, SOCK_STREAM);
    const SocketAddress at = socket_address(*egress::parse_ip(address), 53);
    EXPECT_EQ(::bind(udp_.get(), at.get(), at.size), 0);
    EXPECT_EQ(::bind(tcp_.get(), at.get(), at.size), 0);
    EXPECT_EQ(::listen(tcp_.get(), 16), 0);
    thread_ = std::thread([this] { serve(); });
  }
  ~Resolver() {
    stop_ = true;
    thread_.join();
  }

 private:
  static void word(Bytes& out, unsigned value) {
    out.push_back(static_cast<std::uint8_t>(value >> 8));
    out.push_back(static_cast<std::uint8_t>(value));
  }
  Bytes answer(ByteView question, bool udp) {
    ++asked;
    std::size_t at = 12;
    std::string name;
    while (at < question.size() && question[at] != 0) {
      if (!name.empty()) name.push_back('.');
      name += as_string(question.subspan(at + 1, question[at]));
      at += 1U + question[at];
    }
    const bool six = question[at + 2] == 28;
    Bytes out(question.begin(), question.begin() + static_cast<long>(at + 5));
    out[2] = 0x81, out[3] = 0x80, out[10] = out[11] = 0;
    unsigned count = 0;
    const auto known = names_.find(name);
    for (const auto& text : known == names_.end() ? std::vector<std::string>() : known->second) {
      const auto ip = *egress::parse_ip(text);
      if (ip.six != six) continue;
      ++count;
      for (const unsigned each : {0xc00cU, six ? 28U : 1U, 1U, 0U, 1U, six ? 16U : 4U}) word(out, each);
      out.insert(out.end(), ip.bytes.begin(), ip.bytes.begin() + (six ? 16 : 4));
    }
    if (udp && count > 20) out.resize(at + 5), out[2] |= 2, count = 0;
    out[6] = static_cast<std::uint8_t>(count >> 8), out[7] = static_cast<std::uint8_t>(count);
    return out;
  }
  void serve() {
    Bytes buffer(4096);
    while (!stop_) {
      pollfd wait[2] = {{udp_.get(), POLLIN, 0}, {tcp_.get(), POLLIN, 0}};
      if (::poll(wait, 2, 50) <= 0) continue;
      if (wait[0].revents != 0) {
        sockaddr_storage from{};
        socklen_t size = sizeof from;
        const ssize_t n =
            ::recvfrom(udp_.get(), buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
        if (n < 17) continue;
        const Bytes out = answer(ByteView(buffer).first(static_cast<std::size_t>(n)), true);
        ::sendto(udp_.get(), out.data(), out.size(), 0, reinterpret_cast<sockaddr*>(&from), size);
      }
      if (wait[1].revents == 0) continue;
      const Fd peer(::accept4(tcp_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      const ssize_t n = ::recv(peer.get(), buffer.data(), buffer.size(), 0);
      if (n < 19) continue;
      const Bytes said = answer(ByteView(buffer).subspan(2, static_cast<std::size_t>(n) - 2), false);
      Bytes out;
      word(out, static_cast<unsigned>(said.size()));
      out.insert(out.end(), said.begin(), said.end());
      ::send(peer.get(), out.data(), out.size(), MSG_NOSIGNAL);
    }
  }
  const Names names_;
  Fd udp_, tcp_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// Connects from inside the namespace and reads the greeting. "hello", or why not.
inline std::string greet(const std::string& ns, const std::string& address, std::uint16_t port, Fd* keep = nullptr) {
  const auto ip = egress::parse_ip(address);
  if (!ip) return "no address";
  Fd fd = socket_in(ns, ip->six ? AF_INET6 : AF_INET, SOCK_STREAM);
  const SocketAddress at = socket_address(*ip, port);
  if (::connect(fd.get(), at.get(), at.size) != 0) return errno_text(errno);
  char text[16] = {};
  const ssize_t n = ::recv(fd.get(), text, sizeof text, 0);
  const std::string said = n > 0    ? std::string(text, static_cast<std::size_t>(n))
                           : n == 0 ? "closed"
                                    : errno_text(errno);
  if (keep != nullptr) *keep = std::move(fd);
  return said == "hello\n" ? "hello" : said;
}

// Asks any name server for a name from inside the namespace: its addresses, or "rcode N", "cut", "silence".
inline std::string resolve(const std::string& ns, const std::string& name, bool six = false, bool tcp = false) {
  Bytes question = {0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0};
  for (std::size_t at = 0; at < name.size();) {
    const auto end = std::min(name.find('.', at), name.size());
    question.push_back(static_cast<std::uint8_t>(end - at));
    question.insert(question.end(), name.begin() + static_cast<long>(at), name.begin() + static_cast<long>(end));
    at = end + 1;
  }
  for (const int each : {0, 0, six ? 28 : 1, 0, 1}) question.push_back(static_cast<std::uint8_t>(each));
  const Fd fd = socket_in(ns, AF_INET, tcp ? SOCK_STREAM : SOCK_DGRAM);
  const SocketAddress at = socket_address(*egress::parse_ip("192.0.2.53"), 53);
  if (::connect(fd.get(), at.get(), at.size) != 0) return errno_text(errno);
  Bytes framed = question;
  if (tcp) framed.insert(framed.begin(), {0, static_cast<std::uint8_t>(question.size())});
  if (::send(fd.get(), framed.data(), framed.size(), MSG_NOSIGNAL) < 0) return errno_text(errno);
  Bytes answer(65'600);
  std::size_t have = 0;
  do {
    const ssize_t n = ::recv(fd.get(), answer.data() + have, answer.size() - have, 0);
    if (n <= 0) return "silence";
    have += static_cast<std::size_t>(n);
  } while (tcp && (have < 2 || have < 2 + (static_cast<std::size_t>(answer[0]) << 8 | answer[1])));
  answer.resize(have);
  if (tcp) answer.erase(answer.begin(), answer.begin() + 2);
  if (answer.size() < 12 || answer[0] != 0x12 || answer[1] != 0x34) return "nonsense";
  if ((answer[3] & 15) != 0) return "rcode " + std::to_string(answer[3] & 15);
  if ((answer[2] & 2) != 0) return "cut";
  std::string out;
  const std::size_t count = static_cast<std::size_t>(answer[6]) << 8 | answer[7], record = six ? 28 : 16;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t data = question.size() + i * record + 12;
    if (data + (six ? 16 : 4) > answer.size()) return "short";
    out += (i == 0 ? "" : " ") + egress::to_text(egress::Ip::from_bytes(ByteView(answer).subspan(data, six ? 16 : 4)));
  }
  return out.empty() ? "nothing" : out;
}

// Polls until it is true, for up to `seconds`.
inline bool eventually(const std::function<bool()>& condition, int seconds = 20) {
  for (int i = 0; i < seconds * 20; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return false;
}

}  // namespace muster::host::lab
