#include "relay/upgrade.h"

#include <algorithm>
#include <vector>

#include "overlay/relay_protocol.h"

namespace muster::relay {
namespace {

constexpr std::string_view kBlankLine = "\r\n\r\n";

char lower(char c) {
  return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
}
bool same_name(std::string_view a, std::string_view b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](char x, char y) { return lower(x) == lower(y); });
}
std::string_view trimmed(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}
// Characters of a method or of a header's name (RFC 9110 5.6.2).
bool is_token(std::string_view text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (lower(c) >= 'a' && lower(c) <= 'z') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

struct Head {
  std::string_view first;  // the line
  std::vector<std::pair<std::string_view, std::string_view>> fields;
  int count(std::string_view name) const {
    return static_cast<int>(
        std::count_if(fields.begin(), fields.end(), [&](const auto& field) { return same_name(field.first, name); }));
  }
  // Whether one of the elements of its lists is this.
  bool lists(std::string_view name, std::string_view element) const {
    for (const auto& [known, value] : fields) {
      if (!same_name(known, name)) continue;
      for (std::string_view rest = value;;) {
        const auto comma = rest.find(',');
        if (same_name(trimmed(rest.substr(0, comma)), element)) return true;
        if (comma == std::string_view::npos) break;
        rest.remove_prefix(comma + 1);
      }
    }
    return false;
  }
};

// Strictly: nothing but printable ASCII and tabs, no folded lines, no blank before a colon.
std::optional<Head> read_head(std::string_view text) {
  if (!text.ends_with(kBlankLine)) return {};
  text.remove_suffix(2);
  Head out;
  for (bool first = true; !text.empty(); first = false) {
    const auto end = text.find("\r\n");
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end + 2);
    if (!std::all_of(line.begin(), line.end(), [](char c) { return c == '\t' || (c >= ' ' && c <= '~'); })) return {};
    if (first) {
      out.first = line;
      continue;
    }
    const auto colon = line.find(':');
    if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return {};
    out.fields.emplace_back(line.substr(0, colon), trimmed(line.substr(colon + 1)));
  }
  return out;
}

}  // namespace

HeadReader::State HeadReader::feed(ByteView data, std::size_t& taken) {
  for (taken = 0; taken < data.size();) {
    if (head_.size() == kUpgradeHeadMax) return State::TooLong;
    head_.push_back(static_cast<char>(data[taken++]));
    if (head_.ends_with(kBlankLine)) return State::Whole;
  }
  return head_.size() == kUpgradeHeadMax ? State::TooLong : State::NeedMore;
}

std::string upgrade_request(std::string_view host) {
  std::string out = "GET " + std::string(kUpgradePath) + " HTTP/1.1\r\nHost: ";
  for (const char c : host)
    if (c > ' ' && c <= '~') out.push_back(c);
  return out + "\r\nConnection: Upgrade\r\nUpgrade: " + std::string(overlay::kRelayAlpn) + "\r\n\r\n";
}

int judge_upgrade(std::string_view text) {
  const auto head = read_head(text);
  if (!head) return 400;
  const auto one = head->first.find(' '), two = head->first.rfind(' ');
  if (one == std::string_view::npos || two <= one || head->first.substr(two) != " HTTP/1.1") return 400;
  const std::string_view method = head->first.substr(0, one), path = head->first.substr(one + 1, two - one - 1);
  if (!is_token(method) || path.find(' ') != std::string_view::npos || head->count("host") != 1) return 400;
  if (head->count("content-length") != 0 || head->count("transfer-encoding") != 0) return 400;
  if (path != kUpgradePath) return 404;
  if (method != "GET") return 405;
  if (!head->lists("connection", "upgrade") || !head->lists("upgrade", overlay::kRelayAlpn)) return 426;
  return 101;
}

std::string upgrade_answer(int status) {
  const std::string protocol(overlay::kRelayAlpn);
  if (status == 101)
    return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n";
  std::string line = "400 Bad Request", fields, text = "this is not a request for the relay's protocol";
  if (status == 404) line = "404 Not Found", text = "a relay has nothing but " + std::string(kUpgradePath);
  if (status == 405) line = "405 Method Not Allowed", fields = "Allow: GET\r\n", text = "ask with GET";
  if (status == 426)
    line = "426 Upgrade Required", fields = "Upgrade: " + protocol + "\r\n",
    text = "ask with Connection: Upgrade and Upgrade: " + protocol;
  if (status == 431) line = "431 Request Header Fields Too Large", text = "the request's head is too long";
  text += "\n";
  return "HTTP/1.1 " + line + "\r\n" + fields +
         "Content-Type: text/plain\r\nContent-Length: " + std::to_string(text.size()) + "\r\nConnection: close" +
         (status == 426 ? ", upgrade" : "") + "\r\n\r\n" + text;
}

std::optional<std::string> upgrade_refusal(std::string_view text) {
  const auto head = read_head(text);
  if (!head || head->first.size() < 12 || !head->first.starts_with("HTTP/1.1 ")) return "an answer that is not HTTP";
  std::string status(head->first.substr(9, 3));
  if (status != "101") return status;
  if (!head->lists("connection", "upgrade") || !head->lists("upgrade", overlay::kRelayAlpn))
    return "101 for another protocol";
  return {};
}

}  // namespace muster::relay
