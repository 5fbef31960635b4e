// From the files of an image to a verdict: package lists as distributions write them, records as OSV writes them.
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "base/rng.h"
#include "scan/rpm.h"
#include "scan/verdict.h"
#include "testing/test_root.h"

namespace muster::scan {
namespace {

constexpr std::string_view kDebian = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
constexpr std::string_view kStatusFile =
    "Package: libssl3\nStatus: install ok installed\nSource: openssl\nVersion: 3.0.11-1~deb12u1\n\n"
    "Package: gone\nStatus: deinstall ok config-files\nVersion: 1.0\n\n"
    "Package: libgcc-s1\nStatus: install ok installed\nSource: gcc-12 (12.2.0-14)\nVersion: 12.2.0-14+b1\nDescription: "
    "x\n Package: y\n\n"
    "Package: bash\nStatus: install ok installed\nVersion: 5.2.15-2+b2\n";

std::map<std::string, std::string> debian_files() {
  return {{"usr/lib/os-release", std::string(kDebian)},
          {"var/lib/dpkg/status", std::string(kStatusFile)},
          {"usr/lib/python3.11/site-packages/Jinja2-3.1.2.dist-info/METADATA",
           "Metadata-Version: 2.1\nName: Jinja2\nVersion: 3.1.2\n\nName: no\n"}};
}
std::string record(const std::string& id, const std::string& ecosystem, const std::string& name,
                   const std::string& events, const std::string& more = {}) {
  return R"({"id":")" + id + R"(","modified":"2026-11-20T00:00:00Z","affected":[{"package":{"ecosystem":")" +
         ecosystem + R"(","name":")" + name + R"("},"ranges":[{"type":"ECOSYSTEM","events":[)" + events + "]}]}]" +
         more + "}";
}
std::vector<Finding> found(const std::string& text) {
  const Inventory inventory = inventory_of(debian_files());
  Matcher matcher(inventory);
  EXPECT_TRUE(matcher.add(text).ok()) << text;
  return matcher.findings();
}
bool affects(const std::string& events, const std::string& ecosystem = "Debian:12",
             const std::string& name = "openssl") {
  return !found(record("CVE-2024-1", ecosystem, name, events)).empty();
}

TEST(Inventory, ReadsWhatPackagersWrite) {
  const Inventory debian = inventory_of(debian_files());
  EXPECT_EQ(debian.system, "Debian:12");
  EXPECT_EQ(debian.skipped, 0U);
  ASSERT_EQ(debian.packages.size(), 4U);
  EXPECT_EQ(debian.packages[0], (Package{"Debian:12", "bash", "5.2.15-2+b2", "bash", "5.2.15-2+b2"}));
  EXPECT_EQ(debian.packages[1], (Package{"Debian:12", "libgcc-s1", "12.2.0-14+b1", "gcc-12", "12.2.0-14"}));
  EXPECT_EQ(debian.packages[2], (Package{"Debian:12", "libssl3", "3.0.11-1~deb12u1", "openssl", "3.0.11-1~deb12u1"}));
  EXPECT_EQ(debian.packages[3], (Package{"PyPI", "jinja2", "3.1.2", "jinja2", "3.1.2"}));
  const Inventory alpine = inventory_of(
      {{"etc/os-release", "ID=alpine\nVERSION_ID=3.19.1\n"},
       {"lib/apk/db/installed", "C:Q1\nP:libcrypto3\nV:3.1.4-r5\no:openssl\nF:lib\n\nP:musl\nV:1.2.4-r4\no:musl\n"}});
  EXPECT_EQ(alpine.packages.at(0), (Package{"Alpine:v3.19", "libcrypto3", "3.1.4-r5", "openssl", "3.1.4-r5"}));
  EXPECT_EQ(alpine.packages.size(), 2U);
  const Inventory small = inventory_of({{"etc/os-release", "ID=debian\nVERSION_ID='11.9'\n"},
                                        {"var/lib/dpkg/status.d/base", "Package: base-files\nVersion: 11.1\n"}});
  EXPECT_EQ(small.packages.at(0).ecosystem, "Debian:11");
  EXPECT_EQ(inventory_of({{"var/lib/dpkg/status", "Package: a\n\nVersion: 1\n\nPackage: \nVersion: 2\n"}}).skipped, 2U);
  EXPECT_EQ(python_name("Zope.__Interface"), "zope-interface");
}

