#include "host/runtimes.h"

#include <algorithm>
#include <filesystem>

#include "model/venv_image.h"

namespace muster::host {
namespace {

bool allows(const Policy& policy, std::string_view runtime) {
  return std::find(policy.runtimes.begin(), policy.runtimes.end(), runtime) != policy.runtimes.end();
}

Error not_here(std::string_view what) {
  return error(Code::PermissionDenied,
               std::string(what) + "; the owner's `runtimes` in policy.json says what may be used",
               "runtime.unsupported");
}

}  // namespace

Runtimes::Runtimes(DockerOptions docker, VenvOptions venv)
    : layout_(docker.layout), socket_(docker.socket), docker_(std::move(docker)), venv_(std::move(venv)) {}

bool Runtimes::engine_wanted() const {
  const auto policy = load_policy(layout_.policy());
  if (!policy.ok()) return true;  // a damaged policy starts nothing, but what runs must still be seen and stopped
  if (!policy->runtimes.empty()) return allows(*policy, "docker");
  return !policy->engine_socket.empty() || std::filesystem::exists(socket_);
}

bool Runtimes::venv_wanted() const {
  const auto policy = load_policy(layout_.policy());
  if (!policy.ok()) return false;
  return policy->runtimes.empty() ? !engine_wanted() : allows(*policy, "venv");
}

Result<EngineInfo> Runtimes::info() {
  const auto venv =
      venv_wanted() ? venv_.info() : Result<EngineInfo>(not_here("virtual environments are not used here"));
  if (!engine_wanted()) return venv;
  auto engine = docker_.info();
  if (!venv.ok()) return engine;
  if (!engine.ok()) return venv;
  engine->images.insert(engine->images.end(), venv->images.begin(), venv->images.end());
  engine->runtimes.insert(engine->runtimes.end(), venv->runtimes.begin(), venv->runtimes.end());
  return engine;
}

Result<Pulled> Runtimes::pull(const PullSpec& spec, const Progress& progress) {
  if (is_venv_image(spec.image)) {
    if (!venv_wanted()) return not_here("this machine runs no virtual environments");
    return venv_.pull(spec, progress);
  }
  if (!engine_wanted()) return not_here("this machine has no container engine");
  return docker_.pull(spec, progress);
}

Result<Runtime*> Runtimes::for_image(const std::string& digest) {
  if (venv_.has_image(digest)) {
    if (!venv_wanted()) return not_here("this machine runs no virtual environments");
    return static_cast<Runtime*>(&venv_);
  }
  if (!engine_wanted()) return not_here("this machine has no container engine");
  return static_cast<Runtime*>(&docker_);
}

Runtime& Runtimes::holder(const std::string& lease) {
  if (venv_.holds(lease) || !engine_wanted()) return venv_;
  return docker_;
}

Status Runtimes::start_probe(const std::string& lease, const std::string& image) {
  Runtime* runtime = TRY(for_image(image));
  return runtime->start_probe(lease, image);
}

Result<Launched> Runtimes::launch(const LaunchSpec& spec) {
  Runtime* runtime = TRY(for_image(spec.image));
  return runtime->launch(spec);
}

Result<std::vector<LeaseState>> Runtimes::list() {
  auto out = TRY(venv_.list());
  if (!engine_wanted()) return out;
  for (auto& state : TRY(docker_.list())) out.push_back(std::move(state));
  return out;
}

Result<std::vector<Usage>> Runtimes::usage() {
  auto out = TRY(venv_.usage());
  if (!engine_wanted()) return out;
  for (auto& use : TRY(docker_.usage())) out.push_back(std::move(use));
  return out;
}

// A lease that is gone everywhere may still have its folder: both forget it.
Status Runtimes::stop(const std::string& lease, int grace_s) {
  return holder(lease).stop(lease, grace_s);
}
Status Runtimes::remove(const std::string& lease) {
  return holder(lease).remove(lease);
}

Status Runtimes::remove_everything() {
  TRY_VOID(venv_.remove_everything());
  return engine_wanted() ? docker_.remove_everything() : Status{};
}

Status Runtimes::stop_probe(const std::string& lease) {
  return holder(lease).stop_probe(lease);
}
Status Runtimes::put_identity(const std::string& lease, const std::string& file, ByteView token) {
  return holder(lease).put_identity(lease, file, token);
}
Status Runtimes::put_secret(const std::string& lease, ByteView ray_token) {
  return holder(lease).put_secret(lease, ray_token);
}
Status Runtimes::put_blob(const std::string& lease, const std::string& blob, int source) {
  return holder(lease).put_blob(lease, blob, source);
}
Result<Fd> Runtimes::connect_helper(const std::string& lease, Place place) {
  return holder(lease).connect_helper(lease, place);
}
Result<ExecOpen> Runtimes::exec(const std::string& lease, const std::vector<std::string>& argv, bool tty) {
  return holder(lease).exec(lease, argv, tty);
}
Status Runtimes::resize(const std::string& lease, const std::string& exec, int rows, int cols) {
  return holder(lease).resize(lease, exec, rows, cols);
}
Result<std::int64_t> Runtimes::exec_code(const std::string& lease, const std::string& exec) {
  return holder(lease).exec_code(lease, exec);
}
Result<Fd> Runtimes::connect_tcp(const std::string& lease, std::uint32_t address, std::uint16_t port) {
  return holder(lease).connect_tcp(lease, address, port);
}
Result<Fd> Runtimes::open_tun(const std::string& lease) {
  return holder(lease).open_tun(lease);
}
Status Runtimes::read_archive(const std::string& lease, const std::string& path, int sink) {
  return holder(lease).read_archive(lease, path, sink);
}
Status Runtimes::write_archive(const std::string& lease, const std::string& path, int source) {
  return holder(lease).write_archive(lease, path, source);
}
Result<DiskUse> Runtimes::disk(const std::string& lease, const DiskUse& enough) {
  return holder(lease).disk(lease, enough);
}
Status Runtimes::halt(const std::string& lease, const std::string& reason) {
  return holder(lease).halt(lease, reason);
}
Result<std::string> Runtimes::logs(const std::string& lease, std::size_t bytes_max) {
  return holder(lease).logs(lease, bytes_max);
}

}  // namespace muster::host
