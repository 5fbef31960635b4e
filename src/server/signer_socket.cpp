#include "server/signer_socket.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "base/endian.h"
#include "base/log.h"
#include "crypto/random.h"
#include "server/at_rest.h"

namespace muster::server {
namespace {

constexpr std::size_t kConnectionsMax = 64, kFieldsMax = 1'000'002;
constexpr int kSignerFd = 3;
constexpr Millis kAgainAfter{200}, kTurnedAwayEvery{5'000};

struct Address {
  sockaddr_un name{};
  socklen_t size = 0;
};
Result<Address> address_of(const std::string& socket) {
  Address out;
  out.name.sun_family = AF_UNIX;
  if (socket.empty() || socket.size() >= sizeof out.name.sun_path)
    return error(Code::InvalidArgument, "a socket's path must have between 1 and 107 characters");
  std::memcpy(out.name.sun_path, socket.data(), socket.size());
  if (socket.front() == '@') out.name.sun_path[0] = '\0';
  out.size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket.size() + (socket.front() == '@' ? 0 : 1));
  return out;
}

bool write_whole(int fd, ByteView data) {
  while (!data.empty()) {
    const ssize_t n = ::send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    data = data.subspan(static_cast<std::size_t>(n));
  }
  return true;
}
bool read_whole(int fd, std::uint8_t* out, std::size_t size) {
  while (size > 0) {
    const ssize_t n = ::recv(fd, out, size, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    out += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

Bytes message_of(std::uint8_t kind, const Signer::Fields& fields) {
  std::size_t size = 1;
  for (const Bytes& field : fields) size += 4 + field.size();
  Bytes out(4);
  out.reserve(4 + size);
  store_be32(out.data(), static_cast<std::uint32_t>(size));
  out.push_back(kind);
  for (const Bytes& field : fields) {
    append_be(out, static_cast<std::uint32_t>(field.size()));
    out.insert(out.end(), field.begin(), field.end());
  }
  return out;
}

struct SignMessage {
  std::uint8_t kind = 0;
  Signer::Fields fields;
};
std::optional<SignMessage> parse_message(ByteView bytes) {
  if (bytes.empty()) return {};
  SignMessage out{bytes[0], {}};
  for (bytes = bytes.subspan(1); !bytes.empty();) {
    if (bytes.size() < 4 || out.fields.size() >= kFieldsMax) return {};
    const std::size_t size = load_be32(bytes.data());
    bytes = bytes.subspan(4);
    if (size > bytes.size()) return {};
    out.fields.emplace_back(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size));
    bytes = bytes.subspan(size);
  }
  return out;
}
std::optional<SignMessage> read_message(int fd) {
  std::array<std::uint8_t, 4> head;
  if (!read_whole(fd, head.data(), head.size())) return {};
  const std::size_t size = load_be32(head.data());
  if (size == 0 || size > kSignMessageMax) return {};
  Bytes bytes(size);
  if (!read_whole(fd, bytes.data(), bytes.size())) return {};
  return parse_message(bytes);
}

int connect_to_signer(const std::string& socket, Millis patience) {
  const auto address = address_of(socket);
  if (!address.ok()) return -1;
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const timeval limit{static_cast<time_t>(patience.count() / 1000),
                      static_cast<suseconds_t>(patience.count() % 1000 * 1000)};
  ::setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  ::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (fd >= 0 && ::connect(fd, reinterpret_cast<const sockaddr*>(&address->name), address->size) == 0) return fd;
  if (fd >= 0) ::close(fd);
  return -1;
}

}  // namespace

Result<int> listen_for_signer(const std::string& socket) {
  const Address address = TRY(address_of(socket));
  if (struct stat info{}; socket.front() != '@' && ::lstat(socket.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode))
      return error(Code::AlreadyExists, fmt::format("{} exists and is no socket; name another place", socket));
    ::unlink(socket.c_str());
  }
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || ::bind(fd, reinterpret_cast<const sockaddr*>(&address.name), address.size) != 0 ||
      ::listen(fd, 64) != 0) {
    const int why = errno;
    if (fd >= 0) ::close(fd);
    return error(Code::Unavailable, fmt::format("{} cannot be listened on: {}", socket, std::strerror(why)));
  }
  if (socket.front() != '@') ::chmod(socket.c_str(), 0666);  // who may ask is decided by who connects
  return fd;
}

SignerService::SignerService(SigningDesk& desk, int listener, std::set<uid_t> users)
    : desk_(desk), listener_(listener), users_(std::move(users)), acceptor_([this] { accept_all(); }) {}

SignerService::~SignerService() {
  stopping_ = true;
  ::shutdown(listener_, SHUT_RDWR);
  acceptor_.join();
  {
    const std::lock_guard lock(mutex_);
    for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
  }
  for (Worker& worker : workers_) worker.thread.join();
  ::close(listener_);
}

void SignerService::accept_all() {
  auto told = std::chrono::steady_clock::now() - kTurnedAwayEvery;
  while (!stopping_) {
    pollfd wait{listener_, POLLIN, 0};
    if (::poll(&wait, 1, 200) <= 0 || stopping_) continue;
    const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      std::this_thread::sleep_for(Millis(20));
      continue;
    }
    ucred peer{};
    socklen_t size = sizeof peer;
    if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0 || !users_.contains(peer.uid)) {
      if (const auto now = std::chrono::steady_clock::now(); now - told >= kTurnedAwayEvery) {
        log_warn("signer", "uid {} (pid {}) may not ask for signatures and was turned away", peer.uid, peer.pid);
        told = now;
      }
      ::close(fd);
      continue;
    }
    const std::lock_guard lock(mutex_);
    std::erase_if(workers_, [](Worker& worker) {
      const bool done = *worker.done;
      if (done) worker.thread.join();
      return done;
    });
    if (open_.size() >= kConnectionsMax) {
      ::close(fd);
      continue;
    }
    open_.insert(fd);
    Worker worker;
    worker.thread = std::thread([this, fd, done = worker.done, who = fmt::format("uid {} pid {}", peer.uid, peer.pid)] {
      serve(fd, who);
      *done = true;
    });
    workers_.push_back(std::move(worker));
  }
}

