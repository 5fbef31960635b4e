#include "host/agent_process.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <csignal>
#include <filesystem>
#include <tuple>

#include "agent/core.h"
#include "agent/memory.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/version.h"
#include "crypto/cert.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "host/executor.h"
#include "host/facts.h"
#include "host/local_ports.h"
#include "host/overlay_client.h"
#include "host/owner_network.h"
#include "host/policy.h"
#include "host/port_mapper.h"
#include "host/relay_probe.h"
#include "host/sandbox.h"
#include "host/streams.h"
#include "host/telemetry_pump.h"
#include "model/node_labels.h"
#include "net/net.h"
#include "overlay/roster.h"
#include "session/carried.h"
#include "wire/agent_frames.h"
#include "wire/names.h"

namespace muster::host {
namespace {

constexpr Millis kFactsEvery{10'000}, kPersistRetry{2'000}, kNetLook{3'000}, kNetEvery{15'000}, kRelaysEvery{600'000};
constexpr std::size_t kLinkBufferMax = 8 << 20, kStateBytesMax = 16 << 20;

// Begins or feeds something: must wait while the agent's own memory cannot be written.
bool begins(const agent::Op& op) {
  return std::holds_alternative<agent::EnsureImage>(op) || std::holds_alternative<agent::ProbeImage>(op) ||
         std::holds_alternative<agent::CreateLease>(op) || std::holds_alternative<agent::RunSetup>(op) ||
         std::holds_alternative<agent::StartRay>(op) || std::holds_alternative<agent::SubmitJob>(op) ||
         std::holds_alternative<agent::WriteBlob>(op);
}

// Which of the believed keys signed it. The first signature is the control plane's.
std::optional<crypto::Key32> roster_signer(const session::SignedRoster& roster, const crypto::SigningKeys& keys) {
  if (roster.signatures.empty()) return {};
  return crypto::signer_of(crypto::believed_keys(keys, crypto::KeyKind::Roster, read_clocks().wall),
                           roster.keys.empty() ? ByteView() : ByteView(roster.keys.front()),
                           overlay::roster_message(roster.bytes), roster.signatures.front());
}

Result<agent::OpenedRoster> open_roster(const session::SignedRoster& roster, const crypto::SigningKeys& keys) {
  const auto key = roster_signer(roster, keys);
  if (!key)
    return error(Code::PermissionDenied, "it is not signed by a key of this control plane that is believed here");
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

// Asked of privd, on a connection of its own: the link waits for it, for as long as a TPM takes. Empty: it did not
// sign.
Bytes sign_by_tpm(const Layout& layout, ByteView message) {
  constexpr int kTpmWaitMs = 5'000;
  Verb verb;
  verb.id = 1;
  verb.kind = VerbKind::TpmSign;
  verb.secret = Bytes(message.begin(), message.end());
  const auto fd = connect_unix(layout.privd_socket(), SocketKind::Seqpacket);
  if (!fd.ok() || !send_message(fd->get(), verb_text(verb)).ok()) return {};
  pollfd wait{fd->get(), POLLIN, 0};
  if (poll(&wait, 1, kTpmWaitMs) <= 0) return {};
  const auto reply = receive_message(fd->get());
  const auto said = reply.ok() ? parse_object(reply->text) : Result<json::object>(reply.error());
  if (!said.ok() || !bool_at(*said, {"ok"})) {
    log_error("agent", "the TPM did not sign: {}", said.ok() ? text_at(*said, {"message"}) : said.error().message);
    return {};
  }
  return unbase64(text_at(*said, {"signature"})).value_or(Bytes{});
}

class AgentProcess {
 public:
  AgentProcess(Layout layout, Config config, crypto::SigningKey key, std::string certificate)
      : layout_(std::move(layout)),
        config_(std::move(config)),
        key_(std::move(key)),
        certificate_(std::move(certificate)),
        trust_(load_trust(layout_, config_)),
        believed_(crypto::trust_text(trust_)),
        keys_(load_signing_keys(layout_, config_)),
        rng_(seed()),
        privd_(poller_, layout_.privd_socket()),
        overlay_(poller_, privd_, layout_.netd_socket(), layout_.overlays(), {.relay_ca_pem = believed_}),
        streams_(
            poller_, privd_, [this](session::AgentFrame frame) { send(std::move(frame)); },
            [this](LeaseId lease) { return stream_address(lease); }),
        pump_(poller_, privd_, layout_.root, seed(),
              {[this] { return started_ && core_->online(); },
               [this](session::Telemetry sample) { send(std::move(sample)); },
               [this](const Gate& gate) { heed_owner(gate); }}),
        control_(poller_, layout_.agent_socket(),
                 [this](const std::string& command, ControlPort::Reply tell) {
                   if (command == "egress") return tell_egress(std::move(tell));
                   tell(control(command));
                 }),
        metrics_(poller_,
                 [this] { return metrics_text(pump_.latest(), started_ && core_->online()) + network_metrics(); }) {}

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
  void persist(const Bytes& bytes);
  void refresh_facts();
  void tell_networks();
  void probe_relays();
  std::string network_metrics() const;
  void heed_owner(const Gate& gate);
  void keep_reachable();
  void on_mapping(const MapState& state);
  json::object ways_text() const;
  void watch_certificate();
  void on_trust(const Bytes& pem);
  void say_trust();
  void on_keys(const Bytes& text);
  void say_keys();
  bool genuine(const session::Desired& desired) const;
  std::string control(const std::string& command);
  void tell_egress(ControlPort::Reply tell);
  std::string status_text() const;
  json::object network_of(LeaseId lease) const;

  Layout layout_;
  Config config_;
  crypto::SigningKey key_;
  std::string certificate_;
  crypto::Trust trust_;
  std::string believed_;  // its text: roots and CAs
  crypto::SigningKeys keys_;
  Rng rng_;
  Poller poller_;
  PrivdClient privd_;
  OverlayClient overlay_;
  Streams streams_;
  TelemetryPump pump_;
  RelayProbe probe_{poller_};
  std::vector<std::string> relays_;  // of the last Welcome
  ControlPort control_;
  MetricsPort metrics_;
  std::unique_ptr<Executor> executor_;
  std::unique_ptr<agent::Core> core_;
  NodeFacts facts_;
  std::unique_ptr<net::Loop> loop_;
  net::WebSocketPtr socket_;
  std::uint64_t generation_ = 0, deadline_timer_ = 0, persist_timer_ = 0;
  bool pumping_ = false, started_ = false;
  bool net_wanted_ = false, peers_known_ = false;  // this server takes reports of networks; in them paths by peers
  struct Told {
    LeaseTime at;
    std::array<std::uint32_t, 5> counts{};
  };
  std::map<LeaseId, Told> net_told_;
  std::string link_fault_, engine_fault_;
  std::string planned_for_;  // the certificate that renewal_ is about
  RenewalPlan renewal_;
  std::uint64_t certificate_timer_ = 0;
  Bytes unsaved_;  // what the disk did not take yet
  OwnerNetworkFile owner_network_{layout_.network()};
  MapState mapping_;
  std::unique_ptr<PortMapper> mapper_;  // before poller_ ends, this does
  Fd signals_;
};

void AgentProcess::make_core() {
  facts_ = gather_facts(layout_, config_.labels);
  agent::Options options;
  options.agent_version = kVersion;
  options.boot_id = facts_.boot_id;
  options.certificate_pem = certificate_;
  options.features = {"docker",   "standby",  "egress", "image_policy",
                      "identity", "gpu_share"};  // must-understand names of assignments that this agent honours
  options.seed = seed();
  agent::Hooks hooks;
  hooks.sign = [this](ByteView message) { return key_.sign(message); };
  if (!config_.tpm_key.empty())
    hooks.sign_tpm = [this](ByteView message) { return std::pair(config_.tpm_key, sign_by_tpm(layout_, message)); };
  hooks.desired_genuine = [this](const session::Desired& desired) { return genuine(desired); };
  // Not the key that Welcome names: whoever holds the link could name his own.
  hooks.open_roster = [this](const session::SignedRoster& roster, const Bytes&) {
    auto opened = open_roster(roster, keys_);
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
  executor_->set_roster_signer([this](const session::SignedRoster& roster) {
    const auto key = roster_signer(roster, keys_);
    return key ? Bytes(key->begin(), key->end()) : Bytes();
  });
}

bool AgentProcess::genuine(const session::Desired& desired) const {
  if (keys_.revision == 0 && config_.command_key.empty()) return true;  // enrolled before orders were signed
  const Bytes message = wire::desired_signing_bytes(NodeId::parse(config_.node_id).value_or(NodeId{}), desired);
  const auto believed = crypto::believed_keys(keys_, crypto::KeyKind::Order, read_clocks().wall);
  if (crypto::signer_of(believed, desired.signature_key, message, desired.signature)) return true;
  log_error("agent", "an order that no believed key of the control plane signed was dropped{}",
            desired.signature_key.empty() ? std::string() : " (it names " + hex(desired.signature_key) + ")");
  return false;
}

void AgentProcess::begin(const agent::Found& found) {
  const auto persisted = crypto::read_secret_file(layout_.state(), kStateBytesMax);
  started_ = true;
  log_info("agent", "{} starts, {} leases adopted", config_.node_id, found.leases.size());
  core_->start(persisted.ok() ? ByteView(*persisted) : ByteView(), found, read_clocks());
  refresh_facts();
  watch_certificate();
  tell_networks();
  probe_relays();
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
    if (!unsaved_.empty() && begins(op->op)) {
      // What it would have to remember of it could not be kept: ends go on, beginnings wait.
      poller_.post([this, id = op->id] {
        core_->on_result({id, false, "disk_full", false, {}}, read_clocks());
        pump();
      });
      return;
    }
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
    this->persist(persist->bytes);
  } else if (const auto* watch = std::get_if<agent::SetTelemetry>(&action)) {
    pump_.set_live(watch->live);
  } else if (const auto* done = std::get_if<agent::OwnerDone>(&action)) {
    log_info("agent", "{}: done", done->what);
    if (done->what == "leave") poller_.after(Millis(500), [this] { poller_.stop(); });
  }
}

void AgentProcess::persist(const Bytes& bytes) {
  if (persist_timer_ != 0) poller_.cancel(std::exchange(persist_timer_, 0));
  const Status written = crypto::write_secret_file(layout_.state(), bytes);
  if (written.ok()) {
    if (!unsaved_.empty()) log_info("agent", "the agent's state is written again");
    unsaved_.clear();
    return;
  }
  if (unsaved_.empty())
    log_error("agent", "the agent's state cannot be written: {}; free some disk. Nothing new is started until then",
              written.error().message);
  unsaved_ = bytes;
  persist_timer_ = poller_.after(kPersistRetry, [this] {
    persist_timer_ = 0;
    persist(Bytes(unsaved_));
  });
}

// ---- the link
void AgentProcess::dial() {
  const std::uint64_t generation = ++generation_;
  auto endpoint = net::parse_url(config_.server);
  if (!endpoint.ok()) return link_down(endpoint.error().message);
  endpoint->ca_pem = believed_;
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
  poller_.cancel(std::exchange(certificate_timer_, 0));
  certificate_timer_ = poller_.after(Millis(2'000), [this] { watch_certificate(); });  // one that ended is due at once
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
  if (const auto* told = std::get_if<session::TrustTold>(&*frame)) return on_trust(told->pem);
  if (const auto* told = std::get_if<session::KeysTold>(&*frame)) return on_keys(told->text);
  if (const auto* issued = std::get_if<session::CertIssued>(&*frame)) {
    const std::string pem = as_string(issued->der_chain_pem);
    // Its dates are the control plane's business: a clock that is off here must not keep this machine out.
    if (!plan_renewal(pem, believed_, 0).ok())
      return log_error("agent", "a renewed certificate was not genuine and was dropped");
    certificate_ = pem;
    const Status written = crypto::write_secret_file(layout_.certificate(), as_bytes(pem));
    if (!written.ok()) log_error("agent", "{}", written.error().message);
    core_->set_certificate(pem);
    log_info("agent", "the device certificate was renewed");
    return;
  }
  if (const auto* welcome = std::get_if<session::Welcome>(&*frame); welcome != nullptr) {
    const auto has = [&](std::string_view feature) {
      return std::find(welcome->features.begin(), welcome->features.end(), feature) != welcome->features.end();
    };
    net_wanted_ = has("net");
    peers_known_ = has("peer");
    net_told_.clear();
    relays_ = welcome->probe_relays;
    probe_.start(relays_, [this](auto seen) { pump_.add_relays(std::move(seen)); });
    if (has("trust")) say_trust();
    if (has("keys")) say_keys();
  }
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

// Only what a root that is believed already signed; on disk before it counts.
void AgentProcess::on_trust(const Bytes& pem) {
  const auto told = crypto::parse_trust(as_string(pem));
  auto believed = told.ok() ? crypto::believe(trust_, *told) : Result<crypto::Trust>(told.error());
  if (!believed.ok()) {
    log_error("agent", "other roots were told and are not believed: {}", believed.error().message);
  } else if (const std::string text = crypto::trust_text(*believed); text != believed_) {
    if (const Status kept = crypto::write_secret_file(layout_.trust(), as_bytes(text)); !kept.ok())
      return log_error("agent", "the new roots cannot be kept: {}", kept.error().message);
    trust_ = std::move(*believed);
    believed_ = text;
    log_info("agent", "roots of revision {} are believed now: {}, and {} CAs under them", trust_.revision,
             trust_.roots.size(), trust_.intermediates.size());
    overlay_.believe(believed_);
    planned_for_.clear();
    watch_certificate();
  }
  say_trust();
}

void AgentProcess::say_trust() {
  const crypto::Digest digest = crypto::sha256(as_bytes(believed_));
  send(session::TrustTaken{trust_.revision, {digest.begin(), digest.end()}});
}

// Only what a CA that is believed signed; on disk before it counts.
void AgentProcess::on_keys(const Bytes& text) {
  const auto told = crypto::parse_signing_keys(as_string(text));
  auto believed = told.ok() ? crypto::believe(keys_, *told, trust_) : Result<crypto::SigningKeys>(told.error());
  if (!believed.ok()) {
    log_error("agent", "other signing keys were told and are not believed: {}", believed.error().message);
  } else if (*believed != keys_) {
    if (const Status kept = crypto::write_secret_file(layout_.signing_keys(), text); !kept.ok())
      return log_error("agent", "the new signing keys cannot be kept: {}", kept.error().message);
    keys_ = std::move(*believed);
    log_info("agent", "signing keys of revision {} are believed now", keys_.revision);
  }
  say_keys();
}

void AgentProcess::say_keys() {
  if (keys_.revision == 0) return send(session::KeysTaken{});
  const crypto::Digest digest = crypto::sha256(as_bytes(crypto::signing_keys_text(keys_)));
  send(session::KeysTaken{keys_.revision, {digest.begin(), digest.end()}});
}

// Asked for again until it is there; one that ended while the machine slept is renewed on proof of the device key.
void AgentProcess::watch_certificate() {
  if (planned_for_ != certificate_) {
    const auto plan = plan_renewal(certificate_, believed_, static_cast<double>(rng_.below(1000)) / 1000);
    if (plan.ok()) renewal_ = *plan;
    if (!plan.ok()) {  // damaged, or of a CA that was given up
      log_error("agent", "the device certificate does not count, another is asked for: {}", plan.error().message);
      renewal_ = {};
    }
    planned_for_ = certificate_;
  }
  if (core_->online() && read_clocks().wall >= renewal_.renew_at) {
    const auto csr = crypto::make_csr(key_, config_.node_id);
    if (csr.ok()) send(session::CertRequest{to_bytes(*csr)});
  }
  poller_.cancel(std::exchange(certificate_timer_, 0));
  certificate_timer_ = poller_.after(renewal_.check_every, [this] { watch_certificate(); });
}

void AgentProcess::refresh_facts() {
  privd_.call(Verb{.kind = VerbKind::Info}, [this](Result<PrivdReply> reply) {
    NodeFacts facts = gather_facts(layout_, config_.labels);
    owner_network_.refresh();
    if (!owner_network_.now().relay_only) facts.lan = overlay_.lan_endpoints();
    engine_fault_.clear();
    if (reply.ok()) {
      std::vector<std::string> here;
      std::map<std::string, std::int64_t> bytes;
      if (const auto* images = reply->fields.if_contains("images"); images != nullptr && images->is_array())
        for (const auto& image : images->get_array())
          if (image.is_string()) here.emplace_back(image.get_string());
      if (const auto* sizes = reply->fields.if_contains("image_bytes"); sizes != nullptr && sizes->is_object())
        for (const auto& [image, size] : sizes->get_object())
          if (size.is_int64() && size.get_int64() > 0) bytes.emplace(image, size.get_int64());
      executor_->ordered_images().report(here, bytes, facts);
      facts.runtimes.clear();
      if (const auto* runtimes = reply->fields.if_contains("runtimes"); runtimes != nullptr && runtimes->is_array()) {
        for (const auto& each : runtimes->get_array())
          facts.runtimes.push_back(each == "venv" ? RuntimeKind::Venv : RuntimeKind::Docker);
      }
      if (const auto* versions = reply->fields.if_contains("versions"); versions != nullptr && versions->is_object())
        for (const auto& [component, version] : versions->get_object())
          if (version.is_string())
            facts.labels[std::string(kVersionLabelPrefix) + std::string(component)] =
                std::string(version.get_string()).substr(0, 256);
      facts.labels[std::string(kIsolationLabel)] =
          bool_at(reply->fields, {"own_users"}) ? kUserNamespace : kSharedUsers;
      if (!facts.devices.empty() && text_at(reply->fields, {"gpu"}) == "none") {
        // A GPU that no container can get is nothing to hire.
        engine_fault_ = "the container engine cannot give GPUs to containers; see `muster-agent doctor`";
        facts.devices.clear();
        facts.capacity.gpus = 0;
      }
    } else if (reply.error().field != "privd.gone") {
      engine_fault_ = reply.error().message;
      facts.runtimes.clear();
    }
    // Free disk moves all the time; only what matters for placing work makes a new inventory.
    const std::int64_t disk_step = std::int64_t{10} << 30;
    facts.capacity.disk_bytes -= facts.capacity.disk_bytes % disk_step;
    if (!(facts == facts_)) {
      if (facts.devices != facts_.devices)
        log_info("agent", "{} GPUs can be hired, {} before", facts.devices.size(), facts_.devices.size());
      facts_ = facts;
      core_->set_facts(facts_, read_clocks());
      pump();
    }
    if (const auto policy = load_policy(layout_.policy()); policy.ok())
      metrics_.set_port(static_cast<std::uint16_t>(policy->metrics_port));
    poller_.after(kFactsEvery, [this] { refresh_facts(); });
  });
}

// With some jitter: many machines come at once.
void AgentProcess::probe_relays() {
  poller_.after(kRelaysEvery + Millis(rng_.between(0, kRelaysEvery.count() / 2)), [this] { probe_relays(); });
  if (core_->online()) probe_.start(relays_, [this](auto seen) { pump_.add_relays(std::move(seen)); });
}

// Now and then, and soon after a way changed. Whoever looks at many pairs sees those in use.
void AgentProcess::tell_networks() {
  poller_.after(kNetLook, [this] { tell_networks(); });
  keep_reachable();
  std::erase_if(net_told_, [&](const auto& each) { return !overlay_.paths().contains(each.first); });
  if (!started_ || !core_->online() || !net_wanted_) return;
  const LeaseTime now = read_clocks().lease;
  std::size_t room = session::kNetPairsOfMachineMax;
  for (const auto& [lease, paths] : overlay_.paths()) {
    session::NetReport report = paths.report;
    if (!report.carried.empty()) report.counts_signature = session::sign_carried(key_, report);
    if (!peers_known_) {
      for (session::NetPair& pair : report.pairs) {
        if (pair.path == session::NetPath::Peer) pair.path = session::NetPath::Relay;
        std::erase_if(pair.tries, [](const auto& each) { return each.origin == session::NetOrigin::Offered; });
      }
    }
    report.pairs.resize(std::min(report.pairs.size(), room));
    room -= report.pairs.size();
    const auto told = net_told_.find(lease);
    const bool changed =
        told == net_told_.end() ||
        told->second.counts != std::array{paths.relayed, paths.lan, paths.direct, paths.peer, paths.relayed_udp};
    if (!changed && now - told->second.at < kNetEvery) continue;
    net_told_[lease] = {now, {paths.relayed, paths.lan, paths.direct, paths.peer, paths.relayed_udp}};
    send(std::move(report));
  }
}

// The router is asked only for a lease's sake, and not where the owner says how this machine is reached, or that it is
// not to be.
void AgentProcess::keep_reachable() {
  owner_network_.refresh();
  const OwnerNetwork& owner = owner_network_.now();
  const bool wanted = owner.port_mapping && !owner.relay_only && !owner.has_ipv4() && !overlay_.idle();
  if (!wanted && (!owner.port_mapping || owner.relay_only || owner.has_ipv4())) overlay_.set_mapped({});
  if (!mapper_ && !wanted) return;
  if (!mapper_) {
    auto secret = crypto::read_secret_file(layout_.port_secret(), 64);
    if (!secret.ok() || secret->size() != 32) {
      secret = Bytes(32);
      crypto::random_fill(*secret);
      if (const Status kept = crypto::write_secret_file(layout_.port_secret(), *secret); !kept.ok())
        log_warn("agent", "{}", kept.error().message);
    }
    mapper_ = std::make_unique<PortMapper>(
        std::move(*secret), [this](const MapState& state) { poller_.post([this, state] { on_mapping(state); }); });
  }
  mapper_->want(wanted ? overlay_.udp_port() : 0);
}

void AgentProcess::on_mapping(const MapState& state) {
  mapping_ = state;
  netd::SetMapped told;
  if (const auto& mapping = state.mapping) {
    told.places = {{mapping->ip, mapping->port}};
    told.how = map_by_text(mapping->how);
    log_info("agent", "the router leads {}:{} to UDP port {} ({})", ip4_text(mapping->ip), mapping->port,
             mapping->inside, told.how);
  } else if (!overlay_.idle()) {
    log_info("agent", "no port of the router leads here: {}", state.detail);
  }
  overlay_.set_mapped(std::move(told));
}

// For status and doctor.
json::object AgentProcess::ways_text() const {
  const OwnerNetwork& owner = owner_network_.now();
  json::array endpoints;
  for (const auto& endpoint : owner.endpoints) endpoints.emplace_back(own_endpoint_text(endpoint));
  json::object out{{"relay_only", owner.relay_only},
                   {"udp_port", overlay_.udp_port()},
                   {"udp_port_wanted", owner.udp_port},
                   {"endpoints", endpoints},
                   {"port_mapping", owner.port_mapping && !owner.relay_only && !owner.has_ipv4()}};
  if (overlay_.idle()) return out;
  if (const auto& mapping = mapping_.mapping) {
    out["mapped"] = fmt::format("{}:{}", ip4_text(mapping->ip), mapping->port);
    out["mapped_by"] = map_by_text(mapping->how);
  } else {
    out["not_mapped"] = mapping_.detail;
  }
  return out;
}

namespace {
// What may stand inside a label's quotes.
std::string label_text(std::string text) {
  std::erase_if(text, [](char c) { return c == '"' || c == '\\' || static_cast<unsigned char>(c) < 0x20; });
  return text;
}
}  // namespace

std::string AgentProcess::network_metrics() const {
  std::array<std::uint32_t, 5> pairs{};
  std::uint32_t limited = 0;
  std::uint64_t carried = 0;
  std::string relays, large_sends;
  for (const auto& [lease, paths] : overlay_.paths()) {
    pairs[0] += paths.relayed;
    pairs[1] += paths.lan;
    pairs[2] += paths.direct;
    pairs[3] += paths.peer;
    pairs[4] += paths.relayed_udp;
    for (const session::NetRelay& relay : paths.report.relays) {
      const std::string labels = fmt::format("{{lease=\"{}\",relay=\"{}\",region=\"{}\"}}", lease.str(),
                                             label_text(relay.address), label_text(relay.region));
      relays += fmt::format("muster_agent_relay_up{} {}\n", labels, relay.up ? 1 : 0);
      if (relay.rtt_us != 0)
        relays +=
            fmt::format("muster_agent_relay_rtt_seconds{} {:.6f}\n", labels, static_cast<double>(relay.rtt_us) / 1e6);
    }
    for (const auto& [at, large] : {std::pair("udp", paths.report.large_udp), std::pair("tun", paths.report.large_tun)})
      large_sends += fmt::format("muster_agent_large_packets{{lease=\"{}\",at=\"{}\"}} {}\n", lease.str(), at,
                                 large == session::NetLarge::Used ? 1 : 0);
    for (const session::NetForwarded& each : paths.report.forwarded) carried += each.bytes;
    limited += paths.limited;
  }
  return fmt::format(
      "# HELP muster_agent_net_pairs members that this machine talked to, by the way to them\n# TYPE "
      "muster_agent_net_pairs gauge\nmuster_agent_net_pairs{{path=\"relay\"}} "
      "{}\nmuster_agent_net_pairs{{path=\"lan\"}} "
      "{}\nmuster_agent_net_pairs{{path=\"direct\"}} {}\nmuster_agent_net_pairs{{path=\"peer\"}} {}\n"
      "muster_agent_net_pairs{{path=\"relay-udp\"}} {}\n"
      "# HELP muster_agent_net_pairs_limited of them, those whose way was full: bulk is held to what it carries\n# "
      "TYPE "
      "muster_agent_net_pairs_limited gauge\nmuster_agent_net_pairs_limited {}\n"
      "# HELP muster_agent_relay_up 1 while the lease is connected to the relay\n# TYPE muster_agent_relay_up gauge\n"
      "# HELP muster_agent_relay_rtt_seconds round trip to it, over TLS\n# TYPE muster_agent_relay_rtt_seconds gauge\n"
      "{}"
      "# HELP muster_agent_carried_bytes what present leases carried for other members\n# TYPE "
      "muster_agent_carried_bytes gauge\nmuster_agent_carried_bytes {}\n"
      "# HELP muster_agent_large_packets 1 while what goes to the kernel goes in large pieces, 0 while one by one "
      "(docs/network.md)\n# TYPE muster_agent_large_packets gauge\n{}",
      pairs[0], pairs[1], pairs[2], pairs[3], pairs[4], limited, relays, carried, large_sends);
}

// Level-triggered: privd decides, the core and through it the control plane are told what changed.
void AgentProcess::heed_owner(const Gate& gate) {
  if (!started_) return;
  std::optional<agent::OwnerAction> action;
  if (gate.open && core_->paused()) action = agent::OwnerAction::Resume;
  if (!gate.open && gate.stop && !core_->paused_now()) action = agent::OwnerAction::PauseNow;
  if (!gate.open && !gate.stop && (!core_->paused() || core_->paused_now())) action = agent::OwnerAction::Pause;
  if (!action) return;
  core_->on_owner(*action, gate.text, read_clocks());
  pump();
}

// ---- the owner's commands
// privd knows.
void AgentProcess::tell_egress(ControlPort::Reply tell) {
  privd_.call(Verb{.kind = VerbKind::Egress}, [tell = std::move(tell)](Result<PrivdReply> reply) {
    tell(to_text(reply.ok() ? std::move(reply->fields) : json::object{{"error", reply.error().message}}));
  });
}

std::string AgentProcess::control(const std::string& command) {
  if (command == "look") {
    pump_.look();  // the owner said something: privd knows what
  } else if (command == "leave" && started_) {
    core_->on_owner(agent::OwnerAction::Leave, "owner", read_clocks());
    poller_.post([this] { pump(); });
  } else if (command != "status") {
    return "{\"error\":\"unknown command\"}";
  }
  return status_text();
}

// The others of its cluster that it talks to: how many are reached directly and how many through the relay; the first
// of them one by one.
json::object AgentProcess::network_of(LeaseId lease) const {
  constexpr std::size_t kShown = 64;
  json::array members;
  int direct = 0, relayed = 0, carried = 0;
  if (const auto found = overlay_.networks().find(lease); found != overlay_.networks().end()) {
    for (const netd::PeerLine& peer : found->second.peers) {
      const bool used = peer.last_handshake_ms != 0;  // who never talked to us costs nothing, and has no way yet
      if (used) ++(peer.path == "relay" ? relayed : peer.path.starts_with("peer ") ? carried : direct);
      if (members.size() >= kShown) continue;
      const in_addr raw{htonl(peer.address)};
      std::array<char, INET_ADDRSTRLEN> text{};
      inet_ntop(AF_INET, &raw, text.data(), text.size());
      members.push_back(json::object{{"address", text.data()},
                                     {"path", used ? peer.path : "none"},
                                     {"rx_bytes", peer.rx_bytes},
                                     {"tx_bytes", peer.tx_bytes}});
    }
  }
  json::array relays;
  if (const auto found = overlay_.paths().find(lease); found != overlay_.paths().end())
    for (const session::NetRelay& relay : found->second.report.relays)
      relays.push_back(json::object{{"address", relay.address},
                                    {"region", relay.region},
                                    {"up", relay.up},
                                    {"rtt_us", relay.rtt_us},
                                    {"udp_rtt_us", relay.udp_rtt_us},
                                    {"by_udp", relay.by_udp}});
  return {{"direct", direct}, {"relayed", relayed}, {"carried", carried}, {"members", members}, {"relays", relays}};
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
                                    {"restarts", lease.restarts},
                                    {"network", network_of(lease.lease)}});
    }
  }
  return to_text(json::object{{"node", config_.node_id},
                              {"name", config_.name},
                              {"server", config_.server},
                              {"online", started_ && core_->online()},
                              {"ready", started_ && core_->ready()},
                              {"paused", started_ && core_->paused()},
                              {"owner", pump_.gate().open ? std::string() : pump_.gate().text},
                              {"owner_reason", pump_.gate().reason},
                              {"engine_fault", engine_fault_},
                              {"disk_full", !unsaved_.empty()},
                              {"tpm", !config_.tpm_key.empty()},
                              {"held", started_ ? core_->held() : std::string()},
                              {"refusal", started_ ? core_->last_refusal() : std::string()},
                              {"link_fault", link_fault_},
                              {"privd", privd_.connected()},
                              {"ways", ways_text()},
                              {"leases", leases}});
}

Status AgentProcess::run() {
  loop_ = net::Loop::create(1);
  make_core();
  TRY_VOID(control_.listen());
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  signals_ = Fd(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  poller_.watch(signals_.get(), true, false, [this](Poller::Ready) { poller_.stop(); });
  if (const auto kept = crypto::read_secret_file(layout_.state(), kStateBytesMax); kept.ok()) {
    if (auto memory = agent::decode_memory(*kept)) overlay_.refuse_older_than(std::move(memory->roster_epochs));
  }
  executor_->adopt([this](const agent::Found& found) { begin(found); });
  pump_.start();
  poller_.run();
  // The process ends; what runs goes on and is adopted by the next one.
  ++generation_;
  if (socket_) socket_->close("the agent stops");
  loop_->stop();
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
