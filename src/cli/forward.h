#pragma once
// TCP on 127.0.0.1 -> a port of a cluster, each connection one WebSocket. With a gate, the connection is HTTP and
// checked first. run() blocks; one thread. Back-pressure both ways: neither side is read faster than the other takes
// it.
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/config.h"
#include "cli/http_gate.h"

namespace muster::cli {

struct Tunnel {
  std::uint16_t local = 0, remote = 0;
  std::string slot;
};
Result<Tunnel> parse_tunnel(std::string_view text);  // "8265" or "18265:8265"

class Forwarder {
 public:
  static Result<std::unique_ptr<Forwarder>> create(const Account& account, const std::string& cluster);
  virtual ~Forwarder() = default;
  virtual Result<std::uint16_t> listen(const Tunnel& tunnel) = 0;                  // the local port; 0 asks for any
  virtual void set_gate(std::uint16_t local, std::unique_ptr<HttpGate> gate) = 0;  // before run()
  virtual void run() = 0;
  virtual void stop() = 0;  // from any thread: run() returns
};

}  // namespace muster::cli
