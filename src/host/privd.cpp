#include "host/privd.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>
#include <thread>

#include "base/log.h"
#include "host/json.h"
#include "host/policy.h"

namespace muster::host {
namespace {

int minute_of_day() {
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local.tm_hour * 60 + local.tm_min;
}

}  // namespace

Privd::Privd(PrivdOptions options, Runtime& runtime) : options_(std::move(options)), runtime_(runtime) {}

Privd::~Privd() {
  stop();
}

Status Privd::listen() {
  listener_ = TRY(listen_unix(options_.layout.privd_socket(), SocketKind::Seqpacket, 0, options_.agent_gid, 0660));
  return {};
}

void Privd::stop() {
  stopping_ = true;
}

void Privd::run() {
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
    std::thread([this, client] { serve(client); }).detach();
  }
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::seconds(10), [this] { return active_ == 0; });
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
    std::thread([this, client, v = std::move(*verb), fds = std::move(message->fds)]() mutable {
      perform(client, std::move(v), std::move(fds));
      const std::lock_guard lock(mutex_);
      --active_;
      changed_.notify_all();
    }).detach();
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

Status Privd::allowed_now() const {
  struct stat info {};
  if (stat(options_.layout.paused().c_str(), &info) == 0) {
    return error(Code::PermissionDenied, "the owner has paused this machine; `muster-agent resume` ends that",
                 "owner.paused");
  }
  const Policy policy = TRY(load_policy(options_.layout.policy()));
  if (!hour_allowed(policy, minute_of_day())) {
    return error(Code::PermissionDenied, "the owner's policy allows no work at this hour", "owner.hours");
  }
  return {};
}

Result<Answer> Privd::launch(const Verb& verb) {
  TRY_VOID(allowed_now());
  const Policy policy = TRY(load_policy(options_.layout.policy()));
  const auto leases = TRY(runtime_.list());
  const bool known =
      std::any_of(leases.begin(), leases.end(), [&](const LeaseState& l) { return l.lease == verb.lease; });
  if (!known && static_cast<std::int64_t>(leases.size()) >= policy.max_leases) {
    return error(Code::PermissionDenied,
                 fmt::format("the owner's policy allows {} leases at a time", policy.max_leases), "owner.max_leases");
  }
  LaunchSpec spec = verb.launch;
  if (policy.max_gpus >= 0 && static_cast<std::int64_t>(spec.devices.size()) > policy.max_gpus) {
    return error(Code::PermissionDenied, fmt::format("the owner's policy allows {} GPUs", policy.max_gpus),
                 "owner.max_gpus");
  }
  if (policy.max_cpu_milli > 0)
    spec.cpu_milli = spec.cpu_milli == 0 ? policy.max_cpu_milli : std::min(spec.cpu_milli, policy.max_cpu_milli);
  if (policy.max_memory_bytes > 0 && (spec.memory_bytes == 0 || spec.memory_bytes > policy.max_memory_bytes)) {
    return error(Code::PermissionDenied, "the lease asks for more memory than the owner's policy allows",
                 "owner.max_memory");
  }
  const Launched told = TRY(runtime_.launch(spec));
  Answer answer;
  json::array warnings;
  for (const auto& warning : told.warnings) warnings.emplace_back(warning);
  answer.fields["warnings"] = warnings;
  return answer;
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
Status Privd::stop_lease(const Verb& verb) {
  TRY_VOID(runtime_.stop(verb.lease, verb.grace_s));
  {
    std::unique_lock lock(mutex_);
    if (!busy_.contains(verb.lease)) return {};
    if (!changed_.wait_for(lock, std::chrono::seconds(120), [&] { return !busy_.contains(verb.lease); })) {
      return error(Code::Unavailable, "another operation on this lease takes too long", "busy");
    }
  }
  return runtime_.stop(verb.lease, 0);
}

Result<Answer> Privd::dispatch(const Verb& verb, std::vector<Fd>& fds, const ClientPtr& client) {
  Answer answer;
  switch (verb.kind) {
    case VerbKind::Info: {
      const EngineInfo info = TRY(runtime_.info());
      json::array images;
      for (const auto& image : info.images) images.emplace_back(image);
      answer.fields = {{"kind", info.kind}, {"version", info.version}, {"api", info.api},
                       {"arch", info.arch}, {"gpu", info.gpu_mode},    {"images", images}};
      return answer;
    }
    case VerbKind::List: {
      json::array rows;
      for (const auto& s : TRY(runtime_.list())) {
        rows.push_back(json::object{{"lease", s.lease},
                                    {"namespace_up", s.namespace_up},
                                    {"exists", s.exists},
                                    {"running", s.running},
                                    {"exit_code", s.exit_code},
                                    {"oom", s.out_of_memory}});
      }
      answer.fields["leases"] = rows;
      return answer;
    }
    case VerbKind::Usage: {
      json::array rows;
      for (const auto& u : TRY(runtime_.usage())) {
        rows.push_back(
            json::object{{"lease", u.lease}, {"cpu_ns", u.cpu_ns}, {"memory_bytes", u.memory_bytes}, {"pids", u.pids}});
      }
      answer.fields["usage"] = rows;
      return answer;
    }
    case VerbKind::Pull: {
      const Policy policy = TRY(load_policy(options_.layout.policy()));
      if (!image_allowed(policy, verb.image)) {
        return error(Code::PermissionDenied, "the owner's policy does not allow this image", "owner.image");
      }
      auto last = std::chrono::steady_clock::time_point{};
      answer.fields["digest"] = TRY(runtime_.pull(verb.image, verb.auth, [&](std::uint64_t done, std::uint64_t total) {
        const auto now = std::chrono::steady_clock::now();
        if (now - last > std::chrono::seconds(1)) {
          last = now;
          reply(client, progress_text(verb.id, done, total), {});
        }
        const std::lock_guard lock(mutex_);
        return !cancelled_.contains(verb.id) && !stopping_;
      }));
      return answer;
    }
    case VerbKind::Cancel:
      return answer;
    case VerbKind::ProbeStart:
      TRY_VOID(allowed_now());
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
    case VerbKind::Blob:
      if (fds.size() != 1) return error(Code::InvalidArgument, "a blob comes with exactly one descriptor", "fds");
      TRY_VOID(runtime_.put_blob(verb.lease, verb.blob, fds[0].get()));
      return answer;
    case VerbKind::Stop:
      TRY_VOID(stop_lease(verb));
      return answer;
    case VerbKind::Remove:
      TRY_VOID(runtime_.remove(verb.lease));
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
    case VerbKind::RemoveEverything:
      TRY_VOID(runtime_.remove_everything());
      return answer;
  }
  return error(Code::Unsupported, "privd knows no such verb", "verb");
}

}  // namespace muster::host
