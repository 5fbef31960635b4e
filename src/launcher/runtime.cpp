// Container or virtual environment: the image's name says which, and muster.runtime: venv turns a container image of
// Ray into the environment with the same versions.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>

#include "launcher/parts.h"
#include "model/image_name.h"
#include "model/venv_image.h"

namespace muster::launcher {
namespace {

bool digits(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c) != 0; });
}

// "2.60.0" and "3.11" of rayproject/ray:2.60.0-py311-gpu; empty where the tag does not say.
std::pair<std::string, std::string> versions_of(std::string_view image) {
  const std::string repository = image_repository(image);
  std::string_view tag = image.substr(0, image.find('@'));
  tag = tag.size() > repository.size() ? tag.substr(repository.size() + 1) : std::string_view();
  std::string version(tag.substr(0, tag.find('-'))), python;
  const bool release =
      std::count(version.begin(), version.end(), '.') == 2 &&
      std::all_of(version.begin(), version.end(),
                  [](unsigned char c) { return std::isdigit(c) != 0 || c == '.' || std::islower(c) != 0; }) &&
      digits(version.substr(0, version.find('.')));
  if (const auto at = tag.find("-py3"); at != std::string_view::npos) {
    const std::string_view minor =
        tag.substr(at + 4, tag.find('-', at + 1) == std::string_view::npos ? std::string_view::npos
                                                                           : tag.find('-', at + 1) - at - 4);
    if (digits(minor) && minor.size() <= 2) python = fmt::format("3.{}", minor);
  }
  return {release ? version : std::string(), python};
}

}  // namespace

Status choose_runtime(Draft& draft) {
  ClusterSpec& spec = draft.launch.spec;
  if (is_venv_image(spec.image)) {
    const auto image = parse_venv_image(spec.image);
    if (!image.ok()) return error(Code::InvalidArgument, image.error().message, "muster.image");
    spec.image = venv_text(*image);
    spec.runtime = RuntimeKind::Venv;
    draft.report.mapped("muster.runtime", 0, "venv: a sandboxed virtual environment instead of a container");
    return {};
  }
  if (spec.runtime != RuntimeKind::Venv) return {};
  auto [ray, python] = versions_of(spec.image);
  if (ray.empty()) ray = versions_of(draft.context.default_image).first;
  if (ray.empty()) ray = versions_of(Context{}.default_image).first;
  const std::string image = venv_text({ray, python.empty() ? "3" : python, {}, {}});
  draft.report.replaced(
      "muster.runtime", 0,
      fmt::format("{} -> {} (runtime venv: the same Ray in a sandboxed virtual environment)", spec.image, image));
  spec.image = image;
  return {};
}

}  // namespace muster::launcher
