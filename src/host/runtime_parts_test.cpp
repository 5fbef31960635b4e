// What the runtimes are made of, without an engine and without root: words of engines and package tools, filters,
// control groups in a made-up tree, child processes, manifests.
#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "host/cgroup.h"
#include "host/child.h"
#include "host/embedded.h"
#include "host/image_fault.h"
#include "host/policy.h"
#include "host/seccomp_filter.h"
#include "host/venv_runtime.h"

namespace muster::host {
namespace {
namespace fs = std::filesystem;

struct ScratchDir {
  ScratchDir() {
    char name[] = "/tmp/muster-parts-XXXXXX";
    path = mkdtemp(name);
  }
  ~ScratchDir() { fs::remove_all(path); }
  std::string path;
};

void put(const std::string& path, const std::string& text) {
  fs::create_directories(fs::path(path).parent_path());
  std::ofstream(path) << text;
}
std::string text_of(const std::string& path) {
  std::ifstream file(path);
  std::stringstream out;
  out << file.rdbuf();
  return out.str();
}

TEST(ImageFault, SaysWhatTheEnginesMean) {
  // As Docker 20.10, Docker 28 and Podman 4.3 were seen to say it.
  struct Case {
    int status;
    const char* said;
    const char* code;
    bool passing;
  };
  for (const Case& each : {
           Case{404, "manifest for 127.0.0.1:5000/team/app:2 not found: manifest unknown: manifest unknown",
                "image_pull.not_found", false},
           Case{404,
                "pull access denied for nobody/nothing, repository does not exist or may require 'docker login': "
                "denied: requested access to the resource is denied",
                "image_pull.denied", false},
           Case{500, "Head \"http://127.0.0.1:5000/v2/team/app/manifests/1\": no basic auth credentials",
                "image_pull.denied", false},
           Case{500, "unauthorized: authentication required", "image_pull.denied", false},
           Case{200,
                "initializing source docker://127.0.0.1:5000/a:1: unable to retrieve auth token: invalid "
                "username/password: unauthorized: authentication required",
                "image_pull.denied", false},
           Case{404, "no matching manifest for linux/amd64 in the manifest list entries",
                "image_pull.wrong_architecture", false},
           Case{200, "write /var/lib/docker/tmp/GetImageBlob1: no space left on device", "image_pull.disk_full", false},
           Case{500, "Get \"https://registry.example/v2/\": x509: certificate signed by unknown authority",
                "image_pull.tls", false},
           Case{500, "Get \"http://127.0.0.1:9/v2/\": dial tcp 127.0.0.1:9: connect: connection refused",
                "image_pull.unreachable", true},
           Case{500, "Get \"https://registry.example/v2/\": dial tcp: lookup registry.example: no such host",
                "image_pull.unreachable", true},
           Case{200, "unexpected EOF", "image_pull.interrupted", true},
           Case{200, "Get \"http://127.0.0.1:5000/v2/a/blobs/sha256:1\": EOF", "image_pull.interrupted", true},
           Case{500, "something nobody has seen", "image_pull.failed", true},
           Case{400, "invalid reference format", "image_pull.failed", false},
       }) {
    const ImageFault fault = image_fault(each.status, each.said);
    EXPECT_EQ(fault.code, each.code) << each.said;
    EXPECT_EQ(fault.passing, each.passing) << each.said;
  }
}

TEST(ImageFault, IsTextWhateverTheEngineSent) {
  EXPECT_EQ(image_error("busybox", 404, "no \xff such \xc3").message, "cannot pull busybox: no ? such ?");
  EXPECT_TRUE(
      valid_utf8(image_error("busybox", 404, std::string(299, 'a') + "\u00e9").message));  // cut inside a letter
  EXPECT_EQ(image_error("busybox", 404, "fehlt: \u00e4").message, "cannot pull busybox: fehlt: \u00e4");
}

TEST(ImageFault, NamesOfImages) {
  EXPECT_EQ(image_repository("registry.example:5000/team/app:1@sha256:00"), "registry.example:5000/team/app");
  EXPECT_EQ(image_repository("registry.example:5000/team/app"), "registry.example:5000/team/app");
  EXPECT_EQ(image_repository("rayproject/ray:2.60.0-gpu"), "rayproject/ray");
  EXPECT_TRUE(asks_again("rayproject/ray"));
  EXPECT_TRUE(asks_again("registry.example:5000/a:latest"));
  EXPECT_FALSE(asks_again("registry.example:5000/a:1"));
  EXPECT_FALSE(asks_again("a@sha256:00"));
  EXPECT_FALSE(asks_again("sha256:00"));
}

TEST(VenvWords, LocksOfUvAndReportsOfPip) {
  const std::string a(64, 'a'), b(64, 'b');
  const auto uv = parse_uv_lock("# made by uv\nRay[client,default]==2.60.0 \\\n    --hash=sha256:" + b +
                                " \\\n    --hash=sha256:" + a +
                                "\nclick==8.1.7 ; python_version < '3.12' \\\n    --hash=sha256:" + a + "\n");
  ASSERT_TRUE(uv.ok()) << uv.error().message;
  const std::vector<VenvPackage> wanted{{"click", "8.1.7", {a}}, {"ray", "2.60.0", {a, b}}};
  EXPECT_EQ(*uv, wanted);
  EXPECT_FALSE(parse_uv_lock("./evil.whl\n").ok());
  EXPECT_FALSE(parse_uv_lock("    --hash=sha256:" + a).ok());
  const auto pip = parse_pip_report(fmt::format(
      R"({{"install":[{{"metadata":{{"name":"Ray","version":"2.60.0"}},"download_info":{{"archive_info":{{"hash":"sha256={0}"}}}}}},)"
      R"({{"metadata":{{"name":"click","version":"8.1.7"}},"download_info":{{"archive_info":{{"hashes":{{"sha256":"{0}"}}}}}}}}]}})",
      a));
  ASSERT_TRUE(pip.ok()) << pip.error().message;
  const std::vector<VenvPackage> reported{{"click", "8.1.7", {a}}, {"ray", "2.60.0", {a}}};
  EXPECT_EQ(*pip, reported);
  EXPECT_FALSE(parse_pip_report(R"({"install":[{"metadata":{"name":"x","version":"1"}}]})").ok());
  EXPECT_FALSE(parse_pip_report("nonsense").ok());
}

TEST(VenvWords, FaultsOfUvAndPip) {
  EXPECT_EQ(venv_fault("ERROR: No matching distribution found for ray==1.0.0").code, "venv.no_such_package");
  EXPECT_EQ(venv_fault("  × No solution found when resolving dependencies:").code, "venv.no_such_package");
  EXPECT_EQ(venv_fault("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE").code,
            "venv.hash_mismatch");
  EXPECT_EQ(venv_fault("error: Hash mismatch for `ray==2.60.0`").code, "venv.hash_mismatch");
  EXPECT_EQ(venv_fault("OSError: [Errno 28] No space left on device").code, "venv.disk_full");
  EXPECT_TRUE(venv_fault("Failed to establish a new connection: [Errno 111] Connection refused").passing);
  EXPECT_EQ(venv_fault("The virtual environment was not created successfully because ensurepip is not available.").code,
            "venv.tools");
  EXPECT_FALSE(venv_fault("who knows").passing);
}

TEST(VenvManifest, SeesEveryChange) {
  const ScratchDir dir;
  put(dir.path + "/a/one.py", "x = 1\n");
  put(dir.path + "/two.py", "y = 2\n");
  fs::create_symlink("/usr/bin/python3", dir.path + "/python");
  const auto before = venv_manifest(dir.path);
  ASSERT_TRUE(before.ok()) << before.error().message;
  EXPECT_EQ(*venv_manifest(dir.path), *before);
  put(dir.path + "/a/one.py", "x = 2\n");  // the same size
  EXPECT_NE(*venv_manifest(dir.path), *before);
  put(dir.path + "/a/one.py", "x = 1\n");
  EXPECT_EQ(*venv_manifest(dir.path), *before);
  chmod((dir.path + "/two.py").c_str(), 0755);
  EXPECT_NE(*venv_manifest(dir.path), *before);
  chmod((dir.path + "/two.py").c_str(), 0644);
  fs::remove(dir.path + "/python");
  fs::create_symlink("/tmp/python3", dir.path + "/python");
  EXPECT_NE(*venv_manifest(dir.path), *before);
}

// In a child: what the profile allows works, what it forbids fails with EPERM.
TEST(SeccompFilter, ForbidsWhatTheProfileForbids) {
  const auto program = compile_seccomp(seccomp_profile());
  ASSERT_TRUE(program.ok()) << program.error().message;
  const pid_t pid = fork();
  ASSERT_GE(pid, 0);
  if (pid == 0) {
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (!load_seccomp(*program).ok()) _exit(2);
    if (syscall(SYS_getppid) <= 0) _exit(3);
    if (syscall(SYS_unshare, CLONE_NEWUSER) != -1 || errno != EPERM) _exit(4);
    if (syscall(SYS_mount, "", "", "", 0, nullptr) != -1 || errno != EPERM) _exit(5);
    if (syscall(SYS_socket, 38 /* AF_ALG */, 5, 0) != -1 || errno != EPERM) _exit(6);
    const long fd = syscall(SYS_socket, 1 /* AF_UNIX */, 1, 0);
    _exit(fd >= 0 ? 0 : 7);
  }
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(SeccompFilter, RefusesProfilesThatItDoesNotUnderstand) {
  for (
      const char* profile :
      {"{}", R"({"defaultAction":"SCMP_ACT_TRAP","syscalls":[]})",
       R"({"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_LOG"}]})",
       R"({"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_X"]}}]})",
       R"({"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":9,"op":"SCMP_CMP_EQ"}]}]})"})
    EXPECT_FALSE(compile_seccomp(profile).ok()) << profile;
}

TEST(Cgroups, WritesTheLimitsOfBothKinds) {
  const ScratchDir one, two;
  for (const char* name : {"memory", "cpu", "cpuacct", "pids"}) {
    for (const char* dir : {"", "/muster-m", "/muster-m/lease-1"})
      put(fmt::format("{}/{}{}/cgroup.procs", one.path, name, dir), "");
  }
  const std::string v1 = one.path + "/memory/muster-m/lease-1";
  for (const char* name : {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}) put(v1 + "/" + name, "");
  put(v1 + "/memory.usage_in_bytes", "4096\n");
  put(v1 + "/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n");
  for (const char* name : {"cpu.cfs_period_us", "cpu.cfs_quota_us"})
    put(one.path + "/cpu/muster-m/lease-1/" + name, "");
  put(one.path + "/cpuacct/muster-m/lease-1/cpuacct.usage", "77\n");
  put(one.path + "/pids/muster-m/lease-1/pids.max", "");
  put(one.path + "/pids/muster-m/lease-1/pids.current", "5\n");
  const Cgroups old("m", one.path);
  EXPECT_FALSE(old.unified());
  EXPECT_EQ(old.missing(), "");
  const Status made = old.create("lease-1", {1 << 20, 1500, 99});
  ASSERT_TRUE(made.ok()) << made.error().message;
  EXPECT_EQ(text_of(v1 + "/memory.limit_in_bytes"), "1048576");
  EXPECT_EQ(text_of(v1 + "/memory.memsw.limit_in_bytes").substr(0, 7), "1048576");
  EXPECT_EQ(text_of(one.path + "/cpu/muster-m/lease-1/cpu.cfs_quota_us"), "150000");
  EXPECT_EQ(text_of(one.path + "/pids/muster-m/lease-1/pids.max"), "99");
  EXPECT_EQ(old.use("lease-1").oom_kills, 3U);
  EXPECT_EQ(old.use("lease-1").cpu_ns, 77U);
  EXPECT_EQ(old.entrances("lease-1").size(), 4U);

  put(two.path + "/cgroup.controllers", "cpuset cpu io memory pids\n");
  const std::string v2 = two.path + "/muster-m/lease-1";
  for (const auto& path : {two.path + "/cgroup.subtree_control", two.path + "/muster-m/cgroup.subtree_control",
                           v2 + "/memory.max", v2 + "/memory.swap.max", v2 + "/cpu.max", v2 + "/pids.max"})
    put(path, "");
  put(v2 + "/cpu.stat", "usage_usec 12\nuser_usec 1\n");
  put(v2 + "/memory.events", "low 0\noom 1\noom_kill 2\n");
  const Cgroups modern("m", two.path);
  EXPECT_TRUE(modern.unified());
  EXPECT_EQ(modern.missing(), "");
  ASSERT_TRUE(modern.create("lease-1", {1 << 20, 500, 0}).ok());
  EXPECT_EQ(text_of(v2 + "/memory.max"), "1048576");
  EXPECT_EQ(text_of(v2 + "/memory.swap.max"), "0");
  EXPECT_EQ(text_of(v2 + "/cpu.max"), "50000 100000");
  EXPECT_EQ(text_of(v2 + "/pids.max"), "max");
  EXPECT_EQ(text_of(two.path + "/cgroup.subtree_control"), "+cpu +memory +pids");
  EXPECT_EQ(modern.use("lease-1").cpu_ns, 12'000U);
  EXPECT_EQ(modern.use("lease-1").oom_kills, 2U);

  const ScratchDir none;
  EXPECT_EQ(Cgroups("m", none.path).missing(), "memory, cpu, pids");
}

TEST(Child, CarriesInputOutputAndCodes) {
  const std::string much(300'000, 'x');
  Child cat;
  cat.argv = {"/bin/cat"};
  const auto echoed = run_child(cat, much, {});
  ASSERT_TRUE(echoed.ok()) << echoed.error().message;
  EXPECT_EQ(echoed->out, much);
  EXPECT_EQ(echoed->code, 0);
  Child shell;
  shell.program = "/bin/sh";
  shell.argv = {"sh", "-c", "echo $WORD; echo oops >&2; pwd; exit 7"};
  shell.env = {"WORD=hello"};
  shell.directory = "/usr";
  const auto said = run_child(shell, {}, {});
  ASSERT_TRUE(said.ok());
  EXPECT_EQ(said->out, "hello\n/usr\n");
  EXPECT_EQ(said->err, "oops\n");
  EXPECT_EQ(said->code, 7);
  shell.argv = {"sh", "-c", "kill -9 $$"};
  EXPECT_EQ(run_child(shell, {}, {})->code, 137);
}

TEST(Child, EndsWhatIsNotWantedAndNamesTheStep) {
  Child shell;
  shell.argv = {"/bin/sh", "-c", "sleep 600 & sleep 600"};
  EXPECT_EQ(run_child(shell, {}, {.timeout = Millis(300)}).error().code, Code::DeadlineExceeded);
  EXPECT_EQ(run_child(shell, {}, {.tick = [] { return false; }}).error().code, Code::Cancelled);
  Child missing;
  missing.argv = {"/nonexistent/program"};
  const auto fault = run_child(missing, {}, {});
  ASSERT_FALSE(fault.ok());
  EXPECT_NE(fault.error().message.find("/nonexistent/program: run it: No such file"), std::string::npos)
      << fault.error().message;
  Child elsewhere;
  elsewhere.argv = {"/bin/true"};
  elsewhere.cgroups = {"/nonexistent/cgroup.procs"};
  EXPECT_NE(start_child(elsewhere).error().message.find("enter its control group"), std::string::npos);
}

TEST(Gpu, DeviceFilesOfLeasedOnesOnly) {
  const ScratchDir dir;
  put(dir.path + "/gpus/0000:01:00.0/information",
      "Model: \t\t NVIDIA H100\nGPU UUID: \t GPU-aaaa\nDevice Minor: \t 0\n");
  put(dir.path + "/gpus/0000:02:00.0/information", "GPU UUID: \t GPU-bbbb\nDevice Minor: \t 1\n");
  const auto files = gpu_device_files({"GPU-bbbb"}, dir.path);
  ASSERT_TRUE(files.ok()) << files.error().message;
  EXPECT_EQ(files->front(), "/dev/nvidia1");
  EXPECT_EQ(std::count(files->begin(), files->end(), "/dev/nvidia0"), 0);
  EXPECT_EQ(gpu_device_files({"GPU-bbbb", "GPU-cccc"}, dir.path).error().field, "gpu.driver");
}

TEST(Policy, SaysWhichRuntimesMayBeUsed) {
  const auto policy = parse_policy(R"({"runtimes":["venv"],"python_index":"https://pypi.example/simple"})");
  ASSERT_TRUE(policy.ok()) << policy.error().message;
  EXPECT_EQ(policy->runtimes, std::vector<std::string>{"venv"});
  EXPECT_FALSE(parse_policy(R"({"runtimes":["vm"]})").ok());
}

}  // namespace
}  // namespace muster::host
