// signer: the process that holds the signing keys. signer split: their way into a folder of its own.
#include <fcntl.h>
#include <fmt/format.h>
#include <pwd.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <filesystem>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/signer_socket.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;

Result<std::set<uid_t>> users_of(const std::string& text) {
  std::set<uid_t> out{::geteuid()};
  std::istringstream in(text);
  for (std::string name; std::getline(in, name, ',');) {
    uid_t uid = 0;
    const auto [end, fault] = std::from_chars(name.data(), name.data() + name.size(), uid);
    if (fault == std::errc() && end == name.data() + name.size()) {
      out.insert(uid);
    } else if (const passwd* entry = ::getpwnam(name.c_str())) {
      out.insert(entry->pw_uid);
    } else {
      return error(Code::InvalidArgument, fmt::format("--users: there is no user {}", name));
    }
  }
  return out;
}

Status serve_signer(const Arguments& arguments) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  ::signal(SIGHUP, SIG_IGN);
  // Nobody else reads its memory, not even through a core file.
  ::prctl(PR_SET_DUMPABLE, 0);
  ::prctl(PR_SET_NAME, "muster-signer");
  ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  const rlimit none{0, 0};
  ::setrlimit(RLIMIT_CORE, &none);
  const DataDir dir = TRY(open_data_dir(arguments));
  const auto desk = TRY(SigningDesk::open(dir));
  const std::set<uid_t> users = TRY(users_of(arguments.option("--users")));
  const std::string inherited = arguments.option("--listener"), socket = arguments.option("--socket");
  int listener = -1;
  if (!inherited.empty()) {
    listener = std::atoi(inherited.c_str());
    ::fcntl(listener, F_SETFD, FD_CLOEXEC);
  } else {
    listener = TRY(listen_for_signer(socket));
    log_info("signer", "signing for {} users at {} with the keys in {}", users.size(), socket, dir.root);
  }
  const SignerService service(*desk, listener, users);
  int got = 0;
  sigwait(&signals, &got);
  if (inherited.empty()) ::unlink(socket.c_str());
  return {};
}

Status copy_key(const DataDir& from, const DataDir& to, const std::string& name) {
  const Bytes bytes = TRY(from.read(from.key(name)));
  return to.write(to.key(name), bytes);
}

// The other folder is encrypted too, with data keys of its own under the same key.
Status seal_other(const DataDir& dir, DataDir& to) {
  const auto known = crypto::read_secret_file(rest_path(to.root));
  AtRest keys = known.ok() ? TRY(unwrap_rest_file(as_string(*known), dir.at_rest->source))
                           : TRY(new_at_rest(dir.at_rest->source, RestState::On));
  if (!known.ok()) TRY_VOID(write_at_rest(to.root, keys));
  to.at_rest = std::make_shared<const AtRest>(std::move(keys));
  return {};
}

// Copies first, then the mark, then what was copied goes: a crash in between is repeated.
Status split_keys(const Arguments& arguments) {
  const DataDir dir = TRY(open_data_dir(arguments));
  DataDir to{arguments.option("--to")};
  if (!fs::exists(dir.key("ca.key.pem")))
    return error(Code::NotFound, fmt::format("{} holds no signing keys", dir.root));
  if (fs::exists(to.key("signer-whole")))
    return error(Code::AlreadyExists, fmt::format("{} holds signing keys already", to.root));
  std::error_code fault;
  fs::create_directories(to.root + "/keys", fault);
  for (const auto& path : {to.root, to.root + "/keys"}) fs::permissions(path, fs::perms::owner_all, fault);
  if (fault) return error(Code::Unavailable, fmt::format("the folder {} cannot be made", to.root));
  if (dir.at_rest) TRY_VOID(seal_other(dir, to));
  std::vector<std::string> secret;
  for (const auto& entry : fs::directory_iterator(dir.root + "/keys")) {
    const std::string name = entry.path().filename().string();
    const bool signs = name == "ca.key.pem" || name == "ca.cert.pem" || name == "root.key.pem" ||
                       name == "next.key.pem" || name == "roster.pem" || name == "command.pem" || name == "relay.pem" ||
                       name == "roster.next.pem" || name == "command.next.pem" || name == "relay.next.pem" ||
                       name == "signing-keys.pem" || name == "audit.pem" || name == "access.pem" ||
                       name == "access.before" || name == "workload.pem" || name == "workload.before" ||
                       (name.starts_with("trust") && name.ends_with(".pem"));
    if (signs) secret.push_back(name);
  }
  for (const std::string& name : secret) TRY_VOID(copy_key(dir, to, name));
  for (const char* name : {"server_id", "sans", "relays"}) TRY_VOID(copy_key(dir, to, name));
  TRY_VOID(to.write(to.key("signer-whole"), as_bytes("1\n")));
  TRY_VOID(dir.write(dir.key("signer-apart"), as_bytes(to.root + "\n")));
  for (const std::string& name : secret) fs::remove(dir.key(name), fault);
  return {};
}

}  // namespace

int cmd_signer(const Arguments& arguments) {
  const auto& words = arguments.words;
  const std::string data = arguments.option("--data"), to = arguments.option("--to");
  const bool splits = words.size() == 2 && words[1] == "split" && !data.empty() && !to.empty();
  const bool serves = words.size() == 1 && !data.empty() &&
                      (!arguments.option("--socket").empty() || !arguments.option("--listener").empty());
  if (!splits && !serves) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  const Status done = splits ? split_keys(arguments) : serve_signer(arguments);
  if (!done.ok()) {
    fmt::print(stderr, "musterd signer: {}\n", done.error().message);
    return 1;
  }
  if (splits)
    fmt::print(
        "The signing keys are in {}, and no longer in {}. Give the folder to a user of its own, start musterd "
        "signer there, and name its socket to musterd serve with --signer.\n",
        to, data);
  return 0;
}

}  // namespace muster::server
