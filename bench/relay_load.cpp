// The one client of `make bench NAME=relay`, for both sides: muster-relay and Tailscale's derper, whose frames have the
// same form (kind, length, key, payload). One thread, TLS as OpenSSL's clients ask for it, every packet a record of its
// own. Usage:
//   bench_relay_load keys FOLDER                           certificate, key and controller's key for both servers
//   bench_relay_load load muster|derp PORT PID PAIRS BYTES RATE SECONDS
//   bench_relay_load idle muster|derp PORT PID CLIENTS
// load: one of each pair sends to the other. RATE packets a second over all pairs leave at random (Poisson, the same
// sequence each time) with the time they were due, and what cannot leave waits with its clock running; RATE 0: as fast
// as the server takes them. A first second is not counted. idle: so many clients connect and are silent.
// PID is the server's: its processor time and memory are read there. One JSON object on standard output.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <optional>
#include <queue>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/endian.h"
#include "base/rng.h"
#include "crypto/cert.h"
#include "crypto/random.h"
#include "overlay/relay_protocol.h"

namespace {

using namespace muster;
using Clock = std::chrono::steady_clock;
using Nanos = std::int64_t;

constexpr const char* kRelayId = "bench";
constexpr const char* kDerpName = "derp.bench";
constexpr std::size_t kHeader = 5;
constexpr std::size_t kKey = 32;
constexpr Nanos kSecond = 1'000'000'000;
constexpr Nanos kPace = 200'000;  // what is due sooner leaves together

[[noreturn]] void fail(const std::string& why) {
  fmt::print(stderr, "bench_relay_load: {}\n", why);
  std::exit(1);
}
Nanos now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

crypto::SigningKey controller() {
  return *crypto::SigningKey::from_seed(Bytes(32, 7));
}

int write_keys(const std::string& folder) {
  const WallTime now = read_clocks().wall;
  const auto ca = crypto::create_ca("bench", now);
  if (!ca.ok()) fail(ca.error().message);
  const auto server = crypto::issue_server_certificate(*ca, crypto::ServerRole::Relay, "bench",
                                                       {"muster-relay", kDerpName}, now, Millis(86'400'000));
  if (!server.ok()) fail(server.error().message);
  std::ofstream(folder + "/" + kDerpName + ".crt") << server->cert_pem << ca->cert_pem;
  std::ofstream(folder + "/" + kDerpName + ".key") << server->key_pem;
  std::ofstream(folder + "/controller.pub") << base64(controller().public_key()) << "\n";
  return 0;
}

// ---- NaCl's crypto_box, with which a derper is greeted (XSalsa20 and Poly1305, "Cryptography in NaCl", Bernstein
// 2009)

std::array<std::uint32_t, 16> salsa_start(const std::uint8_t* key, const std::uint8_t* input) {
  static constexpr std::uint32_t kSigma[] = {0x61707865, 0x3320646e, 0x79622d32, 0x6b206574};
  std::array<std::uint32_t, 16> x{};
  for (std::size_t i = 0; i < 4; ++i) {
    x[5 * i] = kSigma[i];
    x[1 + i] = load_le32(key + 4 * i);
    x[11 + i] = load_le32(key + 16 + 4 * i);
    x[6 + i] = load_le32(input + 4 * i);
  }
  return x;
}
void salsa_rounds(std::array<std::uint32_t, 16>& x) {
  const auto quarter = [&x](int a, int b, int c, int d) {
    x[b] ^= std::rotl(x[a] + x[d], 7);
    x[c] ^= std::rotl(x[b] + x[a], 9);
    x[d] ^= std::rotl(x[c] + x[b], 13);
    x[a] ^= std::rotl(x[d] + x[c], 18);
  };
  for (int round = 0; round < 10; ++round) {
    quarter(0, 4, 8, 12), quarter(5, 9, 13, 1), quarter(10, 14, 2, 6), quarter(15, 3, 7, 11);
    quarter(0, 1, 2, 3), quarter(5, 6, 7, 4), quarter(10, 11, 8, 9), quarter(15, 12, 13, 14);
  }
}
Bytes hsalsa(ByteView key, const std::uint8_t* input) {
  auto x = salsa_start(key.data(), input);
  salsa_rounds(x);
  Bytes out(32);
  static constexpr int kTaken[] = {0, 5, 10, 15, 6, 7, 8, 9};
  for (std::size_t i = 0; i < 8; ++i) store_le32(out.data() + 4 * i, x[static_cast<std::size_t>(kTaken[i])]);
  return out;
}
Bytes salsa_stream(ByteView key, const std::uint8_t* nonce8, std::size_t size) {
  Bytes out;
  for (std::uint64_t block = 0; out.size() < size; ++block) {
    std::uint8_t input[16];
    std::memcpy(input, nonce8, 8);
    store_le64(input + 8, block);
    const auto start = salsa_start(key.data(), input);
    auto x = start;
    salsa_rounds(x);
    for (std::size_t i = 0; i < 16; ++i) {
      std::uint8_t word[4];
      store_le32(word, x[i] + start[i]);
      out.insert(out.end(), word, word + 4);
    }
  }
  out.resize(size);
  return out;
}
Bytes poly1305(ByteView key, ByteView data) {
  std::unique_ptr<EVP_MAC, decltype(&EVP_MAC_free)> mac(EVP_MAC_fetch(nullptr, "POLY1305", nullptr), EVP_MAC_free);
  std::unique_ptr<EVP_MAC_CTX, decltype(&EVP_MAC_CTX_free)> ctx(EVP_MAC_CTX_new(mac.get()), EVP_MAC_CTX_free);
  Bytes tag(16);
  std::size_t size = 0;
  if (EVP_MAC_init(ctx.get(), key.data(), key.size(), nullptr) != 1 ||
      EVP_MAC_update(ctx.get(), data.data(), data.size()) != 1 ||
      EVP_MAC_final(ctx.get(), tag.data(), &size, tag.size()) != 1)
    fail("Poly1305 does not work here");
  return tag;
}
// 24 bytes of nonce, then the box.
Bytes seal_box(const crypto::X25519Pair& from, const crypto::Key32& to, std::string_view text) {
  const Bytes nonce = crypto::random_bytes(24);
  const auto shared = crypto::x25519_agree(from.secret, to);
  if (!shared) fail("the server's key is none");
  const std::uint8_t zero[16] = {};
  const Bytes key = hsalsa(hsalsa(shared->view(), zero), nonce.data());
  const Bytes stream = salsa_stream(key, nonce.data() + 16, 32 + text.size());
  Bytes sealed(text.begin(), text.end());
  for (std::size_t i = 0; i < sealed.size(); ++i) sealed[i] ^= stream[32 + i];
  const Bytes tag = poly1305(ByteView(stream).first(32), sealed);
  Bytes out = nonce;
  out.insert(out.end(), tag.begin(), tag.end());
  out.insert(out.end(), sealed.begin(), sealed.end());
  return out;
}

// ---- one connection

Bytes frame_of(std::uint8_t kind, ByteView body) {
  Bytes out{kind};
  append_be(out, static_cast<std::uint32_t>(body.size()));
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

struct Side {
  bool derp = false;
  std::uint16_t port = 0;
  int pid = 0;
};

class Connection {
 public:
  const crypto::X25519Pair key = crypto::x25519_generate();

  // Blocking until the server has let it in. `from`: the last number of an address of this machine, 127.0.0.from.
  Connection(SSL_CTX& context, const Side& side, std::uint8_t from) : derp_(side.derp) {
    fd_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in own{}, to{};
    own.sin_family = to.sin_family = AF_INET;
    own.sin_addr.s_addr = htonl(0x7f000000U | from);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    to.sin_port = htons(side.port);
    const int on = 1;
    ::setsockopt(fd_, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    if (::bind(fd_, reinterpret_cast<const sockaddr*>(&own), sizeof own) != 0 ||
        ::connect(fd_, reinterpret_cast<const sockaddr*>(&to), sizeof to) != 0)
      fail(std::string("cannot connect: ") + std::strerror(errno));
    ::setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ssl_.reset(SSL_new(&context));
    SSL_set_fd(ssl_.get(), fd_);
    const char* name = derp_ ? kDerpName : "muster-relay";
    SSL_set_tlsext_host_name(ssl_.get(), name);
    if (!derp_) {
      const std::string alpn = static_cast<char>(overlay::kRelayAlpn.size()) + std::string(overlay::kRelayAlpn);
      SSL_set_alpn_protos(ssl_.get(), reinterpret_cast<const unsigned char*>(alpn.data()),
                          static_cast<unsigned>(alpn.size()));
    }
    if (SSL_connect(ssl_.get()) != 1) fail("the TLS handshake failed");
    derp_ ? greet_derp() : greet_muster();
    ::fcntl(fd_, F_SETFL, O_NONBLOCK);
  }
  ~Connection() {
    ssl_.reset();
    ::close(fd_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  int fd() const { return fd_; }
  const char* cipher() const { return SSL_get_cipher_name(ssl_.get()); }
  bool blocked() const { return !waiting_.empty(); }

  // Every frame is a record; one that cannot leave now waits, and those after it.
  void send(Bytes frame) {
    waiting_.push_back(std::move(frame));
    if (waiting_.size() == 1) flush();
  }
  void flush() {
    while (!waiting_.empty()) {
      ERR_clear_error();
      const int rc = SSL_write(ssl_.get(), waiting_.front().data(), static_cast<int>(waiting_.front().size()));
      if (rc <= 0) {
        if (SSL_get_error(ssl_.get(), rc) == SSL_ERROR_WANT_WRITE) return;
        fail("the server closed the connection while it was written to");
      }
      waiting_.pop_front();
    }
  }
  // Everything that is there; packets go to `packet(payload)`, pings are answered.
  template <typename F>
  void receive(F packet) {
    static thread_local std::uint8_t piece[64 << 10];
    for (;;) {
      ERR_clear_error();
      const int rc = SSL_read(ssl_.get(), piece, sizeof piece);
      if (rc <= 0) {
        if (SSL_get_error(ssl_.get(), rc) == SSL_ERROR_WANT_READ) break;
        fail("the server closed the connection");
      }
      in_.insert(in_.end(), piece, piece + rc);
      std::size_t at = 0;
      for (;;) {
        if (in_.size() - at < kHeader) break;
        const std::size_t size = load_be32(in_.data() + at + 1);
        if (in_.size() - at < kHeader + size) break;
        handle(in_[at], ByteView(in_).subspan(at + kHeader, size), packet);
        at += kHeader + size;
      }
      in_.erase(in_.begin(), in_.begin() + static_cast<std::ptrdiff_t>(at));
    }
    if (in_.empty()) in_.shrink_to_fit();
  }

 private:
  struct Free {
    void operator()(SSL* ssl) const { SSL_free(ssl); }
  };
  template <typename F>
  void handle(std::uint8_t kind, ByteView body, F& packet) {
    const std::uint8_t ping = derp_ ? 0x12 : 7, pong = derp_ ? 0x13 : 8;
    if (kind == 5 && body.size() > kKey) return packet(body.subspan(kKey));
    if (kind == ping) return send(frame_of(pong, body));
    if (!derp_ && kind == 9) fail("the relay says: " + as_string(body.subspan(1)));
  }
  Bytes read_exactly(std::size_t size) {
    Bytes out(size);
    for (std::size_t at = 0; at < size;) {
      const int rc = SSL_read(ssl_.get(), out.data() + at, static_cast<int>(size - at));
      if (rc <= 0) fail("the server closed the connection before it let us in");
      at += static_cast<std::size_t>(rc);
    }
    return out;
  }
  Bytes read_frame(std::uint8_t kind) {
    const Bytes head = read_exactly(kHeader);
    Bytes body = read_exactly(load_be32(head.data() + 1));
    if (head[0] != kind) fail(fmt::format("frame {} came instead of {}: {}", head[0], kind, as_string(body)));
    return body;
  }
  void write_all(ByteView bytes) {
    if (SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) <= 0) fail("the greeting cannot be sent");
  }
  void greet_muster() {
    const auto challenge = overlay::parse_challenge(read_frame(1));
    if (!challenge.ok()) fail(challenge.error().message);
    const overlay::RelayToken token{kRelayId, 1, key.public_key, read_clocks().wall + Millis(3'600'000)};
    const auto hello = overlay::make_hello(*challenge, key, overlay::sign_relay_token(controller(), token));
    if (!hello.ok()) fail(hello.error().message);
    Bytes out;
    overlay::append_hello(out, *hello);
    write_all(out);
    read_frame(3);
  }
  void greet_derp() {
    write_all(as_bytes("GET /derp HTTP/1.1\r\nHost: derp.bench\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n"));
    std::string answer;
    while (!answer.ends_with("\r\n\r\n")) answer += as_string(read_exactly(1));
    if (!answer.starts_with("HTTP/1.1 101")) fail("derper says: " + answer);
    const Bytes hello = read_frame(1);  // eight bytes of magic, the server's key
    const auto server = crypto::key32(ByteView(hello).subspan(std::min<std::size_t>(hello.size(), 8)));
    if (!server) fail("derper greets with a key of another form");
    Bytes body(key.public_key.begin(), key.public_key.end());
    const Bytes box = seal_box(key, *server, R"({"version":2,"CanAckPings":true})");
    body.insert(body.end(), box.begin(), box.end());
    write_all(frame_of(2, body));
    read_frame(3);
  }

  const bool derp_;
  int fd_ = -1;
  std::unique_ptr<SSL, Free> ssl_;
  std::deque<Bytes> waiting_;
  Bytes in_;
};

std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> client_context() {
  std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> ctx(SSL_CTX_new(TLS_client_method()), SSL_CTX_free);
  SSL_CTX_set_mode(ctx.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS | SSL_MODE_AUTO_RETRY);
  SSL_CTX_set_read_ahead(ctx.get(), 1);
  return ctx;
}

// ---- what the processor did

double server_cpu(int pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/stat");
  std::string text((std::istreambuf_iterator<char>(in)), {});
  std::istringstream fields(text.substr(std::min(text.size(), text.rfind(')') + 1)));
  std::string word;
  double ticks = 0;
  for (int i = 3; i <= 15 && fields >> word; ++i)
    if (i >= 14) ticks += std::atof(word.c_str());
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}
double machine_cpu() {  // busy, of all processors, since the machine started
  std::ifstream in("/proc/stat");
  std::string name;
  double user = 0, nice = 0, system = 0, idle = 0, wait = 0, irq = 0, soft = 0;
  in >> name >> user >> nice >> system >> idle >> wait >> irq >> soft;
  return (user + nice + system + irq + soft) / static_cast<double>(::sysconf(_SC_CLK_TCK));
}
double own_cpu() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  return static_cast<double>(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
         static_cast<double>(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
}
double memory_kib(int pid) {
  std::ifstream in("/proc/" + std::to_string(pid) + "/smaps_rollup");
  for (std::string line; std::getline(in, line);)
    if (line.starts_with("Pss:")) return std::atof(line.c_str() + 4);
  fail("the server's memory cannot be read");
}
struct Marks {
  double server, machine, own;
  explicit Marks(int pid) : server(server_cpu(pid)), machine(machine_cpu()), own(own_cpu()) {}
};

// ---- load

struct Load {
  std::size_t pairs = 20, bytes = 1400;
  double rate = 0;
  double seconds = 5;
};

class Pairs {
 public:
  Pairs(const Side& side, const Load& load) : side_(side), load_(load), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    for (std::size_t i = 0; i < 2 * load.pairs; ++i) {
      all_.push_back(std::make_unique<Connection>(*context_, side, 1));
      epoll_event event{};
      event.events = EPOLLIN | (load.rate == 0 && i % 2 == 0 ? EPOLLOUT : 0U);
      event.data.u64 = i;
      ::epoll_ctl(epoll_, EPOLL_CTL_ADD, all_.back()->fd(), &event);
    }
    armed_.resize(all_.size(), false);
  }
  ~Pairs() { ::close(epoll_); }

  void run() {
    const Nanos begin = now_ns(), counted = begin + kSecond,
                end = counted + static_cast<Nanos>(load_.seconds * static_cast<double>(kSecond));
    schedule(begin);
    std::optional<Marks> before;
    for (Nanos now = begin; now < end; now = now_ns()) {
      if (!before && now >= counted) {
        before.emplace(side_.pid);
        sent_ = delivered_ = 0;
        times_.clear();
      }
      send_due(now);
      wait(now);
    }
    tell(*before, Marks(side_.pid), static_cast<double>(now_ns() - counted) / 1e9);
  }

 private:
  using Due = std::pair<Nanos, std::size_t>;  // when, which pair
  Nanos gap() {
    const double uniform = (static_cast<double>(rng_.next() >> 11) + 1) / 9007199254740993.0;
    return static_cast<Nanos>(-std::log(uniform) * 1e9 * static_cast<double>(load_.pairs) / load_.rate);
  }
  void schedule(Nanos begin) {
    if (load_.rate == 0) return;
    for (std::size_t pair = 0; pair < load_.pairs; ++pair) due_.emplace(begin + gap(), pair);
  }
  void send_due(Nanos now) {
    while (!due_.empty() && due_.top().first <= now) {
      const auto [at, pair] = due_.top();
      due_.pop();
      due_.emplace(at + gap(), pair);
      send(pair, at);
    }
  }
  void send(std::size_t pair, Nanos due) {
    Connection& from = *all_[2 * pair];
    const auto& to = all_[2 * pair + 1]->key.public_key;
    Bytes body(kKey + load_.bytes);
    std::copy(to.begin(), to.end(), body.begin());
    store_le64(body.data() + kKey, static_cast<std::uint64_t>(due));
    from.send(frame_of(4, body));
    ++sent_;
    if (load_.rate != 0) arm(2 * pair);
  }
  void arm(std::size_t i) {  // waits for room exactly while something waits
    if (armed_[i] == all_[i]->blocked()) return;
    armed_[i] = all_[i]->blocked();
    epoll_event event{};
    event.events = EPOLLIN | (armed_[i] ? EPOLLOUT : 0U);
    event.data.u64 = i;
    ::epoll_ctl(epoll_, EPOLL_CTL_MOD, all_[i]->fd(), &event);
  }
  void wait(Nanos now) {
    Nanos left = kSecond / 1000;
    if (!due_.empty()) left = std::clamp<Nanos>(due_.top().first - now, kPace, left);
    const timespec pause{0, left};
    epoll_event events[64];
    const int count = ::epoll_pwait2(epoll_, events, 64, &pause, nullptr);
    for (int e = 0; e < count; ++e) {
      const std::size_t i = events[e].data.u64;
      if ((events[e].events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0) receive(i);
      if ((events[e].events & EPOLLOUT) == 0) continue;
      all_[i]->flush();
      if (load_.rate != 0)
        arm(i);
      else
        for (int n = 0; n < 16 && !all_[i]->blocked(); ++n) send(i / 2, now_ns());
    }
  }
  void receive(std::size_t i) {
    const Nanos now = now_ns();
    all_[i]->receive([&](ByteView payload) {
      if (payload.size() < 8) return;
      ++delivered_;
      if (times_.size() < 20'000'000)
        times_.push_back(static_cast<std::uint32_t>(
            std::min<Nanos>((now - static_cast<Nanos>(load_le64(payload.data()))) / 1000, UINT32_MAX)));
    });
  }
  double percentile(double share) {
    if (times_.empty()) return 0;
    const auto at = times_.begin() + static_cast<std::ptrdiff_t>(share * static_cast<double>(times_.size() - 1));
    std::nth_element(times_.begin(), at, times_.end());
    return *at;
  }
  void tell(const Marks& before, const Marks& after, double seconds) {
    fmt::print(R"({{"sent": {:.0f}, "rate": {:.0f}, "p50_us": {}, "p99_us": {}, "server_cpu": {:.3f}, )"
               R"("rest_cpu": {:.3f}, "client_cpu": {:.3f}, "seconds": {:.3f}, "cipher": "{}"}})"
               "\n",
               static_cast<double>(sent_) / seconds, static_cast<double>(delivered_) / seconds, percentile(0.5),
               percentile(0.99), after.server - before.server,
               after.machine - before.machine - (after.own - before.own), after.own - before.own, seconds,
               all_[0]->cipher());
  }

  const Side side_;
  const Load load_;
  decltype(client_context()) context_ = client_context();
  int epoll_;
  std::vector<std::unique_ptr<Connection>> all_;
  std::vector<bool> armed_;
  std::priority_queue<Due, std::vector<Due>, std::greater<>> due_;
  std::vector<std::uint32_t> times_;
  std::uint64_t sent_ = 0, delivered_ = 0;
  Rng rng_{1};
};

int run_idle(const Side& side, std::size_t clients) {
  const auto context = client_context();
  std::vector<std::unique_ptr<Connection>> all;
  const double before = memory_kib(side.pid);
  const auto answer_pings = [&] {
    for (const auto& one : all) {
      one->receive([](ByteView) {});
      one->flush();
    }
  };
  for (std::size_t i = 0; i < clients; ++i) {  // 500 from each address: servers count by address
    all.push_back(std::make_unique<Connection>(*context, side, static_cast<std::uint8_t>(2 + i / 500)));
    if (i % 250 == 249) answer_pings();
  }
  for (int second = 0; second < 10; ++second) {
    std::this_thread::sleep_for(std::chrono::seconds(1));
    answer_pings();
  }
  fmt::print(R"({{"clients": {}, "kib_per_client": {:.3f}}})"
             "\n",
             clients, (memory_kib(side.pid) - before) / static_cast<double>(clients));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  const std::vector<std::string> args(argv + 1, argv + argc);
  const auto number = [&](std::size_t i) { return std::atof(args[i].c_str()); };
  const auto side = [&] {
    return Side{args[1] == "derp", static_cast<std::uint16_t>(number(2)), static_cast<int>(number(3))};
  };
  if (args.size() == 2 && args[0] == "keys") return write_keys(args[1]);
  if (args.size() == 5 && args[0] == "idle") return run_idle(side(), static_cast<std::size_t>(number(4)));
  if (args.size() != 8 || args[0] != "load")
    fail("keys FOLDER | load muster|derp PORT PID PAIRS BYTES RATE SECONDS | idle muster|derp PORT PID CLIENTS");
  Pairs pairs(side(), {static_cast<std::size_t>(number(4)), static_cast<std::size_t>(number(5)), number(6), number(7)});
  pairs.run();
}
