#pragma once
// The terminal and signals. on_interrupt: a thread waits for SIGINT and SIGTERM, calls the newest handler and leaves
// with 130, so a command says what it left behind even while it is blocked. Call start_signals() before any other
// thread exists.
#include <functional>
#include <string>

#include "base/result.h"

namespace muster::cli {

bool stdin_is_terminal();
bool stdout_is_terminal();
bool stderr_is_terminal();
struct Size {
  std::uint16_t rows = 24, cols = 80;
  bool operator==(const Size&) const = default;
};
Size terminal_size();

Result<std::string> ask_password(const std::string& prompt);  // no echo; needs a terminal
Result<std::string> ask_line(const std::string& prompt);      // as typed; also from a pipe
bool confirm(const std::string& question);                    // "y" or "yes" on a terminal; false without one

// Keyboard bytes come as they are; restored by the destructor and before any exit by signal.
class RawMode {
 public:
  RawMode();
  ~RawMode();
  RawMode(const RawMode&) = delete;
  RawMode& operator=(const RawMode&) = delete;
};

void start_signals();
// While it lives, an interrupt prints `say()` on stderr before the process leaves with 130; the innermost one counts.
class OnInterrupt {
 public:
  explicit OnInterrupt(std::function<std::string()> say);
  ~OnInterrupt();
  OnInterrupt(const OnInterrupt&) = delete;
  OnInterrupt& operator=(const OnInterrupt&) = delete;

 private:
  std::function<std::string()> outer_;
};

// One line that is rewritten in place on a terminal; elsewhere nothing.
class Progress {
 public:
  void show(const std::string& text);
  void clear();
  ~Progress() { clear(); }

 private:
  std::string shown_;
};

void say(const std::string& text);  // a line on stderr: for people, never part of the output

}  // namespace muster::cli
