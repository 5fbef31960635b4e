// A machine behind a made-up router in network namespaces: what a good one grants, and what a bad one says.
#include "host/port_mapper.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <atomic>
#include <functional>
#include <mutex>

#include "base/endian.h"
#include "host/netd_lab.h"

namespace muster::host {
namespace {

constexpr std::uint32_t kRouterAt = 0x0a630002, kMachineAt = 0x0a630001, kOutside = 0x5db8d822;
constexpr const char* kGroup = "239.255.255.250";

// Answers datagrams to a port inside a namespace. What comes from a socket of its own comes from another port.
class FakeUdp {
 public:
  using Handler = std::function<Bytes(const Bytes&)>;
  FakeUdp(const std::string& ns, std::uint16_t port, Handler handler, bool group = false)
      : handler_(std::move(handler)) {
    lab::inside(ns, [&] {
      fd_ = lab::Echo::bound_udp(port);
      other_ = lab::Echo::bound_udp(0);
      ip_mreqn join{};
      join.imr_multiaddr.s_addr = ::inet_addr(kGroup);
      join.imr_address.s_addr = htonl(kRouterAt);
      if (group) ::setsockopt(fd_, IPPROTO_IP, IP_ADD_MEMBERSHIP, &join, sizeof join);
    });
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeUdp() {
    stop_ = true;
    thread_.join();
    ::close(fd_);
    ::close(other_);
  }
  FakeUdp(const FakeUdp&) = delete;
  FakeUdp& operator=(const FakeUdp&) = delete;
  std::atomic<bool> from_elsewhere{false};

 private:
  void serve() {
    Bytes buffer(2048);
    while (!stop_) {
      sockaddr_in from{};
      socklen_t size = sizeof from;
      const ssize_t n = ::recvfrom(fd_, buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
      if (n < 0) continue;
      const Bytes answer = handler_(Bytes(buffer.begin(), buffer.begin() + n));
      if (!answer.empty())
        ::sendto(from_elsewhere ? other_ : fd_, answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from),
                 size);
    }
  }
  Handler handler_;
  int fd_ = -1, other_ = -1;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

// Answers HTTP requests, one at a time; what is answered in pieces goes on until the client has enough.
class FakeHttp {
 public:
  using Handler = std::function<std::string(const std::string&)>;
  FakeHttp(const std::string& ns, std::uint16_t port, Handler handler) : handler_(std::move(handler)) {
    lab::inside(ns, [&] {
      fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const int on = 1;
      ::setsockopt(fd_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
      sockaddr_in at{};
      at.sin_family = AF_INET;
      at.sin_port = htons(port);
      EXPECT_EQ(::bind(fd_, reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
      EXPECT_EQ(::listen(fd_, 16), 0);
    });
    thread_ = std::thread([this] { serve(); });
  }
  ~FakeHttp() {
    stop_ = true;
    thread_.join();
    ::close(fd_);
  }
  FakeHttp(const FakeHttp&) = delete;
  FakeHttp& operator=(const FakeHttp&) = delete;
  std::atomic<bool> endless{false};
  std::atomic<int> asked{0};

 private:
  void serve() {
    while (!stop_) {
      pollfd wait{fd_, POLLIN, 0};
      if (::poll(&wait, 1, 100) <= 0) continue;
      const Fd client(::accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC));
      const timeval patience{2, 0};
      ::setsockopt(client.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
      ++asked;
      std::string request(8192, '\0');
      std::size_t got = 0;
      while (got < request.size()) {
        const ssize_t n = ::recv(client.get(), request.data() + got, request.size() - got, 0);
        if (n <= 0) break;
        got += static_cast<std::size_t>(n);
        const std::string_view so_far(request.data(), got);
        const auto head = so_far.find("\r\n\r\n");
        const auto length = so_far.find("Content-Length: ");
        const std::size_t body = length == std::string_view::npos ? 0 : std::stoul(request.substr(length + 16, 8));
        if (head != std::string_view::npos && got >= head + 4 + body) break;
      }
      request.resize(got);
      const std::string body = handler_(request);
      std::string out = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/xml\r\n";
      out += endless ? "\r\n" : "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
      (void)!::send(client.get(), out.data(), out.size(), MSG_NOSIGNAL);
      const std::string more(64 << 10, 'x');
      while (endless && !stop_ && ::send(client.get(), more.data(), more.size(), MSG_NOSIGNAL) > 0) {
      }
    }
  }
  Handler handler_;
  int fd_ = -1;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

struct PortMapping : ::testing::Test {
  std::unique_ptr<lab::Pair> pair;
  std::mutex mutex;
  std::vector<MapState> states;             // under mutex, as what follows
  std::vector<overlay::PcpMap> asked;       // MAP requests
  std::vector<std::uint32_t> natpmp_asked;  // lifetimes
  std::uint32_t epoch = 100, outside = kOutside, lifetime = 3600;
  std::uint16_t port = 50'000;
  std::uint8_t code = 0;
  std::unique_ptr<PortMapper> mapper;

  void SetUp() override {
    if (const auto missing = lab::lab_missing({"ip"})) GTEST_SKIP() << *missing;
    pair = std::make_unique<lab::Pair>();
    ASSERT_EQ(lab::sh("ip -n " + pair->a() + " route add default via 10.99.0.2"), 0);
  }
  void TearDown() override { mapper.reset(); }
  void map(std::uint16_t inside = 41'641, char secret = 's') {
    lab::inside(pair->a(), [&] {  // its thread lives there
      mapper = std::make_unique<PortMapper>(
          Bytes(32, static_cast<std::uint8_t>(secret)),
          [this](const MapState& state) {
            const std::lock_guard lock(mutex);
            states.push_back(state);
          },
          MapOptions{Millis(200), Millis(400), Millis(300), Millis(600)});
      mapper->want(inside);
    });
  }
  template <typename Done>
  bool wait_for(Done done, Millis within = Millis(12'000)) {
    const auto end = std::chrono::steady_clock::now() + within;
    while (std::chrono::steady_clock::now() < end) {
      {
        const std::lock_guard lock(mutex);
        if (done()) return true;
      }
      std::this_thread::sleep_for(Millis(20));
    }
    return false;
  }
  bool mapped() const { return !states.empty() && states.back().mapping.has_value(); }
  bool failed() const {
    return !states.empty() && !states.back().mapping && states.back().detail != "the router is asked";
  }
  std::string detail() {
    const std::lock_guard lock(mutex);
    return states.empty() ? "nothing was said" : states.back().detail;
  }
  Mapping mapping() {
    const std::lock_guard lock(mutex);
    return mapped() ? *states.back().mapping : Mapping{};
  }

  // As a router that speaks PCP answers.
  Bytes pcp(const Bytes& request) {
    const std::lock_guard lock(mutex);
    if (request.size() == 24 && request[0] == 2) return announce(request);
    if (request.size() != 60 || request[0] != 2) return {};
    overlay::PcpMap map;
    map.client = load_be32(request.data() + 20);
    std::copy_n(request.begin() + 24, map.nonce.size(), map.nonce.begin());
    map.port = load_be16(request.data() + 40);
    map.lifetime_s = load_be32(request.data() + 4);
    map.wish_port = load_be16(request.data() + 42);
    asked.push_back(map);
    Bytes out = request;
    out[1] |= 0x80;
    out[3] = code;
    store_be32(out.data() + 4, map.lifetime_s == 0 ? 0 : lifetime);
    store_be32(out.data() + 8, epoch);
    store_be32(out.data() + 12, 0);
    store_be32(out.data() + 16, 0);
    store_be32(out.data() + 20, 0);
    store_be16(out.data() + 42, port);
    out[54] = out[55] = 0xff;
    store_be32(out.data() + 56, outside);
    return out;
  }
  Bytes announce(const Bytes& request) const {
    Bytes out = request;
    out[1] |= 0x80;
    store_be32(out.data() + 8, epoch);
    return out;
  }
  // As one that is older: it says to PCP that it knows no such version.
  Bytes natpmp(const Bytes& request) {
    const std::lock_guard lock(mutex);
    if (request.size() >= 2 && request[0] != 0)
      return {0, static_cast<std::uint8_t>(request[1] | 0x80), 0, 1, 0, 0, 0, 9};
    Bytes out{0, static_cast<std::uint8_t>(request[1] | 0x80), 0, code};
    append_be(out, epoch);
    if (request[1] == 0) {
      append_be(out, outside);
    } else {
      natpmp_asked.push_back(load_be32(request.data() + 8));
      append_be(out, load_be16(request.data() + 4));
      append_be(out, port);
      append_be(out, natpmp_asked.back() == 0 ? std::uint32_t{0} : lifetime);
    }
    return out;
  }
};

TEST_F(PortMapping, PcpIsAskedKeptAndEnded) {
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return pcp(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return mapped(); })) << detail();
  const Mapping got = mapping();
  EXPECT_EQ(got.how, MapBy::Pcp);
  EXPECT_EQ(got.ip, kOutside);
  EXPECT_EQ(got.port, 50'000);
  EXPECT_EQ(got.inside, 41'641);
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(asked.at(0).client, kMachineAt);
    EXPECT_EQ(asked.at(0).port, 41'641);
    EXPECT_EQ(asked.at(0).lifetime_s, kMapLifetimeS);
    EXPECT_EQ(asked.size(), 1U);
  }
  // It forgot: another epoch, and it gives another port. Noticed without waiting for half of the lifetime.
  {
    const std::lock_guard lock(mutex);
    epoch = 1;
    port = 50'007;
  }
  ASSERT_TRUE(wait_for([&] { return mapped() && states.back().mapping->port == 50'007; })) << detail();
  mapper->want(0);
  ASSERT_TRUE(wait_for([&] { return asked.back().lifetime_s == 0; })) << "the lease is over";
  const std::lock_guard lock(mutex);
  for (const auto& each : asked) EXPECT_EQ(each.nonce, asked[0].nonce);
  EXPECT_FALSE(mapped());
}

TEST_F(PortMapping, WhoStartsAnewHasTheSameMappingAndNobodyElse) {
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return pcp(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return mapped(); }));
  mapper.reset();
  overlay::PcpNonce first;
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(asked.size(), 1U) << "what is there is left for the next life";
    first = asked[0].nonce;
    states.clear();
  }
  map();
  ASSERT_TRUE(wait_for([&] { return mapped(); }));
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(asked.back().nonce, first);
    states.clear();
  }
  mapper.reset();
  map(41'641, 'x');
  ASSERT_TRUE(wait_for([&] { return mapped(); }));
  const std::lock_guard lock(mutex);
  EXPECT_NE(asked.back().nonce, first);
}

TEST_F(PortMapping, RenewsAtHalfOfWhatWasGranted) {
  lifetime = 1;  // a minute at least is believed
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return pcp(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return mapped(); }));
  std::this_thread::sleep_for(Millis(2'000));
  const std::lock_guard lock(mutex);
  EXPECT_EQ(asked.size(), 1U) << "a router cannot make this machine send all the time";
}

TEST_F(PortMapping, AnAddressOutsideThatIsNotPublicIsOfNoUse) {
  outside = 0x64400102;  // a carrier's NAT behind it
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return pcp(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return failed() && asked.size() == 2; })) << detail();
  EXPECT_NE(detail().find("100.64.1.2, is not public: it sits behind another NAT"), std::string::npos) << detail();
  const std::lock_guard lock(mutex);
  EXPECT_EQ(asked.at(0).lifetime_s, kMapLifetimeS);
  EXPECT_EQ(asked.at(1).lifetime_s, 0U) << "and it is given back";
}

TEST_F(PortMapping, WhatIsNotTheRoutersAnswerIsNotBelieved) {
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) {
    Bytes out = pcp(r);
    if (out.size() == 60) out[30] ^= 1;  // of another request
    return out;
  });
  map();
  ASSERT_TRUE(wait_for([&] { return failed(); }, Millis(20'000)));
  EXPECT_NE(
      detail().find("the router at 10.99.0.2 lets nobody in: PCP: no answer; NAT-PMP: no answer; UPnP: no answer"),
      std::string::npos)
      << detail();
}

TEST_F(PortMapping, AnAnswerFromAnotherPlaceIsNotHeard) {
  FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return pcp(r); });
  router.from_elsewhere = true;
  map();
  ASSERT_TRUE(wait_for([&] { return failed(); }, Millis(20'000)));
  EXPECT_NE(detail().find("PCP: no answer"), std::string::npos) << detail();
}

TEST_F(PortMapping, WhoSaysNoIsNamed) {
  code = 2;
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return pcp(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return failed(); }, Millis(20'000)));
  EXPECT_NE(detail().find("PCP: it is not allowed; switch port mapping on in the router"), std::string::npos)
      << detail();
  {
    const std::lock_guard lock(mutex);
    code = 0;
  }
  EXPECT_TRUE(wait_for([&] { return mapped(); }, Millis(20'000))) << "it is asked again";
}

TEST_F(PortMapping, NatPmpWhereThereIsNoPcp) {
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return natpmp(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return mapped(); })) << detail();
  EXPECT_EQ(mapping().how, MapBy::NatPmp);
  EXPECT_EQ(mapping().ip, kOutside);
  EXPECT_EQ(mapping().port, 50'000);
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(natpmp_asked, std::vector<std::uint32_t>{kMapLifetimeS});
    epoch = 1;
    port = 50'007;
  }
  ASSERT_TRUE(wait_for([&] { return mapped() && states.back().mapping->port == 50'007; })) << detail();
  mapper->want(0);
  EXPECT_TRUE(wait_for([&] { return natpmp_asked.back() == 0; }));
}

TEST_F(PortMapping, NatPmpThatGrantsNothingIsNotBelieved) {
  port = 0;
  const FakeUdp router(pair->b(), 5351, [this](const Bytes& r) { return natpmp(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return failed(); }, Millis(20'000)));
  EXPECT_NE(detail().find("NAT-PMP: it granted nothing"), std::string::npos) << detail();
}

// ---- UPnP
std::string description(const std::string& control) {
  const auto device = [](const std::string& kind, const std::string& inner) {
    return "<device><deviceType>urn:schemas-upnp-org:device:" + kind + ":1</deviceType>" + inner + "</device>";
  };
  const std::string service =
      "<serviceList><service><serviceType>urn:schemas-upnp-org:service:WANIPConnection:1"
      "</serviceType><controlURL>" +
      control + "</controlURL></service></serviceList>";
  return "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">" +
         device("InternetGatewayDevice",
                "<deviceList>" +
                    device("WANDevice", "<deviceList>" + device("WANConnectionDevice", service) + "</deviceList>") +
                    "</deviceList>") +
         "</root>";
}

struct Upnp : PortMapping {
  std::string location = "http://10.99.0.2:5000/desc.xml", control = "/ctl", address = "93.184.216.34", lease;
  std::string client, inside;        // of the entry that it has
  std::vector<std::string> actions;  // under mutex, as all of this
  bool only_for_ever = false;

  Bytes found(const Bytes& request) {
    const std::lock_guard lock(mutex);
    if (as_string(request).find("InternetGatewayDevice:1") == std::string::npos) return {};
    return to_bytes("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nLOCATION: " + location +
                    "\r\nST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\nUSN: uuid:1\r\n\r\n");
  }
  static std::string value(const std::string& request, const std::string& name) {
    const auto from = request.find("<" + name + ">"), to = request.find("</" + name + ">");
    return from == std::string::npos || to == std::string::npos
               ? ""
               : request.substr(from + name.size() + 2, to - from - name.size() - 2);
  }
  static std::string soap(const std::string& action, const std::string& inner) {
    return "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><u:" +
           action + "Response xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\">" + inner + "</u:" + action +
           "Response></s:Body></s:Envelope>";
  }
  static std::string fault(int number) {
    return "<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body><s:Fault><faultcode>s:Client"
           "</faultcode><detail><UPnPError><errorCode>" +
           std::to_string(number) + "</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>";
  }
  std::string answer(const std::string& request) {
    const std::lock_guard lock(mutex);
    if (request.starts_with("GET ")) return description(control);
    for (const char* action :
         {"GetExternalIPAddress", "AddPortMapping", "DeletePortMapping", "GetSpecificPortMappingEntry"}) {
      if (request.find(std::string("#") + action) == std::string::npos) continue;
      actions.emplace_back(action);
      if (actions.back() == "GetExternalIPAddress")
        return soap(action, "<NewExternalIPAddress>" + address + "</NewExternalIPAddress>");
      if (actions.back() == "GetSpecificPortMappingEntry")
        return client.empty() ? fault(714)
                              : soap(action, "<NewInternalPort>" + inside + "</NewInternalPort><NewInternalClient>" +
                                                 client + "</NewInternalClient><NewEnabled>1</NewEnabled>");
      if (actions.back() == "DeletePortMapping") client.clear();
      if (actions.back() == "AddPortMapping") {
        lease = value(request, "NewLeaseDuration");
        if (only_for_ever && lease != "0") return fault(725);
        client = value(request, "NewInternalClient");
        inside = value(request, "NewInternalPort");
      }
      return soap(action, "");
    }
    return "";
  }
};

TEST_F(Upnp, IsAskedLookedAtAndEnded) {
  const FakeUdp search(
      pair->b(), 1900, [this](const Bytes& r) { return found(r); }, true);
  const FakeHttp http(pair->b(), 5000, [this](const std::string& r) { return answer(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return mapped(); }, Millis(20'000))) << detail();
  EXPECT_EQ(mapping().how, MapBy::Upnp);
  EXPECT_EQ(mapping().ip, kOutside);
  EXPECT_EQ(mapping().port, 41'641);
  {
    const std::lock_guard lock(mutex);
    EXPECT_EQ(client, "10.99.0.1");
    EXPECT_EQ(inside, "41641");
    EXPECT_EQ(lease, "3600");
    client.clear();  // it restarts
  }
  EXPECT_TRUE(wait_for([&] { return client == "10.99.0.1"; })) << "it is asked again";
  mapper->want(0);
  EXPECT_TRUE(wait_for([&] { return actions.back() == "DeletePortMapping"; }));
}

TEST_F(Upnp, WhoGrantsOnlyForEverIsTakenAtItsWord) {
  only_for_ever = true;
  const FakeUdp search(
      pair->b(), 1900, [this](const Bytes& r) { return found(r); }, true);
  const FakeHttp http(pair->b(), 5000, [this](const std::string& r) { return answer(r); });
  map();
  ASSERT_TRUE(wait_for([&] { return mapped(); }, Millis(20'000))) << detail();
  EXPECT_EQ(mapping().lifetime_s, 0U);
  mapper->want(0);
  EXPECT_TRUE(wait_for([&] { return actions.back() == "DeletePortMapping"; }));
}

// Anybody on the network answers the search: only what is at the gateway itself is asked.
TEST_F(Upnp, OnlyTheGatewayIsAsked) {
  ASSERT_EQ(lab::sh("ip -n " + pair->b() + " addr add 10.99.0.9/24 dev " +
                    [&] {
                      std::string device = pair->device_of_a();
                      device.back() = '1';
                      return device;
                    }()),
            0);
  const FakeUdp search(
      pair->b(), 1900, [this](const Bytes& r) { return found(r); }, true);
  FakeHttp http(pair->b(), 5000, [this](const std::string& r) { return answer(r); });
  for (const std::string elsewhere : {"http://10.99.0.9:5000/desc.xml", "http://10.99.0.2.example.org:5000/",
                                      "http://10.99.0.2@10.99.0.9:5000/", "https://10.99.0.2:5000/", "x"}) {
    {
      const std::lock_guard lock(mutex);
      location = elsewhere;
      states.clear();
    }
    map();
    ASSERT_TRUE(wait_for([&] { return failed(); }, Millis(20'000)));
    EXPECT_EQ(http.asked, 0) << elsewhere;
    mapper.reset();
  }
  {
    const std::lock_guard lock(mutex);
    location = "http://10.99.0.2:5000/desc.xml";
    control = "http://10.99.0.9:5000/ctl";
    states.clear();
  }
  map();
  ASSERT_TRUE(wait_for([&] { return failed(); }, Millis(20'000)));
  EXPECT_TRUE(actions.empty()) << "its description leads elsewhere";
}

TEST_F(Upnp, EndlessAnswersEnd) {
  const FakeUdp search(
      pair->b(), 1900, [this](const Bytes& r) { return found(r); }, true);
  FakeHttp http(pair->b(), 5000, [this](const std::string& r) { return answer(r); });
  http.endless = true;
  const auto began = std::chrono::steady_clock::now();
  map();
  ASSERT_TRUE(wait_for([&] { return failed(); }, Millis(20'000)));
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(14));
  EXPECT_GT(http.asked, 0);
  mapper.reset();  // and nobody waits for it
}

TEST_F(Upnp, NonsenseIsRefused) {
  const FakeUdp search(
      pair->b(), 1900, [this](const Bytes& r) { return found(r); }, true);
  const FakeHttp http(pair->b(), 5000, [this](const std::string& r) { return answer(r); });
  for (const std::string nonsense :
       {"", "10.0.0.1", "not.an.add.ress", "93.184.216.34 7 7", "1.2.3.4.5.6.7.8.9.10.11.12.13.14.15.16.17"}) {
    {
      const std::lock_guard lock(mutex);
      address = nonsense;
      states.clear();
    }
    map();
    EXPECT_TRUE(wait_for([&] { return failed(); }, Millis(20'000))) << nonsense;
    mapper.reset();
  }
}

TEST_F(PortMapping, WithoutARouterNothingIsAsked) {
  ASSERT_EQ(lab::sh("ip -n " + pair->a() + " route del default"), 0);
  map();
  ASSERT_TRUE(wait_for([&] { return failed(); }));
  EXPECT_EQ(detail(), "no way leads to the internet by IPv4");
  ASSERT_EQ(lab::sh("ip -n " + pair->a() + " tuntap add dev tun7 mode tun"), 0);
  ASSERT_EQ(lab::sh("ip -n " + pair->a() + " addr add 10.77.0.1/24 dev tun7"), 0);
  ASSERT_EQ(lab::sh("ip -n " + pair->a() + " link set tun7 up"), 0);
  ASSERT_EQ(lab::sh("ip -n " + pair->a() + " route add default dev tun7"), 0);
  EXPECT_TRUE(wait_for([&] { return states.back().detail.find("through tun7, a tunnel") != std::string::npos; }))
      << detail();
}

}  // namespace
}  // namespace muster::host
