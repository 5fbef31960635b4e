#pragma once
// What privd asks of the way out: open it for a lease whose namespace stands, close it, tell what passed. Opening the
// same again is nothing new. Calls may come from several threads and may wait a few seconds.
#include <cstdint>
#include <string>
#include <vector>

#include "host/egress_protocol.h"

namespace muster::host {

struct LeaseWay {
  std::string lease;
  std::string network;        // where its namespace can be entered
  std::uint32_t address = 0;  // overlay, host order
  int prefix_bits = 16;
};

class EgressPort {
 public:
  virtual ~EgressPort() = default;
  virtual Status open(const LeaseWay& way) = 0;
  virtual void close(const std::string& lease) = 0;
  virtual EgressReport report(bool flows) = 0;
  virtual void adopt(const std::vector<LeaseWay>& ways) = 0;  // leases found running after a restart
};

}  // namespace muster::host
