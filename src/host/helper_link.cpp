#include "host/helper_link.h"

#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>

#include "base/bytes.h"
#include "base/log.h"

namespace muster::host {
namespace {

constexpr std::size_t kOutMax = 4 << 20;
constexpr std::int64_t kBig = std::int64_t{1} << 60;

std::int64_t scaled(double value, double factor) {
  if (!(value > 0)) return 0;
  return static_cast<std::int64_t>(std::min(std::round(value * factor), static_cast<double>(kBig)));
}

// Ray's resource map ({"CPU": 2.0, "memory": bytes, ...}) as ours.
Resources read_resources(const json::object* map) {
  Resources out;
  if (map == nullptr) return out;
  std::size_t count = 0;
  for (const auto& member : *map) {
    if (++count > 64) break;
    const std::string_view key(member.key().data(), member.key().size());
    double value = 0;
    if (const auto* d = member.value().if_double())
      value = *d;
    else if (const auto* i = member.value().if_int64())
      value = static_cast<double>(*i);
    else if (const auto* u = member.value().if_uint64())
      value = static_cast<double>(*u);
    else
      continue;
    if (!std::isfinite(value) || value < 0) continue;
    if (key == "CPU")
      out.cpu_milli = scaled(value, 1000);
    else if (key == "GPU")
      out.gpus = scaled(std::ceil(value), 1);
    else if (key == "memory")
      out.memory_bytes = scaled(value, 1);
    else if (key == "object_store_memory")
      out.object_store_bytes = scaled(value, 1);
    else if (key.size() <= 128)
      out.custom_milli[std::string(key)] = scaled(value, 1000);
  }
  return out;
}

HelperJob read_job(Fields& f) {
  HelperJob job;
  const auto id = JobId::parse(f.text("job", 32));
  job.job = id.value_or(JobId{});
  job.attempt = static_cast<std::uint32_t>(f.integer("attempt", 0, 1'000'000));
  job.state = f.text("state", 32);
  job.message = f.text_or("message", {}, 4096);
  job.exit_code = static_cast<std::int32_t>(f.integer_or("exit_code", -1'000'000, 1'000'000, -1));
  job.log_bytes = static_cast<std::uint64_t>(f.integer_or("log_bytes", 0, kBig, 0));
  return job;
}

Result<HelperEvent> read_hello(Fields& f) {
  HelperHello hello;
  hello.phase = f.text("phase", 32);
  hello.ray_node_id = f.text_or("ray_node_id", {}, 128);
  hello.home = f.text_or("home", {}, 1024);
  hello.setup_done = f.boolean_or("setup_done", false);
  if (const auto* jobs = f.array("jobs", 1000)) {
    for (const auto& item : *jobs) {
      const auto* row = item.if_object();
      if (row == nullptr) continue;
      Fields fields(*row);
      HelperJob job = read_job(fields);
      if (fields.finish_lenient("job").ok() && job.job) hello.jobs.push_back(std::move(job));
    }
  }
  TRY_VOID(f.finish_lenient("hello"));
  return HelperEvent(std::move(hello));
}

Result<HelperEvent> read_report(Fields& f) {
  HelperReport report;
  if (const auto* nodes = f.array("nodes", 4096)) {
    for (const auto& item : *nodes) {
      const auto* row = item.if_object();
      if (row == nullptr) continue;
      Fields n(*row);
      RayNodeReport node;
      node.ray_node_id = n.text_or("node_id", {}, 128);
      in_addr address{};
      if (inet_pton(AF_INET, n.text_or("ip", {}, 64).c_str(), &address) == 1) node.address = ntohl(address.s_addr);
      node.alive = n.boolean_or("alive", false);
      node.idle = Millis(scaled(n.number_or("idle_s", 0), 1000));
      node.total = read_resources(n.object("total"));
      node.free = read_resources(n.object("free"));
      if (n.finish_lenient("node").ok()) report.nodes.push_back(std::move(node));
    }
  }
  if (const auto* demands = f.array("demands", 1024)) {
    for (const auto& item : *demands) {
      const auto* row = item.if_object();
      if (row == nullptr) continue;
      Fields d(*row);
      RayDemand demand;
      demand.bundle = read_resources(d.object("bundle"));
      demand.count = static_cast<std::uint32_t>(d.integer_or("count", 0, 1'000'000, 0));
      demand.strict_spread = d.boolean_or("strict_spread", false);
      demand.group = static_cast<std::uint32_t>(d.integer_or("group", 0, 1'000'000, 0));
      demand.standing = d.boolean_or("standing", false);
      if (d.finish_lenient("demand").ok()) report.demands.push_back(std::move(demand));
    }
  }
  TRY_VOID(f.finish_lenient("report"));
  return HelperEvent(std::move(report));
}

Result<HelperEvent> read_list(Fields& f) {
  HelperList list;
  list.path = f.text("path", 1024);
  list.more = f.boolean_or("more", false);
  const auto data = unbase64(f.text("data", kHelperLineMax));
  TRY_VOID(f.finish_lenient("list"));
  if (!data) return error(Code::InvalidArgument, "list: 'data' is not base64");
  list.data = *data;
  return HelperEvent(std::move(list));
}

Result<HelperEvent> read_log(Fields& f) {
  HelperJobLog log;
  log.job = JobId::parse(f.text("job", 32)).value_or(JobId{});
  log.attempt = static_cast<std::uint32_t>(f.integer("attempt", 0, 1'000'000));
  log.offset = static_cast<std::uint64_t>(f.integer("offset", 0, kBig));
  log.eof = f.boolean_or("eof", false);
  const auto data = unbase64(f.text("data", 128 << 10));
  TRY_VOID(f.finish_lenient("job_log"));
  if (!data || data->size() > (64 << 10))
    return error(Code::InvalidArgument, "job_log: 'data' is not base64 of at most 64 KiB");
  log.data = *data;
  return HelperEvent(std::move(log));
}

}  // namespace

Result<HelperEvent> parse_helper_event(std::string_view line) {
  const json::object object = TRY(parse_object(line));
  Fields f(object);
  const std::string ev = f.text("ev", 32);
  HelperEvent out;
  if (ev == "hello") return read_hello(f);
  if (ev == "report") return read_report(f);
  if (ev == "job_log") return read_log(f);
  if (ev == "list") return read_list(f);
  if (ev == "probe")
    out = HelperProbe{f.text("ray", 64), f.text("python", 64), f.boolean_or("token_auth", false),
                      f.boolean_or("rocksdb", false)};
  else if (ev == "lists_end")
    out = HelperListsEnd{f.boolean_or("whole", false)};
  else if (ev == "setup_done")
    out = HelperSetupDone{};
  else if (ev == "setup_failed")
    out = HelperSetupFailed{static_cast<int>(f.integer_or("step", 0, 10'000, 0)),
                            static_cast<int>(f.integer_or("code", -1000, 1000, 1)), f.text_or("tail", {}, 8192)};
  else if (ev == "ray_ready")
    out = HelperRayReady{f.text("node_id", 128)};
  else if (ev == "ray_exit")
    out = HelperRayExit{static_cast<int>(f.integer_or("code", -1000, 1000, 1)), f.boolean_or("wanted", false),
                        f.text_or("tail", {}, 8192)};
  else if (ev == "drained")
    out = HelperDrained{};
  else if (ev == "ray_stopped")
    out = HelperRayStopped{};
  else if (ev == "fault")
    out = HelperFault{f.text_or("op", {}, 32), f.text_or("text", {}, 4096)};
  else if (ev == "job") {
    HelperJob job = read_job(f);
    if (!job.job) return error(Code::InvalidArgument, "job: not a job id");
    out = std::move(job);
  } else {
    return error(Code::Unsupported, "the helper sent an event that is not known");
  }
  TRY_VOID(f.finish_lenient(ev));
  return out;
}

HelperLink::HelperLink(Poller& poller, Fd fd, std::function<void(HelperEvent)> event, std::function<void()> closed)
    : poller_(poller),
      fd_(std::move(fd)),
      event_(std::move(event)),
      closed_(std::move(closed)),
      alive_(std::make_shared<bool>(true)) {
  (void)set_blocking(fd_.get(), false).ok();
  poller_.watch(fd_.get(), true, false, [this](Poller::Ready ready) { on_ready(ready); });
}

HelperLink::~HelperLink() {
  *alive_ = false;
  if (fd_) poller_.unwatch(fd_.get());
}

void HelperLink::end() {
  if (!fd_) return;
  poller_.unwatch(fd_.get());
  fd_.reset();
  const auto closed = std::move(closed_);
  closed_ = nullptr;
  if (closed) closed();
}

void HelperLink::send(const json::object& message) {
  if (!fd_) return;
  out_ += to_text(message) + "\n";
  if (out_.size() > kOutMax) {
    poller_.post([this, alive = alive_] {
      if (*alive) end();
    });
    return;
  }
  flush();
}

void HelperLink::flush() {
  while (!out_.empty()) {
    const ssize_t n = ::send(fd_.get(), out_.data(), out_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (n <= 0) break;
    out_.erase(0, static_cast<std::size_t>(n));
  }
  poller_.rearm(fd_.get(), true, !out_.empty());
}

void HelperLink::on_ready(Poller::Ready ready) {
  const auto alive = alive_;
  if (ready.writable) flush();
  if (!ready.readable && !ready.hung_up) return;
  std::array<char, 65536> buffer;
  const ssize_t n = recv(fd_.get(), buffer.data(), buffer.size(), MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) return end();
  in_.append(buffer.data(), static_cast<std::size_t>(n));
  std::size_t start = 0;
  for (auto at = in_.find('\n'); at != std::string::npos; at = in_.find('\n', start)) {
    const std::string line = in_.substr(start, at - start);
    start = at + 1;
    auto event = parse_helper_event(line);
    if (!event.ok()) {
      log_debug("helper", "dropped a line: {}", event.error().message);
      continue;
    }
    event_(std::move(*event));
    if (!*alive || !fd_) return;
  }
  in_.erase(0, start);
  if (in_.size() > kHelperLineMax) {
    log_warn("helper", "a container sent a line of more than {} bytes; its connection is closed", kHelperLineMax);
    end();
  }
}

}  // namespace muster::host
