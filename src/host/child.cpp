#include "host/child.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>

namespace muster::host {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::array kSteps{
    "start",           "enter its control group", "enter its network",   "set its limits", "give up its groups",
    "become its user", "prepare its descriptors", "enter its directory", "run it"};

// What the child tells when a step failed, on a pipe that exec closes.
struct Failure {
  int step = 0, code = 0;
};

// Everything the child needs, as C wants it, made before the fork.
struct Prepared {
  explicit Prepared(const Child& child) {
    for (const auto& word : child.argv) argv.push_back(const_cast<char*>(word.c_str()));
    for (const auto& word : child.env) env.push_back(const_cast<char*>(word.c_str()));
    program = child.program.empty() ? child.argv[0].c_str() : child.program.c_str();
    argv.push_back(nullptr);
    env.push_back(nullptr);
    for (const auto& path : child.cgroups) cgroups.push_back(path.c_str());
    int highest = 2;
    for (const auto& [ours, theirs] : child.fds) highest = std::max({highest, ours, theirs});
    parking = highest + 1;
  }
  std::vector<char*> argv, env;
  std::vector<const char*> cgroups;
  const char* program = nullptr;
  int parking = 3;  // first number above all that are moved
};

[[noreturn]] void give_up(int tell, int step) {
  const Failure failure{step, errno};
  [[maybe_unused]] const auto n = write(tell, &failure, sizeof failure);
  _exit(127);
}

bool enter_cgroups(const Prepared& prepared) {
  for (const char* path : prepared.cgroups) {
    const int fd = open(path, O_WRONLY | O_CLOEXEC);
    const bool entered = fd >= 0 && write(fd, "0", 1) == 1;
    if (fd >= 0) close(fd);
    if (!entered) return false;
  }
  return true;
}

// Moves the named descriptors to their numbers by way of numbers that nothing else has; the rest goes with exec.
bool move_fds(const Child& child, const Prepared& prepared, int& tell) {
  const int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0) return false;
  int next = prepared.parking;
  const int kept = fcntl(tell, F_DUPFD_CLOEXEC, next + static_cast<int>(child.fds.size()) + 8);
  if (kept < 0) return false;
  tell = kept;
  std::array<int, 16> parked{};
  for (std::size_t i = 0; i < child.fds.size(); ++i) {
    parked[i] = fcntl(child.fds[i].first, F_DUPFD_CLOEXEC, next);
    if (parked[i] < 0) return false;
    next = parked[i] + 1;
  }
  for (int standard = 0; standard < 3; ++standard) {
    if (dup2(null, standard) < 0) return false;
  }
  for (std::size_t i = 0; i < child.fds.size(); ++i) {
    if (dup2(parked[i], child.fds[i].second) < 0) return false;
  }
  return true;
}

[[noreturn]] void become(const Child& child, const Prepared& prepared, int network, int tell) {
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  for (const int each : {SIGPIPE, SIGTERM, SIGINT, SIGCHLD, SIGHUP}) signal(each, SIG_DFL);
  setsid();
  if (!enter_cgroups(prepared)) give_up(tell, 1);
  if (network >= 0 && setns(network, CLONE_NEWNET) != 0) give_up(tell, 2);
  if (child.nofile > 0) {
    const rlimit limit{static_cast<rlim_t>(child.nofile), static_cast<rlim_t>(child.nofile)};
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) give_up(tell, 3);
  }
  const rlimit no_core{1, 1};  // 1, not 0: that keeps a handler in the machine's core_pattern away as well
  setrlimit(RLIMIT_CORE, &no_core);
  if (!move_fds(child, prepared, tell)) give_up(tell, 6);
  if (child.uid != 0 || child.gid != 0) {  // the calls of libc would signal threads that a fork does not have
    if (syscall(SYS_setgroups, 0, nullptr) != 0) give_up(tell, 4);
    if (syscall(SYS_setresgid, child.gid, child.gid, child.gid) != 0) give_up(tell, 5);
    if (syscall(SYS_setresuid, child.uid, child.uid, child.uid) != 0) give_up(tell, 5);
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  }
  if (chdir(child.directory.c_str()) != 0) give_up(tell, 7);
  execve(prepared.program, prepared.argv.data(), prepared.env.data());
  give_up(tell, 8);
}

std::string tail(const std::string& text, std::size_t size) {
  return text.size() > size ? text.substr(text.size() - size) : text;
}

