// Encryption at rest without the journal: the file of data keys, programs that wrap, sealed logs and uploads.
#include "server/at_rest.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "crypto/file.h"
#include "crypto/random.h"
#include "server/blob_store.h"
#include "server/identity.h"
#include "server/key_program.h"
#include "server/log_store.h"
#include "server/test_store.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;

struct RestFolder {
  std::string path = (fs::temp_directory_path() / ("muster_rest_" + hex(crypto::random_bytes(6)))).string();
  RestFolder() { fs::create_directories(path); }
  ~RestFolder() { fs::remove_all(path); }
  std::string key(const std::string& name) const {
    const std::string file = path + "/" + name;
    EXPECT_TRUE(make_key_file(file).ok());
    return file;
  }
  std::string script(const std::string& name, const std::string& body) const {
    const std::string file = path + "/" + name;
    std::ofstream(file) << "#!/bin/sh\n" << body;
    ::chmod(file.c_str(), 0755);
    return file;
  }
};

std::string content(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}
bool tree_holds(const std::string& root, const std::string& text) {
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    if (entry.is_regular_file() && content(entry.path().string()).find(text) != std::string::npos) return true;
  }
  return false;
}

std::shared_ptr<crypto::KeyRing> any_ring() {
  return std::make_shared<crypto::KeyRing>(
      std::map<std::uint32_t, crypto::Secret32>{{1, crypto::Secret32(crypto::random_key32())}}, 1);
}