std::string in_tree(const std::string& name) {
  std::ifstream file(muster::test_root() + "/tests/data/rpm/" + name, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_GT(text.str().size(), 1000U) << name;
  return text.str();
}
constexpr std::string_view kAlma = "NAME=\"AlmaLinux\"\nID=\"almalinux\"\nVERSION_ID=\"9.4\"\n";
constexpr std::array<std::pair<const char*, const char*>, 3> kRpmFiles{
    {{"var/lib/rpm/rpmdb.sqlite", "rpmdb.sqlite"},
     {"var/lib/rpm/Packages", "Packages"},
     {"usr/lib/sysimage/rpm/Packages.db", "Packages.db"}}};

// Written by rpm itself (tests/data/rpm/make); a header is longer than a page.
TEST(Inventory, ReadsTheDatabasesOfRpm) {
  for (const auto& [path, name] : kRpmFiles) {
    ASSERT_TRUE(wanted(path));
    const Inventory found = inventory_of({{"etc/os-release", std::string(kAlma)}, {path, in_tree(name)}});
    EXPECT_EQ(found.skipped, 0U) << path;
    ASSERT_EQ(found.packages.size(), 3U) << path;
    EXPECT_EQ(found.packages[0], (Package{"AlmaLinux:9", "delta", "2:7-1", "gamma", "2:1.2.3-4.el9"}));
    EXPECT_EQ(found.packages[1], (Package{"AlmaLinux:9", "gamma", "2:1.2.3-4.el9", "gamma", "2:1.2.3-4.el9"}));
    EXPECT_EQ(found.packages[2], (Package{"AlmaLinux:9", "gamma-libs", "2:1.2.3-4.el9", "gamma", "2:1.2.3-4.el9"}));
  }
}

TEST(Inventory, DamagedDatabasesOfRpmAreNeverClean) {
  Rng rng(3);
  for (const auto& [path, name] : kRpmFiles) {
    const std::string whole = in_tree(name);
    for (int round = 0; round < 400; ++round) {
      std::string damaged = whole.substr(0, round % 4 == 0 ? rng.below(whole.size()) : whole.size());
      for (std::size_t i = 1 + rng.below(8); i > 0 && !damaged.empty(); --i)
        damaged[rng.below(rng.chance(1, 2) ? std::min<std::size_t>(damaged.size(), 200) : damaged.size())] =
            static_cast<char>(rng.below(256));
      Inventory found;
      take(found, path, damaged);  // returns, and reads nothing beyond
      EXPECT_LE(found.packages.size(), 3U);
    }
    Inventory cut;
    take(cut, path, whole.substr(0, whole.size() / 2));
    EXPECT_GT(cut.skipped, 0U) << path;
  }
  Inventory none;
  take(none, "var/lib/rpm/Packages", "something else");
  EXPECT_EQ(none.skipped, 1U);
}

TEST(Inventory, AnotherDistributionIsNotWhatItsPackagerSuggests) {
  const auto system = [](const std::string& id, const std::string& version) {
    return inventory_of({{"etc/os-release", "ID=" + id + "\nVERSION_ID=\"" + version + "\"\n"}}).system;
  };
  EXPECT_EQ(system("ubuntu", "24.04"), "Ubuntu:24.04");
  EXPECT_EQ(system("rocky", "9.3"), "Rocky Linux:9");
  EXPECT_EQ(system("rhel", "8.10"), "Red Hat:enterprise_linux:8");
  EXPECT_EQ(system("opensuse-leap", "15.5"), "openSUSE:Leap 15.5");
  EXPECT_EQ(system("sles", "15.5"), "SUSE:Linux Enterprise Server 15 SP5");
  EXPECT_EQ(system("fedora", "40"), "fedora:40");
  // Mint is made from Debian, and no record of Debian's speaks of it.
  const Inventory mint = inventory_of(
      {{"etc/os-release", "ID=linuxmint\nVERSION_ID=21\n"}, {"var/lib/dpkg/status", std::string(kStatusFile)}});
  Matcher matcher(mint);
  ASSERT_TRUE(matcher.add(record("CVE-1", "Debian:12", "openssl", R"({"introduced":"0"})")).ok());
  EXPECT_TRUE(matcher.findings().empty());
  EXPECT_EQ(judge(facts_of(mint, matcher, "x"), {}, WallTime{1'800'000'000'000}).outcome, Outcome::NotScanned);
}

TEST(Osv, ReleasesAsEachDistributionNamesThem) {
  const auto hits = [](const std::string& os, const std::string& file, const std::string& text,
                       const std::string& ecosystem, const std::string& name, const std::string& fixed) {
    const Inventory inventory = inventory_of({{"etc/os-release", os}, {file, text}});
    Matcher matcher(inventory);
    EXPECT_TRUE(matcher.add(record("CVE-1", ecosystem, name, R"({"introduced":"0"},{"fixed":")" + fixed + "\"}")).ok());
    return matcher.findings().size();
  };
  const std::string status =
      "Package: libssl3\nStatus: install ok installed\nSource: openssl\nVersion: 3.0.2-0ubuntu1.1\n";
  const auto ubuntu = [&](const std::string& ecosystem, const std::string& fixed) {
    return hits("ID=ubuntu\nVERSION_ID=\"22.04\"\n", "var/lib/dpkg/status", status, ecosystem, "openssl", fixed);
  };
  EXPECT_EQ(ubuntu("Ubuntu:22.04:LTS", "3.0.2-0ubuntu1.9"), 1U);
  EXPECT_EQ(ubuntu("Ubuntu:22.04:LTS", "3.0.2-0ubuntu1.1"), 0U);
  EXPECT_EQ(ubuntu("Ubuntu:24.04:LTS", "3.0.2-0ubuntu1.9"), 0U);
  EXPECT_EQ(ubuntu("Debian:12", "3.0.2-0ubuntu1.9"), 0U);
  const auto rpm = [&](const std::string& os, const std::string& ecosystem, const std::string& name,
                       const std::string& fixed) {
    return hits(os, "var/lib/rpm/rpmdb.sqlite", in_tree("rpmdb.sqlite"), ecosystem, name, fixed);
  };
  EXPECT_EQ(rpm(std::string(kAlma), "AlmaLinux:9", "gamma-libs", "2:1.2.3-5.el9"), 1U);
  EXPECT_EQ(rpm(std::string(kAlma), "AlmaLinux:9", "gamma-libs", "2:1.2.3-4.el9"), 0U);
  EXPECT_EQ(rpm(std::string(kAlma), "AlmaLinux:8", "gamma-libs", "2:1.2.3-5.el9"), 0U);
  EXPECT_EQ(rpm("ID=rhel\nVERSION_ID=9.4\n", "Red Hat:enterprise_linux:9::baseos", "gamma-libs", "2:1.2.3-5.el9"), 1U);
  EXPECT_EQ(rpm("ID=rhel\nVERSION_ID=9.4\n", "Red Hat:enterprise_linux:90::baseos", "gamma-libs", "2:1.2.3-5.el9"), 0U);
  const std::string sles = "ID=sles\nVERSION_ID=15.5\n";
  EXPECT_EQ(rpm(sles, "SUSE:Linux Enterprise Module for Basesystem 15 SP5", "gamma", "2:1.2.3-5.el9"), 3U)
      << "by its source";
  EXPECT_EQ(rpm(sles, "SUSE:Linux Enterprise Module for Basesystem 15 SP4", "gamma", "2:1.2.3-5.el9"), 0U);
}

