// keys: which keys sign rosters, orders, relay tokens, access and identity tokens, and another one in the place of one
// of them.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <filesystem>

#include "server/access_keys.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"
#include "server/signing_keys.h"

namespace muster::server {
namespace {

constexpr Millis kHour{3'600'000}, kDay{86'400'000};

Status keys_lie_here(const DataDir& dir) {
  if (std::filesystem::exists(dir.key("ca.key.pem"))) return {};
  if (std::filesystem::exists(dir.key("signer-apart")))
    return error(
        Code::FailedPrecondition,
        fmt::format("the signing keys of {} are kept apart: run this with the signer's folder, as its user", dir.root));
  return error(Code::NotFound, fmt::format("{} holds no control plane", dir.root));
}

std::string state_of(const crypto::SigningKeys& keys, const crypto::SigningKeyEntry& key, WallTime now) {
  const auto* signs = crypto::signing_key(keys, key.kind, now);
  if (signs != nullptr && signs->key == key.key) return "signs";
  if (key.from > now) return fmt::format("signs from {} on, believed already", format_utc(key.from));
  return fmt::format("believed until {}", format_utc(key.until));
}

Status list_signing_keys(const DataDir& dir) {
  const WallTime now = read_clocks().wall;
  const Bytes server_id = TRY(dir.read(dir.key("server_id")));
  const CaSet cas = TRY(load_cas(dir));
  const KeySet set = TRY(load_signing_keys(dir, cas, as_string(server_id), now));
  for (const auto& key : set.statement.keys) {
    const std::string age = key.from.ms == 0 ? "as old as the control plane"
                            : key.from > now ? "new"
                                             : fmt::format("{} days old", (now - key.from) / kDay);
    fmt::print("{:<12} {}  {}, {}\n", crypto::key_kind_name(key.kind), crypto::key_id_text(key.key),
               state_of(set.statement, key, now), age);
  }
  for (const auto& [kind, name] : {std::pair(ShortKey::Access, "access-token"), {ShortKey::Workload, "workload"}}) {
    const AccessKeySet keys = TRY(load_short_keys(dir, kind, now));
    for (const auto& key : keys.believed)
      fmt::print("{:<12} {}  {}\n", name, crypto::key_id_text(key.key),
                 key.until.ms == 0 ? std::string("signs") : fmt::format("believed until {}", format_utc(key.until)));
  }
  const std::uint64_t revision = set.statement.revision;
  const auto behind = read_keys_behind(dir);
  if (!behind.ok() || behind->revision != revision) {
    fmt::print("No musterd that serves has said yet which machines know revision {}.\n", revision);
  } else if (behind->machines.empty()) {
    fmt::print("All machines know revision {}.\n", revision);
  } else {
    fmt::print("{} machines have not said that they know revision {}; they learn it when they come:\n",
               behind->machines.size(), revision);
    for (const std::string& machine : behind->machines) fmt::print("  {}\n", machine);
  }
  return {};
}

Result<Millis> span_of(const Arguments& arguments, const std::string& name, Millis unit, std::int64_t high,
                       Millis otherwise) {
  const std::string text = arguments.option(name);
  if (text.empty()) return otherwise;
  std::int64_t value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || end != text.data() + text.size() || value < 0 || value > high)
    return error(Code::InvalidArgument, fmt::format("{} must be a whole number up to {}", name, high));
  return unit * value;
}

Status rotate_keys(const Arguments& arguments, const DataDir& dir, const std::vector<crypto::KeyKind>& kinds) {
  KeyChange change;
  change.compromised = arguments.options.contains("--compromised");
  change.now = change.compromised || arguments.options.contains("--now");
  if (change.compromised && (!arguments.option("--keep-hours").empty() || !arguments.option("--start-in").empty()))
    return error(Code::InvalidArgument,
                 "--compromised takes effect at once: it goes with neither --keep-hours nor --start-in");
  change.keep = TRY(span_of(arguments, "--keep-hours", kHour, 30 * 24, change.keep));
  const WallTime now = read_clocks().wall;
  for (const crypto::KeyKind kind : kinds) {
    change.kind = kind;
    const Millis hear = kind == crypto::KeyKind::RelayToken ? kRelaysHear : Millis(0);
    change.start_in = TRY(span_of(arguments, "--start-in", Millis(1000), 86'400, hear));
    const std::string id = TRY(rotate_signing_key(dir, change, now));
    const auto name = crypto::key_kind_name(kind);
    if (change.compromised)
      fmt::print("The {} key {} signs from now on, and no other one is believed any more.\n", name, id);
    else
      fmt::print("The {} key {} signs from {} on; the one before is believed until {}.\n", name, id,
                 format_utc(now + change.start_in), format_utc(now + change.start_in + change.keep));
  }
  return {};
}

Status rotate_access(const Arguments& arguments, const DataDir& dir) {
  const bool compromised = arguments.options.contains("--compromised");
  const std::string id = TRY(rotate_short_key(dir, ShortKey::Access, compromised, read_clocks().wall));
  fmt::print("The access-token key {} signs once musterd takes notice; {}\n", id,
             compromised ? "access tokens of the one before end then, and logins renew theirs."
                         : "access tokens of the one before go on for their ten minutes.");
  return {};
}

Status rotate_workload(const Arguments& arguments, const DataDir& dir) {
  const bool compromised = arguments.options.contains("--compromised");
  const std::string id = TRY(rotate_short_key(dir, ShortKey::Workload, compromised, read_clocks().wall));
  fmt::print("The workload key {} signs once musterd takes notice; {}\n", id,
             compromised ? "the one before is published no longer, so who asks for the key set refuses its tokens."
                         : "the one before stays in the published key set for the hour that its tokens can live.");
  return {};
}

}  // namespace

int cmd_keys(const Arguments& arguments) {
  const auto& words = arguments.words;
  const bool lists = words.size() == 2 && words[1] == "list", rotates = words.size() == 3 && words[1] == "rotate";
  std::vector<crypto::KeyKind> kinds;
  const bool access = rotates && (words[2] == "access-token" || words[2] == "all");
  const bool workload = rotates && (words[2] == "workload" || words[2] == "all");
  if (rotates && words[2] == "all")
    kinds = {crypto::KeyKind::Roster, crypto::KeyKind::Order, crypto::KeyKind::RelayToken};
  else if (const auto kind = rotates ? crypto::parse_key_kind(words[2]) : std::nullopt)
    kinds = {*kind};
  if (arguments.option("--data").empty() || (!lists && !access && !workload && kinds.empty())) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  const auto dir = open_data_dir(arguments);
  Status done = dir.ok() ? keys_lie_here(*dir) : Status(dir.error());
  if (done.ok() && lists) done = list_signing_keys(*dir);
  if (done.ok() && !kinds.empty()) done = rotate_keys(arguments, *dir, kinds);
  if (done.ok() && access) done = rotate_access(arguments, *dir);
  if (done.ok() && workload) done = rotate_workload(arguments, *dir);
  if (done.ok() && rotates)
    fmt::print("Make a new backup. A musterd that serves takes notice within the hour, or at once: kill -HUP PID\n");
  if (done.ok()) return 0;
  fmt::print(stderr, "musterd keys: {}\n", done.error().message);
  return done.error().code == Code::InvalidArgument ? 2 : 1;
}

}  // namespace muster::server
