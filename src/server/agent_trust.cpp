// Which machines believe which roots, and which keys that sign for them. A machine says it after each Welcome; it is
// told what is newer, in the order in which it came to be, before orders that need it.
#include <algorithm>

#include "base/log.h"
#include "crypto/hash.h"
#include "server/agents.h"
#include "server/signed_book.h"
#include "server/signer.h"
#include "server/signing_keys.h"

namespace muster::server {
namespace {

constexpr Millis kBehindEvery{2'000}, kSaysKeys{10'000};

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
  tell_keys(link, *cas);  // again, where it refused them because it did not know the roots
}

void AgentHub::trust_changed() {
  const auto cas = context_.cas.get();
  const std::lock_guard lock(mutex_);
  for (const auto& [number, link] : links_) {
    tell_trust(link, *cas);
    tell_keys(link, *cas);
    link->stale = true;  // the sweep brings proofs of the CA in use
  }
  behind_at_ = LeaseTime{0};
}

// With the mutex held. Each statement once on a connection, and again when it knows other roots.
void AgentHub::tell_keys(const LinkPtr& link, const CaSet& cas) {
  const auto keys = context_.keys.get();
  if (!link->keys_believed || keys->statement.revision == 0 || link->keys_believed->sha256 == keys->sha256) return;
  Bytes told = keys->sha256;
  const Bytes roots = link->believes ? link->believes->sha256 : text_digest(cas.text);
  told.insert(told.end(), roots.begin(), roots.end());
  if (link->keys_told == told) return;
  link->keys_told = std::move(told);
  send(link, session::KeysTold{to_bytes(keys->text)});
  link->stale = true;  // what it refused meanwhile is told again
  dirty_.insert(link->node);
}

void AgentHub::on_keys(const LinkPtr& link, const session::KeysTaken& taken) {
  const auto cas = context_.cas.get();
  const std::lock_guard lock(mutex_);
  link->keys_believed = taken;
  keys_believed_[link->node] = taken.revision;
  tell_keys(link, *cas);
}

void AgentHub::keys_changed() {
  const auto cas = context_.cas.get();
  const std::lock_guard lock(mutex_);
  for (const auto& [number, link] : links_) {
    tell_keys(link, *cas);
    link->stale = true;  // the sweep brings what the keys in use sign
  }
  behind_at_ = LeaseTime{0};
}

bool AgentHub::keys_named(const session::Desired& desired) const {
  bool named = context_.keys.names(crypto::KeyKind::Order, desired.signature_key);
  for (const auto& roster : desired.rosters)
    for (const Bytes& key : roster.keys) named = named && context_.keys.names(crypto::KeyKind::Roster, key);
  return named;
}

// With the mutex held. What was signed before is signed anew when a key begins to sign and when one ends.
void AgentHub::follow_keys(WallTime now) {
  if (keys_change_at_.ms != 0 && now >= keys_change_at_) {
    context_.signatures->forget();
    for (const auto& [number, link] : links_) link->stale = true;
    keys_unknown_ = true;  // the signer takes out what has ended
  }
  keys_change_at_ = context_.keys.next_change(now);
}

// With the mutex held. What `musterd keys` asks and shows.
void AgentHub::note_keys_behind(LeaseTime now, Todo& todo) {
  Behind behind{context_.keys.get()->statement.revision, {}};
  if (behind.revision != 0) {
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      for (const auto& [id, node] : state.nodes) {
        const auto said = keys_believed_.find(id);
        if (node.state == NodeState::Revoked || (said != keys_believed_.end() && said->second >= behind.revision))
          continue;
        const auto link = by_node_.find(id);
        const bool old =
            link != by_node_.end() && !link->second->keys_believed && now - link->second->since > kSaysKeys;
        behind.machines.push_back(id.str() + " " + node.name + (old ? std::string(kCannotLearn) : std::string()));
      }
    });
  }
  keys_behind_ = behind.machines.size();
  std::string said = std::to_string(behind.revision);
  for (const std::string& machine : behind.machines) said += "\n" + machine;
  if (said == keys_behind_said_) return;
  keys_behind_said_ = std::move(said);
  todo.push_back([this, behind = std::move(behind)] {
    const Status written = context_.identity.signer->behind(behind, SignOp::KeysBehind);
    if (written.ok()) return;
    log_warn("agents", "which machines know the newest signing keys cannot be noted: {}", written.error().message);
    const std::lock_guard lock(mutex_);
    keys_behind_said_.clear();  // so that it is tried again
  });
}

// With the mutex held. What `musterd ca` asks before it takes anything away.
void AgentHub::note_behind(LeaseTime now, Todo& todo) {
  if (behind_at_ != LeaseTime{0} && now - behind_at_ < kBehindEvery) return;
  behind_at_ = now;
  note_keys_behind(now, todo);
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
    const Status written = context_.identity.signer->behind(behind);
    if (written.ok()) return;
    log_warn("agents", "which machines know the newest roots cannot be noted: {}", written.error().message);
    const std::lock_guard lock(mutex_);
    behind_said_.clear();
  });
}

}  // namespace muster::server
