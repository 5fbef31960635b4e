// DNS messages made by hand, and made hostile by chance.
#include "egress/dns.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace muster::egress {
namespace {

void put16(Bytes& out, unsigned value) {
  out.push_back(static_cast<std::uint8_t>(value >> 8));
  out.push_back(static_cast<std::uint8_t>(value));
}
void put_name(Bytes& out, std::string_view name) {
  for (std::size_t at = 0; at < name.size();) {
    const auto end = std::min(name.find('.', at), name.size());
    out.push_back(static_cast<std::uint8_t>(end - at));
    out.insert(out.end(), name.begin() + static_cast<long>(at), name.begin() + static_cast<long>(end));
    at = end + 1;
  }
  out.push_back(0);
}
Bytes question(std::string_view name, unsigned type = kTypeA, unsigned flags = 0x0100, bool edns = false) {
  Bytes out;
  for (const unsigned word : {0x1234U, flags, 1U, 0U, 0U, edns ? 1U : 0U}) put16(out, word);
  put_name(out, name);
  put16(out, type);
  put16(out, 1);
  if (edns) {
    out.push_back(0);
    for (const unsigned word : {41U, 4096U, 0U, 0x8000U, 0U}) put16(out, word);
  }
  return out;
}
Bytes answer(std::string_view name, std::initializer_list<std::string_view> addresses, unsigned type = kTypeA,
             unsigned id = 77) {
  Bytes out = question(name, type, 0x8180);
  out[0] = static_cast<std::uint8_t>(id >> 8), out[1] = static_cast<std::uint8_t>(id);
  out[7] = static_cast<std::uint8_t>(addresses.size());
  for (const auto& text : addresses) {
    const Ip ip = parse_ip(text).value();
    put16(out, 0xc00c);
    for (const unsigned word : {ip.six ? 28U : 1U, 1U, 0U, 60U, ip.six ? 16U : 4U}) put16(out, word);
    out.insert(out.end(), ip.bytes.begin(), ip.bytes.begin() + (ip.six ? 16 : 4));
  }
  return out;
}
DnsQuery parsed(ByteView message) {
  const auto query = parse_query(message);
  EXPECT_TRUE(query.ok());
  return query.ok() ? *query : DnsQuery{};
}

TEST(DnsQueries, PlainQuestionsAreReadAndForwardedClean) {
  const Bytes asked = question("Files.Example.COM", kTypeAaaa, 0x0130, true);
  const DnsQuery query = parsed(asked);
  EXPECT_EQ(query.name, "files.example.com");
  EXPECT_EQ(query.type, kTypeAaaa);
  EXPECT_EQ(query.udp_max, kDnsUdpMax) << "no more than we offer";
  EXPECT_TRUE(query.dnssec && query.edns && query.recursion && query.checking_disabled);
  const Bytes forward = make_forward(asked, query, 0xbeef);
  const DnsQuery again = parsed(forward);
  EXPECT_EQ(again.id, 0xbeef);
  EXPECT_EQ(again.name, query.name);
  EXPECT_TRUE(again.edns && again.dnssec);
  EXPECT_EQ(forward.size(), question("files.example.com").size() + 11) << "question and one empty OPT";
}

TEST(DnsQueries, NonsenseAndRareThingsAreRefused) {
  const auto code = [](const Bytes& message) {
    const auto query = parse_query(message);
    return query.ok() ? 0 : static_cast<int>(query.error().code);
  };
  const int bad = static_cast<int>(Code::InvalidArgument), unsupported = static_cast<int>(Code::Unsupported);
  EXPECT_EQ(code({}), bad);
  EXPECT_EQ(code(Bytes(11)), bad);
  EXPECT_EQ(code(question("a.b", 1, 0x8180)), bad) << "an answer";
  EXPECT_EQ(code(question("a.b", 1, 0x2800)), unsupported) << "an update";
  Bytes two = question("a.b");
  two[5] = 2;
  EXPECT_EQ(code(two), bad);
  Bytes chaos = question("a.b");
  chaos.back() = 3;
  EXPECT_EQ(code(chaos), unsupported);
  Bytes pointer = question("a.b");
  pointer[12] = 0xc0, pointer[13] = 0x0c;
  EXPECT_EQ(code(pointer), bad) << "a question that points at itself";
  EXPECT_EQ(code(question(std::string(64, 'a') + ".b")), bad);
  std::string longest;
  for (int i = 0; i < 130; ++i) longest += "a.";
  EXPECT_EQ(code(question(longest + "bb")), bad) << "a name over 255 bytes";
}

TEST(DnsQueries, NamesOfHomeNetworksAreNotAsked) {
  const Rules rules;
  const auto code = [&](std::string_view name, unsigned type = kTypeA) {
    return std::string(question_refusal(rules, parsed(question(name, type))));
  };
  for (const char* name : {"nas", "printer.local", "router.lan", "fritz.box", "x.fritz.box", "box.home.arpa",
                           "a.b.internal", "localhost", "x.localhost", "metadata.google.internal", "intra.corp"})
    EXPECT_EQ(code(name), "local_name") << name;
  for (const char* name : {"pypi.org", "mylocal.org", "local.org", "lan.example.com", "xn--bcher-kva.example.org"})
    EXPECT_EQ(code(name), "") << name;
  EXPECT_EQ(code("1.1.168.192.in-addr.arpa", kTypePtr), "private");
  EXPECT_EQ(code("168.192.in-addr.arpa", kTypePtr), "private");
  EXPECT_EQ(code("8.8.8.8.in-addr.arpa", kTypePtr), "");
  EXPECT_EQ(code("x.8.8.8.in-addr.arpa", kTypePtr), "local_name");
  EXPECT_EQ(code("1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.e.f.ip6.arpa", kTypePtr), "link_local");
  EXPECT_EQ(code("8.8.8.8.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.6.8.4.0.6.8.4.1.0.0.2.ip6.arpa", kTypePtr), "");
  for (const unsigned type : {0U, 41U, 250U, 251U, 252U, 255U}) EXPECT_EQ(code("pypi.org", type), "type") << type;
}

TEST(DnsAnswers, ThatPointInsideAreRefusedWhole) {
  Rules rules;
  rules.local = {parse_prefix("185.10.20.0/24").value()};
  const DnsQuery query = parsed(question("files.example.com"));
  const auto refused = [&](std::initializer_list<std::string_view> addresses) {
    const auto checked = check_answer(answer("files.example.com", addresses), query, 77, rules);
    EXPECT_TRUE(checked.ok());
    return checked.ok() ? std::string(checked->refused) : "malformed";
  };
  EXPECT_EQ(refused({"93.184.216.34"}), "");
  EXPECT_EQ(refused({"93.184.216.34", "192.168.1.1"}), "private") << "one bad address spoils the answer";
  EXPECT_EQ(refused({"169.254.169.254"}), "metadata");
  EXPECT_EQ(refused({"127.0.0.1"}), "loopback");
  EXPECT_EQ(refused({"::ffff:10.0.0.1"}), "mapped");
  EXPECT_EQ(refused({"185.10.20.5"}), "local_network");
  EXPECT_EQ(refused({}), "");
}

TEST(DnsAnswers, MustFitTheQuestion) {
  const Rules rules;
  const DnsQuery query = parsed(question("files.example.com"));
  const auto ok = [&](const Bytes& message, std::uint16_t id = 77) {
    return check_answer(message, query, id, rules).ok();
  };
  EXPECT_TRUE(ok(answer("FILES.example.com", {"93.184.216.34"})));
  EXPECT_FALSE(ok(answer("files.example.com", {"93.184.216.34"}), 78)) << "another id";
  EXPECT_FALSE(ok(answer("evil.example.com", {"93.184.216.34"}))) << "another name";
  EXPECT_FALSE(ok(answer("files.example.com", {"93.184.216.34"}, kTypeAaaa))) << "another type";
  EXPECT_FALSE(ok(question("files.example.com"))) << "no answer";
  Bytes cut = answer("files.example.com", {"93.184.216.34"});
  cut.pop_back();
  EXPECT_FALSE(ok(cut));
  Bytes odd = answer("files.example.com", {"93.184.216.34"});
  odd[odd.size() - 5] = 3, odd.pop_back();
  EXPECT_FALSE(ok(odd)) << "an address of three bytes";
  Bytes loop = answer("files.example.com", {"93.184.216.34"});
  loop[loop.size() - 15] = static_cast<std::uint8_t>(loop.size() - 16);
  EXPECT_FALSE(ok(loop)) << "a name that points at itself";
}

TEST(DnsAnswers, AreCutToWhatTheAskerTakes) {
  const Bytes asked = question("files.example.com");
  const DnsQuery query = parsed(asked);
  Bytes large = answer("files.example.com", {"93.184.216.34", "93.184.216.35"});
  EXPECT_EQ(relay_answer(large, query, 512).size(), large.size());
  const Bytes cut = relay_answer(large, query, 40);
  EXPECT_EQ(cut.size(), asked.size());
  EXPECT_EQ(cut[0] << 8 | cut[1], 0x1234);
  EXPECT_NE(cut[2] & 2, 0) << "truncated: ask again over TCP";
  const Bytes edns = question("files.example.com", kTypeA, 0x0100, true);
  const Bytes no = make_answer(edns, parsed(edns), Rcode::Refused, "private");
  EXPECT_EQ(no[3] & 15, 5);
  EXPECT_NE(as_string(no).find("private"), std::string::npos) << "an extended error says why";
  EXPECT_FALSE(make_error(Bytes(5), Rcode::FormErr).has_value());
  EXPECT_FALSE(make_error(large, Rcode::FormErr).has_value()) << "an answer is not answered";
  EXPECT_EQ(make_error(asked, Rcode::NotImp)->size(), 12U);
}

// Whatever comes: no crash and no read beyond the end (the sanitizers watch).
TEST(DnsAnswers, RandomDamageIsSurvived) {
  Rng rng(11);
  const Rules rules;
  const Bytes asked = question("files.example.com", kTypeA, 0x0100, true);
  const DnsQuery query = parsed(asked);
  int passed = 0;
  for (int i = 0; i < 15'000; ++i) {
    Bytes message =
        rng.chance(1, 3) ? asked : answer("files.example.com", {"93.184.216.34", "2606:4700::1111", "10.0.0.1"});
    const std::size_t changes = rng.below(5);
    for (std::size_t c = 0; c < changes && !message.empty(); ++c)
      message[rng.below(message.size())] = static_cast<std::uint8_t>(rng.chance(1, 2) ? rng.next() : 0xc0);
    if (rng.chance(1, 4)) message.resize(rng.below(message.size() + 1));
    if (rng.chance(1, 8)) message.resize(message.size() + rng.below(40));
    if (const auto read = parse_query(message); read.ok()) {
      EXPECT_LE(read->question_end, message.size());
      static_cast<void>(question_refusal(rules, *read));
      static_cast<void>(make_forward(message, *read, 1));
      static_cast<void>(make_answer(message, *read, Rcode::ServFail, "x"));
    }
    static_cast<void>(make_error(message, Rcode::FormErr));
    const auto checked = check_answer(message, query, 77, rules);
    if (!checked.ok() || !checked->refused.empty()) continue;
    ++passed;
    static_cast<void>(relay_answer(message, query, rng.below(200)));
  }
  EXPECT_GT(passed, 100) << "the damage is so great that nothing is tested";
}

}  // namespace
}  // namespace muster::egress
