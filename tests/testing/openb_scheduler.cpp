#include "testing/openb_scheduler.h"

#include <algorithm>

#include "base/rng.h"

namespace muster::testing::openb {
namespace {

using namespace muster::scheduler;

constexpr WallTime kNow{1'700'000'000'000};

std::string model_name(std::uint32_t model) {
  return "model-" + std::to_string(model);
}

NodeView view_of(const Node& node, std::uint64_t id) {
  NodeView view;
  view.node = NodeId{id}, view.supplier = OrgId{1}, view.arch = "x86_64", view.runtimes = {RuntimeKind::Docker};
  view.schedulable = true;
  view.free.cpu_milli = node.cpu, view.free.memory_bytes = node.memory << 20, view.free.gpus = node.devices;
  view.capacity = view.free;
  for (int i = 0; i < node.devices; ++i) {
    view.devices.push_back({std::to_string(i), model_name(node.model), std::int64_t{16} << 30});
    view.free_devices.push_back(view.devices.back().uuid);
    view.shared.push_back({view.devices.back().uuid, Sharing::TenantShares, 1'000, {}, 0});
  }
  return view;
}

Request request_of(const Task& task, std::uint64_t id) {
  Request r;
  r.cluster = ClusterId{id}, r.tenant = OrgId{1}, r.since = kNow, r.pool = "market", r.arch = "x86_64";
  Bundle bundle;
  bundle.request.resources.cpu_milli = task.cpu, bundle.request.resources.memory_bytes = task.memory << 20;
  const bool shared = task.devices == 1 && task.share < 1000;
  bundle.request.resources.gpus = shared ? 0 : task.devices;
  bundle.request.gpu_share_milli = shared ? task.share : 0;
  if (task.devices > 0 && task.models != ~0U)
    for (std::uint32_t m = 0; m < 32; ++m)
      if ((task.models >> m & 1U) != 0) bundle.request.gpu_any.push_back({model_name(m)});
  r.gang.push_back(bundle);
  return r;
}

void take(NodeView& view, const Place& place) {
  view.free.cpu_milli -= place.resources.cpu_milli, view.free.memory_bytes -= place.resources.memory_bytes;
  view.free.gpus -= place.resources.gpus;
  view.whole = false;
  for (const std::string& uuid : place.devices) {
    std::erase(view.free_devices, uuid);
    for (DeviceUse& use : view.shared)
      if (use.uuid == uuid) use.free_milli -= place.share_milli > 0 ? place.share_milli : 1'000;
  }
}

void give_back(NodeView& view, const Place& place) {
  view.free.cpu_milli += place.resources.cpu_milli, view.free.memory_bytes += place.resources.memory_bytes;
  view.free.gpus += place.resources.gpus;
  for (const std::string& uuid : place.devices)
    for (DeviceUse& use : view.shared) {
      if (use.uuid != uuid) continue;
      use.free_milli += place.share_milli > 0 ? place.share_milli : 1'000;
      if (use.free_milli == 1'000) view.free_devices.push_back(uuid);
    }
  view.whole = view.free == view.capacity && view.free_devices.size() == view.devices.size();
}

void put_on_the_market(NodeView& view, Rng& rng) {
  view.supplier = OrgId{1 + rng.below(100)}, view.site = "site-" + std::to_string(rng.below(60));
  view.offer.price_per_gpu_hour = rng.between(200'000, 3'000'000), view.offer.price_per_hour = rng.between(0, 500'000);
  view.offer.currency = rng.chance(4, 5) ? "EUR" : "USD", view.offer.price_version = 1;
  view.link.up_kbps = rng.between(10'000, 1'000'000), view.link.down_kbps = rng.between(50'000, 10'000'000);
  view.link.relayed = rng.chance(1, 6);
  view.reliability.failures_ppm = rng.between(100, 50'000), view.reliability.uncertainty_ppm = rng.between(0, 10'000);
  view.reliability.observed_hours = rng.between(0, 5'000);
}

}  // namespace

Curve replay_scheduler(const Trace& trace, std::uint64_t seed, Surroundings surroundings) {
  const bool market = surroundings == Surroundings::Market;
  const Draw drawn = draw(trace, seed);
  Rng rng(seed);
  Scheduler scheduler({Simd::Avx512, true});
  scheduler.apply(DayChanged{seed});
  std::vector<NodeView> views;
  for (std::size_t i = 0; i < drawn.nodes.size(); ++i) {
    views.push_back(view_of(drawn.nodes[i], i + 1));
    if (market) put_on_the_market(views.back(), rng);
    scheduler.apply(NodeChanged{views.back()});
  }
  Tally tally(trace);
  std::uint64_t id = 0;
  std::vector<std::pair<const Task*, Place>> running;
  const auto ask = [&](const Task& task) {
    const Request request = request_of(task, ++id);
    scheduler.apply(RequestChanged{request});
    const auto groups = scheduler.plan({1}, kNow);
    for (const Group& group : groups)
      for (const Place& place : group.places) {
        NodeView& view = views[place.node.value - 1];
        take(view, place);
        scheduler.apply(NodeChanged{view});
        if (market) running.emplace_back(&task, place);
      }
    scheduler.apply(RequestGone{request.cluster});
    return !groups.empty();
  };
  std::size_t n = 0;
  for (const Task& task : drawn.tasks) {
    tally.count(task, ask(task));
    if (!market || ++n % 3 != 0 || running.empty()) continue;
    const std::size_t who = rng.below(running.size());
    const auto [left, place] = running[who];
    running[who] = running.back();
    running.pop_back();
    NodeView& view = views[place.node.value - 1];
    give_back(view, place);
    scheduler.apply(NodeChanged{view});
    tally.moved(*left, ask(*left));
  }
  return tally.curve();
}

}  // namespace muster::testing::openb
