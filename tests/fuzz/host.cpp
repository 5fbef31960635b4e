// What the machine's processes read from each other, from containers and from the container engine.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "egress/address.h"
#include "fuzz/fuzz.h"
#include "host/egress_protocol.h"
#include "host/engine_http.h"
#include "host/helper_link.h"
#include "host/image_fault.h"
#include "host/netd_protocol.h"
#include "host/policy.h"
#include "host/privd_verbs.h"

namespace muster::fuzz {
namespace {

using namespace host;

Seeds seeds_helper() {
  Seeds out;
  for (
      const char* text :
      {R"({"ev":"hello","phase":"ray","ray_node_id":"ab","home":"/root","setup_done":true,"jobs":[{"job":"job-1","attempt":1,"state":"RUNNING","log_bytes":5}]})",
       R"({"ev":"probe","ray":"2.60.0","python":"3.11","token_auth":true,"rocksdb":false})", R"({"ev":"setup_done"})",
       R"({"ev":"setup_failed","step":1,"code":127,"tail":"not found"})", R"({"ev":"ray_ready","node_id":"ff"})",
       R"({"ev":"ray_exit","code":-9,"wanted":false,"tail":""})", R"({"ev":"drained"})", R"({"ev":"ray_stopped"})",
       R"({"ev":"job","job":"job-7","attempt":0,"state":"FAILED","message":"x","exit_code":1})",
       R"({"ev":"job_log","job":"job-7","attempt":0,"offset":10,"data":"aGVsbG8=","eof":true})",
       R"({"ev":"report","nodes":[{"node_id":"a","ip":"100.64.0.1","alive":true,"idle_s":1.5,"total":{"CPU":2.0,"memory":1e9},"free":{"GPU":1}}],)"
       R"("demands":[{"bundle":{"CPU":1},"count":3,"strict_spread":true,"group":1}]})",
       R"({"ev":"fault","op":"submit","text":"no"})"})
    out.push_back(to_bytes(text));
  return out;
}
FUZZ_TARGET(helper, 4 << 10) {
  const auto event = parse_helper_event(as_string(input));
  if (!event.ok()) return;
  if (const auto* report = std::get_if<HelperReport>(&*event)) {
    for (const auto& node : report->nodes)
      MUSTER_CHECK(node.total.cpu_milli >= 0 && node.free.gpus >= 0 && node.idle.count() >= 0);
    plant(report->demands.size() == 1 && report->demands[0].count == 7);
  }
  if (const auto* log = std::get_if<HelperJobLog>(&*event)) MUSTER_CHECK(log->data.size() <= 64 << 10);
}

Seeds seeds_netd() {
  netd::Configure configure;
  configure.lease = "lease-1";
  configure.address = 0x64400001;
  configure.roster = Bytes(40, 1);
  configure.signatures = {Bytes(64, 2)};
  configure.signers = {Bytes(32, 3)};
  configure.relays = {{"relay.example", 443}};
  configure.relay_ca_pem = "-----BEGIN";
  configure.relay_token = Bytes(20, 4);
  configure.psk = Bytes(32, 5);
  configure.machine_ca_pem = "-----BEGIN";
  configure.machines = Bytes(80, 6);
  netd::Paths paths;
  paths.report.relay = "relay.example:443";
  paths.report.seen = {{0x5db8d822, 7000}};
  session::NetPair pair;
  pair.tries = {{{0x0a000001, 7000}, session::NetOrigin::Told, 5, 4, true, 1200}};
  paths.report.pairs = {pair};
  Seeds out;
  for (const netd::Request& request :
       {netd::Request(netd::AddLease{"lease-1"}), netd::Request(configure), netd::Request(netd::RemoveLease{"lease-2"}),
        netd::Request(netd::GetStats{"lease-1"}), netd::Request(netd::GetInfo{}),
        netd::Request(netd::GetPaths{"lease-1"}),
        netd::Request(netd::SetRelays{"lease-1", {{"relay.example:443", "east", Bytes(20, 4)}}}),
        netd::Request(netd::SetMapped{{{0x5db8d822, 7000}}, "PCP"})})
    out.push_back(Bytes{0} + netd::encode(request));
  for (const netd::Reply& reply :
       {netd::Reply(netd::Failed{1, "no"}), netd::Reply(netd::Done{}), netd::Reply(netd::LeaseKey{Bytes(32, 1)}),
        netd::Reply(netd::Configured{1, 2, 0}),
        netd::Reply(netd::Stats{true, false, "why", 1, 2, {{0x64400002, 1, 2, 3, "relay"}}}),
        netd::Reply(netd::Info{7000, {{"lease-1", Bytes(32, 1), true, true}}}), netd::Reply(paths)})
    out.push_back(Bytes{1} + netd::encode(reply));
  return out;
}
FUZZ_TARGET(netd, 4 << 10) {
  Input in(input);
  const bool reply = in.byte() % 2 == 1;
  const std::string_view text = in.text();
  if (reply) {
    const auto read = netd::decode_reply(text);
    if (read.ok()) MUSTER_CHECK(netd::encode(*read) == text);
    const auto* stats = read.ok() ? std::get_if<netd::Stats>(&*read) : nullptr;
    if (stats != nullptr) plant(stats->peers.size() == 1 && stats->peers[0].rx_bytes > 1000);
  } else {
    const auto read = netd::decode_request(text);
    if (read.ok()) MUSTER_CHECK(netd::encode(*read) == text);
  }
}

Seeds seeds_privd() {
  Seeds out;
  for (int kind = 0; kind <= static_cast<int>(VerbKind::Egress); ++kind) {
    Verb verb;
    verb.id = 7;
    verb.kind = static_cast<VerbKind>(kind);
    verb.lease = verb.launch.lease = "lease-3";
    verb.image = "docker.io/library/busybox:1";
    verb.launch.image = "sha256:" + std::string(64, 'a');
    verb.launch.env = {{"A", "b"}};
    verb.launch.devices = {"GPU-1"};
    verb.launch.address = 0x0ac90001;
    verb.blob = std::string(64, 'b');
    verb.path = "/data/x";
    verb.exec = "e1";
    verb.argv = {"/bin/sh", "-c", "true"};
    verb.secret = Bytes(32, 1);
    verb.auth = {"u", "p"};
    verb.rows = 24, verb.cols = 80, verb.grace_s = 5, verb.port = 8265, verb.address = 0x0ac90001, verb.target = 3;
    out.push_back(to_bytes(verb_text(verb)));
  }
  host::Policy policy;
  policy.gpu_uuids = {"GPU-1"};
  policy.allowed_hours = {{60, 120}};
  policy.images = {"docker.io/"};
  policy.egress.deny_ports = {{25, 25}};
  policy.egress.resolvers = {egress::Ip::four(0x01010101)};
  out.push_back(to_bytes(policy_text(policy)));
  out.push_back(to_bytes("22:00-06:30"));
  return out;
}
FUZZ_TARGET(privd, 4 << 10) {
  const std::string text = as_string(input);
  if (const auto verb = parse_verb(text); verb.ok()) {
    MUSTER_CHECK(verb->lease.empty() || valid_lease(verb->lease));
    MUSTER_CHECK(verb->path.empty() || valid_path(verb->path));
    const auto again = parse_verb(verb_text(*verb));
    MUSTER_CHECK(again.ok() && again->kind == verb->kind && again->lease == verb->lease);
    plant(!verb->lease.empty() && verb->lease != "lease-3");
  }
  if (const auto policy = parse_policy(text); policy.ok()) {
    const auto again = parse_policy(policy_text(*policy));
    MUSTER_CHECK(again.ok() && *again == *policy);
  }
  (void)parse_hours(text).ok();
}

Seeds seeds_egress() {
  EgressConfig config;
  config.rules.local = {*egress::parse_prefix("192.168.1.0/24")};
  config.rules.deny_ports = egress::default_deny_ports();
  config.resolvers = {egress::Ip::four(0x01010101)};
  config.blocked = "month";
  EgressReport report;
  report.bytes = 9;
  report.leases["lease-1"].refused["private"] = 2;
  report.leases["lease-1"].now = {{"93.184.216.34:443", 1, 2, 3}};
  report.leases["lease-1"].last_refused = {{"10.0.0.1:22", "private", 4}};
  Seeds out;
  for (const EgressOrder& order : {EgressOrder(config), EgressOrder(AddWay{"lease-1"}),
                                   EgressOrder(RemoveWay{"lease-1"}), EgressOrder(AskReport{true})})
    out.push_back(to_bytes(order_text(order)));
  out.push_back(to_bytes(report_text(report)));
  out.push_back(to_bytes(report_text(error(Code::NotFound, "no such lease", "lease"))));
  for (const char* text : {"2001:db8::1", "::ffff:10.0.0.1", "10.0.0.0/8", "2000::/3", "6660-6669", "443"})
    out.push_back(to_bytes(text));
  return out;
}
FUZZ_TARGET(egress, 4 << 10) {
  const std::string text = as_string(input);
  if (const auto order = parse_order(text); order.ok()) {
    const auto again = parse_order(order_text(*order));
    MUSTER_CHECK(again.ok() && *again == *order);
    if (const auto* config = std::get_if<EgressConfig>(&*order))
      plant(config->blocked != "month" && config->flows_max != 256);
  }
  if (const auto report = parse_report(text); report.ok()) {
    const auto again = parse_report(report_text(report));
    MUSTER_CHECK(again.ok() && *again == *report);
  }
  if (const auto ip = egress::parse_ip(text)) {
    MUSTER_CHECK(egress::parse_ip(egress::to_text(*ip)) == ip);
    (void)egress::address_refusal({}, *ip);
  }
  if (const auto prefix = egress::parse_prefix(text))
    MUSTER_CHECK(egress::parse_prefix(egress::to_text(*prefix)) == prefix);
  if (const auto ports = egress::parse_ports(text)) MUSTER_CHECK(egress::parse_ports(egress::to_text(*ports)) == ports);
}

// The engine answers on a socket of its own: the call asks `cancelled` before it reads, which is when it is written.
Seeds seeds_engine() {
  Seeds out;
  for (const char* text :
       {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"Id\":\"a\",\"b\"}",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n14\r\n{\"status\":\"Pulling\"}\n\r\n0\r\n\r\n",
        "HTTP/1.1 404 Not Found\r\nContent-Length: 26\r\n\r\n{\"message\":\"no such image\"}",
        "HTTP/1.0 500 x\r\n\r\n{\"message\":\"unauthorized\"}", "HTTP/1.1 204 No Content\r\n\r\n"})
    for (const std::uint8_t kind : {0, 1}) out.push_back(Bytes{kind} + text);
  return out;
}
FUZZ_TARGET(engine, 4 << 10) {
  static const std::string path = "/tmp/muster-fuzz-engine-" + std::to_string(::getpid());
  static const int listener = [] {
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    sockaddr_un at{};
    at.sun_family = AF_UNIX;
    path.copy(at.sun_path, sizeof at.sun_path - 1);
    MUSTER_CHECK(::bind(fd, reinterpret_cast<const sockaddr*>(&at), sizeof at) == 0 && ::listen(fd, 8) == 0);
    std::atexit([] { ::unlink(path.c_str()); });
    return fd;
  }();
  Input in(input);
  const bool stream = in.byte() % 2 == 1;
  const ByteView answer = in.rest();
  host::Fd peer;
  EngineCall call;
  call.target = "/v1.41/images/x/json";
  call.timeout = Millis(2000);
  call.cancelled = [&] {
    if (peer) return false;
    peer = host::Fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (!answer.empty()) (void)::send(peer.get(), answer.data(), answer.size(), MSG_NOSIGNAL);
    ::shutdown(peer.get(), SHUT_WR);
    return false;
  };
  std::size_t streamed = 0;
  const EngineHttp http(path);
  const auto reply = stream ? http.stream(call,
                                          [&](std::string_view part) -> Status {
                                            streamed += part.size();
                                            return {};
                                          })
                            : http.call(call);
  if (!peer) ::close(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!reply.ok()) return;
  MUSTER_CHECK(reply->status >= 100 && reply->status <= 999);
  const auto said = parse_value(reply->body);
  const std::string why = said.ok() ? text_at(*said, {"message"}) : reply->body;
  plant(reply->status > 500 && said.ok());
  const Error told = image_error("busybox", reply->status, why);
  MUSTER_CHECK(told.message.size() < 4096 && valid_utf8(told.message));
  if (said.ok()) (void)int_at(*said, {"State", "ExitCode"}), (void)bool_at(*said, {"State", "Running"});
}

}  // namespace
}  // namespace muster::fuzz
