#include "net/url.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "net/net.h"

namespace muster::net {
namespace {

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

Error bad_target(const char* why) {
  return error(Code::InvalidArgument, std::string("the request's path is refused: ") + why, "path");
}

bool has_control(std::string_view text) {
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) return true;
  }
  return false;
}

// "host", "host:port", "[v6]", "[v6]:port"
Result<std::pair<std::string, std::uint16_t>> parse_authority(std::string_view text, std::uint16_t port) {
  std::string_view host = text, digits;
  if (!text.empty() && text[0] == '[') {
    const auto end = text.find(']');
    if (end == std::string_view::npos) return error(Code::InvalidArgument, "'" + std::string(text) + "' lacks a ']'");
    host = text.substr(1, end - 1);
    if (end + 1 < text.size()) {
      if (text[end + 1] != ':') return error(Code::InvalidArgument, "'" + std::string(text) + "' is not host:port");
      digits = text.substr(end + 2);
    }
  } else if (const auto colon = text.rfind(':'); colon != std::string_view::npos) {
    host = text.substr(0, colon);
    digits = text.substr(colon + 1);
    if (host.find(':') != std::string_view::npos)
      return error(Code::InvalidArgument, "write the IPv6 address in '" + std::string(text) + "' in brackets");
  }
  if (host.empty() || has_control(host) || host.find_first_of(" /@?#") != std::string_view::npos) {
    return error(Code::InvalidArgument, "'" + std::string(text) + "' names no host");
  }
  if (!digits.empty()) {
    const auto [end, ec] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
    if (ec != std::errc() || end != digits.data() + digits.size() || port == 0) {
      return error(Code::InvalidArgument, "'" + std::string(digits) + "' is not a port (1-65535)");
    }
  }
  return std::pair{std::string(host), port};
}

bool exempt(const std::string& host, std::uint16_t port, std::string_view list) {
  const std::string name = lower(host);
  while (!list.empty()) {
    const auto comma = list.find(',');
    std::string entry = lower(trim(list.substr(0, comma)));
    list = comma == std::string_view::npos ? std::string_view() : list.substr(comma + 1);
    if (entry == "*") return true;
    if (const auto colon = entry.rfind(':'); colon != std::string::npos && entry.find(':') == colon) {
      if (entry.substr(colon + 1) != std::to_string(port)) continue;
      entry.resize(colon);
    }
    if (entry.starts_with("*.")) entry.erase(0, 1);
    if (entry.empty()) continue;
    const std::string suffix = entry[0] == '.' ? entry : "." + entry;
    if (name == suffix.substr(1) || name.ends_with(suffix)) return true;
  }
  return false;
}

}  // namespace

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
  return out;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

std::optional<std::string> percent_decode(std::string_view text, bool plus_is_space) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%') {
      if (i + 2 >= text.size()) return {};
      const int high = hex_digit(text[i + 1]), low = hex_digit(text[i + 2]);
      if (high < 0 || low < 0) return {};
      out.push_back(static_cast<char>(high * 16 + low));
      i += 2;
    } else {
      out.push_back(plus_is_space && text[i] == '+' ? ' ' : text[i]);
    }
  }
  return out;
}

Result<Target> parse_target(std::string_view target) {
  if (target.empty() || target[0] != '/') return bad_target("it must begin with '/'");
  if (target.find('#') != std::string_view::npos) return bad_target("it holds a fragment");
  const auto question = target.find('?');
  std::string_view path = target.substr(0, question);
  Target out;
  while (!path.empty()) {
    path.remove_prefix(1);  // the slash
    const auto slash = path.find('/');
    const auto segment = percent_decode(path.substr(0, slash), false);
    if (!segment) return bad_target("a % is not followed by two hex digits");
    if (*segment == "." || *segment == "..") return bad_target("'.' and '..' are not allowed");
    if (segment->find('/') != std::string::npos || segment->find('\\') != std::string::npos)
      return bad_target("a name holds a slash");
    if (has_control(*segment) || !valid_utf8(*segment)) return bad_target("it is not valid UTF-8 text");
    const bool last = slash == std::string_view::npos;
    if (!segment->empty() || (last && out.path.empty()))
      out.path += "/" + *segment;
    else if (last)
      out.path += "/";  // a trailing slash is kept
    path = last ? std::string_view() : path.substr(slash);
  }
  if (question == std::string_view::npos) return out;
  std::string_view query = target.substr(question + 1);
  while (!query.empty()) {
    const auto amp = query.find('&');
    const std::string_view pair = query.substr(0, amp);
    query = amp == std::string_view::npos ? std::string_view() : query.substr(amp + 1);
    if (pair.empty()) continue;
    const auto equals = pair.find('=');
    auto key = percent_decode(pair.substr(0, equals), true);
    auto value = equals == std::string_view::npos ? std::string() : percent_decode(pair.substr(equals + 1), true);
    if (!key || !value || !valid_utf8(*key) || !valid_utf8(*value) || key->find('\0') != std::string::npos) {
      return bad_target("the query is not valid percent-encoded UTF-8");
    }
    if (out.query.size() >= 256) return bad_target("the query has more than 256 parameters");
    out.query.emplace_back(std::move(*key), std::move(*value));
  }
  return out;
}

Result<Endpoint> parse_url(std::string_view url) {
  const std::string shown(url);
  if (url.starts_with("https://"))
    url.remove_prefix(8);
  else if (url.find("://") != std::string_view::npos)
    return error(Code::InvalidArgument, "'" + shown + "' must begin with https://");
  if (const auto slash = url.find('/'); slash != std::string_view::npos) {
    if (slash + 1 != url.size())
      return error(Code::InvalidArgument, "'" + shown + "' must be https://HOST[:PORT] without a path");
    url.remove_suffix(1);
  }
  auto [host, port] = TRY(parse_authority(url, 443));
  Endpoint endpoint;
  endpoint.host = host;
  endpoint.port = port;
  return endpoint;
}

