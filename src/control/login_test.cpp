// Logins that are renewed, as the core decides about them.
#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

Bytes hash_no(std::uint8_t n) {
  return Bytes(32, n);
}

struct LoginWorld : World {
  TokenId login = TokenId::parse(must(CreateApiToken{alice, hash_no(1), "cli", {}, 24h, hash_no(2)}).id).value();
  Result<Outcome> renew(std::uint8_t shown, std::uint8_t next) {
    return run(RenewLogin{hash_no(1), hash_no(shown), hash_no(next)}, user());
  }
  bool over() const { return state.api_tokens.at(login).revoked; }
};

TEST(Logins, AreRenewedByTheirNewestRefreshTokenAlone) {
  LoginWorld w;
  EXPECT_EQ(w.renew(2, 3)->id, w.login.str());
  EXPECT_EQ(w.renew(3, 4)->id, w.login.str());
  EXPECT_EQ(w.state.api_tokens.at(w.login).refresh, hash_no(4));
  EXPECT_EQ(w.run(RenewLogin{hash_no(9), hash_no(4), hash_no(5)}, w.user()).error().code, Code::Unauthenticated)
      << "of no login";
  EXPECT_FALSE(w.over()) << "who has no part of it cannot end it";
  EXPECT_EQ(w.run(RenewLogin{hash_no(1), hash_no(4), Bytes(3, 1)}, w.user()).error().code, Code::InvalidArgument);
  EXPECT_TRUE(decode_state(encode_state(w.state)).value() == w.state);
}

TEST(Logins, AnAnswerThatWasLostIsGivenAgain) {
  LoginWorld w;
  ASSERT_TRUE(w.renew(2, 3).ok());
  const int before = w.count<LoginRenewed>();
  EXPECT_EQ(w.renew(2, 3)->id, w.login.str());
  EXPECT_EQ(w.count<LoginRenewed>(), before) << "nothing changes by it";
  EXPECT_FALSE(w.over());
}

TEST(Logins, AUsedRefreshTokenThatComesAgainEndsThem) {
  for (const std::uint8_t shown : {2, 3, 7}) {  // used up, used up before that, never given
    LoginWorld w;
    ASSERT_TRUE(w.renew(2, 3).ok());
    ASSERT_TRUE(w.renew(3, 4).ok());
    EXPECT_EQ(w.renew(shown, 6)->id, "reused");
    EXPECT_TRUE(w.over());
    EXPECT_EQ(w.count<RefreshReused>(), 1);
    EXPECT_EQ(w.renew(4, 5).error().code, Code::Unauthenticated) << "for who has the newest one too";
  }
}

TEST(Logins, EndWithTheirTimeTheirAccountAndWhenTheyAreEnded) {
  LoginWorld late;
  late.now.wall = late.now.wall + 25h;
  EXPECT_EQ(late.renew(2, 3).error().code, Code::Unauthenticated);
  LoginWorld disabled;
  disabled.must(DisablePrincipal{disabled.alice});
  EXPECT_EQ(disabled.renew(2, 3).error().code, Code::Unauthenticated);
  LoginWorld ended;
  ended.must(RevokeApiToken{ended.login});
  EXPECT_EQ(ended.renew(2, 3).error().code, Code::Unauthenticated);
  LoginWorld plain;
  plain.must(CreateApiToken{plain.alice, hash_no(50), "ci", {}, 24h});
  EXPECT_EQ(plain.run(RenewLogin{hash_no(50), hash_no(2), hash_no(3)}, plain.user()).error().code,
            Code::Unauthenticated)
      << "an API token is not renewed";
}

TEST(Logins, RaiseAnOldJournalToTheFormatThatKeepsThem) {
  World w;
  w.state.format_version = 7;
  w.must(CreateApiToken{w.alice, hash_no(1), "ci", {}, 24h});
  EXPECT_EQ(w.state.format_version, 7u) << "tokens need none";
  w.must(CreateApiToken{w.alice, hash_no(3), "cli", {}, 24h, hash_no(2)});
  EXPECT_EQ(w.state.format_version, kAccessFormat);
}

}  // namespace
}  // namespace muster::control
