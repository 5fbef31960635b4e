// Executor, first half: operations on images and on the life of a lease.
#include "host/executor.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/log.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "host/image_signature.h"
#include "host/registry_reader.h"
#include "model/image_name.h"
#include "model/image_policy.h"
#include "model/venv_image.h"
#include "overlay/roster.h"
#include "wire/agent_frames.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr int kProbeTriesMax = 600;     // of 100 ms
constexpr Millis kListsWithin{30'000};  // longer, and the image counts as not wholly looked at
constexpr int kHelperTriesMax = 1200;   // of 50 ms
constexpr std::size_t kSignedMax = 256;

std::string address_text(std::uint32_t address) {
  in_addr raw{htonl(address)};
  char text[INET_ADDRSTRLEN] = {};
  inet_ntop(AF_INET, &raw, text, sizeof text);
  return text;
}

json::object string_map(const std::map<std::string, std::string>& map) {
  json::object out;
  for (const auto& [key, value] : map) out[key] = value;
  return out;
}

}  // namespace

Executor::Executor(Poller& poller, PrivdClient& privd, OverlayPort& overlay, const crypto::SigningKey& device,
                   Layout layout, ExecutorHooks hooks)
    : poller_(poller),
      privd_(privd),
      overlay_(overlay),
      device_(device),
      layout_(std::move(layout)),
      hooks_(std::move(hooks)),
      blobs_(layout_.blobs()),
      alive_(std::make_shared<bool>(true)) {
  std::error_code ignored;
  fs::create_directories(layout_.assignments(), ignored);
  load_probes();
  door_->poller = &poller_;
}

Executor::~Executor() {
  *alive_ = false;
  const std::lock_guard lock(door_->mutex);
  door_->poller = nullptr;
}

void Executor::start(agent::OpId id, const agent::Op& op) {
  std::visit([&](const auto& each) { perform(id, each); }, op);
}

void Executor::cancel(agent::OpId id) {
  if (const auto pull = pulls_.find(id); pull != pulls_.end()) privd_.cancel(pull->second);
  if (probing_.contains(id)) end_probe(id, error(Code::Cancelled, "no longer wanted", "cancelled"));
  for (auto& [lease, run] : runs_) {
    if (run.setup == id) run.setup = 0;
    if (run.drain == id) run.drain = 0;
  }
}

void Executor::succeed(agent::OpId id) {
  hooks_.result(agent::OpResult{id, true, {}, false, {}});
}
void Executor::succeed(agent::OpId id, agent::ImageReady value) {
  hooks_.result(agent::OpResult{id, true, {}, false, std::move(value)});
}

void Executor::fail(agent::OpId id, const Error& why, std::string_view fallback) {
  log_warn("agent", "{}", why.message);
  const std::string reason = why.field.empty() ? std::string(fallback) : why.field;
  const bool permanent = why.code == Code::PermissionDenied || why.code == Code::Unsupported ||
                         why.code == Code::InvalidArgument || reason == "image_pull.not_found" ||
                         reason == "image_pull.denied" || reason == "image_pull.tls" || reason == "gpu.toolkit" ||
                         reason == "venv.python" || reason == "venv.tools" || reason == "venv.lock";
  fail_code(id, reason, permanent);
}

void Executor::fail_code(agent::OpId id, std::string reason, bool permanent, std::string output) {
  hooks_.result(agent::OpResult{id, false, std::move(reason), permanent, {}, std::move(output)});
}

void Executor::call(VerbKind kind, LeaseId lease, PrivdDone done) {
  Verb verb;
  verb.kind = kind;
  verb.lease = lease.str();
  privd_.call(std::move(verb), std::move(done));
}

