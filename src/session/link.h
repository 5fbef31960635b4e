#pragma once
// The agent's end of a session, sans-I/O: dial, answer the challenge, heartbeats, dead-peer detection, back-off. It
// sees the frames Challenge, Welcome, Refused and Renewed; the rest passes by it. A lease counts from the *send* of the
// heartbeat whose echo came back, so a reply that sat in a queue renews nothing. Back-off has full jitter from the
// first retry on and starts anew only after a session that lasted. Single-threaded.
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/rng.h"
#include "base/time.h"
#include "session/frames.h"

namespace muster::session {

// What the device signs to prove itself: both ends build it from the challenge.
Bytes hello_message(const Challenge& challenge);

struct Renewal {
  std::vector<LeaseId> leases;
  LeaseTime from;
  Millis lease{0};
};

struct LinkOut {
  bool dial = false;
  std::string drop;     /* not empty: close the link, for this reason */
  bool revoked = false; /* the control plane gave this machine's identity up for good */
  std::vector<AgentFrame> send;
  bool welcomed = false;
  std::optional<Renewal> renewal;
};

class Link {
 public:
  struct Options {
    std::string agent_version, boot_id, certificate_pem;
    std::vector<std::string> features;
    std::uint64_t seed = 0;
    std::function<Bytes(ByteView)> sign;
    // By a key in the TPM: public half and signature; null: there is none. Empty ones: it did not sign.
    std::function<std::pair<Bytes, Bytes>(ByteView)> sign_tpm;
    Millis backoff_base{1000}, backoff_max{60'000}, handshake_timeout{20'000}, lasted{60'000};
  };
  explicit Link(Options options);

  void start(LeaseTime now);  // dials at once
  void on_up(LeaseTime now);
  void on_down(LeaseTime now);
  // True when the frame was of the session itself and is done with.
  bool on_frame(const ServerFrame& frame, LeaseTime now);
  void tick(LeaseTime now);
  void close(const std::string& reason, LeaseTime now);  // our own decision: drop, dial again after a back-off

  // What the next Hello and heartbeat say.
  void set_seen(std::uint64_t incarnation, std::uint64_t revision) {
    incarnation_ = incarnation;
    revision_ = revision;
  }
  void set_inventory_digest(Bytes digest) { inventory_digest_ = std::move(digest); }
  void set_leases(std::vector<LeaseId> leases) { leases_ = std::move(leases); }
  void set_certificate(std::string pem) { options_.certificate_pem = std::move(pem); }

  LinkOut take();
  LeaseTime next_deadline() const;
  bool online() const { return state_ == State::Online; }
  const Welcome& welcome() const { return welcome_; }
  // A lease that the server grants on this session counts from here: the send of the newest answered heartbeat, or of
  // the Hello.
  LeaseTime granted_from() const { return granted_from_; }
  const std::string& refusal() const { return refusal_; }
  const std::string& held() const { return held_; }  // as the newest Renewed said

 private:
  enum class State : std::uint8_t { Waiting, Dialing, Challenged, Greeting, Online, Final };
  void dial(LeaseTime now);
  void wait(LeaseTime now, Millis at_least);
  void beat(LeaseTime now);
  void on_challenge(const Challenge& challenge, LeaseTime now);
  void on_welcome(const Welcome& welcome, LeaseTime now);
  void on_refused(const Refused& refused, LeaseTime now);
  void on_renewed(const Renewed& renewed, LeaseTime now);

  Options options_;
  Rng rng_;
  State state_ = State::Waiting;
  LinkOut out_;
  Welcome welcome_;
  std::string refusal_, held_;
  LeaseTime deadline_{0}, online_since_{0}, last_heard_{0}, next_beat_{0}, granted_from_{0};
  std::uint32_t tries_ = 0;
  std::uint64_t next_echo_ = 1, incarnation_ = 0, revision_ = 0;
  std::deque<std::pair<std::uint64_t, LeaseTime>> sent_;  // heartbeats without an answer, oldest first
  Bytes inventory_digest_;
  std::vector<LeaseId> leases_;
};

}  // namespace muster::session