TEST(Inventory, GoesOverAsText) {
  Inventory inventory = inventory_of(debian_files());
  inventory.skipped = 2;
  const std::string text = inventory_text(inventory, 1 << 20);
  const auto back = parse_inventory(text);
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->system, "Debian:12");
  EXPECT_EQ(back->skipped, 2U);
  EXPECT_EQ(back->packages, inventory.packages);
  const auto cut = parse_inventory(inventory_text(inventory, 1150));
  ASSERT_TRUE(cut.ok());
  EXPECT_LT(cut->packages.size(), inventory.packages.size());
  EXPECT_EQ(cut->skipped + cut->packages.size(), 2 + inventory.packages.size()) << "what does not fit counts";
  const std::string head = "muster-packages 1\nsystem Debian:12\nskipped 0\n";
  EXPECT_TRUE(parse_inventory(head).ok());
  for (const std::string& bad :
       {std::string(), std::string("muster-packages 2\n"), std::string("muster-packages 1\nsystem x\nskipped -1\n"),
        head + "bash 1\n", head + "=Debian:12\nbash\n", head + "=Debian:12\nbash 1 a b c\n", head + "=\nbash 1\n",
        head + "=Debian:12\nb\x01 1\n", head + "=Debian:12\n" + std::string(600, 'n') + " 1\n"})
    EXPECT_FALSE(parse_inventory(bad).ok()) << bad;
}

