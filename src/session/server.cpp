#include "session/server.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "base/mutant.h"
#include "session/digest.h"
#include "session/link.h"

namespace muster::session {
namespace {
constexpr LeaseTime kNever{std::numeric_limits<std::int64_t>::max()};
constexpr int kMissedBeats = 3;
constexpr Millis kUptimeMax{1'000'000'000'000};  // 30 years
}  // namespace

Server::Server(ServerOptions options, Authority& authority, Directory& directory, std::uint64_t session, Bytes nonce)
    : options_(std::move(options)), authority_(&authority), directory_(&directory), session_(session) {
  challenge_.nonce = std::move(nonce);
  challenge_.server_id = options_.server_id;
}

Bytes Server::hello_bytes() const {
  return hello_message(challenge_);
}

void Server::open(Now now) {
  state_ = State::Challenged;
  deadline_ = now.lease + options_.handshake_timeout;
  out_.send.emplace_back(challenge_);
}

void Server::refuse(std::string code, std::string message, Millis retry_after) {
  if (state_ == State::Closed) return;
  out_.close = code;
  out_.send.emplace_back(Refused{std::move(code), std::move(message), retry_after});
  if (node_) directory_->closed(node_, session_);
  state_ = State::Closed;
}

void Server::kick(Verdict why, Now) {
  if (why == Verdict::Clone) {
    refuse("clone", std::string(kQuarantinedText), kQuarantineRetry);
  } else {
    refuse("replaced", "another connection of this agent took over", Millis(5000));
  }
}

void Server::close(Now) {
  if (node_) directory_->closed(node_, session_);
  state_ = State::Closed;
}

bool Server::on_frame(const AgentFrame& frame, Now now) {
  if (const auto* hello = std::get_if<Hello>(&frame)) return on_hello(*hello, now), true;
  if (state_ != State::Welcomed) {
    if (state_ != State::Closed) refuse("protocol", "the first frame must be Hello", Millis(60'000));
    return true;
  }
  if (const auto* inventory = std::get_if<Inventory>(&frame)) return on_inventory(*inventory), true;
  if (const auto* observed = std::get_if<Observed>(&frame)) return on_observed(*observed), true;
  if (const auto* heartbeat = std::get_if<Heartbeat>(&frame)) return on_heartbeat(*heartbeat, now), true;
  return false;
}

void Server::on_hello(const Hello& hello, Now now) {
  if (state_ != State::Challenged)
    return refuse("protocol", "Hello may come once, after the challenge", Millis(60'000));
  if (hello.version < kProtocolVersionMin || hello.version > kProtocolVersion) {
    return refuse("protocol_version",
                  "agent speaks protocol " + std::to_string(hello.version) + ", this server " +
                      std::to_string(kProtocolVersionMin) + ".." + std::to_string(kProtocolVersion) +
                      ": update the older one",
                  Millis(600'000));
  }
  if (hello.boot_id.empty() || hello.boot_id.size() > 128)
    return refuse("protocol", "Hello without a boot id", Millis(60'000));
  const Result<NodeId> node = authority_->verify(hello, hello_message(challenge_));
  if (!node) {
    const bool passing = node.error().code == Code::Unavailable || node.error().code == Code::ResourceExhausted;
    const std::string code =
        node.error().field.empty() ? std::string(code_name(node.error().code)) : node.error().field;
    return refuse(code, node.error().message,
                  passing                ? Millis(10'000)
                  : code == kQuarantined ? kQuarantineRetry
                                         : Millis(0));
  }
  node_ = *node;
  boot_id_ = hello.boot_id;
  hello_digest_ = hello.inventory_digest;
  const Caller caller{boot_id_, now.lease - std::clamp(hello.uptime, Millis(0), kUptimeMax),
                      authority_->known_boot(node_)};
  switch (directory_->hello(node_, caller, session_, now.lease)) {
    case Verdict::Accept:
      return welcome(now);
    case Verdict::Wait:
      state_ = State::Waiting;
      return;
    case Verdict::Clone:
      return kick(Verdict::Clone, now);
    case Verdict::Replaced:
      return kick(Verdict::Replaced, now);
  }
}

void Server::welcome(Now now) {
  state_ = State::Welcomed;
  deadline_ = now.lease + options_.heartbeat * kMissedBeats;
  domain_ = authority_->failure_domain(node_);
  Welcome welcome;
  welcome.node = node_;
  welcome.session = session_;
  welcome.heartbeat = options_.heartbeat;
  welcome.lease = options_.lease;
  welcome.server_time = now.wall;
  welcome.incarnation = options_.incarnation;
  welcome.roster_key = options_.roster_key;
  welcome.relays = options_.relays;
  welcome.probe_relays = options_.probe_relays;
  welcome.features = options_.features;
  welcome.want_inventory = hello_digest_.empty() || hello_digest_ != directory_->inventory_digest(node_);
  out_.send.emplace_back(std::move(welcome));
  authority_->heard(node_, domain_, now.lease);
}

void Server::on_inventory(const Inventory& inventory) {
  newest_ = Report{true, boot_id_, inventory.facts, newest_ ? newest_->revision : 0, inventory.leases, inventory.jobs};
  newest_->facts->boot_id = boot_id_;
  online_told_ = false;
  report_next();
}

void Server::on_observed(const Observed& observed) {
  const bool keep_facts = newest_ && newest_->facts && !online_told_;
  newest_ = Report{!online_told_,     boot_id_,        keep_facts ? newest_->facts : std::nullopt,
                   observed.revision, observed.leases, observed.jobs};
  report_next();
}

void Server::report_next() {
  if (in_flight_ || !newest_ || retry_at_ != LeaseTime{0}) return;
  if (taken_ && *newest_ == *taken_) return;
  in_flight_ = newest_;
  digest_in_flight_ = newest_->facts ? session::inventory_digest(*newest_->facts) : Bytes{};
  if (newest_->online) online_told_ = true;
  out_.report = in_flight_;
}

void Server::taken(bool ok, Now now) {
  if (!in_flight_) return;
  Report report = *std::exchange(in_flight_, std::nullopt);
  if (!ok) {
    // Newer content may be waiting, but who is online must be told first and facts must not get lost.
    if (report.online && newest_) {
      if (!newest_->facts) newest_->facts = report.facts;
      newest_->online = true;
      online_told_ = false;
    }
    retry_at_ = now.lease + options_.report_retry;
    return;
  }
  if (!digest_in_flight_.empty()) directory_->set_inventory_digest(node_, std::exchange(digest_in_flight_, {}));
  // What was taken as "online" with facts is, from here on, an ordinary observation without them.
  if (newest_ && *newest_ == report) newest_->online = false, newest_->facts.reset();
  report.online = false;
  report.facts.reset();
  taken_ = std::move(report);
  send_desired(now);
  report_next();
}

void Server::report_again() {
  if (!welcomed() || !newest_) return;
  newest_->online = true;
  online_told_ = false;
  report_next();
}

void Server::on_heartbeat(const Heartbeat& heartbeat, Now now) {
  if (const Verdict verdict = directory_->heard(node_, session_, now.lease); verdict != Verdict::Accept)
    return kick(verdict, now);
  deadline_ = now.lease + options_.heartbeat * kMissedBeats;
  authority_->heard(node_, domain_, now.lease);
  Renewed renewed;
  renewed.echo = heartbeat.echo;
  renewed.lease = options_.lease;
  const std::vector<LeaseId> live = authority_->live_leases(node_);
  const std::set<LeaseId> named(heartbeat.leases.begin(), heartbeat.leases.end());
  for (const LeaseId lease : live) {
    if (named.contains(lease)) renewed.leases.push_back(lease);
  }
  if (MUSTER_MUTANT("session.renew_ended")) renewed.leases.assign(named.begin(), named.end());
  renewed.held = authority_->held(node_);
  for (const LeaseId lease : renewed.leases) authority_->renewed(lease, now.lease);
  out_.send.emplace_back(std::move(renewed));
  const auto applied = std::pair(heartbeat.incarnation, heartbeat.revision);
  if (sent_revision_ == 0 || applied >= std::pair(sent_incarnation_, sent_revision_)) return;
  if (now.lease - sent_at_ < options_.resend) return;
  sent_incarnation_ = sent_revision_ = 0;
  send_desired(now);
}

void Server::set_desired(Desired desired, Now now) {
  const auto version = std::pair(desired.incarnation, desired.revision);
  if (desired_ && version <= std::pair(desired_->incarnation, desired_->revision)) return;
  desired_ = std::move(desired);
  send_desired(now);
}

void Server::renew_desired(Desired desired, Now now) {
  const auto version = std::pair(desired.incarnation, desired.revision);
  if (!desired_ || version != std::pair(desired_->incarnation, desired_->revision))
    return set_desired(std::move(desired), now);
  desired_ = std::move(desired);
  if (ready() && version == std::pair(sent_incarnation_, sent_revision_)) out_.send.emplace_back(*desired_);
}

void Server::send_desired(Now now) {
  if (!ready() || !desired_) return;
  const auto version = std::pair(desired_->incarnation, desired_->revision);
  if (version <= std::pair(sent_incarnation_, sent_revision_)) return;
  std::tie(sent_incarnation_, sent_revision_) = version;
  sent_at_ = now.lease;
  for (const Assignment& assignment : desired_->assignments) authority_->granted(assignment.lease, now.lease);
  out_.send.emplace_back(*desired_);
}

void Server::tick(Now now) {
  if (state_ == State::Waiting) {
    const Verdict verdict = directory_->waiting(node_, session_, now.lease);
    if (verdict == Verdict::Accept) return welcome(now);
    if (verdict != Verdict::Wait) return kick(verdict, now);
  }
  if (state_ != State::New && state_ != State::Closed && now.lease >= deadline_) {
    return refuse("silent", "nothing was heard from this agent in time", Millis(1000));
  }
  if (retry_at_ != LeaseTime{0} && now.lease >= retry_at_) {
    retry_at_ = LeaseTime{0};
    report_next();
  }
}

ServerOut Server::take() {
  return std::exchange(out_, ServerOut{});
}

LeaseTime Server::next_deadline() const {
  if (state_ == State::New || state_ == State::Closed) return kNever;
  LeaseTime next = deadline_;
  if (retry_at_ != LeaseTime{0}) next = std::min(next, retry_at_);
  return next;  // while it waits behind another session the owner ticks every second
}

}  // namespace muster::session