// ---- images
void Executor::perform(agent::OpId id, const agent::EnsureImage& op) {
  const bool venv = op.runtime == RuntimeKind::Venv;
  Verb verb;
  verb.kind = VerbKind::Pull;
  verb.image = op.image;
  verb.auth = {op.registry_user, as_string(op.registry_password)};
  if (!valid_image(op.image) || venv != is_venv_image(op.image))
    return fail_code(id, venv ? "venv.reference" : "image.name", true);
  Fd lock;
  if (!op.lock.empty()) {
    auto opened = blobs_.open(op.lock);
    if (!opened.ok()) return fail(id, opened.error(), "venv.lock_missing");
    lock = std::move(*opened);
  }
  pulls_[id] = privd_.call(
      std::move(verb),
      [this, id, venv, op](Result<PrivdReply> reply) {
        pulls_.erase(id);
        if (!reply.ok()) return fail(id, reply.error(), venv ? "venv.failed" : "image_pull.failed");
        agent::ImageReady ready{text_at(reply->fields, {"digest"}), text_at(reply->fields, {"pinned"}), {}};
        if (!reply->fds.empty()) ready.lock = keep_lock(reply->fds[0].get());
        for (const std::string* name : {&op.image, &op.asked}) ordered_.note(ready.digest, *name);
        admit(id, op, std::move(ready));
      },
      [this, lease = op.lease](std::uint64_t done, std::uint64_t total) {
        hooks_.event(agent::PullProgress{lease, done, total});
      },
      lock ? std::vector<int>{lock.get()} : std::vector<int>{});
}

// Nothing of the image has run yet. What is judged here, by its digest, is what runs.
void Executor::admit(agent::OpId id, const agent::EnsureImage& op, agent::ImageReady ready) {
  std::vector<std::string> digests{ready.digest};
  if (std::string pinned = image_digest(ready.pinned); !pinned.empty()) digests.push_back(std::move(pinned));
  std::vector<std::vector<std::string>> keys;
  for (const ImagePolicy& policy : op.policies) {
    if (const auto refusal = image_refusal(policy, "the tenant", op.asked, digests)) {
      log_warn("agent", "{}: {}", op.lease.str(), refusal->text);
      return fail_code(id, refusal->code, true);
    }
    if (!policy.keys.empty()) keys.push_back(policy.keys);
  }
  if (keys.empty()) return succeed(id, std::move(ready));
  check_signatures(id, op, std::move(ready), std::move(keys));
}

void Executor::check_signatures(agent::OpId id, const agent::EnsureImage& op, agent::ImageReady ready,
                                std::vector<std::vector<std::string>> keys) {
  std::string judged = ready.pinned;
  for (const auto& list : keys)
    for (const std::string& key : list) judged += " " + crypto::sha256_hex(as_bytes(key));
  if (signed_.contains(judged)) return succeed(id, std::move(ready));
  RegistryAuth auth{op.registry_user, as_string(op.registry_password)};
  std::thread([this, id, ready = std::move(ready), keys = std::move(keys), auth = std::move(auth), judged,
               door = door_]() mutable {
    RegistryReader registry(image_repository(ready.pinned), std::move(auth));
    const SignatureSource source{
        [&](const std::string& tag) { return registry.manifest(tag); },
        [&](const std::string& digest, std::size_t bytes_max) { return registry.blob(digest, bytes_max); }};
    const Status good = check_image_signature(source, ready.pinned, keys);
    const std::lock_guard lock(door->mutex);
    if (door->poller == nullptr) return;
    door->poller->post([this, id, ready = std::move(ready), judged = std::move(judged), good, door]() mutable {
      if (door->poller == nullptr) return;
      if (!good.ok()) return fail(id, good.error(), "image_signature.unreachable");
      if (signed_.size() >= kSignedMax) signed_.clear();
      signed_.insert(std::move(judged));
      succeed(id, std::move(ready));
    });
  }).detach();
}

// The lock of a virtual environment is a blob like any other, so that it is here again after a restart.
Bytes Executor::keep_lock(int fd) {
  Bytes out;
  std::array<std::uint8_t, 16384> buffer;
  for (ssize_t n = 0; (n = read(fd, buffer.data(), buffer.size())) != 0;) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 || out.size() > kVenvLockBytesMax) return {};
    out.insert(out.end(), buffer.begin(), buffer.begin() + n);
  }
  const std::string name = crypto::sha256_hex(out);
  const auto known = blobs_.find(name);
  if (known.ok() && !known->complete)
    (void)blobs_.write(name, known->have, ByteView(out).subspan(std::min<std::size_t>(known->have, out.size())), true)
        .ok();
  return out;
}

Bytes Executor::lock_of(const std::string& pinned) {
  const auto image = parse_venv_image(pinned);
  if (!image.ok() || image->lock.empty()) return {};
  const auto file = blobs_.open(image->lock);
  return file.ok() ? keep_lock(file->get()) : Bytes{};
}

