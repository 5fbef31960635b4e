#include "server/signing_keys.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>

#include "base/log.h"
#include "server/identity.h"
#include "server/signing_desk.h"

namespace muster::server {
namespace {

using crypto::KeyKind;
constexpr std::array<const char*, crypto::kKeyKinds> kSecretNames{"roster", "command", "relay"};
constexpr std::array kKinds{KeyKind::Roster, KeyKind::Order, KeyKind::RelayToken};
constexpr std::size_t kOfAKindMax = 4;

class KeysLock {
 public:
  explicit KeysLock(const DataDir& dir)
      : fd_(::open(dir.key("signing-keys.lock").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600)) {
    if (fd_ >= 0) ::flock(fd_, LOCK_EX);
  }
  ~KeysLock() {
    if (fd_ >= 0) ::close(fd_);
  }
  KeysLock(const KeysLock&) = delete;
  KeysLock& operator=(const KeysLock&) = delete;

 private:
  int fd_;
};

std::string secret_path(const DataDir& dir, KeyKind kind) {
  return dir.key(std::string(kSecretNames[static_cast<std::size_t>(kind)]) + ".pem");
}
std::string next_path(const DataDir& dir, KeyKind kind) {
  return dir.key(std::string(kSecretNames[static_cast<std::size_t>(kind)]) + ".next.pem");
}
std::string statement_path(const DataDir& dir) {
  return dir.key("signing-keys.pem");
}

Result<crypto::SigningKey> read_secret(const DataDir& dir, const std::string& path) {
  const Bytes bytes = TRY(dir.read(path));
  return crypto::SigningKey::from_pem(as_string(bytes));
}

std::uint64_t revision_after(std::uint64_t before, WallTime now) {
  // By the clock, so that one which is made in a restored folder is newer than those that the backup does not know.
  return std::max(before + 1, static_cast<std::uint64_t>(std::max<std::int64_t>(now.ms, 1)));
}

Status write_statement(const DataDir& dir, crypto::SigningKeys& keys, const CaSet& cas) {
  TRY_VOID(crypto::sign_signing_keys(keys, cas.ca, cas.trust));
  return dir.write(statement_path(dir), as_bytes(crypto::signing_keys_text(keys)));
}

Result<crypto::SigningKeys> first_statement(const DataDir& dir, const std::string& server_id, WallTime now) {
  crypto::SigningKeys out;
  out.server_id = server_id;
  out.revision = revision_after(0, now);
  for (const KeyKind kind : kKinds)
    out.keys.push_back({kind, TRY(read_secret(dir, secret_path(dir, kind))).public_key(), {}, {}});
  return out;
}

bool signed_by(const crypto::SigningKeys& keys, const CaSet& cas) {
  crypto::SigningKeys now = keys;
  // The certificates that another signature would bring; a CA may have got one under another root.
  return crypto::sign_signing_keys(now, cas.ca, cas.trust).ok() && now.chain == keys.chain;
}

// With the lock. Without the secrets.
Result<crypto::SigningKeys> read_statement(const DataDir& dir, const CaSet& cas, const std::string& server_id,
                                           WallTime now) {
  const auto bytes = dir.read(statement_path(dir));
  const bool none = !bytes.ok() && bytes.error().code == Code::NotFound;
  if (!bytes.ok() && !none) return bytes.error();
  crypto::SigningKeys out =
      none ? TRY(first_statement(dir, server_id, now)) : TRY(crypto::parse_signing_keys(as_string(*bytes)));
  const auto ended = [&](const crypto::SigningKeyEntry& each) { return each.until.ms != 0 && each.until <= now; };
  const bool ends = std::any_of(out.keys.begin(), out.keys.end(), ended);
  if (ends) {
    std::erase_if(out.keys, ended);
    out.revision = revision_after(out.revision, now);
  }
  if (none || ends || !signed_by(out, cas)) TRY_VOID(write_statement(dir, out, cas));
  return out;
}

// The secret of the key that signs now, by what the statement says; one that was announced takes its place.
Result<crypto::SigningKey> secret_in_use(const DataDir& dir, const crypto::SigningKeys& keys, KeyKind kind,
                                         WallTime now) {
  const crypto::SigningKeyEntry* wanted = crypto::signing_key(keys, kind, now);
  auto next = read_secret(dir, next_path(dir, kind));
  if (wanted != nullptr && next.ok() && next->public_key() == wanted->key) {
    TRY_VOID(dir.write(secret_path(dir, kind), as_bytes(next->to_pem())));
    ::unlink(next_path(dir, kind).c_str());
    return next;
  }
  auto own = read_secret(dir, secret_path(dir, kind));
  if (wanted != nullptr && own.ok() && own->public_key() == wanted->key) return own;
  return error(Code::DataLoss,
               fmt::format("{} is not the key that {} names; restore both from one backup, or make another: musterd "
                           "keys rotate {} --compromised",
                           secret_path(dir, kind), statement_path(dir), crypto::key_kind_name(kind)));
}

Status no_agent_too_old(const DataDir& dir, const crypto::SigningKeys& keys) {
  const auto behind = read_keys_behind(dir);
  if (!behind.ok() || behind->revision != keys.revision) return {};
  for (const std::string& machine : behind->machines) {
    if (machine.ends_with(kCannotLearn))
      return error(Code::FailedPrecondition,
                   fmt::format("{} would take no orders any more; update its agent first, or say --now", machine));
  }
  return {};
}

}  // namespace

bool ever_changed(const crypto::SigningKeys& keys, KeyKind kind) {
  return std::any_of(keys.keys.begin(), keys.keys.end(),
                     [&](const auto& each) { return each.kind == kind && each.from.ms != 0; });
}

Result<KeySet> load_signing_keys(const DataDir& dir, const CaSet& cas, const std::string& server_id, WallTime now) {
  const KeysLock lock(dir);
  crypto::SigningKeys statement = TRY(read_statement(dir, cas, server_id, now));
  auto roster = TRY(secret_in_use(dir, statement, KeyKind::Roster, now));
  auto order = TRY(secret_in_use(dir, statement, KeyKind::Order, now));
  auto relay = TRY(secret_in_use(dir, statement, KeyKind::RelayToken, now));
  WallTime next{0};
  for (const auto& each : statement.keys) {
    if (each.from > now && (next.ms == 0 || each.from < next)) next = each.from;
  }
  std::string text = crypto::signing_keys_text(statement);
  return KeySet{std::move(statement), std::move(text), std::move(roster), std::move(order), std::move(relay), next};
}

Result<std::string> rotate_signing_key(const DataDir& dir, const KeyChange& change, WallTime now) {
  const KeysLock lock(dir);
  const CaSet cas = TRY(load_cas(dir));
  const Bytes server_id = TRY(dir.read(dir.key("server_id")));
  crypto::SigningKeys keys = TRY(read_statement(dir, cas, as_string(server_id), now));
  if (change.kind == KeyKind::RelayToken && !change.compromised && change.keep < SigningDesk::kRelayTokenMax)
    return error(Code::InvalidArgument,
                 "tokens for relays may hold for twelve hours: keep the key before for as long, or say --compromised");
  if (!change.now) TRY_VOID(no_agent_too_old(dir, keys));
  // What a change that was cut off left here.
  if (!change.compromised) TRY(secret_in_use(dir, keys, change.kind, now));
  const auto of_kind = [&](const auto& each) { return each.kind == change.kind; };
  if (change.compromised) {
    std::erase_if(keys.keys, of_kind);
  } else {
    for (const auto& each : keys.keys) {
      if (of_kind(each) && each.from > now)
        return error(
            Code::FailedPrecondition,
            fmt::format("the {} key {} begins to sign at {}; change it again after that",
                        crypto::key_kind_name(change.kind), crypto::key_id_text(each.key), format_utc(each.from)));
    }
    if (std::count_if(keys.keys.begin(), keys.keys.end(), of_kind) >= static_cast<std::ptrdiff_t>(kOfAKindMax))
      return error(Code::FailedPrecondition,
                   fmt::format("{} {} keys are believed still; wait until one has ended (musterd keys list)",
                               kOfAKindMax, crypto::key_kind_name(change.kind)));
  }
  const auto fresh = crypto::SigningKey::generate();
  const WallTime from = change.compromised ? now : now + change.start_in;
  for (auto& each : keys.keys) {
    if (of_kind(each) && each.until.ms == 0) each.until = from + change.keep;
  }
  keys.keys.push_back({change.kind, fresh.public_key(), from, {}});
  std::stable_sort(keys.keys.begin(), keys.keys.end(), [](const auto& a, const auto& b) { return a.kind < b.kind; });
  keys.revision = revision_after(keys.revision, now);
  TRY_VOID(dir.write(next_path(dir, change.kind), as_bytes(fresh.to_pem())));
  TRY_VOID(write_statement(dir, keys, cas));
  if (from <= now) TRY(secret_in_use(dir, keys, change.kind, now));
  return crypto::key_id_text(fresh.public_key());
}

Status write_keys_behind(const DataDir& dir, const Behind& behind) {
  return write_behind_file(dir, "keys-behind", behind);
}
Result<Behind> read_keys_behind(const DataDir& dir) {
  return read_behind_file(dir, "keys-behind");
}

}  // namespace muster::server
