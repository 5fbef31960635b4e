#include "net/http_text.h"

#include <fmt/format.h>

#include <ctime>

#include "net/http_connection.h"
#include "net/url.h"

namespace muster::net {
namespace {

std::string_view reason_phrase(int status) {
  switch (status) {
    case 101:
      return "Switching Protocols";
    case 200:
      return "OK";
    case 201:
      return "Created";
    case 202:
      return "Accepted";
    case 204:
      return "No Content";
    case 206:
      return "Partial Content";
    case 304:
      return "Not Modified";
    case 307:
      return "Temporary Redirect";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 415:
      return "Unsupported Media Type";
    case 422:
      return "Unprocessable Content";
    case 426:
      return "Upgrade Required";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    default:
      return "Status";
  }
}

void append_clean(std::string& out, std::string_view text) {
  for (char c : text) {
    if (c != '\r' && c != '\n' && c != '\0') out.push_back(c);
  }
}

std::string json_text(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      out.push_back(c);
  }
  return valid_utf8(out) ? out : "";
}

// "Tue, 15 Nov 1994 08:12:31 GMT": machines compare their clock with it.
std::string format_date(std::time_t now) {
  static constexpr const char* kDays[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr const char* kMonths[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                            "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  std::tm t{};
  gmtime_r(&now, &t);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[t.tm_wday], t.tm_mday, kMonths[t.tm_mon],
                     t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
}
const std::string& date_now() {
  thread_local std::time_t second = -1;
  thread_local std::string text;
  const std::time_t now = std::time(nullptr);
  if (now != second) {
    second = now;
    text = format_date(now);
  }
  return text;
}

}  // namespace

std::string http_head(const Response& response, Framing framing, bool keep_alive) {
  std::string out =
      fmt::format("HTTP/1.1 {} {}\r\nDate: {}\r\n", response.status, reason_phrase(response.status), date_now());
  if (!response.content_type.empty() && has_body(response.status)) {
    out += "Content-Type: ";
    append_clean(out, response.content_type);
    out += "\r\n";
  }
  for (const auto& [name, value] : response.headers) {
    append_clean(out, name);
    out += ": ";
    append_clean(out, value);
    out += "\r\n";
  }
  if (framing == Framing::Chunked) out += "Transfer-Encoding: chunked\r\n";
  if (framing == Framing::Length || (framing == Framing::LengthOnly && has_body(response.status))) {
    out += fmt::format("Content-Length: {}\r\n", response.body.size());
  }
  out += keep_alive ? "\r\n" : "Connection: close\r\n\r\n";
  return out;
}

std::string chunk_head(std::size_t size) {
  return fmt::format("{:x}\r\n", size);
}

bool has_body(int status) {
  return status >= 200 && status != 204 && status != 304;
}

bool has_token(const std::string& list, std::string_view token) {
  std::string_view rest = list;
  while (!rest.empty()) {
    const auto comma = rest.find(',');
    if (lower(trim(rest.substr(0, comma))) == token) return true;
    rest = comma == std::string_view::npos ? std::string_view() : rest.substr(comma + 1);
  }
  return false;
}

bool may_repeat(const std::string& name) {
  static constexpr std::string_view kOnce[] = {"authorization",   "content-length",    "content-type",  "host",
                                               "idempotency-key", "transfer-encoding", "last-event-id", "origin",
                                               "upgrade",         "sec-websocket-key"};
  for (std::string_view once : kOnce) {
    if (name == once) return false;
  }
  return true;
}

Response problem(int status, std::string_view code, std::string_view detail) {
  Response response;
  response.status = status;
  response.content_type = "application/problem+json";
  response.body = fmt::format(R"({{"type":"about:blank","title":"{}","status":{},"code":"{}","detail":"{}"}})",
                              reason_phrase(status), status, json_text(code), json_text(detail));
  return response;
}

}  // namespace muster::net
