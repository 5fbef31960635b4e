#include "host/privd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "base/log.h"
#include "host/container_use.h"
#include "host/json.h"
#include "host/nvml.h"
#include "host/policy.h"
#include "model/venv_image.h"

namespace muster::host {
namespace {

constexpr std::size_t kLogsBytesMax = 16 << 10;
constexpr Millis kVersionsEvery{300'000};

// What a container wrote, fit for a log: hostile bytes become dots.
std::string printable(std::string text) {
  for (char& c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c != '\n' && (byte < 0x20 || byte > 0x7e)) c = '.';
  }
  return text;
}

Result<std::string> read_lock(int fd) {
  std::string out;
  char buffer[16384];
  for (ssize_t n = 0; (n = read(fd, buffer, sizeof buffer)) != 0;) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 || out.size() > kVenvLockBytesMax)
      return error(Code::InvalidArgument, "the lock cannot be read", "venv.lock");
    out.append(buffer, static_cast<std::size_t>(n));
  }
  return out;
}

// Too long for a message: it travels as a file that has no name.
Result<Fd> file_with(const std::string& text) {
  Fd file(memfd_create("muster-lock", MFD_CLOEXEC));
  if (!file || write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) ||
      lseek(file.get(), 0, SEEK_SET) != 0)
    return error(Code::ResourceExhausted, "cannot hand over the lock: " + errno_text(errno), "fds");
  return file;
}

}  // namespace

Privd::Privd(PrivdOptions options, Runtime& runtime, EgressPort* egress)
    : options_(std::move(options)),
      runtime_(runtime),
      egress_(egress),
      disk_watch_(options_.layout, runtime),
      grants_(options_.layout),
      guard_(options_.layout, runtime_, grants_, [this](const std::string& lease, int grace_s) {
        const Status stopped = stop_lease(lease, grace_s);
        if (!stopped.ok()) log_warn("privd", "{}: {}", lease, stopped.error().message);
      }) {}

Privd::~Privd() {
  stop();
  guard_.stop();
}

Status Privd::listen() {
  listener_ = TRY(listen_unix(options_.layout.privd_socket(), SocketKind::Seqpacket, 0, options_.agent_gid, 0660));
  guard_.start();
  return {};
}

void Privd::stop() {
  stopping_ = true;
}

void Privd::run() {
  disk_watch_.start();
  if (egress_ != nullptr) start([this] { adopt_egress(); });
  while (!stopping_) {
    pollfd wait{listener_.get(), POLLIN, 0};
    if (poll(&wait, 1, 500) <= 0) continue;
    Fd fd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    if (!fd) continue;
    const auto peer = peer_of(fd.get());
    if (!peer.ok() || peer->uid != options_.agent_uid) {
      log_warn("privd", "refused a connection of uid {}: only the agent may talk to privd",
               peer.ok() ? static_cast<long>(peer->uid) : -1L);
      continue;
    }
    auto client = std::make_shared<Client>();
    client->fd = std::move(fd);
    start([this, client] { serve(client); });
  }
  disk_watch_.stop();
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::seconds(10), [this] { return threads_ == 0; });
}

void Privd::start(std::function<void()> work) {
  {
    const std::lock_guard lock(mutex_);
    ++threads_;
  }
  std::thread([this, work = std::move(work)] {
    work();
    const std::lock_guard lock(mutex_);
    --threads_;
    changed_.notify_all();
  }).detach();
}

void Privd::reply(const ClientPtr& client, const std::string& text, const std::vector<int>& fds) {
  const std::lock_guard lock(client->mutex);
  const Status sent = send_message(client->fd.get(), text, fds);
  if (!sent.ok()) log_debug("privd", "{}", sent.error().message);
}

