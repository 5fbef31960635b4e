#include "host/nft.h"

#include <fmt/format.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <thread>

#include "host/child.h"

namespace muster::host {
namespace {

constexpr Millis kNftTimeout{10'000};

Result<Fd> netlink(int family, unsigned groups, std::string_view what) {
  Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, family));
  sockaddr_nl at{};
  at.nl_family = AF_NETLINK;
  at.nl_groups = groups;
  if (!fd || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&at), sizeof at) != 0)
    return error(Code::Unavailable, fmt::format("cannot watch {}: {}", what, errno_text(errno)));
  return fd;
}

// The child is in the network namespace of this thread.
Result<Ended> nft(std::vector<std::string> words, std::string_view input) {
  const std::string program = nft_program();
  if (program.empty()) return error(Code::FailedPrecondition, std::string(kNftMissing), "egress.firewall");
  Child child;
  child.argv = std::move(words);
  child.argv.insert(child.argv.begin(), program);
  child.env = {"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
  RunLimits limits;
  limits.timeout = kNftTimeout;
  return run_child(std::move(child), input, limits);
}

Status told(const Result<Ended>& ended, std::string_view what) {
  if (!ended.ok()) return ended.error();
  if (ended->code == 0) return {};
  return error(Code::Unavailable, fmt::format("nft could not {}: {}", what, ended->err.substr(0, 400)),
               "egress.firewall");
}

}  // namespace

std::string nft_program() {
  for (const char* path : {"/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft"}) {
    if (::access(path, X_OK) == 0) return path;
  }
  return {};
}

Status nft_apply(const std::string& script) {
  return told(nft({"-f", "-"}, script), "set the table");
}

Result<std::string> nft_table() {
  auto ended = nft({"-s", "-n", "list", "table", "inet", "muster"}, {});
  if (ended.ok() && ended->code == 1) return error(Code::NotFound, "there is no table inet muster");
  TRY_VOID(told(ended, "list the table inet muster"));
  return std::move(ended->out);
}

Result<std::string> nft_words(const std::string& script) {
  auto out = Result<std::string>(error(Code::Unavailable, "no network namespace can be made", "egress.firewall"));
  std::thread([&] {  // the namespace ends with it
    if (::unshare(CLONE_NEWNET) != 0) return;
    const Status applied = nft_apply(script);
    out = applied.ok() ? nft_table() : Result<std::string>(applied.error());
  })
      .join();
  return out;
}

Status nft_remove() {
  return nft_apply("add table inet muster\ndelete table inet muster\n");
}

Result<Fd> nft_watch() {
  return netlink(NETLINK_NETFILTER, 1U << (NFNLGRP_NFTABLES - 1), "the firewall's rules");
}

Result<Fd> address_watch() {
  return netlink(NETLINK_ROUTE, RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR, "the machine's addresses");
}

void drain_watch(int fd) {
  std::array<std::uint8_t, 16'384> buffer;
  // ENOBUFS: more changed than fitted; it is one change to us.
  while (::recv(fd, buffer.data(), buffer.size(), 0) > 0 || errno == ENOBUFS) {
  }
}

}  // namespace muster::host
