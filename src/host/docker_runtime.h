#pragma once
// Runtime over the Docker Engine API (>= 1.40; Podman's compatible socket as well), spoken on its unix socket. Per
// lease a pause container (network none) holds the namespace with `lo` and the cluster's TUN, and a workload container
// joins it: no capabilities, no new privileges, our seccomp profile, limits. Touches only containers that carry this
// machine's label.
#include <boost/json/value.hpp>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "host/engine_http.h"
#include "host/lease_dirs.h"
#include "host/runtime.h"

namespace muster::host {

struct DockerOptions {
  Layout layout;
  std::string socket = "/var/run/docker.sock";
  std::string node_id;       // "node-12", shown in labels
  std::string machine;       // unique per enrolment, in names and labels
  std::string secrets_root;  // a directory on a tmpfs; empty = chosen
  // Make and open the persistent TUN in the namespace at that path; replaced in tests.
  std::function<Status(const std::string&, const LaunchSpec&)> make_tun;
  std::function<Result<Fd>(const std::string&)> open_tun;
};

class DockerRuntime : public Runtime {
 public:
  explicit DockerRuntime(DockerOptions options);
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
  std::uint64_t engine_life() override;
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
  // For gpu-check: runs a shell script in a container with these GPUs, as a lease would get them; its output.
  Result<std::string> run_once(const std::string& image, const std::vector<std::string>& uuids,
                               const std::string& script);

 private:
  struct User {
    uid_t uid = 0;
    gid_t gid = 0;
  };
  std::string name(const std::string& lease, std::string_view part) const;
  Result<std::string> api(const std::string& path);  // "/v1.41" + path
  Result<EngineReply> ask(const std::string& method, const std::string& path, const std::string& body = {},
                          int timeout_s = 60);
  struct EngineSays {
    boost::json::object version, info;
  };
  Result<EngineSays> engine_says();
  Result<boost::json::value> inspect(const std::string& container);  // NotFound; PermissionDenied when it is not ours
  void watch_life();
  Status drop(const std::string& container, int grace_s);
  Status create(const std::string& container, const boost::json::value& body);
  Status start(const std::string& container);
  Result<pid_t> ensure_namespace(const LaunchSpec& spec, bool* made);
  Result<Pulled> find_image(const std::string& image);  // here already, of this machine's architecture
  Status pull_once(const std::string& image, const RegistryAuth& auth, const Progress& progress);
  std::vector<std::string> pulled_images();  // by us and still ours to remove, the oldest first
  bool pulled_by_us(const std::string& digest);
  void remember_pulled(const std::string& digest);
  void remove_pulled();
  Result<User> user_of(const std::string& image, const std::string& container);
  boost::json::object common_host_config(std::int64_t pids, std::int64_t nofile) const;
  // What an image says that reaches containers made of it.
  struct ImageSays {
    std::vector<std::string> env, volumes;
  };
  // Of the containers beside the workload, whose programs are the image's as well: nothing to write on but a little
  // memory. `scratch`: also at /tmp.
  boost::json::object side_host_config(const ImageSays& image, std::int64_t pids, std::int64_t memory_bytes,
                                       bool scratch) const;
  boost::json::object labels(const std::string& lease, std::string_view part) const;
  boost::json::object workload(const LaunchSpec& spec, const std::vector<std::string>& image_env, Launched& told) const;
  bool podman() const;
  // Whose user ids containers get.
  enum class Users : std::uint8_t {
    Shared,   // the machine's
    Engine,   // those that the owner gave the daemon (userns-remap): the same for all its containers
    OfLease,  // Podman takes others for each lease, from those that the owner gave it
  };
  Users users() const;
  Status know_users();  // asks the engine, if nobody did yet
  void find_users(const boost::json::object& info);
  Result<IdMap> id_map(const std::string& container);
  // docker_gpu.cpp
  void find_gpus(const boost::json::object& info, EngineInfo& out) const;
  Result<ImageSays> image_says(const std::string& image);
  // Of containers without GPUs.
  static boost::json::array quiet_env(const std::vector<std::string>& image,
                                      std::map<std::string, std::string> env = {});
  Status create_with_gpus(const std::string& container, boost::json::object body, const std::vector<std::string>& uuids,
                          const EngineInfo& engine);

  DockerOptions options_;
  EngineHttp http_;
  LeaseDirs dirs_;
  std::mutex images_mutex_;  // over images.json
  mutable std::mutex mutex_;
  std::string api_version_;         // under mutex_
  bool podman_ = false;             // known with api_version_; under mutex_
  std::optional<EngineSays> says_;  // of that life, at that time; under mutex_
  std::uint64_t says_life_ = 0;
  LeaseTime says_at_;
  bool users_known_ = false;  // these three as of the last info(); under mutex_
  Users users_ = Users::Shared;
  IdMap engine_map_;
  std::map<std::string, User> image_users_;  // image -> who it runs as; under mutex_
  std::mutex life_mutex_;
  std::uint64_t life_;  // under life_mutex_
  Fd life_line_;        // a stream that ends with the engine; under life_mutex_
};

}  // namespace muster::host
