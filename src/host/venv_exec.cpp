// The second half of venv_box.h: one more command inside a sandbox.
#include <fcntl.h>
#include <fmt/format.h>
#include <grp.h>
#include <linux/capability.h>
#include <poll.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>
#include <tuple>

#include "host/json.h"
#include "host/lease_dirs.h"
#include "host/seccomp_filter.h"
#include "host/venv_box.h"

namespace muster::host {
namespace {

constexpr int kStreamFd = 3, kControlFd = 4;

struct Ends {  // of the command; the other ends stay with us
  Fd in, out, err;
};

[[noreturn]] void die(int fd, const std::string& why) {
  const std::string text = "muster: " + why + "\n";
  [[maybe_unused]] const auto n = write(fd, text.data(), text.size());
  _exit(126);
}

bool enter_namespaces(pid_t init) {
  // Opened before any is entered: afterwards /proc is another one. The user namespace last: until then we are root.
  std::array<Fd, 6> files;
  const std::array<const char*, 6> names{"net", "ipc", "uts", "pid", "mnt", "user"};
  for (std::size_t i = 0; i < names.size(); ++i) {
    files[i] = Fd(open(fmt::format("/proc/{}/ns/{}", init, names[i]).c_str(), O_RDONLY | O_CLOEXEC));
    if (!files[i]) return false;
  }
  for (const auto& file : files) {
    if (setns(file.get(), 0) != 0) return false;
  }
  return true;
}

bool give_up_rights(uid_t uid) {
  if (setresgid(uid, uid, uid) != 0 || setresuid(uid, uid, uid) != 0) return false;
  for (int capability = 0; prctl(PR_CAPBSET_READ, capability, 0, 0, 0) >= 0; ++capability)
    prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
  prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> none{};
  return syscall(SYS_capset, &header, none.data()) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0;
}

// A terminal of the sandbox's own; the master goes back to us over the socket.
int open_terminal(int tell) {
  const Fd master(open("/dev/ptmx", O_RDWR | O_CLOEXEC | O_NOCTTY));
  int unlock = 0, number = 0;
  if (!master || ioctl(master.get(), TIOCSPTLCK, &unlock) != 0 || ioctl(master.get(), TIOCGPTN, &number) != 0)
    return -1;
  const int slave = open(fmt::format("/dev/pts/{}", number).c_str(), O_RDWR | O_CLOEXEC | O_NOCTTY);
  if (slave < 0 || !send_message(tell, "tty", {master.get()}).ok()) return -1;
  return slave;
}

std::string on_path(const std::string& name, const std::vector<std::string>& env) {
  if (name.find('/') != std::string::npos) return name;
  std::string path = "/usr/bin:/bin";
  for (const auto& each : env) {
    if (each.starts_with("PATH=")) path = each.substr(5);
  }
  std::istringstream dirs(path);
  for (std::string dir; std::getline(dirs, dir, ':');) {
    const std::string full = dir + "/" + name;
    if (access(full.c_str(), X_OK) == 0) return full;
  }
  return {};
}

// In the sandbox's count of processes, as its user.
[[noreturn]] void become(const BoxSpec& spec, const BoxExec& exec, int in, int out, int err) {
  setsid();
  if (exec.tty) ioctl(in, TIOCSCTTY, 0);
  for (const auto& [fd, number] : {std::pair{in, 0}, {out, 1}, {err, 2}}) {
    if (dup2(fd, number) < 0) _exit(126);
  }
  for (const int each : {SIGPIPE, SIGTERM, SIGINT, SIGHUP, SIGCHLD}) std::signal(each, SIG_DFL);
  if (chdir(spec.directory.c_str()) != 0 && chdir("/") != 0) die(2, "no directory to begin in");
  std::vector<std::string> env = spec.env;
  if (exec.tty) env.emplace_back("TERM=xterm-256color");
  const std::string program = on_path(exec.argv[0], env);
  if (program.empty()) {
    [[maybe_unused]] const auto n = dprintf(2, "muster: %s: not found\n", exec.argv[0].c_str());
    _exit(127);
  }
  std::vector<char*> argv, envp;
  for (const auto& word : exec.argv) argv.push_back(const_cast<char*>(word.c_str()));
  for (const auto& word : env) envp.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  envp.push_back(nullptr);
  if (const Status loaded = load_seccomp(spec.seccomp); !loaded.ok()) die(2, loaded.error().message);
  execve(program.c_str(), argv.data(), envp.data());
  [[maybe_unused]] const auto n = dprintf(2, "muster: %s: %s\n", exec.argv[0].c_str(), std::strerror(errno));
  _exit(errno == ENOENT ? 127 : 126);
}

// Between us and the command: enters the sandbox, whose process count begins with its own child.
[[noreturn]] void go_inside(const BoxSpec& spec, const BoxExec& exec, pid_t init, Ends ends, int tell) {
  for (const auto& entrance : spec.cgroups) {
    const Fd file(open(entrance.c_str(), O_WRONLY | O_CLOEXEC));
    if (!file || write(file.get(), "0", 1) != 1) die(ends.err.get(), "the sandbox's limits cannot be entered");
  }
  if (spec.nofile > 0) {
    const rlimit limit{static_cast<rlim_t>(spec.nofile), static_cast<rlim_t>(spec.nofile)};
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  const rlimit no_core{1, 1};  // 1, not 0: that keeps a handler in the machine's core_pattern away as well
  setrlimit(RLIMIT_CORE, &no_core);
  if (setgroups(0, nullptr) != 0 || !enter_namespaces(init) || !give_up_rights(spec.inner_uid))
    die(ends.err.get(), "the sandbox cannot be entered: " + errno_text(errno));
  int in = ends.in.get(), out = ends.out.get(), err = ends.err.get();
  if (exec.tty) {
    in = out = err = open_terminal(tell);
    if (in < 0) _exit(126);
  }
  shutdown(tell, SHUT_RDWR);
  const pid_t pid = fork();
  if (pid < 0) die(err, "no more processes are allowed");
  if (pid == 0) become(spec, exec, in, out, err);
  ends = {};
  if (exec.tty) close(in);
  int code = 0;
  while (waitpid(pid, &code, 0) < 0 && errno == EINTR) {
  }
  _exit(WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code));
}

bool write_fully(int fd, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t n = write(fd, data, size);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    data += n;
    size -= static_cast<std::size_t>(n);
  }
  return true;
}

// As the engines frame it: channel, three zero bytes, length.
bool send_framed(char channel, const char* data, std::size_t size) {
  const std::array<char, 8> head{channel,
                                 0,
                                 0,
                                 0,
                                 static_cast<char>(size >> 24),
                                 static_cast<char>(size >> 16),
                                 static_cast<char>(size >> 8),
                                 static_cast<char>(size)};
  return write_fully(kStreamFd, head.data(), head.size()) && write_fully(kStreamFd, data, size);
}

// Carries bytes between the stream and the command until that ended and what it said is delivered.
class Carrier {
 public:
  Carrier(pid_t pid, bool tty, Ends ends) : pid_(pid), tty_(tty), ends_(std::move(ends)), control_open_(tty) {
    if (ends_.in) (void)set_blocking(ends_.in.get(), false).ok();
  }
  int run() {  // -> its wait status
    while (!step()) {
    }
    return code_;
  }

