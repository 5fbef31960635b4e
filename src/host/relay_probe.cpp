#include "host/relay_probe.h"

#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <mutex>
#include <thread>

#include "crypto/random.h"
#include "host/unix_socket.h"
#include "overlay/stun.h"

namespace muster::host {
namespace {

constexpr int kAsked = 3;

struct Found {
  ~Found() {
    if (list != nullptr) freeaddrinfo(list);
  }
  addrinfo* list = nullptr;
};

// Microseconds; 0: no answer.
std::uint32_t ask(int fd, Millis wait) {
  using Clock = std::chrono::steady_clock;
  overlay::StunTransaction transaction;
  for (std::size_t i = 0; i < transaction.size(); i += 4) {
    const std::uint32_t word = crypto::random_u32();
    for (std::size_t k = 0; k < 4; ++k) transaction.at(i + k) = static_cast<std::uint8_t>(word >> 8 * k);
  }
  const Bytes request = overlay::stun_request(transaction);
  const auto sent = Clock::now(), until = sent + std::chrono::milliseconds(wait.count());
  if (::send(fd, request.data(), request.size(), MSG_NOSIGNAL) < 0) return 0;
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd ready{fd, POLLIN, 0};
    if (left <= 0 || poll(&ready, 1, static_cast<int>(left)) <= 0) return 0;
    const auto heard = Clock::now();
    std::array<std::uint8_t, 512> answer{};
    const ssize_t size = ::recv(fd, answer.data(), answer.size(), MSG_DONTWAIT);
    if (size < 0) return 0;  // nobody listens there
    const ByteView bytes(answer.data(), static_cast<std::size_t>(size));
    if (!overlay::read_stun_answer(bytes, transaction)) continue;
    const auto took = std::chrono::duration_cast<std::chrono::microseconds>(heard - sent).count();
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(took, 1, 60'000'000));
  }
}

// Least of a few; 0: no answer, or no such place.
std::uint32_t ask_at(const std::string& host, const std::string& port, Millis wait) {
  addrinfo hints{};
  hints.ai_family = AF_INET;  // as the mirror answers
  hints.ai_socktype = SOCK_DGRAM;
  Found found;
  if (getaddrinfo(host.c_str(), port.c_str(), &hints, &found.list) != 0) return 0;
  const Fd fd(::socket(found.list->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd || ::connect(fd.get(), found.list->ai_addr, found.list->ai_addrlen) != 0) return 0;
  std::uint32_t least = 0;
  for (int i = 0; i < kAsked; ++i) {
    const std::uint32_t rtt = ask(fd.get(), wait);
    if (rtt == 0 && i > 0 && least == 0) break;
    if (rtt != 0) least = least == 0 ? rtt : std::min(least, rtt);
  }
  return least;
}

}  // namespace

std::vector<session::RelaySeen> probe_relays(const std::vector<std::string>& addresses, Millis wait_for_each,
                                             std::uint16_t second_port) {
  std::vector<session::RelaySeen> out;
  for (const std::string& address : addresses) {
    const std::size_t colon = address.rfind(':');
    if (out.size() == kRelaysProbed || colon == std::string::npos) continue;
    std::string host = address.substr(0, colon);
    if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
    const std::string port = address.substr(colon + 1), second = std::to_string(second_port);
    std::uint32_t least = ask_at(host, port, wait_for_each);
    if (least == 0 && second_port != 0 && port != second) least = ask_at(host, second, wait_for_each);
    if (least != 0) out.push_back({address, least});
  }
  return out;
}

struct RelayProbe::Shared {
  std::mutex mutex;
  Poller* poller = nullptr;  // null: it is gone
  bool busy = false;
};

RelayProbe::RelayProbe(Poller& poller) : shared_(std::make_shared<Shared>()) {
  shared_->poller = &poller;
}

RelayProbe::~RelayProbe() {
  const std::lock_guard lock(shared_->mutex);
  shared_->poller = nullptr;
}

void RelayProbe::start(std::vector<std::string> addresses, std::function<void(std::vector<session::RelaySeen>)> done) {
  {
    const std::lock_guard lock(shared_->mutex);
    if (shared_->busy || addresses.empty()) return;
    shared_->busy = true;
  }
  std::thread([shared = shared_, addresses = std::move(addresses), done = std::move(done)]() mutable {
    auto seen = probe_relays(addresses, Millis(1000));
    const std::lock_guard lock(shared->mutex);
    shared->busy = false;
    if (shared->poller == nullptr) return;
    shared->poller->post([shared, done = std::move(done), seen = std::move(seen)]() mutable {
      {
        const std::lock_guard still(shared->mutex);
        if (shared->poller == nullptr) return;
      }
      done(std::move(seen));
    });
  }).detach();
}

}  // namespace muster::host
