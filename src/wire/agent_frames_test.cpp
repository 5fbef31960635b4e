#include "wire/agent_frames.h"

#include <gtest/gtest.h>

#include <set>

#include "base/rng.h"

namespace muster::wire {
namespace {

using namespace session;

// Random values of every field, within the bounds of the wire.
struct Gen {
  Rng rng;
  std::string text(std::size_t max = 12) {
    std::string out;
    for (std::uint64_t n = rng.below(max); n > 0; --n) out.push_back(static_cast<char>('a' + rng.below(26)));
    return rng.chance(1, 5) ? out + "ü€" : out;
  }
  Bytes bytes(std::size_t max = 32) {
    Bytes out(rng.below(max + 1));
    for (auto& b : out) b = static_cast<std::uint8_t>(rng.next());
    return out;
  }
  std::uint64_t u64() { return rng.chance(1, 4) ? 0 : rng.next(); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(u64()); }
  std::uint16_t u16() { return static_cast<std::uint16_t>(u64()); }
  bool flag() { return rng.chance(1, 2); }
  std::int64_t amount() { return rng.between(0, std::int64_t{1} << 50); }
  std::vector<std::string> texts() {
    std::vector<std::string> out(rng.below(4));
    for (auto& t : out) t = text();
    return out;
  }
  std::map<std::string, std::string> map() {
    std::map<std::string, std::string> out;
    for (std::uint64_t n = rng.below(5); n > 0; --n) out[text()] = text(40);
    return out;
  }
  template <typename F>
  auto list(F f) {
    std::vector<decltype(f())> out;
    for (std::uint64_t n = rng.below(4); n > 0; --n) out.push_back(f());
    return out;
  }
  Epoch epoch() { return {u64(), u64(), u64()}; }
  Resources resources() {
    Resources r{amount(), amount(), amount(), amount(), amount(), {}};
    for (std::uint64_t n = rng.below(3); n > 0; --n) r.custom_milli[text()] = amount();
    return r;
  }
  template <typename E>
  E choice(E low, E high) {
    return static_cast<E>(rng.between(static_cast<int>(low), static_cast<int>(high)));
  }
  LeaseId lease() { return {u64()}; }
  JobId job() { return {u64()}; }
  Assignment assignment() {
    Assignment a{lease(),
                 epoch(),
                 {u64()},
                 {u64()},
                 choice(SlotRole::Head, SlotRole::Spare),
                 choice(LeaseWant::Run, LeaseWant::Stop),
                 text(),
                 text(),
                 text(),
                 choice(RuntimeKind::Docker, RuntimeKind::Venv),
                 resources(),
                 texts(),
                 u32(),
                 u32(),
                 static_cast<std::uint8_t>(rng.below(33)),
                 u64(),
                 {},
                 texts(),
                 map(),
                 map(),
                 {},
                 flag(),
                 amount(),
                 amount(),
                 {},
                 texts()};
    a.roster = list([&] {
      return RosterEntry{
          {u64()}, choice(SlotRole::Head, SlotRole::Spare), u32(), {u64()}, bytes(), bytes(64), bytes(), epoch(),
          texts()};
    });
    a.files = list([&] { return FileMount{text(), text()}; });
    a.jobs = list([&] { return JobOrder{job(), u32(), text(), text(), text(), flag(), map(), text()}; });
    return a;
  }
  ObservedLease observed_lease() {
    return {lease(), epoch(), choice(LeasePhase::Pending, LeasePhase::Failed), text(), bytes(),
            bytes(), u64(),   {text(), text(), text(), flag(), flag()},        u32(),  text(),
            text()};
  }
  ObservedJob observed_job() {
    return {job(), u32(), choice(JobState::Queued, JobState::Stopped), static_cast<std::int32_t>(u32()), text(), u64()};
  }
  NodeFacts facts() {
    return {text(),
            text(),
            text(),
            text(),
            text(),
            text(),
            text(),
            resources(),
            list([&] {
              return Device{text(), text(), amount()};
            }),
            list([&] { return choice(RuntimeKind::Docker, RuntimeKind::Venv); }),
            texts(),
            texts(),
            flag(),
            map()};
  }
  Desired desired() {
    return {u64(),
            u64(),
            list([&] { return assignment(); }),
            list([&] { return LeaseSecrets{lease(), bytes(), bytes(200), bytes(), text(), bytes()}; }),
            list([&] {
              return SignedRoster{{u64()}, bytes(300), list([&] { return bytes(64); }), bytes(80)};
            }),
            bytes(64)};
  }
  StreamData data() { return {u64(), static_cast<std::uint8_t>(rng.below(256)), bytes(2000)}; }
  StreamClose close() { return {u64(), static_cast<std::int32_t>(u32()), text()}; }
  ServerFrame server() {
    switch (rng.below(15)) {
      case 0:
        return Challenge{bytes(), text(), u32(), u32()};
      case 1:
        return Welcome{
            {u64()}, u64(),  Millis(amount() >> 20), Millis(amount() >> 20), {amount() >> 8}, u64(), bytes(), texts(),
            flag(),  texts()};
      case 2:
        return Refused{text(), text(), Millis(amount() >> 20)};
      case 3:
        return desired();
      case 4:
        return Renewed{u64(), list([&] { return lease(); }), Millis(5)};
      case 5:
        return LogAck{job(), u32(), u64()};
      case 6:
        return BlobChunk{text(), u64(), bytes(3000), flag(), text()};
      case 7:
        return Watch{flag()};
      case 8:
        return CertIssued{bytes(900)};
      case 9:
        return StreamOpen{u64(),   lease(), choice(StreamKind::Exec, StreamKind::WriteFile),
                          texts(), flag(),  u16(),
                          u16(),   u16(),   text()};
      case 10:
        return data();
      case 11:
        return StreamWindow{u64(), u32()};
      case 12:
        return StreamResize{u64(), u16(), u16()};
      case 13:
        return StreamEof{u64()};
      default:
        return close();
    }
  }
  NetPlace place() { return {u32(), u16()}; }
  NetReport net() {
    NetReport out{kNetReportVersion, lease(), flag(), text(), u16(), {}, u32(), {}};
    for (std::uint64_t i = rng.below(kNetSeenMax + 1); i > 0; --i) out.seen.push_back(place());
    out.pairs = list([&] {
      NetPair pair{u32(),   choice(NetPath::None, NetPath::Direct),
                   place(), u32(),
                   u32(),   u32(),
                   u32(),   u32(),
                   u64(),   u64(),
                   u64(),   u64(),
                   {}};
      pair.tries = list(
          [&] { return NetTry{place(), choice(NetOrigin::Roster, NetOrigin::Heard), u32(), u32(), flag(), u32()}; });
      pair.rx_bytes_s = u64();
      pair.tx_bytes_s = u64();
      pair.carries_bytes_s = u64();
      pair.carries_age_ms = u64();
      return pair;
    });
    return out;
  }
  AgentFrame agent() {
    switch (rng.below(18)) {
      case 0:
        return Hello{u32(), text(), bytes(64), text(), text(), bytes(), u64(), u64(), texts(), Millis(u32())};
      case 1:
        return Inventory{facts(), list([&] { return observed_lease(); }), list([&] { return observed_job(); })};
      case 2:
        return Observed{u64(), list([&] { return observed_lease(); }), list([&] { return observed_job(); })};
      case 3:
        return Heartbeat{u64(), list([&] { return lease(); }), u64(), u64()};
      case 4:
        return LogChunk{job(), u32(), u64(), bytes(3000)};
      case 5:
        return RayReportFrame{
            {{u64()},
             lease(),
             list([&] { return RayNodeReport{text(), u32(), flag(), Millis(7), resources(), resources()}; }),
             list([&] {
               return RayDemand{resources(), u32(), flag(), u32(), flag()};
             })}};
      case 6:
        return BlobRequest{text(), u64()};
      case 7:
        return CertRequest{bytes(900)};
      case 8:
        return Telemetry{{amount() >> 8},
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         list([&] {
                           return GpuSample{text(), u32(), u32(), u32(), u64(), u64(), u32(),
                                            u32(),  u32(), u64(), u64(), u32(), u32()};
                         }),
                         list([&] { return ContainerSample{lease(), u64(), u64(), u64(), u64(), u64(), u64()}; }),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         Millis(amount() >> 8),
                         text()};
      case 9:
        return Goodbye{text(), flag()};
      case 10:
        return OwnerPause{flag(), flag(), text()};
      case 11:
        return data();
      case 12:
        return StreamWindow{u64(), u32()};
      case 13:
        return StreamEof{u64()};
      case 14:
        return PullReport{lease(), u64(), u64()};
      case 15:
        return LockOffer{lease(), bytes(5000)};
      case 16:
        return net();
      default:
        return close();
    }
  }
};

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
  EXPECT_EQ(server_kinds.size(), std::variant_size_v<ServerFrame>);
  EXPECT_EQ(agent_kinds.size(), std::variant_size_v<AgentFrame>);
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
    for (auto& roster : other.rosters) roster.machines = gen.bytes(80);
    EXPECT_EQ(desired_signing_bytes({7}, other), before) << "proofs speak for themselves; old agents drop them";
  }
}

}  // namespace
}  // namespace muster::wire
