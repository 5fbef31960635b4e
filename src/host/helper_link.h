#pragma once
// The line to the helper inside one container: JSON lines of at most 256 KiB over a stream socket that privd connected.
// What comes back is hostile input: parsed strictly into the events below, lists cut at their bounds, everything else
// dropped. A line that is too long or a flood ends the connection. On the poller's thread; closed() comes once.
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "host/json.h"
#include "host/poller.h"
#include "host/unix_socket.h"
#include "model/types.h"

namespace muster::host {

inline constexpr std::size_t kHelperLineMax = 256 << 10;

struct HelperJob {
  JobId job;
  std::uint32_t attempt = 0;
  std::string state, message;
  std::int32_t exit_code = -1;
  std::uint64_t log_bytes = 0;
  bool operator==(const HelperJob&) const = default;
};
struct HelperHello {
  std::string phase, ray_node_id;
  std::string home;  // of the container's user, where "~" of a file mount leads; empty: not said
  bool setup_done = false;
  std::vector<HelperJob> jobs;
};
struct HelperProbe {
  std::string ray, python;
  bool token_auth = false, rocksdb = false;
};
// A piece of a list of packages of the image, and the end of all of them; whole: none was left out.
struct HelperList {
  std::string path;
  Bytes data;
  bool more = false;
};
struct HelperListsEnd {
  bool whole = false;
};
struct HelperSetupDone {};
struct HelperSetupFailed {
  int step = 0, code = 0;
  std::string tail;
};
struct HelperRayReady {
  std::string node_id;
};
struct HelperRayExit {
  int code = 0;
  bool wanted = false;
  std::string tail;
};
struct HelperDrained {};
struct HelperRayStopped {};
struct HelperJobLog {
  JobId job;
  std::uint32_t attempt = 0;
  std::uint64_t offset = 0;
  Bytes data;
  bool eof = false;
};
struct HelperReport {
  std::vector<RayNodeReport> nodes;
  std::vector<RayDemand> demands;
};
struct HelperFault {
  std::string op, text;
};
using HelperEvent = std::variant<HelperHello, HelperProbe, HelperList, HelperListsEnd, HelperSetupDone,
                                 HelperSetupFailed, HelperRayReady, HelperRayExit, HelperDrained, HelperRayStopped,
                                 HelperJob, HelperJobLog, HelperReport, HelperFault>;

Result<HelperEvent> parse_helper_event(std::string_view line);

class HelperLink {
 public:
  HelperLink(Poller& poller, Fd fd, std::function<void(HelperEvent)> event, std::function<void()> closed);
  ~HelperLink();
  void send(const json::object& message);

 private:
  void on_ready(Poller::Ready ready);
  void flush();
  void end();
  Poller& poller_;
  Fd fd_;
  std::function<void(HelperEvent)> event_;
  std::function<void()> closed_;
  std::string in_, out_;
  std::shared_ptr<bool> alive_;
};

}  // namespace muster::host
