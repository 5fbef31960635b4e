#pragma once
// A TCP connection made inside another network namespace. A thread of its own enters it and ends there; the socket
// stays in it. Waits at most five seconds. Reasons: tcp | tcp.refused | tcp.timeout.
#include <cstdint>
#include <string>

#include "base/result.h"
#include "host/unix_socket.h"

namespace muster::host {

Result<Fd> tcp_inside(const std::string& namespace_path, std::uint32_t address, std::uint16_t port);

}  // namespace muster::host
