// The owner's side of the machine without an engine: when it may work, what it lends, the power cap, the bandwidth cap,
// what is counted. GPUs are those of the fake driver library (tests/testing/nvml).
#include "host/owner.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <thread>

#include "host/bandwidth.h"
#include "host/container_use.h"
#include "host/facts.h"
#include "host/grants.h"
#include "host/limits.h"
#include "host/nvml.h"
#include "host/power.h"
#include "host/telemetry.h"
#include "model/node_labels.h"

namespace muster::host {
namespace {
namespace fs = std::filesystem;

struct Folder {
  Folder() {
    char name[] = "/tmp/muster-owner-XXXXXX";
    path = mkdtemp(name);
  }
  ~Folder() { fs::remove_all(path); }
  std::string path;
};

// The fake driver library, beside this program, reading the file that the test writes.
class FakeGpus {
 public:
  FakeGpus() : config(folder_.path + "/gpus") { setenv("MUSTER_FAKE_NVML", config.c_str(), 1); }
  void write(const std::string& text) { std::ofstream(config, std::ios::trunc) << text; }
  static std::string library() {
    return fs::read_symlink("/proc/self/exe").parent_path().string() + "/libfake_nvml.so";
  }

 private:
  Folder folder_;

 public:
  const std::string config;
};

TEST(Nvml, ReportsWhatTheDriverSays) {
  FakeGpus gpus;
  gpus.write(
      "driver 550.54.15\ncuda 12040\n"
      "gpu GPU-a name=NVIDIA_H100 mem_mib=81920 use=37 temp=61 power_mw=250400 default_mw=700000 sm=1980 mem_mhz=2619 "
      "ecc_c=3 ecc_u=1 xid=79:1\n"
      "gpu GPU-b mem_mib=16384\n" +
      fmt::format("proc GPU-a {} 2048\n", getpid()));
  Nvml nvml(FakeGpus::library());
  ASSERT_TRUE(nvml.available());
  EXPECT_EQ(nvml.driver_version(), "550.54.15");
  EXPECT_EQ(nvml.cuda_version(), "12.4");
  const auto devices = nvml.devices();
  ASSERT_EQ(devices.size(), 2U);
  EXPECT_EQ(devices[0], (Device{"GPU-a", "NVIDIA H100", std::int64_t{81920} << 20}));
  const auto samples = nvml.samples();
  ASSERT_EQ(samples.size(), 2U);
  const session::GpuSample expected{
      "GPU-a", 37, 61, 250, std::uint64_t{2048} << 20, std::uint64_t{81920} << 20, 700, 1980, 2619, 3, 1, 79, 1};
  EXPECT_EQ(samples[0], expected);
  EXPECT_EQ(nvml.samples()[0].xid_count, 1U);  // told once
  const auto processes = nvml.processes();
  ASSERT_EQ(processes.size(), 1U);
  EXPECT_EQ(processes[0].pid, static_cast<std::uint32_t>(getpid()));
}

TEST(Nvml, LendsTheInstancesOfAGpuInMigModeInItsPlace) {
  FakeGpus gpus;
  gpus.write(
      "gpu GPU-a name=NVIDIA_A100-SXM4-40GB mem_mib=40960 mig=1\n"
      "mig GPU-a MIG-1 1g.5gb 4864\nmig GPU-a MIG-2 3g.20gb 19968\nmig GPU-a MIG-3 1c.3g.20gb 19968\n"
      "gpu GPU-b mem_mib=40960 mig=0\ngpu GPU-c mem_mib=16384\ngpu GPU-d mem_mib=40960 mig=1\n");
  Nvml nvml(FakeGpus::library());
  EXPECT_EQ(nvml.devices().size(), 4U);
  const auto lendable = nvml.lendable();
  ASSERT_EQ(lendable.size(), 4U) << "two instances, two GPUs";
  EXPECT_EQ(lendable[0].device,
            (Device{"MIG-1", "NVIDIA A100-SXM4-40GB", std::int64_t{4864} << 20, GpuSharing::Mig, 125, "1g.5gb"}));
  EXPECT_EQ(lendable[1].device,
            (Device{"MIG-2", "NVIDIA A100-SXM4-40GB", std::int64_t{19968} << 20, GpuSharing::Mig, 500, "3g.20gb"}));
  EXPECT_EQ(std::tuple(lendable[1].gpu, lendable[1].gpu_index, lendable[1].index), std::tuple("GPU-a", 0, 1));
  EXPECT_EQ(lendable[2].device.uuid, "GPU-b");
  EXPECT_EQ(lendable[3].device.uuid, "GPU-c");
  EXPECT_EQ(lendable[3].gpu_index, 2);
}

TEST(Nvml, NoticesWhatComesAndGoes) {
  FakeGpus gpus;  // no file: the driver is not loaded
  Nvml nvml(FakeGpus::library());
  EXPECT_FALSE(nvml.available());
  EXPECT_TRUE(nvml.devices().empty());
  gpus.write("gpu GPU-a\n");
  nvml.refresh();
  EXPECT_EQ(nvml.devices().size(), 1U);
  gpus.write("gpu GPU-a\ngpu GPU-b\n");
  nvml.refresh();
  EXPECT_EQ(nvml.devices().size(), 2U);
  gpus.write("gpu GPU-a lost=1\ngpu GPU-b\n");  // fell off the bus: still counted, answers nothing
  nvml.refresh();
  const auto rest = nvml.devices();
  ASSERT_EQ(rest.size(), 1U);
  EXPECT_EQ(rest[0].uuid, "GPU-b");
  fs::remove(gpus.config);  // the driver is gone
  EXPECT_TRUE(nvml.devices().empty());
  nvml.refresh();
  EXPECT_FALSE(nvml.available());
  EXPECT_FALSE(Nvml("/nowhere/libnvidia-ml.so.1").available());
}

TEST(PowerCap, HoldsWhileHiredAndIsTakenBack) {
  if (geteuid() != 0) GTEST_SKIP() << "the driver lets only root set a limit";
  FakeGpus gpus;
  const Folder folder;
  gpus.write("gpu GPU-a default_mw=300000 min_mw=100000 max_mw=350000\ngpu GPU-b default_mw=200000\n");
  Nvml nvml(FakeGpus::library());
  const auto watts = [&](const char* uuid) { return nvml.power(uuid)->limit_mw / 1000; };
  const std::string file = folder.path + "/power.json";
  {
    PowerKeeper keeper(nvml, file);
    keeper.reconcile(250, {"GPU-a"});
    EXPECT_EQ(watts("GPU-a"), 250U);
    EXPECT_EQ(watts("GPU-b"), 200U);
    keeper.reconcile(250, {"GPU-a", "GPU-b"});
    EXPECT_EQ(watts("GPU-b"), 200U);  // never raised
    keeper.reconcile(50, {"GPU-a", "GPU-b"});
    EXPECT_EQ(watts("GPU-a"), 100U);  // the least that the driver takes
  }
  PowerKeeper after_a_crash(nvml, file);
  EXPECT_TRUE(after_a_crash.holds_any());
  after_a_crash.reconcile(50, {"GPU-b"});
  EXPECT_EQ(watts("GPU-a"), 300U);
  after_a_crash.reconcile(0, {"GPU-b"});
  EXPECT_EQ(watts("GPU-b"), 200U);
  EXPECT_FALSE(fs::exists(file));
}

TEST(OwnerGate, PauseHoursAndIdleInThisOrder) {
  OwnerGate gate;
  Policy policy;
  const LeaseTime t0{1'000'000};
  EXPECT_TRUE(gate.decide(policy, {}, 600, {}, t0).open);
  EXPECT_EQ(gate.decide(policy, {true, false}, 600, {}, t0).reason, "owner.paused");
  EXPECT_TRUE(gate.decide(policy, {true, true}, 600, {}, t0).stop);
  const Gate damaged = gate.decide(error(Code::FailedPrecondition, "damaged"), {}, 600, {}, t0);
  EXPECT_FALSE(damaged.open);
  EXPECT_FALSE(damaged.stop);
  policy.allowed_hours = {{20 * 60, 8 * 60}};
  policy.stop_after_minutes = 10;
  EXPECT_TRUE(gate.decide(policy, {}, 7 * 60 + 59, {}, t0).open);
  const Gate morning = gate.decide(policy, {}, 8 * 60 + 5, {}, t0);
  EXPECT_EQ(morning.reason, "owner.hours");
  EXPECT_FALSE(morning.stop);  // running work winds down
  EXPECT_TRUE(gate.decide(policy, {}, 8 * 60 + 10, {}, t0).stop);
  EXPECT_TRUE(gate.decide(policy, {}, 19 * 60 + 59, {}, t0).stop);
}

TEST(OwnerGate, ANearlyFullDiskTakesNothingNew) {
  OwnerGate gate;
  Policy policy;
  policy.reserve_disk_bytes = 5LL << 30;
  const LeaseTime now{1000};
  Signs signs;
  EXPECT_TRUE(gate.decide(policy, {}, 0, signs, now).open);  // not known
  signs.disk_free = 4LL << 30;
  const Gate low = gate.decide(policy, {}, 0, signs, now);
  EXPECT_EQ(low.reason, "owner.disk");
  EXPECT_FALSE(low.stop);
  signs.disk_free = (5LL << 30) + 1;
  EXPECT_FALSE(gate.decide(policy, {}, 0, signs, now).open);  // no flapping at the edge
  signs.disk_free = 6LL << 30;
  EXPECT_TRUE(gate.decide(policy, {}, 0, signs, now).open);
  signs.disk_free = (5LL << 30) + 1;
  EXPECT_TRUE(gate.decide(policy, {}, 0, signs, now).open);
}

TEST(OwnerGate, IdleOnlyEndsWorkWhenTheOwnerComesBack) {
  OwnerGate gate;
  Policy policy;
  policy.idle.minutes = 10;
  LeaseTime now{10'000'000};
  EXPECT_TRUE(gate.decide(policy, {}, 0, {}, now).open);  // nothing is known of anybody
  Signs signs;
  signs.input_ago = Millis(30'000);
  const Gate used = gate.decide(policy, {}, 0, signs, now);
  EXPECT_EQ(used.reason, "owner.busy");
  EXPECT_TRUE(used.stop);
  signs.input_ago = Millis(601'000);
  EXPECT_TRUE(gate.decide(policy, {}, 0, signs, now).open);
  signs.gpu = true;
  EXPECT_TRUE(gate.decide(policy, {}, 0, signs, now).stop);
  signs.gpu = false;
  now = now + Millis(599'000);
  EXPECT_FALSE(gate.decide(policy, {}, 0, signs, now).open);  // not idle for ten minutes yet
  now = now + Millis(2'000);
  EXPECT_TRUE(gate.decide(policy, {}, 0, signs, now).open);
  signs.load_percent = 26;
  EXPECT_FALSE(gate.decide(policy, {}, 0, signs, now).open);
  policy.idle.load = false;
  EXPECT_TRUE(gate.decide(policy, {}, 0, signs, now + Millis(601'000)).open);
}

TEST(OwnerSigns, TerminalsAndTheOwnersGpuPrograms) {
  FakeGpus gpus;
  const Folder folder;
  fs::create_directories(folder.path + "/pts");
  fs::create_directories(folder.path + "/input");
  std::ofstream(folder.path + "/pts/0") << "x";
  std::ofstream(folder.path + "/pts/ptmx") << "x";
  const Now now = read_clocks();
  const auto set_used = [&](const std::string& name, std::int64_t seconds_ago) {
    const timespec at{now.wall.ms / 1000 - seconds_ago, 0};
    const timespec times[2] = {at, at};
    ASSERT_EQ(utimensat(AT_FDCWD, (folder.path + name).c_str(), times, 0), 0);
  };
  set_used("/pts/0", 300);
  set_used("/pts/ptmx", 1);  // no terminal of anybody's
  OwnerSigns sources({.dev = folder.path, .last_input = folder.path + "/last"});
  IdleRule rule;
  rule.load = false;
  gpus.write("gpu GPU-a\n");
  Nvml nvml(FakeGpus::library());
  Signs seen = sources.read(rule, nvml, {}, 0, now);
  ASSERT_TRUE(seen.input_ago);
  EXPECT_GE(*seen.input_ago, Millis(299'000));
  EXPECT_FALSE(seen.gpu);
  // A key on an input device, through a pipe that stands for it.
  const std::string device = folder.path + "/input/event0";
  ASSERT_EQ(mkfifo(device.c_str(), 0600), 0);
  const Fd writer(open(device.c_str(), O_RDWR | O_NONBLOCK));
  OwnerSigns fresh({.dev = folder.path, .last_input = folder.path + "/last"});
  (void)fresh.read(rule, nvml, {}, 0, now);
  struct {
    std::int64_t seconds = 0, micros = 0;
    std::uint16_t type = 1, code = 30;
    std::int32_t value = 1;
  } key;  // EV_KEY, as the kernel writes it on 64-bit machines
  static_assert(sizeof key == 24);
  ASSERT_EQ(write(writer.get(), &key, sizeof key), static_cast<ssize_t>(sizeof key));
  seen = fresh.read(rule, nvml, {}, 0, {now.wall + Millis(1000), now.lease + Millis(1000)});
  ASSERT_TRUE(seen.input_ago);
  EXPECT_LT(*seen.input_ago, Millis(100));
  EXPECT_TRUE(fs::exists(folder.path + "/last"));  // remembered over a restart of privd
  gpus.write(fmt::format("gpu GPU-a\nproc GPU-a {} 100\n", getpid()));
  EXPECT_TRUE(fresh.read(rule, nvml, {}, 0, now).gpu);
  EXPECT_FALSE(fresh.read(rule, nvml, {cgroup_of(getpid())}, 0, now).gpu);  // it is one of our containers
  gpus.write("gpu GPU-a\nghost GPU-a 4194304 100\n");
  ASSERT_EQ(nvml.processes().size(), 1U);
  EXPECT_FALSE(owner_on_gpu(nvml, {}));  // a program that has just ended is nobody's
}

TEST(Limits, AreWrittenAsPeopleWriteThem) {
  Policy p;
  for (const auto& [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"hours", "12:00-13:30,20:00-08:00"},
                                                        {"idle-only", "15m"},
                                                        {"idle-signs", "input,gpu"},
                                                        {"cpus", "2.5"},
                                                        {"memory", "32GiB"},
                                                        {"gpus", "1"},
                                                        {"gpu-power", "250W"},
                                                        {"gpu-sharing", "on"},
                                                        {"upload", "20mbit"},
                                                        {"download", "5MB/s"},
                                                        {"egress", "on"},
                                                        {"relay-only", "on"},
                                                        {"port-mapping", "off"},
                                                        {"endpoint", "203.0.113.7:41641,[2607::1]:41641"},
                                                        {"carry", "on"},
                                                        {"carry-rate", "50mbit"},
                                                        {"carry-month", "200GiB"},
                                                        {"test", "on"},
                                                        {"test-rate", "8mbit"},
                                                        {"test-month", "2GiB"},
                                                        {"images", "muster/,rayproject/"},
                                                        {"metrics-port", "9464"}}) {
    const Status set = set_limit(p, key, value);
    EXPECT_TRUE(set.ok()) << key << " " << value;
  }
  EXPECT_EQ(p.allowed_hours.size(), 2U);
  EXPECT_EQ(p.idle.minutes, 15);
  EXPECT_FALSE(p.idle.terminals);
  EXPECT_EQ(p.max_cpu_milli, 2500);
  EXPECT_EQ(p.max_memory_bytes, std::int64_t{32} << 30);
  EXPECT_EQ(p.max_gpu_power_w, 250);
  EXPECT_TRUE(p.gpu_sharing);
  EXPECT_EQ(p.max_upload_bytes_s, 2'500'000);
  EXPECT_EQ(p.max_download_bytes_s, 5'000'000);
  EXPECT_TRUE(p.carry_allowed);
  EXPECT_TRUE(p.relay_only);
  EXPECT_FALSE(p.port_mapping);
  EXPECT_EQ(p.endpoints, (std::vector<std::string>{"203.0.113.7:41641", "[2607::1]:41641"}));
  EXPECT_FALSE(Policy{}.tests_allowed) << "nothing is sent only to measure unless the owner says so";
  EXPECT_TRUE(p.tests_allowed);
  EXPECT_EQ(p.max_test_bytes_s, 1'000'000);
  EXPECT_EQ(p.max_test_bytes_per_month, std::int64_t{2} << 30);
  EXPECT_EQ(p.max_carry_bytes_s, 6'250'000);
  EXPECT_EQ(p.max_carry_bytes_per_month, std::int64_t{200} << 30);
  const auto back = parse_policy(policy_text(p));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(*back, p);
  for (const auto& [key, value] : std::vector<std::pair<std::string, std::string>>{{"hours", "25:00-26:00"},
                                                                                   {"hours", ""},
                                                                                   {"idle-only", "soon"},
                                                                                   {"cpus", "-1"},
                                                                                   {"cpus", "nan"},
                                                                                   {"memory", "much"},
                                                                                   {"gpu-power", "1e99"},
                                                                                   {"upload", "1bit"},
                                                                                   {"upload", "20"},
                                                                                   {"egress", "maybe"},
                                                                                   {"relay-only", "perhaps"},
                                                                                   {"endpoint", "example.org:41641"},
                                                                                   {"endpoint", "203.0.113.7"},
                                                                                   {"udp-port", "80"},
                                                                                   {"udp-port", "65536"},
                                                                                   {"engine-socket", "sock"},
                                                                                   {"metrics-port", "70000"},
                                                                                   {"colour", "blue"}}) {
    EXPECT_FALSE(set_limit(p, key, value).ok()) << key << " " << value;
  }
  for (const auto& [key, text] : describe_limits(p)) EXPECT_TRUE(set_limit(p, key, "default").ok()) << key;
  EXPECT_EQ(p, Policy{});
}

TEST(Limits, LimitsOnTrafficAreReported) {
  Folder folder;
  Layout layout;
  layout.root = folder.path;
  const auto labels = [&](const std::string& policy) {
    std::ofstream(layout.policy(), std::ios::trunc) << policy;
    return gather_facts(layout, {{"site", "attic"}}).labels;
  };
  const auto none = labels("{}");
  EXPECT_EQ(none.at("site"), "attic");
  for (const auto& name : {kUploadLimitLabel, kDownloadLimitLabel, kVolumeLeftLabel})
    EXPECT_FALSE(none.contains(std::string(name))) << name;
  const std::string limited =
      R"({"max_upload_bytes_s": 2500000, "egress_allowed": true, "egress": {"max_bytes_per_month": 1073741824000}})";
  EXPECT_EQ(labels(limited).at("limit-upload-kbps"), "20000");
  EXPECT_FALSE(labels(limited).contains("limit-download-kbps"));
  EXPECT_EQ(labels(limited).at("egress-left-gib"), "1000") << "nothing has flowed yet";
  const std::string month = format_utc(read_clocks().wall).substr(0, 7);
  std::ofstream(layout.egress_volume()) << R"({"month":")" << month << R"(","bytes":268435456001})"
                                        << "\n";
  EXPECT_EQ(labels(limited).at("egress-left-gib"), "700") << "in twentieths, rounded down";
  std::ofstream(layout.egress_volume()) << R"({"month":"2001-01","bytes":268435456001})"
                                        << "\n";
  EXPECT_EQ(labels(limited).at("egress-left-gib"), "1000") << "that was another month's";
}

host::Machine machine_with(const std::vector<std::string>& gpus) {
  host::Machine out{4000, 8LL << 30};
  for (const auto& uuid : gpus)
    out.gpus[uuid] = Lendable{Device{uuid, "A100", std::int64_t{40} << 30}, uuid, static_cast<int>(out.gpus.size())};
  return out;
}

TEST(Grants, SharesOfAGpuNeverExceedIt) {
  const Folder folder;
  const Layout layout{folder.path};
  Policy policy;
  host::Machine machine = machine_with({"GPU-a"});
  Device instance{"MIG-1", "A100", std::int64_t{10} << 30, GpuSharing::Mig, 250, "2g.10gb"};
  machine.gpus["MIG-1"] = Lendable{instance, "GPU-b", 1, 0};
  Grants grants(layout);
  const auto share = [](const std::string& lease, const std::string& gpu, std::int64_t milli) {
    LaunchSpec out;
    out.lease = lease, out.cpu_milli = 500, out.memory_bytes = 1LL << 30;
    out.devices = {gpu}, out.gpu_share_milli = milli;
    return out;
  };
  LaunchSpec one = share("lease-1", "GPU-a", 500);
  EXPECT_EQ(grants.book(one, policy, machine).error().field, "owner.gpu_sharing") << "the owner did not say so";
  policy.gpu_sharing = true;
  ASSERT_TRUE(grants.book(one, policy, machine).ok());
  EXPECT_EQ(one.gpu_memory_bytes >> 20, 20 << 10);
  LaunchSpec two = share("lease-2", "GPU-a", 501);
  EXPECT_EQ(grants.book(two, policy, machine).error().field, "gpu.taken");
  two = share("lease-2", "GPU-a", 0);
  EXPECT_EQ(grants.book(two, policy, machine).error().field, "gpu.taken") << "whole, while another has a share";
  two = share("lease-2", "GPU-a", 500);
  ASSERT_TRUE(grants.book(two, policy, machine).ok());
  LaunchSpec three = share("lease-3", "MIG-1", 200);
  policy.gpu_sharing = false;
  policy.gpu_uuids = {"GPU-a"};
  EXPECT_EQ(grants.book(three, policy, machine).error().field, "owner.gpu");
  policy.gpu_uuids = {"GPU-b"};
  ASSERT_TRUE(grants.book(three, policy, machine).ok()) << "the instances of a GPU that is lent are lent";
  EXPECT_EQ(three.gpu_memory_bytes, instance.memory_bytes);
  LaunchSpec four = share("lease-4", "MIG-1", 50);
  EXPECT_EQ(grants.book(four, policy, machine).error().field, "gpu.taken") << "an instance is one lease's";
  Grants again(layout);  // a restarted privd knows what was given
  grants.release("lease-2"), again.release("lease-2");
  policy = Policy{};
  policy.gpu_sharing = true;
  two = share("lease-5", "GPU-a", 600);
  EXPECT_EQ(again.book(two, policy, machine).error().field, "gpu.taken");
  two = share("lease-5", "GPU-a", 500);
  EXPECT_TRUE(again.book(two, policy, machine).ok());
}

TEST(Grants, TheSumNeverExceedsWhatIsLent) {
  const Folder folder;
  const Layout layout{folder.path};
  Policy policy;
  policy.reserve_memory_bytes = 1LL << 30;
  policy.reserve_cpu_milli = 1000;
  const host::Machine machine = machine_with({"GPU-a", "GPU-b"});
  Grants grants(layout);
  LaunchSpec one;
  one.lease = "lease-1";
  one.cpu_milli = 9000;
  one.memory_bytes = 4LL << 30;
  one.devices = {"GPU-a"};
  ASSERT_TRUE(grants.book(one, policy, machine).ok());
  EXPECT_EQ(one.cpu_milli, 3000);
  LaunchSpec two = one;
  two.lease = "lease-2";
  EXPECT_EQ(grants.book(two, policy, machine).error().field, "gpu.taken");
  two.devices = {"GPU-b"};
  EXPECT_EQ(grants.book(two, policy, machine).error().field, "owner.max_cpu");
  one.cpu_milli = 1000;
  ASSERT_TRUE(grants.book(one, policy, machine).ok());  // again: replaced, not added
  two.cpu_milli = 0;
  EXPECT_EQ(grants.book(two, policy, machine).error().field, "owner.max_memory");
  two.memory_bytes = 0;
  ASSERT_TRUE(grants.book(two, policy, machine).ok());
  EXPECT_EQ(two.cpu_milli, 2000);
  EXPECT_EQ(two.memory_bytes, 3LL << 30);
  LaunchSpec three;
  three.lease = "lease-3";
  three.devices = {"GPU-c"};
  EXPECT_EQ(grants.book(three, policy, machine).error().field, "gpu.missing");
  three.devices = {"GPU-b", "GPU-b"};
  EXPECT_EQ(grants.book(three, policy, machine).error().field, "gpu.twice");
  // A restarted privd knows what was given.
  Grants again(layout);
  EXPECT_EQ(again.gpus(), (std::set<std::string>{"GPU-a", "GPU-b"}));
  again.release("lease-1");
  policy.gpu_uuids = {"GPU-b"};
  three.devices = {"GPU-a"};
  EXPECT_EQ(again.book(three, policy, machine).error().field, "owner.gpu");
  policy.gpu_uuids.clear();
  policy.max_gpus = 1;
  EXPECT_EQ(again.book(three, policy, machine).error().field, "owner.max_gpus");  // one is hired already
  policy.max_leases = 1;
  EXPECT_EQ(again.book(three, policy, machine).error().field, "owner.max_leases");
}

TEST(Bandwidth, ADebtIsPaidBeforeMorePasses) {
  TokenBucket bucket;
  LeaseTime now{1000};
  EXPECT_EQ(bucket.wait(now), Millis(0));  // no cap
  bucket.set_rate(1'000'000);
  now = now + Millis(1000);
  std::int64_t sent = 0;
  const LeaseTime began = now;
  while (now - began < Millis(10'000)) {
    const Millis wait = bucket.wait(now);
    if (wait > Millis(0)) {
      now = now + wait;
      continue;
    }
    bucket.charge(1400, now);
    sent += 1400;
  }
  EXPECT_NEAR(static_cast<double>(sent), 10e6, 0.3e6);
}

TEST(Bandwidth, FollowsTheFileOfPrivd) {
  const Folder folder;
  const std::string file = folder.path + "/bandwidth";
  Bandwidth bandwidth(file);
  bandwidth.refresh();
  EXPECT_EQ(bandwidth.up.rate(), 0);
  std::ofstream(file) << "2000000 1000\n";
  bandwidth.refresh();
  EXPECT_EQ(bandwidth.up.rate(), 2'000'000);
  const LeaseTime now{5000};
  const Bytes big(1400), small(100);
  int passed = 0;
  for (int i = 0; i < 100; ++i) passed += bandwidth.admit(big, now) ? 1 : 0;
  EXPECT_LT(passed, 30);
  EXPECT_TRUE(bandwidth.admit(small, now));  // a handshake always passes
}

TEST(Carry, NothingWithoutTheOwnersWordAndNoMoreThanHisCaps) {
  const Folder folder;
  const std::string file = folder.path + "/bandwidth", kept = folder.path + "/carried";
  Now now{WallTime{1'795'000'000'000}, LeaseTime{100'000}};
  {
    Bandwidth bandwidth(file, kept);
    std::ofstream(file) << "0 0\n";  // as older programs wrote it
    bandwidth.refresh();
    EXPECT_FALSE(bandwidth.carry.offers());
    EXPECT_FALSE(bandwidth.carry.admit(1, now.lease));
    std::ofstream(file) << "0 0 1 1000000 3000000\n";
    bandwidth.refresh();
    EXPECT_TRUE(bandwidth.carry.offers());
    std::int64_t carried = 0;
    for (int i = 0; i < 1'000; ++i) {
      carried += bandwidth.carry.admit(1'000, now.lease) ? 1'000 : 0;
      now.lease = now.lease + Millis(i % 2);
    }
    EXPECT_NEAR(static_cast<double>(carried), 625'000, 10'000) << "half a second, and an eighth at once";
    while (bandwidth.carry.offers()) {
      now.lease = now.lease + Millis(10);
      bandwidth.carry.admit(1'000, now.lease);
    }
    EXPECT_FALSE(bandwidth.carry.admit(1, now.lease)) << "the month's volume is used up";
    bandwidth.carry.tick(now);
  }
  Bandwidth again(file, kept);
  again.refresh();
  EXPECT_FALSE(again.carry.offers()) << "over restarts";
  now.lease = now.lease + Millis(10'000);
  now.wall = now.wall + Millis(31LL * 86'400'000);
  again.carry.tick(now);
  EXPECT_TRUE(again.carry.offers()) << "a new month";
  EXPECT_FALSE(again.tests.offers()) << "an older privd says nothing of tests";
  std::ofstream(file) << "0 0 1 1000 2000 1 5000 6000\n";
  again.refresh();
  EXPECT_TRUE(again.tests.offers());
  EXPECT_EQ(again.tests.rate(), 5'000);
  again.tests.count(6'000);
  EXPECT_FALSE(again.tests.offers()) << "what came counts too";
  std::ofstream(file) << "0 0 1 damaged\n";
  again.refresh();
  EXPECT_FALSE(again.carry.offers()) << "the owner meant something, we do not know what";
}

TEST(RollUp, MeansPeaksAndLastValues) {
  RollUp rollup;
  session::Telemetry second;
  for (int i = 1; i <= 4; ++i) {
    second.at = WallTime{i * 1000};
    second.window = Millis(1000);
    second.cpu_milli = second.cpu_peak_milli = static_cast<std::uint64_t>(i) * 1000;
    second.memory_used_bytes = static_cast<std::uint64_t>(i);
    second.gpus = {{"GPU-a", static_cast<std::uint32_t>(i * 10), 50}};
    second.containers.clear();
    if (i > 2) second.containers.push_back({LeaseId{7}, 500, 1 << 20, 3});
    rollup.add(second);
  }
  const session::Telemetry mean = rollup.take();
  EXPECT_EQ(mean.cpu_milli, 2500U);
  EXPECT_EQ(mean.cpu_peak_milli, 4000U);
  EXPECT_EQ(mean.memory_used_bytes, 4U);
  EXPECT_EQ(mean.window, Millis(4000));
  ASSERT_EQ(mean.gpus.size(), 1U);
  EXPECT_EQ(mean.gpus[0].use_percent, 25U);
  ASSERT_EQ(mean.containers.size(), 1U);
  EXPECT_EQ(mean.containers[0].cpu_milli, 500U);  // over the seconds that it lived
  EXPECT_TRUE(rollup.empty());
}

TEST(Cgroup, CountsOwnUseAndItsDevices) {
  const auto use = container_use(getpid());
  ASSERT_TRUE(use.ok()) << use.error().message;
  EXPECT_FALSE(cgroup_of(getpid()).empty());
  EXPECT_FALSE(container_use(0x7ffffff0).ok());
  const NetCount count = parse_net_dev(
      "Inter-|   Receive\n face |bytes\n    lo: 5 1 0 0 0 0 0 0 6 1 0\nmuster0: 100 1 0 0 0 0 0 0 200 1 0\n  eth0:7 1 "
      "0 0 0 0 0 0 8 1\n");
  EXPECT_EQ(count.rx_bytes, 107U);
  EXPECT_EQ(count.tx_bytes, 208U);
}

}  // namespace
}  // namespace muster::host
