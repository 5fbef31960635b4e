#include "wire/agent_frames.h"

#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"
#include "wire/random_frames.h"

namespace muster::wire {
namespace {

using namespace session;

TEST(AgentFrames, RoundTripsEveryKind) {
  Gen gen{Rng(1)};
  std::set<std::size_t> server_kinds, agent_kinds;
  for (int i = 0; i < 2000; ++i) {
    const ServerFrame server = gen.server();
    server_kinds.insert(server.index());
    auto s = decode_server_frame(encode(server));
    ASSERT_TRUE(s.ok()) << s.error().message;
    ASSERT_TRUE(*s == server) << "kind " << server.index();
    const AgentFrame agent = gen.agent();
    agent_kinds.insert(agent.index());
    auto a = decode_agent_frame(encode(agent));
    ASSERT_TRUE(a.ok()) << a.error().message;
    ASSERT_TRUE(*a == agent) << "kind " << agent.index();
  }
  EXPECT_EQ(server_kinds.size(), std::variant_size_v<AnyServerFrame>);
  EXPECT_EQ(agent_kinds.size(), std::variant_size_v<AnyAgentFrame>);
}

TEST(AgentFrames, SurvivesTruncationAndNoise) {
  Gen gen{Rng(2)};
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    Bytes bytes = gen.rng.chance(1, 2) ? encode(gen.server()) : encode(gen.agent());
    switch (gen.rng.below(3)) {
      case 0:
        bytes.resize(gen.rng.below(bytes.size() + 1));
        break;
      case 1:
        bytes = gen.bytes(400);
        break;
      default:
        for (int flips = 0; flips < 4 && !bytes.empty(); ++flips)
          bytes[gen.rng.below(bytes.size())] ^= static_cast<std::uint8_t>(gen.rng.next());
    }
    refused += !decode_server_frame(bytes).ok();
    refused += !decode_agent_frame(bytes).ok();
  }
  EXPECT_GT(refused, 1000);
}

TEST(AgentFrames, UnknownKindIsUnsupported) {
  const Bytes unknown = {0xa2, 0x06, 0x00};  // field 100, an empty message
  EXPECT_EQ(decode_server_frame(unknown).error().code, Code::Unsupported);
  EXPECT_EQ(decode_agent_frame(unknown).error().code, Code::Unsupported);
  EXPECT_EQ(decode_agent_frame(Bytes{}).error().code, Code::Unsupported);
}

TEST(AgentFrames, RefusesBrokenBounds) {
  auto refusal = [](const AgentFrame& frame) {
    auto result = decode_agent_frame(encode(frame));
    return result.ok() ? Code::Internal : result.error().code;
  };
  EXPECT_EQ(refusal(LogChunk{{1}, 1, 0, Bytes(kChunkBytesMax + 1)}), Code::InvalidArgument);
  EXPECT_EQ(refusal(Heartbeat{1, std::vector<LeaseId>(1025)}), Code::InvalidArgument);
  ObservedLease lease;
  lease.phase = static_cast<LeasePhase>(9);
  EXPECT_EQ(refusal(Observed{1, {lease}, {}}), Code::InvalidArgument);
  Inventory inventory;
  inventory.facts.capacity.cpu_milli = -1;
  EXPECT_EQ(refusal(inventory), Code::InvalidArgument);
  NetReport report;
  report.pairs.resize(kNetPairsMax);
  report.pairs[0].tries.resize(kNetTriesMax);
  EXPECT_EQ(refusal(report), Code::Internal) << "that much is taken";
  report.seen = {{0, 1, Bytes(15)}};
  EXPECT_EQ(refusal(report), Code::InvalidArgument) << "no address";
  report.seen.clear();
  report.pairs[0].tries.resize(kNetTriesMax + 1);
  EXPECT_EQ(refusal(report), Code::InvalidArgument);
  report.pairs.assign(kNetPairsMax + 1, {});
  EXPECT_EQ(refusal(report), Code::InvalidArgument);
  report.version = kNetReportVersion + 1;
  EXPECT_EQ(refusal(report), Code::Internal) << "of another version nothing is read, so nothing is wrong with it";
  EXPECT_EQ(decode_agent_frame(Bytes(kFrameBytesMax + 1)).error().code, Code::TooLarge);
  Assignment assignment;
  assignment.prefix_bits = 33;
  EXPECT_EQ(decode_server_frame(encode(ServerFrame{Desired{1, 1, {assignment}, {}, {}, {}}})).error().field,
            "assignment.prefix_bits");
}

TEST(AgentFrames, BadUtf8IsReplacedNotLost) {
  auto result = decode_agent_frame(encode(AgentFrame{Goodbye{"a\xff\xc3\xbc\xe2\x82", false}}));
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(std::get<Goodbye>(*result).reason, "a?\xc3\xbc??");
}

TEST(AgentFrames, SigningBytesAreStableAndCoverEverything) {
  Gen gen{Rng(3)};
  for (int i = 0; i < 200; ++i) {
    Desired desired = gen.desired();
    const Bytes before = desired_signing_bytes({7}, desired);
    desired.signature = gen.bytes(64);
    desired.signature_key = gen.bytes(8);
    EXPECT_EQ(desired_signing_bytes({7}, desired), before) << "the signature is not signed";
    const auto decoded = decode_server_frame(encode(ServerFrame{desired}));
    ASSERT_TRUE(decoded.ok());
    EXPECT_EQ(desired_signing_bytes({7}, std::get<Desired>(*decoded)), before);
    EXPECT_NE(desired_signing_bytes({8}, desired), before);
    Desired other = desired;
    ++other.revision;
    EXPECT_NE(desired_signing_bytes({7}, other), before);
    other = desired;
    other.assignments.push_back(gen.assignment());
    EXPECT_NE(desired_signing_bytes({7}, other), before);
    other = desired;
    other.secrets.push_back({{1}, gen.bytes(), {}, {}});
    EXPECT_NE(desired_signing_bytes({7}, other), before);
    other = desired;
    for (auto& roster : other.rosters) roster.machines = gen.bytes(80), roster.keys = {gen.bytes(8)};
    EXPECT_EQ(desired_signing_bytes({7}, other), before) << "proofs speak for themselves; old agents drop them";
    for (auto& secrets : other.secrets) secrets.relays.push_back({gen.text(), gen.text(), gen.bytes()});
    EXPECT_EQ(desired_signing_bytes({7}, other), before) << "so do tokens";
  }
}

}  // namespace
}  // namespace muster::wire