void Privd::serve(ClientPtr client) {
  while (!stopping_) {
    pollfd wait{client->fd.get(), POLLIN, 0};
    if (poll(&wait, 1, 500) <= 0) continue;
    auto message = receive_message(client->fd.get());
    if (!message.ok() || (message->text.empty() && message->fds.empty())) return;
    auto verb = parse_verb(message->text);
    if (!verb.ok()) {
      log_warn("privd", "refused a request: {}", verb.error().message);
      const auto raw = parse_object(message->text);
      const auto id = raw.ok() ? static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(*raw, {"id"}))) : 0;
      reply(client, answer_text(id, verb.error()), {});
      continue;
    }
    {
      const std::lock_guard lock(mutex_);
      if (verb->kind == VerbKind::Cancel && cancelled_.size() < 1024) cancelled_.insert(verb->target);
      if (active_ >= kVerbsMax) {
        reply(client, answer_text(verb->id, error(Code::ResourceExhausted, "privd is busy; try again", "busy")), {});
        continue;
      }
      ++active_;
    }
    start([this, client, v = std::move(*verb), fds = std::make_shared<std::vector<Fd>>(std::move(message->fds))] {
      perform(client, v, std::move(*fds));
      const std::lock_guard lock(mutex_);
      --active_;
    });
  }
}

// Waits until no other lifecycle verb of this lease is under way. Stop never waits.
bool Privd::enter(const Verb& verb) {
  if (!lifecycle(verb.kind)) return true;
  std::unique_lock lock(mutex_);
  const bool free =
      changed_.wait_for(lock, std::chrono::seconds(120), [&] { return !busy_.contains(verb.lease) || stopping_; });
  if (!free || stopping_) return false;
  busy_.insert(verb.lease);
  return true;
}

void Privd::leave(const Verb& verb) {
  const std::lock_guard lock(mutex_);
  if (lifecycle(verb.kind)) busy_.erase(verb.lease);
  if (verb.kind == VerbKind::Pull) cancelled_.erase(verb.id);
  changed_.notify_all();
}

void Privd::perform(const ClientPtr& client, Verb verb, std::vector<Fd> fds) {
  if (!enter(verb)) {
    reply(client,
          answer_text(verb.id, error(Code::Unavailable, "another operation on this lease takes too long", "busy")), {});
    return;
  }
  const auto answer = dispatch(verb, fds, client);
  leave(verb);
  std::vector<int> out;
  if (answer.ok()) {
    for (const auto& fd : answer->fds) out.push_back(fd.get());
  } else {
    log_line(answer.error().code == Code::NotFound ? Level::Debug : Level::Info, "privd",
             fmt::format("{}: {}", verb.lease.empty() ? "request" : verb.lease, answer.error().message));
  }
  reply(client, answer_text(verb.id, answer), out);
}

Result<Answer> Privd::launch(const Verb& verb) {
  TRY_VOID(guard_.allowed());
  const Policy policy = TRY(load_policy(options_.layout.policy()));
  TRY_VOID(grants_.image_allowed(verb.launch.image, policy));
  LaunchSpec spec = verb.launch;
  if (spec.egress && !policy.egress_allowed)
    return error(Code::PermissionDenied, "the owner's policy lets no container out to the internet", "owner.egress");
  TRY_VOID(grants_.book(spec, policy, read_machine()));
  spec.root_bytes_max = policy.max_root_bytes;
  if (policy.max_workspace_bytes > 0 &&
      (spec.workspace_bytes_max == 0 || spec.workspace_bytes_max > policy.max_workspace_bytes))
    spec.workspace_bytes_max = policy.max_workspace_bytes;
  guard_.poke();  // the power cap holds before the work begins to draw
  auto launched = runtime_.launch(spec);
  guard_.poke();  // and what it uses is not taken for the owner's
  if (!launched.ok()) {
    // Booked stays what may still run: a start that failed half-way is stopped or asked again by the agent.
    return launched.error();
  }
  if (spec.egress) TRY_VOID(open_egress(spec, launched->network));
  Answer answer;
  json::array warnings;
  for (const auto& warning : launched->warnings) warnings.emplace_back(warning);
  answer.fields["warnings"] = warnings;
  return answer;
}

Status Privd::open_egress(const LaunchSpec& spec, const std::string& network) {
  if (egress_ == nullptr || network.empty())
    return error(Code::Unsupported, "this runtime cannot give its containers a way out", "egress.unsupported");
  return egress_->open({spec.lease, network, spec.address, spec.prefix_bits});
}

// After a start: the leases that run with egress get their way out again. The engine may take its time.
void Privd::adopt_egress() {
  while (!stopping_) {
    const auto leases = runtime_.list();
    if (!leases.ok()) {
      std::this_thread::sleep_for(Millis(500));
      continue;
    }
    std::vector<LeaseWay> ways;
    for (const auto& lease : *leases) {
      if (lease.egress && !lease.network.empty())
        ways.push_back({lease.lease, lease.network, lease.address, lease.prefix_bits});
    }
    return egress_->adopt(ways);
  }
}

