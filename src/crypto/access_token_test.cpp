#include "crypto/access_token.h"

#include <gtest/gtest.h>

#include "crypto/hash.h"
#include "crypto/signing_keys.h"

namespace muster::crypto {
namespace {

constexpr WallTime kWhen{1'800'000'000'000};

AccessClaims claims_of_ann() {
  return {"srv-1a2b", "usr-5", "tok-9", kWhen, kWhen + kAccessLifetimeMax};
}
bool read_ok(const std::string& text, const std::vector<AccessKey>& keys, WallTime now = kWhen + Millis(1000)) {
  return read_access_token(text, keys, "srv-1a2b", now).ok();
}
std::string signed_by(const SigningKey& key, const std::string& header, const std::string& payload) {
  const std::string said = base64url(as_bytes(header)) + "." + base64url(as_bytes(payload));
  return said + "." + base64url(key.sign(as_bytes(said)));
}

TEST(AccessToken, IsBelievedFromItsKeyForItsServerInItsTime) {
  const auto key = SigningKey::generate(), other = SigningKey::generate();
  const std::string text = make_access_token(key, claims_of_ann());
  EXPECT_TRUE(looks_like_access_token(text));
  EXPECT_LT(text.size(), kAccessTokenBytesMax);
  const std::vector<AccessKey> keys{{key.public_key(), {}}};
  const auto read = read_access_token(text, keys, "srv-1a2b", kWhen + Millis(1000));
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(*read, claims_of_ann());
  EXPECT_FALSE(read_access_token(text, keys, "srv-other", kWhen).ok());
  EXPECT_FALSE(read_ok(text, {{other.public_key(), {}}}));
  EXPECT_FALSE(read_ok(text, {}));
  EXPECT_FALSE(read_ok(text, keys, kWhen + kAccessLifetimeMax)) << "it has ended";
  EXPECT_TRUE(read_ok(text, keys, kWhen - Millis(59'000))) << "clocks differ";
  EXPECT_FALSE(read_ok(text, keys, kWhen - Millis(120'000)));
  EXPECT_TRUE(read_ok(text, {{other.public_key(), {}}, {key.public_key(), kWhen + Millis(5000)}})) << "the one before";
  EXPECT_FALSE(read_ok(text, {{key.public_key(), kWhen}})) << "believed no longer";
  AccessClaims longer = claims_of_ann();
  longer.expires = kWhen + kAccessLifetimeMax + Millis(1000);
  EXPECT_FALSE(read_ok(make_access_token(key, longer), keys)) << "nobody makes a longer one";
}

TEST(AccessToken, HasOneFormOnly) {
  const auto key = SigningKey::generate();
  const std::vector<AccessKey> keys{{key.public_key(), {}}};
  const std::string text = make_access_token(key, claims_of_ann());
  const std::string kid = key_id_text(key.public_key());
  const std::string header = R"({"alg":"EdDSA","kid":")" + kid + R"(","typ":"at+jwt"})";
  const std::string payload =
      R"({"aud":"muster-api","exp":1800000600,"iat":1800000000,"iss":"srv-1a2b","sid":"tok-9","sub":"usr-5"})";
  EXPECT_EQ(signed_by(key, header, payload), text);
  const auto instead = [](std::string in, const std::string& old, const std::string& fresh) {
    return in.replace(in.find(old), old.size(), fresh);
  };
  for (const std::string& other :
       {instead(header, "EdDSA", "none"), instead(header, "EdDSA", "HS256"), instead(header, kid, "00"),
        instead(header, "at+jwt", "JWT"), instead(header, "{", "{ ")})
    EXPECT_FALSE(read_ok(signed_by(key, other, payload), keys)) << other;
  for (const std::string& other :
       {instead(payload, "muster-api", "others"), instead(payload, "{", "{ "), instead(payload, "usr-5", "usr-\\u0035"),
        instead(payload, "\"sub\":\"usr-5\"", "\"sub\":\"usr-5\",\"sub\":\"usr-1\""),
        instead(payload, "1800000600", "18e8"), instead(payload, "1800000600", "-1"), std::string("{}"),
        std::string("nonsense")})
    EXPECT_FALSE(read_ok(signed_by(key, header, other), keys)) << other;
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] = changed[i] == 'A' ? 'B' : 'A';
    EXPECT_FALSE(read_ok(changed, keys)) << "at " << i;
    EXPECT_FALSE(read_ok(text.substr(0, i), keys)) << "cut at " << i;
  }
  EXPECT_FALSE(read_ok(text + ".", keys));
  EXPECT_FALSE(read_ok(std::string(5000, 'e'), keys));
}

TEST(RefreshToken, KeepsItsFirstPartAndChangesItsSecond) {
  const auto first = make_refresh_token();
  const auto read = parse_refresh_token(first.text);
  ASSERT_TRUE(read.ok());
  EXPECT_EQ(read->session, first.hashes.session);
  EXPECT_EQ(read->rotating, first.hashes.rotating);
  const auto next = next_refresh_token(first.text);
  EXPECT_EQ(next.hashes.session, first.hashes.session);
  EXPECT_NE(next.hashes.rotating, first.hashes.rotating);
  EXPECT_NE(make_refresh_token().hashes.session, first.hashes.session);
  for (const std::string& bad :
       {std::string(), std::string("mrf_"), std::string("mrf_a.b"), "mst_" + first.text.substr(4),
        first.text.substr(0, first.text.size() - 1), first.text + "." + first.text})
    EXPECT_FALSE(parse_refresh_token(bad).ok()) << bad;
  EXPECT_TRUE(next_refresh_token("nonsense").text.empty());
}

}  // namespace
}  // namespace muster::crypto
