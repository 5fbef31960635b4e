// From the files of an image to a verdict: package lists as distributions write them, records as OSV writes them.
#include <gtest/gtest.h>

#include "scan/verdict.h"

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

}  // namespace
}  // namespace muster::scan