// The agent gets one end of a pipe; a thread moves the tar between it and the engine and says how it went on a second
// pipe.
Result<Answer> Privd::open_archive(const Verb& verb, bool read_it) {
  int data[2], outcome[2];
  if (pipe2(data, O_CLOEXEC) != 0) return error(Code::ResourceExhausted, "no descriptors left", "fds");
  Fd data_read(data[0]), data_write(data[1]);
  if (pipe2(outcome, O_CLOEXEC) != 0) return error(Code::ResourceExhausted, "no descriptors left", "fds");
  Fd outcome_read(outcome[0]), outcome_write(outcome[1]);
  Answer answer;
  answer.fds.push_back(read_it ? std::move(data_read) : std::move(data_write));
  answer.fds.push_back(std::move(outcome_read));
  std::thread([this, lease = verb.lease, path = verb.path, read_it,
               source = read_it ? std::move(data_write) : std::move(data_read),
               told = std::move(outcome_write)]() mutable {
    const Status done =
        read_it ? runtime_.read_archive(lease, path, source.get()) : runtime_.write_archive(lease, path, source.get());
    const std::string text = done.ok() ? "ok" : done.error().message.substr(0, 2000);
    [[maybe_unused]] const auto n = write(told.get(), text.data(), text.size());
  }).detach();
  return answer;
}

// The directory is made by the container's own user, then the tar is unpacked into it.
Status Privd::put_files(const Verb& verb, int source) {
  const ExecOpen made = TRY(runtime_.exec(verb.lease, {"mkdir", "-p", "--", verb.path}, false));
  char buffer[1024];
  while (read(made.stream.get(), buffer, sizeof buffer) > 0) {
  }
  return runtime_.write_archive(verb.lease, verb.path, source);
}

// Stop overtakes a launch under way; what that launch still made is stopped after it.
Status Privd::stop_lease(const std::string& lease, int grace_s) {
  TRY_VOID(runtime_.stop(lease, grace_s));
  if (egress_ != nullptr) egress_->close(lease);
  bool again = false;
  {
    std::unique_lock lock(mutex_);
    again = busy_.contains(lease);
    if (again && !changed_.wait_for(lock, std::chrono::seconds(120), [&] { return !busy_.contains(lease); }))
      return error(Code::Unavailable, "another operation on this lease takes too long", "busy");
  }
  if (again) {
    TRY_VOID(runtime_.stop(lease, 0));
    if (egress_ != nullptr) egress_->close(lease);
  }
  grants_.release(lease);
  guard_.poke();
  return {};
}

Result<Answer> Privd::pull(const Verb& verb, std::vector<Fd>& fds, const ClientPtr& client) {
  const Policy policy = TRY(load_policy(options_.layout.policy()));
  const bool bare = verb.image.starts_with("sha256:");  // names anything on this machine, also what is the owner's own
  if (bare) TRY_VOID(grants_.image_allowed(verb.image, policy));
  if (!bare && !image_allowed(policy, verb.image))
    return error(Code::PermissionDenied, "the owner's policy does not allow this image", "owner.image");
  PullSpec spec{verb.image, verb.auth, {}};
  if (fds.size() > 1) return error(Code::InvalidArgument, "a pull comes with at most one descriptor", "fds");
  if (!fds.empty()) spec.lock = TRY(read_lock(fds[0].get()));
  auto last = std::chrono::steady_clock::time_point{};
  const Pulled pulled = TRY(runtime_.pull(spec, [&](std::uint64_t done, std::uint64_t total) {
    const auto now = std::chrono::steady_clock::now();
    if (now - last > std::chrono::seconds(1)) {
      last = now;
      reply(client, progress_text(verb.id, done, total), {});
    }
    const std::lock_guard lock(mutex_);
    return !cancelled_.contains(verb.id) && !stopping_;
  }));
  if (!bare) grants_.allow_image(pulled.digest, verb.image);
  Answer answer;
  answer.fields["digest"] = pulled.digest;
  answer.fields["pinned"] = pulled.pinned;
  if (!pulled.lock.empty()) answer.fds.push_back(TRY(file_with(pulled.lock)));
  return answer;
}

