// What the engine is asked for when a container gets GPUs: the bodies that reach a fake engine's socket, for a Docker
// with CDI, one with only the NVIDIA runtime, a Podman, and one with neither. GPUs are those of the fake driver
// library.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "host/docker_runtime.h"
#include "host/facts.h"
#include "host/gpu.h"
#include "host/gpu_check.h"
#include "host/json.h"
#include "host/lease_dirs.h"
#include "host/nvml.h"
#include "host/policy.h"

namespace muster::host {
namespace {
namespace fs = std::filesystem;

// Answers by the longest prefix of the path without its version; remembers the bodies of creations.
class Engine {
 public:
  Engine(const std::string& path, std::map<std::string, std::string> answers)
      : answers_(std::move(answers)),
        listener_(*listen_unix(path, SocketKind::Stream, getuid(), getgid(), 0600)),
        thread_([this] { serve(); }) {}
  ~Engine() {
    shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  json::object created(const std::string& path) {
    const std::lock_guard lock(mutex_);
    const auto parsed = parse_object(created_[path]);
    return parsed.ok() ? *parsed : json::object{};
  }
  int asked(const std::string& path) {
    const std::lock_guard lock(mutex_);
    return asked_[path];
  }

 private:
  void serve() {
    while (true) {
      const Fd peer(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!peer) return;
      const std::string reply = answer(receive(peer.get()));
      [[maybe_unused]] const auto n = send(peer.get(), reply.data(), reply.size(), MSG_NOSIGNAL);
    }
  }
  static std::string receive(int fd) {
    std::string out;
    char buffer[65536];
    while (true) {
      const auto head = out.find("\r\n\r\n");
      const auto length = out.find("Content-Length: ");
      const std::size_t body = length < head ? std::strtoul(out.c_str() + length + 16, nullptr, 10) : 0;
      if (head != std::string::npos && out.size() >= head + 4 + body) return out;
      const ssize_t n = read(fd, buffer, sizeof buffer);
      if (n <= 0) return out;
      out.append(buffer, static_cast<std::size_t>(n));
    }
  }
  std::string answer(const std::string& request) {
    const auto first = request.find(' '), second = request.find(' ', first + 1);
    const std::string method = request.substr(0, first);
    std::string path = request.substr(first + 1, second - first - 1);
    if (path != "/version") path = path.substr(path.find('/', 1));  // without the API's version
    {
      const std::lock_guard lock(mutex_);
      ++asked_[path];
    }
    std::string body = "{}";
    int status = method == "GET" ? 200 : 204;
    if (path.find("/containers/create") != std::string::npos) {
      const std::lock_guard lock(mutex_);
      created_[path.substr(0, path.find('?'))] = request.substr(request.find("\r\n\r\n") + 4);
      status = 201;
    } else if (method == "GET") {
      std::size_t best = 0;
      for (const auto& [prefix, text] : answers_) {
        if (path.starts_with(prefix) && prefix.size() >= best) best = prefix.size(), body = text;
      }
      if (best == 0) status = 404;
    }
    return "HTTP/1.1 " + std::to_string(status) +
           " x\r\nContent-Length: " + std::to_string(status == 204 ? 0 : body.size()) + "\r\n\r\n" +
           (status == 204 ? "" : body);
  }
  std::map<std::string, std::string> answers_, created_;
  std::map<std::string, int> asked_;
  std::mutex mutex_;
  Fd listener_;
  std::thread thread_;
};

class GpuContainers : public testing::Test {
 protected:
  void SetUp() override {
    char pattern[] = "/tmp/muster-gpu-XXXXXX";
    folder_ = mkdtemp(pattern);
    setenv("MUSTER_FAKE_NVML", (folder_ + "/gpus").c_str(), 1);
    setenv("MUSTER_NVML", (fs::read_symlink("/proc/self/exe").parent_path() / "libfake_nvml.so").c_str(), 1);
    std::ofstream(folder_ + "/gpus") << "gpu GPU-a\ngpu GPU-b\n";
    Nvml::instance().refresh();
  }
  void TearDown() override { fs::remove_all(folder_); }
  static std::map<std::string, std::string> answers(const std::string& version, const std::string& info) {
    return {{"/version", version},
            {"/info", info},
            {"/images/json", "[]"},
            {"/images/sha256:ab/json",
             R"({"Id":"sha256:ab","Config":{"Env":["PATH=/bin","LD_PRELOAD=/evil.so","NVIDIA_VISIBLE_DEVICES=all"]}})"},
            {"/containers/muster-m-check-gpu/json",
             R"({"Id":"1","Config":{"Labels":{"io.muster.machine":"m"}},"State":{"Running":false}})"},
            {"/containers/muster-m-check-gpu/logs", "visible=GPU-b\ndevice=/dev/nvidia1\nend\n"}};
  }
  DockerRuntime runtime() const {
    DockerOptions options;
    options.layout.root = folder_;
    options.socket = folder_ + "/engine.sock";
    options.machine = "m";
    options.secrets_root = folder_ + "/secrets";
    return DockerRuntime(std::move(options));
  }
  std::string folder_;
};

constexpr const char* kDocker = R"({"ApiVersion":"1.41","Version":"28.2.0","Platform":{"Name":"Docker Engine"}})";

TEST_F(GpuContainers, DockerWithCdi) {
  fs::create_directories(folder_ + "/cdi");
  std::ofstream(folder_ + "/cdi/nvidia.yaml")
      << "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n- name: \"1\"\n- name: all\n";
  Engine engine(folder_ + "/engine.sock",
                answers(kDocker, R"({"Runtimes":{"nvidia":{}},"CDISpecDirs":[")" + folder_ + R"(/cdi"]})"));
  auto docker = runtime();
  EXPECT_EQ(docker.info()->gpu_mode, "cdi");
  const auto said = docker.run_once("sha256:ab", {"GPU-b"}, kGpuProbe);
  ASSERT_TRUE(said.ok()) << said.error().message;
  EXPECT_EQ(judge_gpu_probe(*said, "GPU-b"), "");
  const json::value body = engine.created("/containers/create");
  EXPECT_EQ(to_text(*find_path(body, {"HostConfig", "DeviceRequests"})),
            R"([{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=1"]}])");  // its number: this specification knows no UUIDs
  EXPECT_EQ(
      to_text(*find_path(body, {"Env"})),
      R"(["LD_PRELOAD=","MUSTER_LD_PRELOAD=/evil.so","NVIDIA_DRIVER_CAPABILITIES=compute,utility","NVIDIA_VISIBLE_DEVICES=GPU-b"])");
  EXPECT_FALSE(bool_at(body, {"HostConfig", "Privileged"}));
}

