#include "host/egress_dns.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <ctime>

#include "crypto/random.h"
#include "host/egress_sockets.h"

namespace muster::host {
namespace {
constexpr std::int64_t kRetryMs = 2'000, kPatienceMs = 8'000;
constexpr std::size_t kStreamMax = 256 << 10;
}  // namespace

std::int64_t steady_ms() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1000 + now.tv_nsec / 1'000'000;
}

std::string printable(std::string_view name) {
  std::string out(name.substr(0, 128));
  for (char& c : out) {
    if (c <= 0x20 || c > 0x7e) c = '?';
  }
  return out;
}

bool DnsStream::read(int fd) {
  std::array<std::uint8_t, 16'384> buffer;
  while (in_.size() < kStreamMax) {
    const ssize_t n = ::recv(fd, buffer.data(), buffer.size(), 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno == EAGAIN;
    if (n == 0) return false;
    in_.insert(in_.end(), buffer.begin(), buffer.begin() + n);
  }
  return true;
}

std::optional<Bytes> DnsStream::next() {
  if (in_.size() < 2) return {};
  const std::size_t length = static_cast<std::size_t>(in_[0]) << 8 | in_[1];
  if (in_.size() < 2 + length) return {};
  const auto end = in_.begin() + static_cast<std::ptrdiff_t>(2 + length);
  Bytes message(in_.begin() + 2, end);
  in_.erase(in_.begin(), end);
  return message;
}

void DnsStream::put(ByteView message) {
  out_.push_back(static_cast<std::uint8_t>(message.size() >> 8));
  out_.push_back(static_cast<std::uint8_t>(message.size()));
  out_.insert(out_.end(), message.begin(), message.end());
}

bool DnsStream::flush(int fd) {
  while (!out_.empty()) {
    const ssize_t n = ::send(fd, out_.data(), out_.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno == EAGAIN;
    out_.erase(out_.begin(), out_.begin() + n);
  }
  return true;
}

DnsForwarder::~DnsForwarder() {
  for (auto& [key, q] : questions_) close(q);
}

void DnsForwarder::set(std::vector<egress::Ip> resolvers, egress::Rules rules) {
  resolvers_ = std::move(resolvers);
  rules_ = std::move(rules);
}

void DnsForwarder::ask(ByteView message, bool stream, const void* owner, Done done) {
  const auto query = egress::parse_query(message);
  if (!query.ok()) {
    const bool rare = query.error().code == Code::Unsupported;
    return done(
        {egress::make_error(message, rare ? egress::Rcode::NotImp : egress::Rcode::FormErr).value_or(Bytes()), {}, {}});
  }
  const auto say = [&](egress::Rcode rcode, std::string_view code) {
    done({egress::make_answer(message, *query, rcode, code), printable(query->name), code});
  };
  if (const auto code = egress::question_refusal(rules_, *query); !code.empty())
    return say(egress::Rcode::Refused, code);
  // A family that leads nowhere from here is not offered: programs would try it first and wait.
  const bool address = query->type == egress::kTypeA || query->type == egress::kTypeAaaa;
  if (address && !has_route(query->type == egress::kTypeAaaa)) return say(egress::Rcode::NoError, {});
  if (resolvers_.empty() || questions_.size() >= kQuestionsMax) return say(egress::Rcode::ServFail, {});
  const std::uint64_t key = next_++;
  Question& q = questions_[key];
  q.message.assign(message.begin(), message.end());
  q.query = *query;
  q.stream = stream;
  q.owner = owner;
  q.done = std::move(done);
  q.deadline_ms = steady_ms() + kPatienceMs;
  send(key);
}

// The next resolver in turn; its answer is waited for until tick() tries another.
void DnsForwarder::send(std::uint64_t key) {
  Question& q = questions_.at(key);
  close(q);
  const egress::Ip& resolver = resolvers_[q.attempt++ % resolvers_.size()];
  q.id = static_cast<std::uint16_t>(crypto::random_u32());
  q.retry_ms = steady_ms() + kRetryMs;
  if (q.upstream_tcp)
    send_tcp(key, q, resolver);
  else
    send_udp(key, q, resolver);
}

void DnsForwarder::send_udp(std::uint64_t key, Question& q, const egress::Ip& resolver) {
  // Connected: the kernel takes answers from this resolver's port 53 alone, on a port of this question's own.
  Fd fd(::socket(resolver.six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const SocketAddress at = socket_address(resolver, 53);
  const Bytes forward = egress::make_forward(q.message, q.query, q.id);
  if (!fd || ::connect(fd.get(), at.get(), at.size) != 0 || ::send(fd.get(), forward.data(), forward.size(), 0) < 0) {
    q.retry_ms = steady_ms() + 100;
    return;
  }
  q.fd = std::move(fd);
  poller_.watch(q.fd.get(), true, false, [this, key](Poller::Ready) { on_udp(key); });
}

void DnsForwarder::send_tcp(std::uint64_t key, Question& q, const egress::Ip& resolver) {
  Fd fd(::socket(resolver.six ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const SocketAddress at = socket_address(resolver, 53);
  if (!fd || (::connect(fd.get(), at.get(), at.size) != 0 && errno != EINPROGRESS)) {
    q.retry_ms = steady_ms() + 100;
    return;
  }
  q.upstream = DnsStream();
  q.upstream.put(egress::make_forward(q.message, q.query, q.id));
  q.fd = std::move(fd);
  poller_.watch(q.fd.get(), true, true, [this, key](Poller::Ready) { on_tcp(key); });
}

void DnsForwarder::on_udp(std::uint64_t key) {
  const auto it = questions_.find(key);
  if (it == questions_.end()) return;
  std::array<std::uint8_t, 4096> buffer;
  const ssize_t n = ::recv(it->second.fd.get(), buffer.data(), buffer.size(), 0);
  if (n >= 0) {
    take(key, ByteView(buffer).first(static_cast<std::size_t>(n)));
  } else if (errno != EAGAIN && errno != EINTR) {  // the resolver's port is closed: the next one, soon
    close(it->second);
    it->second.retry_ms = steady_ms() + 100;
  }
}

void DnsForwarder::on_tcp(std::uint64_t key) {
  const auto it = questions_.find(key);
  if (it == questions_.end()) return;
  Question& q = it->second;
  const bool open = q.upstream.flush(q.fd.get()) && q.upstream.read(q.fd.get());
  while (const auto answer = q.upstream.next()) {
    if (take(key, *answer)) return;
  }
  if (!open) {
    close(q);
    q.retry_ms = steady_ms() + 100;
    return;
  }
  poller_.rearm(q.fd.get(), true, q.upstream.writing());
}

// True when the question is answered. What does not fit the question is not heard: the right answer may still come.
bool DnsForwarder::take(std::uint64_t key, ByteView answer) {
  Question& q = questions_.at(key);
  const auto checked = egress::check_answer(answer, q.query, q.id, rules_);
  if (!checked.ok()) return false;
  if (!checked->refused.empty()) {
    finish(key, egress::make_answer(q.message, q.query, egress::Rcode::Refused, checked->refused), checked->refused);
    return true;
  }
  if (checked->truncated && q.stream && !q.upstream_tcp) {
    q.upstream_tcp = true;
    --q.attempt;  // the same resolver
    send(key);
    return false;
  }
  finish(key, egress::relay_answer(answer, q.query, q.stream ? egress::kDnsMessageMax : q.query.udp_max));
  return true;
}

void DnsForwarder::close(Question& q) {
  if (!q.fd) return;
  poller_.unwatch(q.fd.get());
  q.fd.reset();
}

void DnsForwarder::finish(std::uint64_t key, Bytes answer, std::string_view refused) {
  const auto it = questions_.find(key);
  Question q = std::move(it->second);
  questions_.erase(it);
  close(q);
  q.done({std::move(answer), printable(q.query.name), refused});
}

void DnsForwarder::forget(const void* owner) {
  for (auto it = questions_.begin(); it != questions_.end();) {
    if (it->second.owner == owner) {
      close(it->second);
      it = questions_.erase(it);
    } else {
      ++it;
    }
  }
}

void DnsForwarder::tick(std::int64_t now_ms) {
  std::vector<std::uint64_t> late, again;
  for (const auto& [key, q] : questions_) {
    if (now_ms >= q.deadline_ms || resolvers_.empty())
      late.push_back(key);
    else if (now_ms >= q.retry_ms)
      again.push_back(key);
  }
  for (const std::uint64_t key : again) send(key);
  for (const std::uint64_t key : late) {
    const Question& q = questions_.at(key);
    finish(key, egress::make_answer(q.message, q.query, egress::Rcode::ServFail));
  }
}

}  // namespace muster::host
