// Encryption at rest as a whole: musterd's commands on a data folder with a real journal, the bytes that lie there
// afterwards, and what is left when it is cut off in the middle.
#include "server/at_rest.h"

#include <fmt/format.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <regex>
#include <set>
#include <thread>

#include "contract/disk.h"
#include "control/core.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "engine/core.h"
#include "engine/runner.h"
#include "server/app.h"
#include "server/blob_store.h"
#include "server/commands.h"
#include "server/log_store.h"
#include "store/reseal.h"
#include "store/sqlite.h"
#include "store/sqlite_addresses.h"

namespace muster::contract {
namespace {

namespace fs = std::filesystem;

Result<std::shared_ptr<journal::Store>> open_sealed(const std::string& path, std::shared_ptr<crypto::KeyRing> ring) {
  std::shared_ptr<journal::Store> plain = TRY(store::SqliteStore::open({path, "", true, 1024}));
  if (!ring) return plain;
  return std::shared_ptr<journal::Store>(std::make_shared<store::SealedStore>(std::move(plain), std::move(ring)));
}
Result<std::shared_ptr<journal::AddressBook>> open_book(const std::string& path,
                                                        std::shared_ptr<crypto::KeyRing> ring) {
  std::shared_ptr<journal::AddressBook> plain = TRY(store::SqliteAddresses::open(path));
  if (!ring) return plain;
  return std::shared_ptr<journal::AddressBook>(
      std::make_shared<store::SealedAddresses>(std::move(plain), std::move(ring)));
}
Status copy_raw(const std::string& from, const std::string& to) {
  return TRY(store::SqliteStore::open({from, "", true, 1024}))->backup(to);
}
Result<std::uint64_t> reseal_rows(const std::string& journal, const std::string& addresses, crypto::KeyRing& ring,
                                  server::PlainRows plain) {
  const auto how = plain == server::PlainRows::Sealed ? store::Plain::Sealed : store::Plain::Refused;
  const auto rows = TRY(store::reseal_journal(journal, ring, how));
  return rows + TRY(store::reseal_addresses(addresses, ring, how));
}

std::string bytes_of(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

const std::vector<std::string> kCanaries = {"canary-operator-7531", "canary-log-line", "canary-upload",
                                            "203.0.113.77",         "PRIVATE KEY",     "canary-side-value",
                                            "$argon2id$",           "usr-canary",      "role=server"};

class RestDir : public testing::Test {
 protected:
  RestDir() : data_(dir_.file("data")), key_(dir_.file("kek")) {
    EXPECT_TRUE(server::make_key_file(key_).ok());
    std::ofstream(dir_.file("password")) << "correct horse battery\n";
  }
  struct Ran {
    int code = 0;
    std::string out, err;
  };
  Ran run(std::vector<std::string> words, std::map<std::string, std::string> options = {}) {
    server::Arguments arguments{std::move(words), std::move(options)};
    arguments.options.emplace("--data", data_);
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    Ran ran;
    ran.code = command(arguments);
    ran.out = testing::internal::GetCapturedStdout();
    ran.err = testing::internal::GetCapturedStderr();
    return ran;
  }
  static int command(const server::Arguments& arguments) {
    const std::string& name = arguments.words.front();
    if (name == "init") return server::cmd_init(arguments, open_sealed);
    if (name == "journal") return server::cmd_journal(arguments, open_sealed);
    if (name == "passwd") return server::cmd_passwd(arguments, open_sealed);
    if (name == "backup") return server::cmd_backup(arguments, copy_raw);
    if (name == "restore") return server::cmd_restore(arguments, open_sealed);
    if (name == "ca") return server::cmd_ca(arguments);
    if (name == "signer") return server::cmd_signer(arguments);
    if (name == "at-rest") return server::cmd_at_rest(arguments, reseal_rows);
    return -1;
  }
  std::map<std::string, std::string> with_key() const { return {{"--at-rest-key", key_}}; }
  Ran init(bool sealed) {
    std::map<std::string, std::string> options{
        {"--name", "127.0.0.1"}, {"--operator", "canary-operator-7531"}, {"--password-file", dir_.file("password")}};
    if (sealed) options["--at-rest-key"] = key_;
    return run({"init"}, std::move(options));
  }
  // A control plane that serves, and one of everything that it writes.
  void fill(std::map<std::string, std::string> options) {
    server::Arguments arguments{{"serve"}, std::move(options)};
    arguments.options["--data"] = data_;
    const auto opened = server::open_data_dir(arguments);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    server::App::Options wanted;
    wanted.dir = *opened;
    wanted.store = open_sealed(opened->journal(), server::ring_of(*opened)).value();
    wanted.addresses = open_book(opened->addresses(), server::ring_of(*opened)).value();
    const auto app = server::App::start(wanted);
    ASSERT_TRUE(app.ok()) << app.error().message;
    auto& context = (*app)->context();
    EXPECT_TRUE(context.logs->append(JobId{1}, 1, 0, as_bytes("canary-log-line\n"), nullptr).ok());
    const auto upload = context.blobs->begin(OrgId{1}).value();
    EXPECT_TRUE(upload->chunk(as_bytes("canary-upload")).ok());
    digest_ = upload->end().value().digest;
    EXPECT_TRUE(context.store->put_side("things", "one", to_bytes("canary-side-value")).ok());
    context.access->refused({}, "GetThing", Code::PermissionDenied, "usr-canary", "203.0.113.77:1234",
                            read_clocks().wall);
    control::Actor actor;
    actor.system = true;
    for (int i = 0; i < 5; ++i)
      EXPECT_TRUE(context.runner
                      ->submit_wait(control::Lane::Operator, control::CreateOrg{"org" + std::to_string(++orgs_)}, actor)
                      .ok());
    (*app)->stop();
    const auto base = engine::load_base(*wanted.store).value();
    EXPECT_TRUE(
        wanted.store->save_snapshot({base.seq, base.hash, read_clocks().wall, control::encode_state(base.state)}).ok());
  }
  // Which canaries lie in the folder, apart from DIR/relay: its key is muster-relay's, and in the clear.
  std::set<std::string> found(const std::string& root) const {
    std::set<std::string> out;
    for (const auto& entry : fs::recursive_directory_iterator(root)) {
      const std::string path = entry.path().string();
      if (!entry.is_regular_file() || path.find("/relay/") != std::string::npos) continue;
      const std::string bytes = bytes_of(path);
      for (const std::string& canary : kCanaries) {
        if (bytes.find(canary) != std::string::npos) out.insert(canary);
      }
    }
    return out;
  }
  std::set<std::string> found_in_file(const std::string& path) const {
    const std::string bytes = bytes_of(path);
    std::set<std::string> out;
    for (const std::string& canary : kCanaries) {
      if (bytes.find(canary) != std::string::npos) out.insert(canary);
    }
    return out;
  }
  std::string digest_of_tree() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(data_)) {
      // SQLite's index of its log is made at every opening.
      if (entry.is_regular_file() && !entry.path().string().ends_with("-shm"))
        files[entry.path().string()] = crypto::sha256_hex(as_bytes(bytes_of(entry.path().string())));
    }
    std::string all;
    for (const auto& [path, digest] : files) all += path + " " + digest + "\n";
    return all;
  }
  void expect_readable(const std::map<std::string, std::string>& options) {
    EXPECT_EQ(run({"journal", "verify"}, options).code, 0);
    const auto show = [&](const std::string& name) { return run({"at-rest", "show", name}, options).out; };
    EXPECT_EQ(show("logs/job-1/1.log"), "canary-log-line\n");
    EXPECT_EQ(show("blobs/" + digest_), "canary-upload");
    EXPECT_NE(show("refused.log").find("usr-canary"), std::string::npos);
    EXPECT_NE(show("signer.log").find("role=server"), std::string::npos);
    EXPECT_NE(show("keys/roster.pem").find("PRIVATE KEY"), std::string::npos);
    server::Arguments arguments{{"x"}, options};
    arguments.options["--data"] = data_;
    const auto opened = server::open_data_dir(arguments);
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    const auto store = open_sealed(opened->journal(), server::ring_of(*opened)).value();
    EXPECT_EQ(store->get_side("things", "one").value(), to_bytes("canary-side-value"));
    ASSERT_TRUE(store->load_snapshot().value());
    const auto book = open_book(opened->addresses(), server::ring_of(*opened)).value();
    EXPECT_EQ(book->find("nobody", "usr-canary").value(), "203.0.113.77");
  }
  std::string head() {
    const std::string out = run({"journal", "verify"}, with_key()).out;
    return out.substr(out.find("head"));
  }
  Status sql(const std::string& text) {
    auto db = TRY(store::Connection::open(data_ + "/journal.db", ""));
    return db.run(text.c_str());
  }
  server::RestFile rest() const { return server::parse_rest_file(bytes_of(server::rest_path(data_))).value(); }

