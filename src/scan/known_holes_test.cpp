#include "scan/known_holes.h"

#include <gtest/gtest.h>

#include <set>

#include "scan/osv.h"

namespace muster::scan {
namespace {

constexpr std::string_view kTable = R"({"date": "2026-11-30", "holes": [
  {"id": "CVE-1", "component": "runc", "action": "block", "what": "out",
   "affected": [{"from": "1.0.0-rc93", "fixed": "1.1.12"}],
   "packages": [{"system": "debian:12", "package": "runc", "fixed": "1.1.5+ds1-1+deb12u1"},
                {"system": "debian:13", "package": "runc", "fixed": "0"},
                {"system": "debian:11", "package": "runc", "fixed": ""}], "sources": ["s"]},
  {"id": "CVE-2", "component": "nvidia-driver", "action": "block", "from": "2027-01-01",
   "affected": [{"fixed": "535.309.01"}, {"from": "536", "fixed": "580.159.03"}], "sources": ["s"]},
  {"id": "CVE-3", "component": "linux", "action": "warn",
   "affected": [{"from": "5.8", "fixed": "5.10.102"}, {"from": "5.11", "fixed": "5.15.25"}], "sources": ["s"]}]})";

WallTime day(std::string_view text) {
  return *parse_time(text);
}

struct Machine {
  std::map<std::string, InstalledVersion> versions;
  explicit Machine(std::string_view component, std::string_view version) {
    for (const auto each : {kLinux, kDocker, kContainerd, kRunc, kNvidiaDriver, kNvidiaToolkit})
      versions[std::string(each)] = parse_installed("none");
    versions[std::string(component)] = parse_installed(version);
  }
  std::vector<HoleFinding> judged(const HolePolicy& policy = {}, std::string_view now = "2026-12-01") const {
    return judge_host(*parse_holes(kTable), policy, versions, "node-3", day(now));
  }
  std::string state(const HolePolicy& policy = {}, std::string_view now = "2026-12-01") const {
    const auto found = judged(policy, now);
    if (found.empty()) return "fine";
    return std::string(text(found.front().state)) + (found.front().blocks ? ", blocks" : "");
  }
};

TEST(KnownHoles, WhatIsBuiltInCanBeReadAndHasSources) {
  const HoleTable& table = built_in_holes();
  EXPECT_GE(table.holes.size(), 30U);
  std::set<std::string> components, ids;
  for (const KnownHole& hole : table.holes) {
    EXPECT_TRUE(ids.insert(hole.id).second) << hole.id;
    components.insert(hole.component);
    EXPECT_FALSE(hole.what.empty()) << hole.id;
  }
  for (const auto each : {kLinux, kDocker, kContainerd, kRunc, kCrun, kNvidiaDriver, kNvidiaToolkit})
    EXPECT_TRUE(components.contains(std::string(each))) << each;
}

TEST(KnownHoles, VersionsOfTheToolkitThatAreKnownToLetImagesOutBlock) {
  const auto open = [](std::string_view version) {
    Machine machine("nvidia-container-toolkit", version);
    std::set<std::string> out;
    for (const auto& each : judge_host(built_in_holes(), {}, machine.versions, "", day("2026-11-30")))
      if (each.blocks) out.insert(each.id);
    return out;
  };
  EXPECT_TRUE(open("1.16.1").contains("CVE-2024-0132"));
  EXPECT_FALSE(open("1.16.2").contains("CVE-2024-0132"));
  EXPECT_TRUE(open("1.17.3").contains("CVE-2025-23359"));
  EXPECT_EQ(open("1.17.7"), (std::set<std::string>{"CVE-2025-23266", "CVE-2025-23267", "CVE-2026-24260"}));
  EXPECT_EQ(open("1.17.8"), (std::set<std::string>{"CVE-2026-24260"}));
  EXPECT_TRUE(open("1.19.1").empty());
}

TEST(KnownHoles, UpstreamNumbersCountWhereNoDistributionIsNamed) {
  EXPECT_EQ(Machine("runc", "1.1.11").state(), "open, blocks");
  EXPECT_EQ(Machine("runc", "1.1.12").state(), "fine");
  EXPECT_EQ(Machine("runc", "1.0.0-rc92").state(), "fine") << "a candidate before it came in";
  EXPECT_EQ(Machine("runc", "1.0.0-rc93").state(), "open, blocks");
  EXPECT_EQ(Machine("linux", "5.10.101").state(), "open") << "only a warning";
  EXPECT_EQ(Machine("linux", "5.10.102").state(), "fine");
  EXPECT_EQ(Machine("linux", "5.15.24").state(), "open");
  EXPECT_EQ(Machine("runc", "?").state(), "unknown");
  EXPECT_EQ(Machine("runc", "nonsense!").state(), "unknown");
}

