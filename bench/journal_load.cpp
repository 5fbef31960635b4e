// The one client of `make bench NAME=journal`, for both sides: N connections over TLS 1.3, one thread, at most one
// request at a time on each. To musterd it posts jobs (HTTP/1.1, JSON), to etcd it puts the same bytes as a value
// (gRPC over HTTP/2, its own API, headers indexed after the first request as its own clients do). Usage:
//   bench_journal_load muster|etcd PORT CLIENTS SECONDS RATE BYTES [TOKEN_FILE]
// RATE 0: every client sends as soon as it was answered. Else RATE requests a second leave on time, and what finds no
// free client waits with its clock running. One JSON object on standard output; times in ms.
#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
using Time = Clock::time_point;

constexpr std::chrono::microseconds kPace{500};  // what is due sooner leaves together

struct Options {
  bool etcd = false;
  std::uint16_t port = 0;
  unsigned clients = 128, seconds = 5, rate = 0, bytes = 256;
  std::string token;
};

[[noreturn]] void fail(const std::string& why) {
  fmt::print(stderr, "bench_journal_load: {}\n", why);
  std::exit(1);
}

// A job of exactly `bytes` bytes; also what is put into etcd.
std::string body_of(unsigned bytes) {
  const std::string head = R"({"name":"j","cluster":"main","entrypoint":"python train.py --step )", tail = R"("})";
  return head + std::string(bytes > head.size() + tail.size() ? bytes - head.size() - tail.size() : 1, 'x') + tail;
}

// What one side says and hears. answered(): eats whole messages from `in`; 1 = the answer is here, -1 = it is a fault.
class Protocol {
 public:
  virtual ~Protocol() = default;
  virtual std::string hello() { return {}; }
  virtual std::string request() = 0;
  virtual int answered(std::string& in, std::string& out) = 0;
};

class Rest final : public Protocol {
 public:
  explicit Rest(const Options& options) {
    const std::string body = body_of(options.bytes);
    text_ = fmt::format(
        "POST /api/v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Type: "
        "application/json\r\nContent-Length: {}\r\n\r\n{}",
        options.token, body.size(), body);
  }
  std::string request() override { return text_; }
  int answered(std::string& in, std::string&) override {
    const auto end = in.find("\r\n\r\n");
    if (end == std::string::npos) return 0;
    const auto at = in.find("Content-Length: ");
    const std::size_t length = at < end ? std::strtoul(in.c_str() + at + 16, nullptr, 10) : 0;
    if (in.size() < end + 4 + length) return 0;
    const bool good = in.compare(0, 12, "HTTP/1.1 200") == 0;
    if (!good) fmt::print(stderr, "{}\n", in.substr(0, 600));
    in.erase(0, end + 4 + length);
    return good ? 1 : -1;
  }

 private:
  std::string text_;
};

class Grpc final : public Protocol {
 public:
  Grpc(const Options& options, unsigned number) : value_(body_of(options.bytes)), number_(number) {}
  std::string hello() override {
    return "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, std::string("\0\4\x3f\xff\xff\xff", 6)) +
           frame(8, 0, 0, std::string("\x3f\xff\x00\x00", 4));
  }
  std::string request() override {
    stream_ += 2;
    data_ = false;
    std::string message;
    field(message, 1, fmt::format("job-{:04}-{:08}", number_, stream_));
    field(message, 2, value_);
    std::string framed(1, '\0');
    for (int shift = 24; shift >= 0; shift -= 8) framed += static_cast<char>(message.size() >> shift);
    return frame(1, 4, stream_, stream_ == 1 ? first_headers() : "\x83\x87\xc1\xc0\xbf\xbe") +
           frame(0, 1, stream_, framed + message);
  }
  int answered(std::string& in, std::string& out) override {
    int result = 0;
    std::size_t at = 0;
    while (result == 0 && in.size() - at >= 9) {
      const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(in[at + i]); };
      const std::size_t size = byte(0) << 16 | byte(1) << 8 | byte(2);
      if (in.size() - at < 9 + size) break;
      const unsigned type = byte(3), flags = byte(4);
      if (type == 4 && (flags & 1) == 0) out += frame(4, 1, 0, "");
      if (type == 6 && (flags & 1) == 0) out += frame(6, 1, 0, in.substr(at + 9, size));
      if (type == 3 || type == 7) result = -1;
      if (type == 0) data_ = true;
      // A refusal has no message before its trailers.
      if ((type == 0 || type == 1) && (flags & 1) != 0) result = data_ ? 1 : -1;
      at += 9 + size;
    }
    in.erase(0, at);
    return result;
  }

 private:
  static std::string frame(unsigned type, unsigned flags, std::uint32_t stream, const std::string& payload) {
    std::string out;
    for (int shift = 16; shift >= 0; shift -= 8) out += static_cast<char>(payload.size() >> shift);
    out += static_cast<char>(type);
    out += static_cast<char>(flags);
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(stream >> shift);
    return out + payload;
  }
  static std::string first_headers() {
    const auto text = [](std::string_view value) {
      return std::string(1, static_cast<char>(value.size())) + std::string(value);
    };
    return "\x83\x87\x44" + text("/etcdserverpb.KV/Put") + "\x41" + text("localhost") + "\x5f" +
           text("application/grpc") + "\x40" + text("te") + text("trailers");
  }
  static void field(std::string& out, unsigned number, const std::string& value) {
    out += static_cast<char>(number << 3 | 2);
    std::size_t size = value.size();
    for (; size >= 0x80; size >>= 7) out += static_cast<char>(size | 0x80);
    out += static_cast<char>(size);
    out += value;
  }
  const std::string value_;
  const unsigned number_;
  std::uint32_t stream_ = static_cast<std::uint32_t>(-1);
  bool data_ = false;
};

