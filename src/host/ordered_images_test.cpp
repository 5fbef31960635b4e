#include "host/ordered_images.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace muster::host {
namespace {

std::string digest_of(int n) {
  return "sha256:" + std::string(60, 'a') + std::to_string(1000 + n);
}
struct ImagesFolder {
  ImagesFolder() {
    char name[] = "/tmp/muster-images-XXXXXX";
    path = mkdtemp(name);
  }
  ~ImagesFolder() { std::filesystem::remove_all(path); }
  std::string path;
  std::string file() const { return path + "/images.json"; }
};
NodeFacts told(const OrderedImages& images, const std::vector<std::string>& here) {
  NodeFacts facts;
  images.report(here, {{digest_of(1), 5'000}}, facts);
  return facts;
}

TEST(OrderedImages, TellWhatIsHereUnderTheNamesThatWereOrdered) {
  ImagesFolder folder;
  OrderedImages images(folder.file());
  images.note(digest_of(1), "rayproject/ray:2.60.0");
  images.note(digest_of(1), "rayproject/ray@" + digest_of(9));
  images.note(digest_of(2), "lab/train:7");
  const NodeFacts facts = told(images, {digest_of(1), digest_of(3)});
  EXPECT_EQ(facts.images, (std::vector<std::string>{"rayproject/ray:2.60.0", "rayproject/ray@" + digest_of(9),
                                                    digest_of(1), digest_of(3)}))
      << "what is gone is not told";
  EXPECT_EQ(facts.image_bytes.at("rayproject/ray:2.60.0"), 5'000);
  EXPECT_EQ(facts.image_bytes.count(digest_of(3)), 0U);
  OrderedImages again(folder.file());
  EXPECT_EQ(told(again, {digest_of(1), digest_of(2)}).images, told(images, {digest_of(1), digest_of(2)}).images);
}

TEST(OrderedImages, ANameThatMovedOnIsTheNewOnes) {
  ImagesFolder folder;
  OrderedImages images(folder.file());
  images.note(digest_of(1), "lab/train:latest");
  images.note(digest_of(2), "lab/train:latest");
  EXPECT_EQ(told(images, {digest_of(1)}).images, std::vector<std::string>{digest_of(1)});
  EXPECT_EQ(told(images, {digest_of(2)}).images, (std::vector<std::string>{"lab/train:latest", digest_of(2)}));
}

TEST(OrderedImages, AreBoundedAndTheNewestStay) {
  ImagesFolder folder;
  OrderedImages images(folder.file());
  std::vector<std::string> here;
  for (int i = 0; i < 200; ++i) {
    here.push_back(digest_of(i));
    for (int n = 0; n < 9; ++n) images.note(digest_of(i), "r/" + std::to_string(i) + ":" + std::to_string(n));
  }
  images.note(digest_of(1), std::string(513, 'x'));
  images.note("", "nothing");
  const NodeFacts facts = told(images, here);
  ASSERT_EQ(facts.images.size(), kImagesReportedMax);
  EXPECT_EQ(facts.images.front(), "r/199:5") << "the last four names of the newest first";
  EXPECT_LE(facts.image_bytes.size(), kImagesReportedMax);
  for (const std::string& image : facts.images) EXPECT_LE(image.size(), 512U);
}

TEST(OrderedImages, ADamagedFileIsAsNone) {
  ImagesFolder folder;
  for (const char* text : {"{", "[1,2]", R"([["sha256:a"],[5,"x"],["sha256:b",""]])", R"({"a":"b"})"}) {
    std::ofstream(folder.file(), std::ios::trunc) << text;
    EXPECT_TRUE(told(OrderedImages(folder.file()), {}).images.empty()) << text;
  }
}

}  // namespace
}  // namespace muster::host
