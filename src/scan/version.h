#pragma once
// The order of versions as each packager has it: Debian (deb-version(7)), Alpine (apk), rpm, Python (PEP 440). Less
// than 0, 0, or more; nothing where one of the two is no version of that kind. Pure; hostile text is bounded by
// kVersionMax.
#include <optional>
#include <string_view>

namespace muster::scan {

inline constexpr std::size_t kVersionMax = 256;

std::optional<int> compare_debian(std::string_view a, std::string_view b);
std::optional<int> compare_alpine(std::string_view a, std::string_view b);
std::optional<int> compare_rpm(std::string_view a, std::string_view b);  // [epoch:]version[-release]
std::optional<int> compare_python(std::string_view a, std::string_view b);
// ecosystem as OSV writes it: "Debian:12", "Ubuntu:24.04:LTS", "Alpine:v3.19", "AlmaLinux:9", "PyPI"; nothing for
// others.
std::optional<int> compare_versions(std::string_view ecosystem, std::string_view a, std::string_view b);

}  // namespace muster::scan