TEST(AtRestFile, IsReadWithItsKeyAndWithNoOther) {
  const RestFolder folder;
  const KeySource right{folder.key("right"), {}, false}, wrong{folder.key("wrong"), {}, false};
  AtRest keys = new_at_rest(right, RestState::Rekeying).value();
  ASSERT_TRUE(add_data_key(keys).ok());
  ASSERT_TRUE(write_at_rest(folder.path, keys).ok());
  const std::string text = content(rest_path(folder.path));
  const AtRest again = unwrap_rest_file(text, right).value();
  EXPECT_EQ(again.current, 2u);
  EXPECT_EQ(again.state, RestState::Rekeying);
  ASSERT_EQ(again.keys.size(), 2u);
  EXPECT_EQ(again.keys.at(1).bytes, keys.keys.at(1).bytes);
  const auto refused = unwrap_rest_file(text, wrong);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::PermissionDenied);
  EXPECT_NE(refused.error().message.find("wrong key"), std::string::npos);
  EXPECT_NE(unwrap_rest_file(text, {}).error().message.find("--at-rest-key"), std::string::npos);
  struct stat info {};
  ASSERT_EQ(::stat(rest_path(folder.path).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST(AtRestFile, AnyChangeOfItIsNoticed) {
  const RestFolder folder;
  const KeySource source{folder.key("key"), {}, false};
  AtRest keys = new_at_rest(source, RestState::On).value();
  ASSERT_TRUE(add_data_key(keys).ok());
  ASSERT_TRUE(write_at_rest(folder.path, keys).ok());
  const std::string text = content(rest_path(folder.path));
  for (std::size_t i = 0; i < text.size(); ++i) {
    std::string changed = text;
    changed[i] = static_cast<char>(changed[i] ^ 1);
    EXPECT_FALSE(unwrap_rest_file(changed, source).ok()) << i;
    EXPECT_FALSE(unwrap_rest_file(text.substr(0, i), source).ok()) << i;
  }
  std::string older = text;
  older.replace(older.find("current 2"), 9, "current 1");
  EXPECT_FALSE(unwrap_rest_file(older, source).ok()) << "an older key may not become the current one again";
}

TEST(AtRestFile, KeysAreThirtyTwoBytesAndNobodyElseMayReadThem) {
  const RestFolder folder;
  EXPECT_EQ(make_key_file(folder.key("once")).error().code, Code::AlreadyExists);
  const auto with = [&](const std::string& bytes) {
    const std::string file = folder.path + "/key";
    EXPECT_TRUE(crypto::write_secret_file(file, as_bytes(bytes)).ok());
    auto keys = new_at_rest({file, {}, false}, RestState::On);
    return keys.ok() ? write_at_rest(folder.path, *keys) : Status(keys.error());
  };
  EXPECT_TRUE(with(as_string(crypto::random_bytes(32))).ok());
  EXPECT_TRUE(with(base64(crypto::random_bytes(32)) + "\r\n").ok());
  for (const std::string& bad : {std::string(), std::string("secret"), std::string(32, '\0'),
                                 base64(crypto::random_bytes(31)), as_string(crypto::random_bytes(33))})
    EXPECT_FALSE(with(bad).ok()) << bad.size();
  const std::string open = folder.key("open");
  ::chmod(open.c_str(), 0644);
  EXPECT_FALSE(write_at_rest(folder.path, new_at_rest({open, {}, false}, RestState::On).value()).ok());
  // systemd's credentials have rights of their own.
  EXPECT_TRUE(write_at_rest(folder.path, new_at_rest({open, {}, true}, RestState::On).value()).ok());
}

constexpr const char* kToyKms = "read -r line; printf '%s\\n' \"$line\" | tr 'A-Za-z0-9+/=' 'N-ZA-Mn-za-m5-90-4/+=' \n";

TEST(KeyProgram, WrapsAndUnwrapsOverItsStandardStreams) {
  const RestFolder folder;
  const std::string program =
      folder.script("kms", std::string("echo \"$0 $*\" >> ") + folder.path + "/argv\n" + kToyKms);
  const crypto::Secret32 key(crypto::random_key32());
  const std::string wrapped = program_wrap(program, key).value();
  EXPECT_NE(wrapped, base64(key.view()));
  EXPECT_EQ(program_unwrap(program, wrapped).value().bytes, key.bytes);
  EXPECT_EQ(content(folder.path + "/argv"), program + " wrap\n" + program + " unwrap\n") << "no key in argv";
}

TEST(KeyProgram, FailuresAreToldAndBounded) {
  const RestFolder folder;
  const crypto::Secret32 key(crypto::random_key32());
  const auto told = [&](const std::string& body) {
    const auto done = program_wrap(folder.script("bad", body), key, Millis(1500));
    return done.ok() ? std::string() : done.error().message;
  };
  const std::string denied = told("cat > /dev/null; echo access denied >&2; exit 3\n");
  EXPECT_NE(denied.find("exit code 3"), std::string::npos) << denied;
  EXPECT_NE(denied.find("access denied"), std::string::npos) << denied;
  EXPECT_NE(told("exec sleep 30\n").find("in time"), std::string::npos);
  EXPECT_NE(told("sleep 30 & wait\n").find("in time"), std::string::npos) << "nor may what it started go on";
  EXPECT_NE(told("yes\n").find("more than"), std::string::npos);
  EXPECT_NE(told("echo two words\n").find("one line"), std::string::npos);
  EXPECT_NE(told("true\n").find("one line"), std::string::npos);
  EXPECT_EQ(denied.find(base64(key.view())), std::string::npos);
  EXPECT_FALSE(program_wrap("kms", key).ok()) << "a path, never a name that is looked up";
  EXPECT_FALSE(program_wrap(folder.path + "/none", key).ok());
  EXPECT_FALSE(program_unwrap(folder.script("short", "echo AAAA\n"), "x").ok());
}

TEST(KeyProgram, OneThatUnwrapsToAnotherKeyIsNoticedBeforeAnythingIsWritten) {
  const RestFolder folder;
  const KeySource good{{}, folder.script("kms", kToyKms), false};
  const AtRest keys = new_at_rest(good, RestState::On).value();
  ASSERT_TRUE(write_at_rest(folder.path, keys).ok());
  const std::string before = content(rest_path(folder.path));
  EXPECT_EQ(unwrap_rest_file(before, good).value().keys.at(1).bytes, keys.keys.at(1).bytes);
  AtRest to = keys;
  to.source.program = folder.script("liar", "echo " + base64(crypto::random_bytes(32)) + "\n");
  EXPECT_FALSE(write_at_rest(folder.path, to).ok());
  EXPECT_EQ(content(rest_path(folder.path)), before);
  const KeySource file{folder.key("key"), {}, false};
  EXPECT_NE(unwrap_rest_file(before, file).error().message.find("--at-rest-program"), std::string::npos);
}

TEST(SealedLogs, AreAppendedReadAndTrimmedAsPlainOnes) {
  for (const bool sealed : {false, true}) {
    const RestFolder folder;
    const auto ring = sealed ? any_ring() : nullptr;
    std::string expected;
    {
      LogStore logs(folder.path, kLogBytesMax, Millis(1), ring);
      const auto add = [&](std::uint64_t offset, const std::string& text) {
        return logs.append(JobId{3}, 1, offset, as_bytes(text), nullptr);
      };
      EXPECT_EQ(logs.read(JobId{3}, 1, 0, 100).value(), "");
      for (int i = 0; i < 300; ++i) {
        const std::string line =
            "canary line " + std::to_string(i) + std::string(static_cast<std::size_t>(i) * 7, 'x') + "\n";
        ASSERT_TRUE(add(expected.size(), line).ok());
        expected += line;
      }
      EXPECT_TRUE(add(expected.size() - 5, expected.substr(expected.size() - 5) + "more\n").ok())
          << "what repeats is cut";
      expected += "more\n";
      EXPECT_EQ(add(expected.size() + 1, "gap").error().code, Code::FailedPrecondition);
      const std::string large(200'000, 'L');
      ASSERT_TRUE(add(expected.size(), large).ok());
      expected += large;
      EXPECT_EQ(logs.size(JobId{3}, 1), expected.size());
      EXPECT_EQ(logs.newest_attempt(JobId{3}), 1u);
    }
    LogStore logs(folder.path, kLogBytesMax, Millis(1), ring);  // as after a restart
    EXPECT_EQ(logs.size(JobId{3}, 1), expected.size());
    EXPECT_EQ(logs.read(JobId{3}, 1, 0, 1 << 20).value(), expected);
    for (const std::size_t at :
         {std::size_t{1}, std::size_t{4711}, std::size_t{65'536}, expected.size() - 3, expected.size()})
      EXPECT_EQ(logs.read(JobId{3}, 1, at, 777).value(), expected.substr(at, 777));
    EXPECT_EQ(tree_holds(folder.path, "canary line"), !sealed);
    if (sealed) {
      LogStore other(folder.path, kLogBytesMax, Millis(1), any_ring());
      EXPECT_FALSE(other.read(JobId{3}, 1, 0, 100).ok());
    }
  }
}

TEST(SealedLogs, WhatACrashLeftHalfWrittenIsCutOff) {
  const RestFolder folder;
  const auto ring = any_ring();
  const std::string path = folder.path + "/job-3/1.log";
  {
    LogStore logs(folder.path, kLogBytesMax, Millis(1), ring);
    ASSERT_TRUE(logs.append(JobId{3}, 1, 0, as_bytes("first\n"), nullptr).ok());
    ASSERT_TRUE(logs.append(JobId{3}, 1, 6, as_bytes("second\n"), nullptr).ok());
  }
  const std::string whole = content(path);
  for (std::size_t cut = 0; cut < whole.size(); ++cut) {
    for (const bool longer : {false, true}) {  // or as long as before, with bytes that never came
      const std::string rest = longer ? std::string(whole.size() - cut, '\0') : std::string();
      std::ofstream(path, std::ios::binary | std::ios::trunc) << whole.substr(0, cut) << rest;
      LogStore logs(folder.path, kLogBytesMax, Millis(1), ring);
      const bool header = cut >= SealedStream::kHeader;
      if (!header && longer) continue;  // the header is on the disk before anything follows it
      const std::uint64_t have = logs.size(JobId{3}, 1);
      EXPECT_TRUE(have == 0 || have == 6) << cut;
      ASSERT_TRUE(logs.append(JobId{3}, 1, have, as_bytes("again\n"), nullptr).ok()) << cut;
      EXPECT_EQ(logs.read(JobId{3}, 1, 0, 100).value(), have == 0 ? "again\n" : "first\nagain\n") << cut;
    }
  }
}

TEST(SealedUploads, AreReadAnywhereAndBoundToTheirDigest) {
  for (const bool sealed : {false, true}) {
    const RestFolder folder;
    const auto store = std::make_shared<TestStore>();
    BlobStore blobs(folder.path, store, {}, sealed ? any_ring() : nullptr);
    ASSERT_TRUE(blobs.load().ok());
    const auto send = [&](const std::string& text, std::size_t step) {
      const auto upload = blobs.begin(OrgId{1}).value();
      for (std::size_t at = 0; at < text.size(); at += step)
        EXPECT_TRUE(upload->chunk(as_bytes(text.substr(at, step))).ok());
      return upload->end().value().digest;
    };
    std::string large;
    for (int i = 0; large.size() < 300'000; ++i) large += "canary upload " + std::to_string(i);
    const std::string one = send(large, 10'007), two = send("small canary upload", 5), none = send("", 1);
    bool last = false;
    std::string back;
    while (!last) {
      const Bytes part = blobs.read(one, back.size(), 50'000, last).value();
      back += as_string(part);
    }
    EXPECT_EQ(back, large);
    EXPECT_EQ(as_string(blobs.read(two, 6, 6, last).value()), "canary");
    EXPECT_FALSE(last);
    EXPECT_TRUE(blobs.read(none, 0, 10, last).value().empty());
    EXPECT_TRUE(last);
    EXPECT_EQ(send(large, 70'001), one) << "again, as another file";
    EXPECT_EQ(as_string(blobs.read(one, 100, 100, last).value()), large.substr(100, 100));
    EXPECT_EQ(tree_holds(folder.path, "canary upload"), !sealed);
    if (!sealed) continue;
    fs::rename(folder.path + "/" + two, folder.path + "/" + one);
    EXPECT_EQ(blobs.read(one, 0, 10, last).error().code, Code::DataLoss) << "one file in another's place";
  }
}

}  // namespace
}  // namespace muster::server
