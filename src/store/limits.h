#pragma once
// What every store refuses in the same words: the compare-and-swap of an append, archiving, side-table bounds. Pure.
#include <fmt/format.h>

#include <optional>
#include <string>

#include "base/mutant.h"
#include "journal/store.h"

namespace muster::store {

inline constexpr std::size_t kSnapshotsKept = 2;
inline constexpr const char* kDiskFullText =
    "the disk that holds the journal is full; free space on it, writing resumes by itself";

// nullopt = may be written.
inline std::optional<journal::AppendResult> refuse(const journal::AppendRequest& request, const journal::Tail& tail) {
  using journal::AppendOutcome;
  if (!request.entries || request.entries->empty() || request.entries->size() > journal::kAppendEntriesMax) {
    return journal::AppendResult{AppendOutcome::Error,
                                 fmt::format("an append takes 1 to {} entries", journal::kAppendEntriesMax)};
  }
  if (request.leader_epoch != tail.leader_epoch && !MUSTER_MUTANT("store.skip_epoch_check")) {
    return journal::AppendResult{AppendOutcome::Conflict, fmt::format("fenced: leader epoch {} was replaced by {}",
                                                                      request.leader_epoch, tail.leader_epoch)};
  }
  if (request.prev_seq != tail.seq || (request.prev_hash != tail.hash && !MUSTER_MUTANT("store.skip_prev_hash"))) {
    return journal::AppendResult{AppendOutcome::Conflict,
                                 fmt::format("the journal stands at seq {}, not at {}", tail.seq, request.prev_seq)};
  }
  return std::nullopt;
}
inline Error archived_away(std::uint64_t from, std::uint64_t first) {
  return error(
      Code::NotFound,
      fmt::format("entry {} is archived, the live journal begins at {}; start again from a list", from, first));
}
inline Error deposed(std::uint64_t expected, std::uint64_t now) {
  return error(Code::Aborted, fmt::format("another leader took over: its epoch is {}, ours was {}", now, expected));
}
inline Status may_archive(std::uint64_t seq, std::uint64_t newest_snapshot, std::uint64_t tail) {
  if (seq > tail || newest_snapshot == 0 || newest_snapshot + 1 < seq) {
    return error(Code::FailedPrecondition,
                 fmt::format("entries below {} cannot be archived: the newest snapshot stands at {}, the journal at {}",
                             seq, newest_snapshot, tail));
  }
  return {};
}
inline Status check_side(const std::string& table, const std::string& key, std::size_t value) {
  if (table.empty() || key.empty() || table.size() + key.size() > journal::kSideKeyBytesMax) {
    return error(Code::InvalidArgument,
                 fmt::format("a side table and key are needed, together at most {} bytes", journal::kSideKeyBytesMax));
  }
  if (value > journal::kSideValueBytesMax) {
    return error(Code::TooLarge,
                 fmt::format("a side value has at most {} bytes, this one {}", journal::kSideValueBytesMax, value));
  }
  return {};
}

}  // namespace muster::store
