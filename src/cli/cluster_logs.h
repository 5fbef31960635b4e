#pragma once
// What Ray's processes write on one member, as tail has it; following goes on at the byte where a break was, also over
// a restart of the control plane. What comes from the container is parsed strictly.
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "cli/api.h"

namespace muster::cli {

struct ClusterLogOptions {
  std::string cluster, slot;
  std::uint32_t lines = 100;
  bool follow = false;
  Millis patience{600'000};
};
Result<int> follow_cluster_logs(Api& api, const ClusterLogOptions& options);

// The stream of the reader in the container: "SESSION FILE OFFSET LENGTH\n" and LENGTH bytes, again and again.
class LogFrames {
 public:
  using Sink = std::function<void(const std::string& file, std::string_view bytes)>;
  explicit LogFrames(Sink sink) : sink_(std::move(sink)) {}
  Status feed(std::string_view bytes);
  void restart() { head_.clear(), left_ = 0; }  // a new connection begins with a new frame
  const std::string& session() const { return session_; }
  const std::map<std::string, std::uint64_t>& offsets() const { return offsets_; }  // where each file goes on

 private:
  Status start();
  Sink sink_;
  std::string head_, session_, file_;
  std::uint64_t left_ = 0;
  std::map<std::string, std::uint64_t> offsets_;
};

}  // namespace muster::cli