Result<Answer> Privd::list() {
  const auto leases = TRY(runtime_.list());
  guard_.saw(leases);
  json::array rows;
  for (const auto& s : leases) {
    rows.push_back(json::object{{"lease", s.lease},
                                {"namespace_up", s.namespace_up},
                                {"exists", s.exists},
                                {"running", s.running},
                                {"exit_code", s.exit_code},
                                {"oom", s.out_of_memory},
                                {"reason", s.reason}});
  }
  Answer answer;
  answer.fields["leases"] = rows;
  answer.fields["engine_life"] = runtime_.engine_life();
  return answer;
}

// Asked once a second: read from the kernel, not from the engine. What the owner's limits say comes along.
Result<Answer> Privd::usage() {
  const auto grants = grants_.all();
  const bool gpus = std::any_of(grants.begin(), grants.end(), [](const auto& g) { return !g.second.devices.empty(); });
  const auto holders = gpus ? Nvml::instance().processes() : std::vector<GpuProcess>{};
  const EgressReport ways = egress_ == nullptr ? EgressReport{} : egress_->report(false);
  json::array rows;
  for (const auto& lease : guard_.leases()) {
    if (!lease.running || lease.main_pid <= 0) continue;
    const auto use = container_use(lease.main_pid);
    if (!use.ok()) continue;
    const NetCount net = net_count(lease.main_pid);
    const std::string group = cgroup_of(lease.main_pid);
    std::uint64_t gpu_memory = 0;
    for (const auto& holder : holders) {
      if (cgroup_of(static_cast<pid_t>(holder.pid)) == group) gpu_memory += holder.memory_bytes;
    }
    json::object row{{"lease", lease.lease},
                     {"cpu_ns", use->cpu_ns},
                     {"memory_bytes", use->memory_bytes},
                     {"pids", use->pids},
                     {"rx_bytes", net.rx_bytes},
                     {"tx_bytes", net.tx_bytes},
                     {"gpu_memory_bytes", gpu_memory}};
    if (const auto way = ways.leases.find(lease.lease); way != ways.leases.end())
      row["egress"] = counters_json(lease.lease, way->second);
    rows.push_back(std::move(row));
  }
  const Gate gate = guard_.gate();
  Answer answer;
  answer.fields["usage"] = rows;
  answer.fields["owner"] =
      json::object{{"open", gate.open}, {"stop", gate.stop}, {"reason", gate.reason}, {"text", gate.text}};
  return answer;
}

// What belongs to the engine is as new as its answer; the rest costs programs that are run.
Versions Privd::versions_of(const EngineInfo& info) {
  const std::lock_guard lock(versions_mutex_);
  const LeaseTime now = read_clocks().lease;
  if (!versions_ || now - versions_at_ > kVersionsEvery) versions_ = version_sources(), versions_at_ = now;
  auto parts = engine_parts_of(info.parts);
  if (info.kind == "venv")
    for (const auto component : {scan::kDocker, scan::kPodman, scan::kContainerd, scan::kRunc, scan::kCrun})
      parts.try_emplace(std::string(component), "none");
  return installed_versions(*versions_, parts);
}

