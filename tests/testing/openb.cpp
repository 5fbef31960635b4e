#include "testing/openb.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <tuple>

#include "base/rng.h"

namespace muster::testing::openb {
namespace {

std::vector<std::string> split(const std::string& line, char by) {
  std::vector<std::string> out(1);
  for (const char c : line)
    if (c == by)
      out.emplace_back();
    else if (c != '\r')
      out.back() += c;
  return out;
}

// Rows by column name.
class Table {
 public:
  explicit Table(const std::string& path) : in_(path) {
    std::string line;
    if (!std::getline(in_, line)) return;
    const auto names = split(line, ',');
    for (std::size_t i = 0; i < names.size(); ++i) columns_[names[i]] = i;
  }
  bool has(const std::string& column) const { return columns_.contains(column); }
  bool next() {
    std::string line;
    if (!std::getline(in_, line)) return false;
    row_ = split(line, ',');
    return true;
  }
  std::string text(const std::string& column) const {
    const auto it = columns_.find(column);
    return it == columns_.end() || it->second >= row_.size() ? std::string() : row_[it->second];
  }
  double number(const std::string& column) const { return std::strtod(text(column).c_str(), nullptr); }

 private:
  std::ifstream in_;
  std::map<std::string, std::size_t> columns_;
  std::vector<std::string> row_;
};

template <class T>
void shuffle(std::vector<T>& items, Rng& rng) {
  for (std::size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[rng.below(i)]);
}

std::vector<Task> arrivals(const Trace& trace, Rng& rng) {
  std::vector<Task> list = trace.tasks;
  shuffle(list, rng);
  const std::int64_t wanted = trace.capacity * 13 / 10;
  std::int64_t demand = 0;
  for (const Task& task : list) demand += task.gpu();
  while (demand > wanted) {
    const std::size_t i = rng.below(list.size());
    demand -= list[i].gpu();
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
  }
  while (!trace.tasks.empty()) {
    const Task& task = trace.tasks[rng.below(trace.tasks.size())];
    if (demand + task.gpu() > wanted) break;
    demand += task.gpu();
    list.push_back(task);
  }
  return list;
}

struct Kept {
  std::uint64_t version = 0;
  bool fits = false;
  Choice choice;
};

}  // namespace

std::int64_t Node::idle() const {
  std::int64_t sum = 0;
  for (int i = 0; i < devices; ++i) sum += free[static_cast<std::size_t>(i)];
  return sum;
}

bool fits(const Node& node, const Task& task) {
  if (node.cpu < task.cpu) return false;
  if (task.devices == 0) return true;
  if ((task.models >> node.model & 1U) == 0) return false;
  return std::count_if(node.free.begin(), node.free.begin() + node.devices,
                       [&](int free) { return free >= task.share; }) >= task.devices;
}

void take(Node& node, const Task& task, int device) {
  node.cpu -= task.cpu;
  if (task.devices == 1 && task.share < 1000) {
    node.free[static_cast<std::size_t>(device)] -= task.share;
    return;
  }
  int left = task.devices;
  for (int& free : node.free)
    if (left > 0 && free >= task.share) free -= task.share, --left;
}

Trace load(const std::string& folder, const std::string& variant, std::string& error) {
  Trace trace;
  std::map<std::string, std::uint32_t> models;
  Table nodes(folder + "/csv/openb_node_list_gpu_node.csv");
  if (!nodes.has("cpu_milli") || !nodes.has("gpu") || !nodes.has("model"))
    error = "no node list with cpu_milli, gpu and model in " + folder + "/csv";
  while (nodes.next()) {
    Node node;
    node.cpu = static_cast<std::int64_t>(nodes.number("cpu_milli")),
    node.memory = static_cast<std::int64_t>(nodes.number("memory_mib"));
    node.devices = std::clamp(static_cast<int>(nodes.number("gpu")), 0, 8);
    node.model = models.try_emplace(nodes.text("model"), static_cast<std::uint32_t>(models.size() % 32)).first->second;
    std::fill_n(node.free.begin(), node.devices, 1000);
    trace.capacity += node.idle();
    trace.nodes.push_back(node);
  }
  Table pods(folder + "/csv/openb_pod_list_" + variant + ".csv");
  if (!pods.has("cpu_milli") || !pods.has("num_gpu") || !pods.has("gpu_milli"))
    error = "no task list " + variant + " with cpu_milli, num_gpu and gpu_milli in " + folder + "/csv";
  std::map<std::tuple<std::int64_t, int, int, std::uint32_t>, int> shapes;
  while (pods.next()) {
    Task task;
    task.cpu = static_cast<std::int64_t>(pods.number("cpu_milli")),
    task.memory = static_cast<std::int64_t>(pods.number("memory_mib"));
    task.devices = static_cast<int>(pods.number("num_gpu")), task.share = static_cast<int>(pods.number("gpu_milli"));
    if (const std::string spec = pods.text("gpu_spec"); !spec.empty()) {
      task.models = 0;
      for (const std::string& model : split(spec, '|'))
        if (const auto it = models.find(model); it != models.end()) task.models |= 1U << it->second;
    }
    const auto [it, fresh] =
        shapes.try_emplace({task.cpu, task.devices, task.share, task.models}, static_cast<int>(shapes.size()));
    task.shape = it->second;
    if (fresh) trace.shapes.push_back(task);
    trace.tasks.push_back(task);
  }
  return trace;
}

std::map<std::string, double> published(const std::string& folder) {
  std::map<std::string, double> out;
  Table table(folder + "/expected_alloc_pct.csv");
  while (table.next())
    out[table.text("trace") + "/" + table.text("policy") + "/" + table.text("arrived_pct")] = table.number("mean");
  return out;
}

std::vector<std::string> variants(const std::string& folder) {
  const std::string prefix = "openb_pod_list_";
  std::vector<std::string> out;
  std::error_code ignored;
  for (const auto& entry : std::filesystem::directory_iterator(folder + "/csv", ignored))
    if (const std::string name = entry.path().stem().string(); name.starts_with(prefix))
      out.push_back(name.substr(prefix.size()));
  std::sort(out.begin(), out.end());
  return out;
}

// ---- FGD: the drop of the expected fragmentation, through a sigmoid, as a whole number of 0..100
void Fgd::begin(const Trace& trace, const std::vector<Node>& nodes) {
  std::vector<std::pair<double, Task>> all;
  for (const Task& shape : trace.shapes) all.emplace_back(0, shape);
  for (const Task& task : trace.tasks) all[static_cast<std::size_t>(task.shape)].first += 1;
  std::stable_sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  target_.clear();
  double covered = 0;
  for (const auto& entry : all) {
    if (covered >= 0.95 * static_cast<double>(trace.tasks.size())) break;
    covered += entry.first;
    target_.push_back(entry);
  }
  for (auto& entry : target_) entry.first /= covered;
  before_.clear();
  for (const Node& node : nodes) before_.push_back(fragmentation(node));
}

double Fgd::fragmentation(const Node& node) const {
  const auto idle = static_cast<double>(node.idle());
  double sum = 0;
  for (const auto& [weight, task] : target_) {
    if (task.devices == 0 || !fits(node, task)) {
      sum += weight * idle;
      continue;
    }
    for (int i = 0; i < node.devices; ++i)
      if (const int free = node.free[static_cast<std::size_t>(i)]; free < task.share) sum += weight * free;
  }
  return sum;
}

Choice Fgd::score(const Node& node, std::size_t index, const Task& task) {
  const auto after = [&](int device) {
    Node changed = node;
    take(changed, task, device);
    return static_cast<std::int64_t>(100.0 / (1 + std::exp(-(before_[index] - fragmentation(changed)) / 1000)));
  };
  if (task.devices != 1 || task.share == 1000) return {after(0), 0};
  Choice best{std::numeric_limits<std::int64_t>::min(), 0};
  for (int i = 0; i < node.devices; ++i)
    if (node.free[static_cast<std::size_t>(i)] >= task.share)
      if (const std::int64_t score = after(i); score > best.score) best = {score, i};
  return best;
}

// ---- BestFit: least left over, CPU and GPU weighted alike on the scale of the largest node; the tightest device
Choice BestFit::score(const Node& node, std::size_t, const Task& task) {
  const double left = 0.5 * static_cast<double>(node.cpu - task.cpu) / 128'000 +
                      0.5 * static_cast<double>(node.idle() - task.gpu()) / 8'000;
  Choice choice{-static_cast<std::int64_t>(left * 1e9), 0};
  for (int i = 0, best = 2000; i < node.devices; ++i)
    if (const int free = node.free[static_cast<std::size_t>(i)]; free >= task.share && free < best)
      best = free, choice.device = i;
  return choice;
}

Draw draw(const Trace& trace, std::uint64_t seed) {
  Rng rng(seed);
  Draw out{trace.nodes, {}};
  shuffle(out.nodes, rng);
  out.tasks = arrivals(trace, rng);
  return out;
}

void Tally::count(const Task& task, bool placed) {
  arrived_ += task.gpu();
  allocated_ += placed ? task.gpu() : 0;
  auto& event = events_[static_cast<std::size_t>(
      std::clamp(std::lround(100.0 * static_cast<double>(arrived_) / capacity_), 0L, 139L))];
  event.first += 100.0 * static_cast<double>(allocated_) / capacity_, ++event.second;
}

Curve Tally::curve() const {
  Curve curve{};
  for (std::size_t x = 0; x < curve.size(); ++x)
    curve[x] = events_[x].second > 0 ? events_[x].first / events_[x].second : x > 0 ? curve[x - 1] : 0;
  return curve;
}

Curve replay(const Trace& trace, std::uint64_t seed, Policy& policy) {
  Draw drawn = draw(trace, seed);
  std::vector<Node>& nodes = drawn.nodes;
  policy.begin(trace, nodes);
  std::vector<std::vector<Kept>> kept(trace.shapes.size());
  std::vector<std::uint64_t> versions(nodes.size(), 1);
  std::uint64_t generation = policy.generation();
  Tally tally(trace);
  constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::min();
  for (const Task& task : drawn.tasks) {
    policy.arrived(task, nodes);
    if (generation != policy.generation())
      for (std::uint64_t& version : versions) ++version;
    generation = policy.generation();
    auto& row = kept[static_cast<std::size_t>(task.shape)];
    row.resize(nodes.size());
    std::array<std::int64_t, 32> prices{};
    for (std::uint32_t m = 0; m < 32; ++m) prices[m] = policy.price(m, task);
    std::int64_t low = std::numeric_limits<std::int64_t>::max(), high = kNone;
    const auto usable = [&](std::size_t i) { return row[i].fits && nodes[i].memory >= task.memory; };
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      if (row[i].version != versions[i]) {
        row[i] = {versions[i], fits(nodes[i], task), {}};
        if (row[i].fits) row[i].choice = policy.score(nodes[i], i, task);
      }
      if (usable(i)) low = std::min(low, row[i].choice.score), high = std::max(high, row[i].choice.score);
    }
    std::size_t best = nodes.size();
    std::int64_t best_score = kNone;
    for (std::size_t i = 0; i < nodes.size(); ++i) {
      if (!usable(i)) continue;
      std::int64_t score = row[i].choice.score - prices[nodes[i].model];
      if (policy.spread_to_100()) score = high > low ? (score - low) * 100 / (high - low) : 100;
      if (score > best_score) best = i, best_score = score;
    }
    tally.count(task, best < nodes.size());
    if (best == nodes.size()) continue;
    take(nodes[best], task, row[best].choice.device);
    nodes[best].memory -= task.memory;
    policy.changed(nodes[best], best);
    ++versions[best];
  }
  return tally.curve();
}

}  // namespace muster::testing::openb
