// Which machines believe which roots. A machine says it after each Welcome; it is told what is newer, in the order in
// which it came to be, before orders whose proofs need it.
#include <algorithm>

#include "base/log.h"
#include "crypto/hash.h"
#include "server/agents.h"
#include "server/signer.h"

namespace muster::server {
namespace {

constexpr Millis kBehindEvery{2'000};

Bytes text_digest(const std::string& text) {
  const crypto::Digest digest = crypto::sha256(as_bytes(text));
  return {digest.begin(), digest.end()};
}

}  // namespace

// With the mutex held. Each text once on a connection: who refused it refuses it again.
void AgentHub::tell_trust(const LinkPtr& link, const CaSet& cas) {
  const Bytes digest = text_digest(cas.text);
  if (!link->believes || cas.trust.revision == 0 || link->believes->sha256 == digest || link->trust_told == digest)
    return;
  link->trust_told = digest;
  for (const Revision& earlier : cas.history) {
    if (earlier.number > link->believes->revision) send(link, session::TrustTold{to_bytes(earlier.text)});
  }
  send(link, session::TrustTold{to_bytes(cas.text)});
}

void AgentHub::on_trust(const LinkPtr& link, const session::TrustTaken& taken) {
  const auto cas = context_.cas.get();
  const std::lock_guard lock(mutex_);
  link->believes = taken;
  believes_[link->node] = taken.revision;
  tell_trust(link, *cas);
}

void AgentHub::trust_changed() {
  const auto cas = context_.cas.get();
  const std::lock_guard lock(mutex_);
  for (const auto& [number, link] : links_) {
    tell_trust(link, *cas);
    link->stale = true;  // the sweep brings proofs of the CA in use
  }
  behind_at_ = LeaseTime{0};
}

// With the mutex held. What `musterd ca` asks before it takes anything away.
void AgentHub::note_behind(LeaseTime now, Todo& todo) {
  if (behind_at_ != LeaseTime{0} && now - behind_at_ < kBehindEvery) return;
  behind_at_ = now;
  Behind behind{context_.cas.get()->trust.revision, {}};
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const auto& [id, node] : state.nodes) {
      const auto said = believes_.find(id);
      if (node.state != NodeState::Revoked && (said == believes_.end() || said->second < behind.revision))
        behind.machines.push_back(id.str() + " " + node.name);
    }
  });
  if (behind.revision == 0) behind.machines.clear();
  behind_ = behind.machines.size();
  std::string said = std::to_string(behind.revision);
  for (const std::string& machine : behind.machines) said += "\n" + machine;
  if (said == behind_said_) return;
  behind_said_ = std::move(said);
  todo.push_back([this, behind = std::move(behind)] {
    if (const Status written = context_.identity.signer->behind(behind); !written.ok())
      log_warn("agents", "which machines know the newest roots cannot be noted: {}", written.error().message);
  });
}

}  // namespace muster::server
