// The bytes of every event type are a promise to every journal ever written.
#include "base/bytes.h"
#include "base/rng.h"
#include "control/control_world.h"

namespace muster::control {
namespace {

template <std::size_t... I>
std::vector<Event> one_of_each(std::index_sequence<I...>) {
  return {Event(std::in_place_index<I>)...};
}
constexpr std::string_view kSizes =
    "5 6 5 1 7 1 7 1 33 20 4 2 2 4 2 67 50 4 3 6 30 4 3 3 4 4 4 69 6 3 4 1 4 3 1 2 1 5 4 16 6 3 4 3 2 2 1 12 13 6 4 6 ";
std::vector<Event> all_events() {
  return one_of_each(std::make_index_sequence<std::variant_size_v<AnyEvent>>());
}

TEST(EventCodec, GoldenBytes) {
  const std::vector<std::pair<Event, std::string>> golden = {
      {OrgCreated{{OrgId{3}, "lab"}}, "010103036c6162000000"},
      {PrincipalDisabled{PrincipalId{300}}, "0401ac02"},
      {NodeStateChanged{NodeId{7}, NodeState::Lost, true, "x"}, "0b010705010178"},
      {BackoffSet{ClusterId{1}, NodeId{2}, 3, WallTime{4}}, "0e0101020308"},
      {ClusterStateChanged{ClusterId{5}, ClusterState::Failed, "", WallTime{-1}}, "120105060001"},
      {SlotLeft{SlotId{9}, "gone", 4}, "17010904676f6e6504"},
      {LeaseObserved{LeaseId{1}, LeasePhase::Ready, "", 2}, "1a0101050002"},
      {JobStateChanged{JobId{1}, JobState::Running, 1, -1, "", {}}, "1d01010301010000"},
      {TimerSet{TimerKind::Job, 8, WallTime{64}},
       "22010308"
       "8001"},
      {FormatRaised{1}, "250101"},
      {QuotaSet{OrgId{2}, ProjectId{3}, {4, 64'000, 1}},
       "2601020308"
       "80e807"
       "02"},
  };
  for (const auto& [event, bytes] : golden) EXPECT_EQ(hex(encode(event, 1)), bytes) << event_name(event);
}

// Every type in its empty form: the number, the version and the count of fields cannot change unseen.
TEST(EventCodec, GoldenSizesAndNamesOfEveryType) {
  std::string sizes, first;
  for (const Event& event : all_events()) {
    const Bytes bytes = encode(event, 1);
    EXPECT_EQ(bytes[0], event.index() + 1);
    EXPECT_EQ(bytes[1], 1);
    EXPECT_EQ(decode_event(bytes).value(), event);
    EXPECT_FALSE(event_name(event).empty());
    sizes += std::to_string(bytes.size() - 2) + " ";
  }
  EXPECT_EQ(sizes, kSizes);
}

TEST(EventCodec, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(decode_event({}).error().code, Code::DataLoss);
  for (const char* bytes :
       {"00", "0001", "280100", "2b0100", "310100", "0100036c", "010103", "01010303", "0b01070a010178" /* state 10 */,
        "0b010705020178" /* bool 2 */, "010183000000" /* overlong */, "25010101" /* trailing */})
    EXPECT_EQ(decode_event(*unhex(bytes)).error().code, Code::DataLoss) << bytes;
}

TEST(EventCodec, DamageNeverCrashes) {
  World w;
  for (const char* name : {"a", "b", "c"}) w.enrol(name);
  w.up(World::spec());
  Rng rng(7);
  for (const Event& event : w.journal) {
    const Bytes bytes = encode(event);
    for (std::size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(decode_event(ByteView(bytes).first(n)).ok());
    for (int i = 0; i < 40; ++i) {
      Bytes damaged = bytes;
      damaged[rng.below(damaged.size())] ^= static_cast<std::uint8_t>(1 + rng.below(255));
      if (const auto decoded = decode_event(damaged)) {
        State copy = w.state;
        apply(copy, *decoded,
              {1, w.now.wall, 1, {}});  // nonsense about unknown objects changes nothing and breaks nothing
        EXPECT_EQ(decode_event(encode(*decoded)).value(), *decoded);
      }
    }
  }
  for (int i = 0; i < 20'000; ++i) {
    Bytes noise(rng.below(64));
    for (auto& byte : noise) byte = static_cast<std::uint8_t>(rng.next());
    if (!noise.empty()) noise[0] = static_cast<std::uint8_t>(rng.below(40));
    if (noise.size() > 1) noise[1] = 1;
    (void)decode_event(noise).ok();
    (void)decode_state(noise).ok();
  }
}

TEST(StateCodec, RoundTripReplayAndDigest) {
  World w;
  for (const char* name : {"a", "b", "c", "d"}) w.enrol(name, 1);
  const ClusterId id = w.up(World::spec(2, 2, 1));
  w.must(NodeLost{w.lease_of(w.slots(id, SlotRole::Worker).at(0)).node});
  const Bytes bytes = encode_state(w.state);
  const auto decoded = decode_state(bytes);
  ASSERT_TRUE(decoded.ok());
  EXPECT_TRUE(*decoded == w.state);
  EXPECT_EQ(state_digest(*decoded), state_digest(w.state));
  for (std::size_t n = 0; n < bytes.size(); n += 7) EXPECT_FALSE(decode_state(ByteView(bytes).first(n)).ok());
}

}  // namespace
}  // namespace muster::control
