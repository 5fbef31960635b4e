#include "cli/session.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "crypto/access_token.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

constexpr std::int64_t kDuePermille = 800;  // of a token's life

Result<net::Response> renew_over_net(const Account& account, const std::string& body) {
  net::Client client(TRY(endpoint_of(account)));
  return client.call({.method = "POST",
                      .target = "/api/v1/login/renew",
                      .headers = {{"content-type", "application/json"}},
                      .body = body});
}

Status keep(const Config& config) {
  const Status saved = save_config(config_path(), config);
  if (saved.ok()) return {};
  return error(saved.error().code, saved.error().message +
                                       "; a login renews itself in this file: where it cannot be written, use an API "
                                       "token (`muster token create`) by MUSTER_TOKEN_FILE");
}

// With the lock: what the config holds becomes another token, or nothing where the login has ended.
Result<std::string> renew(Config& config, Account& held, const RenewCall& call) {
  if (held.refresh_next.empty()) {
    held.refresh_next = crypto::next_refresh_token(held.refresh).text;
    TRY_VOID(keep(config));
  }
  const auto next = crypto::parse_refresh_token(held.refresh_next);
  if (!next.ok())
    return error(Code::Unauthenticated, "the login in " + config_path() + " is damaged; log in again: muster login");
  const auto answer = TRY(call(held, wire::to_json(wire::RenewLoginRequest{held.refresh, next->rotating})));
  if (answer.status != 200) {
    const Error why = problem_of(answer.status, answer.body);
    if (why.code != Code::Unauthenticated) return why;
    held.token.clear(), held.refresh.clear(), held.refresh_next.clear();
    TRY_VOID(keep(config));
    return why;
  }
  const auto body = TRY(wire::parse_json(answer.body));
  take_login(held, body);
  held.refresh = std::exchange(held.refresh_next, {});
  TRY_VOID(keep(config));
  return held.token;
}

}  // namespace

Result<std::unique_ptr<ConfigLock>> ConfigLock::hold() {
  const std::string path = config_path() + ".lock";
  std::error_code ignored;
  const auto folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::exists(folder, ignored)) {
    std::filesystem::create_directories(folder, ignored);
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all, ignored);
  }
  const int fd = ::open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  if (fd < 0)
    return error(
        Code::FailedPrecondition,
        fmt::format("{}: cannot be written: {}; a login renews itself beside it: where that is impossible, use "
                    "an API token (`muster token create`) by MUSTER_TOKEN_FILE",
                    path, std::strerror(errno)));
  while (::flock(fd, LOCK_EX) != 0 && errno == EINTR) {
  }
  return std::unique_ptr<ConfigLock>(new ConfigLock(fd));
}
ConfigLock::~ConfigLock() {
  ::close(fd_);
}

void take_login(Account& account, const wire::Json& answer) {
  account.token = answer["token"].text();
  if (const std::string& refresh = answer["refreshToken"].text(); !refresh.empty()) account.refresh = refresh;
  // By this machine's clock: the server's may be off.
  const std::int64_t seconds = answer["expiresInSeconds"].integer(0);
  account.renew_at_ms = read_clocks().wall.ms + seconds * kDuePermille;
}

Result<std::string> bearer_of(Account& account, Renewal renewal, const RenewCall& call) {
  if (account.refresh.empty() || account.context.empty()) return account.token;
  const auto due = [](const Account& each) { return each.renew_at_ms <= read_clocks().wall.ms; };
  if (renewal == Renewal::WhenDue && !due(account)) return account.token;
  const auto lock = TRY(ConfigLock::hold());
  Config config = TRY(load_config(config_path()));
  const auto found = config.accounts.find(account.context);
  if (found == config.accounts.end() || found->second.refresh.empty() || found->second.server != account.server)
    return error(Code::Unauthenticated, "this login was ended on this machine; log in again: muster login");
  Account& held = found->second;
  const bool others = renewal == Renewal::Now ? held.token != account.token : true;
  Result<std::string> token = held.token;
  if (due(held) || !others) token = renew(config, held, call);
  account.token = held.token, account.refresh = held.refresh, account.renew_at_ms = held.renew_at_ms;
  return token;
}

Result<std::string> bearer_of(Account& account, Renewal renewal) {
  return bearer_of(account, renewal, renew_over_net);
}

}  // namespace muster::cli
