#include <gtest/gtest.h>

#include "control/control_world.h"

namespace muster::control {
namespace {

TEST(Carried, IsAddedUpByDayMachineAndCluster) {
  World w;
  const NodeId a = w.enrol("a"), b = w.enrol("b");
  w.enrol("c");
  const ClusterId id = w.up(World::spec(1, 1));
  const std::int64_t day = w.now.wall.ms / 86'400'000;
  w.must(CountCarried{{{id, a, 100}, {id, b, 5}, {ClusterId{77}, a, 9}, {id, NodeId{77}, 9}, {id, a, 0}}});
  w.must(CountCarried{{{id, a, 11}}});
  ASSERT_EQ(w.state.carried.size(), 2U);
  EXPECT_EQ(w.state.carried.at({day, a, id}), (CarriedRow{w.tenant, 111}));
  EXPECT_TRUE(decode_state(encode_state(w.state, kFormatVersion)).value() == w.state);
  w.pass(24h);
  w.must(CountCarried{{{id, a, 1}}});
  EXPECT_EQ(w.state.carried.size(), 3U);
  w.pass(24h * 400);
  w.must(CountCarried{{{id, b, 2}}});
  EXPECT_FALSE(w.state.carried.contains({day, a, id})) << "four hundred days are kept";
  EXPECT_TRUE(w.state.carried.contains({day + 1, a, id}));
  EXPECT_EQ(w.run(CountCarried{{{id, a, 1}}}, w.user()).error().code, Code::PermissionDenied);
}

TEST(Carried, TheFirstRaisesTheFormat) {
  World w;
  w.enrol("a"), w.enrol("b");
  const ClusterId id = w.up(World::spec(1, 1));
  w.state.format_version = 7;
  w.must(CountCarried{{{id, NodeId{1}, 100}, {id, NodeId{1}, 100}}});
  EXPECT_EQ(w.state.format_version, kPairFormat);
  EXPECT_EQ(w.count<FormatRaised>(), 2) << "of a new journal, and here once";
}

}  // namespace
}  // namespace muster::control
