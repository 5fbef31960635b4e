#pragma once
// The DNS messages that pass between a lease and the machine's resolvers (RFC 1035, 6891, 8914), without sockets. Only
// plain questions go out, under an id of ours and without the asker's options; answers must fit the question, and one
// that names a place that is not public is refused whole (DNS rebinding). Everything read is a stranger's: nothing here
// trusts a length or follows a pointer forward. Pure functions.
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"
#include "egress/rules.h"

namespace muster::egress {

inline constexpr std::size_t kDnsUdpMax = 1232;        // what we offer and ask for over UDP
inline constexpr std::size_t kDnsMessageMax = 65'535;  // over TCP
inline constexpr std::uint16_t kTypeA = 1, kTypeAaaa = 28, kTypePtr = 12;

enum class Rcode : std::uint8_t { NoError = 0, FormErr = 1, ServFail = 2, NotImp = 4, Refused = 5 };

struct DnsQuery {
  std::uint16_t id = 0;
  std::string name;  // lower case, labels joined by dots, no dot at the end; bytes outside a-z0-9-_ as they came
  std::uint16_t type = 0, klass = 0;
  std::size_t question_end = 0;  // offset in the message
  bool recursion = true, checking_disabled = false, edns = false, dnssec = false;
  std::size_t udp_max = 512;  // the largest answer the asker takes over UDP
};

Result<DnsQuery> parse_query(ByteView message);  // InvalidArgument, Unsupported
// A stable code ("local_name", "private", "type") or empty. Names that only a home network knows are not asked there.
std::string_view question_refusal(const Rules& rules, const DnsQuery& query);
Bytes make_forward(ByteView message, const DnsQuery& query, std::uint16_t id);

struct DnsAnswer {
  bool truncated = false;
  std::string_view refused;  // a stable code: what the answer points at
};
Result<DnsAnswer> check_answer(ByteView answer, const DnsQuery& query, std::uint16_t id, const Rules& rules);

// For the asker: the answer under its own id, cut to a truncated one where it is larger than `max`.
Bytes relay_answer(ByteView answer, const DnsQuery& query, std::size_t max);
// An answer of ours; `why` travels as an extended error where the asker speaks EDNS.
Bytes make_answer(ByteView message, const DnsQuery& query, Rcode rcode, std::string_view why = {});
// For messages that are no query: the header turned round, or nothing where not even that can be read.
std::optional<Bytes> make_error(ByteView message, Rcode rcode);

}  // namespace muster::egress