void Executor::perform(agent::OpId id, const agent::ProbeImage& op) {
  if (const auto known = probes_.find(op.digest); known != probes_.end()) {
    if (std::string packages = packages_.of(op.digest); !packages.empty()) {
      hooks_.result(agent::OpResult{id, true, {}, false, known->second, {}, std::move(packages)});
      return;
    }
  }
  Probe& probe = probing_[id];
  probe.lease = op.lease;
  probe.digest = op.digest;
  probe.runtime = op.runtime;
  Verb verb;
  verb.kind = VerbKind::ProbeStart;
  verb.lease = op.lease.str();
  verb.image = op.digest;
  privd_.call(std::move(verb), [this, id](Result<PrivdReply> reply) {
    if (!probing_.contains(id)) return;
    if (!reply.ok()) return end_probe(id, reply.error());
    connect_probe(id);
  });
}

void Executor::connect_probe(agent::OpId id) {
  const auto it = probing_.find(id);
  if (it == probing_.end() || it->second.link) return;
  if (++it->second.tries > kProbeTriesMax)
    return end_probe(
        id, error(Code::DeadlineExceeded, "the image's Python did not answer the probe", "image_probe.no_answer"));
  Verb verb;
  verb.kind = VerbKind::Helper;
  verb.lease = it->second.lease.str();
  verb.place = Place::Probe;
  privd_.call(std::move(verb), [this, id](Result<PrivdReply> reply) {
    const auto found = probing_.find(id);
    if (found == probing_.end()) return;
    if (!reply.ok() || reply->fds.empty()) {
      poller_.after(Millis(100), [this, id] { connect_probe(id); });
      return;
    }
    found->second.link = std::make_unique<HelperLink>(
        poller_, std::move(reply->fds[0]), [this, id](HelperEvent event) { on_probe(id, std::move(event)); },
        [this, id] {
          poller_.post([this, id, alive = alive_] {
            if (!*alive || !probing_.contains(id)) return;
            if (probing_.at(id).found) return end_lists(id, false);
            end_probe(id, error(Code::Unavailable, "the probe's container ended", "image_probe.exited"));
          });
        });
    found->second.link->send(json::object{{"op", "probe"}});
  });
}

// In the middle of its line's work, which must not end under it: what ends the probe is posted.
void Executor::on_probe(agent::OpId id, HelperEvent event) {
  const auto it = probing_.find(id);
  if (it == probing_.end()) return;
  const auto later = [&](auto act) {
    poller_.post([act = std::move(act), alive = alive_] {
      if (*alive) act();
    });
  };
  if (auto* list = std::get_if<HelperList>(&event)) {
    if (it->second.found) it->second.lists.take(std::move(*list));
  } else if (const auto* end = std::get_if<HelperListsEnd>(&event)) {
    if (it->second.found) later([this, id, whole = end->whole] { end_lists(id, whole); });
  } else if (const auto* fault = std::get_if<HelperFault>(&event)) {
    if (it->second.found && fault->op == "lists") later([this, id] { end_lists(id, false); });
  } else if (const auto* seen = std::get_if<HelperProbe>(&event)) {
    ImageProbe found{it->second.digest, seen->ray, seen->python, seen->token_auth, seen->rocksdb};
    if (it->second.found) return;
    if (found.ray_version.empty() || !found.token_auth)  // it will not run
      later([this, id, found] { end_probe(id, found); });
    else
      ask_lists(id, std::move(found));
  }
}

void Executor::ask_lists(agent::OpId id, ImageProbe found) {
  Probe& probe = probing_.at(id);
  probe.found = std::move(found);
  probe.link->send(json::object{{"op", "lists"}, {"venv", probe.runtime == RuntimeKind::Venv}});
  poller_.after(kListsWithin, [this, id, alive = alive_] {
    if (*alive) end_lists(id, false);
  });
}

void Executor::end_lists(agent::OpId id, bool whole) {
  const auto it = probing_.find(id);
  if (it == probing_.end() || !it->second.found) return;
  packages_.keep(it->second.digest, it->second.lists.end(whole));
  end_probe(id, *it->second.found);
}

