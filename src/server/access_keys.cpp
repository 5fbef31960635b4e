#include "server/access_keys.h"

#include <fmt/format.h>
#include <unistd.h>

#include <charconv>
#include <filesystem>

#include "crypto/signing_keys.h"
#include "server/identity.h"

namespace muster::server {
namespace {

std::string access_path(const DataDir& dir) {
  return dir.key("access.pem");
}
std::string before_path(const DataDir& dir) {
  return dir.key("access.before");
}

Result<std::optional<crypto::AccessKey>> read_before(const DataDir& dir) {
  const auto bytes = dir.read(before_path(dir));
  if (!bytes.ok() && bytes.error().code == Code::NotFound) return std::optional<crypto::AccessKey>{};
  if (!bytes.ok()) return bytes.error();
  const std::string text = as_string(*bytes);
  const auto space = text.find(' ');
  const auto raw = unbase64(std::string_view(text).substr(0, space));
  const auto key = raw ? crypto::key32(*raw) : std::nullopt;
  crypto::AccessKey out;
  if (key && space != std::string::npos) {
    const char *from = text.data() + space + 1, *to = text.data() + text.size();
    const auto [end, fault] = std::from_chars(from, to, out.until.ms);
    if (fault == std::errc() && end != to && *end == '\n' && out.until.ms > 0) {
      out.key = *key;
      return std::optional(out);
    }
  }
  return error(Code::DataLoss, fmt::format("{} is damaged; remove it: access tokens of the key before then end, and "
                                           "logins renew them",
                                           before_path(dir)));
}

}  // namespace

Result<AccessKeySet> load_access_keys(const DataDir& dir, WallTime now) {
  if (!std::filesystem::exists(access_path(dir)))
    TRY_VOID(dir.write(access_path(dir), as_bytes(crypto::SigningKey::generate().to_pem())));
  const Bytes pem = TRY(dir.read(access_path(dir)));
  AccessKeySet out{TRY(crypto::SigningKey::from_pem(as_string(pem))), {}};
  out.believed.push_back({out.own.public_key(), {}});
  const auto before = TRY(read_before(dir));
  if (before && before->until > now && before->key != out.own.public_key()) out.believed.push_back(*before);
  return out;
}

Result<std::string> rotate_access_key(const DataDir& dir, bool compromised, WallTime now) {
  const AccessKeySet set = TRY(load_access_keys(dir, now));
  const auto fresh = crypto::SigningKey::generate();
  if (compromised) {
    ::unlink(before_path(dir).c_str());
  } else {
    const WallTime until = now + crypto::kAccessLifetimeMax + Millis(60'000);
    TRY_VOID(dir.write(before_path(dir), as_bytes(fmt::format("{} {}\n", base64(set.own.public_key()), until.ms))));
  }
  TRY_VOID(dir.write(access_path(dir), as_bytes(fresh.to_pem())));
  return crypto::key_id_text(fresh.public_key());
}

}  // namespace muster::server
