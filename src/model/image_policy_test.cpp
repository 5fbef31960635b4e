#include "model/image_policy.h"

#include <gtest/gtest.h>

namespace muster {
namespace {

const std::string kOne = "sha256:" + std::string(64, '1'), kTwo = "sha256:" + std::string(64, '2');

TEST(ImagePolicy, NamesAreReadAsEnginesReadThem) {
  EXPECT_EQ(full_image_name("python"), "docker.io/library/python:latest");
  EXPECT_EQ(full_image_name("docker.io/python:3.11"), "docker.io/library/python:3.11");
  EXPECT_EQ(full_image_name("index.docker.io/library/python:3.11"), "docker.io/library/python:3.11");
  EXPECT_EQ(full_image_name("muster/ray:2.60.0"), "docker.io/muster/ray:2.60.0");
  EXPECT_EQ(full_image_name("localhost/a"), "localhost/a:latest");
  EXPECT_EQ(full_image_name("Registry.Example:5000/team/app"), "registry.example:5000/team/app:latest");
  EXPECT_EQ(full_image_name("registry.example:5000/app@" + kOne), "registry.example:5000/app");
  EXPECT_EQ(full_image_name("app:1@" + kOne), "docker.io/library/app:1");
  EXPECT_EQ(full_image_name("venv:ray==2.60.0@" + kOne), "venv:ray==2.60.0");
  EXPECT_EQ(image_digest("app:1@" + kOne), kOne);
  EXPECT_EQ(image_digest("app:1"), "");
}

TEST(ImagePolicy, PatternsMatchWholeNames) {
  const auto yes = [](std::string_view pattern, std::string_view image) {
    EXPECT_TRUE(image_matches(pattern, image)) << pattern << " " << image;
  };
  const auto no = [](std::string_view pattern, std::string_view image) {
    EXPECT_FALSE(image_matches(pattern, image)) << pattern << " " << image;
  };
  yes("*", "anything:1"), yes("*", "venv:ray==2.60.0");
  yes("python", "python:3.11"), yes("python", "docker.io/library/python"), no("python", "python-evil:3.11");
  no("python", "evil.example/library/python"), no("muster/*", "evil.example/muster/ray");
  yes("muster/*", "muster/ray:2.60.0"), yes("docker.io/*", "python"), no("docker.io/*", "ghcr.io/a/b");
  yes("ghcr.io/team/*", "GHCR.io/team/deep/app:1"), no("ghcr.io/team/*", "ghcr.io/team2/app");
  yes("*/app", "ghcr.io/x/app:7"), no("*/app", "ghcr.io/x/app2"), yes("*.example/*", "registry.example/x");
  yes("python:3.1*", "python:3.11"), no("python:3.1*", "python:3.9"), no("python:3.11", "python:3.11-slim");
  yes("python:latest", "python"), no("python:3.11", "python@" + kOne), yes("python", "python@" + kOne);
  yes("registry.example:5000/app", "registry.example:5000/app:1"),
      no("registry.example/app", "registry.example:5000/app");
  yes("venv:ray==2.60.*", "venv:ray==2.60.0,python3.11@" + kOne), no("venv:*", "python"),
      no("docker.io/*", "venv:ray==1");
  yes(kOne, "app@" + kOne), no(kOne, "app@" + kTwo), no(kOne, "app:1");
  EXPECT_TRUE(image_matches(kOne, "app:1", {kTwo, kOne}));
  no("a*a*a*a*a*a*a*b", std::string(190, 'a'));
}

TEST(ImagePolicy, DenyGoesOverAllowAndSaysWhatToDo) {
  ImagePolicy policy;
  EXPECT_FALSE(image_refusal(policy, "project x", "app").has_value());
  policy.allow = {"ghcr.io/team/*", kTwo};
  policy.deny = {"ghcr.io/team/old", kOne};
  EXPECT_FALSE(image_refusal(policy, "project x", "ghcr.io/team/app:1").has_value());
  EXPECT_FALSE(image_refusal(policy, "project x", "app@" + kTwo).has_value()) << "a digest is enough";
  const auto denied = image_refusal(policy, "project x", "ghcr.io/team/old:2");
  ASSERT_TRUE(denied.has_value());
  EXPECT_EQ(denied->code, "image_policy.denied");
  EXPECT_EQ(denied->text,
            "the image ghcr.io/team/old:2 matches ghcr.io/team/old, which the image policy of project x denies; take "
            "another image, or have the policy changed (muster images policy)");
  EXPECT_EQ(image_refusal(policy, "project x", "ghcr.io/team/app:1", {kTwo, kOne})->code, "image_policy.denied");
  EXPECT_EQ(image_refusal(policy, "project x", "app:1")->code, "image_policy.not_allowed");
  EXPECT_EQ(image_refusal(policy, "project x", "app:1", {kTwo}), std::nullopt) << "what was found behind the name";
  policy = {};
  policy.require_digest = true;
  EXPECT_EQ(image_refusal(policy, "project x", "app:1")->code, "image_policy.no_digest");
  EXPECT_NE(image_refusal(policy, "project x", "app:1")->text.find("write app:1@sha256:..."), std::string::npos);
  EXPECT_FALSE(image_refusal(policy, "project x", "app:1@" + kOne).has_value());
  EXPECT_FALSE(image_refusal(policy, "project x", "venv:ray==2.60.0@" + kOne).has_value());
  policy.keys = {"k"};
  EXPECT_EQ(image_refusal(policy, "project x", "venv:ray==2.60.0@" + kOne)->code, "image_policy.unsigned");
  EXPECT_FALSE(image_refusal(policy, "project x", "app:1@" + kOne).has_value()) << "only its machine can look";
}

TEST(ImagePolicy, BoundsAndSanity) {
  ImagePolicy policy;
  policy.allow = {"*", "a/b:1", kOne};
  policy.keys = {"-----BEGIN"};
  EXPECT_TRUE(validate(policy, "policy").ok());
  for (const std::string& pattern : {std::string(), std::string(201, 'a'), std::string("a b"), std::string("sha256:12"),
                                     "a@" + kOne, "sha256:" + std::string(64, 'G'), std::string("\xc3\xa4")}) {
    policy.deny = {pattern};
    EXPECT_EQ(validate(policy, "policy").error().field, "policy.deny") << pattern;
  }
  policy.deny = std::vector<std::string>(33, "a");
  EXPECT_FALSE(validate(policy, "policy").ok());
  policy.deny.clear();
  policy.keys = std::vector<std::string>(5, "k");
  EXPECT_EQ(validate(policy, "policy").error().field, "policy.keys");
  policy.keys = {std::string(801, 'k')};
  EXPECT_FALSE(validate(policy, "policy").ok());
}

}  // namespace
}  // namespace muster