TEST_F(GpuContainers, AMigInstanceByItsNumberOrItsUuid) {
  fs::create_directories(folder_ + "/cdi");
  std::ofstream(folder_ + "/gpus") << "gpu GPU-a mig=1\nmig GPU-a MIG-x 1g.5gb 4864\nmig GPU-a MIG-y 2g.10gb 9728\n";
  std::ofstream(folder_ + "/cdi/nvidia.yaml")
      << "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0:0\"\n- name: \"0:1\"\n- name: all\n";
  Engine engine(folder_ + "/engine.sock",
                answers(kDocker, R"({"Runtimes":{"nvidia":{}},"CDISpecDirs":[")" + folder_ + R"(/cdi"]})"));
  auto docker = runtime();
  ASSERT_TRUE(docker.run_once("sha256:ab", {"MIG-y"}, "true").ok());
  const json::value body = engine.created("/containers/create");
  EXPECT_EQ(to_text(*find_path(body, {"HostConfig", "DeviceRequests"})),
            R"([{"Driver":"cdi","DeviceIDs":["nvidia.com/gpu=0:1"]}])");
  EXPECT_NE(to_text(*find_path(body, {"Env"})).find("NVIDIA_VISIBLE_DEVICES=MIG-y"), std::string::npos);
  EXPECT_EQ(cdi_instance({"MIG-y", "0:1"}, "MIG-y", 0, 1), "nvidia.com/gpu=MIG-y");
  EXPECT_EQ(docker.run_once("sha256:ab", {"GPU-a"}, "true").error().field, "gpu.toolkit")
      << "a GPU in MIG mode is not given whole";
}

