// The keys of rosters, orders and relay tokens in their folder: another one, its announcement, the end of the one
// before.
#include "server/signing_keys.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "crypto/file.h"
#include "crypto/random.h"
#include "overlay/roster.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"
#include "server/signing_desk.h"
#include "session/frames.h"
#include "wire/agent_frames.h"

namespace muster::server {
namespace {

using namespace std::chrono_literals;
namespace fs = std::filesystem;
using crypto::KeyKind;

struct Keys : ::testing::Test {
  DataDir dir{(fs::temp_directory_path() / ("muster_keys_" + hex(crypto::random_bytes(6)))).string()};
  WallTime now = read_clocks().wall;
  void SetUp() override {
    ASSERT_TRUE(create_identity(dir, {{"muster.example.org"}, {"relay.example.org:443"}}, now).ok());
  }
  void TearDown() override { fs::remove_all(dir.root); }
  KeySet load() const {
    auto out = load_signing_keys(dir, *load_cas(dir), server_id(), now);
    EXPECT_TRUE(out.ok()) << out.error().message;
    return *out;
  }
  std::string server_id() const { return as_string(*dir.read(dir.key("server_id"))); }
  std::unique_ptr<SigningDesk> desk() const {
    SigningDesk::Options options;
    options.wall = [this] { return now; };
    return *SigningDesk::open(dir, options);
  }
  static Bytes order() { return wire::desired_signing_bytes(NodeId{3}, session::Desired{}); }
  static std::size_t of(const KeySet& set, KeyKind kind) {
    return static_cast<std::size_t>(std::count_if(set.statement.keys.begin(), set.statement.keys.end(),
                                                  [&](const auto& e) { return e.kind == kind; }));
  }
};

TEST_F(Keys, AnotherOneSignsAndTheOneBeforeIsBelievedForItsTime) {
  const KeySet first = load();
  EXPECT_EQ(first.statement.keys.size(), 3u);
  EXPECT_TRUE(crypto::vouched_for(first.statement, load_cas(dir)->trust));
  EXPECT_FALSE(ever_changed(first.statement, KeyKind::Order));
  const auto signer = desk();
  const auto by_old = *signer->order(order());
  now = now + 1h;
  const auto id = rotate_signing_key(dir, {.kind = KeyKind::Order}, now);
  ASSERT_TRUE(id.ok()) << id.error().message;
  EXPECT_EQ(signer->order(order())->key_id, by_old.key_id) << "until it is asked to look";
  const SignerView view = *signer->view();
  const auto by_new = *signer->order(order());
  EXPECT_EQ(hex(by_new.key_id), *id);
  const auto told = *crypto::parse_signing_keys(view.keys);
  EXPECT_GT(told.revision, first.statement.revision);
  const auto taken = [&](WallTime at, const Signed& made) {
    return crypto::signer_of(crypto::believed_keys(told, KeyKind::Order, at), made.key_id, order(), made.signature)
        .has_value();
  };
  EXPECT_TRUE(taken(now, by_old) && taken(now, by_new));
  EXPECT_FALSE(taken(now + 24h, by_old)) << "by the clock of the machine, whatever it hears";
  EXPECT_TRUE(taken(now + 24h, by_new));
  now = now + 24h;
  const KeySet after = load();
  EXPECT_EQ(of(after, KeyKind::Order), 1u) << "it is not stated any more";
  EXPECT_GT(after.statement.revision, told.revision);
  EXPECT_EQ(of(after, KeyKind::Roster), 1u);
  EXPECT_EQ(load().text, after.text) << "nothing changes by looking";
}

TEST_F(Keys, ACompromisedOneIsBelievedNoLonger) {
  const KeySet first = load();
  const auto signer = desk();
  const Bytes roster = overlay::encode_roster({7, 1, 3, {}});
  const auto by_old = *signer->roster(roster);
  ASSERT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::Roster, .compromised = true}, now).ok());
  const auto told = *crypto::parse_signing_keys(signer->view()->keys);
  const auto believed = crypto::believed_keys(told, KeyKind::Roster, now);
  ASSERT_EQ(believed.size(), 1u);
  EXPECT_FALSE(crypto::signer_of(believed, {}, overlay::roster_message(roster), by_old.signature).has_value());
  const auto by_new = *signer->roster(roster);
  EXPECT_TRUE(
      crypto::signer_of(believed, by_new.key_id, overlay::roster_message(roster), by_new.signature).has_value());
  // Nothing of the old secret is left here, and whoever has it can state nothing.
  for (const auto& entry : fs::recursive_directory_iterator(dir.root)) {
    if (!entry.is_regular_file()) continue;
    std::ifstream in(entry.path(), std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    EXPECT_EQ(text.find(first.roster.to_pem().substr(40, 60)), std::string::npos) << entry.path();
  }
  EXPECT_TRUE(crypto::believe(first.statement, told, load_cas(dir)->trust).ok());
  EXPECT_FALSE(crypto::believe(told, first.statement, load_cas(dir)->trust).ok());
}

