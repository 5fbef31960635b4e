#pragma once
// The runtimes of one machine behind one face: the container engine and the sandboxed virtual environment. An image
// says which one it is for, a lease belongs to the one that holds it. What the owner allows is read from the policy at
// every call; without a word of the owner the engine is used where there is one, else the virtual environment.
#include <functional>
#include <string>
#include <vector>

#include "host/docker_runtime.h"
#include "host/policy.h"
#include "host/venv_runtime.h"
#include "model/types.h"

namespace muster::host {

class Runtimes : public Runtime {
 public:
  Runtimes(DockerOptions docker, VenvOptions venv);

  Result<EngineInfo> info() override;
  Result<Pulled> pull(const PullSpec& spec, const Progress& progress) override;
  Status start_probe(const std::string& lease, const std::string& image) override;
  Status stop_probe(const std::string& lease) override;
  Result<Launched> launch(const LaunchSpec& spec) override;
  Status put_secret(const std::string& lease, ByteView ray_token) override;
  Status put_identity(const std::string& lease, const std::string& file, ByteView token) override;
  Status put_blob(const std::string& lease, const std::string& blob, int source) override;
  Status stop(const std::string& lease, int grace_s) override;
  Status remove(const std::string& lease) override;
  Result<std::vector<LeaseState>> list() override;
  std::uint64_t engine_life() override { return docker_.engine_life(); }
  Result<Fd> connect_helper(const std::string& lease, Place place) override;
  Result<ExecOpen> exec(const std::string& lease, const std::vector<std::string>& argv, bool tty) override;
  Status resize(const std::string& lease, const std::string& exec, int rows, int cols) override;
  Result<std::int64_t> exec_code(const std::string& lease, const std::string& exec) override;
  Result<Fd> connect_tcp(const std::string& lease, std::uint32_t address, std::uint16_t port) override;
  Result<Fd> open_tun(const std::string& lease) override;
  Status read_archive(const std::string& lease, const std::string& path, int sink) override;
  Status write_archive(const std::string& lease, const std::string& path, int source) override;
  Result<std::vector<Usage>> usage() override;
  Result<DiskUse> disk(const std::string& lease, const DiskUse& enough) override;
  Status halt(const std::string& lease, const std::string& reason) override;
  Result<std::string> logs(const std::string& lease, std::size_t bytes_max) override;
  Status remove_everything() override;

 private:
  bool engine_wanted() const;  // allowed, and a socket is or should be there
  bool venv_wanted() const;
  Result<Runtime*> for_image(const std::string& digest);
  Runtime& holder(const std::string& lease);

  Layout layout_;
  std::string socket_;
  DockerRuntime docker_;
  VenvRuntime venv_;
};

}  // namespace muster::host
