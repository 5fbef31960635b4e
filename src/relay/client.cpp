#include "relay/client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <thread>

#include "base/log.h"
#include "crypto/random.h"
#include "net/dial.h"
#include "overlay/relay_protocol.h"
#include "relay/upgrade.h"

namespace muster::relay {
namespace {

namespace ov = overlay;
using SteadyClock = std::chrono::steady_clock;
constexpr std::size_t kQueueBytesMax = 2 << 20;
constexpr std::size_t kPendingMax = 64 << 10;
constexpr int kUnsentMax = 128 << 10;  // in the kernel: what waits should wait where it can be seen
constexpr int kQuickPings = 3;         // then it is known how far the relay is
constexpr Millis kQuickPingEvery{1'000};

// None: not known.
ov::Endpoint peer_place(int fd) {
  sockaddr_in6 at{};
  socklen_t size = sizeof at;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&at), &size) != 0) return {};
  if (at.sin6_family == AF_INET) {
    sockaddr_in four{};
    std::memcpy(&four, &at, sizeof four);
    return ov::Endpoint::udp(ntohl(four.sin_addr.s_addr), ntohs(four.sin_port));
  }
  if (at.sin6_family != AF_INET6) return {};
  if (!IN6_IS_ADDR_V4MAPPED(&at.sin6_addr)) {
    Ip6 six;
    std::memcpy(six.data(), &at.sin6_addr, six.size());
    return ov::Endpoint::udp6(six, ntohs(at.sin6_port));
  }
  std::uint32_t four = 0;
  std::memcpy(&four, at.sin6_addr.s6_addr + 12, sizeof four);
  return ov::Endpoint::udp(ntohl(four), ntohs(at.sin6_port));
}

}  // namespace

