// journal.inprocess: authorised job submissions through Runner on SQLite on disk, each answered only when durable, from
// N submitters that wait for every answer; against puts of the same size into etcd when its rate is given. Usage:
// bench_journal [folder=.] [submitters=128] [seconds=5] [runs=3] [etcd puts/s=0] [sealed] One JSON line per figure on
// standard output: {name, value, unit, baseline, ratio, runs}. sealed: also with encryption at rest, in turns with the
// plain runs, which are its baseline; and entries/s that are sealed, and opened again, on one thread with no store.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "crypto/random.h"
#include "engine/runner.h"
#include "store/sealed_store.h"
#include "store/sqlite_store.h"

namespace {

using namespace muster;
using Clock = std::chrono::steady_clock;

struct Run {
  double rate = 0, p99_ms = 0, transactions = 0;
};

control::Actor actor(PrincipalId principal, Role role, OrgId org) {
  control::Actor actor;
  actor.subject.principal = principal;
  actor.subject.role = role;
  actor.subject.org = org;
  return actor;
}

void must(const Result<engine::Reply>& reply) {
  if (reply) return;
  fmt::print(stderr, "set-up failed: {}\n", reply.error().message);
  std::exit(1);
}

// A tenant with a project and a queued cluster that all jobs name.
void set_up(engine::Runner& runner) {
  const control::Actor op = actor(PrincipalId{9'000'001}, Role::Operator, {});
  must(runner.submit_wait(control::Lane::Operator, control::CreateOrg{"acme"}, op));
  must(runner.submit_wait(control::Lane::Operator, control::CreatePrincipal{"ann", Role::Tenant, OrgId{1}}, op));
  must(runner.submit_wait(control::Lane::Operator, control::CreateProject{OrgId{1}, "work"}, op));
  control::CreateCluster cluster{ProjectId{1}, {}};
  cluster.spec.name = "main";
  cluster.spec.image = "muster/ray:latest";
  cluster.spec.head.resources.cpu_milli = 1000;
  must(runner.submit_wait(control::Lane::Tenant, cluster, actor(PrincipalId{1}, Role::Tenant, OrgId{1})));
}

std::shared_ptr<crypto::KeyRing> some_ring() {
  return std::make_shared<crypto::KeyRing>(
      std::map<std::uint32_t, crypto::Secret32>{{1, crypto::Secret32(crypto::random_key32())}}, 1);
}

Run measure(const std::string& folder, unsigned submitters, unsigned seconds, bool sealed) {
  const std::string path = fmt::format("{}/bench-journal-{}.db", folder, ::getpid());
  Run run;
  {
    auto opened = store::SqliteStore::open({path, "", true, 1024});
    if (!opened) {
      fmt::print(stderr, "{}\n", opened.error().message);
      std::exit(1);
    }
    std::shared_ptr<store::SqliteStore> store(std::move(*opened));
    std::shared_ptr<journal::Store> used = store;
    if (sealed) used = std::make_shared<store::SealedStore>(store, some_ring());
    auto started = engine::Runner::start({.store = used});
    if (!started) {
      fmt::print(stderr, "{}\n", started.error().message);
      std::exit(1);
    }
    engine::Runner& runner = **started;
    set_up(runner);
    const control::Actor tenant = actor(PrincipalId{1}, Role::Tenant, OrgId{1});
    std::atomic<bool> stop{false};
    std::atomic<std::uint64_t> failed{0};
    std::atomic<unsigned> ended{0};
    std::vector<std::vector<double>> latencies(submitters);  // one answer at a time each, on the reply thread
    std::function<void(unsigned)> next = [&](unsigned who) {
      if (stop) {
        ++ended;
        return;
      }
      control::CreateJob job{ProjectId{1}, {}};
      job.spec.name = "j";
      job.spec.cluster = "main";
      job.spec.entrypoint = "python train.py --step " + std::string(160, 'x');
      const auto sent = Clock::now();
      runner.submit(control::Lane::Tenant, std::move(job), tenant, [&, who, sent](Result<engine::Reply> reply) {
        if (reply)
          latencies[who].push_back(std::chrono::duration<double, std::milli>(Clock::now() - sent).count());
        else if (++failed == 1)
          fmt::print(stderr, "refused: {}\n", reply.error().message);
        next(who);
      });
    };
    const std::uint64_t before = store->transactions();
    const auto begin = Clock::now();
    for (unsigned who = 0; who < submitters; ++who) next(who);
    std::this_thread::sleep_for(std::chrono::seconds(seconds));
    stop = true;
    const double elapsed = std::chrono::duration<double>(Clock::now() - begin).count();
    while (ended < submitters) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    std::vector<double> all;
    for (const auto& some : latencies) all.insert(all.end(), some.begin(), some.end());
    std::sort(all.begin(), all.end());
    if (failed > 0) fmt::print(stderr, "{} submissions were refused and are not counted\n", failed.load());
    run.rate = static_cast<double>(all.size()) / elapsed;
    run.p99_ms = all.empty() ? 0 : all[all.size() * 99 / 100];
    run.transactions = static_cast<double>(store->transactions() - before) / elapsed;
  }
  for (const char* suffix : {"", "-wal", "-shm", "-snapshots", "-snapshots-wal", "-snapshots-shm"})
    std::filesystem::remove(path + suffix);
  return run;
}

// Entries a second, sealed and opened again, of the size that a submission has.
void measure_sealing(std::vector<double>& seals, std::vector<double>& opens) {
  const auto ring = some_ring();
  constexpr std::size_t kEntries = 20'000, kBytes = 400;
  const Bytes plain = crypto::random_bytes(kBytes);
  std::vector<Bytes> sealed(kEntries);
  const auto begin = Clock::now();
  for (std::size_t i = 0; i < kEntries; ++i) sealed[i] = ring->seal(store::entry_place(i + 1), plain);
  const auto middle = Clock::now();
  for (std::size_t i = 0; i < kEntries; ++i) {
    if (!ring->open(store::entry_place(i + 1), sealed[i])) std::exit(1);
  }
  const auto end = Clock::now();
  seals.push_back(kEntries / std::chrono::duration<double>(middle - begin).count());
  opens.push_back(kEntries / std::chrono::duration<double>(end - middle).count());
}

void print(const std::string& name, std::vector<double> values, const std::string& unit, double baseline) {
  std::sort(values.begin(), values.end());
  const double median = values[values.size() / 2];
  const std::string ratio = baseline > 0 ? fmt::format("{:.2f}", median / baseline) : "null";
  fmt::print("{{\"name\":\"{}\",\"value\":{:.3f},\"unit\":\"{}\",\"baseline\":{},\"ratio\":{},\"runs\":{}}}\n", name,
             median, unit, baseline > 0 ? fmt::format("{:.1f}", baseline) : "null", ratio, values.size());
}

}  // namespace

