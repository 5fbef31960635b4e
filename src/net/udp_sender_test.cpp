// On the loopback device: what is gathered arrives as it was given, in order, cut by the kernel or not.
#include "net/udp_sender.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>

#include <vector>

#include "net/dial.h"

namespace muster::net {
namespace {

constexpr std::uint32_t kLoopback = 0x7f000001;

struct Receiver {
  Fd fd{::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)};
  std::uint16_t port = 0;
  Receiver() {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(kLoopback);
    socklen_t size = sizeof at;
    EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    EXPECT_EQ(::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &size), 0);
    port = ntohs(at.sin_port);
    const int room = 4 << 20;  // nobody reads meanwhile; capped, and still enough
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    const timeval patience{0, 300'000};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  }
  std::vector<Bytes> all() {
    std::vector<Bytes> out;
    Bytes buffer(65'536);
    for (;;) {
      const ssize_t n = ::recv(fd.get(), buffer.data(), buffer.size(), 0);
      if (n < 0) return out;
      out.emplace_back(buffer.begin(), buffer.begin() + n);
    }
  }
};

Bytes numbered(std::size_t size, std::uint8_t number) {
  Bytes out(size, number);
  return out;
}

TEST(UdpSender, WhatIsGatheredArrivesAsItWasGiven) {
  for (const bool cut : {true, false}) {
    Receiver one, two;
    const Fd from(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    UdpSender sender(from.get(), cut);
    std::vector<Bytes> to_one, to_two;
    std::uint8_t number = 0;
    for (const std::size_t size : {1000, 1000, 1000, 500, 1000, 20, 20, 1400, 1400, 1, 1400}) {
      to_one.push_back(numbered(size, ++number));
      sender.send(kLoopback, one.port, to_one.back());
      if (number % 5 != 0) continue;
      to_two.push_back(numbered(size, ++number));
      sender.send(kLoopback, two.port, to_two.back());
    }
    for (int i = 0; i < 70; ++i) {  // more than leave at once
      to_one.push_back(numbered(1412, static_cast<std::uint8_t>(i)));
      sender.send(kLoopback, one.port, to_one.back());
    }
    sender.flush();
    EXPECT_EQ(one.all(), to_one) << cut;
    EXPECT_EQ(two.all(), to_two) << cut;
    EXPECT_EQ(sender.cut_by_kernel(), cut);
  }
}

TEST(UdpSender, MayStopCuttingAndBeginAgain) {
  Receiver receiver;
  const Fd from(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  UdpSender sender(from.get());
  std::vector<Bytes> sent;
  for (const bool cut : {true, false, true}) {
    sender.send(kLoopback, receiver.port, sent.emplace_back(numbered(700, static_cast<std::uint8_t>(sent.size()))));
    sender.set_cut(cut);  // what waits goes before
    for (int i = 0; i < 5; ++i)
      sender.send(kLoopback, receiver.port, sent.emplace_back(numbered(700, static_cast<std::uint8_t>(sent.size()))));
  }
  sender.flush();
  EXPECT_EQ(receiver.all(), sent);
}

// What sums nothing cannot be cut (EINVAL): that socket is remembered, and only that one, and everything arrives.
TEST(UdpSender, ARefusalIsOfOneSocketAndIsForgiven) {
  Receiver receiver;
  const Fd from(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const auto sums = [&](bool yes) {
    const int no_check = yes ? 0 : 1;
    ASSERT_EQ(::setsockopt(from.get(), SOL_SOCKET, SO_NO_CHECK, &no_check, sizeof no_check), 0);
  };
  UdpSender sender(from.get());
  std::vector<Bytes> sent;
  const auto two = [&] {
    for (int i = 0; i < 2; ++i)
      sender.send(kLoopback, receiver.port, sent.emplace_back(numbered(100, static_cast<std::uint8_t>(sent.size()))));
    sender.flush();
  };
  sums(false);
  two();
  EXPECT_TRUE(sender.refused());
  EXPECT_TRUE(sender.cut_by_kernel()) << "in general it may";
  sender.forgive();
  EXPECT_FALSE(sender.refused());
  two();
  EXPECT_TRUE(sender.refused()) << "asked again, and refused again";
  sums(true);
  two();
  EXPECT_TRUE(sender.refused()) << "not asked";
  sender.forgive();
  two();
  EXPECT_FALSE(sender.refused());
  EXPECT_EQ(receiver.all(), sent);
  sums(false);
  two();
  EXPECT_TRUE(sender.refused());
  const Fd other(::dup(from.get()));
  sender.set_fd(other.get());
  EXPECT_FALSE(sender.refused()) << "another socket";
}

TEST(UdpSender, BothFamiliesInTurn) {
  const Fd six(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 at{};
  at.sin6_family = AF_INET6;
  at.sin6_addr = in6addr_loopback;
  socklen_t length = sizeof at;
  if (!six || ::bind(six.get(), reinterpret_cast<sockaddr*>(&at), sizeof at) != 0) GTEST_SKIP() << "no IPv6 here";
  ASSERT_EQ(::getsockname(six.get(), reinterpret_cast<sockaddr*>(&at), &length), 0);
  const timeval patience{0, 300'000};
  ::setsockopt(six.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  Receiver four;
  const Fd from(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)),
      from6(::socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  Ip6 loopback{};
  loopback[15] = 1;
  UdpSender sender(from.get());
  sender.send6(loopback, ntohs(at.sin6_port), numbered(10, 1));  // nothing to send it with: lost
  sender.set_fd6(from6.get());
  for (std::uint8_t i = 2; i < 6; ++i) {
    sender.send6(loopback, ntohs(at.sin6_port), numbered(1'000, i));
    if (i % 2 == 0) sender.send(kLoopback, four.port, numbered(500, i));
  }
  sender.flush();
  EXPECT_EQ(four.all(), (std::vector<Bytes>{numbered(500, 2), numbered(500, 4)}));
  Bytes buffer(65'536);
  for (std::uint8_t i = 2; i < 6; ++i) {
    const ssize_t n = ::recv(six.get(), buffer.data(), buffer.size(), 0);
    ASSERT_EQ(n, 1'000);
    EXPECT_EQ(buffer[0], i);
  }
  EXPECT_LT(::recv(six.get(), buffer.data(), buffer.size(), 0), 0);
}

TEST(UdpSender, NothingIsKeptAndWhatCannotLeaveIsLost) {
  Receiver receiver;
  const Fd from(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  UdpSender sender(from.get());
  sender.flush();
  sender.send(0xe0000001, 1, numbered(10, 1));  // multicast without a way there, or not: no matter
  sender.send(kLoopback, 0, numbered(10, 2));   // no such port
  sender.send(kLoopback, receiver.port, Bytes{});
  sender.send(kLoopback, receiver.port, Bytes(70'000));
  sender.send(kLoopback, receiver.port, numbered(10, 3));
  sender.flush();
  EXPECT_EQ(receiver.all(), std::vector<Bytes>{numbered(10, 3)});
}

}  // namespace
}  // namespace muster::net