struct Client::Impl {
  explicit Impl(ClientOptions o) : options(std::move(o)), wake(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

  void set_state(ClientState next, const std::string& detail) {
    if (state.exchange(next) == next) return;
    if (callbacks.on_state) callbacks.on_state(next, detail);
  }
  void ring() const {
    const std::uint64_t one = 1;
    (void)!::write(wake.get(), &one, sizeof one);
  }
  void hush() const {
    std::uint64_t count = 0;
    (void)!::read(wake.get(), &count, sizeof count);
  }

  void run() {
    Millis back_off = options.back_off_min;
    while (!stopping) {
      set_state(ClientState::Connecting, options.endpoint.host);
      const auto begin = SteadyClock::now();
      anew = false;
      reached = greeted = false;
      const Error why = session();
      {
        const std::lock_guard lock(mutex);
        out.clear();
        queued = 0;
      }
      if (stopping) break;
      // Whoever else may have answered to the other way of asking says nothing about token and key.
      const bool refused =
          (greeted || !otherwise) &&
          (why.code == Code::Unauthenticated || why.code == Code::PermissionDenied || why.code == Code::Unsupported);
      if (reached && !greeted) otherwise = !otherwise;
      if (SteadyClock::now() - begin > Millis(30'000)) back_off = options.back_off_min;
      set_state(refused ? ClientState::Refused : ClientState::Waiting, why.message);
      // Half fixed, half random: members of a fallen relay must not come back in step.
      const Millis span = refused ? options.back_off_max : back_off;
      const Millis pause = span / 2 + Millis(crypto::random_u32() % static_cast<std::uint32_t>(span.count() / 2 + 1));
      back_off = std::min(back_off * 2, options.back_off_max);
      std::unique_lock lock(mutex);
      changed.wait_for(lock, pause, [this] { return stopping.load() || anew.load() || token_changed; });
      if (anew) back_off = options.back_off_min;
      token_changed = false;
    }
    set_state(ClientState::Stopped, "");
  }

  // One connection from dial to its end; says why it ended.
  Error session() {
    net::Endpoint endpoint;
    {
      const std::lock_guard lock(mutex);
      endpoint = options.endpoint;
    }
    reader = {};
    const net::Deadline deadline = net::deadline_in(options.dial_time);
    auto dialled = net::connect_to(endpoint, deadline);
    if (!dialled.ok()) return dialled.error();
    net::Dialled connection = std::move(*dialled);
    reached = true;
    const bool asks = connection.by_proxy != otherwise;
    const Status secure = asks ? ask_inside_tls(connection, endpoint, deadline)
                               : net::start_tls(connection, endpoint, std::string(ov::kRelayAlpn), deadline);
    if (!secure.ok()) return secure.error();
    ::setsockopt(connection.fd.get(), IPPROTO_TCP, TCP_NOTSENT_LOWAT, &kUnsentMax, sizeof kUnsentMax);
    place = connection.by_proxy ? ov::Endpoint{} : peer_place(connection.fd.get());
    address = place.ip;
    pending.clear();
    last_heard = SteadyClock::now();
    last_ping = last_heard;
    pings = 0;
    rtt_us = 0;
    welcome = false;
    const auto began = last_heard;
    if (const Status early = handle_all(); !early.ok()) return early.error();
    while (!stopping) {
      if (anew) return error(Code::Unavailable, "this machine is somewhere else now");
      Status step = receive(connection);
      if (step.ok() && welcome && pending.empty()) say_keys(true);
      // The relay ends a connection with its token, so it gets the next one before.
      if (step.ok() && welcome && pending.empty() && newer_token()) step = introduce();
      if (step.ok()) step = transmit(connection);
      if (!step.ok()) return step.error();
      const auto now = SteadyClock::now();
      if (now - last_heard > 3 * ov::kRelayPingEvery) return error(Code::Unavailable, "the relay is silent");
      if (!welcome && now - began > options.dial_time)
        return error(Code::Unavailable, "the relay does not say welcome");
      if (welcome && (pings == 0 || now - last_ping > (pings < kQuickPings ? kQuickPingEvery : ov::kRelayPingEvery))) {
        last_ping = now;
        ov::append_ping(pending, ++pings);
        continue;
      }
      pollfd fds[2] = {{connection.fd.get(), static_cast<short>(POLLIN | (blocked ? POLLOUT : 0)), 0},
                       {wake.get(), POLLIN, 0}};
      if (SSL_pending(connection.ssl.get()) == 0) ::poll(fds, 2, 1000);
      hush();
    }
    return error(Code::Cancelled, "stopped");
  }

  // As any client of the web looks: what is in the clear is "http/1.1", and the wish for the relay comes inside. One
  // round trip more than by ALPN.
  Status ask_inside_tls(net::Dialled& connection, const net::Endpoint& endpoint, net::Deadline deadline) {
    TRY_VOID(net::start_tls(connection, endpoint, "http/1.1", deadline));
    TRY_VOID(net::write_all(connection, upgrade_request(endpoint.server_name), deadline));
    for (HeadReader answer;;) {
      char buffer[2048];
      const std::size_t n = TRY(net::read_some(connection, buffer, sizeof buffer, deadline));
      if (n == 0) return error(Code::Unavailable, "the relay closed the connection");
      std::size_t taken = 0;
      const ByteView bytes = as_bytes({buffer, n});
      const auto state = answer.feed(bytes, taken);
      if (state == HeadReader::State::NeedMore) continue;
      const auto refusal =
          state == HeadReader::State::Whole ? upgrade_refusal(answer.head()) : std::optional<std::string>("too much");
      if (refusal) return error(Code::Unavailable, "the relay does not switch to its protocol: " + *refusal);
      reader.feed(bytes.subspan(taken));
      return {};
    }
  }

  Status receive(net::Dialled& connection) {
    std::uint8_t buffer[16 << 10];
    for (int rounds = 0; rounds < 16; ++rounds) {
      std::size_t n = 0;
      const int rc = SSL_read_ex(connection.ssl.get(), buffer, sizeof buffer, &n);
      if (rc != 1) {
        const int kind = SSL_get_error(connection.ssl.get(), rc);
        if (kind == SSL_ERROR_WANT_READ || kind == SSL_ERROR_WANT_WRITE) return {};
        (void)net::ssl_error_text();
        return error(Code::Unavailable, "the relay closed the connection");
      }
      last_heard = SteadyClock::now();
      reader.feed({buffer, n});
      TRY_VOID(handle_all());
    }
    return {};
  }
  Status handle_all() {
    while (auto frame = TRY(reader.next())) TRY_VOID(handle(*frame));
    return {};
  }

  // Before a token that the newest key signed.
  void say_keys(bool only_newer) {
    const std::lock_guard lock(mutex);
    if (keys.empty() || (only_newer && !keys_changed)) return;
    keys_changed = false;
    ov::append_keys(pending, keys);
  }
  Status introduce() {
    Bytes token;
    {
      const std::lock_guard lock(mutex);
      token = options.token;
      token_changed = false;
    }
    ov::append_hello(pending, TRY(ov::make_hello(challenge, options.overlay, token)));
    return {};
  }
  bool newer_token() {
    const std::lock_guard lock(mutex);
    return token_changed;
  }

  Status handle(const ov::RelayFrame& frame) {
    switch (frame.type) {
      case ov::RelayType::Challenge:
        challenge = TRY(ov::parse_challenge(frame.body));
        greeted = true;
        say_keys(false);
        return introduce();
      case ov::RelayType::Welcome:
        welcome = true;
        if (const auto grant = ov::decode_udp_grant(frame.body); grant && place.direct() && callbacks.on_udp)
          callbacks.on_udp(*grant, place);
        set_state(ClientState::Up, options.endpoint.host);
        return {};
      case ov::RelayType::Recv: {
        const auto packet = TRY(ov::parse_packet(frame.body));
        if (callbacks.on_packet) callbacks.on_packet(packet.key, packet.payload);
        return {};
      }
      case ov::RelayType::PeerGone: {
        const auto key = TRY(ov::parse_peer_gone(frame.body));
        if (callbacks.on_peer_gone) callbacks.on_peer_gone(key);
        return {};
      }
      case ov::RelayType::Ping:
        ov::append_pong(pending, TRY(ov::parse_ping(frame.body)));
        return {};
      case ov::RelayType::Pong:
        if (TRY(ov::parse_ping(frame.body)) == pings) measured(SteadyClock::now() - last_ping);
        return {};
      case ov::RelayType::Error: {
        const auto told = TRY(ov::parse_error(frame.body));
        const bool credentials = told.code == ov::RelayErrorCode::BadToken ||
                                 told.code == ov::RelayErrorCode::BadProof || told.code == ov::RelayErrorCode::Expired;
        const Code code = credentials                                ? Code::Unauthenticated
                          : told.code == ov::RelayErrorCode::Version ? Code::Unsupported
                                                                     : Code::Unavailable;
        return error(code, "the relay refuses: " + told.message.substr(0, 300));
      }
      default:
        return error(Code::Unavailable, "the relay sent a frame that only members send");
    }
  }

  void measured(SteadyClock::duration took) {
    const auto us = std::chrono::duration_cast<std::chrono::microseconds>(took).count();
    const auto fresh = static_cast<std::uint32_t>(std::clamp<std::int64_t>(us, 1, UINT32_MAX));
    const std::uint32_t before = rtt_us;
    rtt_us = before == 0 ? fresh : static_cast<std::uint32_t>((std::uint64_t{before} * 3 + fresh) / 4);
  }

  Status transmit(net::Dialled& connection) {
    blocked = false;
    while (true) {
      if (pending.empty()) {
        const std::lock_guard lock(mutex);
        while (welcome && !out.empty() && pending.size() < kPendingMax) {
          pending.insert(pending.end(), out.front().begin(), out.front().end());
          queued -= out.front().size();
          out.pop_front();
        }
      }
      if (pending.empty()) return {};
      std::size_t n = 0;
      const int rc = SSL_write_ex(connection.ssl.get(), pending.data(), pending.size(), &n);
      if (rc == 1) {
        pending.erase(pending.begin(), pending.begin() + static_cast<std::ptrdiff_t>(n));
        continue;
      }
      const int kind = SSL_get_error(connection.ssl.get(), rc);
      blocked = kind == SSL_ERROR_WANT_WRITE;
      if (blocked || kind == SSL_ERROR_WANT_READ) return {};
      (void)net::ssl_error_text();
      return error(Code::Unavailable, "the relay closed the connection");
    }
  }

  ClientOptions options;
  ClientCallbacks callbacks;
  net::Fd wake;
  std::atomic<ClientState> state{ClientState::Stopped};
  std::atomic<bool> stopping{false}, anew{false};
  std::atomic<std::uint32_t> address{0}, rtt_us{0};
  std::thread thread;
  // the thread's own
  ov::Endpoint place;  // of the relay
  ov::FrameReader reader;
  Bytes pending;
  SteadyClock::time_point last_heard, last_ping;
  ov::RelayChallenge challenge;
  bool welcome = false, blocked = false;
  // A box on the way may not like how we say that we want the relay: by ALPN, or asked inside TLS (through a proxy,
  // where the round trip is little beside the proxy's own). After a failure the other one gets its turn.
  bool otherwise = false;
  bool reached = false, greeted = false;  // of the connection: its far end, the relay in it
  std::uint64_t pings = 0;
  // shared
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Bytes> out;
  std::atomic<std::size_t> queued{0};  // written under mutex
  bool token_changed = false, keys_changed = false;
  Bytes keys;
};

Client::Client(ClientOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {
  impl_->options.endpoint.role = crypto::ServerRole::Relay;
}
Client::~Client() {
  stop();
}

void Client::start(ClientCallbacks callbacks) {
  MUSTER_CHECK(!impl_->thread.joinable());
  impl_->callbacks = std::move(callbacks);
  impl_->thread = std::thread([impl = impl_.get()] { impl->run(); });
}

bool Client::send(const crypto::Key32& destination, ByteView payload) {
  if (state() != ClientState::Up || payload.empty() || payload.size() > ov::kRelayPayloadMax) return false;
  Bytes frame;
  ov::append_send(frame, destination, payload);
  bool first = false;
  {
    const std::lock_guard lock(impl_->mutex);
    first = impl_->out.empty();
    impl_->queued += frame.size();
    impl_->out.push_back(std::move(frame));
    while (impl_->queued > kQueueBytesMax) {
      impl_->queued -= impl_->out.front().size();
      impl_->out.pop_front();
    }
  }
  if (first) impl_->ring();
  return true;
}

bool Client::recall(ByteView frame) {
  if (state() != ClientState::Up || frame.size() > ov::kRelayBodyMax) return false;
  Bytes out;
  ov::append_recall(out, frame);
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->queued + out.size() > kQueueBytesMax) return false;
    impl_->queued += out.size();
    impl_->out.push_back(std::move(out));
  }
  impl_->ring();
  return true;
}

void Client::set_token(Bytes token) {
  {
    const std::lock_guard lock(impl_->mutex);
    if (impl_->options.token == token) return;
    impl_->options.token = std::move(token);
    impl_->token_changed = true;
  }
  impl_->changed.notify_all();
  impl_->ring();
}

void Client::set_keys(Bytes statement) {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->keys = std::move(statement);
    impl_->keys_changed = true;
  }
  impl_->ring();
}

void Client::set_ca(std::string ca_pem) {
  const std::lock_guard lock(impl_->mutex);
  impl_->options.endpoint.ca_pem = std::move(ca_pem);
}

void Client::reconnect() {
  {
    const std::lock_guard lock(impl_->mutex);  // so that the waiter sees it
    impl_->anew = true;
  }
  impl_->changed.notify_all();
  impl_->ring();
}

std::uint32_t Client::address() const {
  return impl_->address;
}

std::uint32_t Client::rtt_us() const {
  return impl_->rtt_us;
}

std::size_t Client::backlog() const {
  return impl_->queued;
}

ClientState Client::state() const {
  return impl_->state;
}

void Client::stop() {
  impl_->stopping = true;
  impl_->ring();
  {
    const std::lock_guard lock(impl_->mutex);  // so that the waiter sees it
  }
  impl_->changed.notify_all();
  if (impl_->thread.joinable()) impl_->thread.join();
}

}  // namespace muster::relay
