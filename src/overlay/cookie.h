#pragma once
// Inside of Device: the two MACs of handshake messages (whitepaper 5.4.4) and the cookie door (5.4.7): above a rate of
// handshakes a sender must first show, by echoing a cookie, that it receives where it claims to be; then it is limited
// per source.
#include <unordered_map>

#include "overlay/session.h"

namespace muster::overlay {

Key32 mac1_key_of(const Key32& public_key);
Secret32 cookie_key_of(const Key32& public_key);

class CookieDoor {
 public:
  CookieDoor(const Key32& own_public_key, std::uint32_t handshakes_per_s);
  enum class Verdict : std::uint8_t { Accept, Drop, SendCookie };
  // message: a whole initiation or response.
  Verdict check(ByteView message, const Endpoint& from, LeaseTime now);
  // The reply to a message that got SendCookie.
  std::array<std::uint8_t, kCookieBytes> reply(ByteView message, const Endpoint& from, LeaseTime now);

 private:
  crypto::Tag16 cookie_for(const Endpoint& from, LeaseTime now);
  Key32 mac1_key_;
  Secret32 cookie_key_, secret_;
  LeaseTime secret_made_, window_start_, loaded_until_;
  bool have_secret_ = false;
  std::uint32_t limit_, in_window_ = 0;
  std::unordered_map<std::uint64_t, std::uint32_t> per_source_;  // cleared every second, bounded
};

}  // namespace muster::overlay
