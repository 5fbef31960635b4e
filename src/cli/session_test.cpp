#include "cli/session.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "crypto/access_token.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

// A control plane's side of renewals, in a file, so that several processes share it.
class FakeLogin {
 public:
  explicit FakeLogin(std::string path) : path_(std::move(path)) {}
  void begin(const std::string& refresh) { write(hex(crypto::parse_refresh_token(refresh)->rotating), 0); }
  Result<net::Response> answer(const std::string& body) const {
    const auto asked = wire::parse_renew_login(body);
    const std::string shown = hex(crypto::parse_refresh_token(asked->refresh_token)->rotating);
    const std::string next = hex(asked->next_sha256);
    auto [current, count] = read();
    if (next != current && shown != current) {
      write("over", count);
      return net::Response{.status = 401, .body = R"({"code":"unauthenticated","detail":"used before"})"};
    }
    write(next, count + 1);
    return net::Response{.status = 200,
                         .body = R"({"token":"token-)" + std::to_string(count + 1) + R"(","expiresInSeconds":"600"})"};
  }
  int renewals() const { return read().second; }
  bool over() const { return read().first == "over"; }

 private:
  std::pair<std::string, int> read() const {
    std::pair<std::string, int> out;
    std::ifstream(path_) >> out.first >> out.second;
    return out;
  }
  void write(const std::string& current, int count) const { std::ofstream(path_) << current << " " << count; }
  std::string path_;
};

class Session : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / ("muster-session-" + std::to_string(::getpid()));
    std::filesystem::create_directories(folder_);
    ::setenv("MUSTER_CONFIG", (folder_ + "/config.json").c_str(), 1);
    const std::string refresh = crypto::make_refresh_token().text;
    login_.begin(refresh);
    Config config;
    config.accounts["default"] = {
        .server = "https://x", .ca_pem = "ca", .token = "token-0", .user = "ann", .project = "", .refresh = refresh};
    ASSERT_TRUE(save_config(config_path(), config).ok());
  }
  void TearDown() override {
    ::unsetenv("MUSTER_CONFIG");
    std::filesystem::remove_all(folder_);
  }
  static Account stored() { return load_config(config_path())->accounts.at("default"); }
  RenewCall call() {
    return [this](const Account&, const std::string& body) { return login_.answer(body); };
  }
  std::string folder_ = std::filesystem::temp_directory_path() / ("muster-session-" + std::to_string(::getpid()));
  FakeLogin login_{folder_ + "/login"};
};

TEST_F(Session, ATokenIsRenewedWhenItIsDueAndNotBefore) {
  Account account = stored();
  EXPECT_EQ(*bearer_of(account, Renewal::WhenDue, call()), "token-1");
  EXPECT_EQ(*bearer_of(account, Renewal::WhenDue, call()), "token-1");
  EXPECT_EQ(login_.renewals(), 1);
  EXPECT_EQ(stored().token, "token-1");
  EXPECT_TRUE(stored().refresh_next.empty());
  EXPECT_EQ(*bearer_of(account, Renewal::Now, call()), "token-2") << "the server refused it";
  Account plain{.server = "https://x", .token = "mst_x"};
  EXPECT_EQ(*bearer_of(plain, Renewal::WhenDue, call()), "mst_x") << "an API token is what it is";
}

TEST_F(Session, WhatAnotherCommandRenewedIsTaken) {
  Account one = stored(), two = one;
  EXPECT_EQ(*bearer_of(one, Renewal::WhenDue, call()), "token-1");
  EXPECT_EQ(*bearer_of(two, Renewal::WhenDue, call()), "token-1");
  EXPECT_EQ(*bearer_of(two, Renewal::Now, call()), "token-2");
  EXPECT_EQ(*bearer_of(one, Renewal::Now, call()), "token-2") << "the refused one is not the newest";
  EXPECT_EQ(login_.renewals(), 2);
  EXPECT_FALSE(login_.over());
}

TEST_F(Session, ManyCommandsAtOnceAreNoTheft) {
  std::vector<pid_t> children;
  for (int i = 0; i < 12; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      bool good = true;
      for (int round = 0; round < 5 && good; ++round) {
        Account account = stored();
        good = bearer_of(account, round % 2 == 0 ? Renewal::WhenDue : Renewal::Now, call()).ok();
      }
      ::_exit(good ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  EXPECT_FALSE(login_.over());
  EXPECT_GE(login_.renewals(), 1);
}

TEST_F(Session, AnAnswerThatWasLostIsAskedForAgainWithTheSameNextToken) {
  Account account = stored();
  const RenewCall lost = [this](const Account&, const std::string& body) -> Result<net::Response> {
    static_cast<void>(login_.answer(body).ok());
    return error(Code::Unavailable, "the connection was lost");
  };
  EXPECT_EQ(bearer_of(account, Renewal::WhenDue, lost).error().code, Code::Unavailable);
  EXPECT_FALSE(stored().refresh_next.empty()) << "written down before it was sent";
  EXPECT_EQ(*bearer_of(account, Renewal::WhenDue, call()), "token-2");
  EXPECT_FALSE(login_.over());
  EXPECT_EQ(*bearer_of(account, Renewal::Now, call()), "token-3") << "and it goes on";
}

TEST_F(Session, OneThatEndedSaysSoAndIsForgotten) {
  Account account = stored();
  const RenewCall refused = [](const Account&, const std::string&) -> Result<net::Response> {
    return net::Response{.status = 401, .body = R"({"code":"unauthenticated","detail":"this login has ended"})"};
  };
  const auto ended = bearer_of(account, Renewal::WhenDue, refused);
  EXPECT_EQ(ended.error().code, Code::Unauthenticated);
  EXPECT_EQ(ended.error().message, "this login has ended");
  EXPECT_TRUE(stored().token.empty());
  EXPECT_TRUE(stored().refresh.empty());
  EXPECT_EQ(stored().user, "ann") << "the rest is kept";
}

TEST_F(Session, ATokenFileWinsAndIsNotRenewed) {
  std::ofstream(folder_ + "/token") << "mst_file\n";
  ::setenv("MUSTER_TOKEN_FILE", (folder_ + "/token").c_str(), 1);
  Account account = *choose_account(*load_config(config_path()), "");
  ::unsetenv("MUSTER_TOKEN_FILE");
  EXPECT_EQ(*bearer_of(account, Renewal::WhenDue, call()), "mst_file");
  EXPECT_EQ(login_.renewals(), 0);
}

}  // namespace
}  // namespace muster::cli