void Executor::end_probe(agent::OpId id, Result<ImageProbe> outcome) {
  const auto it = probing_.find(id);
  if (it == probing_.end()) return;
  const LeaseId lease = it->second.lease;
  probing_.erase(it);
  call(VerbKind::ProbeStop, lease, [](const Result<PrivdReply>&) {});
  if (!outcome.ok()) {
    if (outcome.error().code != Code::Cancelled) fail(id, outcome.error(), "image_probe.failed");
    return;
  }
  if (outcome->ray_version.empty()) return fail_code(id, "image_probe.no_ray", true);
  if (probes_.size() >= 64) probes_.erase(probes_.begin());
  probes_[outcome->digest] = *outcome;
  save_probes();
  hooks_.result(agent::OpResult{id, true, {}, false, *outcome, {}, packages_.of(outcome->digest)});
}

// ---- the life of a lease
void Executor::perform(agent::OpId id, const agent::CreateLease& op) {
  const Assignment& a = op.assignment;
  Run& run = runs_[a.lease];
  run.assignment = a;
  run.digest = op.digest;
  run.pinned = op.pinned;
  save_assignment(a, op.digest + " " + op.pinned);
  Verb verb;
  verb.kind = VerbKind::Launch;
  verb.lease = a.lease.str();
  LaunchSpec& spec = verb.launch;
  spec.lease = verb.lease;
  spec.image = op.digest;
  spec.cpu_milli = a.resources.cpu_milli;
  spec.memory_bytes = a.resources.memory_bytes;
  spec.shm_bytes = a.shm_bytes > 0
                       ? a.shm_bytes
                       : std::max<std::int64_t>(a.resources.object_store_bytes + (64 << 20), std::int64_t{256} << 20);
  spec.nofile = a.nofile;
  spec.workspace_bytes_max = a.resources.disk_bytes;
  spec.devices = a.devices;
  spec.gpu_share_milli = a.gpu_share_milli;
  spec.env = a.env;
  spec.address = a.address;
  spec.prefix_bits = a.prefix_bits;
  spec.head = a.role == SlotRole::Head;
  spec.group = a.group;
  spec.egress = a.egress;
  privd_.call(std::move(verb), [this, id, lease = a.lease](Result<PrivdReply> reply) {
    if (!reply.ok()) return fail(id, reply.error(), "container.create");
    if (const auto* warnings = reply->fields.if_contains("warnings"); warnings != nullptr && warnings->is_array()) {
      for (const auto& warning : warnings->get_array())
        log_warn("agent", "{}: {}", lease.str(), warning.is_string() ? warning.get_string().c_str() : "");
    }
    const auto it = runs_.find(lease);
    if (it == runs_.end()) return fail_code(id, "cancelled", false);
    it->second.wanted = true;
    connect_helper(lease);
    const Assignment& want = it->second.assignment;
    overlay_.attach({lease, want.address, want.prefix_bits}, [this, id, lease](Result<OverlayPort::Attached> attached) {
      if (!attached.ok()) return fail(id, attached.error(), "overlay.attach");
      const Bytes& key = attached->key;
      const auto found = runs_.find(lease);
      const auto key32 = crypto::key32(key);
      if (found == runs_.end() || !key32) return fail_code(id, "overlay.attach", false);
      const Assignment& own = found->second.assignment;
      const overlay::LeaseEpoch epoch{own.epoch.incarnation, own.epoch.leader, own.epoch.counter};
      found->second.overlay_key = key;
      found->second.overlay_signature = overlay::sign_overlay_key(device_, own.cluster.value, epoch, *key32);
      hooks_.result(agent::OpResult{id, true, {}, false, agent::LeaseCreated{key, found->second.overlay_signature}});
    });
  });
}

void Executor::perform(agent::OpId id, const agent::ConfigureNetwork& op) {
  overlay_.configure(op, roster_signer_ ? roster_signer_(op.roster) : Bytes(),
                     [this, id, lease = op.lease, epoch = op.roster_epoch](const Status& done) {
                       if (!done.ok()) return fail(id, done.error(), "overlay.configure");
                       if (const auto it = runs_.find(lease); it != runs_.end()) it->second.roster_epoch = epoch;
                       succeed(id);
                     });
}

void Executor::perform(agent::OpId id, const agent::RunSetup& op) {
  copy_files(id, op.lease, op.files, 0, op.commands);
}