TEST_F(Keys, OneForRelaysIsAnnouncedBeforeItSigns) {
  const auto signer = desk();
  const overlay::RelayToken wanted{"relay.example.org:443", 7, {}, now + 6h};
  const auto first = load();
  const Bytes plain = *signer->relay_token(wanted);
  EXPECT_EQ(plain[0], 1) << "a relay of before reads it";
  EXPECT_EQ(rotate_signing_key(dir, {.kind = KeyKind::RelayToken, .keep = 11h}, now).error().code,
            Code::InvalidArgument);
  ASSERT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::RelayToken, .start_in = 60s}, now).ok());
  const auto told = *crypto::parse_signing_keys(signer->view()->keys);
  const auto believed = crypto::believed_keys(told, KeyKind::RelayToken, now);
  EXPECT_EQ(believed.size(), 2u);
  const std::vector old{first.relay.public_key()};
  const auto good = [&](const std::vector<crypto::Key32>& keys, const Bytes& token) {
    return overlay::verify_relay_token(keys, token, "relay.example.org:443", now).ok();
  };
  EXPECT_TRUE(good(old, *signer->relay_token(wanted))) << "its time has not come";
  EXPECT_EQ(rotate_signing_key(dir, {.kind = KeyKind::RelayToken}, now).error().code, Code::FailedPrecondition);
  now = now + 60s;
  const Bytes token = *signer->relay_token(wanted);
  EXPECT_FALSE(good(old, token));
  EXPECT_TRUE(overlay::token_of_another_key(old, token));
  EXPECT_FALSE(overlay::token_of_another_key(believed, token));
  EXPECT_TRUE(good(believed, token));
  EXPECT_TRUE(good(believed, plain)) << "open connections hold such";
  Bytes renamed = token;  // its name is signed too
  renamed[1] ^= 1;
  EXPECT_FALSE(good(believed, renamed));
}

TEST_F(Keys, AChangeThatIsCutOffIsFinishedOrForgotten) {
  const KeySet first = load();
  ASSERT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::Order, .start_in = 60s}, now).ok());
  // The secret lay there, the statement did not yet.
  const Bytes statement = *dir.read(dir.key("signing-keys.pem"));
  ASSERT_TRUE(dir.write(dir.key("signing-keys.pem"), as_bytes(first.text)).ok());
  EXPECT_EQ(load().order.public_key(), first.order.public_key());
  ASSERT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::Order}, now).ok()) << "and another one takes its place";
  EXPECT_EQ(of(load(), KeyKind::Order), 2u);
  // Statement and secret are of different times: a restored file.
  ASSERT_TRUE(dir.write(dir.key("signing-keys.pem"), statement).ok());
  const auto damaged = load_signing_keys(dir, *load_cas(dir), server_id(), now);
  ASSERT_FALSE(damaged.ok());
  EXPECT_NE(damaged.error().message.find("musterd keys rotate order --compromised"), std::string::npos)
      << damaged.error().message;
  ASSERT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::Order, .compromised = true}, now).ok());
  EXPECT_EQ(of(load(), KeyKind::Order), 1u);
}

TEST_F(Keys, AnotherCaSignsTheSameStatement) {
  const KeySet first = load();
  ASSERT_TRUE(rotate_ca(dir, "", When::Now, now).ok());
  const KeySet again = load();
  EXPECT_EQ(again.statement.keys, first.statement.keys);
  EXPECT_EQ(again.statement.revision, first.statement.revision);
  EXPECT_NE(again.text, first.text);
  const auto trust = load_cas(dir)->trust;
  EXPECT_TRUE(crypto::believe(first.statement, again.statement, trust).ok());
  ASSERT_TRUE(retire_ca(dir, ca_id(first.statement.chain.front()), "", When::Now, now).ok());
  EXPECT_TRUE(crypto::vouched_for(again.statement, load_cas(dir)->trust));
  EXPECT_FALSE(crypto::vouched_for(first.statement, load_cas(dir)->trust));
}

