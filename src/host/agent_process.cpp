#include "host/agent_process.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "agent/core.h"
#include "base/log.h"
#include "base/rng.h"
#include "crypto/cert.h"
#include "crypto/file.h"
#include "crypto/random.h"
#include "host/executor.h"
#include "host/facts.h"
#include "host/overlay_client.h"
#include "host/sandbox.h"
#include "host/streams.h"
#include "net/net.h"
#include "overlay/roster.h"
#include "wire/agent_frames.h"
#include "wire/names.h"

namespace muster::host {
namespace {

constexpr Millis kRollup{15'000}, kLive{1'000}, kFactsEvery{10'000};
constexpr std::size_t kLinkBufferMax = 8 << 20;

Result<agent::OpenedRoster> open_roster(const session::SignedRoster& roster, const Bytes& roster_key) {
  const auto key = crypto::key32(roster_key);
  if (!key) return error(Code::FailedPrecondition, "the control plane named no roster key");
  const overlay::VerifiedRoster verified = TRY(overlay::verify_roster(roster.bytes, roster.signatures, {*key}));
  agent::OpenedRoster out;
  out.cluster = ClusterId{verified.roster.cluster};
  out.epoch = verified.roster.epoch;
  for (const auto& member : verified.roster.members) {
    RosterEntry entry;
    entry.slot = SlotId{member.slot};
    entry.node = NodeId{member.node};
    entry.role = static_cast<SlotRole>(member.role);
    entry.address = member.address;
    entry.overlay_key = Bytes(member.overlay_key.begin(), member.overlay_key.end());
    entry.device_key = Bytes(member.device_key.begin(), member.device_key.end());
    entry.overlay_signature = member.overlay_signature;
    entry.epoch = {member.epoch.incarnation, member.epoch.leader, member.epoch.counter};
    out.entries.push_back(std::move(entry));
  }
  return out;
}

class AgentProcess {
 public:
  AgentProcess(Layout layout, Config config, crypto::SigningKey key, std::string certificate)
      : layout_(std::move(layout)),
        config_(std::move(config)),
        key_(std::move(key)),
        certificate_(std::move(certificate)),
        rng_(seed()),
        privd_(poller_, layout_.privd_socket()),
        overlay_(poller_, privd_, layout_.netd_socket(), {config_.ca_pem, "muster"}),
        streams_(
            poller_, privd_, [this](session::AgentFrame frame) { send(std::move(frame)); },
            [this](LeaseId lease) { return stream_address(lease); }),
        sampler_(layout_.root) {}

  Status run();

 private:
  static std::uint64_t seed() {
    return (static_cast<std::uint64_t>(crypto::random_u32()) << 32) | crypto::random_u32();
  }
  std::optional<std::uint32_t> stream_address(LeaseId lease) const {
    if (!core_ || !core_->lease_running(lease)) return {};
    const auto assignment = core_->assignment(lease);
    return assignment ? std::optional(assignment->address) : std::nullopt;
  }
  void make_core();
  void begin(const agent::Found& found);
  void pump();
  void perform(agent::Action action);
  void dial();
  void linked(Result<net::WebSocketPtr> socket, std::uint64_t generation);
  void on_message(const Bytes& bytes);
  void link_down(const std::string& why);
  void send(session::AgentFrame frame);
  void refresh_facts();
  void telemetry();
  void watch_certificate();
  Status listen_control();
  void accept_control();
  std::string control(const std::string& command);
  std::string status_text() const;

  Layout layout_;
  Config config_;
  crypto::SigningKey key_;
  std::string certificate_;
  Rng rng_;
  Poller poller_;
  PrivdClient privd_;
  OverlayClient overlay_;
  Streams streams_;
  Sampler sampler_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<agent::Core> core_;
  NodeFacts facts_;
  std::unique_ptr<net::Loop> loop_;
  net::WebSocketPtr socket_;
  std::uint64_t generation_ = 0, deadline_timer_ = 0, telemetry_timer_ = 0;
  bool live_ = false, pumping_ = false, started_ = false;
  std::string link_fault_;
  Fd control_, signals_;
  std::map<int, Fd> control_clients_;
  std::map<LeaseId, std::pair<std::uint64_t, WallTime>> cpu_seen_;
};

void AgentProcess::make_core() {
  facts_ = gather_facts(layout_, config_.labels);
  agent::Options options;
  options.agent_version = kAgentVersion;
  options.boot_id = facts_.boot_id;
  options.certificate_pem = certificate_;
  options.features = {"docker", "standby"};  // must-understand names of assignments that this agent honours
  options.seed = seed();
  agent::Hooks hooks;
  hooks.sign = [this](ByteView message) { return key_.sign(message); };
  hooks.desired_genuine = [this](const session::Desired& desired) {
    if (config_.command_key.empty()) return true;
    const bool genuine = crypto::verify(
        config_.command_key, wire::desired_signing_bytes(NodeId::parse(config_.node_id).value_or(NodeId{}), desired),
        desired.signature);
    if (!genuine) log_error("agent", "an order that the control plane did not sign was dropped");
    return genuine;
  };
  hooks.open_roster = [](const session::SignedRoster& roster, const Bytes& roster_key) {
    auto opened = open_roster(roster, roster_key);
    if (!opened.ok()) log_error("agent", "a roster was refused: {}", opened.error().message);
    return opened;
  };
  core_ = std::make_unique<agent::Core>(std::move(options), std::move(hooks), facts_);
  executor_ = std::make_unique<Executor>(poller_, privd_, overlay_, key_, layout_,
                                         ExecutorHooks{[this](agent::OpResult result) {
                                                         poller_.post([this, result = std::move(result)] {
                                                           if (started_) core_->on_result(result, read_clocks());
                                                           pump();
                                                         });
                                                       },
                                                       [this](agent::RuntimeEvent event) {
                                                         poller_.post([this, event = std::move(event)] {
                                                           if (started_) core_->on_event(event, read_clocks());
                                                           pump();
                                                         });
                                                       }});
  executor_->set_roster_key(config_.roster_key);
}

void AgentProcess::begin(const agent::Found& found) {
  const auto persisted = crypto::read_secret_file(layout_.state(), 16 << 20);
  started_ = true;
  log_info("agent", "{} starts, {} leases adopted", config_.node_id, found.leases.size());
  core_->start(persisted.ok() ? ByteView(*persisted) : ByteView(), found, read_clocks());
  refresh_facts();
  telemetry();
  watch_certificate();
  pump();
}

// Performs what the core wants until it wants nothing more, then sets the alarm for its next deadline.
void AgentProcess::pump() {
  if (pumping_ || !started_) return;
  pumping_ = true;
  for (auto actions = core_->take_actions(); !actions.empty(); actions = core_->take_actions()) {
    for (auto& action : actions) perform(std::move(action));
  }
  pumping_ = false;
  if (deadline_timer_ != 0) poller_.cancel(deadline_timer_);
  const Millis wait = std::clamp<Millis>(core_->next_deadline() - read_clocks().lease, Millis(10), Millis(30'000));
  deadline_timer_ = poller_.after(wait, [this] {
    core_->tick(read_clocks());
    pump();
  });
}

void AgentProcess::perform(agent::Action action) {
  if (auto* frame = std::get_if<agent::SendFrame>(&action)) {
    send(std::move(frame->frame));
  } else if (auto* op = std::get_if<agent::StartOp>(&action)) {
    executor_->start(op->id, op->op);
  } else if (const auto* cancel = std::get_if<agent::CancelOp>(&action)) {
    executor_->cancel(cancel->id);
  } else if (std::holds_alternative<agent::Dial>(action)) {
    dial();
  } else if (const auto* drop = std::get_if<agent::DropLink>(&action)) {
    log_info("agent", "the link is closed: {}", drop->reason);
    ++generation_;
    if (socket_) socket_->close(drop->reason);
    socket_.reset();
    streams_.close_all();
  } else if (const auto* persist = std::get_if<agent::Persist>(&action)) {
    const Status written = crypto::write_secret_file(layout_.state(), persist->bytes);
    if (!written.ok())
      log_error("agent", "the agent's state cannot be written: {}; free some disk", written.error().message);
  } else if (const auto* watch = std::get_if<agent::SetTelemetry>(&action)) {
    live_ = watch->live;
    if (telemetry_timer_ != 0) poller_.cancel(telemetry_timer_);
    telemetry_timer_ = poller_.after(kLive, [this] { telemetry(); });
  } else if (const auto* done = std::get_if<agent::OwnerDone>(&action)) {
    log_info("agent", "{}: done", done->what);
    if (done->what == "leave") poller_.after(Millis(500), [this] { poller_.stop(); });
  }
}

// ---- the link
void AgentProcess::dial() {
  const std::uint64_t generation = ++generation_;
  auto endpoint = net::parse_url(config_.server);
  if (!endpoint.ok()) return link_down(endpoint.error().message);
  endpoint->ca_pem = config_.ca_pem;
  loop_->dial_websocket(*endpoint, "/agent/v1", {}, [this, generation](Result<net::WebSocketPtr> socket) {
    poller_.post([this, generation, socket = std::move(socket)]() mutable { linked(std::move(socket), generation); });
  });
}

void AgentProcess::linked(Result<net::WebSocketPtr> socket, std::uint64_t generation) {
  if (generation != generation_) {
    if (socket.ok()) (*socket)->close("superseded");
    return;
  }
  if (!socket.ok()) return link_down(socket.error().message);
  link_fault_.clear();
  socket_ = *socket;
  socket_->start(
      [this, generation](Bytes bytes) {
        poller_.post([this, generation, bytes = std::move(bytes)] {
          if (generation == generation_) on_message(bytes);
        });
      },
      [this, generation](const std::string& why) {
        poller_.post([this, generation, why] {
          if (generation == generation_) link_down(why);
        });
      });
  core_->on_link_up(read_clocks());
  pump();
}

void AgentProcess::link_down(const std::string& why) {
  if (why != link_fault_) log_warn("agent", "no link to {}: {}", config_.server, why);
  link_fault_ = why;
  ++generation_;
  socket_.reset();
  streams_.close_all();
  core_->on_link_down(read_clocks());
  pump();
}

void AgentProcess::on_message(const Bytes& bytes) {
  const auto frame = wire::decode_server_frame(bytes);
  if (!frame.ok()) {
    log_warn("agent", "the control plane sent a frame that is not understood: {}", frame.error().message);
    return;
  }
  if (streams_.on_frame(*frame)) return;
  if (const auto* issued = std::get_if<session::CertIssued>(&*frame)) {
    const std::string pem = as_string(issued->der_chain_pem);
    if (!crypto::verify_device_certificate(pem, config_.ca_pem, read_clocks().wall).ok())
      return log_error("agent", "a renewed certificate was not genuine and was dropped");
    certificate_ = pem;
    const Status written = crypto::write_secret_file(layout_.certificate(), as_bytes(pem));
    if (!written.ok()) log_error("agent", "{}", written.error().message);
    core_->set_certificate(pem);
    log_info("agent", "the device certificate was renewed");
    return;
  }
  if (const auto* welcome = std::get_if<session::Welcome>(&*frame);
      welcome != nullptr && welcome->roster_key.size() == 32)
    executor_->set_roster_key(welcome->roster_key);
  core_->on_frame(*frame, read_clocks());
  pump();
}

void AgentProcess::send(session::AgentFrame frame) {
  if (!socket_) return;
  if (socket_->buffered() > kLinkBufferMax) {
    socket_->close("the link is too slow");
    return link_down("the link took nothing for too long");
  }
  socket_->send(wire::encode(frame));
}

// Renewed at two thirds of its life, with jitter so that a fleet does not come at once; again every minute until it is
// there.
void AgentProcess::watch_certificate() {
  const auto expiry = crypto::certificate_expiry(certificate_);
  const Millis life{86'400'000};
  const WallTime now = read_clocks().wall;
  if (expiry.ok() && core_->online() && *expiry - now < life / 3 - Millis(rng_.between(0, 600'000))) {
    const auto csr = crypto::make_csr(key_, config_.node_id);
    if (csr.ok()) send(session::CertRequest{to_bytes(*csr)});
  }
  poller_.after(Millis(60'000), [this] { watch_certificate(); });
}

void AgentProcess::refresh_facts() {
  privd_.call(Verb{.kind = VerbKind::Info}, [this](Result<PrivdReply> reply) {
    NodeFacts facts = gather_facts(layout_, config_.labels);
    facts.lan = overlay_.lan_endpoints();
    if (reply.ok()) {
      if (const auto* images = reply->fields.if_contains("images"); images != nullptr && images->is_array()) {
        for (const auto& image : images->get_array()) {
          if (image.is_string() && facts.images.size() < 64) facts.images.emplace_back(image.get_string());
        }
      }
    } else if (reply.error().field != "privd.gone") {
      facts.runtimes.clear();
    }
    // Free disk moves all the time; only what matters for placing work makes a new inventory.
    const std::int64_t disk_step = std::int64_t{10} << 30;
    facts.capacity.disk_bytes -= facts.capacity.disk_bytes % disk_step;
    if (!(facts == facts_)) {
      facts_ = facts;
      core_->set_facts(facts_, read_clocks());
      pump();
    }
    poller_.after(kFactsEvery, [this] { refresh_facts(); });
  });
}

void AgentProcess::telemetry() {
  telemetry_timer_ = poller_.after(live_ ? kLive : kRollup, [this] { telemetry(); });
  if (!core_->online()) return;
  privd_.call(Verb{.kind = VerbKind::Usage}, [this](Result<PrivdReply> reply) {
    const WallTime now = read_clocks().wall;
    session::Telemetry sample = sampler_.sample(now);
    const auto* rows = reply.ok() ? reply->fields.if_contains("usage") : nullptr;
    if (rows != nullptr && rows->is_array()) {
      for (const auto& row : rows->get_array()) {
        const auto lease = LeaseId::parse(text_at(row, {"lease"}));
        if (!lease) continue;
        const auto cpu_ns = static_cast<std::uint64_t>(int_at(row, {"cpu_ns"}));
        session::ContainerSample each{*lease, 0, static_cast<std::uint64_t>(int_at(row, {"memory_bytes"})),
                                      static_cast<std::uint64_t>(int_at(row, {"pids"}))};
        const auto seen = cpu_seen_.find(*lease);
        const auto ms = seen == cpu_seen_.end() ? 0 : (now - seen->second.second).count();
        if (ms > 0 && cpu_ns >= seen->second.first)
          each.cpu_milli = (cpu_ns - seen->second.first) / 1000 / static_cast<std::uint64_t>(ms);
        if (cpu_seen_.size() > 256) cpu_seen_.clear();
        cpu_seen_[*lease] = {cpu_ns, now};
        sample.containers.push_back(each);
      }
    }
    send(std::move(sample));
  });
}

// ---- the owner's commands
Status AgentProcess::listen_control() {
  control_ = TRY(listen_unix(layout_.agent_socket(), SocketKind::Seqpacket, geteuid(), getegid(), 0600));
  poller_.watch(control_.get(), true, false, [this](Poller::Ready) { accept_control(); });
  return {};
}

void AgentProcess::accept_control() {
  Fd fd(accept4(control_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  if (!fd || control_clients_.size() >= 16) return;
  const auto peer = peer_of(fd.get());
  if (!peer.ok() || (peer->uid != 0 && peer->uid != geteuid())) return;
  const int raw = fd.get();
  control_clients_[raw] = std::move(fd);
  poller_.watch(raw, true, false, [this, raw](Poller::Ready) {
    auto message = receive_message(raw);
    if (message.ok() && !message->text.empty()) {
      (void)send_message(raw, control(message->text)).ok();
      return;
    }
    if (!message.ok() && message.error().code == Code::NotFound) return;
    poller_.unwatch(raw);
    control_clients_.erase(raw);
  });
}

std::string AgentProcess::control(const std::string& command) {
  const std::map<std::string, agent::OwnerAction> actions{{"pause", agent::OwnerAction::Pause},
                                                          {"pause-now", agent::OwnerAction::PauseNow},
                                                          {"resume", agent::OwnerAction::Resume},
                                                          {"drain", agent::OwnerAction::Drain},
                                                          {"leave", agent::OwnerAction::Leave}};
  if (const auto action = actions.find(command); action != actions.end() && started_) {
    core_->on_owner(action->second, "owner", read_clocks());
    poller_.post([this] { pump(); });
  } else if (command != "status") {
    return "{\"error\":\"unknown command\"}";
  }
  return status_text();
}

std::string AgentProcess::status_text() const {
  json::array leases;
  if (started_) {
    for (const auto& lease : core_->observed_leases()) {
      const auto assignment = core_->assignment(lease.lease);
      leases.push_back(json::object{{"lease", lease.lease.str()},
                                    {"cluster", assignment ? assignment->cluster_name : std::string()},
                                    {"phase", std::string(wire::text(lease.phase))},
                                    {"reason", lease.reason},
                                    {"restarts", lease.restarts}});
    }
  }
  return to_text(json::object{{"node", config_.node_id},
                              {"name", config_.name},
                              {"server", config_.server},
                              {"online", started_ && core_->online()},
                              {"paused", started_ && core_->paused()},
                              {"refusal", started_ ? core_->last_refusal() : std::string()},
                              {"link_fault", link_fault_},
                              {"privd", privd_.connected()},
                              {"leases", leases}});
}

Status AgentProcess::run() {
  loop_ = net::Loop::create(1);
  make_core();
  TRY_VOID(listen_control());
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  signals_ = Fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  poller_.watch(signals_.get(), true, false, [this](Poller::Ready) { poller_.stop(); });
  executor_->adopt([this](const agent::Found& found) { begin(found); });
  poller_.run();
  // The process ends; what runs goes on and is adopted by the next one.
  ++generation_;
  if (socket_) socket_->close("the agent stops");
  loop_->stop();
  unlink(layout_.agent_socket().c_str());
  return {};
}

}  // namespace

Status run_agent(const Layout& layout) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);  // before any thread is made, so that only the signal descriptor sees them
  std::signal(SIGPIPE, SIG_IGN);
  Config config = TRY(load_config(layout));
  const Bytes pem = TRY(crypto::read_secret_file(layout.device_key()));
  auto key = TRY(crypto::SigningKey::from_pem(as_string(pem)));
  const Bytes certificate = TRY(crypto::read_secret_file(layout.certificate()));
  TRY_VOID(confine_agent());
  AgentProcess process(layout, std::move(config), std::move(key), as_string(certificate));
  return process.run();
}

Result<std::string> ask_agent(const Layout& layout, const std::string& command, Millis timeout) {
  auto fd = connect_unix(layout.agent_socket(), SocketKind::Seqpacket);
  if (!fd.ok())
    return error(Code::Unavailable,
                 fmt::format("the agent is not running ({}); start it with `muster-agent run --state-dir {}`",
                             fd.error().message, layout.root));
  TRY_VOID(send_message(fd->get(), command));
  pollfd wait{fd->get(), POLLIN, 0};
  if (poll(&wait, 1, static_cast<int>(timeout.count())) <= 0)
    return error(Code::DeadlineExceeded, "the agent did not answer");
  const Message message = TRY(receive_message(fd->get()));
  return message.text;
}

}  // namespace muster::host