// One file mount after the other.
void Executor::copy_files(agent::OpId id, LeaseId lease, std::vector<FileMount> files, std::size_t next,
                          std::vector<std::string> commands, int tries) {
  const auto it = runs_.find(lease);
  if (it == runs_.end()) return fail_code(id, "container.missing", false);
  if (next < files.size()) {
    if (std::string& path = files[next].path; path == "~" || path.starts_with("~/")) {
      // The home of the container's user: its helper says it first of all.
      if (!it->second.hello_seen) {
        if (tries > kHelperTriesMax) return fail_code(id, "helper.missing", false);
        return with_helper(id, lease, [=, this, alive = alive_](Run&) {
          poller_.after(Millis(50), [=, this] {
            if (*alive) copy_files(id, lease, files, next, commands, tries + 1);
          });
        });
      }
      path = it->second.hello.home + path.substr(1);
    }
    if (!valid_path(files[next].path)) return fail_code(id, "setup.path", true);
    auto source = blobs_.open(files[next].blob);
    if (!source.ok()) return fail(id, source.error(), "setup.files");
    Verb put;
    put.kind = VerbKind::PutFiles;
    put.lease = lease.str();
    put.path = files[next].path;
    privd_.call(std::move(put),
                [=, this](Result<PrivdReply> done) {
                  if (!done.ok()) return fail(id, done.error(), "setup.files");
                  copy_files(id, lease, files, next + 1, commands);
                },
                {}, {source->get()});
    return;
  }
  Run& run = it->second;
  if (commands.empty()) return succeed(id);
  run.setup = id;
  json::array list;
  for (const auto& command : commands) list.emplace_back(command);
  const json::object order{{"op", "setup"},
                           {"commands", list},
                           {"env", string_map(run.assignment.env)},
                           {"head_ip", address_text(run.assignment.head_address)}};
  with_helper(id, lease, [order](Run& ready) { ready.link->send(order); });
}

// A container's Python needs a moment before it listens: orders wait for it, as long as the lease is wanted.
void Executor::with_helper(agent::OpId id, LeaseId lease, std::function<void(Run&)> order, int tries) {
  const auto it = runs_.find(lease);
  if (it == runs_.end() || !it->second.wanted || tries > kHelperTriesMax) {
    if (it != runs_.end() && it->second.setup == id) it->second.setup = 0;
    return fail_code(id, "helper.missing", false);
  }
  if (it->second.link) return order(it->second);
  connect_helper(lease);
  poller_.after(Millis(50), [this, id, lease, order = std::move(order), tries, alive = alive_]() mutable {
    if (*alive) with_helper(id, lease, std::move(order), tries + 1);
  });
}

void Executor::perform(agent::OpId id, const agent::StartRay& op) {
  const auto go = [this, id, op] {
    json::object custom;
    for (const auto& [name, milli] : op.resources.custom_milli) custom[name] = static_cast<double>(milli) / 1000.0;
    const json::object order{{"op", "ray_start"},
                             {"role", op.role == SlotRole::Head ? "head" : "worker"},
                             {"ip", address_text(op.address)},
                             {"head_ip", address_text(op.head_address)},
                             {"num_cpus", static_cast<double>(op.resources.cpu_milli) / 1000.0},
                             {"num_gpus", op.resources.gpus},
                             {"memory", op.resources.memory_bytes},
                             {"object_store_memory", op.resources.object_store_bytes},
                             {"resources", custom},
                             {"labels", string_map(op.labels)},
                             {"restarts", op.restarts}};
    with_helper(id, op.lease, [this, id, order](Run& run) {
      run.ray_started = true;
      run.hello.phase = "starting";
      run.link->send(order);
      succeed(id);
    });
  };
  if (op.ray_token.empty()) return go();
  Verb verb;
  verb.kind = VerbKind::Secret;
  verb.lease = op.lease.str();
  verb.secret = op.ray_token;
  privd_.call(std::move(verb), [this, id, go](Result<PrivdReply> reply) {
    if (!reply.ok()) return fail(id, reply.error(), "secret");
    go();
  });
}

void Executor::perform(agent::OpId id, const agent::PutIdentity& op) {
  Verb verb;
  verb.kind = VerbKind::Identity;
  verb.lease = op.lease.str();
  verb.path = op.token.name;
  verb.secret = op.token.token;
  privd_.call(std::move(verb), [this, id](Result<PrivdReply> reply) {
    if (!reply.ok()) return fail(id, reply.error(), "identity");
    succeed(id);
  });
}