  TempDir dir_;
  std::string data_, key_, digest_;
  int orgs_ = 0;
};

TEST_F(RestDir, CanariesLieInThePlainFolderAndNowhereInTheSealedOne) {
  const std::set<std::string> all(kCanaries.begin(), kCanaries.end());
  ASSERT_EQ(init(false).code, 0);
  fill({});
  EXPECT_EQ(found(data_), all) << "else the search finds nothing";
  ASSERT_EQ(run({"backup", dir_.file("plain.backup")}).code, 0);
  EXPECT_TRUE(found_in_file(dir_.file("plain.backup")).contains("PRIVATE KEY"));
  EXPECT_TRUE(found_in_file(dir_.file("plain.backup")).contains("canary-operator-7531"));
  fs::remove_all(data_);

  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  // Request ids are names of rows, which stay readable; what they belong to does not.
  EXPECT_EQ(found(data_), (std::set<std::string>{"usr-canary"}));
  expect_readable(with_key());
  ASSERT_EQ(run({"backup", dir_.file("sealed.backup")}).code, 0) << "without a key";
  EXPECT_TRUE(found_in_file(dir_.file("sealed.backup")).empty());
}

TEST_F(RestDir, AWrongOrMissingKeyIsOneErrorAndChangesNothing) {
  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  const std::string wrong = dir_.file("wrong");
  ASSERT_TRUE(server::make_key_file(wrong).ok());
  const std::string before = digest_of_tree();
  const std::vector<std::vector<std::string>> commands = {{"journal", "verify"},
                                                          {"journal", "show"},
                                                          {"journal", "export"},
                                                          {"journal", "head"},
                                                          {"passwd", "canary-operator-7531"},
                                                          {"ca", "status"},
                                                          {"ca", "rotate"},
                                                          {"at-rest", "rekey"},
                                                          {"at-rest", "init"}};
  for (const auto& words : commands) {
    const auto missing = run(words);
    EXPECT_EQ(missing.code, 1) << words[0];
    EXPECT_TRUE(missing.out.empty()) << missing.out;
    EXPECT_TRUE(std::regex_search(missing.err, std::regex("--at-rest-key"))) << missing.err;
    const auto other = run(words, {{"--at-rest-key", wrong}});
    EXPECT_EQ(other.code, 1) << words[0];
    EXPECT_NE(other.err.find("is the wrong key"), std::string::npos) << other.err;
    EXPECT_EQ(std::count(other.err.begin(), other.err.end(), '\n'), 1) << other.err;
  }
  EXPECT_NE(run({"journal", "verify"}, {{"--at-rest-key", dir_.file("none")}}).err.find("there is no file"),
            std::string::npos);
  EXPECT_EQ(run({"journal", "verify"}, {{"--at-rest-key", key_}, {"--at-rest-program", "/bin/true"}}).code, 1);
  EXPECT_EQ(digest_of_tree(), before);
  fs::remove_all(data_);
  ASSERT_EQ(init(false).code, 0);
  EXPECT_NE(run({"journal", "verify"}, with_key()).err.find("is not encrypted"), std::string::npos)
      << "who names a key must not get plain text on the disk";
}

TEST_F(RestDir, TheKeyMayBeASystemdCredentialWhichIsFoundByItself) {
  ASSERT_EQ(init(true).code, 0);
  const std::string folder = dir_.file("credentials");
  fs::create_directories(folder);
  fs::copy_file(key_, folder + "/muster-at-rest");
  fs::permissions(folder + "/muster-at-rest", fs::perms::owner_read | fs::perms::group_read);
  ::setenv("CREDENTIALS_DIRECTORY", folder.c_str(), 1);
  EXPECT_EQ(run({"journal", "verify"}).code, 0);
  EXPECT_EQ(run({"at-rest", "status"}).code, 0);
  ::unsetenv("CREDENTIALS_DIRECTORY");
  EXPECT_EQ(run({"journal", "verify"}).code, 1);
}

TEST_F(RestDir, WhatChangesPlacesIsNoticed) {
  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  const std::string keep = dir_.file("keep.db");
  fs::copy_file(data_ + "/journal.db", keep);
  const auto again = [&] {
    for (const char* part : {"", "-wal", "-shm"}) fs::remove(data_ + "/journal.db" + part);
    fs::copy_file(keep, data_ + "/journal.db");
  };
  ASSERT_TRUE(sql("UPDATE entry SET bytes=(SELECT bytes FROM entry WHERE seq=3) WHERE seq=2").ok());
  const auto moved = run({"journal", "verify"}, with_key());
  EXPECT_EQ(moved.code, 1);
  EXPECT_NE(moved.err.find("journal entry 2 does not open"), std::string::npos) << moved.err;
  again();
  ASSERT_TRUE(sql("UPDATE entry SET bytes=x'00' WHERE seq=4").ok());
  EXPECT_NE(run({"journal", "verify"}, with_key()).err.find("journal entry 4 is not sealed"), std::string::npos);
  again();
  ASSERT_TRUE(
      sql("INSERT INTO side SELECT tbl, CAST('two' AS BLOB), value FROM side WHERE key=CAST('one' AS BLOB)").ok());
  {
    server::Arguments arguments{{"x"}, with_key()};
    arguments.options["--data"] = data_;
    const auto opened = server::open_data_dir(arguments).value();
    const auto store = open_sealed(opened.journal(), server::ring_of(opened)).value();
    EXPECT_TRUE(store->get_side("things", "one").ok());
    EXPECT_EQ(store->get_side("things", "two").error().code, Code::DataLoss);
    EXPECT_EQ(store->list_side("things", "", 10).error().code, Code::DataLoss);
  }
  again();
  fs::copy_file(data_ + "/keys/roster.pem", data_ + "/keys/ca.key.pem", fs::copy_options::overwrite_existing);
  const auto swapped = run({"ca", "status"}, with_key());
  EXPECT_EQ(swapped.code, 1);
  EXPECT_NE(swapped.err.find("ca.key.pem does not open"), std::string::npos) << swapped.err;
}

TEST_F(RestDir, AFolderThatIsThereIsEncryptedAndItsChainStaysAsItWas) {
  ASSERT_EQ(init(false).code, 0);
  fill({});
  const std::string before = run({"journal", "verify"}).out;
  ASSERT_EQ(run({"at-rest", "init"}, {}).code, 1) << "no key";
  const auto done = run({"at-rest", "init"}, with_key());
  ASSERT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(found(data_), (std::set<std::string>{"usr-canary"}));
  EXPECT_EQ(run({"journal", "verify"}, with_key()).out, before) << "the same entries, the same hashes";
  expect_readable(with_key());
  EXPECT_NE(run({"at-rest", "init"}, with_key()).err.find("encrypted already"), std::string::npos);
  fill(with_key());
  EXPECT_EQ(found(data_), (std::set<std::string>{"usr-canary"}));
  expect_readable(with_key());
}

TEST_F(RestDir, NobodyEncryptsAFolderThatIsInUse) {
  ASSERT_EQ(init(true).code, 0);
  server::Arguments arguments{{"x"}, with_key()};
  arguments.options["--data"] = data_;
  {
    const auto serving = server::open_data_dir(arguments).value();
    for (const char* what : {"init", "rekey"})
      EXPECT_NE(run({"at-rest", what}, with_key()).err.find("is in use"), std::string::npos);
    EXPECT_EQ(run({"journal", "verify"}, with_key()).code, 0);
  }
  EXPECT_EQ(run({"at-rest", "rekey"}, with_key()).code, 0);
  const auto alone = server::DirLock::alone(data_).value();
  EXPECT_NE(run({"journal", "verify"}, with_key()).err.find("is at work"), std::string::npos);
}

TEST_F(RestDir, AnotherKeyWrapsAndNoDataIsWritten) {
  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  const std::string next = dir_.file("next"), before = digest_of_tree(), file = bytes_of(server::rest_path(data_));
  ASSERT_TRUE(server::make_key_file(next).ok());
  EXPECT_EQ(run({"at-rest", "rotate"}, with_key()).code, 1) << "to which?";
  EXPECT_EQ(run({"at-rest", "rotate"}, {{"--at-rest-key", next}, {"--to-key", next}}).code, 1);
  EXPECT_EQ(run({"at-rest", "rotate"}, {{"--at-rest-key", key_}, {"--to-key", dir_.file("none")}}).code, 1);
  EXPECT_EQ(digest_of_tree(), before);
  const auto done = run({"at-rest", "rotate"}, {{"--at-rest-key", key_}, {"--to-key", next}});
  ASSERT_EQ(done.code, 0) << done.err;
  const std::string rotated = bytes_of(server::rest_path(data_));
  std::ofstream(server::rest_path(data_), std::ios::trunc) << file;
  EXPECT_EQ(digest_of_tree(), before) << "only the file at-rest changed";
  std::ofstream(server::rest_path(data_), std::ios::trunc) << rotated;
  EXPECT_EQ(run({"journal", "verify"}, with_key()).code, 1);
  expect_readable({{"--at-rest-key", next}});
  std::ofstream(server::rest_path(data_), std::ios::trunc) << file;
  // What a crash leaves is the file before or the one after, beside a part of the one after.
  std::ofstream(server::rest_path(data_) + ".0123456789ab.new") << file.substr(0, file.size() / 2);
  expect_readable(with_key());
  ASSERT_EQ(run({"at-rest", "rotate"}, {{"--at-rest-key", key_}, {"--to-key", next}}).code, 0);
  expect_readable({{"--at-rest-key", next}});
}

TEST_F(RestDir, AProgramMayTakeOverFromAFile) {
  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  const std::string program = dir_.file("kms");
  std::ofstream(program) << "#!/bin/sh\nread -r line; printf '%s\\n' \"$line\" | tr 'A-Za-z' 'N-ZA-Mn-za-m'\n";
  fs::permissions(program, fs::perms::owner_all);
  ASSERT_EQ(run({"at-rest", "rotate"}, {{"--at-rest-key", key_}, {"--to-program", program}}).code, 0);
  EXPECT_NE(run({"journal", "verify"}, with_key()).err.find("--at-rest-program"), std::string::npos);
  expect_readable({{"--at-rest-program", program}});
  ASSERT_EQ(run({"at-rest", "rekey"}, {{"--at-rest-program", program}}).code, 0);
  expect_readable({{"--at-rest-program", program}});
}

TEST_F(RestDir, AnotherDataKeyAndTheOneBeforeIsGone) {
  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  const std::string before = head();
  const auto done = run({"at-rest", "rekey"}, with_key());
  ASSERT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(rest().current, 2u);
  EXPECT_EQ(rest().keys.size(), 1u);
  EXPECT_EQ(head(), before);
  expect_readable(with_key());
  for (const std::string& path : server::sealed_files(data_))
    EXPECT_EQ(crypto::KeyRing::key_of(as_bytes(bytes_of(path))), 2u) << path;
  const std::string old_mark("\xe1MSR\x01\0\0\0", 8);  // nothing is left that key 1 sealed
  for (const auto& entry : fs::recursive_directory_iterator(data_)) {
    if (entry.is_regular_file())
      EXPECT_EQ(bytes_of(entry.path().string()).find(old_mark), std::string::npos) << entry.path();
  }
}

TEST_F(RestDir, AnotherDataKeyIsBegunFailsAndIsGoneOnWith) {
  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  const std::string stray = data_ + "/blobs/" + std::string(64, 'a');
  std::ofstream(stray) << "not sealed";
  EXPECT_NE(run({"at-rest", "rekey"}, with_key()).err.find("is not sealed"), std::string::npos);
  EXPECT_EQ(rest().state, server::RestState::Rekeying);
  EXPECT_EQ(rest().keys.size(), 2u) << "both stay until everything is under the new one";
  expect_readable(with_key());
  fill(with_key());  // musterd serves meanwhile, and writes under the new one
  fs::remove(stray);
  ASSERT_EQ(run({"at-rest", "rekey"}, with_key()).code, 0);
  EXPECT_EQ(rest().current, 2u);
  EXPECT_EQ(rest().keys.size(), 1u);
  expect_readable(with_key());
}

// kill -9 at any moment of at-rest init and rekey.
TEST_F(RestDir, KilledInTheMiddleNothingIsLostAndItGoesOn) {
  ASSERT_EQ(init(false).code, 0);
  fill({});
  {
    const auto store = open_sealed(data_ + "/journal.db", nullptr).value();  // enough for some milliseconds
    for (int i = 0; i < 300; ++i)
      ASSERT_TRUE(store->put_side("bulk", std::to_string(i), to_bytes("canary-side-value")).ok());
  }
  const std::string before = run({"journal", "verify"}).out;
  fs::copy(data_, dir_.file("plain"), fs::copy_options::recursive);
  const auto killed_after = [&](const char* what, std::chrono::microseconds delay) {
    server::Arguments arguments{{"at-rest", what}, with_key()};
    arguments.options["--data"] = data_;
    std::fflush(nullptr);
    const pid_t child = ::fork();
    if (child == 0) {
      if (std::freopen("/dev/null", "w", stdout) == nullptr) ::_exit(9);
      ::_exit(command(arguments));
    }
    std::this_thread::sleep_for(delay);
    ::kill(child, SIGKILL);
    int status = 0;
    ::waitpid(child, &status, 0);
    return WIFSIGNALED(status);
  };
  int cut = 0, whole = 0;
  for (int round = 0; round < 12; ++round) {
    fs::remove_all(data_);
    fs::copy(dir_.file("plain"), data_, fs::copy_options::recursive);
    cut += killed_after("init", std::chrono::microseconds(1000 + round * 4000)) ? 1 : 0;
    if (!fs::exists(server::rest_path(data_))) {
      EXPECT_EQ(run({"journal", "verify"}).out, before) << "not begun";
    } else if (rest().state == server::RestState::Sealing) {
      const auto refused = run({"journal", "verify"}, with_key());
      EXPECT_NE(refused.err.find("only in part"), std::string::npos) << refused.err;
      EXPECT_EQ(run({"backup", dir_.file("half")}).code, 1) << "a half sealed one is not copied away";
    }
    const auto done = run({"at-rest", "init"}, with_key());
    EXPECT_TRUE(done.code == 0 || done.err.find("encrypted already") != std::string::npos) << done.err;
    EXPECT_EQ(run({"journal", "verify"}, with_key()).out, before);
    EXPECT_EQ(found(data_), (std::set<std::string>{"usr-canary"})) << round;
    expect_readable(with_key());

    cut += killed_after("rekey", std::chrono::microseconds(1000 + round * 4000)) ? 1 : 0;
    EXPECT_EQ(run({"journal", "verify"}, with_key()).out, before);
    expect_readable(with_key());
    whole += rest().state == server::RestState::On ? 1 : 0;
    const auto rekeyed = run({"at-rest", "rekey"}, with_key());
    EXPECT_EQ(rekeyed.code, 0) << rekeyed.err;
    EXPECT_EQ(rest().keys.size(), 1u);
    EXPECT_EQ(run({"journal", "verify"}, with_key()).out, before);
    expect_readable(with_key());
  }
  EXPECT_GT(cut, 0) << "none was cut off";
  EXPECT_LT(whole, 12) << "none was cut off in the middle";
}

TEST_F(RestDir, ABackupIsRestoredWithItsKeyAndRefusedWithout) {
  ASSERT_EQ(init(true).code, 0);
  fill(with_key());
  const std::string file = dir_.file("backup");
  ASSERT_EQ(run({"backup", file}).code, 0);
  EXPECT_TRUE(found_in_file(file).empty());
  const std::string source = data_, wrong = dir_.file("wrong");
  ASSERT_TRUE(server::make_key_file(wrong).ok());
  data_ = dir_.file("restored");
  EXPECT_NE(run({"restore", file}).err.find("--at-rest-key"), std::string::npos);
  EXPECT_NE(run({"restore", file}, {{"--at-rest-key", wrong}}).err.find("wrong key"), std::string::npos);
  EXPECT_FALSE(fs::exists(data_)) << "nothing is written";
  const auto done = run({"restore", file}, with_key());
  ASSERT_EQ(done.code, 0) << done.err;
  EXPECT_EQ(run({"journal", "verify"}, with_key()).code, 0);
  EXPECT_TRUE(found(data_).empty());
  EXPECT_EQ(run({"ca", "status"}, with_key()).code, 0);
  fill(with_key());  // it serves, and has made the relay's key anew
  EXPECT_TRUE(fs::exists(data_ + "/relay/key.pem"));
  // The folder it came from goes on, with a data key that the backup does not know.
  data_ = source;
  ASSERT_EQ(run({"at-rest", "rekey"}, with_key()).code, 0);
  data_ = dir_.file("again");
  EXPECT_EQ(run({"restore", file}, with_key()).code, 0) << "the backup has its own data key";
}

TEST_F(RestDir, SigningKeysThatAreKeptApartAreSealedToo) {
  ASSERT_EQ(init(true).code, 0);
  const std::string apart = dir_.file("apart");
  auto options = with_key();
  options["--to"] = apart;
  const auto done = run({"signer", "split"}, options);
  ASSERT_EQ(done.code, 0) << done.err;
  EXPECT_TRUE(found(apart).empty());
  EXPECT_FALSE(fs::exists(data_ + "/keys/roster.pem"));
  data_ = apart;
  EXPECT_EQ(run({"ca", "status"}).code, 1);
  EXPECT_EQ(run({"ca", "status"}, with_key()).code, 0);
}

}  // namespace
}  // namespace muster::contract