Result<Answer> Privd::dispatch(const Verb& verb, std::vector<Fd>& fds, const ClientPtr& client) {
  Answer answer;
  switch (verb.kind) {
    case VerbKind::Info: {
      const EngineInfo info = TRY(runtime_.info());
      json::array images;
      json::object bytes;
      for (const auto& image : info.images) {
        if (!grants_.pulled(image)) continue;  // the owner's own are nobody's business
        images.emplace_back(image);
        if (const auto size = info.image_bytes.find(image); size != info.image_bytes.end()) bytes[image] = size->second;
      }
      json::array runtimes;
      for (const auto runtime : info.runtimes) runtimes.emplace_back(runtime == RuntimeKind::Venv ? "venv" : "docker");
      json::object versions;
      for (const auto& [component, version] : versions_of(info)) versions[component] = scan::text(version);
      answer.fields = {{"kind", info.kind},          {"version", info.version}, {"api", info.api},
                       {"arch", info.arch},          {"gpu", info.gpu_mode},    {"images", images},
                       {"runtimes", runtimes},       {"image_bytes", bytes},    {"versions", versions},
                       {"own_users", info.own_users}};
      return answer;
    }
    case VerbKind::List:
      return list();
    case VerbKind::Usage:
      return usage();
    case VerbKind::Pull:
      return pull(verb, fds, client);
    case VerbKind::Cancel:
      return answer;
    case VerbKind::ProbeStart:
      TRY_VOID(guard_.allowed());
      TRY_VOID(grants_.image_allowed(verb.image, TRY(load_policy(options_.layout.policy()))));
      TRY_VOID(runtime_.start_probe(verb.lease, verb.image));
      return answer;
    case VerbKind::ProbeStop:
      TRY_VOID(runtime_.stop_probe(verb.lease));
      return answer;
    case VerbKind::Launch:
      return launch(verb);
    case VerbKind::Secret:
      TRY_VOID(runtime_.put_secret(verb.lease, verb.secret));
      return answer;
    case VerbKind::TpmSign: {
      if (!options_.tpm)
        return error(Code::FailedPrecondition,
                     options_.tpm_fault.empty() ? "this machine has no key in a TPM" : options_.tpm_fault, "tpm");
      const std::lock_guard lock(tpm_mutex_);
      answer.fields["signature"] = base64(TRY(options_.tpm->sign(crypto::kTpmHelloDomain, verb.secret)));
      return answer;
    }
    case VerbKind::Identity:
      TRY_VOID(runtime_.put_identity(verb.lease, verb.path, verb.secret));
      return answer;
    case VerbKind::Blob:
      if (fds.size() != 1) return error(Code::InvalidArgument, "a blob comes with exactly one descriptor", "fds");
      TRY_VOID(runtime_.put_blob(verb.lease, verb.blob, fds[0].get()));
      return answer;
    case VerbKind::Stop:
      TRY_VOID(stop_lease(verb.lease, guard_.gate().stop ? std::min(verb.grace_s, kOwnerGrace) : verb.grace_s));
      return answer;
    case VerbKind::Remove:
      TRY_VOID(runtime_.remove(verb.lease));
      grants_.release(verb.lease);
      guard_.poke();
      if (egress_ != nullptr) egress_->close(verb.lease);
      return answer;
    case VerbKind::Helper:
      answer.fds.push_back(TRY(runtime_.connect_helper(verb.lease, verb.place)));
      return answer;
    case VerbKind::Exec: {
      const Policy policy = TRY(load_policy(options_.layout.policy()));
      if (!policy.exec_allowed)
        return error(Code::PermissionDenied, "the owner's policy allows no commands in containers", "owner.exec");
      ExecOpen open = TRY(runtime_.exec(verb.lease, verb.argv, verb.tty));
      answer.fields["exec"] = open.exec;
      answer.fds.push_back(std::move(open.stream));
      return answer;
    }
    case VerbKind::Resize:
      TRY_VOID(runtime_.resize(verb.lease, verb.exec, verb.rows, verb.cols));
      return answer;
    case VerbKind::ExecCode:
      answer.fields["exit_code"] = TRY(runtime_.exec_code(verb.lease, verb.exec));
      return answer;
    case VerbKind::Tcp:
      answer.fds.push_back(TRY(runtime_.connect_tcp(verb.lease, verb.address, verb.port)));
      return answer;
    case VerbKind::ReadArchive:
      return open_archive(verb, true);
    case VerbKind::WriteArchive:
      return open_archive(verb, false);
    case VerbKind::PutFiles:
      if (fds.size() != 1) return error(Code::InvalidArgument, "files come with exactly one descriptor", "fds");
      TRY_VOID(put_files(verb, fds[0].get()));
      return answer;
    case VerbKind::Tun:
      answer.fds.push_back(TRY(runtime_.open_tun(verb.lease)));
      return answer;
    case VerbKind::Logs:
      answer.fields["text"] = printable(TRY(runtime_.logs(verb.lease, kLogsBytesMax)));
      return answer;
    case VerbKind::Egress: {
      json::array rows;
      if (egress_ != nullptr) {
        for (const auto& [lease, counters] : egress_->report(true).leases)
          rows.push_back(counters_json(lease, counters));
      }
      answer.fields["egress"] = rows;
      return answer;
    }
    case VerbKind::RemoveEverything:
      TRY_VOID(runtime_.remove_everything());
      return answer;
  }
  return error(Code::Unsupported, "privd knows no such verb", "verb");
}

}  // namespace muster::host
