// GPUs for containers, as text in and text out: CDI specifications as NVIDIA's tool and people write them, what of an
// image's variables survives, the bodies for both engines.
#include "host/gpu.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "host/json.h"

namespace muster::host {
namespace {

constexpr std::string_view kYaml = R"(---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  hooks:
  - args:
    - nvidia-cdi-hook
    - name=all
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
      name: not-a-device
  name: "0"
- name: GPU-8d0c5c2e-aaaa
  containerEdits:
    deviceNodes:
    - path: /dev/nvidia1
- containerEdits: {}
  name: all
kind: nvidia.com/gpu
)";

TEST(Cdi, NamesOfASpecification) {
  EXPECT_EQ(cdi_names(kYaml), (std::vector<std::string>{"0", "GPU-8d0c5c2e-aaaa", "all"}));
  EXPECT_EQ(cdi_names("kind: nvidia.com/gpu\ndevices:\n  - name: '1'\n    containerEdits: {}\n  - name: gpu2\n"),
            (std::vector<std::string>{"1", "gpu2"}));
  EXPECT_EQ(
      cdi_names(R"({"cdiVersion":"0.5.0","kind":"nvidia.com/gpu","devices":[{"name":"GPU-1"},{"name":"a/b"},{}]})"),
      (std::vector<std::string>{"GPU-1"}));
  EXPECT_TRUE(cdi_names(R"({"kind":"vendor.com/net","devices":[{"name":"0"}]})").empty());
  EXPECT_TRUE(cdi_names("kind: vendor.com/net\ndevices:\n- name: x\n").empty());
  for (const char* damage :
       {"", "{", "[]", "kind", "devices:\n- name:\n", "\xff\xfe", "- name: x\nkind: nvidia.com/gpu"})
    EXPECT_TRUE(cdi_names(damage).empty()) << damage;
}

TEST(Cdi, ADeviceByItsUuidElseByItsNumber) {
  const std::vector<std::string> names{"0", "GPU-8d0c5c2e-aaaa", "all"};
  EXPECT_EQ(cdi_device(names, "GPU-8d0c5c2e-aaaa", 1), "nvidia.com/gpu=GPU-8d0c5c2e-aaaa");
  EXPECT_EQ(cdi_device(names, "GPU-other", 0), "nvidia.com/gpu=0");
  EXPECT_EQ(cdi_device(names, "GPU-other", 5), std::nullopt);
  EXPECT_EQ(cdi_device({"all"}, "GPU-other", 0), std::nullopt);  // never everything for one
}

TEST(ContainerEnv, ImagesAndUsersDoNotSpeakToTheDriversHooks) {
  std::vector<std::string> dropped;
  const auto env =
      container_env({"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_REQUIRE_CUDA=cuda>=12.4", "LD_PRELOAD=/evil.so",
                     "LD_LIBRARY_PATH=/usr/local/nvidia/lib", "NVIDIA_DRIVER_CAPABILITIES=all"},
                    {{"NVIDIA_VISIBLE_DEVICES", "GPU-1"},
                     {"NVIDIA_DRIVER_CAPABILITIES", "compute,utility"},
                     {"NVIDIA_DISABLE_REQUIRE", "1"},
                     {"LD_LIBRARY_PATH", "/mine"},
                     {"LD_AUDIT", "/audit.so"},
                     {"GREETING", "hello"}},
                    &dropped);
  EXPECT_EQ(env, (std::vector<std::string>{"GREETING=hello",
                                           "LD_LIBRARY_PATH=", "LD_PRELOAD=", "MUSTER_LD_LIBRARY_PATH=/mine",
                                           "MUSTER_LD_PRELOAD=/evil.so", "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
                                           "NVIDIA_REQUIRE_CUDA=", "NVIDIA_VISIBLE_DEVICES=GPU-1"}));
  EXPECT_EQ(dropped, (std::vector<std::string>{"NVIDIA_DISABLE_REQUIRE"}));
}

TEST(DeviceRequests, AreAlwaysExplicit) {
  EXPECT_TRUE(device_requests({}, {}).empty());
  EXPECT_EQ(to_text(device_requests({"GPU-1", "GPU-2"}, {})),
            R"([{"Driver":"nvidia","DeviceIDs":["GPU-1","GPU-2"],"Capabilities":[["gpu","compute","utility"]]}])");
  EXPECT_EQ(to_text(device_requests({"GPU-1"}, {"nvidia.com/gpu=0"})),
            R"([{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0"]}])");
}

TEST(LibpodBody, MeansTheSameAsTheDockerBody) {
  const auto docker = parse_object(R"({"Image":"sha256:ab","Entrypoint":["/bin/sh"],"Cmd":["-c","x"],"User":"1000:1000",
    "Env":["A=b","LD_PRELOAD="],"Labels":{"io.muster.lease":"lease-1"},"StopTimeout":15,
    "HostConfig":{"NetworkMode":"container:muster-x-lease-1-net","Init":true,"Memory":1073741824,"MemorySwap":1073741824,
    "NanoCpus":1500000000,"PidsLimit":100,"ShmSize":1048576,"Binds":["/s/run:/muster/run","/s/helper:/muster/helper:ro"],
    "Ulimits":[{"Name":"nofile","Soft":100,"Hard":200}]}})");
  ASSERT_TRUE(docker.ok());
  const auto body = libpod_body("muster-x-lease-1-ray", *docker, {"nvidia.com/gpu=0"}, "/s/helper/seccomp.json");
  EXPECT_EQ(text_at(body, {"netns", "nsmode"}), "container");
  EXPECT_EQ(text_at(body, {"netns", "value"}), "muster-x-lease-1-net");
  EXPECT_TRUE(bool_at(body, {"no_new_privileges"}));
  EXPECT_FALSE(bool_at(body, {"privileged"}));
  EXPECT_EQ(text_at(body, {"seccomp_profile_path"}), "/s/helper/seccomp.json");
  EXPECT_EQ(text_at(body, {"env", "A"}), "b");
  EXPECT_EQ(int_at(body, {"resource_limits", "memory", "limit"}), 1 << 30);
  EXPECT_EQ(int_at(body, {"resource_limits", "cpu", "quota"}), 150'000);
  EXPECT_EQ(int_at(body, {"resource_limits", "pids", "limit"}), 100);
  EXPECT_EQ(to_text(body.at("devices")), R"([{"path":"nvidia.com/gpu=0"}])");
  EXPECT_EQ(to_text(body.at("cap_drop")), R"(["ALL"])");
  EXPECT_EQ(body.at("mounts").get_array().size(), 2U);
  EXPECT_EQ(text_at(body.at("mounts").get_array()[1], {"destination"}), "/muster/helper");
}

}  // namespace
}  // namespace muster::host