int main(int argc, char** argv) {
  const auto number = [&](int index, unsigned otherwise) {
    return argc > index ? static_cast<unsigned>(std::strtoul(argv[index], nullptr, 10)) : otherwise;
  };
  const std::string folder = argc > 1 ? argv[1] : ".";
  const unsigned submitters = std::max(1u, number(2, 128)), seconds = std::max(1u, number(3, 5)),
                 runs = std::max(1u, number(4, 3));
  const double etcd = argc > 5 ? std::strtod(argv[5], nullptr) : 0;
  const bool also_sealed = argc > 6 && std::string(argv[6]) == "sealed";
  std::vector<double> rates, p99s, transactions, sealed_rates, seals, opens;
  for (unsigned i = 0; i < runs; ++i) {
    if (also_sealed) {
      sealed_rates.push_back(measure(folder, submitters, seconds, true).rate);
      measure_sealing(seals, opens);
    }
    const Run run = measure(folder, submitters, seconds, false);
    rates.push_back(run.rate);
    p99s.push_back(run.p99_ms);
    transactions.push_back(run.transactions);
  }
  print("journal.inprocess", rates, "submissions/s", etcd);
  print("journal.inprocess_p99", p99s, "ms", 0);
  print("journal.inprocess_commits", transactions, "commits/s", 0);
  if (!also_sealed) return 0;
  std::sort(rates.begin(), rates.end());
  print("journal.inprocess_sealed", sealed_rates, "submissions/s", rates[rates.size() / 2]);
  print("journal.seal", seals, "entries/s", 0);
  print("journal.open", opens, "entries/s", 0);
  return 0;
}
