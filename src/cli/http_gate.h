#pragma once
// What stands in front of a forward that injects the cluster's Ray token: every request must name localhost:PORT as its
// Host (so no DNS rebinding), have no Origin or that same one, and carry the cookie that a one-time link set. The token
// is added here, in memory, and never reaches the browser. One request a connection ("Connection: close"), so nothing
// can ride behind a checked one. Pure; one thread.
#include <cstdint>
#include <string>
#include <string_view>

namespace muster::cli {

inline constexpr std::size_t kGateHeadMax = 32 << 10;

class HttpGate {
 public:
  HttpGate(std::uint16_t port, std::string one_time, std::string cookie, std::string token)
      : port_(port), one_time_(std::move(one_time)), cookie_(std::move(cookie)), token_(std::move(token)) {}

  struct Decision {
    bool pass = false;
    std::string text;
  };                                       // pass: the head to send on; else the whole answer
  Decision decide(std::string_view head);  // up to and with the empty line
  std::string link() const;

 private:
  bool local(std::string_view host) const;
  std::uint16_t port_;
  std::string one_time_, cookie_, token_;
};

}  // namespace muster::cli
