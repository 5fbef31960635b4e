#include "host/egress_process.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/log.h"
#include "host/egress_sockets.h"

namespace muster::host {
namespace {

constexpr std::size_t kLeasesMax = 64, kFlowsMax = 4096, kAskersMax = 256, kAskersPerLease = 16, kRefusalsKept = 16,
                      kFlowsShown = 64, kQuestionsPerLease = 128;
constexpr Millis kTick{200}, kRefill{20};
constexpr std::uint64_t kNewFlowsPerSecond = 50, kNewFlowsAtOnce = 200, kQuestionsPerSecond = 100,
                        kQuestionsAtOnce = 300;
constexpr int kPerTurn = 32;
constexpr std::int64_t kAskerIdleMs = 30'000;
constexpr std::size_t kPieceMin = 4096;

LeaseTime now() {
  return LeaseTime{steady_ms()};
}

}  // namespace

struct EgressProcess::Lease {
  std::string name;
  Fd tcp[2], dns[2];  // IPv4, IPv6
  bool listening = false;
  EgressCounters counters;
  egress::Bucket new_flows{kNewFlowsPerSecond, kNewFlowsAtOnce}, questions{kQuestionsPerSecond, kQuestionsAtOnce};
  struct Refused {
    std::string what, code;
    std::int64_t at_ms = 0;
  };
  std::deque<Refused> last;
  std::size_t asking = 0, askers = 0;
};

// A program of a lease that speaks DNS over TCP: one question at a time.
struct EgressProcess::Asker {
  Lease* lease = nullptr;
  Fd fd;
  DnsStream stream;
  bool asking = false;
  std::int64_t active_ms = 0;
};

EgressProcess::EgressProcess(int control_fd, uid_t peer_uid)
    : control_(control_fd), peer_uid_(peer_uid), dns_(poller_) {}

EgressProcess::~EgressProcess() {
  while (!leases_.empty()) remove(leases_.begin()->first);
  flows_.clear();
  if (privd_) poller_.unwatch(privd_.get());
  poller_.unwatch(control_.get());
}

Status EgressProcess::start() {
  TRY_VOID(set_blocking(control_.get(), false));
  poller_.watch(control_.get(), true, false, [this](Poller::Ready) { accept_privd(); });
  log_info("egress", "ready");
  return {};
}

void EgressProcess::run() {
  poller_.run();
}
void EgressProcess::stop() {
  poller_.stop();
}

// ---- privd's orders
void EgressProcess::accept_privd() {
  Fd fd(::accept4(control_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd) return;
  const auto peer = peer_of(fd.get());
  if (!peer.ok() || peer->uid != peer_uid_) return log_warn("egress", "a connection that is not privd's was refused");
  if (privd_) poller_.unwatch(privd_.get());  // the newer one: privd was restarted
  privd_ = std::move(fd);
  poller_.watch(privd_.get(), true, false, [this](Poller::Ready) { serve_privd(); });
}

void EgressProcess::serve_privd() {
  auto message = receive_message(privd_.get());
  if (!message.ok() && message.error().code == Code::NotFound) return;
  bool closed = !message.ok() || (message->text.empty() && message->fds.empty());
  if (!closed) {
    const auto order = parse_order(message->text);
    const auto answer = order.ok() ? obey(*order, message->fds) : Result<EgressReport>(order.error());
    closed = !send_message(privd_.get(), report_text(answer)).ok();
  }
  if (!closed) return;
  poller_.unwatch(privd_.get());
  privd_.reset();
}

Result<EgressReport> EgressProcess::obey(const EgressOrder& order, std::vector<Fd>& fds) {
  if (const auto* config = std::get_if<EgressConfig>(&order)) {
    configure(*config);
    return EgressReport{};
  }
  if (const auto* add_way = std::get_if<AddWay>(&order)) {
    TRY_VOID(add(add_way->lease, fds));
    return EgressReport{};
  }
  if (const auto* remove_way = std::get_if<RemoveWay>(&order)) {
    remove(remove_way->lease);
    return EgressReport{};
  }
  return report(std::get<AskReport>(order).flows);
}

void EgressProcess::configure(const EgressConfig& config) {
  if (!configured_ || config.bytes_per_s != config_.bytes_per_s) {
    // A fifth of a second at once, so that a page is not slower than its line.
    const std::uint64_t burst = std::max<std::uint64_t>(config.bytes_per_s / 5, 64 << 10);
    for (auto& rate : rate_) rate = egress::Bucket(config.bytes_per_s, burst);
  }
  const bool rules_changed = !configured_ || config.rules != config_.rules;
  if (!config.blocked.empty() && config.blocked != config_.blocked)
    log_warn("egress", "nothing may pass: {}", config.blocked);
  config_ = config;
  configured_ = true;
  dns_.set(config.resolvers, config.rules);
  if (!config_.blocked.empty() || config_.bytes_left == 0) cut([](const Flow&) { return true; });
  if (rules_changed)
    cut([this](const Flow& flow) { return !egress::refusal(config_.rules, flow.ip(), flow.port()).empty(); });
}

Status EgressProcess::add(const std::string& name, std::vector<Fd>& fds) {
  if (!configured_) return error(Code::FailedPrecondition, "configure comes first");
  if (fds.size() != 2 && fds.size() != 4)
    return error(Code::InvalidArgument, "a lease comes with its listeners: two, or four with IPv6");
  if (!leases_.contains(name) && leases_.size() >= kLeasesMax)
    return error(Code::ResourceExhausted, "too many leases with egress");
  auto& lease = leases_[name];
  if (!lease) lease = std::make_unique<Lease>();
  lease->name = name;
  listen_to(*lease, false);
  for (auto& fd : lease->dns) {
    if (fd) poller_.unwatch(fd.get());
  }
  for (std::size_t i = 0; i < 2; ++i) {
    lease->tcp[i] = 2 * i < fds.size() ? std::move(fds[2 * i]) : Fd();
    lease->dns[i] = 2 * i < fds.size() ? std::move(fds[2 * i + 1]) : Fd();
  }
  for (const auto* each : {&lease->tcp[0], &lease->tcp[1], &lease->dns[0], &lease->dns[1]}) {
    if (*each) TRY_VOID(set_blocking(each->get(), false));
  }
  for (const auto& fd : lease->dns) {
    if (!fd) continue;
    const auto family = static_cast<std::size_t>(&fd - lease->dns);
    poller_.watch(fd.get(), true, false,
                  [this, raw = lease.get(), family](Poller::Ready) { read_questions(*raw, family); });
  }
  listen_to(*lease, true);
  if (!std::exchange(ticking_, true)) poller_.after(kTick, [this] { tick(); });
  return {};
}

void EgressProcess::remove(const std::string& name) {
  const auto it = leases_.find(name);
  if (it == leases_.end()) return;
  Lease& lease = *it->second;
  listen_to(lease, false);
  for (const auto& fd : lease.dns) {
    if (fd) poller_.unwatch(fd.get());
  }
  cut([&](const Flow& flow) { return flow.owner == &lease; });
  dns_.forget(&lease);
  std::vector<std::uint64_t> ids;
  for (const auto& [id, asker] : askers_) {
    if (asker->lease == &lease) ids.push_back(id);
  }
  for (const std::uint64_t id : ids) close_asker(id);
  leases_.erase(it);
}

EgressReport EgressProcess::report(bool flows) const {
  EgressReport out;
  out.bytes = bytes_;
  const std::int64_t at = steady_ms();
  for (const auto& [name, lease] : leases_) {
    EgressCounters& c = out.leases[name] = lease->counters;
    if (!flows) continue;
    for (const auto& [id, flow] : flows_) {
      if (flow->owner == lease.get() && flow->connected() && c.now.size() < kFlowsShown)
        c.now.push_back({flow->to(), flow->bytes(Way::Up), flow->bytes(Way::Down),
                         static_cast<std::uint64_t>(at - flow->since_ms)});
    }
    for (const auto& each : lease->last)
      c.last_refused.push_back({each.what, each.code, static_cast<std::uint64_t>(at - each.at_ms)});
  }
  return out;
}

// ---- connections
void EgressProcess::listen_to(Lease& lease, bool on) {
  if (lease.listening == on) return;
  lease.listening = on;
  for (const auto& fd : lease.tcp) {
    if (!fd) continue;
    if (!on) {
      poller_.unwatch(fd.get());
      continue;
    }
    poller_.watch(fd.get(), true, false,
                  [this, raw = &lease, number = fd.get()](Poller::Ready) { accept_flows(*raw, number); });
  }
}

void EgressProcess::accept_flows(Lease& lease, int listener) {
  for (int i = 0; i < kPerTurn; ++i) {
    // What is too much waits in the listener's queue until tick().
    if (lease.counters.open >= config_.flows_max || flows_.size() >= kFlowsMax || lease.new_flows.take(1, now()) == 0)
      return listen_to(lease, false);
    Fd fd(::accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      lease.new_flows.give_back(1);
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) listen_to(lease, false);
      return;
    }
    open_flow(lease, std::move(fd));
  }
}

void EgressProcess::open_flow(Lease& lease, Fd inside) {
  const auto to = original_destination(inside.get());
  if (to && to->port == 53) return open_asker(lease, std::move(inside));
  std::string code = to ? std::string(egress::refusal(config_.rules, to->ip, to->port)) : "unknown";
  if (code.empty()) code = config_.blocked.empty() && config_.bytes_left == 0 ? "volume" : config_.blocked;
  if (!code.empty()) {
    refuse(lease, to ? egress::to_text(to->ip) + " port " + std::to_string(to->port) : "unknown", code);
    return reset_on_close(inside.get());
  }
  auto flow =
      std::make_unique<Flow>(poller_, static_cast<FlowHost&>(*this), next_++, std::move(inside), to->ip, to->port);
  flow->owner = &lease;
  flow->since_ms = steady_ms();
  bool own = false;
  if (flow->connect(&own).ok()) {
    ++lease.counters.open;
    flows_.emplace(flow->id(), std::move(flow));
  } else if (own) {
    refuse(lease, flow->to(), "host");
  } else {
    ++lease.counters.failed;
  }
}

void EgressProcess::refuse(Lease& lease, std::string what, std::string code) {
  const bool first = !lease.counters.refused.contains(code);
  if (first && lease.counters.refused.size() >= 48) return;
  ++lease.counters.refused[code];
  if (first) log_info("egress", "{}: refused {} ({}); more of this kind is counted only", lease.name, what, code);
  lease.last.push_back({std::move(what), std::move(code), steady_ms()});
  if (lease.last.size() > kRefusalsKept) lease.last.pop_front();
}

void EgressProcess::cut(const std::function<bool(const Flow&)>& which) {
  for (auto& [id, flow] : flows_) {
    if (which(*flow)) flow->abort();
  }
}

std::size_t EgressProcess::may_pass(Way way, std::size_t wanted) {
  auto& rate = rate_[static_cast<std::size_t>(way)];
  const std::uint64_t allowed = rate.take(wanted, now());
  if (allowed >= std::min(wanted, kPieceMin)) return allowed;
  rate.give_back(allowed);  // better a moment later than byte by byte
  return 0;
}

void EgressProcess::passed(Flow& flow, Way way, std::size_t allowed, std::size_t bytes) {
  auto& rate = rate_[static_cast<std::size_t>(way)];
  if (!rate.unlimited()) rate.give_back(allowed - bytes);
  auto& counters = static_cast<Lease*>(flow.owner)->counters;
  (way == Way::Up ? counters.up_bytes : counters.down_bytes) += bytes;
  bytes_ += bytes;
  if (config_.bytes_left < 0) return;
  config_.bytes_left = std::max<std::int64_t>(0, config_.bytes_left - static_cast<std::int64_t>(bytes));
  if (config_.bytes_left > 0) return;
  log_warn("egress", "the owner's volume is used up: all connections are cut");
  cut([](const Flow&) { return true; });
}

void EgressProcess::wait_for_rate(Flow& flow, Way way) {
  waiting_.emplace_back(flow.id(), way);
  if (resuming_) return;
  resuming_ = true;
  poller_.after(kRefill, [this] { resume_waiting(); });
}

// Who waited longest goes first; each of them once a turn.
void EgressProcess::resume_waiting() {
  resuming_ = false;
  auto turn = std::exchange(waiting_, {});
  for (const auto& [id, way] : turn) {
    const auto it = flows_.find(id);
    if (it != flows_.end()) it->second->resume(way);
  }
}

void EgressProcess::closed(Flow& flow, bool connected) {
  auto& counters = static_cast<Lease*>(flow.owner)->counters;
  --counters.open;
  ++(connected ? counters.flows : counters.failed);
  poller_.post([this, id = flow.id()] { flows_.erase(id); });
}

// ---- questions
void EgressProcess::read_questions(Lease& lease, std::size_t family) {
  std::array<std::uint8_t, 1536> buffer;
  for (int i = 0; i < kPerTurn; ++i) {
    sockaddr_storage from{};
    socklen_t size = sizeof from;
    const ssize_t n =
        ::recvfrom(lease.dns[family].get(), buffer.data(), buffer.size(), 0, reinterpret_cast<sockaddr*>(&from), &size);
    if (n < 0) return;
    if (lease.questions.take(1, now()) == 0 || lease.asking >= kQuestionsPerLease || !config_.blocked.empty()) {
      ++lease.counters.refused["dns.rate"];
      continue;  // the program asks again
    }
    ++lease.asking;
    dns_.ask(ByteView(buffer).first(static_cast<std::size_t>(n)), false, &lease,
             [this, &lease, family, from, size](const DnsForwarder::Outcome& outcome) {
               answered(lease, outcome);
               if (!outcome.answer.empty())
                 static_cast<void>(::sendto(lease.dns[family].get(), outcome.answer.data(), outcome.answer.size(),
                                            MSG_NOSIGNAL, reinterpret_cast<const sockaddr*>(&from), size));
             });
  }
}

void EgressProcess::answered(Lease& lease, const DnsForwarder::Outcome& outcome) {
  --lease.asking;
  ++lease.counters.questions;
  if (!outcome.refused.empty()) refuse(lease, outcome.name, "dns." + std::string(outcome.refused));
}

void EgressProcess::open_asker(Lease& lease, Fd fd) {
  if (askers_.size() >= kAskersMax || lease.askers >= kAskersPerLease || !config_.blocked.empty())
    return reset_on_close(fd.get());
  const std::uint64_t id = next_++;
  auto& asker = askers_[id] = std::make_unique<Asker>();
  ++lease.askers;
  asker->lease = &lease;
  asker->active_ms = steady_ms();
  asker->fd = std::move(fd);
  poller_.watch(asker->fd.get(), true, false, [this, id](Poller::Ready) { serve_asker(id); });
}

void EgressProcess::serve_asker(std::uint64_t id) {
  const auto it = askers_.find(id);
  if (it == askers_.end()) return;
  Asker& asker = *it->second;
  if (!asker.stream.flush(asker.fd.get()) || !asker.stream.read(asker.fd.get()) || asker.stream.overfull())
    return close_asker(id);
  asker.active_ms = steady_ms();
  if (asker.asking) return poller_.rearm(asker.fd.get(), false, asker.stream.writing());
  const auto message = asker.stream.next();
  if (!message) return poller_.rearm(asker.fd.get(), true, asker.stream.writing());
  if (asker.lease->questions.take(1, now()) == 0 || asker.lease->asking >= kQuestionsPerLease) return close_asker(id);
  asker.asking = true;
  ++asker.lease->asking;
  poller_.rearm(asker.fd.get(), false, asker.stream.writing());
  dns_.ask(*message, true, asker.lease, [this, id, lease = asker.lease](const DnsForwarder::Outcome& outcome) {
    answered(*lease, outcome);
    poller_.post([this, id, outcome] {
      const auto found = askers_.find(id);
      if (found == askers_.end()) return;
      found->second->asking = false;
      if (outcome.answer.empty()) return close_asker(id);
      found->second->stream.put(outcome.answer);
      serve_asker(id);
    });
  });
}

void EgressProcess::close_asker(std::uint64_t id) {
  const auto it = askers_.find(id);
  if (it == askers_.end()) return;
  poller_.unwatch(it->second->fd.get());
  --it->second->lease->askers;
  askers_.erase(it);
}

void EgressProcess::tick() {
  const std::int64_t at = steady_ms();
  for (auto& [id, flow] : flows_) flow->tick(at);
  dns_.tick(at);
  std::vector<std::uint64_t> idle;
  for (const auto& [id, asker] : askers_) {
    if (!asker->asking && at - asker->active_ms > kAskerIdleMs) idle.push_back(id);
  }
  for (const std::uint64_t id : idle) close_asker(id);
  for (auto& [name, lease] : leases_) {
    if (lease->counters.open < config_.flows_max && flows_.size() < kFlowsMax) listen_to(*lease, true);
  }
  ticking_ = !leases_.empty();
  if (ticking_) poller_.after(kTick, [this] { tick(); });
}

Status run_egress_process(int control_fd, uid_t peer_uid, const std::function<Status()>& confine) {
  EgressProcess process(control_fd, peer_uid);
  TRY_VOID(confine());
  TRY_VOID(process.start());
  process.run();
  return {};
}

}  // namespace muster::host