TEST_F(Keys, AgentsThatCanLearnNoneHoldAChangeBack) {
  const KeySet first = load();
  ASSERT_TRUE(write_keys_behind(dir, {first.statement.revision, {"node-3 sleeps"}}).ok());
  EXPECT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::Order}, now).ok()) << "it learns when it comes";
  const auto revision = load().statement.revision;
  ASSERT_TRUE(write_keys_behind(dir, {revision, {"node-4 old" + std::string(kCannotLearn)}}).ok());
  const auto refused = rotate_signing_key(dir, {.kind = KeyKind::Order}, now);
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("node-4"), std::string::npos) << refused.error().message;
  EXPECT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::Order, .now = true}, now).ok());
}

TEST(SealedKeys, ChangeInAFolderThatIsEncrypted) {
  const std::string root = (fs::temp_directory_path() / ("muster_keys_" + hex(crypto::random_bytes(6)))).string();
  ASSERT_TRUE(fs::create_directories(root + "/data"));
  ASSERT_TRUE(crypto::write_secret_file(root + "/key", crypto::random_bytes(32)).ok());
  auto rest = new_at_rest({root + "/key", {}, false}, RestState::On);
  ASSERT_TRUE(rest.ok()) << rest.error().message;
  ASSERT_TRUE(write_at_rest(root + "/data", *rest).ok());
  const DataDir dir{root + "/data", std::make_shared<const AtRest>(std::move(*rest))};
  const WallTime now = read_clocks().wall;
  ASSERT_TRUE(create_identity(dir, {{"muster.example.org"}, {}}, now).ok());
  ASSERT_TRUE(rotate_signing_key(dir, {.kind = KeyKind::RelayToken, .start_in = 60s}, now).ok());
  const std::string server_id = as_string(*dir.read(dir.key("server_id")));
  EXPECT_TRUE(load_signing_keys(dir, *load_cas(dir), server_id, now + 60s).ok());
  for (const char* name : {"relay.pem", "signing-keys.pem"})
    EXPECT_FALSE(crypto::read_secret_file(dir.key(name))->empty() ||
                 as_string(*crypto::read_secret_file(dir.key(name))).find("-----BEGIN") != std::string::npos)
        << name << " lies there in the clear";
  fs::remove_all(root);
}

int run_words(std::vector<std::string> words, int (*command)(const Arguments&)) {
  std::vector<char*> raw;
  words.insert(words.begin(), "musterd");
  for (auto& word : words) raw.push_back(word.data());
  const auto arguments = parse_arguments(static_cast<int>(raw.size()), raw.data());
  return arguments.ok() ? command(*arguments) : 2;
}

TEST_F(Keys, TheCommandWorksWhereTheKeysLieEncryptedOrApart) {
  EXPECT_EQ(run_words({"keys", "list"}, cmd_keys), 2);
  EXPECT_EQ(run_words({"keys", "rotate", "audit", "--data", dir.root}, cmd_keys), 2);
  EXPECT_EQ(run_words({"keys", "rotate", "all", "--data", dir.root}, cmd_keys), 0);
  EXPECT_EQ(run_words({"keys", "rotate", "order", "--data", dir.root, "--compromised", "--keep-hours", "3"}, cmd_keys),
            2);
  EXPECT_EQ(run_words({"keys", "rotate", "order", "--data", dir.root, "--keep-hours", "many"}, cmd_keys), 2);
  testing::internal::CaptureStdout();
  EXPECT_EQ(run_words({"keys", "list", "--data", dir.root}, cmd_keys), 0);
  const std::string said = testing::internal::GetCapturedStdout();
  EXPECT_NE(said.find("relay-token"), std::string::npos) << said;
  EXPECT_NE(said.find(", believed already, new\n"), std::string::npos) << said;
  const std::string apart = dir.root + "-apart";
  ASSERT_EQ(run_words({"signer", "split", "--data", dir.root, "--to", apart}, cmd_signer), 0);
  EXPECT_FALSE(fs::exists(dir.key("relay.next.pem"))) << "the announced one went too";
  EXPECT_EQ(run_words({"keys", "rotate", "order", "--data", dir.root}, cmd_keys), 1) << "the keys are not there";
  EXPECT_EQ(run_words({"keys", "rotate", "order", "--data", apart}, cmd_keys), 0);
  now = read_clocks().wall + 61s;
  EXPECT_TRUE(load_signing_keys({apart}, *load_cas({apart}), server_id(), now).ok());
  fs::remove_all(apart);
}

}  // namespace
}  // namespace muster::server
