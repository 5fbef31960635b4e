#include "egress/dns.h"

#include <algorithm>
#include <array>

namespace muster::egress {
namespace {

constexpr std::size_t kHeader = 12, kNameMax = 255, kLabelMax = 63;
constexpr std::uint16_t kTypeOpt = 41, kClassIn = 1, kExtendedError = 15, kBlocked = 15;
constexpr int kRecordsMax = 512, kJumpsMax = 32;

std::uint16_t be16(ByteView data, std::size_t at) {
  return static_cast<std::uint16_t>(data[at] << 8 | data[at + 1]);
}
void put16(Bytes& out, std::size_t value) {
  out.push_back(static_cast<std::uint8_t>(value >> 8));
  out.push_back(static_cast<std::uint8_t>(value));
}
void set16(Bytes& out, std::size_t at, std::size_t value) {
  out[at] = static_cast<std::uint8_t>(value >> 8);
  out[at + 1] = static_cast<std::uint8_t>(value);
}

Error malformed() {
  return error(Code::InvalidArgument, "a malformed DNS message");
}

char lower(std::uint8_t c) {
  return static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c);
}

struct Name {
  std::string text;
  std::size_t end = 0;  // after it in the message
  bool compressed = false;
};

// Pointers may only lead backwards, each further back than the last, so no chain of them is endless.
Result<Name> read_name(ByteView message, std::size_t at) {
  Name name;
  std::size_t limit = message.size();
  int jumps = 0;
  while (true) {
    if (at >= limit) return malformed();
    const std::size_t length = message[at];
    if (length == 0) {
      if (!name.compressed) name.end = at + 1;
      return name;
    }
    if (length >= 0xc0) {
      if (at + 2 > limit || ++jumps > kJumpsMax) return malformed();
      const std::size_t target = be16(message, at) & 0x3fffU;
      if (!name.compressed) name.end = at + 2;
      name.compressed = true;
      if (target >= at || target < kHeader) return malformed();
      limit = at;
      at = target;
      continue;
    }
    if (length > kLabelMax || at + 1 + length > limit) return malformed();
    if (!name.text.empty()) name.text.push_back('.');
    for (std::size_t i = 0; i < length; ++i) name.text.push_back(lower(message[at + 1 + i]));
    if (name.text.size() + 2 > kNameMax) return malformed();
    at += 1 + length;
  }
}

struct Record {
  std::uint16_t type = 0, klass = 0;
  std::uint32_t ttl = 0;
  ByteView data;
  std::size_t end = 0;
};

Result<Record> read_record(ByteView message, std::size_t at) {
  const Name name = TRY(read_name(message, at));
  at = name.end;
  if (at + 10 > message.size()) return malformed();
  Record record;
  record.type = be16(message, at);
  record.klass = be16(message, at + 2);
  record.ttl = static_cast<std::uint32_t>(be16(message, at + 4)) << 16 | be16(message, at + 6);
  const std::size_t length = be16(message, at + 8);
  if (at + 10 + length > message.size()) return malformed();
  record.data = message.subspan(at + 10, length);
  record.end = at + 10 + length;
  return record;
}

bool ends_with_label(std::string_view name, std::string_view tail) {
  return name == tail ||
         (name.size() > tail.size() && name.ends_with(tail) && name[name.size() - tail.size() - 1] == '.');
}

// Special-use and customary names of private networks (RFC 6761, 6762, 8375, 9476; ICANN's private use TLD).
bool local_name(std::string_view name) {
  static constexpr std::array<std::string_view, 14> kTails = {
      "local", "localhost", "localdomain", "home.arpa", "internal", "lan", "home",
      "corp",  "intranet",  "private",     "invalid",   "onion",    "alt", "fritz.box"};
  if (name.find('.') == std::string_view::npos) return true;  // also the root: nothing to learn there
  return std::any_of(kTails.begin(), kTails.end(), [&](std::string_view tail) { return ends_with_label(name, tail); });
}

int hex_digit(char c) {
  return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The address that a name of in-addr.arpa or ip6.arpa asks for; partial ones are completed with zeros.
std::optional<Ip> reverse_address(std::string_view name) {
  std::vector<std::string_view> labels;
  for (std::size_t at = 0; at <= name.size();) {
    const auto end = std::min(name.find('.', at), name.size());
    labels.push_back(name.substr(at, end - at));
    at = end + 1;
  }
  const bool six = ends_with_label(name, "ip6.arpa");
  if (!six && !ends_with_label(name, "in-addr.arpa")) return {};
  labels.resize(labels.size() - 2);
  std::reverse(labels.begin(), labels.end());
  Ip ip;
  ip.six = six;
  if (labels.size() > (six ? 32U : 4U)) return {};
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (six) {
      const int digit = labels[i].size() == 1 ? hex_digit(labels[i][0]) : -1;
      if (digit < 0) return {};
      ip.bytes[i / 2] |= static_cast<std::uint8_t>(i % 2 == 0 ? digit << 4 : digit);
      continue;
    }
    int octet = 0;
    for (const char c : labels[i]) octet = c >= '0' && c <= '9' && octet < 256 ? octet * 10 + (c - '0') : 1000;
    if (labels[i].empty() || octet > 255) return {};
    ip.bytes[i] = static_cast<std::uint8_t>(octet);
  }
  return ip;
}

bool reverse_name(std::string_view name) {
  return ends_with_label(name, "in-addr.arpa") || ends_with_label(name, "ip6.arpa");
}

// Transfers, ANY, and types that mean something only between servers.
bool unwanted_type(std::uint16_t type) {
  return type == 0 || type == kTypeOpt || (type >= 249 && type <= 255);
}

// Header and question, ready for a forward or an answer of ours.
Bytes begin(ByteView message, const DnsQuery& query) {
  Bytes out(message.begin(), message.begin() + static_cast<std::ptrdiff_t>(query.question_end));
  set16(out, 4, 1);
  for (const std::size_t at : {std::size_t{6}, std::size_t{8}, std::size_t{10}}) set16(out, at, 0);
  return out;
}

void append_opt(Bytes& out, bool dnssec, std::string_view why) {
  out.push_back(0);
  put16(out, kTypeOpt);
  put16(out, kDnsUdpMax);
  put16(out, 0);
  put16(out, dnssec ? 0x8000U : 0U);
  why = why.substr(0, 200);
  put16(out, why.empty() ? 0 : 6 + why.size());
  if (!why.empty()) {
    put16(out, kExtendedError);
    put16(out, 2 + why.size());
    put16(out, kBlocked);
    out.insert(out.end(), why.begin(), why.end());
  }
  set16(out, 10, 1);
}

}  // namespace

