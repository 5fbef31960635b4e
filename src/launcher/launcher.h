#pragma once
// Ray's cluster-launcher YAML -> what Muster is asked for, and a report of what became of every key. Pure: no files, no
// network; local paths named in file_mounts are returned for the caller to pack and upload. An error names line and key
// and says what to do (Error.field is the dotted key). Source of the keys: Ray's ray-schema.json and the docs page
// "Cluster YAML configuration".
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/types.h"

namespace muster::launcher {

struct Alias {
  std::string prefix;
  std::string equivalent;
  std::string why;
};  // "rayproject/ray-ml" matches any tag of it

struct Context {
  // The caller's own enrolled machine with this address or host name; nullopt for everybody else's.
  std::function<std::optional<NodeId>(std::string_view address)> find_node;
  std::string default_image = "muster/ray:2.60.0";
  std::vector<Alias> aliases = default_aliases();
  bool egress = false;  // asked for beside the file
  static std::vector<Alias> default_aliases();
};

struct ReportRow {
  enum class What : std::uint8_t { Mapped, Replaced, Ignored, Warning };
  std::string key;
  What what = What::Mapped;
  std::string text;
  int line = 0;
  bool operator==(const ReportRow&) const = default;
};
std::string_view what_name(ReportRow::What what);  // "mapped", ...

struct LocalMount {
  std::string remote, local;
  int line = 0;
  bool operator==(const LocalMount&) const = default;
};

struct Launch {
  ClusterSpec spec;  // files are empty: `mounts` has to be uploaded first
  std::vector<ReportRow> report;
  std::vector<LocalMount> mounts;
  std::vector<std::string> excludes;  // rsync_exclude: patterns not packed from mounts
};

Result<Launch> from_yaml(std::string_view text, const Context& context);
// Any YAML as the text of JSON, with the types YAML 1.1 gives to plain words (so a runtime environment may be YAML).
Result<std::string> json_of_yaml(std::string_view text);
// The report as text in columns, at most `width` wide; for the CLI and server answers alike.
std::string report_text(const std::vector<ReportRow>& report, std::size_t width = 120);

}  // namespace muster::launcher
