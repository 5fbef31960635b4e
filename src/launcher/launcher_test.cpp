#include "launcher/launcher.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "testing/test_root.h"

namespace muster::launcher {
namespace {

using What = ReportRow::What;

std::string slurp(const std::string& relative) {
  const std::filesystem::path root = muster::test_root();
  std::ifstream in(root / relative);
  std::ostringstream text;
  text << in.rdbuf();
  EXPECT_FALSE(text.str().empty()) << relative;
  return text.str();
}

Launch load(const std::string& relative, const Context& context = {}) {
  auto launch = from_yaml(slurp(relative), context);
  EXPECT_TRUE(launch.ok()) << relative << ": " << (launch.ok() ? "" : launch.error().message);
  return launch.ok() ? *launch : Launch{};
}

bool says(const Launch& launch, const std::string& key, What what, const std::string& part = "") {
  for (const auto& row : launch.report)
    if (row.key == key && row.what == what && row.text.find(part) != std::string::npos) return true;
  return false;
}

std::string fails(const std::string& text) {
  auto launch = from_yaml(text, {});
  EXPECT_FALSE(launch.ok()) << text;
  return launch.ok() ? "" : launch.error().message;
}

Context owner() {
  Context context;
  context.find_node = [](std::string_view address) -> std::optional<NodeId> {
    if (address == "149.36.0.221" || address == "192.0.2.1") return NodeId{1};
    if (address == "94.101.98.216" || address == "192.0.2.2") return NodeId{2};
    if (address == "94.101.98.190") return NodeId{3};
    return {};
  };
  return context;
}

TEST(Launcher, SeedFileUnmodifiedAsCounts) {
  const Launch launch = load("examples/default.yaml");
  const ClusterSpec& spec = launch.spec;
  EXPECT_EQ(spec.name, "default");
  EXPECT_EQ(spec.image, "muster/ray:2.60.0");
  EXPECT_TRUE(says(launch, "docker.image", What::Replaced, "rayproject/ray:latest-gpu"));
  EXPECT_EQ(spec.nofile, 65'536);
  ASSERT_EQ(spec.groups.size(), 1u);
  EXPECT_EQ(spec.groups[0].min, 2u);
  EXPECT_EQ(spec.groups[0].max, 2u);
  EXPECT_TRUE(spec.groups[0].request.whole_machine);
  EXPECT_TRUE(spec.groups[0].request.pinned.empty());
  EXPECT_FALSE(spec.head.whole_machine);
  EXPECT_EQ(spec.head.resources.gpus, 0);
  EXPECT_EQ(spec.idle_timeout, Millis(300'000));
  EXPECT_TRUE(says(launch, "auth", What::Ignored, "no SSH"));
  EXPECT_TRUE(says(launch, "provider.head_ip", What::Replaced, "149.36.0.221"));
  EXPECT_TRUE(says(launch, "provider.worker_ips", What::Replaced, "2 worker machines"));
  EXPECT_TRUE(says(launch, "head_start_ray_commands", What::Replaced, "--autoscaling-config"));
  EXPECT_TRUE(says(launch, "head_start_ray_commands", What::Replaced, "ulimit -c unlimited"));
  EXPECT_TRUE(says(launch, "worker_start_ray_commands", What::Replaced, "ray stop"));
  EXPECT_TRUE(spec.setup_commands.empty() && spec.head_setup_commands.empty() && spec.groups[0].setup_commands.empty());
}

TEST(Launcher, SeedFileOnOwnMachinesIsPinned) {
  const Launch launch = load("examples/default.yaml", owner());
  EXPECT_EQ(launch.spec.head.pinned, std::vector<NodeId>{NodeId{1}});
  EXPECT_TRUE(launch.spec.head.whole_machine);
  ASSERT_EQ(launch.spec.groups.size(), 1u);
  EXPECT_EQ(launch.spec.groups[0].request.pinned, (std::vector<NodeId>{NodeId{2}, NodeId{3}}));
  EXPECT_TRUE(says(launch, "provider.worker_ips", What::Mapped, "node-3"));
}

TEST(Launcher, MixedOwnAndForeignAddressesMakeTwoGroups) {
  const Launch launch = load("tests/data/launcher/muster_section.yaml", owner());
  const ClusterSpec& spec = launch.spec;
  ASSERT_EQ(spec.groups.size(), 2u);
  EXPECT_EQ(spec.groups[0].name, "worker-own");
  EXPECT_EQ(spec.groups[0].request.pinned, std::vector<NodeId>{NodeId{2}});
  EXPECT_EQ(spec.groups[0].min, 1u);
  EXPECT_EQ(spec.groups[1].min, 1u);
  EXPECT_EQ(spec.groups[1].max, 2u);
  const NodeRequest& worker = spec.groups[1].request;
  EXPECT_EQ(worker.resources.cpu_milli, 4'000);
  EXPECT_EQ(worker.resources.gpus, 1);
  EXPECT_EQ(worker.resources.custom_milli.at("fast"), 2'000);
  EXPECT_EQ(worker.resources.object_store_bytes, 1'000'000'000);
  EXPECT_EQ(worker.resources.memory_bytes, std::int64_t{4} << 30);
  EXPECT_EQ(worker.gpu_model, "RTX 4090");
  EXPECT_EQ(worker.constraints.at("region"), "eu");
  EXPECT_EQ(worker.constraints.at("jurisdiction"), "DE");
  EXPECT_EQ(spec.groups[1].setup_commands, std::vector<std::string>{"nvidia-smi -L"});
  EXPECT_EQ(spec.env.at("OMP_NUM_THREADS"), "4");
  EXPECT_EQ(spec.nofile, 4'096);
  EXPECT_EQ(spec.spares, 1u);
  EXPECT_EQ(spec.pool, "pool:lab");
  EXPECT_TRUE(spec.egress);
  EXPECT_EQ(spec.tier, 0);
  EXPECT_EQ(spec.priority, -5);
  EXPECT_EQ(spec.max_lifetime, Millis(90 * 60'000));
  EXPECT_EQ(spec.head.resources.cpu_milli, 2'000);
  EXPECT_TRUE(spec.head.gpu_model.empty());
}

TEST(Launcher, LocalManualWithPlaceholders) {
  const Launch launch = load("tests/data/launcher/local_manual.yaml");
  ASSERT_EQ(launch.spec.groups.size(), 1u);
  EXPECT_EQ(launch.spec.groups[0].max, 2u);
  EXPECT_TRUE(says(launch, "provider.worker_ips", What::Warning, "..."));
  EXPECT_TRUE(says(launch, "docker.image", What::Warning, "empty"));
  EXPECT_EQ(launch.spec.image, "muster/ray:2.60.0");
  EXPECT_EQ(launch.excludes, std::vector<std::string>{"**/.git"});
}

TEST(Launcher, LocalAutomatic) {
  const Launch launch = load("tests/data/launcher/local_automatic.yaml");
  ASSERT_EQ(launch.spec.groups.size(), 1u);
  EXPECT_EQ(launch.spec.groups[0].min, 1u);
  EXPECT_EQ(launch.spec.groups[0].max, 4u);
  EXPECT_TRUE(says(launch, "provider.coordinator_address", What::Replaced));
}

TEST(Launcher, AwsFull) {
  const Launch launch = load("tests/data/launcher/aws_full.yaml");
  const ClusterSpec& spec = launch.spec;
  EXPECT_EQ(spec.image, "rayproject/ray:2.60.0-gpu");
  EXPECT_EQ(spec.shm_bytes, std::int64_t{2} << 30);
  EXPECT_EQ(spec.env.at("HF_HOME"), "/tmp/hf");
  EXPECT_EQ(spec.env.at("MODE"), "a b");
  ASSERT_EQ(spec.groups.size(), 1u);
  EXPECT_EQ(spec.groups[0].name, "worker.kind");
  EXPECT_EQ(spec.groups[0].request.resources.gpus, 1);
  EXPECT_EQ(spec.groups[0].request.resources.custom_milli.at("special"), 500);
  EXPECT_EQ(spec.groups[0].request.labels.at("team"), "vision");
  EXPECT_EQ(launch.mounts, (std::vector<LocalMount>{{"/home/ray/code", "./code", 45}}));
  EXPECT_EQ(spec.setup_commands[1], "echo \"two words: {x} # not a comment\" && true");
  EXPECT_TRUE(says(launch, "docker.run_options", What::Warning, "--privileged"));
  EXPECT_TRUE(says(launch, "docker.run_options", What::Warning, "-v /data:/data"));
  EXPECT_TRUE(says(launch, "docker.run_options", What::Replaced, "--gpus all"));
  EXPECT_TRUE(says(launch, "docker.run_options", What::Ignored, "--mystery"));
  EXPECT_TRUE(says(launch, "docker.run_options", What::Warning, "command on the host"));
  EXPECT_TRUE(says(launch, "setup_commands", What::Warning, "egress"));
  EXPECT_TRUE(says(launch, "provider.security_group", What::Ignored));
}

TEST(Launcher, EgressMayBeAskedForBesideTheFile) {
  const char* text =
      "cluster_name: x\nprovider: {type: local, head_ip: 10.0.0.1, worker_ips: []}\nsetup_commands: [pip install y]\n";
  const auto plain = from_yaml(text, Context{});
  ASSERT_TRUE(plain.ok()) << plain.error().message;
  EXPECT_FALSE(plain->spec.egress);
  EXPECT_TRUE(says(*plain, "setup_commands", What::Warning, "egress"));
  Context context;
  context.egress = true;
  const auto asked = from_yaml(text, context);
  ASSERT_TRUE(asked.ok());
  EXPECT_TRUE(asked->spec.egress);
  EXPECT_FALSE(says(*asked, "setup_commands", What::Warning, "egress"));
}

TEST(Launcher, ManyKinds) {
  const Launch launch = load("tests/data/launcher/aws_multi_node_type.yaml");
  const ClusterSpec& spec = launch.spec;
  EXPECT_EQ(spec.head.resources.cpu_milli, 4'000);
  ASSERT_EQ(spec.groups.size(), 2u);
  EXPECT_EQ(spec.groups[0].setup_commands, std::vector<std::string>{"echo only here"});
  EXPECT_EQ(spec.groups[1].setup_commands, std::vector<std::string>{"echo everywhere"});
  EXPECT_EQ(spec.groups[1].max, 10u);
  EXPECT_EQ(spec.groups[1].request.resources.object_store_bytes, 100'000'000'000);
  EXPECT_EQ(spec.shm_bytes, std::int64_t{8} << 30);
  EXPECT_EQ(spec.image, "muster/ray:2.60.0");
  EXPECT_EQ(spec.max_workers, 10u);
  EXPECT_TRUE(says(launch, "max_workers", What::Mapped, "10 over all kinds"));
}

TEST(Launcher, MaxWorkersBoundsAllKindsTogether) {
  const std::string kinds =
      "cluster_name: a\nprovider: {type: aws}\nhead_node_type: h\navailable_node_types:\n"
      "  h: {resources: {CPU: 1}}\n  w: {resources: {CPU: 2}, min_workers: 3, max_workers: 9}\n";
  EXPECT_EQ(from_yaml(kinds + "max_workers: 4\n", {})->spec.max_workers, 4u);
  EXPECT_EQ(from_yaml(kinds + "max_workers: 20\n", {})->spec.max_workers, 0u) << "the kinds say it already";
  EXPECT_EQ(from_yaml(kinds, {})->spec.max_workers, 3u) << "Ray's default of 2, but never below the minimum";
  EXPECT_NE(fails(kinds + "max_workers: 2\n").find("minimum of 3 together"), std::string::npos);
}

TEST(Launcher, OtherProvidersAreCounts) {
  for (const std::string name : {"aws_minimal", "gcp", "azure", "aliyun", "vsphere", "legacy"}) {
    const Launch launch = load("tests/data/launcher/" + name + ".yaml");
    EXPECT_EQ(launch.spec.groups.size(), 1u) << name;
    EXPECT_TRUE(says(launch, "provider.type", What::Replaced, "Muster provides")) << name;
    EXPECT_FALSE(launch.spec.image.empty());
  }
  EXPECT_TRUE(says(load("tests/data/launcher/gcp.yaml"), "docker.image", What::Warning, "same image"));
  const Launch legacy = load("tests/data/launcher/legacy.yaml");
  EXPECT_EQ(legacy.spec.setup_commands, std::vector<std::string>{"echo second"});
  EXPECT_TRUE(says(legacy, "setup_commands", What::Warning, "given twice"));
  EXPECT_TRUE(says(legacy, "initial_workers", What::Ignored));
  EXPECT_TRUE(says(load("tests/data/launcher/azure.yaml"), "provider.resource_group", What::Ignored, "azure"));
  EXPECT_EQ(load("tests/data/launcher/azure.yaml").spec.groups[0].max, 2u);
}

TEST(Launcher, IsolationIsAskedOfMachines) {
  const std::string base = "cluster_name: a\nprovider: {type: aws}\n";
  const auto constraints = [&](const std::string& more) {
    const auto launch = from_yaml(base + more, {});
    EXPECT_TRUE(launch.ok());
    return launch->spec.head.constraints;
  };
  EXPECT_EQ(constraints("muster: {isolation: user-namespace}\n").at("isolation"), "user-namespace");
  EXPECT_FALSE(constraints("muster: {isolation: container}\n").contains("isolation"));
}

TEST(Launcher, ErrorsNameLineAndKeyAndRemedy) {
  const std::string base = "cluster_name: a\nprovider: {type: aws}\n";
  EXPECT_EQ(fails(base + "min_workers: TYPICALLY_TWO\n"),
            "line 3: min_workers must be a whole number, but is \"TYPICALLY_TWO\"; put a number there");
  EXPECT_EQ(fails(base + "max_worker: 2\n"),
            "line 3: max_worker is not a key of Ray's cluster YAML; did you mean max_workers?");
  EXPECT_NE(fails(base + "muster: {isolation: gvisor}\n").find("asks for gvisor, which no machine offers yet"),
            std::string::npos);
  EXPECT_NE(fails(base + "muster: {isolation: strong}\n").find("must be container or user-namespace"),
            std::string::npos);
  EXPECT_NE(fails(base + "min_workers: 3\nmax_workers: 2\n").find("more than max_workers"), std::string::npos);
  EXPECT_NE(fails(base + "setup_commands:\n  - echo: x\n").find("put the command in quotes"), std::string::npos);
  EXPECT_NE(fails("cluster_name: a\n").find("provider is missing"), std::string::npos);
  EXPECT_NE(fails("cluster_name: a\nprovider: {type: local, worker_ips: []}\n").find("head_ip is missing"),
            std::string::npos);
  EXPECT_NE(fails("cluster_name: 'a b'\nprovider: {type: aws}\n").find("cluster_name may hold"), std::string::npos);
  EXPECT_NE(fails("apiVersion: ray.io/v1\nkind: RayCluster\n").find("Kubernetes"), std::string::npos);
  EXPECT_NE(fails(base + "muster: {sparse: 1}\n").find("did you mean spares"), std::string::npos);
  EXPECT_NE(fails(base + "muster: {policy: fast}\n").find("must be balanced, pack, spread, cheap or fast-network"),
            std::string::npos);
  EXPECT_NE(fails(base + "muster: {min_trust: high}\n").find("must be community, verified or platform"),
            std::string::npos);
  const auto asked = from_yaml(base + "muster: {policy: fast-network, min_trust: verified}\n", {});
  ASSERT_TRUE(asked.ok()) << asked.error().message;
  EXPECT_EQ(asked->spec.policy, Policy::FastNetwork);
  EXPECT_EQ(asked->spec.min_trust, TrustTier::Verified);
  const auto priced = from_yaml(base + "muster: {max_price: 1.20 EUR, budget: 40EUR, may_end_early: true}\n", {});
  ASSERT_TRUE(priced.ok()) << priced.error().message;
  EXPECT_EQ(priced->spec.max_price, 1'200'000);
  EXPECT_EQ(priced->spec.budget, 40'000'000);
  EXPECT_EQ(priced->spec.currency, "EUR");
  EXPECT_TRUE(priced->spec.may_end_early);
  EXPECT_EQ(from_yaml(base + "muster: {max_price: 1.2}\n", {})->spec.currency, "credits");
  const auto sends =
      from_yaml(base + "muster: {uplink_mbps: 50, downlink_mbps: 200, transfer_gib: 30, egress: true}\n", {});
  ASSERT_TRUE(sends.ok()) << sends.error().message;
  const Traffic each{50'000, 200'000, std::int64_t{30} << 30};
  EXPECT_EQ(sends->spec.head.resources.traffic, each);
  EXPECT_EQ(sends->spec.groups.at(0).request.resources.traffic, each);
  const auto pairs = from_yaml(base + "muster: {pair_mbps: 200, replace_slow: true}\n", {});
  ASSERT_TRUE(pairs.ok()) << pairs.error().message;
  EXPECT_EQ(pairs->spec.pair_kbps, 200'000);
  EXPECT_TRUE(pairs->spec.replace_slow);
  EXPECT_NE(fails(base + "muster: {replace_slow: true}\n").find("pair_mbps"), std::string::npos);
  EXPECT_NE(fails(base + "muster: {pair_mbps: 2000000}\n").find("muster.pair_mbps"), std::string::npos);
  EXPECT_NE(fails(base + "muster: {uplink_mbps: 1.5}\n").find("muster.uplink_mbps"), std::string::npos);
  EXPECT_NE(fails(base + "muster: {uplink_mbps: 2000000}\n").find("muster.uplink_mbps"), std::string::npos);
  EXPECT_NE(fails(base + "muster: {max_price: cheap}\n").find("muster.max_price must be an amount such as 1.20"),
            std::string::npos)
      << fails(base + "muster: {max_price: cheap}\n");
  EXPECT_NE(fails(base + "muster: {max_price: 1 EUR, budget: 2 USD}\n").find("give both in one currency"),
            std::string::npos);
  EXPECT_NE(fails(base + "head_node_type: x\navailable_node_types: {y: {}}\n").find("lacks"), std::string::npos);
  EXPECT_NE(fails(base + "idle_timeout_minutes: -1\n").find("0 or more"), std::string::npos);
  EXPECT_NE(fails(base + "docker: {run_options: [--ulimit nofile=abc]}\n").find("nofile=65536"), std::string::npos);
  EXPECT_NE(fails("- a\n- b\n").find("must be a map"), std::string::npos);
  EXPECT_EQ(from_yaml(base + "max_workers: [1]\n", {}).error().field, "max_workers");
}

TEST(Launcher, OldImagesAreWarnedAbout) {
  const auto launch =
      from_yaml("cluster_name: a\nprovider: {type: aws}\ndocker: {image: 'rayproject/ray:2.9.0-py310'}\n", {});
  ASSERT_TRUE(launch.ok());
  EXPECT_TRUE(says(*launch, "docker.image", What::Warning, "older than Ray 2.52"));
  Context context;
  context.default_image = "registry.example/ray@sha256:00";
  const auto other = from_yaml("cluster_name: a\nprovider: {type: aws}\n", context);
  EXPECT_EQ(other->spec.image, context.default_image);
}

TEST(Launcher, ReportIsAReadableTable) {
  const Launch launch = load("examples/default.yaml");
  const std::string text = report_text(launch.report, 100);
  EXPECT_NE(text.find("docker.image"), std::string::npos);
  EXPECT_NE(text.find("replaced "), std::string::npos);
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 104u) << line;
}

// Damaged files never crash and never loop: every prefix and every single-byte damage of a real one.
TEST(Launcher, DamagedFilesGiveErrorsOrLaunches) {
  const std::string text = slurp("tests/data/launcher/aws_full.yaml");
  std::size_t refused = 0;
  for (std::size_t cut = 0; cut < text.size(); cut += 3)
    refused += from_yaml(text.substr(0, cut), owner()).ok() ? 0 : 1;
  for (std::size_t at = 0; at < text.size(); at += 2)
    for (const char c : {'{', '&', '*', '-', ':', '\t', '\n', '"', '\xff'}) {
      std::string damaged = text;
      damaged[at] = c;
      refused += from_yaml(damaged, owner()).ok() ? 0 : 1;
    }
  EXPECT_GT(refused, 100u);
}

TEST(Launcher, VirtualEnvironments) {
  const std::string head = "cluster_name: a\nprovider: {type: aws}\n";
  const auto named = from_yaml(head + "muster: {image: 'venv:numpy==1.26.4,ray[default]==2.60.0,python3.11'}\n", {});
  ASSERT_TRUE(named.ok()) << named.error().message;
  EXPECT_EQ(named->spec.image, "venv:ray==2.60.0,python3.11,numpy==1.26.4");
  EXPECT_EQ(named->spec.runtime, RuntimeKind::Venv);
  const auto derived =
      from_yaml(head + "docker: {image: 'rayproject/ray:2.59.1-py310-gpu'}\nmuster: {runtime: venv}\n", {});
  ASSERT_TRUE(derived.ok()) << derived.error().message;
  EXPECT_EQ(derived->spec.image, "venv:ray==2.59.1,python3.10");
  EXPECT_TRUE(says(*derived, "muster.runtime", What::Replaced, "rayproject/ray:2.59.1-py310-gpu"));
  const auto plain = from_yaml(head + "muster: {runtime: venv}\n", {});
  ASSERT_TRUE(plain.ok()) << plain.error().message;
  EXPECT_EQ(plain->spec.image, "venv:ray==2.60.0,python3");
  EXPECT_FALSE(from_yaml(head + "muster: {image: 'venv:ray>=2'}\n", {}).ok());
  EXPECT_EQ(from_yaml(head, {})->spec.runtime, RuntimeKind::Docker);
}

TEST(Launcher, AShareOfAGpuIsOfTheOneThatIsAskedFor) {
  const std::string types =
      "cluster_name: a\nprovider: {type: aws}\navailable_node_types:\n  head: {resources: {CPU: 1}, max_workers: 0}\n"
      "  small: {resources: {CPU: 2, GPU: 1}, max_workers: 2}\n  plain: {resources: {CPU: 2}, max_workers: 1}\n"
      "head_node_type: head\n";
  const auto launch = from_yaml(types + "muster:\n  gpu_share: 0.5\n", {});
  ASSERT_TRUE(launch.ok()) << launch.error().message;
  ASSERT_EQ(launch->spec.groups.size(), 2u);
  EXPECT_EQ(launch->spec.groups[0].request.gpu_share_milli, 500);
  EXPECT_EQ(launch->spec.groups[0].request.resources.gpus, 1);
  EXPECT_EQ(launch->spec.groups[1].request.gpu_share_milli, 0);
  EXPECT_EQ(launch->spec.head.gpu_share_milli, 0);
  EXPECT_TRUE(says(*launch, "muster.gpu_share", What::Mapped, "0.5 of a GPU for small"));
  for (const char* wrong : {"1", "0", "1.5", "0.004"})
    EXPECT_EQ(fails(types + "muster:\n  gpu_share: " + wrong + "\n"),
              std::string("line 9: muster.gpu_share must be at least 0.01 and less than 1, such as 0.5, but is ") +
                  wrong + "; leave it out for whole GPUs");
  EXPECT_NE(fails(types + "muster: {gpu_share: half}\n").find("line 8: muster.gpu_share must be a number"),
            std::string::npos);
  const auto with = [](const std::string& resources) {
    return "cluster_name: a\nprovider: {type: aws}\navailable_node_types:\n  head: {resources: {CPU: 1}}\n  w: {" +
           resources + "max_workers: 2}\nhead_node_type: head\nmuster: {gpu_share: 0.5}\n";
  };
  EXPECT_EQ(fails(with("resources: {CPU: 1, GPU: 4}, ")),
            "line 7: muster.gpu_share is of one GPU, but w asks for 4; write GPU: 1 there, or leave gpu_share out");
  EXPECT_EQ(fails(with("resources: {CPU: 1}, ")),
            "line 7: muster.gpu_share is of a GPU, but nothing asks for one; write GPU: 1 in the resources of the "
            "workers");
  EXPECT_EQ(fails(with("")), "line 7: muster.gpu_share w takes a whole machine; give it resources with GPU: 1");
  const auto part = from_yaml(with("resources: {CPU: 1, GPU: 0.5}, "), {});
  ASSERT_TRUE(part.ok());
  EXPECT_EQ(part->spec.groups[0].request.gpu_share_milli, 500);
  EXPECT_TRUE(says(*part, "available_node_types.w.resources.GPU", What::Warning, "add muster: {gpu_share: 0.5}"));
}

}  // namespace
}  // namespace muster::launcher
