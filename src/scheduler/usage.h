#pragma once
// What tenants and projects hold and lately held of the pool, and by how much that puts them back: fair share. A use is
// the dominant share (Ghodsi et al., "Dominant Resource Fairness", NSDI'11) of half of what is held now, proposals
// included, and half of the average that was held, in which the past fades with a half-life of a day. The pool is all
// that machines have which may be hired or are in use. The handicap is concave and bounded: 10 % of the pool counts as
// 4 points of priority, a quarter as 8, half as 12, all of it as 16. So it always rises with the use, and is less than
// what waiting brings in. Three parts of it are the tenant's and one is the project's: between tenants their own use
// decides, and cutting work into projects gains a quarter at most; between projects of one tenant only theirs differs.
// A weight divides the use that counts. A guarantee is an amount of GPUs or CPUs: what takes some of it and is within
// it afterwards goes first (rank), and what is held beyond one's own may have to make room for that. Integers only;
// every number and time is clamped. Single-threaded; const members change nothing. Private.
#include <array>
#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "scheduler/types.h"

namespace muster::scheduler {

inline constexpr std::int64_t kHalfLifeMs = 24 * 3'600'000;
inline constexpr std::int64_t kHandicapStepMs = 60'000;  // the past fades by the minute

// 2^-(ms / half-life) in units of 2^-64; nothing passed: the largest number.
std::uint64_t kept_after(std::int64_t ms);

using Held = std::array<std::int64_t, 3>;  // milli-CPU, MiB, milli-GPU
Held held_by(const LeaseView& lease);

// Of a request in its tier: within the guarantee of its project, of its tenant, or of neither. What a project is
// guaranteed is a part of what its tenant is, so it comes first: what others of the tenant borrowed of it does not
// count.
enum class Rank : std::uint8_t { OfProject = 0, OfTenant = 1, None = 2 };

class Usage {
 public:
  using Account = std::uint32_t;  // the number of a tenant's or a project's
  struct Share {
    std::int64_t permille = 0, handicap_ms = 0;
  };
  struct Owner {
    Account tenant = 0, project = 0;
  };

  Owner owner(OrgId tenant, ProjectId project);         // made where it is missing, and kept
  Owner known(OrgId tenant, ProjectId project) const {  // of something that is held, or asked for
    return {tenants_.at(tenant), projects_.at({tenant, project})};
  }
  std::size_t accounts() const { return accounts_.size(); }

  // ---- what changes
  void begin(const LeaseView& lease);
  void end(const LeaseView& lease, WallTime at);  // at 0: not known, that is, when something of its owner last changed
  void undo(const LeaseView& lease);              // as if it had never been
  void propose(Owner owner, std::uint8_t tier, const Held& held);
  void withdraw(Owner owner, std::uint8_t tier, const Held& held);
  void machine(std::uint32_t node, const NodeView* view);  // nullptr: it is gone
  void restore(const UsageChanged& usage);
  void set(const ShareChanged& share);
  void set(const TierSharesChanged& shares);
  void snapshot(std::vector<Change>& out) const;

  // ---- what it means
  void turn(WallTime now);  // the time of what follows
  bool take_fallen();       // since the last call some handicap may have fallen; those that rise are not told
  std::int64_t handicap_ms(Owner owner) {
    return together(fresh(owner.tenant).handicap_ms, fresh(owner.project).handicap_ms);
  }
  // What takes `more` stands so; proposals that are out count.
  Rank rank(Owner owner, const Held& more, const Held& tenant_too = {}, const Held& project_too = {}) const;
  bool within(Account account, const Held& more) const;
  bool guaranteed(Owner owner) const {
    return accounts_[owner.tenant].guaranteed != Held{} || accounts_[owner.project].guaranteed != Held{};
  }
  // May `less` be taken from what it holds? Not where that is guaranteed to it.
  bool spares(Account account, const Held& less) const;
  std::uint32_t tier_permille(std::uint8_t tier) const;  // of the pool that it holds
  bool tiers_guaranteed() const { return tiers_ != TierSharesChanged{}; }
  // Its work holds less of the pool than the tier is guaranteed: the largest of its parts counts; proposals do too.
  bool tier_lacks(std::uint8_t tier) const { return tier_lacks(tier, {}); }
  bool tier_spares(std::uint8_t tier, const Held& less) const { return !tier_lacks(tier, less); }  // may they leave it?
  static std::int64_t together(std::int64_t tenant_ms, std::int64_t project_ms) {                  // to the second
    return (3 * tenant_ms + project_ms + 2'000) / 4'000 * 1'000;
  }
  // The same at any time, for readers; `more` is counted as if it were held too.
  Share share(Account account, WallTime now) const;
  Share share(Account account, WallTime now, const Held& more) const;

 private:
  struct Book {
    bool is_tenant = false;
    OrgId tenant;
    ProjectId project;
    Held held{}, proposed{}, guaranteed{};
    std::int64_t weight = 100;
    Held average{};            // as of then, in units of 2^-20
    std::int64_t as_of_ms = 0; /* what is told of earlier times is added with what is left of it by then */
    std::uint64_t stamp = 0;   /* of `share` */
    Share share;
  };
  const Share& fresh(Account account) {
    Book& book = accounts_[account];
    if (book.stamp != stamp_) book.share = made(book, minute_ms_, {}), book.stamp = stamp_;
    return book.share;
  }
  static bool covers(const Book& book, const Held& taken, const Held& more);
  Share made(const Book& book, std::int64_t at_ms, const Held& more) const;
  void begin(Book& book, const Held& held, std::int64_t since_ms);
  void end(Book& book, const Held& held, std::int64_t since_ms, std::int64_t at_ms);
  static void advance(Book& book, std::int64_t to_ms);
  Account account(bool is_tenant, OrgId tenant, ProjectId project);
  bool tier_lacks(std::uint8_t tier, const Held& less) const;

  std::vector<Book> accounts_;
  std::map<OrgId, Account> tenants_;
  std::map<std::pair<OrgId, ProjectId>, Account> projects_;
  std::array<Held, kTiers> of_tier_{}; /* held, and proposed */
  TierSharesChanged tiers_;
  std::vector<Held> machines_;
  Held total_{};
  std::int64_t minute_ms_ = 0;
  std::uint64_t stamp_ = 1; /* rises when no share that was worked out holds any more */
  bool fallen_ = false;
};

}  // namespace muster::scheduler