TEST(Inventory, WantsListsAlone) {
  for (const char* path :
       {"var/lib/dpkg/status", "var/lib/dpkg/status.d/libc6", "lib/apk/db/installed", "etc/os-release",
        "opt/venv/lib/python3.11/site-packages/a-1.dist-info/METADATA",
        "usr/lib/python3/dist-packages/six-1.16.0.egg-info", "usr/lib/python3/dist-packages/x.egg-info/PKG-INFO"})
    EXPECT_TRUE(wanted(path)) << path;
  for (const char* path : {"home/x/var/lib/dpkg/status", "var/lib/dpkg/status-old",
                           "var/lib/dpkg/status.d/libc6.md5sums", "METADATA", "usr/share/METADATA", "etc/passwd", ""})
    EXPECT_FALSE(wanted(path)) << path;
}

TEST(Osv, RangesOfASourcePackage) {
  EXPECT_TRUE(affects(R"({"introduced":"0"},{"fixed":"3.0.11-1~deb12u2"})"));
  EXPECT_FALSE(affects(R"({"introduced":"0"},{"fixed":"3.0.11-1~deb12u1"})"));
  EXPECT_TRUE(affects(R"({"introduced":"0"})")) << "nothing fixes it yet";
  EXPECT_FALSE(affects(R"({"introduced":"3.0.12-1"})"));
  EXPECT_TRUE(affects(R"({"introduced":"0"},{"last_affected":"3.0.11-1~deb12u1"})"));
  EXPECT_FALSE(affects(R"({"introduced":"0"},{"last_affected":"3.0.11-1~deb12u0"})"));
  // Came, went, came again: the order of events does not matter.
  EXPECT_TRUE(affects(R"({"fixed":"1.1.1-2"},{"introduced":"3.0.0-1"},{"introduced":"0"})"));
  EXPECT_FALSE(affects(R"({"introduced":"0"},{"fixed":"1.1.1-2"},{"introduced":"3.0.12-1"})"));
  EXPECT_TRUE(affects(R"({"introduced":"0"},{"fixed":"no version"})")) << "what cannot be compared counts as affected";
  EXPECT_FALSE(affects(R"({"introduced":"0"})", "Debian:11"));
  EXPECT_TRUE(affects(R"({"introduced":"0"})", "Debian"));
  EXPECT_FALSE(affects(R"({"introduced":"0"})", "Debian:12", "libssl3")) << "advisories name the source";
  EXPECT_TRUE(affects(R"({"introduced":"0"},{"fixed":"3.1.3"})", "PyPI", "Jinja2"));
  EXPECT_FALSE(affects(R"({"introduced":"0"},{"fixed":"3.1.2rc1"})", "PyPI", "jinja2"));
}

