#include "host/relay_probe.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <chrono>
#include <thread>

#include "overlay/stun.h"

namespace muster::host {
namespace {

// A relay's UDP port: answers after a while, or with what was not asked, or not at all.
class Mirror {
 public:
  enum class Says : std::uint8_t { Truth, Nonsense, Nothing };
  Mirror(Says says, int after_ms) : fd_(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in at{};
    at.sin_family = AF_INET;
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(fd_.get(), reinterpret_cast<sockaddr*>(&at), sizeof at), 0);
    socklen_t size = sizeof at;
    ::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&at), &size);
    address_ = "127.0.0.1:" + std::to_string(ntohs(at.sin_port));
    const timeval wait{0, 20'000};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
    thread_ = std::thread([this, says, after_ms] {
      while (!stop_) {
        std::array<std::uint8_t, 512> datagram{};
        sockaddr_in from{};
        socklen_t length = sizeof from;
        const ssize_t got =
            ::recvfrom(fd_.get(), datagram.data(), datagram.size(), 0, reinterpret_cast<sockaddr*>(&from), &length);
        if (got < 0) continue;
        ++asked;
        auto transaction = overlay::read_stun_request(ByteView(datagram.data(), static_cast<std::size_t>(got)));
        if (!transaction || says == Says::Nothing) continue;
        std::this_thread::sleep_for(std::chrono::milliseconds(after_ms));
        if (says == Says::Nonsense) (*transaction)[0] ^= 1U;
        const Bytes answer = overlay::stun_answer(*transaction, 0x7f000001, 9);
        ::sendto(fd_.get(), answer.data(), answer.size(), 0, reinterpret_cast<sockaddr*>(&from), length);
      }
    });
  }
  ~Mirror() {
    stop_ = true;
    thread_.join();
  }
  const std::string& address() const { return address_; }
  std::atomic<int> asked = 0;

 private:
  Fd fd_;
  std::string address_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

TEST(RelayProbe, TellsTheQuickestAnswerOfThoseThatAnswer) {
  Mirror far(Mirror::Says::Truth, 30), near(Mirror::Says::Truth, 0), liar(Mirror::Says::Nonsense, 0),
      silent(Mirror::Says::Nothing, 0);
  const auto seen = probe_relays(
      {far.address(), "no-port", "nobody.invalid:443", silent.address(), liar.address(), near.address(), "127.0.0.1:1"},
      Millis(200), 0);
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].address, far.address());
  EXPECT_EQ(seen[1].address, near.address());
  EXPECT_GE(seen[0].rtt_us, 30'000U);
  EXPECT_LT(seen[1].rtt_us, 30'000U);
  EXPECT_EQ(near.asked, 3);
  EXPECT_LE(silent.asked, 2) << "who does not answer is not asked on and on";
}

TEST(RelayProbe, AsksAtTheSecondPortWhereTheFirstIsBlocked) {
  Mirror blocked(Mirror::Says::Nothing, 0), second(Mirror::Says::Truth, 0), answers(Mirror::Says::Truth, 0);
  const std::string other = second.address();
  const auto port = static_cast<std::uint16_t>(std::stoi(other.substr(other.rfind(':') + 1)));
  const auto seen = probe_relays({blocked.address(), answers.address()}, Millis(200), port);
  ASSERT_EQ(seen.size(), 2U);
  EXPECT_EQ(seen[0].address, blocked.address()) << "told under the name the server knows";
  EXPECT_EQ(second.asked, 3) << "only for the one that was silent";
}

TEST(RelayProbe, ARoundAtATimeAndNothingAfterItIsGone) {
  Poller poller;
  Mirror mirror(Mirror::Says::Truth, 10);
  int rounds = 0;
  {
    RelayProbe probe(poller);
    const auto count = [&](const std::vector<session::RelaySeen>& seen) {
      EXPECT_EQ(seen.size(), 1U);
      ++rounds;
      poller.stop();
    };
    probe.start({}, count);
    probe.start({mirror.address()}, count);
    probe.start({mirror.address()}, count);
    poller.after(Millis(10'000), [&] { poller.stop(); });
    poller.run();
    EXPECT_EQ(rounds, 1);
    probe.start({mirror.address()}, count);
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(200));  // the answer comes, and finds nobody
  EXPECT_EQ(rounds, 1) << "it was gone before the answer came";
}

}  // namespace
}  // namespace muster::host