 private:
  bool step() {
    ended_ = ended_ || waitpid(pid_, &code_, WNOHANG) == pid_;
    const bool wants_input = stream_open_ && pending_.empty();
    std::array<pollfd, 5> wait{pollfd{wants_input ? kStreamFd : -1, POLLIN, 0}, pollfd{ends_.out.get(), POLLIN, 0},
                               pollfd{ends_.err.get(), POLLIN, 0}, pollfd{control_open_ ? kControlFd : -1, POLLIN, 0},
                               pollfd{pending_.empty() ? -1 : ends_.in.get(), POLLOUT, 0}};
    const int ready = poll(wait.data(), wait.size(), ended_ ? 100 : 200);
    // What a process left behind may keep the pipes open for ever; what the command itself said has come by now.
    if (ended_ && (ready == 0 || (!ends_.out && !ends_.err))) return true;
    if (wait[3].revents != 0) on_control();
    if (wait[0].revents != 0) on_stream((wait[0].revents & POLLHUP) != 0);
    if (wait[4].revents != 0) feed();
    if (wait[1].revents != 0) deliver(ends_.out, 1);
    if (wait[2].revents != 0) deliver(ends_.err, 2);
    return false;
  }
  void on_control() {
    std::array<std::uint16_t, 2> size{};
    const ssize_t n = recv(kControlFd, size.data(), sizeof size, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) control_open_ = false;
    if (n != sizeof size) return;
    const winsize window{size[0], size[1], 0, 0};
    ioctl(ends_.out.get(), TIOCSWINSZ, &window);
  }
  void on_stream(bool gone) {
    std::array<char, 16384> buffer;
    const ssize_t n = read(kStreamFd, buffer.data(), buffer.size());
    if (n > 0) {
      if (ends_.in) pending_.assign(buffer.data(), static_cast<std::size_t>(n));
      return feed();
    }
    stream_open_ = false;
    ends_.in.reset();
    if (tty_ && gone) ends_.out.reset();  // the person is gone: the terminal hangs up
  }
  void feed() {
    if (!ends_.in) return pending_.clear();
    const ssize_t n = write(ends_.in.get(), pending_.data(), pending_.size());
    if (n > 0) pending_.erase(0, static_cast<std::size_t>(n));
    if (n >= 0 || errno == EAGAIN || errno == EINTR) return;
    ends_.in.reset();  // it reads no more
    pending_.clear();
  }
  void deliver(Fd& from, char channel) {
    std::array<char, 16384> buffer;
    const ssize_t n = read(from.get(), buffer.data(), buffer.size());
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    const auto size = static_cast<std::size_t>(std::max<ssize_t>(n, 0));
    const bool sent =
        n > 0 && (tty_ ? write_fully(kStreamFd, buffer.data(), size) : send_framed(channel, buffer.data(), size));
    if (!sent) from.reset();
  }