void SignerService::serve(int fd, const std::string& who) {
  while (!stopping_) {
    const auto asked = read_message(fd);
    if (!asked) break;
    const bool known = asked->kind >= 1 && asked->kind <= kSignOps;
    auto answer = known ? desk_.ask_as(who, static_cast<SignOp>(asked->kind), asked->fields)
                        : Result<Signer::Fields>(error(Code::Unsupported, "the signer does not know this request"));
    const Bytes bytes = answer.ok() ? message_of(0, *answer)
                                    : message_of(1, {number_field(static_cast<std::uint64_t>(answer.error().code)),
                                                     to_bytes(answer.error().message), to_bytes(answer.error().field)});
    if (!write_whole(fd, bytes)) break;
  }
  const std::lock_guard lock(mutex_);
  open_.erase(fd);
  ::close(fd);
}

SignerLink::~SignerLink() {
  for (const int fd : idle_) ::close(fd);
}

// Asked again on a new connection where the one before had died: to sign the same twice hurts nobody.
Result<Signer::Fields> SignerLink::ask(SignOp op, const Fields& fields) {
  const auto end = std::chrono::steady_clock::now() + patience_;
  do {
    int fd = -1;
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) fd = std::exchange(idle_.back(), -1), idle_.pop_back();
    }
    if (fd < 0) fd = connect_to_signer(socket_, patience_);
    if (fd < 0) {
      std::this_thread::sleep_for(Millis(50));
      continue;
    }
    if (!write_whole(fd, message_of(static_cast<std::uint8_t>(op), fields))) {
      ::close(fd);
      continue;
    }
    const auto said = read_message(fd);
    if (!said) {
      ::close(fd);
      std::this_thread::sleep_for(Millis(20));
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      idle_.push_back(fd);
    }
    if (said->kind == 0) return said->fields;
    if (said->fields.size() != 3) return error(Code::Internal, "the signer gave an answer that is not understood");
    return error(static_cast<Code>(TRY(read_number(said->fields[0]))), as_string(said->fields[1]),
                 as_string(said->fields[2]));
  } while (std::chrono::steady_clock::now() < end);
  return error(Code::Unavailable, fmt::format("the signer at {} does not answer; is `musterd signer` running, and may "
                                              "this user ask it (--users)?",
                                              socket_));
}

Result<std::unique_ptr<SignerChild>> SignerChild::start(const DataDir& dir) {
  std::unique_ptr<SignerChild> child(new SignerChild);
  child->words_ = {"musterd", "signer", "--data", dir.root, "--listener", "3"};
  if (dir.at_rest && !dir.at_rest->source.credential) {  // a credential it finds itself
    const KeySource& source = dir.at_rest->source;
    const bool program = !source.program.empty();
    child->words_.push_back(program ? "--at-rest-program" : "--at-rest-key");
    child->words_.push_back(program ? source.program : source.file);
  }
  child->socket_ = "@muster-signer-" + hex(crypto::random_bytes(16));
  child->listener_ = TRY(listen_for_signer(child->socket_));
  TRY_VOID(child->launch());
  // One that cannot begin said why itself. On a machine with too much to do each answer may take long, and who gave up
  // early each time would never get one: the patience grows, to half a minute in all.
  for (int tries = 0; !SignerLink(child->socket_, kAgainAfter * (1 + tries / 4)).view().ok(); ++tries) {
    const bool ended = ::waitpid(child->pid_, nullptr, WNOHANG) != 0;
    if (ended) child->pid_ = -1;
    if (ended || tries >= 32) {
      return error(Code::Unavailable, "the signer could not be started with the keys in " + dir.root + "/keys");
    }
  }
  child->watcher_ = std::thread([raw = child.get()] { raw->watch(); });
  return child;
}

// Between fork and exec only what a signal handler might call.
Status SignerChild::launch() {
  std::vector<const char*> words;
  for (const std::string& word : words_) words.push_back(word.c_str());
  words.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) return error(Code::Unavailable, "the signer cannot be started: fork failed");
  if (pid == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    ::setpgid(0, 0);  // a terminal's interrupt is for musterd, which ends this one last
    if (::dup2(listener_, kSignerFd) < 0 || (listener_ == kSignerFd && ::fcntl(kSignerFd, F_SETFD, 0) != 0)) ::_exit(1);
    ::execv("/proc/self/exe", const_cast<char* const*>(words.data()));
    ::_exit(127);
  }
  pid_ = pid;
  return {};
}

void SignerChild::watch() {
  while (!stopping_) {
    int status = 0;
    const pid_t pid = pid_;
    if (::waitpid(pid, &status, WNOHANG) == 0) {
      std::this_thread::sleep_for(Millis(50));
      continue;
    }
    if (stopping_) return;
    log_error("signer", "the signer ended ({}) and is started again",
              WIFSIGNALED(status) ? fmt::format("signal {}", WTERMSIG(status))
                                  : fmt::format("exit code {}", WEXITSTATUS(status)));
    std::this_thread::sleep_for(kAgainAfter);
    if (const Status again = launch(); !again.ok()) log_error("signer", "{}", again.error().message);
  }
}

SignerChild::~SignerChild() {
  stopping_ = true;
  if (watcher_.joinable()) watcher_.join();
  if (pid_ > 0) {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  if (listener_ >= 0) ::close(listener_);
}

}  // namespace muster::server
