#include <fmt/format.h>

#include "engine/core.h"

namespace muster::engine {
namespace {
constexpr std::size_t kReadEntries = 4'096;
}

control::Actor actor_of(const journal::EntryActor& actor) {
  control::Actor out;
  out.subject.principal = actor.principal;
  out.subject.org = actor.org;
  out.subject.node = actor.node;
  out.subject.role = actor.role;
  out.system = actor.system;
  out.request_id = actor.request_id;
  out.request_hash = actor.request_hash;
  return out;
}

journal::EntryActor actor_of(const control::Actor& actor) {
  journal::EntryActor out;
  out.principal = actor.subject.principal;
  out.org = actor.subject.org;
  out.node = actor.subject.node;
  out.role = actor.subject.role;
  out.system = actor.system;
  out.request_id = actor.request_id;
  if (!actor.request_id.empty()) out.request_hash = actor.request_hash;
  return out;
}

control::EntryContext context_of(const journal::Entry& entry) {
  control::EntryContext context;
  context.seq = entry.seq;
  context.wall = entry.wall;
  context.leader_epoch = entry.leader_epoch;
  context.actor = actor_of(entry.actor);
  return context;
}

Status catch_up(const journal::Store& store, Base& base, const std::function<void(std::uint64_t, const Bytes&)>& each) {
  journal::ChainVerifier chain(base.seq, base.hash);
  while (true) {
    const std::vector<Bytes> page = TRY(store.read_all(base.seq + 1, kReadEntries));
    for (const Bytes& stored : page) {
      const journal::Entry entry = TRY(chain.next(stored));
      auto event = control::decode_event(entry.event);
      if (!event) return error(event.error().code, fmt::format("entry {}: {}", entry.seq, event.error().message));
      control::apply(base.state, *event, context_of(entry));
      base.seq = entry.seq;
      base.hash = chain.hash();
      base.wall = entry.wall;
      if (each) each(entry.seq, stored);
    }
    if (page.size() < kReadEntries) return {};
  }
}

Result<Base> load_base(const journal::Store& store) {
  const journal::Tail tail = TRY(store.tail());
  std::uint64_t up_to = tail.seq;
  while (true) {
    const std::optional<journal::Snapshot> snapshot = TRY(store.load_snapshot(up_to));
    Base base;
    if (snapshot && snapshot->seq > 0) {
      // A snapshot counts only if it continues into the journal that is there and its state decodes.
      const std::vector<Bytes> at = TRY(store.read_all(snapshot->seq, 1));
      const bool ours = !at.empty() && journal::hash_of(at.front()) == snapshot->entry_hash;
      auto state = control::decode_state(snapshot->state);
      if (!ours || !state || state->seq != snapshot->seq) {
        up_to = snapshot->seq - 1;
        continue;
      }
      base = {std::move(*state), snapshot->seq, snapshot->entry_hash, snapshot->wall};
    }
    TRY_VOID(catch_up(store, base));
    return base;
  }
}

}  // namespace muster::engine
