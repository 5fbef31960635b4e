#include "model/venv_image.h"

#include <gtest/gtest.h>

namespace muster {
namespace {

const std::string kHash(64, 'a'), kOther(64, 'b');

VenvLock sample() {
  VenvLock lock;
  lock.image = *parse_venv_image("venv:ray==2.60.0,python3.11,numpy==1.26.4");
  lock.arch = "x86_64";
  lock.packages = {{"click", "8.1.7", {kHash}}, {"numpy", "1.26.4", {kHash, kOther}}, {"ray", "2.60.0", {kOther}}};
  return lock;
}

TEST(VenvImage, OneSpellingPerMeaning) {
  for (const char* text :
       {"venv:ray==2.60.0,python3.11,numpy==1.26.4", "venv:numpy==1.26.4,ray[default]==2.60.0,python3.11",
        "venv:python3.11,NumPy==1.26.4,ray[client,default]==2.60.0"}) {
    const auto image = parse_venv_image(text);
    ASSERT_TRUE(image.ok()) << image.error().message;
    EXPECT_EQ(venv_text(*image), "venv:ray==2.60.0,python3.11,numpy==1.26.4");
  }
  EXPECT_EQ(venv_text(*parse_venv_image("venv:ray==2.60.0")), "venv:ray==2.60.0,python3");
  const std::string pinned = "venv:ray==2.60.0,python3.11@sha256:" + kHash;
  EXPECT_EQ(parse_venv_image(pinned)->lock, kHash);
  EXPECT_EQ(venv_text(*parse_venv_image(pinned)), pinned);
  EXPECT_EQ(venv_requirements(*parse_venv_image("venv:ray==2.60.0,My_Package==1.0")),
            "ray[client,default]==2.60.0\npip\nmy-package==1.0\n");
}

TEST(VenvImage, RefusesWhatIsNotExact) {
  for (const std::string& text :
       {std::string("venv:"), std::string("venv:python3.11"), std::string("venv:ray>=2.60.0"),
        std::string("venv:ray==2.*"), std::string("venv:ray==2.60.0,ray==2.59.0"),
        std::string("venv:ray[rllib]==2.60.0"), std::string("venv:ray==2.60.0,python2.7"),
        std::string("venv:ray==2.60.0,x @ https://evil/x.whl"), std::string("venv:ray==2.60.0,--index-url=http://evil"),
        std::string("venv:ray==2.60.0,numpy[all]==1.0"), std::string("venv:ray==2.60.0;rm -rf /"),
        std::string("venv:ray==2.60.0\nnumpy==1"), std::string("venv:ray==2.60.0@sha256:12"),
        "venv:ray==2.60.0@sha256:" + kHash, std::string("rayproject/ray:2.60.0"),
        "venv:ray==2.60.0," + std::string(600, 'a')}) {
    EXPECT_FALSE(parse_venv_image(text).ok()) << text;
  }
}

TEST(VenvLock, ReadsBackExactlyWhatItWrote) {
  const VenvLock lock = sample();
  const auto back = parse_lock(lock_text(lock));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(*back, lock);
}

TEST(VenvLock, AnyChangedCharacterIsRefusedOrAnotherLock) {
  const std::string text = lock_text(sample());
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] = changed[i] == '~' ? ' ' : '~';
    const auto read = parse_lock(changed);
    EXPECT_FALSE(read.ok()) << "at " << i;
  }
  for (const char* more : {"evil==1.0\n", "--index-url http://evil\n", "zlib==1.0 --hash=md5:abc\n", "# comment\n"})
    EXPECT_FALSE(parse_lock(text + more).ok()) << more;
  EXPECT_FALSE(parse_lock(text + text).ok());
  EXPECT_FALSE(parse_lock("").ok());
}

TEST(VenvLock, MustFulfilTheReference) {
  const VenvLock lock = sample();
  EXPECT_TRUE(lock_fulfils(lock, *parse_venv_image("venv:ray==2.60.0,python3")).ok());
  EXPECT_FALSE(lock_fulfils(lock, *parse_venv_image("venv:ray==2.59.0,python3")).ok());
  EXPECT_FALSE(lock_fulfils(lock, *parse_venv_image("venv:ray==2.60.0,python3.12")).ok());
  EXPECT_FALSE(lock_fulfils(lock, *parse_venv_image("venv:ray==2.60.0,numpy==2.0.0")).ok());
  VenvLock without = lock;
  without.packages.erase(without.packages.begin() + 1);
  EXPECT_FALSE(parse_lock(lock_text(without)).ok()) << "numpy is asked for and missing";
}

}  // namespace
}  // namespace muster