void Executor::perform(agent::OpId id, const agent::DrainRay& op) {
  const auto it = runs_.find(op.lease);
  if (it == runs_.end() || !it->second.link) return succeed(id);  // nothing runs that could be drained
  it->second.drain = id;
  it->second.link->send(json::object{{"op", "ray_drain"}, {"deadline_s", op.deadline.count() / 1000}});
  poller_.after(op.deadline, [this, id, lease = op.lease, alive = alive_] {
    if (!*alive) return;
    const auto run = runs_.find(lease);
    if (run == runs_.end() || run->second.drain != id) return;
    run->second.drain = 0;
    succeed(id);
  });
}

void Executor::perform(agent::OpId id, const agent::StopLease& op) {
  if (const auto it = runs_.find(op.lease); it != runs_.end()) it->second.wanted = false;
  Verb verb;
  verb.kind = VerbKind::Stop;
  verb.lease = op.lease.str();
  verb.grace_s = static_cast<int>(std::clamp<std::int64_t>(op.grace.count() / 1000, 0, 600));
  log_info("agent", "stopping {}: {}", op.lease.str(), op.why.empty() ? "asked to" : op.why);
  overlay_.detach(op.lease, false, [](const Status&) {});
  privd_.call(std::move(verb), [this, id, lease = op.lease](Result<PrivdReply> reply) {
    if (!reply.ok()) return fail(id, reply.error(), "container.stop");
    if (const auto it = runs_.find(lease); it != runs_.end()) it->second.link.reset();
    succeed(id);
  });
}

void Executor::perform(agent::OpId id, const agent::RemoveLease& op) {
  runs_.erase(op.lease);
  overlay_.detach(op.lease, true, [](const Status&) {});
  std::error_code ignored;
  fs::remove(layout_.assignments() + "/" + op.lease.str(), ignored);
  call(VerbKind::Remove, op.lease, [this, id](Result<PrivdReply> reply) {
    if (!reply.ok()) return fail(id, reply.error(), "container.remove");
    succeed(id);
  });
}

// ---- what is kept over a restart
void Executor::save_assignment(const Assignment& assignment, const std::string& image) {
  session::Desired kept;
  kept.assignments.push_back(assignment);
  Bytes bytes = to_bytes(image + "\n");
  const Bytes encoded = wire::encode(session::ServerFrame(kept));
  bytes.insert(bytes.end(), encoded.begin(), encoded.end());
  const Status written = crypto::write_secret_file(layout_.assignments() + "/" + assignment.lease.str(), bytes);
  if (!written.ok()) log_error("agent", "{}", written.error().message);
}

bool Executor::load_assignment(LeaseId lease, Run& run) {
  const auto bytes = crypto::read_secret_file(layout_.assignments() + "/" + lease.str());
  if (!bytes.ok()) return false;
  const auto newline = std::find(bytes->begin(), bytes->end(), '\n');
  if (newline == bytes->end()) return false;
  run.digest.assign(bytes->begin(), newline);
  if (const auto space = run.digest.find(' '); space != std::string::npos) {
    run.pinned = run.digest.substr(space + 1);
    run.digest.resize(space);
  }
  const auto frame =
      wire::decode_server_frame(ByteView(&*newline + 1, static_cast<std::size_t>(bytes->end() - newline - 1)));
  const auto* desired = frame.ok() ? std::get_if<session::Desired>(&*frame) : nullptr;
  if (desired == nullptr || desired->assignments.size() != 1) return false;
  run.assignment = desired->assignments[0];
  return run.assignment.lease == lease;
}

void Executor::load_probes() {
  std::ifstream file(layout_.probes());
  std::stringstream text;
  text << file.rdbuf();
  const auto all = parse_object(text.str());
  if (!all.ok()) return;
  for (const auto& member : *all) {
    const auto* row = member.value().if_object();
    if (row == nullptr || probes_.size() >= 64) continue;
    Fields f(*row);
    ImageProbe probe{std::string(member.key()), f.text("ray", 64), f.text("python", 64),
                     f.boolean_or("token_auth", false), f.boolean_or("rocksdb", false)};
    if (f.finish_lenient("probe").ok()) probes_[probe.digest] = probe;
  }
}

void Executor::save_probes() {
  json::object all;
  for (const auto& [digest, p] : probes_)
    all[digest] = json::object{
        {"ray", p.ray_version}, {"python", p.python_version}, {"token_auth", p.token_auth}, {"rocksdb", p.rocksdb}};
  (void)crypto::write_secret_file(layout_.probes(), as_bytes(to_text(all))).ok();
}

}  // namespace muster::host