TEST(Osv, WhatAFindingSays) {
  const auto one = found(record("GHSA-x", "PyPI", "jinja2", R"({"introduced":"0"},{"fixed":"3.1.4"})",
                                R"(,"aliases":["PYSEC-1","CVE-2024-9"],"database_specific":{"severity":"MODERATE"})"));
  ASSERT_EQ(one.size(), 1U);
  EXPECT_EQ(one[0], (Finding{"CVE-2024-9", "jinja2", "3.1.2", "3.1.4", Severity::Medium, ""}));
  EXPECT_TRUE(
      found(record("CVE-1", "PyPI", "jinja2", R"({"introduced":"0"})", R"(,"withdrawn":"2026-01-01T00:00:00Z")"))
          .empty());
  const auto scored =
      found(record("CVE-2", "PyPI", "jinja2", R"({"introduced":"0"})",
                   R"(,"severity":[{"type":"CVSS_V3","score":"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}])"));
  EXPECT_EQ(scored.at(0).severity, Severity::Critical);
  EXPECT_EQ(
      found(
          R"({"id":"CVE-3","affected":[{"package":{"ecosystem":"PyPI","name":"jinja2"},"versions":["3.1","3.1.2"]}]})")
          .size(),
      1U);
  const Inventory inventory = inventory_of(debian_files());
  Matcher matcher(inventory);
  for (const char* bad : {"", "{}", "[]", R"({"id":"x"})", R"({"id":"x","affected":7})"})
    EXPECT_FALSE(matcher.add(bad).ok()) << bad;
  EXPECT_TRUE(
      matcher.add(R"({"id":"x","affected":[7,{"package":7,"ranges":[{"type":"ECOSYSTEM","events":[1]}]}]})").ok());
}

TEST(Osv, SeveritiesOfVectors) {
  const auto of = [](std::string_view metrics) { return cvss_severity("CVSS:3.1/" + std::string(metrics)); };
  EXPECT_EQ(of("AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H"), Severity::Critical);  // 10.0
  EXPECT_EQ(of("AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H"), Severity::High);      // 7.5
  EXPECT_EQ(of("AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N"), Severity::Medium);    // 6.1
  EXPECT_EQ(of("AV:L/AC:H/PR:L/UI:R/S:U/C:L/I:N/A:N"), Severity::Low);       // 2.2
  EXPECT_EQ(of("AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N"), Severity::Low);       // 0.0
  for (const char* bad : {"", "AV:N", "AV:X/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:H", "AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:"})
    EXPECT_FALSE(of(bad)) << bad;
  EXPECT_FALSE(cvss_severity("AV:N/AC:L/Au:N/C:P/I:P/A:P"));
  EXPECT_EQ(parse_time("1970-01-02")->ms, 86'400'000);
  EXPECT_EQ(parse_time("2026-11-28T06:07:08.123Z")->ms, 1'795'846'028'000);
  for (const char* bad : {"", "2026-13-01", "2026-02-30", "2026-11-28T06:07:08", "yesterday!!"})
    EXPECT_FALSE(parse_time(bad)) << bad;
}

Facts facts_with(std::vector<Finding> findings) {
  return {"test", WallTime{1'000'000'000'000}, {}, std::move(findings)};
}
constexpr WallTime kDayAfter{1'000'086'400'000}, kMuchLater{1'100'000'000'000};

TEST(Verdict, WhatWasNotScannedIsNeverClean) {
  const Inventory inventory = inventory_of(debian_files()), nothing;
  const auto outcome = [](const Inventory& of, std::initializer_list<std::string> records) {
    Matcher matcher(of);
    for (const std::string& each : records) EXPECT_TRUE(matcher.add(each).ok());
    const Verdict verdict = judge(facts_of(of, matcher, "test"), {}, *parse_time("2026-11-21"));
    return std::string(text(verdict.outcome)) + ": " + verdict.why;
  };
  const std::string debian = record("CVE-1", "Debian:12", "zlib", R"({"introduced":"0"})"),
                    python = record("CVE-2", "PyPI", "ray", R"({"introduced":"0"})");
  EXPECT_EQ(outcome(inventory, {debian, python}), "pass: nothing is known against it");
  EXPECT_EQ(outcome(inventory, {debian}), "not scanned: the database holds nothing about PyPI");
  EXPECT_EQ(outcome(inventory, {}), "not scanned: the database holds no records");
  EXPECT_EQ(outcome(nothing, {debian, python}), "not scanned: no package database was found in the image");
  Inventory damaged = inventory;
  damaged.skipped = 1;
  EXPECT_EQ(outcome(damaged, {debian, python}), "not scanned: 1 package could not be read");
}

