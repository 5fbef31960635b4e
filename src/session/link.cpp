#include "session/link.h"

#include <algorithm>
#include <limits>
#include <tuple>
#include <utility>

#include "base/mutant.h"

namespace muster::session {
namespace {
constexpr std::size_t kUnansweredMax = 16;
constexpr int kSilentIntervals = 3;
constexpr Millis kHeartbeatMin{100}, kHeartbeatMax{300'000}, kDialTimeout{60'000}, kRetryAfterMax{3'600'000};
}  // namespace

Bytes hello_message(const Challenge& challenge) {
  Bytes message = to_bytes("muster-agent-hello-v1");
  message.push_back(0);
  message.push_back(static_cast<std::uint8_t>(std::min<std::size_t>(challenge.nonce.size(), 255)));
  message.insert(message.end(), challenge.nonce.begin(), challenge.nonce.end());
  message.insert(message.end(), challenge.server_id.begin(), challenge.server_id.end());
  return message;
}

Link::Link(Options options) : options_(std::move(options)), rng_(options_.seed) {}

void Link::start(LeaseTime now) {
  dial(now);
}

void Link::dial(LeaseTime now) {
  state_ = State::Dialing;
  deadline_ = now + kDialTimeout;
  out_.dial = true;
}

// Full jitter from the first retry on: after an outage of the server the agents must not come back in step.
void Link::wait(LeaseTime now, Millis at_least) {
  state_ = State::Waiting;
  sent_.clear();
  Millis ceiling = options_.backoff_base;
  for (std::uint32_t i = 0; i < tries_ && ceiling < options_.backoff_max; ++i) ceiling *= 2;
  ceiling = std::min(ceiling, options_.backoff_max);
  ++tries_;
  at_least = std::min(at_least, kRetryAfterMax);
  Millis spread = std::max(ceiling, at_least / 2);
  if (MUSTER_MUTANT("session.no_jitter")) spread = Millis(0);
  deadline_ = now + at_least + Millis(rng_.between(0, spread.count()));
}

void Link::on_up(LeaseTime now) {
  if (state_ != State::Dialing) return;
  state_ = State::Challenged;
  deadline_ = now + options_.handshake_timeout;
}

void Link::on_down(LeaseTime now) {
  if (state_ == State::Waiting || state_ == State::Final) return;
  if (state_ == State::Online && now - online_since_ >= options_.lasted) tries_ = 0;
  wait(now, Millis(0));
}

void Link::close(const std::string& reason, LeaseTime now) {
  if (state_ == State::Waiting || state_ == State::Final) return;
  out_.drop = reason;
  on_down(now);
}

bool Link::on_frame(const ServerFrame& frame, LeaseTime now) {
  if (const auto* challenge = std::get_if<Challenge>(&frame)) return on_challenge(*challenge, now), true;
  if (const auto* welcome = std::get_if<Welcome>(&frame)) return on_welcome(*welcome, now), true;
  if (const auto* refused = std::get_if<Refused>(&frame)) return on_refused(*refused, now), true;
  if (const auto* renewed = std::get_if<Renewed>(&frame)) return on_renewed(*renewed, now), true;
  return false;
}

void Link::on_challenge(const Challenge& challenge, LeaseTime now) {
  if (state_ != State::Challenged) return;
  if (challenge.version_min > kProtocolVersion || challenge.version_max < kProtocolVersionMin) {
    refusal_ = "server speaks protocol " + std::to_string(challenge.version_min) + ".." +
               std::to_string(challenge.version_max) + ", this agent " + std::to_string(kProtocolVersionMin) + ".." +
               std::to_string(kProtocolVersion) + ": update the agent";
    out_.drop = "protocol version";
    return wait(now, Millis(300'000));
  }
  if (challenge.nonce.size() != 32) return close("challenge without a nonce of 32 bytes", now);
  Hello hello;
  hello.version = std::min(kProtocolVersion, challenge.version_max);
  hello.certificate_pem = options_.certificate_pem;
  hello.signature = options_.sign ? options_.sign(hello_message(challenge)) : Bytes{};
  if (options_.sign_tpm) {
    std::tie(hello.tpm_key, hello.tpm_signature) = options_.sign_tpm(hello_message(challenge));
    // Without it the server would refuse the machine for good; what has the TPM may only have begun to run.
    if (hello.tpm_signature.empty()) {
      refusal_ = "this machine's TPM did not sign; `muster-agent doctor` says why";
      return close("the TPM did not sign", now);
    }
  }
  hello.agent_version = options_.agent_version;
  hello.boot_id = options_.boot_id;
  hello.inventory_digest = inventory_digest_;
  hello.revision_seen = revision_;
  hello.incarnation_seen = incarnation_;
  hello.features = options_.features;
  hello.uptime = Millis(now.ms);  // the boot clock
  out_.send.emplace_back(std::move(hello));
  granted_from_ = now;
  state_ = State::Greeting;
  deadline_ = now + options_.handshake_timeout;
}

void Link::on_welcome(const Welcome& welcome, LeaseTime now) {
  if (state_ != State::Greeting) return;
  if (welcome.incarnation < incarnation_) {
    refusal_ =
        "server is older than what this machine has already seen (a restored backup?): run `musterd restore` with a "
        "raised incarnation";
    out_.drop = "older incarnation";
    return wait(now, Millis(60'000));
  }
  welcome_ = welcome;
  welcome_.heartbeat = std::clamp(welcome.heartbeat, kHeartbeatMin, kHeartbeatMax);
  refusal_.clear();
  state_ = State::Online;
  online_since_ = last_heard_ = now;
  // The phase is random so that agents that came back together do not beat together for ever.
  next_beat_ = now + Millis(rng_.between(0, welcome_.heartbeat.count()));
  out_.welcomed = true;
}

void Link::on_refused(const Refused& refused, LeaseTime now) {
  if (state_ == State::Waiting || state_ == State::Final) return;
  refusal_ = refused.code + ": " + refused.message;
  out_.revoked = refused.code == "revoked";
  out_.drop = "refused: " + refused.code;
  wait(now, refused.retry_after);
  if (refused.retry_after <= Millis(0)) state_ = State::Final;
}

void Link::on_renewed(const Renewed& renewed, LeaseTime now) {
  if (state_ != State::Online) return;
  const auto sent =
      std::find_if(sent_.begin(), sent_.end(), [&](const auto& beat) { return beat.first == renewed.echo; });
  if (sent == sent_.end()) return;  // of another session, or a repeat
  last_heard_ = now;
  held_ = renewed.held;
  LeaseTime from = sent->second;
  if (MUSTER_MUTANT("session.renew_from_receive")) from = now;
  granted_from_ = std::max(granted_from_, from);
  const Millis lease = std::min(renewed.lease, Millis(24 * 3'600'000));
  if (lease > Millis(0)) out_.renewal = Renewal{renewed.leases, from, lease};
  sent_.erase(sent_.begin(), sent + 1);
}

void Link::beat(LeaseTime now) {
  if (sent_.size() >= kUnansweredMax) sent_.pop_front();
  sent_.emplace_back(next_echo_, now);
  out_.send.emplace_back(Heartbeat{next_echo_, leases_, incarnation_, revision_});
  ++next_echo_;
  next_beat_ = now + welcome_.heartbeat;
}

void Link::tick(LeaseTime now) {
  switch (state_) {
    case State::Waiting:
      if (now >= deadline_) dial(now);
      break;
    case State::Dialing:
    case State::Challenged:
    case State::Greeting:
      if (now >= deadline_) close("no answer from the server in time", now);
      break;
    case State::Online:
      if (now - last_heard_ >= welcome_.heartbeat * kSilentIntervals) return close("server is silent", now);
      if (now >= next_beat_) beat(now);
      break;
    case State::Final:
      break;
  }
}

LinkOut Link::take() {
  return std::exchange(out_, LinkOut{});
}

LeaseTime Link::next_deadline() const {
  if (state_ == State::Final) return LeaseTime{std::numeric_limits<std::int64_t>::max()};
  if (state_ == State::Online) return std::min(next_beat_, last_heard_ + welcome_.heartbeat * kSilentIntervals);
  return deadline_;
}

}  // namespace muster::session
