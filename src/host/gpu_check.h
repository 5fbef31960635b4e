#pragma once
// `muster-agent gpu-check`, also `make gpu-check`: what the driver says of each GPU, how the container engine would
// give it to a container, and a container that gets exactly one. One outcome line per step and one at the end. Reads
// only, but for the containers that it makes and removes.
#include <string>

#include "host/layout.h"

namespace muster::host {

// image: for the containers; empty = the default Ray image. Exit code: 0 good or nothing to check, 3 something failed.
int gpu_check(const Layout& layout, const std::string& image);

// What a container printed (kGpuProbe) against what it was given: empty = right, else what is wrong.
std::string judge_gpu_probe(const std::string& output, const std::string& given);
inline constexpr const char* kGpuProbe =
    "echo visible=$NVIDIA_VISIBLE_DEVICES; for d in /dev/nvidia[0-9]*; do [ -e $d ] && echo device=$d; done; "
    "nvidia-smi -L 2>/dev/null | sed 's/^/smi=/'; echo end";

}  // namespace muster::host
