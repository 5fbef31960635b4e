// Orders that dpkg, apk and PEP 440 state: each list rises.
#include "scan/version.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace muster::scan {
namespace {

using Compare = std::optional<int> (*)(std::string_view, std::string_view);

void rises(Compare compare, const std::vector<std::string>& versions) {
  for (std::size_t i = 0; i < versions.size(); ++i)
    for (std::size_t j = 0; j < versions.size(); ++j) {
      const int wanted = i < j ? -1 : i > j ? 1 : 0;
      EXPECT_EQ(compare(versions[i], versions[j]), wanted) << versions[i] << " and " << versions[j];
    }
}

TEST(Versions, Debian) {
  rises(compare_debian, {"0~~",           "0~~a",           "0~",         "0",      "0.9-1",      "1.0~beta1~svn1245",
                         "1.0~beta1",     "1.0~rc1-2",      "1.0-1~bpo1", "1.0-1",  "1.0-1+b1",   "1.0-1+deb12u1",
                         "1.0-1+deb12u2", "1.0-1+deb12u10", "1.0-2",      "1.0a-1", "1.0+dfsg-1", "1.0.1-1",
                         "1.2-10",        "1.10-1",         "1:0.1-1",    "2:0",    "10:0"});
  EXPECT_EQ(compare_debian("1.0", "1.0-0"), 0) << "no revision is revision 0";
  EXPECT_EQ(compare_debian("0:1.0-1", "1.0-1"), 0);
  EXPECT_EQ(compare_debian("1.007-1", "1.7-1"), 0);
  EXPECT_EQ(compare_debian("3.0.11-1~deb12u2", "3.0.11-1"), -1);
  EXPECT_EQ(compare_debian("99999999999999999999999999.1", "99999999999999999999999999.2"), -1);
  for (const char* bad : {"", ":1", "a:1", "1 2", "1_2", "-1"}) EXPECT_FALSE(compare_debian(bad, "1")) << bad;
  EXPECT_FALSE(compare_debian(std::string(257, '1'), "1"));
}

TEST(Versions, Rpm) {
  rises(compare_rpm,
        {"1.0~beta-1", "1.0~rc1-1", "1.0~rc2-1", "1.0-1", "1.0-1.el9", "1.0-2.el8", "1.0-10", "1.0^20240101-1",
         "1.0^20240101.b-1", "1.0a-1", "1.0.1-1", "1.1-1", "1.10-1", "2-1", "1:0.1-1", "10:0-1"});
  EXPECT_EQ(compare_rpm("1.0", "1.0-7"), 0) << "without a release the version alone counts";
  EXPECT_EQ(compare_rpm("0:1.0-1", "1.0-1"), 0);
  EXPECT_EQ(compare_rpm("1.0.0-1", "1_0+0-1"), 0) << "what parts is all the same";
  EXPECT_EQ(compare_rpm("1.a-1", "1.1-1"), -1) << "numbers are newer than letters";
  EXPECT_EQ(compare_rpm("1.010-1", "1.10-1"), 0);
  EXPECT_EQ(compare_versions("AlmaLinux:9", "2:1.2.3-4.el9", "2:1.2.3-5.el9"), -1);
  EXPECT_EQ(compare_versions("Ubuntu:24.04:LTS", "1.0-1ubuntu1", "1.0-1ubuntu2"), -1);
  for (const char* bad : {"", "a:1-1", ":1", "1 2", "-1"}) EXPECT_FALSE(compare_rpm(bad, "1")) << bad;
}

TEST(Versions, Alpine) {
  rises(compare_alpine, {"0.1_alpha", "0.1_alpha1", "0.1_beta", "0.1_pre2",    "0.1_rc1",         "0.1_rc1-r1",
                         "0.1",       "0.1-r0",     "0.1-r1",   "0.1-r10",     "0.1_git20200101", "0.1_p1",
                         "0.1_p1-r3", "0.1a",       "0.1.0",    "0.1.1_alpha", "0.1.1",           "0.1.1b",
                         "0.2",       "1.2.3_rc1",  "1.2.3",    "1.2.3-r5",    "1.2.10",          "1.12",
                         "2",         "10"});
  EXPECT_EQ(compare_alpine("1.01", "1.1"), -1) << "a fraction";
  EXPECT_EQ(compare_alpine("1.2.1", "1.2a"), 1);
  EXPECT_EQ(compare_alpine("3.1.4-r6", "3.1.4-r5"), 1);
  for (const char* bad : {"", "a", "1.", "1_", "1_foo", "1-r", "1-rx", "1.2-3", "1 "})
    EXPECT_FALSE(compare_alpine(bad, "1")) << bad;
}

TEST(Versions, Python) {
  rises(compare_python, {"1.0.dev456",
                         "1.0a1.dev1",
                         "1.0a1",
                         "1.0a2.dev456",
                         "1.0a12.dev456",
                         "1.0a12",
                         "1.0b1.dev456",
                         "1.0b2",
                         "1.0b2.post345.dev456",
                         "1.0b2.post345",
                         "1.0rc1.dev456",
                         "1.0rc1",
                         "1.0",
                         "1.0+abc.5",
                         "1.0+abc.7",
                         "1.0+5",
                         "1.0.post456.dev34",
                         "1.0.post456",
                         "1.0.15",
                         "1.1.dev1",
                         "1.1",
                         "1.10",
                         "2024.1",
                         "1!0.1"});
  for (const auto& [a, b] : std::vector<std::pair<std::string, std::string>>{{"1.0", "1.0.0"},
                                                                             {"v1.0", "1"},
                                                                             {"1.0alpha1", "1.0-a.1"},
                                                                             {"1.0RC1", "1.0c1"},
                                                                             {"1.0-1", "1.0.post1"},
                                                                             {"1.0.rev2", "1.0-r2"},
                                                                             {"1.0_dev", "1.0.dev0"},
                                                                             {"1.0.preview3", "1.0pre3"},
                                                                             {"1.0+a-b", "1.0+A.b"},
                                                                             {"0!1", "1"},
                                                                             {"1.0a", "1.0a0"}})
    EXPECT_EQ(compare_python(a, b), 0) << a << " " << b;
  for (const char* bad : {"", "x", "1.x", "1.0+", "1.0+a..b", "1.0 ", "1!", "!1", "1.0alphabet", "1.0devil"})
    EXPECT_FALSE(compare_python(bad, "1")) << bad;
}

TEST(Versions, ByEcosystem) {
  EXPECT_EQ(compare_versions("Debian:12", "1.0~rc1", "1.0"), -1);
  EXPECT_EQ(compare_versions("Alpine:v3.19", "1.0_rc1", "1.0"), -1);
  EXPECT_EQ(compare_versions("PyPI", "1.0rc1", "1.0"), -1);
  EXPECT_FALSE(compare_versions("npm", "1.0", "1.0"));
}

}  // namespace
}  // namespace muster::scan