int code_of(int status) {
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace

Result<pid_t> start_child(const Child& child) {
  if (child.argv.empty() || child.fds.size() > 16) return error(Code::Internal, "nothing to start");
  const Prepared prepared(child);
  Fd network;
  if (!child.network.empty()) {
    network = Fd(open(child.network.c_str(), O_RDONLY | O_CLOEXEC));
    if (!network)
      return error(Code::FailedPrecondition, fmt::format("cannot open {}: {}", child.network, errno_text(errno)),
                   "container.missing");
  }
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return error(Code::ResourceExhausted, "no descriptors left", "fds");
  Fd told(ends[0]), tell(ends[1]);
  const pid_t pid = fork();
  if (pid < 0) return error(Code::ResourceExhausted, "cannot start a process: " + errno_text(errno), "fork");
  if (pid == 0) {
    if (child.detached) {
      const pid_t again = fork();
      if (again < 0) give_up(tell.get(), 0);
      if (again > 0) _exit(0);
      const Failure mine{-1, getpid()};
      if (write(tell.get(), &mine, sizeof mine) != sizeof mine) _exit(127);
    }
    become(child, prepared, network.get(), tell.get());
  }
  tell.reset();
  pid_t running = pid;
  Failure failure;
  ssize_t n = 0;
  while ((n = read(told.get(), &failure, sizeof failure)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n != sizeof failure) break;
    if (failure.step >= 0) break;
    running = failure.code;
    failure = {};
  }
  if (child.detached) waitpid(pid, nullptr, 0);
  if (n != sizeof failure) return running;
  if (!child.detached) waitpid(pid, nullptr, 0);
  return error(Code::Unavailable,
               fmt::format("cannot start {}: {}: {}", child.argv[0],
                           kSteps[static_cast<std::size_t>(std::clamp<int>(failure.step, 0, kSteps.size() - 1))],
                           errno_text(failure.code)),
               "container.start");
}

Result<Ended> run_child(Child child, std::string_view input, const RunLimits& limits) {
  int in[2], out[2], err[2];
  if (pipe2(in, O_CLOEXEC) != 0) return error(Code::ResourceExhausted, "no descriptors left", "fds");
  Fd in_read(in[0]), in_write(in[1]);
  if (pipe2(out, O_CLOEXEC) != 0) return error(Code::ResourceExhausted, "no descriptors left", "fds");
  Fd out_read(out[0]), out_write(out[1]);
  if (pipe2(err, O_CLOEXEC) != 0) return error(Code::ResourceExhausted, "no descriptors left", "fds");
  Fd err_read(err[0]), err_write(err[1]);
  for (const int fd : {in_write.get(), out_read.get(), err_read.get()}) (void)set_blocking(fd, false).ok();
  for (const auto& each : {std::pair{in_read.get(), 0}, {out_write.get(), 1}, {err_write.get(), 2}})
    child.fds.push_back(each);
  const pid_t pid = TRY(start_child(child));
  in_read.reset();
  out_write.reset();
  err_write.reset();
  Ended ended;
  const auto end = Clock::now() + limits.timeout;
  auto next_tick = Clock::now();
  bool stopped = false, late = false;
  const auto take = [&](Fd& fd, std::string& into, std::size_t max, bool keep_end) {
    std::array<char, 16384> buffer;
    const ssize_t n = read(fd.get(), buffer.data(), buffer.size());
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) return fd.reset();
    into.append(buffer.data(), static_cast<std::size_t>(n));
    if (into.size() > max) into = keep_end ? tail(into, max) : into.substr(0, max);
  };
  if (input.empty()) in_write.reset();
  while (out_read || err_read) {
    std::array<pollfd, 3> wait{pollfd{out_read.get(), POLLIN, 0}, pollfd{err_read.get(), POLLIN, 0},
                               pollfd{in_write.get(), POLLOUT, 0}};
    poll(wait.data(), wait.size(), 250);
    if (out_read && wait[0].revents != 0) take(out_read, ended.out, limits.out_max, false);
    if (err_read && wait[1].revents != 0) take(err_read, ended.err, limits.err_max, true);
    if (in_write && wait[2].revents != 0) {
      const ssize_t n = write(in_write.get(), input.data(), input.size());
      if (n > 0) input.remove_prefix(static_cast<std::size_t>(n));
      if (input.empty() || (n < 0 && errno != EAGAIN && errno != EINTR)) in_write.reset();
    }
    late = Clock::now() > end;
    if (Clock::now() >= next_tick && limits.tick) {
      stopped = stopped || !limits.tick();
      next_tick = Clock::now() + Millis(250);
    }
    if (stopped || late) {
      kill(-pid, SIGKILL);
      break;
    }
  }
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  kill(-pid, SIGKILL);  // what it left behind in its session
  ended.code = code_of(status);
  if (stopped) return error(Code::Cancelled, "no longer wanted", "cancelled");
  if (late) return error(Code::DeadlineExceeded, fmt::format("{} did not end in time", child.argv[0]), "timeout");
  return ended;
}

std::string find_program(const std::string& name) {
  for (const std::string dir : {"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}) {
    const std::string path = dir + "/" + name;
    if (access(path.c_str(), X_OK) == 0) return path;
  }
  return {};
}

}  // namespace muster::host
