#pragma once
// For tests of netd and the overlay: network namespaces joined by veth pairs, made with iproute2 and removed at the
// end; shell commands with their exit code; a thread's socket inside a namespace. Needs root and /dev/net/tun: else
// skip with lab_missing().
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace muster::host::lab {

inline int sh(const std::string& command) {
  const int status = std::system((command + " >/dev/null 2>&1").c_str());
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

inline std::optional<std::string> lab_missing(const std::vector<std::string>& programs) {
  if (::geteuid() != 0) return "needs root";
  if (::access("/dev/net/tun", R_OK | W_OK) != 0) return "needs /dev/net/tun";
  for (const std::string& p : programs) {
    if (sh("command -v " + p) != 0) return "needs " + p;
  }
  return std::nullopt;
}

// Two namespaces, 10.99.0.1 and 10.99.0.2 on a veth pair between them.
class Pair {
 public:
  Pair() : tag_("mu" + std::to_string(::getpid() % 100'000)) {
    for (const std::string& n : {a(), b()}) sh("ip netns add " + n);
    sh("ip link add " + tag_ + "v0 netns " + a() + " type veth peer name " + tag_ + "v1 netns " + b());
    sh("ip -n " + a() + " addr add 10.99.0.1/24 dev " + tag_ + "v0");
    sh("ip -n " + b() + " addr add 10.99.0.2/24 dev " + tag_ + "v1");
    for (const std::string& n : {a(), b()}) sh("ip -n " + n + " link set lo up");
    sh("ip -n " + a() + " link set " + tag_ + "v0 up");
    sh("ip -n " + b() + " link set " + tag_ + "v1 up");
  }
  ~Pair() {
    for (const std::string& n : {a(), b()}) sh("ip netns del " + n);
  }
  Pair(const Pair&) = delete;
  Pair& operator=(const Pair&) = delete;
  std::string a() const { return tag_ + "a"; }
  std::string b() const { return tag_ + "b"; }
  std::string device_of_a() const { return tag_ + "v0"; }
  static std::string path(const std::string& ns) { return "/run/netns/" + ns; }
  static std::string in(const std::string& ns, const std::string& command) {
    return "ip netns exec " + ns + " " + command;
  }

 private:
  std::string tag_;
};

// Runs on a thread inside the namespace and waits for its end.
inline void inside(const std::string& ns, const std::function<void()>& work) {
  std::thread([&] {
    const int fd = ::open(Pair::path(ns).c_str(), O_RDONLY | O_CLOEXEC);
    const bool entered = fd >= 0 && ::setns(fd, CLONE_NEWNET) == 0;
    if (fd >= 0) ::close(fd);
    if (entered) work();
  }).join();
}

// Answers every UDP datagram that reaches address:port inside the namespace, until destroyed.
class Echo {
 public:
  Echo(const std::string& ns, std::uint16_t port) {
    inside(ns, [&] { fd_ = bound_udp(port); });
    thread_ = std::thread([this] {
      std::vector<char> buffer(65'536);
      while (!stop_) {
        sockaddr_in from{};
        socklen_t size = sizeof from;
        const ssize_t n = ::recvfrom(fd_, buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
        if (n >= 0)
          ::sendto(fd_, buffer.data(), static_cast<std::size_t>(n), 0, reinterpret_cast<sockaddr*>(&from), size);
      }
    });
  }
  ~Echo() {
    stop_ = true;
    thread_.join();
    ::close(fd_);
  }
  Echo(const Echo&) = delete;
  Echo& operator=(const Echo&) = delete;
  // A socket with a short receive time-out.
  static int bound_udp(std::uint16_t port) {
    const int fd = ::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_port = htons(port);
    const timeval timeout{0, 200'000};
    ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    if (::bind(fd, reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) return -1;
    return fd;
  }

 private:
  int fd_ = -1;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// Sends one datagram of `size` bytes from the namespace and waits up to `tries` x 200 ms for exactly it to come back;
// sends again each time. The errno of a refused send is negative.
inline int echoed(const std::string& ns, std::uint32_t address, std::uint16_t port, std::size_t size, int tries = 10) {
  int result = 0;
  inside(ns, [&] {
    const int fd = Echo::bound_udp(0);
    const int dont_fragment = IP_PMTUDISC_DO;
    ::setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &dont_fragment, sizeof dont_fragment);
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(address);
    to.sin_port = htons(port);
    ::connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to);
    std::vector<char> sent(size), got(65'536);
    for (std::size_t i = 0; i < size; ++i) sent[i] = static_cast<char>(i * 7 + size);
    for (int i = 0; i < tries && result == 0; ++i) {
      if (::send(fd, sent.data(), size, 0) < 0) {
        result = -errno;
        break;
      }
      const ssize_t n = ::recv(fd, got.data(), got.size(), 0);
      if (n < 0 && errno != EAGAIN) result = -errno;
      if (n == static_cast<ssize_t>(size) && std::equal(sent.begin(), sent.end(), got.begin())) result = 1;
    }
    ::close(fd);
  });
  return result;
}

}  // namespace muster::host::lab