TEST(Verdict, BlocksWarnsAndGoesStale) {
  const Finding bad{"CVE-1", "openssl", "1", "2", Severity::High, {}},
      open{"CVE-2", "zlib", "1", "", Severity::Critical, {}}, small{"CVE-3", "bash", "1", "", Severity::Medium, {}};
  EXPECT_EQ(judge(facts_with({bad, small}), {}, kDayAfter).outcome, Outcome::Block);
  EXPECT_EQ(judge(facts_with({bad, small}), {}, kMuchLater).outcome, Outcome::Block)
      << "an old database condemns as well";
  EXPECT_EQ(judge(facts_with({small}), {}, kDayAfter).outcome, Outcome::Warn);
  EXPECT_EQ(judge(facts_with({small}), {}, kMuchLater).outcome, Outcome::Stale);
  EXPECT_EQ(judge(facts_with({}), {}, kMuchLater).outcome, Outcome::Stale);
  EXPECT_EQ(judge(facts_with({small}), {.block = Severity::Medium, .waivers = {}}, kDayAfter).outcome, Outcome::Block);
  EXPECT_EQ(judge(facts_with({bad}), {.block = Severity::Critical, .waivers = {}}, kDayAfter).outcome, Outcome::Warn);
  EXPECT_EQ(judge(facts_with({open}), {.only_fixed = true, .waivers = {}}, kDayAfter).outcome, Outcome::Warn);
  Facts nameless = facts_with({});
  nameless.database = {};
  EXPECT_EQ(judge(nameless, {}, kDayAfter).outcome, Outcome::Stale);
}

TEST(Verdict, WaiversHaveAnOwnerAndAnEnd) {
  const auto waivers = parse_waivers(
      R"({"waivers":[{"id":"CVE-1","package":"openssl","owner":"ann","until":"2001-09-10","reason":"not reachable"},)"
      R"({"id":"CVE-2","owner":"bob","until":"2001-09-09"}]})");
  ASSERT_TRUE(waivers.ok()) << waivers.error().message;
  const Finding one{"CVE-1", "openssl", "1", "2", Severity::High, {}},
      two{"CVE-2", "zlib", "1", "", Severity::High, {}};
  Rules rules;
  rules.waivers = *waivers;
  const Verdict both = judge(facts_with({one, two}), rules, WallTime{1'000'000'000'000});  // 2001-09-09 01:46
  EXPECT_EQ(both.outcome, Outcome::Block);
  EXPECT_EQ(both.findings[0].waived_by, "ann");
  ASSERT_EQ(both.expired.size(), 1U);
  EXPECT_EQ(both.expired[0].owner, "bob");
  const Verdict waived = judge(facts_with({one}), rules, WallTime{1'000'000'000'000});
  EXPECT_EQ(waived.outcome, Outcome::Pass);
  EXPECT_EQ(waived.why, "nothing is known against it but 1 waived finding");
  EXPECT_EQ(judge(facts_with({{"CVE-1", "libssl3", "1", "2", Severity::High, {}}}), rules, WallTime{1'000'000'000'000})
                .outcome,
            Outcome::Block)
      << "of another package";
  for (const char* bad : {"{}", R"({"waivers":[{"id":"CVE-1","until":"2001-09-10"}]})",
                          R"({"waivers":[{"owner":"a","until":"2001-09-10"}]})",
                          R"({"waivers":[{"id":"CVE-1","owner":"a","until":"soon"}]})"})
    EXPECT_FALSE(parse_waivers(bad).ok()) << bad;
}