Result<WebUrl> parse_web_url(std::string_view url) {
  const std::string shown(url.substr(0, 200));
  for (const char c : url)
    if (c <= 0x20 || c >= 0x7f) return error(Code::InvalidArgument, "a URL holds characters that it must not hold");
  WebUrl out;
  const bool plain = url.starts_with("http://");
  if (!plain && !url.starts_with("https://"))
    return error(Code::InvalidArgument, "'" + shown + "' must begin with https://");
  url.remove_prefix(plain ? 7 : 8);
  if (url.find('#') != std::string_view::npos)
    return error(Code::InvalidArgument, "'" + shown + "' holds a fragment (#); leave it out");
  const auto end = url.find_first_of("/?");
  if (end != std::string_view::npos) out.target = (url[end] == '?' ? "/" : "") + std::string(url.substr(end));
  auto [host, port] = TRY(parse_authority(url.substr(0, end), plain ? 80 : 443));
  if (plain && host != "127.0.0.1" && host != "::1" && host != "localhost")
    return error(Code::InvalidArgument, "'" + shown + "' must begin with https://: only this machine is asked without");
  out.endpoint.host = out.endpoint.server_name = host;
  out.endpoint.port = port;
  out.endpoint.peer = plain ? Peer::PlainLoopback : Peer::Web;
  out.endpoint.use_proxy_env = !plain;
  return out;
}

std::string form_text(const std::vector<std::pair<std::string, std::string>>& fields) {
  static constexpr std::string_view kPlain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~";
  static constexpr std::string_view kHex = "0123456789ABCDEF";
  std::string out;
  const auto put = [&out](std::string_view text) {
    for (const char c : text) {
      const auto byte = static_cast<unsigned char>(c);
      if (kPlain.find(c) != std::string_view::npos)
        out += c;
      else
        (out += '%') += {kHex[byte >> 4], kHex[byte & 15]};
    }
  };
  for (const auto& [name, value] : fields) {
    if (!out.empty()) out += '&';
    put(name);
    out += '=';
    put(value);
  }
  return out;
}

std::optional<Request> parse_request_line(std::string_view line) {
  const auto first = line.find(' ');
  const auto second = first == std::string_view::npos ? first : line.find(' ', first + 1);
  if (second == std::string_view::npos || !line.substr(second + 1).starts_with("HTTP/1.")) return {};
  auto target = parse_target(line.substr(first + 1, second - first - 1));
  if (!target.ok()) return {};
  Request out;
  out.method = std::string(line.substr(0, first));
  out.path = std::move(target->path);
  out.query = std::move(target->query);
  return out;
}

std::optional<std::string> Request::query_value(std::string_view key) const {
  for (const auto& [name, value] : query) {
    if (name == key) return value;
  }
  return {};
}

std::optional<std::string> form_value(const Request& request, std::string_view name) {
  const std::string type = lower(request.header("content-type"));
  if (trim(std::string_view(type).substr(0, type.find(';'))) != "application/x-www-form-urlencoded") return {};
  std::optional<std::string> out;
  std::string_view rest = request.body;
  while (!rest.empty()) {
    const std::string_view pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
    const auto equals = pair.find('=');
    const auto key = percent_decode(pair.substr(0, equals), true);
    if (!key) return {};
    if (*key != name) continue;
    auto value = percent_decode(equals == std::string_view::npos ? std::string_view() : pair.substr(equals + 1), true);
    if (!value || out) return {};
    out = std::move(value);
  }
  return out;
}

std::string Request::header(std::string_view lower_name) const {
  const auto it = headers.find(std::string(lower_name));
  return it == headers.end() ? std::string() : it->second;
}

Result<std::optional<Proxy>> proxy_for(const std::string& host, std::uint16_t port, const std::string& https_proxy,
                                       const std::string& no_proxy) {
  if (https_proxy.empty() || exempt(host, port, no_proxy)) return std::optional<Proxy>();
  std::string_view text = https_proxy;
  if (text.starts_with("http://"))
    text.remove_prefix(7);
  else if (text.find("://") != std::string_view::npos) {
    return error(Code::Unsupported,
                 "HTTPS_PROXY must be http://[USER:PASSWORD@]HOST:PORT (a proxy that is itself reached by TLS or SOCKS "
                 "is not supported)");
  }
  if (const auto slash = text.find('/'); slash != std::string_view::npos) text = text.substr(0, slash);
  Proxy proxy;
  if (const auto at = text.rfind('@'); at != std::string_view::npos) {
    const auto credentials = percent_decode(text.substr(0, at), false);
    if (!credentials || has_control(*credentials))
      return error(Code::InvalidArgument, "the user or password in HTTPS_PROXY is not valid percent-encoding");
    proxy.credentials = *credentials;
    text = text.substr(at + 1);
  }
  auto authority = parse_authority(text, 8080);
  if (!authority.ok()) return error(Code::InvalidArgument, "HTTPS_PROXY: " + authority.error().message);
  std::tie(proxy.host, proxy.port) = *authority;
  return std::optional<Proxy>(std::move(proxy));
}

Result<std::optional<Proxy>> proxy_from_environment(const std::string& host, std::uint16_t port) {
  auto env = [](const char* lower_case, const char* upper_case) {
    const char* value = std::getenv(lower_case);
    if (value == nullptr || *value == 0) value = std::getenv(upper_case);
    return std::string(value == nullptr ? "" : value);
  };
  return proxy_for(host, port, env("https_proxy", "HTTPS_PROXY"), env("no_proxy", "NO_PROXY"));
}

}  // namespace muster::net
