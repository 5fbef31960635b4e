#include "host/versions.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>

namespace muster::host {
namespace {

struct HostTree {
  std::string root;
  HostTree() {
    char name[] = "/tmp/versions-XXXXXX";
    root = mkdtemp(name);
  }
  ~HostTree() { std::filesystem::remove_all(root); }
  void put(const std::string& path, const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    std::ofstream(root + path) << text;
  }
  VersionSources sources(const std::string& release, const std::string& build) const {
    VersionSources out;
    out.root = root, out.kernel_release = release, out.kernel_build = build, out.nvidia_toolkit = "none";
    return out;
  }
};

std::string version_said(const Versions& versions, std::string_view component) {
  const auto found = versions.find(std::string(component));
  return found == versions.end() ? "nothing" : scan::text(found->second);
}

// What Docker and Podman of Debian 12 answer.
const std::map<std::string, std::string> kDockerSays{
    {"Engine", "20.10.24+dfsg1"}, {"containerd", "1.6.20~ds1"}, {"runc", "1.1.5+ds1"}, {"docker-init", ""}};
const std::map<std::string, std::string> kPodmanSays{
    {"Podman Engine", "4.3.1"},
    {"Conmon", "conmon version 2.1.6, commit: unknown"},
    {"OCI Runtime (runc)", "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n"}};

TEST(HostVersions, OfDebianEachHasItsPackagesVersion) {
  HostTree tree;
  tree.put("/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n");
  tree.put("/var/lib/dpkg/status",
           "Package: runc\nStatus: install ok installed\nVersion: 1.1.5+ds1-1+deb12u1\n\n"
           "Package: containerd\nStatus: deinstall ok config-files\nVersion: 1.6.20~ds1-1\n\n"
           "Package: docker.io\nStatus: install ok installed\nVersion: 20.10.24+dfsg1-1+deb12u1+b6");
  const auto has =
      installed_versions(tree.sources("6.1.0-21-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.90-1 (2024-05-03)"),
                         engine_parts_of(kDockerSays));
  EXPECT_EQ(version_said(has, "linux"), "6.1.90 debian:12/linux=6.1.90-1");
  EXPECT_EQ(version_said(has, "runc"), "1.1.5 debian:12/runc=1.1.5+ds1-1+deb12u1");
  EXPECT_EQ(version_said(has, "docker"), "20.10.24 debian:12/docker.io=20.10.24+dfsg1-1+deb12u1+b6");
  EXPECT_EQ(version_said(has, "containerd"), "1.6.20") << "its package was removed: this is another one";
  EXPECT_EQ(version_said(has, "podman"), "none");
  EXPECT_EQ(version_said(has, "crun"), "none");
  EXPECT_EQ(version_said(has, "nvidia-driver"), "none");
  EXPECT_EQ(version_said(has, "nvidia-container-toolkit"), "none");
}

TEST(HostVersions, APackageSaysNothingOfAnotherRuntimeBesideIt) {
  HostTree tree;
  tree.put("/etc/os-release", "ID=debian\nVERSION_ID=12\n");
  tree.put("/var/lib/dpkg/status", "Package: runc\nStatus: install ok installed\nVersion: 1.1.5+ds1-1+deb12u1\n");
  auto docker = kDockerSays;
  docker["runc"] = "1.1.11";
  EXPECT_EQ(version_said(installed_versions(tree.sources("6.1.5", "#1"), engine_parts_of(docker)), "runc"), "1.1.11");
}

TEST(HostVersions, PodmanUbuntuAndOthers) {
  HostTree tree;
  tree.put("/etc/os-release", "ID=ubuntu\nVERSION_ID=\"22.04\"\n");
  tree.put("/proc/version_signature", "Ubuntu 5.15.0-105.115-generic 5.15.148\n");
  tree.put("/proc/driver/nvidia/version",
           "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.161.07  Sat Feb 17 22:55:48 UTC 2024\n");
  const auto ubuntu =
      installed_versions(tree.sources("5.15.0-105-generic", "#115-Ubuntu SMP"), engine_parts_of(kPodmanSays));
  EXPECT_EQ(version_said(ubuntu, "linux"), "5.15.148 ubuntu:22.04/linux=5.15.0-105.115");
  EXPECT_EQ(version_said(ubuntu, "podman"), "4.3.1");
  EXPECT_EQ(version_said(ubuntu, "runc"), "1.1.5");
  EXPECT_EQ(version_said(ubuntu, "docker"), "none");
  EXPECT_EQ(version_said(ubuntu, "nvidia-driver"), "535.161.07");

  HostTree rhel;
  rhel.put("/etc/os-release", "ID=\"rhel\"\nVERSION_ID=\"9.4\"\n");
  auto sources = rhel.sources("5.14.0-427.13.1.el9_4.x86_64", "#1 SMP PREEMPT_DYNAMIC");
  sources.rpm = {{"runc", "1.1.5-3.el9"}};
  sources.nvidia_toolkit = "1.17.7", sources.nvidia_driver = "580.95.05";
  const auto red = installed_versions(sources, engine_parts_of(kPodmanSays));
  EXPECT_EQ(version_said(red, "linux"), "5.14.0 rhel:9.4/linux=5.14.0-427.13.1.el9_4.x86_64");
  EXPECT_EQ(version_said(red, "runc"), "1.1.5 rhel:9.4/runc=1.1.5-3.el9");
  EXPECT_EQ(version_said(red, "nvidia-container-toolkit"), "1.17.7");
  EXPECT_EQ(version_said(red, "nvidia-driver"), "580.95.05");
}

TEST(HostVersions, AnEngineThatDoesNotAnswerHasUnknownParts) {
  HostTree tree;
  const auto has =
      installed_versions(tree.sources("6.18.44-fc-v595", "#1 SMP PREEMPT_DYNAMIC @0"), engine_parts_of({}));
  EXPECT_EQ(version_said(has, "linux"), "6.18.44");
  EXPECT_EQ(version_said(has, "runc"), "nothing");
  EXPECT_EQ(version_said(has, "docker"), "nothing");
}

}  // namespace
}  // namespace muster::host