TEST(Verdict, PoliciesOfThePlatform) {
  const auto policy = parse_scan_policy(
      R"({"block":"critical","only_fixed":true,"max_age_days":3,"deny":true,"waivers":[{"id":"CVE-1","owner":"a","until":"2027-01-01"}]})");
  ASSERT_TRUE(policy.ok()) << policy.error().message;
  EXPECT_EQ(policy->rules.block, Severity::Critical);
  EXPECT_TRUE(policy->rules.only_fixed && policy->deny);
  EXPECT_EQ(policy->rules.fresh, Millis{3LL * 86'400'000});
  EXPECT_EQ(policy->rules.waivers.size(), 1U);
  EXPECT_TRUE(parse_scan_policy("{}").ok());
  for (const char* bad : {"", "[]", R"({"blok":"high"})", R"({"block":"unknown"})", R"({"deny":"yes"})",
                          R"({"max_age_days":0})", R"({"max_age_days":"7"})", R"({"waivers":[{}]})"})
    EXPECT_FALSE(parse_scan_policy(bad).ok()) << bad;
}

TEST(Verdict, ReportsOfPlugIns) {
  const Facts facts = facts_with({{"CVE-1", "openssl", "1", "2", Severity::High, {}}});
  const auto back = parse_report(report_json(facts));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->scanner, "test");
  EXPECT_EQ(back->database, facts.database);
  EXPECT_EQ(back->findings, facts.findings);
  for (const char* bad : {"", "{}", R"({"scanner":"x"})", R"({"findings":[]})", R"({"scanner":"x","findings":[{}]})",
                          R"({"scanner":"x","findings":[{"id":"a","package":"b","severity":"dire"}]})"})
    EXPECT_FALSE(parse_report(bad).ok()) << bad;
}

// ---- archives
std::string member(const std::string& name, const std::string& content, char kind = '0') {
  std::string block(512, '\0');
  block.replace(0, name.size(), name);
  char size[13];
  snprintf(size, sizeof size, "%011zo", content.size());
  block.replace(124, 11, size, 11);
  block[156] = kind;
  block.replace(257, 5, "ustar");
  return block + content + std::string((512 - content.size() % 512) % 512, '\0');
}
Result<std::map<std::string, std::string>> files_of(const std::string& tar) {
  return files_of_archive({tar.size(), [&](std::uint64_t offset, std::size_t size) -> Result<std::string> {
                             return tar.substr(static_cast<std::size_t>(std::min<std::uint64_t>(offset, tar.size())),
                                               size);
                           }});
}
const std::string kEnd(1024, '\0');

TEST(Archive, LayersLieOnEachOther) {
  const std::string first = member("./var/lib/dpkg/status", "Package: old\n") +
                            member("etc/os-release", "ID=debian\n") +
                            member("usr/lib/python3/dist-packages/a-1.dist-info/METADATA", "Name: a\n") +
                            member("usr/lib/python3/dist-packages/b-1.dist-info/METADATA", "Name: b\n") +
                            member("opt/venv/lib/python3/site-packages/c-1.dist-info/METADATA", "Name: c\n") + kEnd;
  const std::string second = member("var/lib/dpkg/status", "Package: new\n") +
                             member("usr/lib/python3/dist-packages/.wh.a-1.dist-info", "") +
                             member("opt/venv/lib/python3/site-packages/d-1.dist-info/METADATA", "Name: d\n") +
                             member("opt/venv/.wh..wh..opq", "") + kEnd;
  const std::string image =
      member("one/layer.tar", first) + member("blobs/sha256/two", second) +
      member("manifest.json", R"([{"Config":"c","Layers":["one/layer.tar","blobs/sha256/two"]}])") + kEnd;
  const auto files = files_of(image);
  ASSERT_TRUE(files.ok()) << files.error().message;
  std::string names;
  for (const auto& [path, text] : *files) names += path + "=" + text;
  EXPECT_EQ(names,
            "etc/os-release=ID=debian\nopt/venv/lib/python3/site-packages/d-1.dist-info/METADATA=Name: d\n"
            "usr/lib/python3/dist-packages/b-1.dist-info/METADATA=Name: b\nvar/lib/dpkg/status=Package: new\n");
  const auto flat = files_of(first);
  ASSERT_TRUE(flat.ok());
  EXPECT_EQ(flat->size(), 5U);
}

