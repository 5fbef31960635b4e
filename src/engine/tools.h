#pragma once
// What operators do with a journal: check it, read it, export it, give a restored one a new incarnation. Reading tools
// work on a journal in use; raise_incarnation takes the lead and is for a stopped one. One thread, blocking.
#include <cstdint>
#include <functional>
#include <string>

#include "journal/store.h"

namespace muster::engine {

struct VerifyReport {
  std::uint64_t entries = 0, leader_epoch = 0, incarnation = 0;
  std::uint64_t snapshot_seq = 0;  // newest snapshot, compared with the fold; 0 = none
  std::string head;                // hash of the last entry, hex: keep it elsewhere to prove the past later
  std::string state_digest;        // of the fold over all entries, hex
};
// The whole chain from the first entry, archived ones included, every event decoded and folded, the snapshot compared.
// DataLoss names the first entry that is wrong.
Result<VerifyReport> verify(const journal::Store& store);

using Line = std::function<void(const std::string&)>;
// Entries [from, to], one line each: for people; as JSON objects for programs.
Status show(const journal::Store& store, std::uint64_t from, std::uint64_t to, const Line& line);
Status export_json(const journal::Store& store, std::uint64_t from, std::uint64_t to, const Line& line);

// After a restore: everything that was granted before loses against what is granted from now on. Returns the new
// incarnation.
Result<std::uint64_t> raise_incarnation(journal::Store& store, Now now, const std::string& why);

}  // namespace muster::engine
