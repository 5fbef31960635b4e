#include "server/access_keys.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>

#include "crypto/signing_keys.h"
#include "crypto/workload_token.h"
#include "server/identity.h"

namespace muster::server {
namespace {

constexpr std::size_t kBeforeMax = 16;  // turned more often than that within one token's life: the oldest end early

const char* name_of(ShortKey kind) {
  return kind == ShortKey::Access ? "access" : "workload";
}
Millis life_of(ShortKey kind) {
  return kind == ShortKey::Access ? crypto::kAccessLifetimeMax : crypto::kWorkloadLifetimeMax;
}
std::string key_path(const DataDir& dir, ShortKey kind) {
  return dir.key(std::string(name_of(kind)) + ".pem");
}
std::string before_path(const DataDir& dir, ShortKey kind) {
  return dir.key(std::string(name_of(kind)) + ".before");
}

// "BASE64 MILLISECONDS"
std::optional<crypto::AccessKey> read_before_line(std::string_view line) {
  const auto space = line.find(' ');
  const auto raw = unbase64(line.substr(0, space));
  const auto key = raw ? crypto::key32(*raw) : std::nullopt;
  if (!key || space == std::string_view::npos) return {};
  crypto::AccessKey out{*key, {}};
  const auto [end, fault] = std::from_chars(line.data() + space + 1, line.data() + line.size(), out.until.ms);
  if (fault != std::errc() || end != line.data() + line.size() || out.until.ms <= 0) return {};
  return out;
}

// Those that are still believed, the newest first.
Result<std::vector<crypto::AccessKey>> read_before(const DataDir& dir, ShortKey kind, WallTime now) {
  std::vector<crypto::AccessKey> out;
  const auto bytes = dir.read(before_path(dir, kind));
  if (!bytes.ok() && bytes.error().code == Code::NotFound) return out;
  if (!bytes.ok()) return bytes.error();
  const std::string text = as_string(*bytes);
  for (std::size_t at = 0; at < text.size();) {
    const auto end = text.find('\n', at);
    const auto key = read_before_line(std::string_view(text).substr(at, end - at));
    if (!key || end == std::string::npos)
      return error(Code::DataLoss,
                   fmt::format("{} is damaged; remove it: tokens of the keys before then end, and are renewed",
                               before_path(dir, kind)));
    if (key->until > now) out.push_back(*key);
    at = end + 1;
  }
  return out;
}

}  // namespace

Result<AccessKeySet> load_short_keys(const DataDir& dir, ShortKey kind, WallTime now) {
  const std::string path = key_path(dir, kind);
  if (!std::filesystem::exists(path)) TRY_VOID(dir.write(path, as_bytes(crypto::SigningKey::generate().to_pem())));
  const Bytes pem = TRY(dir.read(path));
  AccessKeySet out{TRY(crypto::SigningKey::from_pem(as_string(pem))), {}};
  out.believed.push_back({out.own.public_key(), {}});
  for (const crypto::AccessKey& each : TRY(read_before(dir, kind, now)))
    if (each.key != out.own.public_key()) out.believed.push_back(each);
  return out;
}

Result<std::string> rotate_short_key(const DataDir& dir, ShortKey kind, bool compromised, WallTime now) {
  const AccessKeySet set = TRY(load_short_keys(dir, kind, now));
  const auto fresh = crypto::SigningKey::generate();
  if (compromised) {
    ::unlink(before_path(dir, kind).c_str());
  } else {
    std::string lines;
    std::size_t kept = 0;
    for (const crypto::AccessKey& each : set.believed) {
      if (++kept > kBeforeMax) break;
      const WallTime until = each.until.ms != 0 ? each.until : now + life_of(kind) + Millis(60'000);
      lines += fmt::format("{} {}\n", base64(each.key), until.ms);
    }
    TRY_VOID(dir.write(before_path(dir, kind), as_bytes(lines)));
  }
  TRY_VOID(dir.write(key_path(dir, kind), as_bytes(fresh.to_pem())));
  return crypto::key_id_text(fresh.public_key());
}

}  // namespace muster::server
