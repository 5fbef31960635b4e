#pragma once
// One line a record on stderr: "2026-11-23T01:02:03.456Z INFO  area: message". Thread-safe. Never log a secret.
#include <fmt/format.h>

#include <string_view>

namespace muster {

enum class Level { Debug, Info, Warn, Error };
void set_log_level(Level level);  // default Info; MUSTER_LOG=debug|info|warn|error overrides
void log_line(Level level, std::string_view area, std::string_view message);

template <typename... Args>
void log_info(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  log_line(Level::Info, area, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_warn(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  log_line(Level::Warn, area, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_error(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  log_line(Level::Error, area, fmt::format(format, std::forward<Args>(args)...));
}
template <typename... Args>
void log_debug(std::string_view area, fmt::format_string<Args...> format, Args&&... args) {
  log_line(Level::Debug, area, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace muster
