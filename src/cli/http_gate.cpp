#include "cli/http_gate.h"

#include <fmt/format.h>

#include <optional>
#include <vector>

namespace muster::cli {
namespace {

constexpr const char* kCookieName = "muster_forward";

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return out;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t' || text.back() == '\r')) text.remove_suffix(1);
  return text;
}

bool equal(std::string_view a, std::string_view b) {  // in constant time for equal lengths
  if (a.size() != b.size()) return false;
  unsigned differ = 0;
  for (std::size_t i = 0; i < a.size(); ++i)
    differ |= static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(b[i]));
  return differ == 0;
}

HttpGate::Decision answer(std::string_view status, const std::string& body, const std::string& headers = {}) {
  return {false,
          fmt::format("HTTP/1.1 {}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nCache-Control: "
                      "no-store\r\nReferrer-Policy: no-referrer\r\n{}Connection: close\r\n\r\n{}",
                      status, body.size(), headers, body)};
}

// "a=1; muster_forward=X; b=2" -> value of ours, and the rest.
std::pair<std::string, std::string> split_cookies(std::string_view cookies) {
  std::string ours, rest;
  while (!cookies.empty()) {
    const auto one = trim(cookies.substr(0, cookies.find(';')));
    cookies.remove_prefix(
        std::min(cookies.size(), cookies.find(';') == std::string_view::npos ? cookies.size() : cookies.find(';') + 1));
    const auto equals = one.find('=');
    if (one.substr(0, equals) == kCookieName && equals != std::string_view::npos)
      ours = std::string(one.substr(equals + 1));
    else if (!one.empty())
      rest += (rest.empty() ? "" : "; ") + std::string(one);
  }
  return {ours, rest};
}

}  // namespace

std::string HttpGate::link() const {
  return fmt::format("http://localhost:{}/?muster={}", port_, one_time_);
}

bool HttpGate::local(std::string_view host) const {
  const std::string text = lower(host);
  return text == fmt::format("localhost:{}", port_) || text == fmt::format("127.0.0.1:{}", port_);
}

HttpGate::Decision HttpGate::decide(std::string_view head) {
  const auto first_end = head.find("\r\n");
  if (first_end == std::string_view::npos) return answer("400 Bad Request", "not an HTTP request\n");
  const std::string line(head.substr(0, first_end));
  const auto space = line.find(' ');
  const auto last = line.rfind(' ');
  if (space == std::string::npos || last <= space || line.compare(last + 1, 7, "HTTP/1.") != 0)
    return answer("400 Bad Request", "not an HTTP/1 request\n");
  const std::string method = line.substr(0, space);
  std::string target = line.substr(space + 1, last - space - 1);
  if (target.empty() || target[0] != '/') return answer("400 Bad Request", "only paths are served here\n");

  std::optional<std::string> host, origin, cookie;
  bool upgrade = false;
  std::string kept;
  for (std::size_t at = first_end + 2; at < head.size();) {
    const auto end = head.find("\r\n", at);
    if (end == std::string_view::npos || end == at) break;
    const std::string_view field = head.substr(at, end - at);
    at = end + 2;
    const auto colon = field.find(':');
    if (colon == std::string_view::npos || colon == 0 || field[0] == ' ' || field[0] == '\t')
      return answer("400 Bad Request", "a header line is malformed\n");
    const std::string name = lower(field.substr(0, colon));
    const std::string value(trim(field.substr(colon + 1)));
    if (name == "host") {
      if (host) return answer("400 Bad Request", "two Host headers\n");
      host = value;
    } else if (name == "origin") {
      origin = value;
    } else if (name == "cookie") {
      const auto [ours, rest] = split_cookies(value);
      if (!ours.empty()) cookie = ours;
      if (!rest.empty()) kept += "Cookie: " + rest + "\r\n";
      continue;
    } else if (name == "upgrade") {
      upgrade = true;
    }
    // Ours to say: who asks, and how the connection ends.
    if (name == "authorization" || name == "x-ray-authorization" || name == "connection" || name == "keep-alive" ||
        name == "proxy-authorization")
      continue;
    kept += std::string(field) + "\r\n";
  }
  if (!host || !local(*host)) return answer("403 Forbidden", "this forward answers to localhost only\n");
  if (origin && lower(*origin) != "http://" + lower(*host))
    return answer("403 Forbidden", "another site's page may not use this forward\n");

  const std::string mark = "?muster=";
  const auto query = target.find(mark);
  if (query != std::string::npos && method == "GET") {
    const std::string given = target.substr(query + mark.size());
    if (one_time_.empty() || !equal(given, one_time_))
      return answer("403 Forbidden",
                    "this link was used already or is not of this forward; run `muster dashboard` again\n");
    one_time_.clear();
    return answer("303 See Other", "",
                  fmt::format("Location: {}\r\nSet-Cookie: {}={}; Path=/; HttpOnly; SameSite=Strict\r\n",
                              target.substr(0, query), kCookieName, cookie_));
  }
  if (!cookie || !equal(*cookie, cookie_))
    return answer("403 Forbidden", "open the one-time link that `muster` printed\n");
  return {true, line + "\r\n" + kept + "Authorization: Bearer " + token_ +
                    "\r\nConnection: " + (upgrade ? "Upgrade" : "close") + "\r\n\r\n"};
}

}  // namespace muster::cli
