#include "cli/terminal.h"

#include <pthread.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <iostream>
#include <mutex>
#include <thread>
#include <utility>

#include "cli/table.h"

namespace muster::cli {
namespace {

struct Saved {
  bool active = false;
  termios mode{};
};
Saved& saved() {
  static Saved value;
  return value;
}
std::mutex& mutex() {
  static std::mutex value;
  return value;
}
std::function<std::string()>& handler() {
  static std::function<std::string()> value;
  return value;
}

void restore() {
  if (saved().active) tcsetattr(STDIN_FILENO, TCSANOW, &saved().mode);
  saved().active = false;
}

}  // namespace

bool stdin_is_terminal() {
  return isatty(STDIN_FILENO) == 1;
}
bool stdout_is_terminal() {
  return isatty(STDOUT_FILENO) == 1;
}
bool stderr_is_terminal() {
  return isatty(STDERR_FILENO) == 1;
}

Size terminal_size() {
  for (const int fd : {STDOUT_FILENO, STDERR_FILENO, STDIN_FILENO}) {
    winsize size{};
    if (ioctl(fd, TIOCGWINSZ, &size) == 0 && size.ws_col != 0 && size.ws_row != 0) return {size.ws_row, size.ws_col};
  }
  return {};
}

Result<std::string> ask_password(const std::string& prompt) {
  if (!stdin_is_terminal())
    return error(Code::InvalidArgument,
                 "there is no terminal to ask for the password; use --password-file FILE or - for standard input");
  termios mode{};
  tcgetattr(STDIN_FILENO, &mode);
  {
    const std::lock_guard lock(mutex());
    saved() = {true, mode};
  }
  mode.c_lflag &= ~static_cast<tcflag_t>(ECHO);
  tcsetattr(STDIN_FILENO, TCSAFLUSH, &mode);
  std::fputs(prompt.c_str(), stderr);  // only now: what is typed at once must neither be seen nor thrown away
  std::string line;
  const bool got = static_cast<bool>(std::getline(std::cin, line));
  {
    const std::lock_guard lock(mutex());
    restore();
  }
  std::fputs("\n", stderr);
  if (!got || line.empty()) return error(Code::InvalidArgument, "no password given");
  return line;
}

Result<std::string> ask_line(const std::string& prompt) {
  if (stdin_is_terminal()) std::fputs(prompt.c_str(), stderr);
  std::string line;
  if (!std::getline(std::cin, line) || line.empty()) return error(Code::InvalidArgument, prompt + "nothing was given");
  if (line.back() == '\r') line.pop_back();
  return line;
}

bool confirm(const std::string& question) {
  if (!stdin_is_terminal()) return false;
  std::fputs((question + " [y/N] ").c_str(), stderr);
  std::string line;
  std::getline(std::cin, line);
  return line == "y" || line == "Y" || line == "yes";
}

RawMode::RawMode() {
  termios mode{};
  if (tcgetattr(STDIN_FILENO, &mode) != 0) return;
  {
    const std::lock_guard lock(mutex());
    saved() = {true, mode};
  }
  cfmakeraw(&mode);
  tcsetattr(STDIN_FILENO, TCSANOW, &mode);
}

RawMode::~RawMode() {
  const std::lock_guard lock(mutex());
  restore();
}

void start_signals() {
  std::signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGINT);
  sigaddset(&set, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  std::thread([set] {
    int signal = 0;
    sigwait(&set, &signal);
    std::string text;
    {
      const std::lock_guard lock(mutex());
      restore();
      if (handler()) text = handler()();
    }
    text = "\n" + text + (text.empty() ? "" : "\n");
    [[maybe_unused]] const auto written = write(STDERR_FILENO, text.data(), text.size());
    _exit(130);
  }).detach();
}

OnInterrupt::OnInterrupt(std::function<std::string()> say) {
  const std::lock_guard lock(mutex());
  outer_ = std::exchange(handler(), std::move(say));
}
OnInterrupt::~OnInterrupt() {
  const std::lock_guard lock(mutex());
  handler() = std::move(outer_);
}

void Progress::show(const std::string& text) {
  const std::string line = clean(text);
  if (line == shown_) return;
  if (stderr_is_terminal()) {
    const std::size_t width = terminal_size().cols;
    std::fprintf(stderr, "\r\033[K%s", line.substr(0, width > 1 ? width - 1 : 1).c_str());
    std::fflush(stderr);
  }
  shown_ = line;
}

void Progress::clear() {
  if (!shown_.empty() && stderr_is_terminal()) std::fputs("\r\033[K", stderr);
  shown_.clear();
}

void say(const std::string& text) {
  std::fprintf(stderr, "%s\n", text.c_str());
}

}  // namespace muster::cli