TEST_F(GpuContainers, DockerWithTheRuntimeOnly) {
  Engine engine(folder_ + "/engine.sock", answers(kDocker, R"({"Runtimes":{"runc":{},"nvidia":{}}})"));
  auto docker = runtime();
  EXPECT_EQ(docker.info()->gpu_mode, "nvidia");
  ASSERT_TRUE(docker.run_once("sha256:ab", {"GPU-b"}, "true").ok());
  const json::value body = engine.created("/containers/create");
  EXPECT_EQ(to_text(*find_path(body, {"HostConfig", "DeviceRequests"})),
            R"([{"Driver":"nvidia","DeviceIDs":["GPU-b"],"Capabilities":[["gpu","compute","utility"]]}])");
  ASSERT_TRUE(docker.run_once("sha256:ab", {}, "true").ok());
  const json::value none = engine.created("/containers/create");
  EXPECT_EQ(find_path(none, {"HostConfig", "DeviceRequests"}), nullptr);
  EXPECT_NE(to_text(*find_path(none, {"Env"})).find("NVIDIA_VISIBLE_DEVICES=void"), std::string::npos);
}

TEST_F(GpuContainers, WhatTheOwnerLendsIsTold) {
  std::ofstream(folder_ + "/gpus") << "gpu GPU-a mem_mib=40960 mig=1\nmig GPU-a MIG-x 2g.10gb 9728\n"
                                      "gpu GPU-b mem_mib=40960\n";
  Layout layout;
  layout.root = folder_;
  const auto facts = [&](const Policy& policy) {
    std::ofstream(layout.policy()) << policy_text(policy);
    return gather_facts(layout, {});
  };
  Policy policy;
  NodeFacts told = facts(policy);
  ASSERT_EQ(told.devices.size(), 2U);
  EXPECT_EQ(told.capacity.gpus, 1) << "an instance is no whole GPU";
  EXPECT_EQ(told.devices[0].sharing, GpuSharing::Mig);
  EXPECT_EQ(told.devices[0].part_milli, 250);
  EXPECT_EQ(told.devices[1].sharing, GpuSharing::Exclusive) << "unless the owner says so";
  policy.gpu_sharing = true, policy.gpu_uuids = {"GPU-b"};
  told = facts(policy);
  ASSERT_EQ(told.devices.size(), 1U);
  EXPECT_EQ(told.devices[0].sharing, GpuSharing::Shared);
  policy.gpu_uuids = {"GPU-a"};
  told = facts(policy);
  ASSERT_EQ(told.devices.size(), 1U) << "the instances of a GPU that is lent";
  EXPECT_EQ(told.devices[0].uuid, "MIG-x");
}