TEST(KnownHoles, OfADistributionItsOwnNumbersCount) {
  EXPECT_EQ(Machine("runc", "1.1.5 debian:12/runc=1.1.5+ds1-1").state(), "open, blocks");
  EXPECT_EQ(Machine("runc", "1.1.5 debian:12/runc=1.1.5+ds1-1+deb12u1").state(), "fine") << "mended in place";
  EXPECT_EQ(Machine("runc", "1.1.5 debian:13/runc=1.1.5+ds1-1").state(), "fine") << "never had it";
  EXPECT_EQ(Machine("runc", "1.1.5 debian:11/runc=1.1.5+ds1-1").state(), "open, blocks") << "not mended there";
  const Machine elsewhere("runc", "1.1.5 rhel:9/runc=1.1.5-3.el9");
  EXPECT_EQ(elsewhere.state(), "unknown") << "it may be mended, and nobody knows";
  EXPECT_EQ(Machine("runc", "1.1.12 rhel:9/runc=1.1.12-1.el9").state(), "fine");
  HolePolicy strict;
  strict.block_unknown = true;
  EXPECT_EQ(elsewhere.state(strict), "unknown, blocks");
  EXPECT_NE(elsewhere.judged().front().why.find("rhel:9 may have mended it"), std::string::npos);
}

TEST(KnownHoles, WhoSaysNothingIsUnknownAndNotFine) {
  Machine machine("runc", "none");
  machine.versions.erase("nvidia-container-toolkit");
  ASSERT_EQ(machine.judged().size(), 1U);
  EXPECT_EQ(machine.judged().front().component, "nvidia-container-toolkit");
  EXPECT_EQ(machine.state(), "unknown");
  HolePolicy strict;
  strict.block_unknown = true;
  EXPECT_EQ(machine.state(strict), "unknown, blocks");
  EXPECT_EQ(blocking_text(machine.judged(strict), 256), "an unknown version of nvidia-container-toolkit");
}

TEST(KnownHoles, AHoleBlocksFromItsDayOn) {
  const Machine machine("nvidia-driver", "550.54.14");
  EXPECT_EQ(machine.state(), "open");
  EXPECT_EQ(machine.state({}, "2027-01-01"), "open, blocks");
}

TEST(KnownHoles, TheOperatorsWordGoesOverTheTable) {
  const auto policy = parse_hole_policy(R"({"exceptions": [
      {"id": "CVE-1", "node": "node-3", "owner": "ann", "until": "2026-12-24", "reason": "alone in its room"}],
      "block": ["CVE-3"], "running": "leave"})");
  ASSERT_TRUE(policy.ok()) << policy.error().message;
  EXPECT_TRUE(policy->running_leaves);
  const Machine runc("runc", "1.1.11");
  EXPECT_EQ(runc.state(*policy), "excepted");
  EXPECT_EQ(runc.judged(*policy).front().why, "an exception of ann until 2026-12-24: alone in its room");
  EXPECT_EQ(runc.state(*policy, "2026-12-24"), "open, blocks") << "it ended";
  EXPECT_EQ(Machine("linux", "5.10.101").state(*policy), "open, blocks");
  const auto other = judge_host(*parse_holes(kTable), *policy, runc.versions, "node-4", day("2026-12-01"));
  EXPECT_TRUE(other.front().blocks) << "of another machine";
  for (const char* faulty : {"[]", "{\"exeptions\": []}", "{\"unknown\": \"ignore\"}", "{\"running\": \"stop\"}",
                             "{\"exceptions\": [{\"id\": \"CVE-1\", \"until\": \"2026-12-24\"}]}",
                             "{\"exceptions\": [{\"id\": \"CVE-1\", \"owner\": \"ann\", \"until\": \"soon\"}]}"})
    EXPECT_FALSE(parse_hole_policy(faulty).ok()) << faulty;
}

TEST(KnownHoles, FaultyTablesAreRefusedWithTheEntry) {
  const auto refused = [](std::string_view holes) {
    const auto table = parse_holes("{\"date\": \"2026-11-30\", \"holes\": [" + std::string(holes) + "]}");
    return table.ok() ? std::string() : table.error().message;
  };
  EXPECT_NE(refused(R"({"id": "CVE-9", "component": "runc", "sources": ["s"]})").find("CVE-9"), std::string::npos);
  EXPECT_NE(refused(R"({"id": "CVE-9", "component": "runc", "affected": [{}]})").find("source"), std::string::npos);
  EXPECT_NE(refused(R"({"id": "CVE-9", "component": "runc", "action": "stop", "affected": [{}], "sources": ["s"]})"),
            "");
  EXPECT_FALSE(parse_holes("{\"holes\": []}").ok()) << "a table has a day";
}

TEST(KnownHoles, WhatBlocksIsSaidWithinItsBound) {
  Machine machine("nvidia-container-toolkit", "1.16.1");
  const auto found = judge_host(built_in_holes(), {}, machine.versions, "", day("2026-11-30"));
  EXPECT_TRUE(
      blocking_text(found, 256).starts_with("CVE-2024-0132 in nvidia-container-toolkit 1.16.1, mended in 1.16.2"))
      << blocking_text(found, 256);
  EXPECT_LE(blocking_text(found, 256).size(), 256U);
  EXPECT_NE(blocking_text(found, 256).find(" more"), std::string::npos);
}

TEST(KnownHoles, AVersionIsReadAsItIsWritten) {
  for (const char* each : {"none", "1.1.5", "?", "1.1.5 debian:12/runc=1.1.5+ds1-1+deb12u1"})
    EXPECT_EQ(text(parse_installed(each)), each);
  EXPECT_EQ(upstream_version("v1.6.20~ds1"), "1.6.20");
  EXPECT_EQ(upstream_version("20.10.24+dfsg1"), "20.10.24");
}

}  // namespace
}  // namespace muster::scan
