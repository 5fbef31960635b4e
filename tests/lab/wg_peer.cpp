// Our WireGuard alone, for tests/lab/wg_interop.py: one interface with one peer, in a namespace.
//
//   muster-wg-peer NS TUN ADDRESS PORT KEY_FILE PEER_KEY PSK_FILE PEER_ADDRESS [PEER_IP:PORT]
//
// Keys are base64, as `wg` writes them. Each line on standard input is answered by a JSON line of what the interface
// saw; ends with its input.
#include <fmt/format.h>
#include <signal.h>

#include <fstream>
#include <iostream>

#include "host/wire_runner.h"
#include "overlay/roster.h"

namespace {

using namespace muster;

[[noreturn]] void fail(const std::string& what) {
  std::cerr << "muster-wg-peer: " << what << "\n";
  std::exit(1);
}
crypto::Key32 key_of(const std::string& text) {
  const auto bytes = unbase64(text);
  const auto key = bytes ? crypto::key32(*bytes) : std::nullopt;
  if (!key) fail("not a key");
  return *key;
}
crypto::Key32 key_in(const std::string& path) {
  std::ifstream in(path);
  std::string text;
  in >> text;
  return key_of(text);
}
std::uint32_t address_of(const std::string& text) {
  in_addr at{};
  if (::inet_pton(AF_INET, text.c_str(), &at) != 1) fail("not an address: " + text);
  return ntohl(at.s_addr);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 9 && argc != 10) fail("see tests/lab/wg_peer.cpp");
  ::signal(SIGPIPE, SIG_IGN);
  const std::string ns = argv[1];
  auto tun = host::create_tun(host::lab::Pair::path(ns), host::TunSpec{argv[2], address_of(argv[3]), 24, 1420});
  if (!tun.ok()) fail(tun.error().message);
  host::Fd udp = host::lab::udp_at(ns, static_cast<std::uint16_t>(std::atoi(argv[4])));
  if (!udp) fail("the port is taken");
  crypto::X25519Pair own;
  own.secret = crypto::Secret32(key_in(argv[5]));
  own.public_key = crypto::x25519_public(own.secret);
  overlay::PeerConfig peer{key_of(argv[6]), crypto::Secret32(key_in(argv[7])), {address_of(argv[8])}, {}, {}};
  if (argc == 10) {
    const auto at = overlay::parse_udp_endpoint(argv[9]);
    if (!at) fail("not IP:PORT");
    peer.endpoint = *at;
  }
  {
    host::lab::WireRunner runner(own, peer, std::move(*tun), std::move(udp));
    std::cout << "{\"ready\":true}" << std::endl;
    std::string line;
    while (std::getline(std::cin, line)) {
      const overlay::PeerStats s = runner.stats();
      std::cout << fmt::format(
                       "{{\"handshakes\":{},\"rx\":{},\"tx\":{},\"dropped\":{},\"lost\":{},\"endpoint\":\"{}\"}}",
                       s.handshakes, s.rx_bytes, s.tx_bytes, s.dropped, runner.lost(),
                       overlay::format_endpoint(s.endpoint))
                << std::endl;
    }
  }
  return host::remove_tun(host::lab::Pair::path(ns), argv[2]).ok() ? 0 : 1;
}
