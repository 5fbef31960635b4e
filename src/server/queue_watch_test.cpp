#include "server/queue_watch.h"

#include <gtest/gtest.h>

namespace muster::server {
namespace {

TEST(QueueWatch, OnlyWhatMattersIsTold) {
  const WallTime now{1'700'000'000'000};
  wire::QueueView before;
  before.reason_code = "machines_busy", before.reason = "needs 1 machine; 0 are free";
  before.expected_start = now + 60min, before.position = 3;
  wire::QueueView after = before;
  EXPECT_EQ(what_changed(before, after, now), "");
  after.position = 2, after.reason = "needs 1 machine; 1 is free", after.expected_start = now + 55min;
  EXPECT_EQ(what_changed(before, after, now), "") << "less than a tenth of the wait";
  after.expected_start = now + 50min;
  EXPECT_EQ(what_changed(before, after, now), "expected start 2023-11-14T23:03:20.000Z (was 2023-11-14T23:13:20.000Z)");
  before.expected_start = now + 3min, after.expected_start = now + 1min;
  EXPECT_EQ(what_changed(before, after, now), "") << "two minutes are nothing";
  after.expected_start = {};
  EXPECT_EQ(what_changed(before, after, now), "expected start not known (was 2023-11-14T22:16:20.000Z)");
  after = before, after.reason_code = "price", after.reason = "too dear";
  EXPECT_EQ(what_changed(before, after, now), "too dear");
  after = before, after.start_p50 = now + 4h;
  EXPECT_EQ(what_changed(before, after, now), "likely start 2023-11-15T02:13:20.000Z (was not known)");
  before = after, after.start_p50 = now + 3h + 20min;
  EXPECT_EQ(what_changed(before, after, now), "") << "a fifth of the wait";
  after.start_p50 = now + 3h;
  EXPECT_NE(what_changed(before, after, now), "");
}

}  // namespace
}  // namespace muster::server
