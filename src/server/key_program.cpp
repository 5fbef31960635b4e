#include "server/key_program.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <thread>

extern char** environ;

namespace muster::server {
namespace {

constexpr std::size_t kSaidBytesMax = 300;

struct Pipe {
  int read = -1, write = -1;
  // Of sockets: who writes to an end that is closed gets an error and no signal.
  Pipe() {
    std::array<int, 2> ends{-1, -1};
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) == 0) read = ends[0], write = ends[1];
  }
  Pipe(const Pipe&) = delete;
  Pipe& operator=(const Pipe&) = delete;
  ~Pipe() {
    close_end(read);
    close_end(write);
  }
  static void close_end(int& end) {
    if (end >= 0) ::close(end);
    end = -1;
  }
};

// A process group of its own, ended as a whole.
class ProgramRun {
 public:
  static Result<ProgramRun> start(const std::string& program, const char* word, const Pipe& in, const Pipe& out,
                                  const Pipe& err) {
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_adddup2(&files, in.read, 0);
    posix_spawn_file_actions_adddup2(&files, out.write, 1);
    posix_spawn_file_actions_adddup2(&files, err.write, 2);
    posix_spawnattr_t how;
    posix_spawnattr_init(&how);
    sigset_t none, ours;
    sigemptyset(&none);
    sigemptyset(&ours);
    sigaddset(&ours, SIGPIPE);
    posix_spawnattr_setsigmask(&how, &none);
    posix_spawnattr_setsigdefault(&how, &ours);
    posix_spawnattr_setpgroup(&how, 0);
    posix_spawnattr_setflags(
        &how, static_cast<short>(POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF));
    std::string name = program, what = word;
    std::array<char*, 3> words{name.data(), what.data(), nullptr};
    ProgramRun out_process;
    const int fault = ::posix_spawn(&out_process.pid_, program.c_str(), &files, &how, words.data(), environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&how);
    if (fault != 0) {
      out_process.pid_ = -1;
      return error(Code::Unavailable,
                   fmt::format("--at-rest-program {} cannot be started: {}", program, std::strerror(fault)));
    }
    return out_process;
  }
  ProgramRun(ProgramRun&& other) noexcept : pid_(std::exchange(other.pid_, -1)) {}
  ProgramRun& operator=(ProgramRun&&) = delete;
  ~ProgramRun() {
    if (pid_ <= 0) return;
    ::kill(-pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  // Its exit code; -1: killed, or still running at the deadline.
  int wait_until(LeaseTime deadline) {
    while (true) {
      int status = 0;
      const pid_t got = ::waitpid(pid_, &status, WNOHANG);
      if (got == pid_) {
        ::kill(-pid_, SIGKILL);  // what it left behind
        pid_ = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
      }
      if (got < 0 || read_clocks().lease >= deadline) return -1;
      std::this_thread::sleep_for(Millis(10));
    }
  }

 private:
  ProgramRun() = default;
  pid_t pid_ = -1;
};

std::string shown_line(std::string text) {
  if (text.size() > kSaidBytesMax) text.resize(kSaidBytesMax);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (char& c : text) {
    if (c < ' ' || c > '~') c = ' ';
  }
  return text;
}

// One line in, one line out.
Result<std::string> call_program(const std::string& program, const char* word, std::string line, Millis patience) {
  if (program.find('/') == std::string::npos)
    return error(Code::InvalidArgument, "--at-rest-program must be a path, such as /usr/local/bin/muster-kms");
  Pipe in, out, err;
  if (in.write < 0 || out.write < 0 || err.write < 0)
    return error(Code::ResourceExhausted, "the program that wraps keys cannot be started: no descriptors are left");
  auto running = TRY(ProgramRun::start(program, word, in, out, err));
  Pipe::close_end(in.read);
  Pipe::close_end(out.write);
  Pipe::close_end(err.write);
  ::fcntl(in.write, F_SETFL, O_NONBLOCK);
  line += '\n';
  const LeaseTime deadline = read_clocks().lease + patience;
  std::string answer, said;
  std::size_t sent = 0;
  bool too_much = false;
  while (out.read >= 0 && !too_much) {
    const Millis left = deadline - read_clocks().lease;
    if (left <= Millis(0)) break;
    std::array<pollfd, 3> ends{pollfd{out.read, POLLIN, 0}, pollfd{err.read, POLLIN, 0}, pollfd{in.write, POLLOUT, 0}};
    if (::poll(ends.data(), ends.size(), static_cast<int>(std::min<std::int64_t>(left.count(), 1000))) < 0 &&
        errno != EINTR)
      break;
    if (in.write >= 0 && ends[2].revents != 0) {
      const ssize_t n = ::send(in.write, line.data() + sent, line.size() - sent, MSG_NOSIGNAL);
      if (n > 0) sent += static_cast<std::size_t>(n);
      if (sent == line.size() || (n < 0 && errno != EAGAIN && errno != EINTR)) Pipe::close_end(in.write);
    }
    std::array<char, 1024> block;
    if (ends[0].revents != 0) {
      const ssize_t n = ::read(out.read, block.data(), block.size());
      if (n > 0) answer.append(block.data(), static_cast<std::size_t>(n));
      if (n == 0 || (n < 0 && errno != EINTR)) Pipe::close_end(out.read);
      too_much = answer.size() > kWrappedBytesMax + 1;
    }
    if (err.read >= 0 && ends[1].revents != 0) {
      const ssize_t n = ::read(err.read, block.data(), block.size());
      if (n > 0 && said.size() < kSaidBytesMax) said.append(block.data(), static_cast<std::size_t>(n));
      if (n == 0 || (n < 0 && errno != EINTR)) Pipe::close_end(err.read);
    }
    crypto::zeroise(block.data(), block.size());
  }
  crypto::zeroise(line);
  const bool late = out.read >= 0 && !too_much;
  const int code = late || too_much ? -1 : running.wait_until(deadline);
  const std::string name = fmt::format("--at-rest-program {} {}", program, word);
  if (code != 0) {
    crypto::zeroise(answer);
    const std::string why = too_much   ? fmt::format("answered more than {} bytes", kWrappedBytesMax)
                            : code < 0 ? "did not end in time, or was killed"
                                       : fmt::format("failed with exit code {}", code);
    return error(Code::Unavailable,
                 fmt::format("{} {}{}", name, why, said.empty() ? "" : ", saying: " + shown_line(said)));
  }
  if (!answer.empty() && answer.back() == '\n') answer.pop_back();
  const bool good = !answer.empty() && answer.size() <= kWrappedBytesMax &&
                    std::all_of(answer.begin(), answer.end(), [](char c) { return c > ' ' && c <= '~'; });
  if (good) return answer;
  crypto::zeroise(answer);
  return error(Code::Unavailable, fmt::format("{} must answer with one line of printable characters, no spaces", name));
}

}  // namespace

Result<std::string> program_wrap(const std::string& program, const crypto::Secret32& key, Millis patience) {
  return call_program(program, "wrap", base64(key.view()), patience);
}

Result<crypto::Secret32> program_unwrap(const std::string& program, const std::string& wrapped, Millis patience) {
  std::string text = TRY(call_program(program, "unwrap", wrapped, patience));
  auto bytes = unbase64(text);
  crypto::zeroise(text);
  const auto key = bytes ? crypto::key32(*bytes) : std::nullopt;
  if (bytes) crypto::zeroise(*bytes);
  if (!key)
    return error(Code::Unavailable,
                 fmt::format("--at-rest-program {} unwrap must answer with 32 bytes in base64", program));
  return crypto::Secret32(*key);
}

}  // namespace muster::server
