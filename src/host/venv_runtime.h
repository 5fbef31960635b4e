#pragma once
// Runtime for machines without a container engine: each lease is a bubblewrap sandbox (own user, process, mount,
// message and name namespaces, in the lease's pinned network) around a virtual environment of VenvStore. The processes
// run under one unprivileged uid, without capabilities, under our seccomp profile and the lease's control group. Their
// root is a folder of the lease with this machine's /usr read-only in it; it begins anew with each start, the workspace
// stays. What runs is kept by a process of its own (venv_box.h), so that privd may end and come back. Images are
// references like "venv:ray==2.60.0,python3.11".
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "host/cgroup.h"
#include "host/lease_dirs.h"
#include "host/runtime.h"
#include "host/venv_box.h"
#include "host/venv_store.h"

namespace muster::host {

struct VenvOptions {
  Layout layout;
  std::string machine;                 // unique per enrolment, in the names of control groups
  std::string secrets_root;            // a directory on a tmpfs; empty = chosen
  std::string uv;                      // empty = where it usually is, else pip
  std::function<std::string()> index;  // the owner's package index; empty = PyPI
  // Make and open the persistent TUN in the namespace at that path; replaced in tests.
  std::function<Status(const std::string&, const LaunchSpec&)> make_tun;
  std::function<Result<Fd>(const std::string&)> open_tun;
};

class VenvRuntime : public Runtime {
 public:
  explicit VenvRuntime(VenvOptions options);
  // What this machine lacks to run anything; empty = nothing. Found once.
  const std::string& missing() const { return missing_; }
  bool holds(const std::string& lease) const;  // a sandbox of this lease is here, running or not
  bool has_image(const std::string& digest) const { return store_.locate(digest).ok(); }

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
  std::string box(const std::string& lease, Place place = Place::Main) const;
  std::string network(const std::string& lease) const { return dirs_.dir(lease) + "/network"; }
  std::string group(const std::string& lease, Place place = Place::Main) const;
  Status make_root(const std::string& root, const Venv& venv, const LaunchSpec& spec);
  Result<BoxSpec> describe(const LaunchSpec& spec, const Venv& venv, Place place, Launched* told);
  Status start_box(const std::string& lease, Place place);
  Status end_box(const std::string& lease, Place place);
  Status running(const std::string& lease) const;
  Result<std::string> run_inside(const std::string& lease, const std::vector<std::string>& argv, int source, int sink);

  VenvOptions options_;
  LeaseDirs dirs_;
  Cgroups cgroups_;
  VenvStore store_;
  std::string bwrap_, missing_;
  Bytes seccomp_;
  std::mutex mutex_;
  std::map<std::string, Fd> controls_;  // command -> its window sizes; under mutex_
};

// The device files of leased GPUs, as the driver's /proc tells them: /dev/nvidia0, the control devices.
Result<std::vector<std::string>> gpu_device_files(const std::vector<std::string>& uuids,
                                                  const std::string& driver_root);

}  // namespace muster::host
