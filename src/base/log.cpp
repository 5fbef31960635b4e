#include "base/log.h"

#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <string>

#include "base/time.h"

namespace muster {
namespace {
std::atomic<Level>& threshold() {
  static std::atomic<Level> level = [] {
    const char* text = std::getenv("MUSTER_LOG");
    const std::string_view name = text == nullptr ? "" : text;
    if (name == "debug") return Level::Debug;
    if (name == "warn") return Level::Warn;
    if (name == "error") return Level::Error;
    return Level::Info;
  }();
  return level;
}
}  // namespace

void set_log_level(Level level) {
  threshold() = level;
}

void log_line(Level level, std::string_view area, std::string_view message) {
  if (level < threshold()) return;
  constexpr const char* names[] = {"DEBUG", "INFO ", "WARN ", "ERROR"};
  std::string line =
      fmt::format("{} {} {}: {}\n", format_utc(read_clocks().wall), names[static_cast<int>(level)], area, message);
  for (std::size_t i = 0; i + 1 < line.size(); ++i) {
    if (static_cast<unsigned char>(line[i]) < 0x20) line[i] = ' ';  // one record stays one line, whatever a peer sent
  }
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}
}  // namespace muster
