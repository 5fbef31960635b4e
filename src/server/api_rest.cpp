// The server itself: identity, events, uploads, metrics.
#include <fmt/format.h>

#include <charconv>
#include <utility>

#include "base/version.h"
#include "server/agents.h"
#include "server/api.h"
#include "server/image_scans.h"
#include "server/relay_book.h"
#include "wire/names.h"

namespace muster::server {

void Api::stream_events(const CallPtr& call) {
  std::string text = call->request.header("last-event-id");
  if (text.empty()) text = call->request.query_value("last_event_id").value_or("");
  std::optional<std::uint64_t> from;
  if (!text.empty()) {
    std::uint64_t seq = 0;
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), seq);
    if (fault != std::errc() || end != text.data() + text.size())
      return fail(call, error(Code::InvalidArgument, "Last-Event-ID must be the id of an event", "Last-Event-ID"));
    from = seq;
  }
  net::Response head;
  head.content_type = "text/event-stream";
  head.headers["Cache-Control"] = "no-store";
  head.body = "retry: 2000\n\n";
  call->responder->start_stream(std::move(head));
  const Status opened = context_.events->open(call->caller, call->responder, from);
  if (opened.ok()) return;
  call->responder->write(fmt::format("event: error\ndata: {}\n\n", wire::problem_json(opened.error())));
  call->responder->finish();
}

void Api::add_rest() {
  using access::Kind;
  using access::Verb;
  add_open("GetServer", [this](const CallPtr& call) {
    read(call, [&](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
      const Identity& id = context_.identity;
      const auto cas = context_.cas.get();
      return wire::to_json(wire::ServerView{kVersion, id.server_id, state.seq, context_.runner->read_only(),
                                            hex(cas->pin), addresses_of(*context_.relays->relays()), state.incarnation,
                                            cas->trust.revision == 0 ? std::string() : cas->text});
    });
  });
  add(
      "StreamEvents",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::Event, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) { stream_events(call); });
  add(
      "PutBlob",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::Create, {Kind::Blob, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        fail(call, error(Code::InvalidArgument, "send the bytes of the file as the body of POST /api/v1/blobs"));
      });
}

namespace {
constexpr std::size_t kMachinesInMetrics = 2000;

// What a label may hold without breaking the line: machines chose these texts.
std::string label_text(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c >= 0x20 && c < 0x7f && c != '"' && c != '\\') out.push_back(c);
  }
  return out;
}

using Machines = std::vector<std::pair<NodeId, session::Telemetry>>;
void add_machine_metrics(std::string& out, const Machines& machines) {
  const auto head = [&](std::string_view name, std::string_view help) {
    out += fmt::format("# HELP muster_{} {}\n# TYPE muster_{} gauge\n", name, help, name);
  };
  const auto machine = [&](std::string_view name, std::string_view help, auto value) {
    head(name, help);
    for (const auto& [node, t] : machines)
      out += fmt::format("muster_{}{{node=\"{}\"}} {}\n", name, node.str(), value(t));
  };
  const auto gpu = [&](std::string_view name, std::string_view help, auto value) {
    head(name, help);
    for (const auto& [node, t] : machines) {
      for (const auto& each : t.gpus)
        out += fmt::format("muster_{}{{node=\"{}\",gpu=\"{}\"}} {}\n", name, node.str(), label_text(each.uuid),
                           value(each));
    }
  };
  const auto container = [&](std::string_view name, std::string_view help, auto value) {
    head(name, help);
    for (const auto& [node, t] : machines) {
      for (const auto& each : t.containers)
        out +=
            fmt::format("muster_{}{{node=\"{}\",lease=\"{}\"}} {}\n", name, node.str(), each.lease.str(), value(each));
    }
  };
  using session::ContainerSample;
  using session::GpuSample;
  using session::Telemetry;
  machine("node_cpus_used", "CPUs in use", [](const Telemetry& t) { return static_cast<double>(t.cpu_milli) / 1000; });
  machine("node_memory_used_bytes", "memory in use", [](const Telemetry& t) { return t.memory_used_bytes; });
  machine("node_disk_free_bytes", "room below the state directory",
          [](const Telemetry& t) { return t.disk_free_bytes; });
  machine("node_net_rx_bytes_per_second", "received", [](const Telemetry& t) { return t.net_rx_bytes_s; });
  machine("node_net_tx_bytes_per_second", "sent", [](const Telemetry& t) { return t.net_tx_bytes_s; });
  machine("node_owner_holds_back", "1 while the owner's limits keep it from being hired",
          [](const Telemetry& t) { return t.owner.empty() ? 0 : 1; });
  gpu("gpu_use_percent", "use", [](const GpuSample& g) { return g.use_percent; });
  gpu("gpu_memory_used_bytes", "memory in use", [](const GpuSample& g) { return g.memory_used_bytes; });
  gpu("gpu_temperature_celsius", "temperature", [](const GpuSample& g) { return g.temperature_c; });
  gpu("gpu_power_watts", "power drawn", [](const GpuSample& g) { return g.power_w; });
  gpu("gpu_power_limit_watts", "power allowed", [](const GpuSample& g) { return g.power_limit_w; });
  gpu("gpu_sm_mhz", "clock of the processors", [](const GpuSample& g) { return g.sm_mhz; });
  gpu("gpu_ecc_uncorrected", "memory errors not corrected since the driver started",
      [](const GpuSample& g) { return g.ecc_uncorrected; });
  gpu("gpu_xid_events", "Xid faults since the agent started", [](const GpuSample& g) { return g.xid_count; });
  container("container_cpus_used", "CPUs in use",
            [](const ContainerSample& c) { return static_cast<double>(c.cpu_milli) / 1000; });
  container("container_memory_bytes", "memory in use", [](const ContainerSample& c) { return c.memory_bytes; });
}
}  // namespace

