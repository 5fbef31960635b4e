#include "cli/config.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "wire/json.h"

namespace muster::cli {
namespace {

std::string env(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

std::string trim(std::string text) {
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  return text;
}

}  // namespace

std::string config_path() {
  if (const auto path = env("MUSTER_CONFIG"); !path.empty()) return path;
  const auto base = env("XDG_CONFIG_HOME");
  return (base.empty() ? env("HOME") + "/.config" : base) + "/muster/config.json";
}

Result<std::string> read_file(const std::string& path, std::size_t max_bytes) {
  const int fd = path == "-" ? dup(STDIN_FILENO) : open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0)
    return error(errno == ENOENT ? Code::NotFound : Code::InvalidArgument,
                 fmt::format("{}: cannot be read: {}", path, std::strerror(errno)));
  std::string out;
  char buffer[65'536];
  for (;;) {
    const auto got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) {
      const std::string why = std::strerror(errno);
      close(fd);
      return error(Code::InvalidArgument, fmt::format("{}: cannot be read: {}", path, why));
    }
    if (got == 0) break;
    out.append(buffer, static_cast<std::size_t>(got));
    if (out.size() > max_bytes) {
      close(fd);
      return error(Code::TooLarge, fmt::format("{} has more than {} bytes", path, max_bytes));
    }
  }
  close(fd);
  return out;
}

Status write_secret_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + ".new." + std::to_string(getpid());
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0)
    return error(Code::FailedPrecondition, fmt::format("{}: cannot be written: {}", path, std::strerror(errno)));
  std::size_t done = 0;
  while (done < text.size()) {
    const auto put = write(fd, text.data() + done, text.size() - done);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) break;
    done += static_cast<std::size_t>(put);
  }
  const bool good = done == text.size() && fsync(fd) == 0;
  close(fd);
  if (!good || rename(temporary.c_str(), path.c_str()) != 0) {
    const std::string why = std::strerror(errno);
    unlink(temporary.c_str());
    return error(Code::FailedPrecondition, fmt::format("{}: cannot be written: {}", path, why));
  }
  return {};
}

Result<Config> load_config(const std::string& path) {
  auto text = read_file(path, 1 << 20);
  if (!text.ok()) return text.error().code == Code::NotFound ? Result<Config>(Config{}) : Result<Config>(text.error());
  auto parsed = wire::parse_json(*text);
  if (!parsed.ok())
    return error(Code::InvalidArgument,
                 fmt::format("{}: {}; repair or remove it and log in again", path, parsed.error().message));
  Config config;
  if (const auto& current = (*parsed)["current"].text(); !current.empty()) config.current = current;
  for (const auto& [name, account] : (*parsed)["contexts"].members())
    config.accounts[name] = {
        account["server"].text(),       account["ca_pem"].text(),         account["token"].text(),
        account["user"].text(),         account["project"].text(),        account["refresh"].text(),
        account["refresh_next"].text(), account["renew_at_ms"].integer(), name};
  return config;
}

Status save_config(const std::string& path, const Config& config) {
  std::error_code ignored;
  const auto folder = std::filesystem::path(path).parent_path();
  if (!folder.empty() && !std::filesystem::exists(folder, ignored)) {
    std::filesystem::create_directories(folder, ignored);
    std::filesystem::permissions(folder, std::filesystem::perms::owner_all, ignored);
  }
  auto contexts = wire::Json::object();
  for (const auto& [name, account] : config.accounts) {
    auto one = wire::Json::object();
    one.set("server", wire::Json::string(account.server))
        .set("ca_pem", wire::Json::string(account.ca_pem))
        .set("token", wire::Json::string(account.token));
    one.set("user", wire::Json::string(account.user)).set("project", wire::Json::string(account.project));
    if (!account.refresh.empty())
      one.set("refresh", wire::Json::string(account.refresh))
          .set("refresh_next", wire::Json::string(account.refresh_next))
          .set("renew_at_ms", wire::Json::number(account.renew_at_ms));
    contexts.set(name, std::move(one));
  }
  auto root = wire::Json::object();
  root.set("current", wire::Json::string(config.current)).set("contexts", std::move(contexts));
  return write_secret_file(path, root.dump(2) + "\n");
}

Result<Account> choose_account(const Config& config, const std::string& context) {
  Account account;
  const std::string name = context.empty() ? config.current : context;
  const auto found = config.accounts.find(name);
  if (found != config.accounts.end())
    account = found->second;
  else if (!context.empty())
    return error(Code::NotFound, fmt::format("there is no context {}; `muster login` makes one", context));
  if (const auto server = env("MUSTER_SERVER"); !server.empty() && server != account.server)
    account = {server, "", "", "", ""};
  if (const auto file = env("MUSTER_CA_FILE"); !file.empty()) account.ca_pem = TRY(read_file(file, 1 << 20));
  if (const auto file = env("MUSTER_TOKEN_FILE"); !file.empty()) {
    account.token = trim(TRY(read_file(file, 4'096)));
    account.refresh.clear();
  }
  if (const auto project = env("MUSTER_PROJECT"); !project.empty()) account.project = project;
  if (account.server.empty())
    return error(Code::Unauthenticated, "not logged in; run: muster login https://HOST --ca-sha256 HEX --user NAME");
  return account;
}

}  // namespace muster::cli
