#pragma once
// The parts of from_yaml, one per group of keys; internal to this room. Each takes the draft and the tree of its keys.
#include <optional>
#include <string>
#include <vector>

#include "launcher/launcher.h"
#include "launcher/reader.h"

namespace muster::launcher {

// What a role's start commands say that outlives them: flags of `ray start` and commands that ran before it.
struct StartFlags {
  std::optional<Resources> resources;
  std::map<std::string, std::string> labels;
  std::vector<std::string> setup;
};

struct Draft {
  const Context& context;
  Launch launch;
  Report report;
  StartFlags head, worker;
  std::vector<std::string> worker_setup;                        // worker_setup_commands of the whole file
  std::map<std::string, std::vector<std::string>> group_setup;  // a node type's own, which take their place
  std::vector<std::string> images;                              // every image named, in order of the keys
  std::map<std::string, std::string> constraints;               // muster.region and muster.labels
  std::string gpu_model;
  std::int32_t gpu_share_milli = 0;  // muster.gpu_share, 0 = whole GPUs
  int gpu_share_line = 0;
  Traffic traffic;                          // of every machine
  std::optional<Resources> head_resources;  // muster.head
};

Status read_docker(Draft& draft, const Tree& docker, const std::string& key);
Status read_run_options(Draft& draft, const Tree& options, const std::string& key);
void choose_image(Draft& draft);
Status choose_runtime(Draft& draft);  // after the image
Status read_start_commands(Draft& draft, const Tree& commands, const std::string& key, StartFlags& role);
Result<Resources> read_resources(Draft& draft, const Tree& map, const std::string& key);
Status read_machines(Draft& draft, const Tree& root);  // provider, node types, counts
Status read_muster(Draft& draft, const Tree& muster);
std::string resources_text(const Resources& resources);
std::string plural(std::uint64_t n, std::string_view word);

inline constexpr std::int64_t kMaxWorkers = 10'000;

}  // namespace muster::launcher
