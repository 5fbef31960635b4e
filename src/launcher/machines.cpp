// provider, auth-free: how many machines of which kind, and which of them are the caller's own.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "launcher/parts.h"

namespace muster::launcher {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;

struct Counts {
  std::optional<std::int64_t> min, max;
};

Result<Counts> read_counts(const Tree& map, const std::string& prefix) {
  Counts counts;
  if (const Tree* at = map.find("min_workers"); at != nullptr && at->kind != Tree::Kind::Null)
    counts.min = TRY(read_count(*at, prefix + "min_workers", kMaxWorkers));
  if (const Tree* at = map.find("max_workers"); at != nullptr && at->kind != Tree::Kind::Null)
    counts.max = TRY(read_count(*at, prefix + "max_workers", kMaxWorkers));
  if (counts.min && counts.max && *counts.min > *counts.max)
    return fault(*map.find("min_workers"), prefix + "min_workers",
                 fmt::format("is {}, more than max_workers ({}); raise max_workers or lower min_workers", *counts.min,
                             *counts.max));
  return counts;
}

// What a machine gets when the file names no resources: everything, except that a hired head stays small.
NodeRequest default_head(Draft& draft, bool own) {
  NodeRequest head;
  if (own) {
    head.whole_machine = true;
    draft.report.mapped("head", 0,
                        "no resources given and the machine is yours: the whole machine, less what its owner keeps");
    return head;
  }
  head.resources.cpu_milli = 2'000;
  head.resources.memory_bytes = 4 * kGiB;
  draft.report.mapped("head", 0,
                      "no resources given: 2 CPU, 4 GiB, no GPU (more with muster.head or `ray start --num-cpus`)");
  return head;
}

// A container needs a memory limit even where Ray needs no number: 1 GiB a CPU, at least 2.
void fill_memory(Draft& draft, NodeRequest& request, const std::string& key, int line) {
  if (request.whole_machine || request.resources.memory_bytes > 0) return;
  request.resources.memory_bytes = std::max<std::int64_t>(2, request.resources.cpu_milli / 1000) * kGiB;
  draft.report.mapped(key, line,
                      fmt::format("no memory given: {} GiB (set memory, in bytes, in resources)",
                                  request.resources.memory_bytes / kGiB));
}

NodeRequest worker_request(Draft& draft, const std::optional<Resources>& typed, const std::string& key, int line) {
  NodeRequest request;
  if (typed) {
    request.resources = *typed;
    fill_memory(draft, request, key, line);
  } else if (draft.worker.resources) {
    request.resources = *draft.worker.resources;
    if (request.resources.cpu_milli == 0 && request.resources.gpus == 0) {
      request.whole_machine = true;
      draft.report.mapped(key, line,
                          "no CPUs and no GPUs given: a worker gets a whole machine, less what its owner keeps");
    }
    fill_memory(draft, request, key, line);
  } else {
    request.whole_machine = true;
    draft.report.mapped(key, line, "no resources given: a worker gets a whole machine, less what its owner keeps");
  }
  request.labels = draft.worker.labels;
  return request;
}

void add_group(Draft& draft, WorkerGroup group) {
  const auto own = draft.group_setup.find(group.name);
  group.setup_commands = own != draft.group_setup.end() ? own->second : draft.worker_setup;
  group.setup_commands.insert(group.setup_commands.end(), draft.worker.setup.begin(), draft.worker.setup.end());
  draft.launch.spec.groups.push_back(std::move(group));
}

void finish_head(Draft& draft, std::optional<Resources> typed, bool own) {
  NodeRequest& head = draft.launch.spec.head;
  const auto pinned = head.pinned;
  if (draft.head_resources) typed = draft.head_resources;
  if (!typed && draft.head.resources) typed = draft.head.resources;
  if (typed) {
    head.resources = *typed;
    fill_memory(draft, head, "head", 0);
  } else {
    head = default_head(draft, own);
    head.pinned = pinned;
  }
  for (const auto& [name, value] : draft.head.labels) head.labels[name] = value;
}

// ---- provider local

Result<std::vector<std::pair<std::string, int>>> worker_addresses(Draft& draft, const Tree* ips) {
  std::vector<std::pair<std::string, int>> out;
  if (ips == nullptr || ips->kind == Tree::Kind::Null) return out;
  if (ips->kind != Tree::Kind::List)
    return fault(*ips, "provider.worker_ips", "must be a list of addresses, e.g. [192.0.2.1, 192.0.2.2]");
  for (const auto& item : ips->items) {
    const std::string text = TRY(read_text(*item, "provider.worker_ips"));
    if (text == "..." || text.empty())
      draft.report.warning("provider.worker_ips", item->line, "\"...\" is not an address: not counted");
    else
      out.emplace_back(text, item->line);
  }
  if (static_cast<std::int64_t>(out.size()) > kMaxWorkers)
    return fault(*ips, "provider.worker_ips", fmt::format("names more than {} machines", kMaxWorkers));
  return out;
}

std::optional<NodeId> own_node(const Draft& draft, std::string_view address) {
  return draft.context.find_node ? draft.context.find_node(address) : std::nullopt;
}

Status local_manual(Draft& draft, const Tree& provider, const Tree& root) {
  const Tree* head = provider.find("head_ip");
  const Tree* workers = provider.find("worker_ips");
  if (head == nullptr || head->kind == Tree::Kind::Null)
    return fault(provider, "provider.head_ip",
                 "is missing: provider type local needs head_ip and worker_ips, or coordinator_address");
  for (const auto* key : {"available_node_types", "head_node_type"})
    if (const Tree* at = root.find(key); at != nullptr && !at->entries.empty())
      draft.report.ignored(key, at->line, "provider local with addresses has one kind of machine");
  const std::string head_ip = TRY(read_text(*head, "provider.head_ip"));
  const auto head_node = own_node(draft, head_ip);
  if (head_node) {
    draft.launch.spec.head.pinned = {*head_node};
    draft.report.mapped("provider.head_ip", head->line,
                        head_ip + ": your own machine " + head_node->str() + ", the head runs there");
  } else {
    draft.report.replaced("provider.head_ip", head->line,
                          head_ip + ": not an enrolled machine of yours, so it counts as: one machine for the head");
  }
  const auto addresses = TRY(worker_addresses(draft, workers));
  std::vector<NodeId> pinned;
  std::set<NodeId> seen;
  std::vector<std::string> counted;
  for (const auto& [address, line] : addresses) {
    const auto node = own_node(draft, address);
    if (!node)
      counted.push_back(address);
    else if (seen.insert(*node).second)
      pinned.push_back(*node);
    else
      draft.report.warning("provider.worker_ips", line,
                           address + " names " + node->str() + " a second time: not counted");
  }
  const int line = workers != nullptr ? workers->line : provider.line;
  for (const auto& node : pinned)
    draft.report.mapped("provider.worker_ips", line, "your own machine " + node.str() + ": a worker runs there");
  if (!counted.empty())
    draft.report.replaced("provider.worker_ips", line,
                          fmt::format("{}: not enrolled machines of yours, so they count as: {}",
                                      fmt::join(counted, ", "), plural(counted.size(), "worker machine")));

  const auto total = static_cast<std::int64_t>(pinned.size() + counted.size());
  const Counts counts = TRY(read_counts(root, ""));
  const std::int64_t max = std::min(counts.max.value_or(total), total);
  const std::int64_t min = std::min(counts.min.value_or(max), max);
  if (counts.max && *counts.max > total)
    draft.report.warning("max_workers", root.find("max_workers")->line,
                         fmt::format("{} asked, but worker_ips names {}: {} it is", *counts.max, total, total));
  else
    draft.report.mapped("max_workers", 0,
                        fmt::format("{} to {}", min, plural(static_cast<std::uint64_t>(max), "worker")));
  const NodeRequest request = worker_request(draft, std::nullopt, "worker", line);
  const std::int64_t own = std::min<std::int64_t>(static_cast<std::int64_t>(pinned.size()), max);
  if (own > 0) {
    WorkerGroup group{.name = counted.empty() ? "worker" : "worker-own",
                      .min = static_cast<std::uint32_t>(std::min(min, own)),
                      .max = static_cast<std::uint32_t>(own),
                      .request = request};
    group.request.pinned = pinned;
    add_group(draft, std::move(group));
  }
  if (max - own > 0 || (max == 0 && total > 0 && pinned.empty()))
    add_group(draft, {.name = "worker",
                      .min = static_cast<std::uint32_t>(std::max<std::int64_t>(0, min - own)),
                      .max = static_cast<std::uint32_t>(max - own),
                      .request = request});
  finish_head(draft, std::nullopt, head_node.has_value());
  return {};
}

// ---- everybody else's providers

void explain_provider(Draft& draft, const Tree& provider, const std::string& type) {
  for (const auto& entry : provider.entries) {
    const std::string key = "provider." + entry.key;
    if (entry.key == "type" || entry.key == "head_ip" || entry.key == "worker_ips") continue;
    if (entry.key == "region" || entry.key == "location" || entry.key == "availability_zone")
      draft.report.ignored(key, entry.line, "a place in " + type + "'s cloud; muster.region asks for a region here");
    else if (entry.key == "coordinator_address")
      draft.report.replaced(key, entry.line, "Muster chooses the machines itself");
    else if (entry.key == "external_head_ip" || entry.key == "use_internal_ips")
      draft.report.ignored(key, entry.line, "nobody dials a machine; use `muster port-forward`");
    else if (entry.key == "module")
      draft.report.ignored(key, entry.line, "no provider code is run; Muster is the provider");
    else
      draft.report.ignored(key, entry.line, "a setting of " + type + "'s own machines; Muster has none of those");
  }
}

Status read_node_type(Draft& draft, const Entry& type, bool head, std::int64_t all_max,
                      std::optional<Resources>& head_resources) {
  const std::string key = "available_node_types." + type.key;
  static constexpr std::array<std::string_view, 9> kKnown = {
      "node_config",           "resources", "min_workers", "max_workers",  "initialization_commands",
      "worker_setup_commands", "docker",    "labels",      "instance_type"};
  TRY_VOID(expect_map(*type.value, key));
  std::optional<Resources> resources;
  std::map<std::string, std::string> labels;
  for (const auto& entry : type.value->entries) {
    const std::string at = key + "." + entry.key;
    if (std::find(kKnown.begin(), kKnown.end(), entry.key) == kKnown.end())
      return fault(*entry.value, at, "is not a key of a node type; remove it or correct the spelling");
    if (entry.key == "resources") {
      const Resources read = TRY(read_resources(draft, *entry.value, at));
      if (!(read == Resources{})) resources = read;
    } else if (entry.key == "labels") {
      labels = TRY(read_text_map(*entry.value, at));
      draft.report.mapped(at, entry.line, "Ray labels of these nodes");
    } else if (entry.key == "node_config") {
      std::vector<std::string> names;
      for (const auto& setting : entry.value->entries) names.push_back(setting.key);
      if (!names.empty())
        draft.report.ignored(at, entry.line,
                             fmt::format("{}: describe the provider's machines; machines are chosen by resources here",
                                         fmt::join(names, ", ")));
    } else if (entry.key == "docker") {
      TRY_VOID(read_docker(draft, *entry.value, at));
    } else if (entry.key == "worker_setup_commands") {
      draft.group_setup[type.key] = TRY(read_texts(*entry.value, at));
      draft.report.mapped(at, entry.line,
                          plural(draft.group_setup[type.key].size(), "command") +
                              " for this kind only, in place of worker_setup_commands");
    } else if (entry.key == "initialization_commands") {
      if (!entry.value->items.empty())
        draft.report.ignored(at, entry.line, "would run on the host, outside the container; use setup_commands");
    }
  }
  const Counts counts = TRY(read_counts(*type.value, key + "."));
  const std::int64_t min = counts.min.value_or(0);
  const std::int64_t max = counts.max.value_or(head ? 0 : all_max);
  if (head) {
    head_resources = resources;
    draft.launch.spec.head.labels = labels;
    draft.report.mapped(key, type.line, "the head: " + (resources ? resources_text(*resources) : "no resources given"));
  }
  if (max == 0 && head) return {};
  WorkerGroup group{.name = type.key,
                    .min = static_cast<std::uint32_t>(std::min(min, kMaxWorkers)),
                    .max = static_cast<std::uint32_t>(std::max(min, max)),
                    .request = worker_request(draft, resources, key, type.line)};
  for (const auto& [name, value] : labels) group.request.labels[name] = value;
  draft.report.mapped(key, type.line,
                      fmt::format("{} to {}{}", group.min, plural(group.max, "worker"),
                                  resources ? " with " + resources_text(*resources) : ""));
  add_group(draft, std::move(group));
  return {};
}

Status node_types(Draft& draft, const Tree& root, const Tree& types) {
  const Tree* head_type = root.find("head_node_type");
  std::string head;
  if (head_type != nullptr && head_type->kind == Tree::Kind::Scalar)
    head = head_type->text;
  else if (head_type != nullptr && !head_type->entries.empty())
    return fault(*head_type, "head_node_type", "must be the name of one of available_node_types");
  if (!head.empty() && types.find(head) == nullptr)
    return fault(*head_type, "head_node_type", "names \"" + head + "\", which available_node_types lacks");
  if (types.entries.size() > 64) return fault(types, "available_node_types", "has more than 64 kinds");
  const Counts counts = TRY(read_counts(root, ""));
  if (counts.min)
    draft.report.ignored("min_workers", root.find("min_workers")->line,
                         "with available_node_types each kind has its own min_workers");
  const std::int64_t given = counts.max.value_or(2);  // as in Ray
  std::optional<Resources> head_resources;
  for (const auto& type : types.entries) TRY_VOID(read_node_type(draft, type, type.key == head, given, head_resources));
  std::int64_t min_sum = 0, max_sum = 0;
  for (const auto& group : draft.launch.spec.groups) min_sum += group.min, max_sum += group.max;
  const std::int64_t bound = counts.max ? given : std::max(given, min_sum);
  if (min_sum > bound)
    return fault(*root.find("max_workers"), "max_workers",
                 fmt::format("is {}, but the kinds have a minimum of {} together", bound, min_sum));
  if (max_sum > bound) {
    draft.launch.spec.max_workers = static_cast<std::uint32_t>(std::max<std::int64_t>(bound, 1));
    draft.report.mapped("max_workers", counts.max ? root.find("max_workers")->line : 0,
                        fmt::format("{} over all kinds{}", bound, counts.max ? "" : ", since it is not given"));
  }
  finish_head(draft, head_resources, false);
  return {};
}

Status plain_counts(Draft& draft, const Tree& root) {
  const Counts counts = TRY(read_counts(root, ""));
  const std::int64_t max = counts.max.value_or(std::max<std::int64_t>(2, counts.min.value_or(0)));
  const std::int64_t min = std::min(counts.min.value_or(0), max);
  for (const auto* key : {"head_node", "worker_nodes"})
    if (const Tree* at = root.find(key); at != nullptr && !at->entries.empty())
      draft.report.ignored(key, at->line, "describes the provider's machines; use available_node_types with resources");
  draft.report.mapped("max_workers", counts.max ? root.find("max_workers")->line : 0,
                      fmt::format("{} to {}", min, plural(static_cast<std::uint64_t>(max), "worker")));
  if (max > 0)
    add_group(draft, {.name = "worker",
                      .min = static_cast<std::uint32_t>(min),
                      .max = static_cast<std::uint32_t>(max),
                      .request = worker_request(draft, std::nullopt, "worker", 0)});
  finish_head(draft, std::nullopt, false);
  return {};
}

}  // namespace

