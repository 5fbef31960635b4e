#pragma once
// How a container gets GPUs, as pure functions over what the engine says and over CDI specification files (CNCF
// container-device-interface): always explicit, by CDI where the engine has it, else by a device request to the NVIDIA
// runtime. What images and users say about GPUs or the dynamic loader never reaches the engine's hooks.
#include <boost/json/object.hpp>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace muster::host {

inline constexpr std::string_view kGpuKind = "nvidia.com/gpu";

// The device names of kind nvidia.com/gpu in one specification, JSON or YAML; empty when it is another kind or damaged.
std::vector<std::string> cdi_names(std::string_view text);
std::vector<std::string> cdi_names_in(const std::vector<std::string>& folders);
// The CDI device of one GPU: by its UUID where the specification has it, else by its number, which is NVML's order.
std::optional<std::string> cdi_device(const std::vector<std::string>& names, const std::string& uuid, int index);
// Of one MIG instance: by its UUID, else as "GPU:INSTANCE".
std::optional<std::string> cdi_instance(const std::vector<std::string>& names, const std::string& uuid, int gpu_index,
                                        int index);

// Variables for the engine: `env` is what we and the user want. Of image and user no NVIDIA_* and LD_* stays: hooks of
// the engine run with the container's variables, as root. LD_LIBRARY_PATH and LD_PRELOAD travel as MUSTER_LD_* and are
// put back inside the container. dropped: what the user had set of NVIDIA_*.
std::vector<std::string> container_env(const std::vector<std::string>& image, std::map<std::string, std::string> env,
                                       std::vector<std::string>* dropped);
// For `sh -c` before the program.
inline constexpr std::string_view kRestoreLoader =
    "[ -z \"$MUSTER_LD_LIBRARY_PATH\" ] || export LD_LIBRARY_PATH=\"$MUSTER_LD_LIBRARY_PATH\"; "
    "[ -z \"$MUSTER_LD_PRELOAD\" ] || export LD_PRELOAD=\"$MUSTER_LD_PRELOAD\"; ";

// HostConfig.DeviceRequests for these GPUs; `cdi` holds the qualified CDI names, else the UUIDs go to the runtime.
boost::json::array device_requests(const std::vector<std::string>& uuids, const std::vector<std::string>& cdi);

// Podman before version 5 takes CDI devices only in its own API: the body of POST /libpod/containers/create that means
// the same as this body of the Docker API. seccomp_file: Podman reads the profile from a file.
boost::json::object libpod_body(const std::string& name, const boost::json::object& docker,
                                const std::vector<std::string>& cdi, const std::string& seccomp_file);

}  // namespace muster::host