  pid_t pid_;
  bool tty_;
  Ends ends_;
  bool stream_open_ = true, control_open_, ended_ = false;
  int code_ = 0;
  std::string pending_;
};

Result<BoxExec> read_exec(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  const json::object object = TRY(parse_object(text.str()));
  BoxExec out;
  if (const auto* argv = object.if_contains("argv"); argv != nullptr && argv->is_array()) {
    for (const auto& word : argv->get_array()) out.argv.emplace_back(word.is_string() ? word.get_string().c_str() : "");
  }
  out.tty = bool_at(object, {"tty"});
  if (out.argv.empty()) return error(Code::InvalidArgument, "no command");
  return out;
}

}  // namespace

int run_box_exec(const std::string& dir, const std::string& id) {
  for (const int each : {SIGPIPE, SIGTERM, SIGINT, SIGHUP}) std::signal(each, SIG_IGN);
  const std::string base = dir + "/exec/" + id;
  const auto finish = [&](std::int64_t code) {
    (void)write_whole(base + ".exit", as_bytes(to_text(json::object{{"code", code}})), 0600, 0, 0).ok();
    shutdown(kStreamFd, SHUT_RDWR);
    return 0;
  };
  (void)write_whole(base + ".run", as_bytes(to_text(json::object{{"pid", getpid()}, {"began", start_time(getpid())}})),
                    0600, 0, 0)
      .ok();
  const auto spec = read_box_spec(dir);
  const auto exec = read_exec(base + ".json");
  const BoxState state = read_box_state(dir);
  if (!spec.ok() || !exec.ok() || state.init == 0) return finish(126);
  Ends ours, theirs;
  int in[2], out[2], err[2], tell[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, tell) != 0) return finish(126);
  Fd tell_ours(tell[0]), tell_theirs(tell[1]);
  if (!exec->tty) {
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) return finish(126);
    theirs = {Fd(in[0]), Fd(out[1]), Fd(err[1])};
    ours = {Fd(in[1]), Fd(out[0]), Fd(err[0])};
    for (const auto* each : {&theirs.in, &theirs.out, &theirs.err})
      std::ignore = fchown(each->get(), spec->uid, spec->uid);  // so that /dev/stdout can be opened again inside
  }
  const pid_t pid = fork();
  if (pid < 0) return finish(126);
  if (pid == 0) {
    close(kStreamFd);
    close(kControlFd);
    ours = {};
    tell_ours.reset();
    if (exec->tty) theirs.err = Fd(open("/dev/null", O_RDWR | O_CLOEXEC));
    go_inside(*spec, *exec, state.init, std::move(theirs), tell_theirs.get());
  }
  theirs = {};
  tell_theirs.reset();
  if (exec->tty) {
    auto told = receive_message(tell_ours.get());
    if (told.ok() && told->fds.size() == 1) {
      ours.out = std::move(told->fds[0]);
      ours.in = Fd(fcntl(ours.out.get(), F_DUPFD_CLOEXEC, 5));
    }
  }
  const int code = Carrier(pid, exec->tty, std::move(ours)).run();
  return finish(WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code));
}

}  // namespace muster::host
