#pragma once
// Who an address stands for when attempts and connections are counted: an IPv4 address itself, of an IPv6 address its
// /64, since one host may take any address of that. Pure.
#include <string>
#include <string_view>

namespace muster::net {

// Of "203.0.113.5", "2001:db8::1", "::ffff:203.0.113.5" (which is the IPv4 address), with or without ":port" and then
// in brackets, with or without a zone. What is no address stands for itself.
std::string address_block(std::string_view text);

}  // namespace muster::net