struct Client {
  int fd = -1;
  SSL* ssl = nullptr;
  std::unique_ptr<Protocol> protocol;
  std::string in, out;
  Time since;
  bool busy = false, blocked = false;
};

class Load {
 public:
  explicit Load(Options options) : options_(std::move(options)), poll_(::epoll_create1(EPOLL_CLOEXEC)) {
    SSL_CTX* ctx = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION);
    SSL_CTX_set_mode(ctx, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    clients_.resize(options_.clients);
    for (unsigned i = 0; i < options_.clients; ++i) connect(ctx, i);
  }

  void run() {
    latencies_.reserve(1 << 20);
    rusage before{};
    ::getrusage(RUSAGE_SELF, &before);
    const Time begin = Clock::now(), end = begin + std::chrono::seconds(options_.seconds);
    const auto gap = std::chrono::nanoseconds(options_.rate == 0 ? 0 : 1'000'000'000 / options_.rate);
    Time next = begin;
    for (std::size_t i = 0; i < clients_.size(); ++i) options_.rate == 0 ? send(i, begin) : free_.push_back(i);
    while (true) {
      Time now = Clock::now();
      if (now >= end) break;
      Clock::duration wait = std::chrono::milliseconds(100);
      if (options_.rate != 0) {
        for (; next <= now; next += gap) due_.push_back(next);
        while (!due_.empty() && !free_.empty()) {
          send(free_.front(), due_.front());
          free_.pop_front();
          due_.pop_front();
        }
        wait = std::max<Clock::duration>(next - now, kPace);
      }
      pump(wait);
    }
    rusage after{};
    ::getrusage(RUSAGE_SELF, &after);
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    // What was due and not answered counts with the age it has.
    const Time stopped = Clock::now();
    const std::size_t answered = latencies_.size();
    for (const Time since : due_) note(since, stopped);
    for (const Client& client : clients_)
      if (client.busy && options_.rate != 0) note(client.since, stopped);
    std::sort(latencies_.begin(), latencies_.end());
    const auto at = [&](double share) {
      return latencies_.empty()
                 ? 0.0
                 : latencies_[static_cast<std::size_t>(static_cast<double>(latencies_.size() - 1) * share)];
    };
    const auto cpu = [](const timeval& t) {
      return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
    };
    const double used = cpu(after.ru_utime) + cpu(after.ru_stime) - cpu(before.ru_utime) - cpu(before.ru_stime);
    fmt::print(
        R"({{"rate":{:.1f},"answered":{},"faults":{},"p50":{:.3f},"p99":{:.3f},"p999":{:.3f},"max":{:.3f},"client_cpu":{:.3f},"seconds":{:.3f}}})"
        "\n",
        static_cast<double>(answered) / seconds, answered, faults_, at(0.5), at(0.99), at(0.999), at(1), used, seconds);
  }

 private:
  void connect(SSL_CTX* ctx, unsigned number) {
    Client& client = clients_[number];
    client.fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(options_.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (::connect(client.fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) fail("cannot connect");
    const int one = 1;
    ::setsockopt(client.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    client.ssl = SSL_new(ctx);
    SSL_set_fd(client.ssl, client.fd);
    const std::string alpn = options_.etcd ? "\x02h2" : "\x08http/1.1";
    SSL_set_alpn_protos(client.ssl, reinterpret_cast<const unsigned char*>(alpn.data()),
                        static_cast<unsigned>(alpn.size()));
    if (SSL_connect(client.ssl) != 1) fail("the TLS handshake failed");
    ::fcntl(client.fd, F_SETFL, ::fcntl(client.fd, F_GETFL) | O_NONBLOCK);
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.u64 = number;
    ::epoll_ctl(poll_, EPOLL_CTL_ADD, client.fd, &event);
    if (options_.etcd)
      client.protocol = std::make_unique<Grpc>(options_, number);
    else
      client.protocol = std::make_unique<Rest>(options_);
    client.out = client.protocol->hello();
  }

  void note(Time since, Time now) {
    latencies_.push_back(std::chrono::duration<float, std::milli>(now - since).count());
  }

  void send(std::size_t number, Time since) {
    Client& client = clients_[number];
    client.busy = true;
    client.since = since;
    client.out += client.protocol->request();
    flush(number);
  }

  void flush(std::size_t number) {
    Client& client = clients_[number];
    while (!client.out.empty()) {
      const int n = SSL_write(client.ssl, client.out.data(), static_cast<int>(client.out.size()));
      if (n <= 0) break;
      client.out.erase(0, static_cast<std::size_t>(n));
    }
    const bool blocked = !client.out.empty();
    if (blocked == client.blocked) return;
    client.blocked = blocked;
    epoll_event event{};
    event.events = EPOLLIN | (blocked ? static_cast<unsigned>(EPOLLOUT) : 0u);
    event.data.u64 = number;
    ::epoll_ctl(poll_, EPOLL_CTL_MOD, client.fd, &event);
  }

  void pump(Clock::duration wait) {
    const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(wait).count();
    const timespec time{ns / 1'000'000'000, ns % 1'000'000'000};
    epoll_event events[256];
    const int n = ::epoll_pwait2(poll_, events, 256, &time, nullptr);
    for (int i = 0; i < n; ++i) receive(events[i].data.u64);
  }

  void receive(std::size_t number) {
    Client& client = clients_[number];
    char buffer[8192];
    while (true) {
      const int got = SSL_read(client.ssl, buffer, sizeof buffer);
      if (got <= 0) {
        if (SSL_get_error(client.ssl, got) != SSL_ERROR_WANT_READ) fail("the server closed a connection");
        break;
      }
      client.in.append(buffer, static_cast<std::size_t>(got));
      if (static_cast<std::size_t>(got) < sizeof buffer && SSL_pending(client.ssl) == 0 && client.in.size() > 9) break;
    }
    const int answer = client.protocol->answered(client.in, client.out);
    if (answer != 0) {
      client.busy = false;
      if (answer > 0)
        note(client.since, Clock::now());
      else if (++faults_ > 10)
        fail("too many faults");
      if (options_.rate == 0) return send(number, Clock::now());
      free_.push_back(number);
    }
    flush(number);
  }

  Options options_;
  int poll_;
  std::vector<Client> clients_;
  std::deque<std::size_t> free_;
  std::deque<Time> due_;
  std::vector<float> latencies_;
  std::uint64_t faults_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 7) fail("usage: bench_journal_load muster|etcd PORT CLIENTS SECONDS RATE BYTES [TOKEN_FILE]");
  const auto number = [&](int i) { return static_cast<unsigned>(std::strtoul(argv[i], nullptr, 10)); };
  Options options;
  options.etcd = std::string_view(argv[1]) == "etcd";
  options.port = static_cast<std::uint16_t>(number(2));
  options.clients = std::max(1u, number(3));
  options.seconds = std::max(1u, number(4));
  options.rate = number(5);
  options.bytes = number(6);
  if (argc > 7) std::getline(std::ifstream(argv[7]).seekg(0), options.token);
  Load(options).run();
  return 0;
}
