#pragma once
// How a member asks for the relay's protocol in HTTP/1.1 (RFC 9110 7.8), inside TLS, where ALPN could not say so:
//   GET /relay/v1 HTTP/1.1 + Host, Connection: Upgrade, Upgrade: muster-relay/1   ->   101 Switching Protocols
// Everything behind the blank lines is the protocol of overlay/relay_protocol.h. Pure; hostile input. Values, for one
// thread.
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"

namespace muster::relay {

inline constexpr std::string_view kUpgradePath = "/relay/v1";
inline constexpr std::size_t kUpgradeHeadMax = 4'096;  // of either head, its blank line included

// The first lines of a connection, as they come.
class HeadReader {
 public:
  enum class State : std::uint8_t { NeedMore, Whole, TooLong };
  // Takes bytes up to the blank line, and says how many: what is behind them is not the head's.
  State feed(ByteView data, std::size_t& taken);
  std::string_view head() const { return head_; }

 private:
  std::string head_;
};

std::string upgrade_request(std::string_view host);  // host: for the header; anything but printable ASCII is left out
// 101, or what is wrong with it: 400 (not such a request, or one with a body), 404 (another path), 405 (another
// method), 426 (no wish for this protocol).
int judge_upgrade(std::string_view head);
std::string upgrade_answer(int status);  // one of these, and 431 for TooLong
// Whether the answer switches to our protocol; else its status, for people ("404").
std::optional<std::string> upgrade_refusal(std::string_view head);

}  // namespace muster::relay