Result<DnsQuery> parse_query(ByteView message) {
  if (message.size() < kHeader || message.size() > kDnsMessageMax) return malformed();
  const std::uint16_t flags = be16(message, 2);
  if ((flags & 0x8000U) != 0) return malformed();
  if ((flags & 0x7800U) != 0) return error(Code::Unsupported, "only standard queries are forwarded");
  if (be16(message, 4) != 1 || be16(message, 6) != 0 || be16(message, 8) != 0 || be16(message, 10) > 2)
    return malformed();
  const Name name = TRY(read_name(message, kHeader));
  if (name.compressed || name.end + 4 > message.size()) return malformed();
  DnsQuery query;
  query.id = be16(message, 0);
  query.name = name.text;
  query.type = be16(message, name.end);
  query.klass = be16(message, name.end + 2);
  query.question_end = name.end + 4;
  query.recursion = (flags & 0x0100U) != 0;
  query.checking_disabled = (flags & 0x0010U) != 0;
  std::size_t at = query.question_end;
  for (int i = 0; i < be16(message, 10); ++i) {
    const Record record = TRY(read_record(message, at));
    at = record.end;
    if (record.type != kTypeOpt) continue;
    query.edns = true;
    query.dnssec = (record.ttl & 0x8000U) != 0;
    query.udp_max = std::clamp<std::size_t>(record.klass, 512, kDnsUdpMax);
  }
  if (query.klass != kClassIn) return error(Code::Unsupported, "only the internet's class is forwarded");
  return query;
}

