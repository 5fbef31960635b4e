#include "host/owner_network.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "host/limits.h"
#include "host/policy.h"

namespace muster::host {
namespace {

std::string fault(const std::string& text) {
  const auto read = parse_own_endpoint(text);
  return read.ok() ? std::string() : read.error().message;
}

TEST(OwnerNetwork, AnEndpointIsAnAddressThatOthersReach) {
  for (const std::string text : {"203.0.113.7:41641", "10.1.2.3:2000", "[2001:db8::1]:41641", "[fd00::7]:1024"}) {
    const auto read = parse_own_endpoint(text);
    ASSERT_TRUE(read.ok()) << text << ": " << read.error().message;
    EXPECT_EQ(own_endpoint_text(*read), text);
  }
  for (const std::string text : {"", "203.0.113.7", "203.0.113.7:", "203.0.113.7:0", "203.0.113.7:65536", "host:7",
                                 "2001:db8::1:41641", "[203.0.113.7]:7", "[2001:db8::1]", "203.0.113.7:7x", ":7"})
    EXPECT_NE(fault(text).find("is written ADDRESS:PORT"), std::string::npos) << text << ": " << fault(text);
  EXPECT_NE(fault("100.64.1.2:7").find("a carrier's own network"), std::string::npos);
  for (const std::string text :
       {"127.0.0.1:7", "0.0.0.0:7", "169.254.1.1:7", "224.0.0.1:7", "255.255.255.255:7", "198.18.0.1:7", "[::1]:7",
        "[fe80::1]:7", "[ff02::1]:7", "[2002::1]:7", "[::ffff:1.2.3.4]:7"})
    EXPECT_NE(fault(text).find("is no address"), std::string::npos) << text << ": " << fault(text);
  EXPECT_NE(parse_own_endpoints({"203.0.113.7:1", "203.0.113.7:1"}).error().message.find("twice"), std::string::npos);
  EXPECT_TRUE(parse_own_endpoints({"203.0.113.7:1", "[2607::1]:1", "203.0.113.7:2", "[2607::1]:2"}).ok());
  EXPECT_NE(parse_own_endpoints({"203.0.113.7:1", "203.0.113.7:2", "203.0.113.7:3"}).error().message.find("too many"),
            std::string::npos);
}

TEST(OwnerNetwork, WhoForwardsAPortListensOnTheSame) {
  Policy policy;
  EXPECT_EQ(owner_network(policy), OwnerNetwork{});
  EXPECT_TRUE(owner_network(policy).port_mapping) << "nothing needs to be configured";
  ASSERT_TRUE(set_limit(policy, "endpoint", "203.0.113.7:41641").ok());
  EXPECT_EQ(owner_network(policy).udp_port, 41641);
  ASSERT_TRUE(set_limit(policy, "udp-port", "5000").ok());
  EXPECT_EQ(owner_network(policy).udp_port, 5000);
  EXPECT_EQ(owner_network(policy).endpoints.at(0).port, 41641);
  ASSERT_TRUE(set_limit(policy, "udp-port", "any").ok());
  const Status low = set_limit(policy, "endpoint", "203.0.113.7:443");
  ASSERT_FALSE(low.ok());
  EXPECT_NE(low.error().message.find("limits set udp-port 41641 endpoint 203.0.113.7:443"), std::string::npos)
      << low.error().message;
  ASSERT_TRUE(set_limit(policy, "udp-port", "5000").ok());
  EXPECT_TRUE(set_limit(policy, "endpoint", "203.0.113.7:443").ok());
  EXPECT_FALSE(parse_policy(R"({"endpoints":["127.0.0.1:7"]})").ok());
}

TEST(OwnerNetwork, IsReadAsItWasWrittenAndHidesWhenDamaged) {
  Policy policy;
  policy.relay_only = true;
  policy.port_mapping = false;
  policy.endpoints = {"203.0.113.7:41641", "[2001:db8::1]:41641"};
  const OwnerNetwork network = owner_network(policy);
  const auto back = parse_owner_network(owner_network_text(network));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(*back, network);
  EXPECT_TRUE(parse_owner_network("of-a-newer-version 7\nrelay-only 1\n")->relay_only);
  const std::string path = "/tmp/muster_owner_network_" + std::to_string(::getpid());
  OwnerNetworkFile file(path);
  EXPECT_FALSE(file.refresh());
  EXPECT_EQ(file.now(), OwnerNetwork{}) << "there is none: nothing was ever said";
  for (const std::string text : {"relay-only 2\n", "udp-port many\n", "endpoint 127.0.0.1:7\n", "port-mapping\n"}) {
    std::ofstream(path) << text;
    const OwnerNetwork read = read_owner_network(path);
    EXPECT_TRUE(read.relay_only) << text;
    EXPECT_FALSE(read.port_mapping) << text;
  }
  std::ofstream(path) << "relay-only 1\n";
  EXPECT_TRUE(file.refresh());
  EXPECT_TRUE(file.now().relay_only);
  EXPECT_FALSE(file.refresh()) << "nothing new";
  ::unlink(path.c_str());
}

}  // namespace
}  // namespace muster::host
