#pragma once
// Inside net: texts of requests and URLs. Pure.
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace muster::net {

// "/a%20b?x=1" -> path "/a b", query {x,1}. Refused: not beginning with '/', bad escapes, '.' and '..' segments, an
// encoded slash, control characters, anything that is not UTF-8, a fragment. Empty segments are folded.
struct Target {
  std::string path;
  std::vector<std::pair<std::string, std::string>> query;
};
Result<Target> parse_target(std::string_view target);
std::optional<std::string> percent_decode(std::string_view text, bool plus_is_space);
std::string lower(std::string_view text);
std::string_view trim(std::string_view text);

// The proxy for host:port by HTTPS_PROXY / https_proxy and NO_PROXY / no_proxy; nullopt: go directly.
struct Proxy {
  std::string host;
  std::uint16_t port = 8080;
  std::string credentials;  // "user:password", decoded; secret
};
Result<std::optional<Proxy>> proxy_for(const std::string& host, std::uint16_t port, const std::string& https_proxy,
                                       const std::string& no_proxy);
Result<std::optional<Proxy>> proxy_from_environment(const std::string& host, std::uint16_t port);

}  // namespace muster::net
