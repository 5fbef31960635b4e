#include "crypto/token.h"

#include "crypto/random.h"

namespace muster::crypto {
namespace {
constexpr std::string_view kApi = "mst_";
constexpr std::string_view kJoin = "mj1.";

Bytes hash_of(ByteView secret) {
  const Digest digest = sha256(secret);
  return {digest.begin(), digest.end()};
}
}  // namespace

NewToken make_api_token() {
  const Secret32 secret(random_key32());
  return {std::string(kApi) + base64url(secret.bytes), hash_of(secret.bytes)};
}

Result<Bytes> api_token_hash(std::string_view text) {
  if (!text.starts_with(kApi))
    return error(Code::Unauthenticated, "this is no Muster API token (they start with mst_)");
  auto secret = unbase64url(text.substr(kApi.size()));
  if (!secret || secret->size() != 32)
    return error(Code::Unauthenticated, "the API token is damaged; copy it again in full");
  Bytes out = hash_of(*secret);
  zeroise(*secret);
  return out;
}

NewToken make_join_token(ByteView ca_sha256, std::string_view host) {
  const Secret32 secret(random_key32());
  std::string text = std::string(kJoin) + base64url(secret.bytes) + "." + base64url(ca_sha256);
  if (!host.empty()) text += "." + std::string(host);
  return {std::move(text), hash_of(secret.bytes)};
}

Result<JoinTokenParts> parse_join_token(std::string_view text) {
  const Error damaged = error(Code::InvalidArgument, "the join token is damaged; copy it again in full (mj1.….…)");
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.remove_suffix(1);
  if (text.size() > 1024 || !text.starts_with(kJoin)) return damaged;
  text.remove_prefix(kJoin.size());
  const std::size_t first = text.find('.');
  if (first == std::string_view::npos) return damaged;
  const std::size_t second = text.find('.', first + 1);
  auto secret = unbase64url(text.substr(0, first));
  const auto ca = unbase64url(text.substr(first + 1, second == std::string_view::npos ? second : second - first - 1));
  if (!secret || secret->size() != 32 || !ca || ca->size() != 32) return damaged;
  JoinTokenParts out{hash_of(*secret), *ca, {}};
  zeroise(*secret);
  if (second != std::string_view::npos) out.host = text.substr(second + 1);
  for (char c : out.host) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                       c == '-' || c == ':' || c == '[' || c == ']' || c == '_';
    if (!plain) return damaged;
  }
  return out;
}

}  // namespace muster::crypto
