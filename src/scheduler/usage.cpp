#include "scheduler/usage.h"

#include <algorithm>

#include "scheduler/pool.h"
#include "scheduler/queue.h"

namespace muster::scheduler {
namespace {

constexpr std::int64_t kDateMax = std::int64_t{1} << 46;    // ms; far beyond any date
constexpr unsigned kPart = 20;                              // bits of an average behind the point
constexpr std::int64_t kHeldMax = std::int64_t{1} << 40;    // of one account: a milliard CPUs, an exbibyte
constexpr std::int64_t kWeight = 100, kWeightMax = 10'000;  // of who has none of his own
constexpr std::int64_t kAll = std::int64_t{1} << kPart;     // the whole pool, as a share

// The upper half of a product, rounded to the nearest.
constexpr std::uint64_t times(std::uint64_t a, std::uint64_t b) {
  const std::uint64_t low = 0xffffffffU;
  const std::uint64_t ll = (a & low) * (b & low), lh = (a & low) * (b >> 32), hl = (a >> 32) * (b & low);
  const std::uint64_t middle = (ll >> 32) + (lh & low) + (hl & low);
  return (a >> 32) * (b >> 32) + (lh >> 32) + (hl >> 32) + (middle >> 32) + (middle >> 31 & 1);
}

// x and the result in units of 2^-64.
constexpr std::uint64_t root_of(std::uint64_t x) {
  std::uint64_t root = 0;
  for (int bit = 63; bit >= 0; --bit)
    if (const std::uint64_t more = root | std::uint64_t{1} << bit; times(more, more) <= x) root = more;
  return root;
}

constexpr unsigned kRoots = 36;
constexpr auto kHalvings = [] {  // 2^-1/2, 2^-1/4, 2^-1/8, ...
  std::array<std::uint64_t, kRoots> out{};
  std::uint64_t x = std::uint64_t{1} << 63;
  for (std::uint64_t& each : out) each = x = root_of(x);
  return out;
}();

std::int64_t clamped(WallTime t) {
  return std::clamp(t.ms, -kDateMax, kDateMax);
}
std::int64_t minute_of(WallTime t) {
  const std::int64_t ms = clamped(t);
  const std::int64_t into = ms % kHandicapStepMs;
  return ms - (into < 0 ? into + kHandicapStepMs : into);
}
std::int64_t part_of(std::int64_t value, std::uint64_t kept) {
  return static_cast<std::int64_t>(times(static_cast<std::uint64_t>(value), kept));
}
std::int64_t in_average(std::int64_t held) {
  return std::clamp<std::int64_t>(held, 0, kHeldMax) << kPart;
}
void add(Held& to, const Held& held, std::int64_t sign) {
  for (std::size_t i = 0; i < to.size(); ++i) to[i] += sign * held[i];
}

std::size_t slot_of(std::uint8_t tier) {
  return std::min<std::size_t>(tier, kTiers - 1);
}

}  // namespace

std::uint64_t kept_after(std::int64_t ms) {
  if (ms <= 0) return ~std::uint64_t{0};
  const std::uint64_t passed = static_cast<std::uint64_t>(ms);
  const std::uint64_t whole = passed / kHalfLifeMs;
  if (whole >= 64) return 0;
  const std::uint64_t rest = (passed % kHalfLifeMs << kRoots) / kHalfLifeMs;
  std::uint64_t kept = ~std::uint64_t{0};
  for (unsigned i = 0; i < kRoots; ++i)
    if ((rest >> (kRoots - 1 - i) & 1) != 0) kept = times(kept, kHalvings[i]);
  return kept >> whole;
}

Held held_by(const LeaseView& lease) {
  const Amounts amounts = needed_amounts(lease.resources);
  const std::int64_t gpus = lease.devices.empty() ? std::clamp<std::int64_t>(lease.resources.gpus, 0, 64)
                                                  : static_cast<std::int64_t>(lease.devices.size());
  if (lease.share_milli > 0) return {amounts.cpu, amounts.memory, std::min(lease.share_milli, kWholeGpu)};
  return {amounts.cpu, amounts.memory, gpus * kWholeGpu};
}

// ---- accounts
Usage::Account Usage::account(bool is_tenant, OrgId tenant, ProjectId project) {
  const auto next = static_cast<Account>(accounts_.size());
  const Account id = is_tenant ? tenants_.try_emplace(tenant, next).first->second
                               : projects_.try_emplace({tenant, project}, next).first->second;
  if (id == next) {
    Book& book = accounts_.emplace_back();
    book.is_tenant = is_tenant, book.tenant = tenant, book.project = is_tenant ? ProjectId{} : project;
  }
  return id;
}

Usage::Owner Usage::owner(OrgId tenant, ProjectId project) {
  const Account whole = account(true, tenant, {});
  return {whole, account(false, tenant, project)};
}

void Usage::advance(Book& book, std::int64_t to_ms) {
  if (to_ms <= book.as_of_ms) return;
  const std::uint64_t kept = kept_after(to_ms - book.as_of_ms);
  for (std::size_t i = 0; i < book.held.size(); ++i) {
    const std::int64_t held = in_average(book.held[i]);
    std::int64_t& average = book.average[i];
    average = average >= held ? held + part_of(average - held, kept) : held - part_of(held - average, kept);
  }
  book.as_of_ms = to_ms;
}

void Usage::begin(Book& book, const Held& held, std::int64_t since_ms) {
  advance(book, since_ms);
  const std::uint64_t kept = kept_after(book.as_of_ms - since_ms);
  for (std::size_t i = 0; i < held.size(); ++i) {
    const std::int64_t whole = in_average(held[i]);
    book.average[i] = std::min(book.average[i] + whole - part_of(whole, kept), in_average(kHeldMax));
  }
  add(book.held, held, 1);
  book.stamp = 0;
}

void Usage::end(Book& book, const Held& held, std::int64_t since_ms, std::int64_t at_ms) {
  at_ms = std::max(at_ms, since_ms);
  advance(book, at_ms);
  const std::uint64_t kept = kept_after(book.as_of_ms - at_ms);
  for (std::size_t i = 0; i < held.size(); ++i) {
    const std::int64_t whole = in_average(held[i]);
    book.average[i] = std::max<std::int64_t>(book.average[i] - (whole - part_of(whole, kept)), 0);
  }
  add(book.held, held, -1);
  book.stamp = 0;
}

void Usage::begin(const LeaseView& lease) {
  const Owner by = owner(lease.tenant, lease.project);
  for (const Account id : {by.tenant, by.project}) begin(accounts_[id], held_by(lease), clamped(lease.since));
  add(of_tier_[slot_of(lease.tier)], held_by(lease), 1);
  fallen_ = true;  // a day may have passed since its owner's last change
}
void Usage::end(const LeaseView& lease, WallTime at) {
  const Owner by = owner(lease.tenant, lease.project);
  const std::int64_t at_ms = at.ms == 0 ? accounts_[by.project].as_of_ms : clamped(at);
  for (const Account id : {by.tenant, by.project}) end(accounts_[id], held_by(lease), clamped(lease.since), at_ms);
  add(of_tier_[slot_of(lease.tier)], held_by(lease), -1);
  fallen_ = true;
}
void Usage::undo(const LeaseView& lease) {
  const Owner by = owner(lease.tenant, lease.project);
  for (const Account id : {by.tenant, by.project})
    end(accounts_[id], held_by(lease), clamped(lease.since), clamped(lease.since));
  add(of_tier_[slot_of(lease.tier)], held_by(lease), -1);
  fallen_ = true;
}

void Usage::propose(Owner by, std::uint8_t tier, const Held& held) {
  add(of_tier_[slot_of(tier)], held, 1);
  for (const Account id : {by.tenant, by.project}) add(accounts_[id].proposed, held, 1), accounts_[id].stamp = 0;
}
void Usage::withdraw(Owner by, std::uint8_t tier, const Held& held) {
  add(of_tier_[slot_of(tier)], held, -1);
  for (const Account id : {by.tenant, by.project}) add(accounts_[id].proposed, held, -1), accounts_[id].stamp = 0;
  fallen_ = true;
}

// A machine counts while it may be planned on or something runs there.
void Usage::machine(std::uint32_t node, const NodeView* view) {
  if (node >= machines_.size()) machines_.resize(node + 1);
  Held has{};
  if (view != nullptr && (view->schedulable || !view->whole)) {
    const Resources& most = view->capacity;
    const Amounts amounts = free_amounts(most.cpu_milli > 0 || most.memory_bytes > 0 ? most : view->free);
    has = {amounts.cpu, amounts.memory, static_cast<std::int64_t>(view->devices.size()) * kWholeGpu};
  }
  if (has == machines_[node]) return;
  add(total_, machines_[node], -1), add(total_, has, 1);
  machines_[node] = has;
  ++stamp_, fallen_ = true;
}

// ---- shares
Usage::Share Usage::made(const Book& book, std::int64_t at_ms, const Held& more) const {
  if (book.held == Held{} && book.proposed == Held{} && book.average == Held{} && more == Held{}) return {};
  const std::uint64_t kept = kept_after(at_ms - book.as_of_ms);
  std::int64_t dominant = 0;
  for (std::size_t i = 0; i < total_.size(); ++i) {
    if (total_[i] <= 0) continue;
    const std::int64_t held = in_average(book.held[i]);
    std::int64_t average = book.average[i];
    if (at_ms > book.as_of_ms)
      average = average >= held ? held + part_of(average - held, kept) : held - part_of(held - average, kept);
    const std::int64_t now = in_average(book.held[i] + book.proposed[i] + more[i]);
    dominant = std::max(dominant, (now + average) / 2 / total_[i]);
  }
  const std::int64_t used = std::min(dominant, kAll);
  dominant = std::min(used * kWeight / book.weight, kAll);
  // 24 points of s / (s + 1/2).
  return {(used * 1'000 + kAll / 2) >> kPart, 48 * kAgeStepMs * dominant / (kAll + 2 * dominant)};
}

void Usage::turn(WallTime now) {
  const std::int64_t minute = minute_of(now);
  if (minute == minute_ms_) return;
  minute_ms_ = minute;
  ++stamp_, fallen_ = true;
}

bool Usage::take_fallen() {
  return std::exchange(fallen_, false);
}

Usage::Share Usage::share(Account account, WallTime now) const {
  const Book& book = accounts_[account];
  const std::int64_t minute = minute_of(now);
  return minute == minute_ms_ && book.stamp == stamp_ ? book.share : made(book, minute, {});
}
Usage::Share Usage::share(Account account, WallTime now, const Held& more) const {
  return made(accounts_[account], minute_of(now), more);
}

// ---- guarantees
void Usage::set(const ShareChanged& c) {
  Book& book = accounts_[account(c.whole_tenant, c.tenant, c.project)];
  book.weight = std::clamp<std::int64_t>(c.share.weight, 1, kWeightMax);
  book.guaranteed = {std::clamp<std::int64_t>(c.share.cpu_milli, 0, kHeldMax), 0,
                     std::clamp<std::int64_t>(c.share.gpus, 0, kHeldMax / kWholeGpu) * kWholeGpu};
  book.stamp = 0, fallen_ = true;
}

void Usage::set(const TierSharesChanged& c) {
  tiers_ = c;
  for (std::int32_t& permille : tiers_.permille) permille = std::clamp(permille, 0, 1'000);
}

bool Usage::tier_lacks(std::uint8_t tier, const Held& less) const {
  const std::int64_t permille = tiers_.permille[slot_of(tier)];
  if (permille == 0) return false;
  const Held& held = of_tier_[slot_of(tier)];
  for (const std::size_t i : {std::size_t{0}, std::size_t{2}})
    if (total_[i] > 0 && (held[i] - less[i]) * 1'000 >= permille * total_[i]) return false;
  return true;
}

std::uint32_t Usage::tier_permille(std::uint8_t tier) const {
  const Held& held = of_tier_[slot_of(tier)];
  std::int64_t most = 0;
  for (const std::size_t i : {std::size_t{0}, std::size_t{2}})
    if (total_[i] > 0) most = std::max(most, held[i] * 1'000 / total_[i]);
  return static_cast<std::uint32_t>(std::clamp<std::int64_t>(most, 0, 1'000));
}

// It takes some of what is guaranteed, and of nothing that it takes is more held then than is guaranteed of it. What is
// not guaranteed at all comes along: the CPUs beside a GPU.
bool Usage::covers(const Book& book, const Held& taken, const Held& more) {
  bool some = false;
  for (std::size_t i = 0; i < more.size(); ++i) {
    if (book.guaranteed[i] <= 0 || more[i] <= 0) continue;
    if (book.held[i] + book.proposed[i] + taken[i] + more[i] > book.guaranteed[i]) return false;
    some = true;
  }
  return some;
}

bool Usage::within(Account account, const Held& more) const {
  return covers(accounts_[account], {}, more);
}

Rank Usage::rank(Owner owner, const Held& more, const Held& tenant_too, const Held& project_too) const {
  if (covers(accounts_[owner.project], project_too, more)) return Rank::OfProject;
  return covers(accounts_[owner.tenant], tenant_too, more) ? Rank::OfTenant : Rank::None;
}

bool Usage::spares(Account account, const Held& less) const {
  const Book& book = accounts_[account];
  for (std::size_t i = 0; i < less.size(); ++i)
    if (book.guaranteed[i] > 0 && less[i] > 0 && book.held[i] - less[i] < book.guaranteed[i]) return false;
  return true;
}

// ---- snapshots
void Usage::restore(const UsageChanged& c) {
  Book& book = accounts_[account(c.whole_tenant, c.tenant, c.project)];
  const Held told{c.cpu, c.memory, c.gpu};
  for (std::size_t i = 0; i < told.size(); ++i)
    book.average[i] = std::clamp<std::int64_t>(told[i], 0, in_average(kHeldMax));
  book.as_of_ms = clamped(c.as_of);
  book.stamp = 0, fallen_ = true;
}

void Usage::snapshot(std::vector<Change>& out) const {
  if (tiers_ != TierSharesChanged{}) out.emplace_back(tiers_);
  for (const Book& book : accounts_) {
    if (book.weight != kWeight || book.guaranteed != Held{})
      out.emplace_back(ShareChanged{book.tenant,
                                    book.project,
                                    book.is_tenant,
                                    {book.weight, book.guaranteed[2] / kWholeGpu, book.guaranteed[0]}});
    if (book.held == Held{} && book.average == Held{}) continue;
    out.emplace_back(UsageChanged{
        book.tenant, book.project, book.is_tenant, book.average[0], book.average[1], book.average[2], {book.as_of_ms}});
  }
}

}  // namespace muster::scheduler
