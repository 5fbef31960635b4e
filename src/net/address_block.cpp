#include "net/address_block.h"

#include <arpa/inet.h>

#include <algorithm>
#include <array>

namespace muster::net {

std::string address_block(std::string_view text) {
  std::string address(text);
  if (address.starts_with('[')) {
    address = address.substr(1, address.find(']') - 1);
  } else if (std::count(address.begin(), address.end(), ':') == 1) {
    address.resize(address.find(':'));
  }
  address.resize(std::min(address.find('%'), address.size()));
  std::array<unsigned char, 16> bytes{};
  if (::inet_pton(AF_INET6, address.c_str(), bytes.data()) != 1) return address;
  static constexpr std::array<unsigned char, 12> kMapped{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
  std::array<char, INET6_ADDRSTRLEN> out{};
  if (std::equal(kMapped.begin(), kMapped.end(), bytes.begin())) {
    ::inet_ntop(AF_INET, bytes.data() + kMapped.size(), out.data(), out.size());
    return out.data();
  }
  std::fill(bytes.begin() + 8, bytes.end(), static_cast<unsigned char>(0));
  ::inet_ntop(AF_INET6, bytes.data(), out.data(), out.size());
  return std::string(out.data()) + "/64";
}

}  // namespace muster::net