std::string_view question_refusal(const Rules& rules, const DnsQuery& query) {
  if (unwanted_type(query.type)) return "type";
  if (reverse_name(query.name)) {
    const auto ip = reverse_address(query.name);
    return ip ? address_refusal(rules, *ip) : std::string_view("local_name");
  }
  return local_name(query.name) ? std::string_view("local_name") : std::string_view();
}

Bytes make_forward(ByteView message, const DnsQuery& query, std::uint16_t id) {
  Bytes out = begin(message, query);
  set16(out, 0, id);
  set16(out, 2, 0x0100U | (query.checking_disabled ? 0x0010U : 0U));
  append_opt(out, query.dnssec, {});
  return out;
}

Result<DnsAnswer> check_answer(ByteView answer, const DnsQuery& query, std::uint16_t id, const Rules& rules) {
  if (answer.size() < kHeader || answer.size() > kDnsMessageMax || be16(answer, 0) != id) return malformed();
  const std::uint16_t flags = be16(answer, 2);
  if ((flags & 0x8000U) == 0 || (flags & 0x7800U) != 0 || be16(answer, 4) != 1) return malformed();
  const Name name = TRY(read_name(answer, kHeader));
  if (name.compressed || name.end + 4 > answer.size() || name.text != query.name ||
      be16(answer, name.end) != query.type || be16(answer, name.end + 2) != query.klass)
    return malformed();
  DnsAnswer out;
  out.truncated = (flags & 0x0200U) != 0;
  const int records = be16(answer, 6) + be16(answer, 8) + be16(answer, 10);
  if (records > kRecordsMax) return malformed();
  std::size_t at = name.end + 4;
  for (int i = 0; i < records; ++i) {
    if (out.truncated && at >= answer.size()) break;  // cut where it was full
    const Record record = TRY(read_record(answer, at));
    at = record.end;
    const bool address =
        (record.type == kTypeA && record.data.size() == 4) || (record.type == kTypeAaaa && record.data.size() == 16);
    if (!address && (record.type == kTypeA || record.type == kTypeAaaa)) return malformed();
    if (address && out.refused.empty()) out.refused = address_refusal(rules, Ip::from_bytes(record.data));
  }
  return out;
}

Bytes relay_answer(ByteView answer, const DnsQuery& query, std::size_t max) {
  Bytes out(answer.begin(), answer.end());
  if (out.size() > max) {
    out = begin(answer, query);
    set16(out, 2, be16(answer, 2) | 0x0200U);
    if (query.edns) append_opt(out, query.dnssec, {});
  }
  set16(out, 0, query.id);
  return out;
}

Bytes make_answer(ByteView message, const DnsQuery& query, Rcode rcode, std::string_view why) {
  Bytes out = begin(message, query);
  set16(out, 2, 0x8080U | (query.recursion ? 0x0100U : 0U) | static_cast<std::uint16_t>(rcode));
  if (query.edns) append_opt(out, query.dnssec, why);
  return out;
}

std::optional<Bytes> make_error(ByteView message, Rcode rcode) {
  if (message.size() < kHeader || (message[2] & 0x80) != 0) return {};
  Bytes out(kHeader);
  out[0] = message[0], out[1] = message[1];
  const unsigned kept = (static_cast<unsigned>(message[2]) << 8) & 0x7900U;  // opcode and recursion desired
  set16(out, 2, 0x8080U | kept | static_cast<std::uint16_t>(rcode));
  return out;
}

}  // namespace muster::egress
