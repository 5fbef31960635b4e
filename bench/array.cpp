// Many equal jobs at once, for `make bench NAME=sched-e2e`: musterd's own composition in one process with NODES virtual
// machines of 32 CPUs (world.h). CLIENTS clients with an API token post JOBS jobs over HTTPS, each with a cluster of
// its own of one machine and 8 CPUs; each is started when its machine has said that it runs, and that is in the
// journal. Usage:
//   bench_array DATA_DIR NODES JOBS CLIENTS
// One JSON object: seconds from the first request to the last answer, to the last grant and to the last start; CPU
// seconds of the whole process meanwhile, machines and clients included; and how long the planner alone takes for all.
#include <sys/resource.h>

#include <latch>

#include "control/planner.h"
#include "crypto/token.h"
#include "world.h"

using namespace muster;
using namespace muster::bench;

namespace {

double cpu_seconds() {
  rusage use{};
  ::getrusage(RUSAGE_SELF, &use);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  return seconds(use.ru_utime) + seconds(use.ru_stime);
}

double thread_seconds() {  // CPU of this thread
  timespec now{};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) / 1e9;
}

class Array {
 public:
  Array(World& world, unsigned jobs, unsigned clients) : world_(world), jobs_(jobs), clients_(clients) {
    const auto org = OrgId::parse(world_.must(control::CreateOrg{"lab"}, actor(Role::Operator)));
    world_.must(control::CreateProject{*org, "default"}, actor(Role::Operator));
    const auto ann =
        PrincipalId::parse(world_.must(control::CreatePrincipal{"ann", Role::Tenant, *org}, actor(Role::Operator)));
    const crypto::NewToken token = crypto::make_api_token();
    world_.must(control::CreateApiToken{*ann, token.hash, "bench", {}, Millis(86'400'000)}, actor(Role::Operator));
    authorization_ = "Bearer " + token.text;
    watch_ = world_.runner().subscribe([this](const engine::DurableEvents& events) {
      for (const auto& each : *events) {
        const auto* state = std::get_if<control::JobStateChanged>(&each.event);
        if (std::holds_alternative<control::LeaseGranted>(each.event) && ++granted_ == jobs_)
          granted_at_ = Clock::now();
        if (state != nullptr && state->state == JobState::Running && ++started_ == jobs_) started_at_ = Clock::now();
        if (state != nullptr && state->state == JobState::Failed) fail("a job failed: " + state->reason);
      }
    });
  }

  void run() {
    std::atomic<unsigned> next{0};
    std::latch connected(clients_ + 1), go(1);
    std::vector<std::thread> threads;
    for (unsigned i = 0; i < clients_; ++i) threads.emplace_back([&] { post(next, connected, go); });
    connected.arrive_and_wait();
    const double cpu = cpu_seconds();
    const Clock::time_point begin = Clock::now();
    go.count_down();
    for (auto& thread : threads) thread.join();
    const Clock::time_point submitted = Clock::now();
    while (started_ < jobs_) {
      std::this_thread::sleep_for(Millis(1));
      if (seconds_since(submitted) > 600)
        fail(fmt::format("after ten minutes {} of {} jobs run ({} granted)", started_.load(), jobs_, granted_.load()));
    }
    const auto seconds = [&](Clock::time_point at) { return std::chrono::duration<double>(at - begin).count(); };
    submit_ = seconds(submitted), grant_ = seconds(granted_at_), start_ = seconds(started_at_);
    cpu_ = cpu_seconds() - cpu;
  }

  // The same requests on the same machines in a planner of its own, without journal and network.
  double decide() {
    scheduler::Scheduler planner;
    world_.runner().read([&](const control::State& state, const scheduler::Scheduler&) {
      control::planner_snapshot(state, [&](const scheduler::Change& change) {
        const bool work = std::holds_alternative<scheduler::RequestChanged>(change) ||
                          std::holds_alternative<scheduler::LeaseChanged>(change);
        if (!work) planner.apply(change);
      });
    });
    const WallTime now = read_clocks().wall;
    for (unsigned i = 0; i < jobs_; ++i) {
      scheduler::Request request;
      request.cluster = ClusterId{1'000'000 + i};
      request.tenant = OrgId{1}, request.project = ProjectId{1};
      request.since = now, request.pool = "market", request.arch = "x86_64", request.image = "muster/ray:latest";
      scheduler::Bundle head;
      head.role = SlotRole::Head;
      head.request.resources.cpu_milli = 8000, head.request.resources.memory_bytes = std::int64_t{16} << 30;
      request.gang.push_back(head);
      planner.apply(scheduler::RequestChanged{std::move(request)});
    }
    const double before = thread_seconds();
    std::size_t placed = 0;
    for (auto groups = planner.plan({64}, now); !groups.empty(); groups = planner.plan({64}, now))
      placed += groups.size();
    if (placed != jobs_) fail(fmt::format("the planner alone placed {} of {}", placed, jobs_));
    return thread_seconds() - before;
  }

  void print(double decide) const {
    fmt::print(R"({{"submit_s":{:.4f},"grant_s":{:.4f},"start_s":{:.4f},"cpu_s":{:.3f},"decide_s":{:.5f}}})"
               "\n",
               submit_, grant_, start_, cpu_, decide);
    std::fflush(stdout);
  }

 private:
  void post(std::atomic<unsigned>& next, std::latch& connected, std::latch& go) {
    net::Endpoint endpoint;
    endpoint.host = "127.0.0.1";
    endpoint.port = world_.app().port();
    endpoint.ca_pem = world_.app().context().cas.get()->chain();
    endpoint.use_proxy_env = false;
    net::Client client(endpoint);
    net::Client::Call hello;
    hello.target = "/api/v1/whoami", hello.headers = {{"Authorization", authorization_}};
    if (const auto answer = client.call(hello); !answer) fail(answer.error().message);
    connected.count_down();
    go.wait();
    for (unsigned i = next++; i < jobs_; i = next++) {
      net::Client::Call call;
      call.method = "POST", call.target = "/api/v1/jobs";
      call.headers = {{"Authorization", authorization_}, {"Content-Type", "application/json"}};
      call.body = fmt::format(
          R"({{"name":"array-{0}","entrypoint":"sleep 1000","cluster_spec":{{"name":"array-{0}","image":"muster/ray:latest",)"
          R"("head":{{"resources":{{"cpus":8,"memory_bytes":17179869184}}}}}}}})",
          i);
      const auto answer = client.call(call);
      if (!answer) fail(answer.error().message);
      if (answer->status != 200) fail(fmt::format("a job was refused: {} {}", answer->status, answer->body));
    }
  }

  World& world_;
  const unsigned jobs_, clients_;
  std::string authorization_;
  std::shared_ptr<void> watch_;
  std::atomic<unsigned> granted_{0}, started_{0};
  Clock::time_point granted_at_, started_at_;
  double submit_ = 0, grant_ = 0, start_ = 0, cpu_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) fail("usage: bench_array DATA_DIR NODES JOBS CLIENTS");
  const auto number = [&](int i) { return static_cast<unsigned>(std::strtoul(argv[i], nullptr, 10)); };
  const Clock::time_point begin = Clock::now();
  World world(argv[1], number(2), 0, true);
  world.enrol();
  world.connect();
  say(begin, fmt::format("{} machines are online", number(2)));
  Array array(world, number(3), number(4));
  const double decide = array.decide();
  array.run();
  say(begin, fmt::format("{} jobs run", number(3)));
  array.print(decide);
  world.stop();
  return 0;
}
