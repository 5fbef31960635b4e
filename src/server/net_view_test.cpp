#include "server/net_view.h"

#include <gtest/gtest.h>

namespace muster::server {
namespace {

NetFacts facts_of(bool relay_only = false, bool in_tunnel = false) {
  NetFacts facts;
  facts.report.relay_up = true;
  if (!relay_only && !in_tunnel) facts.report.seen = {{0x5db8d822, 7000}};
  facts.report.relay_only = relay_only;
  facts.report.in_tunnel = in_tunnel;
  return facts;
}
session::NetPair relayed(std::vector<session::NetTry> tries = {}) {
  session::NetPair pair;
  pair.path = session::NetPath::Relay;
  pair.tries = std::move(tries);
  return pair;
}
const session::NetTry kSilent{{0x5db8d823, 7000}, session::NetOrigin::Told, 9, 0, false, 0};

bool says(const std::string& why, std::string_view words) {
  return why.find(words) != std::string::npos;
}

TEST(NetView, SaysWhoHides) {
  const NetFacts open = facts_of(), hides = facts_of(true);
  EXPECT_TRUE(says(why_path(relayed(), hides, &open), "its owner hides this machine's address"));
  EXPECT_TRUE(says(why_path(relayed(), open, &hides), "the other machine's owner hides its address"));
  auto told = relayed();
  told.hidden = true;
  EXPECT_TRUE(says(why_path(told, open, nullptr), "the other machine's owner hides its address"))
      << "by itself, where its machine does not report";
  EXPECT_TRUE(says(why_path(relayed({kSilent}), open, &open), "none of 1 addresses answered 9 probes"));
}

TEST(NetView, SaysWhichWayLeadsThroughATunnel) {
  const NetFacts open = facts_of(), vpn = facts_of(false, true);
  session::NetTry astray = kSilent;
  astray.tunnel = true;
  EXPECT_TRUE(says(why_path(relayed({astray}), open, &open), "from this machine leads through another tunnel"));
  EXPECT_TRUE(says(why_path(relayed({astray, kSilent}), open, &open), "none of 2 addresses")) << "one was tried";
  EXPECT_TRUE(says(why_path(relayed(), vpn, &open), "from this machine leads through another tunnel"));
  EXPECT_TRUE(says(why_path(relayed(), open, &vpn), "from the other machine leads through another tunnel"));
  EXPECT_FALSE(says(why_path(relayed(), vpn, &open), "no UDP reaches")) << "its port is not what is wrong";
}

}  // namespace
}  // namespace muster::server
