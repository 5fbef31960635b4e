// The index finds what looking at every machine would find, on every instruction set; sets and indexes against the
// standard library's.
#include "scheduler/pool.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/rng.h"

namespace muster::scheduler::pool_test {
namespace {

TEST(SortedSets, LikeAStandardSet) {
  Rng rng(1);
  SortedSets<std::uint64_t> sets;
  std::vector<SortedSets<std::uint64_t>::Set> handles(5);
  std::vector<std::set<std::uint64_t>> expected(5);
  for (int step = 0; step < 60'000; ++step) {
    const std::size_t i = rng.below(5);
    const std::uint64_t value = rng.below(i == 0 ? 20 : 3'000);
    const bool grow = step % 20'000 < 14'000;
    if (rng.chance(grow ? 3 : 1, 4)) {
      if (expected[i].insert(value).second) sets.insert(handles[i], value);
    } else {
      EXPECT_EQ(sets.erase(handles[i], value), expected[i].erase(value) > 0);
    }
    if (step % 97 != 0) continue;
    for (std::size_t k = 0; k < 5; ++k) {
      std::vector<std::uint64_t> all;
      sets.each(handles[k], [&](std::uint64_t v) { return all.push_back(v), true; });
      ASSERT_TRUE(std::equal(all.begin(), all.end(), expected[k].begin(), expected[k].end())) << step;
      ASSERT_EQ(handles[k].size, expected[k].size());
      const std::uint64_t probe = rng.below(3'000);
      const auto at = expected[k].lower_bound(probe);
      ASSERT_EQ(sets.rank(handles[k], probe), static_cast<std::uint32_t>(std::distance(expected[k].begin(), at)));
      const auto* found = sets.not_below(handles[k], probe);
      ASSERT_EQ(found == nullptr, at == expected[k].end());
      if (found != nullptr) ASSERT_EQ(*found, *at);
    }
  }
}

TEST(HashIndex, LikeAStandardMap) {
  Rng rng(2);
  HashIndex index;
  std::map<std::uint64_t, std::uint32_t> expected;
  std::vector<std::uint64_t> keys;
  for (int step = 0; step < 50'000; ++step) {
    const std::uint64_t key = rng.below(800);
    const std::uint64_t hash = key % 50 == 0 ? 7 : mix(key);  // some collide
    const auto same = [&](std::uint32_t i) { return keys[i] == key; };
    const std::uint32_t found = index.find(hash, same);
    ASSERT_EQ(found == kNone, !expected.contains(key));
    if (found != kNone) ASSERT_EQ(found, expected[key]);
    if (found == kNone) {
      keys.push_back(key);
      expected[key] = static_cast<std::uint32_t>(keys.size() - 1);
      index.insert(hash, expected[key]);
    } else if (rng.chance(1, 2)) {
      ASSERT_TRUE(index.erase(hash, same));
      expected.erase(key);
    }
    ASSERT_EQ(index.size(), expected.size());
  }
}

TEST(Kernels, AllInstructionSetsAgree) {
  Rng rng(3);
  for (int round = 0; round < 300; ++round) {
    const auto n = static_cast<std::uint32_t>((1 + rng.below(6)) * kRowBlock);
    std::vector<std::int32_t> base(n), cpu(n), gpus(n), table(17 * kCpuSteps);
    for (auto& v : base) v = static_cast<std::int32_t>(rng.next() % (1 << 26));
    for (auto& v : table) v = static_cast<std::int32_t>(rng.next() % (1 << 26));
    for (auto& v : cpu) v = rng.chance(1, 9) ? -1 : static_cast<std::int32_t>(rng.below(400'000));
    for (auto& v : gpus) v = static_cast<std::int32_t>(rng.below(17));
    std::vector<std::uint64_t> live(n / kRowBlock);
    for (auto& v : live) v = rng.next() & rng.next();
    const auto need = static_cast<std::int32_t>(rng.below(200'000));
    const RowInput in{base.data(),
                      cpu.data(),
                      gpus.data(),
                      table.data(),
                      n,
                      need,
                      need - static_cast<std::int32_t>(rng.below(100)),
                      static_cast<std::int32_t>(rng.below(9))};
    struct Out {
      std::vector<std::int32_t> row, masked, block_max;
      std::int32_t top;
      std::uint32_t at;
      bool operator==(const Out&) const = default;
    };
    std::vector<Out> outs;
    for (const Simd simd : {Simd::Scalar, Simd::Avx2, Simd::Avx512}) {
      const Kernels& k = kernels(simd);
      Out out{std::vector<std::int32_t>(n), std::vector<std::int32_t>(n), std::vector<std::int32_t>(n / kRowBlock), 0,
              0};
      k.fill_row(in, out.row.data());
      k.mask_row(out.row.data(), live.data(), n, out.masked.data(), out.block_max.data());
      out.top = k.largest(out.masked.data(), n - static_cast<std::uint32_t>(round % 17), out.at);
      outs.push_back(out);
    }
    ASSERT_EQ(outs[0], outs[1]);
    ASSERT_EQ(outs[0], outs[2]);
  }
}

const std::vector<std::string> kGpus{"A10", "H100", "T4"};

NodeView random_node(std::uint64_t id, Rng& rng) {
  NodeView n;
  n.node = NodeId{id}, n.supplier = OrgId{1 + rng.below(4)}, n.arch = rng.chance(1, 6) ? "aarch64" : "x86_64";
  n.schedulable = rng.chance(9, 10), n.runtimes = {RuntimeKind::Docker};
  n.capacity.cpu_milli = static_cast<std::int64_t>(4 + rng.below(60)) * 1000,
  n.capacity.memory_bytes = std::int64_t{64} << 30;
  n.free.cpu_milli = static_cast<std::int64_t>(rng.below(static_cast<std::uint64_t>(n.capacity.cpu_milli)));
  n.free.memory_bytes = static_cast<std::int64_t>(rng.below(64)) << 30;
  n.tier = static_cast<TrustTier>(rng.below(3));
  n.whole = rng.chance(1, 3);
  if (rng.chance(1, 2)) n.labels["region"] = rng.chance(1, 2) ? "eu" : "us";
  if (rng.chance(1, 4)) n.labels["pool"] = "lab";
  const std::size_t gpus = rng.chance(1, 4) ? 0 : 1 + rng.below(8);
  const bool shared = rng.chance(1, 3);
  for (std::size_t i = 0; i < gpus; ++i) {
    n.devices.push_back({std::to_string(i), kGpus[rng.chance(1, 12) ? rng.below(3) : id % 3], std::int64_t{16} << 30});
    const std::int32_t free = rng.chance(1, 2) ? 1'000 : static_cast<std::int32_t>(rng.below(10) * 100);
    if (free == 1'000 && rng.chance(2, 3)) n.free_devices.push_back(n.devices.back().uuid);
    if (shared)
      n.shared.push_back(
          {n.devices.back().uuid, Sharing::TenantShares,
           std::find(n.free_devices.begin(), n.free_devices.end(), n.devices.back().uuid) != n.free_devices.end()
               ? 1'000
               : std::min(free, 900),
           OrgId{rng.below(3)}, 0});
    if (shared && rng.chance(1, 4)) {  // a MIG instance
      DeviceUse& use = n.shared.back();
      use.sharing = Sharing::Instance, use.holder = {};
      use.instance_milli = static_cast<std::int32_t>(1 + rng.below(8)) * 125;
      use.free_milli = rng.chance(1, 2) ? use.instance_milli : 0;
    }
  }
  if (rng.chance(1, 2)) n.images = {"ray", rng.chance(1, 2) ? "torch" : "jax"};
  n.offer.price_per_gpu_hour = static_cast<std::int64_t>(rng.below(5)) * 300'000;
  n.reliability.failures_ppm = static_cast<std::int64_t>(rng.below(5)) * 700;
  n.link.up_kbps = static_cast<std::int64_t>(rng.below(4)) * 100'000;
  if (rng.chance(1, 8)) n.offer.tenants = {OrgId{1}};
  if (rng.chance(1, 8)) n.offer.longest = 2h;
  return n;
}
Request random_request(Rng& rng) {
  Request r;
  r.cluster = ClusterId{1}, r.tenant = OrgId{1 + rng.below(3)}, r.arch = "x86_64";
  r.pool = rng.chance(1, 8) ? "own" : rng.chance(1, 8) ? "pool:lab" : "market";
  r.image = rng.chance(1, 2) ? "ray" : rng.chance(1, 2) ? "torch" : "other";
  Bundle b;
  b.request.resources.cpu_milli = static_cast<std::int64_t>(rng.below(20'000));
  b.request.resources.memory_bytes = static_cast<std::int64_t>(rng.below(16)) << 30;
  if (rng.chance(2, 3)) b.request.resources.gpus = static_cast<std::int64_t>(rng.below(5));
  if (rng.chance(1, 4))
    b.request.resources.gpus = 0, b.request.gpu_share_milli = static_cast<std::int32_t>(100 + rng.below(800));
  if (rng.chance(1, 3)) b.request.gpu_model = kGpus[rng.below(3)];
  if (rng.chance(1, 4)) b.request.gpu_any = {{"A10"}, {"T4"}};
  if (rng.chance(1, 4)) b.request.constraints["region"] = "eu";
  if (rng.chance(1, 8)) b.request.whole_machine = true, b.request.gpu_share_milli = 0;
  if (rng.chance(1, 8)) b.request.pinned = {NodeId{1}, NodeId{5}, NodeId{9}};
  r.gang = {b};
  return r;
}
Weights random_weights(Rng& rng) {
  Weights w;
  const auto rising = [&](auto& values) {
    std::int32_t sum = 0;
    for (auto& v : values) v = sum, sum += static_cast<std::int32_t>(rng.below(60'000));
  };
  if (rng.chance(2, 3)) rising(w.price);
  if (rng.chance(2, 3)) rising(w.risk);
  if (rng.chance(1, 2)) rising(w.link), std::reverse(w.link.begin(), w.link.end());
  if (rng.chance(1, 2)) w.tier = {200'000, 100'000, 0};
  w.cold = static_cast<std::int32_t>(rng.below(600'000));
  return w;
}

// Placements and returns at random; every search against a look at every machine.
TEST(Pool, BestIsWhatLookingAtEveryMachineFinds) {
  std::size_t found = 0, none = 0;
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    Rng rng(seed);
    std::vector<std::unique_ptr<Pool>> pools;
    for (const Simd simd : {Simd::Scalar, Simd::Avx2, Simd::Avx512})
      pools.push_back(std::make_unique<Pool>(kernels(simd)));
    const auto each = [&](auto f) {
      for (auto& pool : pools) f(*pool);
    };
    each([&](Pool& p) { p.reseed(seed), p.advance(1'000); });
    const std::size_t n = 1 + rng.below(80);
    for (std::uint64_t id = 1; id <= n; ++id) {
      const NodeView view = random_node(id, rng);
      each([&](Pool& p) { p.set(view); });
    }
    std::vector<Taken> taken;
    for (int step = 0; step < 60; ++step) {
      if (rng.chance(1, 6)) {
        const NodeView view = random_node(1 + rng.below(n), rng);
        each([&](Pool& p) { p.set(view); });
        std::erase_if(taken, [&](const Taken& t) { return pools[0]->view(t.node).node == view.node; });
        continue;
      }
      if (!taken.empty() && rng.chance(1, 5)) {
        const std::size_t i = rng.below(taken.size());
        const std::uint32_t node = taken[i].node;  // the newest of the machine, so that `whole` comes back
        const auto last = std::find_if(taken.rbegin(), taken.rend(), [&](const Taken& t) { return t.node == node; });
        const Taken t = *last;
        taken.erase(std::next(last).base());
        each([&](Pool& p) { p.give_back(t); });
        continue;
      }
      const Request request = random_request(rng);
      const Weights weights = random_weights(rng);
      Query query;
      query.weights = &weights, query.now_ms = 1'000, query.tenant = rng.chance(1, 4) ? 0 : request.tenant.value;
      query.length_ms = rng.chance(1, 2) ? 0 : 3 * 3'600'000;
      std::vector<Found> results;
      std::vector<Need> needs;
      std::uint32_t marked = rng.chance(1, 3) ? static_cast<std::uint32_t>(rng.below(n)) : kNone;
      each([&](Pool& p) {
        needs.push_back(p.compile(request, request.gang[0]));
        p.take_recompile(), p.learn_if_due();
        if (step % 7 == 0) p.observe(needs.back().task, 3);
        p.begin();
        if (marked != kNone) p.mark(marked);
        query.need = &needs.back();
        results.push_back(p.best(query));
      });
      Pool& p = *pools[0];
      query.need = &needs[0];
      Found expected;
      std::uint64_t order = 0;
      for (std::uint32_t node = 0; node < p.limit(); ++node) {
        if (!p.live(node) || !p.hosts(query, node)) continue;
        const auto [value, place] = p.value(query, node);
        if (expected && (value < expected.value || (value == expected.value && place >= order))) continue;
        expected = {node, value};
        order = place;
      }
      ++(expected ? found : none);
      for (const Found& f : results) {
        ASSERT_EQ(f.node, expected.node) << "seed " << seed << " step " << step;
        if (expected) ASSERT_EQ(f.value, expected.value) << "seed " << seed << " step " << step;
      }
      if (expected) {
        ASSERT_TRUE(p.could_host(query, expected.node) ||
                    p.view(expected.node).capacity.memory_bytes < p.view(expected.node).free.memory_bytes);
        const Taken t = p.what_it_takes(query, expected.node);
        each([&](Pool& each_pool) { each_pool.take(t); });
        taken.push_back(t);
      }
      for (std::size_t i = 0; i < pools.size(); ++i) pools[i]->drop(needs[i]);
    }
  }
  EXPECT_GT(found, 800U);
  EXPECT_GT(none, 80U);
}

}  // namespace
}  // namespace muster::scheduler::pool_test
