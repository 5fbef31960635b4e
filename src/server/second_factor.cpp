#include "server/second_factor.h"

#include <fmt/format.h>

#include <sstream>

#include "crypto/hash.h"
#include "crypto/random.h"
#include "crypto/totp.h"

namespace muster::server {
namespace {

constexpr const char* kTotpTable = "totp";
constexpr std::size_t kRecoveryBytes = 10, kGroup = 4;

// People type codes with spaces, hyphens and capitals.
std::string plain(const std::string& code) {
  std::string out;
  for (const char c : code.substr(0, 64))
    if (c != ' ' && c != '-') out += c >= 'A' && c <= 'Z' ? static_cast<char>(c | 0x20) : c;
  return out;
}
std::string grouped(const std::string& code) {
  std::string out;
  for (std::size_t at = 0; at < code.size(); at += kGroup) out += (at == 0 ? "" : "-") + code.substr(at, kGroup);
  return out;
}

}  // namespace

SecondFactors::SecondFactors(const crypto::Secret32& secret, std::shared_ptr<journal::Store> store)
    : seal_(secret, "muster-totp-v1"), store_(std::move(store)) {}

Status SecondFactors::load() {
  const std::lock_guard lock(mutex_);
  decltype(confirmed_) found;
  for (std::string after;;) {
    const auto rows = TRY(store_->list_side(kTotpTable, after, 1000));
    if (rows.empty()) break;
    for (const auto& [name, bytes] : rows) {
      after = name;
      const auto who = PrincipalId::parse(name);
      const auto text = seal_.open(name, bytes);
      const auto row = text ? row_of(*text) : std::nullopt;
      if (who && (!row || row->confirmed)) found.insert(*who);
    }
  }
  const std::lock_guard shown(confirmed_mutex_);
  confirmed_ = std::move(found);
  return {};
}

Result<Bytes> SecondFactors::enrol(PrincipalId who, WallTime now) {
  const std::lock_guard lock(mutex_);
  const auto held = TRY(read(who));
  if (held && held->confirmed)
    return error(Code::FailedPrecondition, "this account has a second factor; take it away first: muster totp disable");
  Row row;
  row.secret = crypto::random_bytes(crypto::kTotpSecretBytes);
  row.since = now;
  TRY_VOID(write(who, row));
  return row.secret;
}

Result<std::vector<std::string>> SecondFactors::confirm(PrincipalId who, const std::string& code, WallTime now) {
  const std::lock_guard lock(mutex_);
  auto row = TRY(read(who));
  if (row && row->confirmed)
    return error(
        Code::FailedPrecondition,
        "the second factor of this account is in force; if its recovery codes were lost on the way, take it away "
        "with a code and begin again: muster totp disable");
  if (!row || row->tries >= kEnrolTries || row->since + kEnrolWithin < now)
    return error(Code::FailedPrecondition,
                 "there is no second factor to confirm, or no longer; begin again: muster totp enable");
  const auto step = crypto::match_totp(row->secret, plain(code), now, 0);
  if (!step) {
    ++row->tries;
    TRY_VOID(write(who, *row));
    return error(Code::InvalidArgument,
                 "the code is wrong; take the one that the app shows now, and set the phone's clock by the network",
                 "code");
  }
  std::vector<std::string> out;
  row->confirmed = true, row->since = now, row->used = *step;
  while (row->recovery.size() < kRecoveryCodes) {
    const std::string fresh = plain(crypto::base32(crypto::random_bytes(kRecoveryBytes)));
    if (row->recovery.insert(crypto::sha256_hex(as_bytes(fresh))).second) out.push_back(grouped(fresh));
  }
  TRY_VOID(write(who, *row));
  note(who, true);
  return out;
}

Result<SecondFactors::Verdict> SecondFactors::check(PrincipalId who, const std::string& code, WallTime now) {
  const std::lock_guard lock(mutex_);
  auto row = TRY(read(who));
  if (!row || !row->confirmed) return Verdict::NotNeeded;
  const std::string typed = plain(code);
  if (const auto step = crypto::match_totp(row->secret, typed, now, row->used))
    row->used = *step;
  else if (row->recovery.erase(crypto::sha256_hex(as_bytes(typed))) == 0)
    return Verdict::Wrong;
  TRY_VOID(write(who, *row));
  return Verdict::Right;
}

Status SecondFactors::remove(PrincipalId who) {
  const std::lock_guard lock(mutex_);
  TRY_VOID(reset(*store_, who));
  note(who, false);
  return {};
}

Status SecondFactors::reset(journal::Store& store, PrincipalId who) {
  return store.erase_side(kTotpTable, who.str());
}

Result<std::optional<SecondFactors::Info>> SecondFactors::find(PrincipalId who) {
  const std::lock_guard lock(mutex_);
  const auto row = TRY(read(who));
  if (!row || !row->confirmed) return std::optional<Info>();
  return std::optional(Info{row->since, row->recovery.size()});
}

void SecondFactors::note(PrincipalId who, bool confirmed) {
  const std::lock_guard lock(confirmed_mutex_);
  if (confirmed)
    confirmed_.insert(who);
  else
    confirmed_.erase(who);
}

bool SecondFactors::holds(PrincipalId who) const {
  const std::lock_guard lock(confirmed_mutex_);
  return confirmed_.contains(who);
}

Result<std::optional<SecondFactors::Row>> SecondFactors::read(PrincipalId who) {
  const auto bytes = TRY(store_->get_side(kTotpTable, who.str()));
  if (!bytes) {
    note(who, false);
    return std::optional<Row>();
  }
  const auto text = seal_.open(who.str(), *bytes);
  auto row = text ? row_of(*text) : std::nullopt;
  if (!row)
    return error(Code::DataLoss,
                 "the second factor of this account cannot be read; an operator takes it away: muster user reset-totp");
  return row;
}

Status SecondFactors::write(PrincipalId who, const Row& row) {
  return store_->put_side(kTotpTable, who.str(), seal_.seal(who.str(), text_of(row)));
}

std::string SecondFactors::text_of(const Row& row) {
  std::string out =
      fmt::format("1 {} {} {} {} {}", hex(row.secret), row.since.ms, row.confirmed ? 1 : 0, row.tries, row.used);
  for (const std::string& each : row.recovery) out += " " + each;
  return out;
}

std::optional<SecondFactors::Row> SecondFactors::row_of(const std::string& text) {
  std::istringstream in(text);
  Row row;
  int form = 0, confirmed = 0;
  std::string secret;
  if (!(in >> form >> secret >> row.since.ms >> confirmed >> row.tries >> row.used) || form != 1) return {};
  const auto bytes = unhex(secret);
  if (!bytes || bytes->size() != crypto::kTotpSecretBytes) return {};
  row.secret = *bytes;
  row.confirmed = confirmed == 1;
  for (std::string each; in >> each;) row.recovery.insert(each);
  return row;
}

}  // namespace muster::server
