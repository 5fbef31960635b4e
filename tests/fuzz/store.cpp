// Bytes that are read back from disks: the journal's entries and events, snapshots, what an agent remembers.
#include <fstream>

#include "agent/memory.h"
#include "control/core.h"
#include "crypto/hash.h"
#include "fuzz/fuzz.h"
#include "journal/entry.h"
#include "journal/snapshot.h"

namespace muster::fuzz {
namespace {

Seeds seeds_entry() {
  journal::Entry entry;
  entry.seq = 1;
  entry.leader_epoch = 1;
  entry.wall = WallTime{1'795'000'000'000};
  entry.prev_hash = journal::genesis_hash();
  entry.event = Bytes{1, 1, 2, 3};
  const Bytes first = *journal::encode(entry);
  entry.seq = 2;
  entry.prev_hash = journal::hash_of(first);
  entry.actor = {PrincipalId{3}, OrgId{2}, NodeId{}, Role::Tenant, false, "key-1", Bytes(32, 9)};
  const Bytes second = *journal::encode(entry);
  const Bytes snapshot = journal::encode(journal::Snapshot{7, Bytes(32, 1), WallTime{5}, Bytes{1, 2}});
  Seeds out{Bytes{0} + sized(first) + sized(second), Bytes{0} + sized(second),
            Bytes{1} + ByteView(snapshot).first(snapshot.size() - journal::kHashBytes)};
  // The beginning of a real journal.
  Bytes chain{0};
  std::ifstream in(in_tree("tests/data/journal/format-3.hex"));
  for (std::string line; out.size() < 12 && std::getline(in, line);)
    if (const auto bytes = unhex(line)) out.push_back(chain = std::move(chain) + sized(*bytes));
  return out;
}
FUZZ_TARGET(entry, 4 << 10) {
  Input in(input);
  if (in.byte() % 2 == 1) {
    const ByteView said = in.rest();
    const crypto::Digest sum = crypto::sha256(said);
    const Bytes stored = Bytes(said.begin(), said.end()) + ByteView(sum);
    const auto snapshot = journal::decode_snapshot(stored);
    if (snapshot.ok()) MUSTER_CHECK(journal::encode(*snapshot) == stored);
    return;
  }
  journal::ChainVerifier chain;
  while (!in.empty()) {
    const ByteView stored = in.sized();
    const auto entry = journal::decode(stored);
    if (entry.ok()) {
      MUSTER_CHECK(*journal::encode(*entry) == Bytes(stored.begin(), stored.end()));
      plant(entry->actor.node.value != 0 && entry->leader_epoch > 1);
    }
    (void)chain.next(stored).ok();
  }
}

Seeds seeds_event() {
  Seeds out;
  for (const char* file : {"events-1.txt", "events-2.txt", "events-3.txt"}) {
    std::ifstream in(in_tree("tests/data/journal/" + std::string(file)));
    for (std::string line; std::getline(in, line);)
      if (const auto bytes = unhex(line.substr(line.find(' ') + 1))) out.push_back(Bytes{0} + *bytes);
  }
  out.push_back(Bytes{1} + control::encode_state(control::State{}));
  return out;
}
FUZZ_TARGET(event, 4 << 10) {
  Input in(input);
  if (in.byte() % 2 == 1) {
    const auto state = control::decode_state(in.rest());
    if (!state.ok()) return;
    const auto again = control::decode_state(control::encode_state(*state));
    MUSTER_CHECK(again.ok() && control::state_digest(*again) == control::state_digest(*state));
    return;
  }
  const auto event = control::decode_event(in.rest());
  if (!event.ok()) return;
  const auto again = control::decode_event(control::encode(*event));
  MUSTER_CHECK(again.ok() && again->index() == event->index());
  MUSTER_CHECK(control::encode(*again) == control::encode(*event));
  (void)control::event_name(*event);
  (void)control::event_subject(*event);
  if (const auto* created = std::get_if<control::ClusterCreated>(&*event)) plant(created->cluster.id.value > 5000);
}

constexpr std::ptrdiff_t kSumBytes = 8;
Seeds seeds_memory() {
  agent::Memory memory;
  const Bytes empty = agent::encode(memory);
  memory.boot_id = "boot";
  memory.leases[LeaseId{1}] = {{1, 2, 3}, LeaseTime{5}, true, false, "why"};
  memory.roster_epochs[ClusterId{4}] = 6;
  memory.jobs[{JobId{1}, 2}] = {LeaseId{1}, JobState::Running, 0, "r", 7, 8};
  Seeds out;
  for (const Bytes& whole : {empty, agent::encode(memory)}) out.emplace_back(whole.begin(), whole.end() - kSumBytes);
  return out;
}
FUZZ_TARGET(memory, 2 << 10) {
  (void)agent::decode_memory(input);
  // Under the right checksum, so that what is behind it is reached.
  const crypto::Digest sum = crypto::sha256(input);
  const auto memory = agent::decode_memory(Bytes(input.begin(), input.end()) + ByteView(sum).first(kSumBytes));
  if (!memory) return;
  const auto again = agent::decode_memory(agent::encode(*memory));
  MUSTER_CHECK(again && *again == *memory);
  plant(memory->leases.size() == 1 && memory->boot_id.size() == 4 && memory->boot_id != "boot");
}

}  // namespace
}  // namespace muster::fuzz
