#include "host/venv_box.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <sstream>
#include <thread>

#include "host/child.h"
#include "host/json.h"
#include "host/lease_dirs.h"

namespace muster::host {
namespace {

constexpr std::size_t kOutputMax = 5 << 20;  // of one of two files, as the engines have it
constexpr int kArgsFd = 3, kSeccompFd = 4, kStatusFd = 5;

std::string read_whole(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

json::array array_of(const std::vector<std::string>& words) {
  json::array out;
  for (const auto& word : words) out.emplace_back(word);
  return out;
}
std::vector<std::string> words_at(const json::object& object, const char* key) {
  std::vector<std::string> out;
  const auto* list = object.if_contains(key);
  if (list == nullptr || !list->is_array()) return out;
  for (const auto& each : list->get_array()) {
    if (each.is_string()) out.emplace_back(each.get_string().c_str());
  }
  return out;
}

Status keep(const std::string& path, const json::object& object) {
  return write_whole(path, as_bytes(to_text(object)), 0600, geteuid(), getegid());
}

Fd file_of(ByteView bytes) {
  Fd file(memfd_create("muster", MFD_CLOEXEC));
  std::size_t done = 0;
  while (file && done < bytes.size()) {
    const ssize_t n = write(file.get(), bytes.data() + done, bytes.size() - done);
    if (n <= 0) return Fd();
    done += static_cast<std::size_t>(n);
  }
  if (file) lseek(file.get(), 0, SEEK_SET);
  return file;
}

// Two files of bounded size, the newer one growing.
class Output {
 public:
  explicit Output(std::string dir) : dir_(std::move(dir)) { open_new(); }
  void add(std::string_view text) {
    if (size_ + text.size() > kOutputMax) {
      rename((dir_ + "/output").c_str(), (dir_ + "/output.1").c_str());
      open_new();
    }
    size_ += text.size();
    [[maybe_unused]] const auto n = write(file_.get(), text.data(), text.size());
  }

 private:
  void open_new() {
    file_ = Fd(open((dir_ + "/output").c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    size_ = 0;
  }
  std::string dir_;
  Fd file_;
  std::size_t size_ = 0;
};

// /sys as the lease's network has it, in a mount namespace of our own that the sandbox inherits.
bool mount_sysfs(const BoxSpec& spec) {
  if (spec.sysfs.empty()) return true;
  const Fd network(open(spec.network.c_str(), O_RDONLY | O_CLOEXEC));
  return network && unshare(CLONE_NEWNS) == 0 && mount(nullptr, "/", nullptr, MS_REC | MS_SLAVE, nullptr) == 0 &&
         setns(network.get(), CLONE_NEWNET) == 0 &&
         mount("sysfs", spec.sysfs.c_str(), "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, nullptr) == 0;
}

// bwrap's status lines: {"child-pid": N} is the first process of the sandbox's own count.
pid_t first_process(int status) {
  std::string line;
  char c = 0;
  while (line.size() < 4096) {
    pollfd wait{status, POLLIN, 0};
    if (poll(&wait, 1, 30'000) <= 0 || read(status, &c, 1) != 1) return 0;
    if (c != '\n') {
      line.push_back(c);
      continue;
    }
    const auto said = parse_object(line);
    const auto pid = said.ok() ? int_at(*said, {"child-pid"}) : 0;
    if (pid > 0) return static_cast<pid_t>(pid);
    line.clear();
  }
  return 0;
}

// The command itself is the oldest child of that process.
pid_t main_process(pid_t init, pid_t box) {
  const std::string path = fmt::format("/proc/{}/task/{}/children", init, init);
  for (int i = 0; i < 500 && kill(box, 0) == 0; ++i) {
    pid_t pid = 0;
    std::ifstream(path) >> pid;
    if (pid > 0) return pid;
    std::this_thread::sleep_for(Millis(10));
  }
  return 0;
}

std::uint64_t oom_kills(const BoxSpec& spec) {
  for (const auto& entrance : spec.cgroups) {
    const std::string dir = entrance.substr(0, entrance.rfind('/'));
    for (const char* name : {"/memory.oom_control", "/memory.events"}) {
      std::istringstream lines(read_whole(dir + name));
      std::string key;
      for (std::uint64_t value = 0; lines >> key >> value;) {
        if (key == "oom_kill") return value;
      }
    }
  }
  return 0;
}

void ended(const std::string& dir, std::int64_t code, bool out_of_memory) {
  (void)keep(dir + "/exit.json", {{"code", code}, {"oom", out_of_memory}}).ok();
}

}  // namespace

std::uint64_t start_time(pid_t pid) {
  const std::string text = read_whole(fmt::format("/proc/{}/stat", pid));
  const auto name_end = text.rfind(')');
  if (pid <= 0 || name_end == std::string::npos) return 0;
  std::istringstream fields(text.substr(name_end + 1));
  std::string word;
  for (int i = 0; i < 20; ++i) fields >> word;  // the 22nd of all
  return std::strtoull(word.c_str(), nullptr, 10);
}

Status write_box_spec(const std::string& dir, const BoxSpec& spec) {
  return keep(dir + "/spec.json", {{"bwrap", spec.bwrap},
                                   {"options", array_of(spec.options)},
                                   {"command", array_of(spec.command)},
                                   {"env", array_of(spec.env)},
                                   {"cgroups", array_of(spec.cgroups)},
                                   {"network", spec.network},
                                   {"sysfs", spec.sysfs},
                                   {"directory", spec.directory},
                                   {"image", spec.image},
                                   {"uid", spec.uid},
                                   {"inner_uid", spec.inner_uid},
                                   {"nofile", spec.nofile},
                                   {"seccomp", base64(spec.seccomp)}});
}

Result<BoxSpec> read_box_spec(const std::string& dir) {
  const auto object = parse_object(read_whole(dir + "/spec.json"));
  if (!object.ok()) return error(Code::NotFound, "there is no sandbox", "container.missing");
  BoxSpec out;
  out.bwrap = text_at(*object, {"bwrap"});
  out.options = words_at(*object, "options");
  out.command = words_at(*object, "command");
  out.env = words_at(*object, "env");
  out.cgroups = words_at(*object, "cgroups");
  out.network = text_at(*object, {"network"});
  out.sysfs = text_at(*object, {"sysfs"});
  out.directory = text_at(*object, {"directory"});
  out.image = text_at(*object, {"image"});
  out.uid = static_cast<uid_t>(int_at(*object, {"uid"}));
  out.inner_uid = static_cast<uid_t>(int_at(*object, {"inner_uid"}));
  out.nofile = int_at(*object, {"nofile"});
  const auto seccomp = unbase64(text_at(*object, {"seccomp"}));
  if (!seccomp || seccomp->empty() || out.uid == 0 || out.command.empty())
    return error(Code::DataLoss, "the sandbox's description is damaged", "container.missing");
  out.seccomp = *seccomp;
  return out;
}

BoxState read_box_state(const std::string& dir) {
  BoxState out;
  struct stat info {};
  out.known = stat((dir + "/spec.json").c_str(), &info) == 0;
  if (!out.known) return out;
  if (const auto state = parse_object(read_whole(dir + "/state.json")); state.ok()) {
    const auto alive = [&](const char* pid_key, const char* time_key) {
      const auto pid = static_cast<pid_t>(int_at(*state, {pid_key}));
      const auto began = static_cast<std::uint64_t>(int_at(*state, {time_key}));
      return began != 0 && start_time(pid) == began ? pid : 0;
    };
    out.box = alive("box", "box_began");
    out.init = alive("init", "init_began");
    out.main = alive("main", "main_began");
  }
  const auto exit = parse_object(read_whole(dir + "/exit.json"));
  out.running = !exit.ok() && out.box != 0;
  out.exit_code = exit.ok() ? int_at(*exit, {"code"}, 255) : out.running ? 0 : 137;
  out.out_of_memory = exit.ok() && bool_at(*exit, {"oom"});
  return out;
}

std::string read_box_output(const std::string& dir, std::size_t bytes_max) {
  const std::string text = read_whole(dir + "/output.1") + read_whole(dir + "/output");
  return text.size() > bytes_max ? text.substr(text.size() - bytes_max) : text;
}

int run_box(const std::string& dir) {
  for (const int each : {SIGTERM, SIGINT, SIGHUP, SIGPIPE}) std::signal(each, SIG_IGN);
  const auto spec = read_box_spec(dir);
  Output output(dir);
  const auto give_up = [&](const std::string& why) {
    output.add("muster: " + why + "\n");
    ended(dir, 125, false);
    return 1;
  };
  if (!spec.ok()) return give_up(spec.error().message);
  if (!mount_sysfs(*spec)) return give_up("cannot mount /sys of the lease's network: " + errno_text(errno));
  std::string words;
  for (const auto& option : spec->options) words += option + '\0';
  const Fd args = file_of(as_bytes(words)), filter = file_of(spec->seccomp);
  int status[2], out[2];
  if (!args || !filter || pipe2(status, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0)
    return give_up("no descriptors left");
  const Fd status_read(status[0]), out_read(out[0]);
  Fd status_write(status[1]), out_write(out[1]);
  Child child;
  child.argv = {spec->bwrap,
                "--args",
                std::to_string(kArgsFd),
                "--seccomp",
                std::to_string(kSeccompFd),
                "--json-status-fd",
                std::to_string(kStatusFd),
                "--"};
  child.argv.insert(child.argv.end(), spec->command.begin(), spec->command.end());
  child.env = {"PATH=/usr/bin:/bin"};
  child.cgroups = spec->cgroups;
  child.network = spec->network;
  child.uid = spec->uid;
  child.gid = spec->uid;
  child.nofile = spec->nofile;
  child.fds = {{args.get(), kArgsFd},
               {filter.get(), kSeccompFd},
               {status_write.get(), kStatusFd},
               {out_write.get(), 1},
               {out_write.get(), 2}};
  const auto oom_before = oom_kills(*spec);
  const auto started = start_child(child);
  if (!started.ok()) return give_up(started.error().message);
  status_write.reset();
  out_write.reset();
  const pid_t init = first_process(status_read.get());
  const pid_t main = init > 0 ? main_process(init, *started) : 0;
  (void)keep(dir + "/state.json", {{"box", getpid()},
                                   {"box_began", start_time(getpid())},
                                   {"init", init},
                                   {"init_began", start_time(init)},
                                   {"main", main},
                                   {"main_began", start_time(main)}})
      .ok();
  std::array<char, 16384> buffer;
  int code = 0;
  for (bool over = false; !over;) {
    over = waitpid(*started, &code, WNOHANG) == *started;
    for (pollfd wait{out_read.get(), POLLIN, 0}; poll(&wait, 1, over ? 0 : 200) > 0;) {
      const ssize_t n = read(out_read.get(), buffer.data(), buffer.size());
      if (n <= 0) {
        if (!over) std::this_thread::sleep_for(Millis(50));
        break;
      }
      output.add({buffer.data(), static_cast<std::size_t>(n)});
    }
  }
  const int exit_code = WIFEXITED(code) ? WEXITSTATUS(code) : 128 + WTERMSIG(code);
  ended(dir, exit_code, exit_code == 137 && oom_kills(*spec) > oom_before);
  return 0;
}

Status write_box_exec(const std::string& dir, const std::string& id, const BoxExec& exec) {
  TRY_VOID(make_dir(dir + "/exec", 0700));
  return keep(dir + "/exec/" + id + ".json", {{"argv", array_of(exec.argv)}, {"tty", exec.tty}});
}

std::int64_t box_exec_code(const std::string& dir, const std::string& id) {
  const std::string base = dir + "/exec/" + id;
  if (const auto code = parse_object(read_whole(base + ".exit")); code.ok()) return int_at(*code, {"code"}, 255);
  const auto asked = parse_object(read_whole(base + ".json"));
  if (!asked.ok()) return -2;
  const auto runs = parse_object(read_whole(base + ".run"));
  if (!runs.ok()) return -1;  // just being started
  const auto began = static_cast<std::uint64_t>(int_at(*runs, {"began"}));
  if (start_time(static_cast<pid_t>(int_at(*runs, {"pid"}))) == began) return -1;
  if (const auto code = parse_object(read_whole(base + ".exit")); code.ok()) return int_at(*code, {"code"}, 255);
  return 137;
}

}  // namespace muster::host