TEST(Archive, LongNamesAndLinks) {
  const std::string path = "usr/lib/python3/dist-packages/" + std::string(120, 'n') + ".dist-info/METADATA";
  for (const std::string& named :
       {member("././@LongLink", path + std::string(1, '\0'), 'L') + member("cut", "Name: n\n"),
        member("PaxHeaders/x", std::to_string(path.size() + 10) + " path=" + path + "\n", 'x') +
            member("cut", "Name: n\n")}) {
    const auto files = files_of(named + kEnd);
    ASSERT_TRUE(files.ok());
    EXPECT_TRUE(files->contains(path));
  }
  // Links are not followed: what they stand for was not read. Hard links are other names, as uv makes them.
  const std::string one = "cache/a-1.dist-info/METADATA", two = "venv/a-1.dist-info/METADATA";
  const auto linked = [&](std::string block, const std::string& to) { return block.replace(157, to.size(), to); };
  for (const std::string& lost : {member("var/lib/dpkg/status", "", '2'), linked(member(two, "", '1'), "nowhere")}) {
    const auto files = files_of(lost + kEnd);
    ASSERT_TRUE(files.ok());
    EXPECT_EQ(inventory_of(*files).skipped, 1U);
  }
  const auto hard = files_of(member(one, "Name: a\nVersion: 1\n") + linked(member(two, "", '1'), one) + kEnd);
  ASSERT_TRUE(hard.ok());
  EXPECT_EQ(hard->at(two), hard->at(one));
  EXPECT_TRUE(files_of(member("etc/os-release", "", '2') + kEnd)->empty());
}

TEST(Archive, HostileOnes) {
  std::string huge = member("var/lib/dpkg/status", "x");
  huge.replace(124, 12, "777777777777");
  std::string large = member("var/lib/dpkg/status", "x");
  large[124] = static_cast<char>(0x80);
  for (int i = 0; i < 8; ++i) large[128 + i] = static_cast<char>(0xff);
  for (const std::string& bad :
       {std::string(2000, 'x'), huge + kEnd, large + kEnd, std::string("\x1f\x8b") + std::string(600, 'z'),
        member("manifest.json", "[]") + kEnd, member("manifest.json", R"([{"Layers":["nowhere.tar"]}])") + kEnd,
        member("a.tar", "not a tar" + std::string(600, 'x')) + member("manifest.json", R"([{"Layers":["a.tar"]}])") +
            kEnd})
    EXPECT_FALSE(files_of(bad).ok());
  const std::string good = member("var/lib/dpkg/status", std::string(3000, 'p')) + kEnd;
  for (std::size_t n = 0; n < good.size(); n += 37) (void)files_of(good.substr(0, n));
}

TEST(InventoryText, WhatItCannotSayIsLeftOutAndCounted) {
  Inventory inventory;
  add_package(inventory, {"Alpine:v3.19", "musl", "1.2.4-r4", "", ""});
  add_package(inventory, {"Alpine:v3.19", "=musl", "1.2", "", ""});  // would begin an ecosystem
  add_package(inventory, {"Alpine:v3.19", "long", std::string(kFieldMax + 1, '1'), "", ""});
  add_package(inventory, {"Alpine:v3.19", "nothing", "", "", ""});
  EXPECT_EQ(inventory.packages.size(), 1U);
  EXPECT_EQ(inventory.skipped, 3U);
  const auto back = parse_inventory(inventory_text(inventory, 1 << 20));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->packages, inventory.packages);
  EXPECT_EQ(back->skipped, 3U);
}

}  // namespace
}  // namespace muster::scan