TEST_F(GpuContainers, TheWorkIsToldItsShare) {
  LaunchSpec spec;
  spec.lease = "lease-1", spec.devices = {"GPU-b"};
  EXPECT_FALSE(lease_environment(spec, "GPU-b").contains("MUSTER_GPU_SHARE"));
  spec.gpu_share_milli = 250, spec.gpu_memory_bytes = std::int64_t{10} << 30;
  auto env = lease_environment(spec, "GPU-b");
  EXPECT_EQ(env.at("NVIDIA_VISIBLE_DEVICES"), "GPU-b");
  EXPECT_EQ(env.at("MUSTER_GPU_SHARE"), "0.25");
  EXPECT_EQ(env.at("MUSTER_GPU_MEMORY_BYTES"), "10737418240");
  EXPECT_EQ(env.at("XLA_PYTHON_CLIENT_MEM_FRACTION"), "0.225");
  EXPECT_EQ(env.at("TF_FORCE_GPU_ALLOW_GROWTH"), "true");
  spec.env["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.1";
  EXPECT_EQ(lease_environment(spec, "GPU-b").at("XLA_PYTHON_CLIENT_MEM_FRACTION"), "0.1") << "the user's own word";
  spec.devices = {"MIG-x"}, spec.env.clear();
  env = lease_environment(spec, "MIG-x");
  EXPECT_FALSE(env.contains("XLA_PYTHON_CLIENT_MEM_FRACTION")) << "its memory is its own";
}

// Who is remapped, by what each engine says; and Podman, whose answer costs much, is not asked each time.
TEST_F(GpuContainers, TheEngineSaysWhoseUserIdsContainersGet) {
  const auto own = [&](const std::string& version, const std::string& info, int times) {
    Engine engine(folder_ + "/engine.sock", answers(version, info));
    auto engine_runtime = runtime();
    bool out = false;
    for (int i = 0; i < 3; ++i) {
      const auto known = engine_runtime.info();
      EXPECT_TRUE(known.ok()) << known.error().message;
      out = known.ok() && known->own_users;
    }
    EXPECT_EQ(engine.asked("/info"), times);
    return out;
  };
  EXPECT_FALSE(own(kDocker, R"({"SecurityOptions":["name=seccomp"],"DockerRootDir":"/var/lib/docker"})", 3));
  EXPECT_TRUE(
      own(kDocker, R"({"SecurityOptions":["name=seccomp","name=userns"],"DockerRootDir":"/d/2000000000.300000"})", 3));
  // Ids that are not told are none that folders could be handed to.
  EXPECT_FALSE(own(kDocker, R"({"SecurityOptions":["name=userns"],"DockerRootDir":"/d/300000"})", 3));
  EXPECT_FALSE(own(kDocker, R"({"SecurityOptions":["name=userns"],"DockerRootDir":"/d/4294967295.4294967295"})", 3));
  EXPECT_FALSE(own(kDocker, R"({"SecurityOptions":["name=userns"],"DockerRootDir":"/d/0.0"})", 3));
  const std::string podman = R"({"ApiVersion":"1.41","Version":"4.3.1","Components":[{"Name":"Podman Engine"}]})";
  own(podman, R"({"SecurityOptions":["name=seccomp"]})", 1);
}

TEST_F(GpuContainers, NeitherMeansNone) {
  Engine engine(folder_ + "/engine.sock", answers(kDocker, R"({"Runtimes":{"runc":{}},"CDISpecDirs":null})"));
  EXPECT_EQ(runtime().info()->gpu_mode, "none");
}

TEST_F(GpuContainers, WhatAContainerSawIsJudged) {
  EXPECT_EQ(judge_gpu_probe("visible=GPU-b\ndevice=/dev/nvidia1\nsmi=GPU 0: x (UUID: GPU-b)\nend\n", "GPU-b"), "");
  EXPECT_NE(judge_gpu_probe("visible=GPU-b\ndevice=/dev/nvidia0\ndevice=/dev/nvidia1\nend\n", "GPU-b"), "");
  EXPECT_NE(judge_gpu_probe("visible=GPU-b\ndevice=/dev/nvidia0\nsmi=GPU 0: x (UUID: GPU-a)\nend\n", "GPU-b"), "");
  EXPECT_NE(judge_gpu_probe("visible=all\ndevice=/dev/nvidia0\nend\n", "GPU-b"), "");
  EXPECT_NE(judge_gpu_probe("visible=GPU-b\nend\n", "GPU-b"), "");
  EXPECT_NE(judge_gpu_probe("sh: not found\n", "GPU-b"), "");
  EXPECT_EQ(judge_gpu_probe("visible=void\nend\n", ""), "");
  EXPECT_NE(judge_gpu_probe("visible=void\ndevice=/dev/nvidia0\nend\n", ""), "");
}

}  // namespace
}  // namespace muster::host