std::string metrics_text(Context& context) {
  std::string out;
  const auto gauge = [&](std::string_view name, std::string_view help, double value, std::string_view labels = {}) {
    if (!help.empty()) out += fmt::format("# HELP muster_{} {}\n# TYPE muster_{} gauge\n", name, help, name);
    out += fmt::format("muster_{}{} {}\n", name, labels, value);
  };
  std::string_view of_images = "images that run, by what is known against them";
  for (const auto& [verdict, count] : context.images->counts())
    gauge("images", std::exchange(of_images, {}), static_cast<double>(count),
          fmt::format("{{verdict=\"{}\"}}", verdict));
  std::map<std::string, std::size_t> nodes, clusters, jobs;
  std::uint64_t seq = 0;
  std::size_t leases = 0, waiting = 0, slow = 0, replacing = 0;
  context.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    seq = state.seq;
    leases = state.leases_by_node.size();
    waiting = state.queued_jobs.size();
    for (const auto& [id, node] : state.nodes) ++nodes[std::string(wire::text(node.state))];
    for (const auto& [id, cluster] : state.clusters) {
      ++clusters[std::string(wire::text(cluster.state))];
      slow += cluster.slow.size(), replacing += cluster.replacing ? 1 : 0;
    }
    for (const auto& [id, job] : state.jobs) ++jobs[std::string(wire::text(job.state))];
  });
  const auto table = [&](std::string_view name, std::string_view help, const std::map<std::string, std::size_t>& rows) {
    bool first = true;
    for (const auto& [state, count] : rows) {
      gauge(name, first ? help : std::string_view(), static_cast<double>(count),
            fmt::format("{{state=\"{}\"}}", state));
      first = false;
    }
  };
  const auto counts = context.agents->counts();
  gauge("journal_seq", "last durable entry folded by this server", static_cast<double>(seq));
  gauge("read_only", "1 while no writes are taken", context.runner->read_only() ? 1 : 0);
  gauge("core_wait_seconds_max", "the longest that a command waited for the core since this was last read",
        std::chrono::duration<double>(context.runner->longest_wait()).count());
  gauge("leading", "1 while this server renews leases", counts.leading ? 1 : 0);
  gauge("evictions_frozen", "1 while mass silence freezes evictions", counts.frozen ? 1 : 0);
  gauge("agents_connected", "agents with an open session", static_cast<double>(counts.connected));
  gauge("streams_open", "exec and forward streams", static_cast<double>(counts.streams));
  gauge("event_streams_open", "SSE streams", static_cast<double>(context.events->streams()));
  gauge("leases_live", "leases that have not ended", static_cast<double>(leases));
  gauge("jobs_waiting", "jobs that wait for their cluster", static_cast<double>(waiting));
  const auto net = context.agents->net_counts();
  gauge("net_pairs", "pairs of members that talked to each other, counted at each end, by the way between them",
        static_cast<double>(net.relayed), "{path=\"relay\"}");
  gauge("net_pairs", {}, static_cast<double>(net.relayed_udp), "{path=\"relay-udp\"}");
  gauge("net_pairs", {}, static_cast<double>(net.lan), "{path=\"lan\"}");
  gauge("net_pairs", {}, static_cast<double>(net.direct), "{path=\"direct\"}");
  gauge("net_pairs", {}, static_cast<double>(net.peer), "{path=\"peer\"}");
  gauge("net_pairs_limited", "of them, those whose way was full: bulk is held to what it carries",
        static_cast<double>(net.limited));
  gauge("net_pairs_slow", "ways between members that stay below what their cluster asks for",
        static_cast<double>(slow));
  gauge("clusters_replacing", "clusters that seek another machine for a worker with slow ways",
        static_cast<double>(replacing));
  std::string_view help = "leases whose machine is connected to the relay";
  for (const RelayEntry& relay : *context.relays->relays()) {  // only those of the list: machines may name anything
    const auto found = net.on_relay.find(relay.address);
    gauge("relay_members", std::exchange(help, {}),
          found == net.on_relay.end() ? 0 : static_cast<double>(found->second),
          fmt::format("{{relay=\"{}\",region=\"{}\"}}", relay.address, relay.region));
  }
  gauge("trust_machines_behind", "enrolled machines that have not said that they believe the newest roots",
        static_cast<double>(context.agents->trust_behind()));
  gauge("keys_machines_behind", "enrolled machines that have not said that they know the newest signing keys",
        static_cast<double>(context.agents->keys_behind()));
  bool first = true;
  for (const auto& [name, left] : context.certificates.left(read_clocks().wall)) {
    gauge("certificate_remaining_seconds", first ? "until the end of the certificate, negative after it" : "",
          std::chrono::duration<double>(left).count(), fmt::format("{{certificate=\"{}\"}}", name));
    first = false;
  }
  table("nodes", "machines by state", nodes);
  table("clusters", "clusters by state", clusters);
  table("jobs", "jobs by state", jobs);
  add_machine_metrics(out, context.agents->latest_telemetry(kMachinesInMetrics));
  return out;
}

}  // namespace muster::server