std::string plural(std::uint64_t n, std::string_view word) {
  return fmt::format("{} {}{}", n, word, n == 1 ? "" : "s");
}

std::string resources_text(const Resources& resources) {
  std::vector<std::string> parts;
  if (resources.cpu_milli > 0)
    parts.push_back(fmt::format("{:g} CPU", static_cast<double>(resources.cpu_milli) / 1000));
  if (resources.gpus > 0) parts.push_back(fmt::format("{} GPU", resources.gpus));
  if (resources.memory_bytes > 0)
    parts.push_back(fmt::format("{:.3g} GiB", static_cast<double>(resources.memory_bytes) / static_cast<double>(kGiB)));
  if (resources.object_store_bytes > 0)
    parts.push_back(fmt::format("{:.3g} GiB object store",
                                static_cast<double>(resources.object_store_bytes) / static_cast<double>(kGiB)));
  for (const auto& [name, milli] : resources.custom_milli)
    parts.push_back(fmt::format("{:g} {}", static_cast<double>(milli) / 1000, name));
  return parts.empty() ? "nothing" : fmt::format("{}", fmt::join(parts, ", "));
}

Result<Resources> read_resources(Draft& draft, const Tree& map, const std::string& key) {
  TRY_VOID(expect_map(map, key));
  Resources out;
  for (const auto& entry : map.entries) {
    const std::string at = key + "." + entry.key;
    if (entry.key.empty() || entry.key.size() > 128)
      return fault(*entry.value, at, "needs a name of at most 128 letters");
    if (entry.value->kind == Tree::Kind::Null) return fault(*entry.value, at, "has no number");
    const double number = TRY(read_number(*entry.value, at));
    if (number > 9e15) return fault(*entry.value, at, "is too large");
    if (entry.key == "CPU")
      out.cpu_milli = std::llround(number * 1000);
    else if (entry.key == "memory")
      out.memory_bytes = std::llround(number);
    else if (entry.key == "object_store_memory")
      out.object_store_bytes = std::llround(number);
    else if (entry.key != "GPU")
      out.custom_milli[entry.key] = std::llround(std::min(number, 9e12) * 1000);
    else {
      out.gpus = static_cast<std::int64_t>(std::ceil(number));
      if (static_cast<double>(out.gpus) != number)
        draft.report.warning(at, entry.line,
                             number < 1
                                 ? fmt::format("{:g} becomes 1: Ray counts whole GPUs; for part of one add muster: "
                                               "{{gpu_share: {:g}}}",
                                               number, number)
                                 : fmt::format("{:g} becomes {}: a machine's GPUs are whole", number, out.gpus));
    }
    if ((entry.key == "memory" || entry.key == "object_store_memory") && number > 0 && number < 1 << 20)
      draft.report.warning(at, entry.line, fmt::format("{:g} is in bytes: is that meant?", number));
  }
  return out;
}

