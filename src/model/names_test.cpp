#include <gtest/gtest.h>

#include "model/image_name.h"
#include "model/reason.h"

namespace muster {
namespace {

TEST(ImageName, Parts) {
  const std::string digest = "@sha256:" + std::string(64, 'a');
  EXPECT_EQ(image_repository("registry.example:5000/team/app:1" + digest), "registry.example:5000/team/app");
  EXPECT_EQ(image_registry("registry.example:5000/team/app:1"), "registry.example:5000");
  EXPECT_EQ(image_registry("localhost/app"), "localhost");
  EXPECT_EQ(image_registry("127.0.0.1:5000/app"), "127.0.0.1:5000");
  EXPECT_EQ(image_registry("rayproject/ray:2.60.0"), "docker.io");
  EXPECT_EQ(image_registry("ray"), "docker.io");
  EXPECT_TRUE(image_pinned("rayproject/ray" + digest));
  EXPECT_TRUE(image_pinned("venv:ray==2.60.0,python3.11" + digest));
  EXPECT_FALSE(image_pinned("rayproject/ray:2.60.0"));
  EXPECT_FALSE(image_pinned("sha256:" + std::string(64, 'a')));
  for (const char* good : {"registry.example", "registry.example:5000", "127.0.0.1:5000", "localhost"})
    EXPECT_TRUE(valid_registry(good)) << good;
  for (const char* bad : {"", ":5000", "registry/x", "registry:port", "-x", "https://registry.example", "a b"})
    EXPECT_FALSE(valid_registry(bad)) << bad;
}

TEST(Reason, SentencesAreFoundBehindOtherCodes) {
  EXPECT_FALSE(reason_sentence("image_pull.denied").empty());
  EXPECT_EQ(reason_sentence("head_failed:image_pull.denied"), reason_sentence("image_pull.denied"));
  EXPECT_TRUE(reason_sentence("no_such_code").empty());
  EXPECT_TRUE(reason_sentence("").empty());
  EXPECT_EQ(with_sentence("no_such_code"), "no_such_code");
  EXPECT_TRUE(with_sentence("venv.unreachable").starts_with("venv.unreachable: the machine cannot"));
  EXPECT_TRUE(with_sentence("container.disk_reserve").size() > 40);
}

}  // namespace
}  // namespace muster