Status read_machines(Draft& draft, const Tree& root) {
  const Tree* provider = root.find("provider");
  if (provider == nullptr || provider->kind == Tree::Kind::Null)
    return fault(
        root, "provider",
        "is missing; write provider: {type: local, head_ip: ..., worker_ips: [...]} or any other of Ray's providers");
  TRY_VOID(expect_map(*provider, "provider"));
  const Tree* type_at = provider->find("type");
  const std::string type = type_at == nullptr ? "" : TRY(read_text(*type_at, "provider.type"));
  if (type.empty())
    return fault(*provider, "provider.type", "is missing; local, aws, gcp, azure and every other type are accepted");
  const Tree* types = root.find("available_node_types");
  explain_provider(draft, *provider, type);
  if (type == "local" && provider->find("coordinator_address") == nullptr) return local_manual(draft, *provider, root);
  draft.report.replaced("provider.type", type_at->line,
                        type + ": taken as a request for that many machines; Muster provides them from its pools");
  if (types != nullptr && !types->entries.empty()) {
    TRY_VOID(expect_map(*types, "available_node_types"));
    return node_types(draft, root, *types);
  }
  if (types != nullptr) TRY_VOID(expect_map(*types, "available_node_types"));
  return plain_counts(draft, root);
}

}  // namespace muster::launcher
