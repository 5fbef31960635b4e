#include "host/egress_protocol.h"

#include <fmt/format.h>

#include <limits>

#include "host/json.h"

namespace muster::host {
namespace {

constexpr std::int64_t kMax = std::numeric_limits<std::int64_t>::max();

Error bad(std::string_view key) {
  return error(Code::InvalidArgument, fmt::format("'{}' of an order to the egress process cannot be read", key),
               std::string(key));
}

template <typename T>
json::array texts_of(const std::vector<T>& items) {
  json::array out;
  for (const auto& item : items) out.emplace_back(egress::to_text(item));
  return out;
}

template <typename T, typename Parse>
Status read_list(Fields& f, std::string_view key, Parse parse, std::vector<T>& out) {
  for (const auto& text : f.texts(key, 512, 64)) {
    const auto value = parse(text);
    if (!value) return bad(key);
    out.push_back(*value);
  }
  return {};
}

json::object config_json(const EgressConfig& c) {
  return {{"op", "configure"},
          {"local", texts_of(c.rules.local)},
          {"deny", texts_of(c.rules.deny)},
          {"deny_ports", texts_of(c.rules.deny_ports)},
          {"allow_ports", texts_of(c.rules.allow_ports)},
          {"resolvers", texts_of(c.resolvers)},
          {"bytes_per_s", c.bytes_per_s},
          {"bytes_left", c.bytes_left},
          {"flows_max", c.flows_max},
          {"blocked", c.blocked}};
}

Result<EgressOrder> read_config(Fields& f) {
  EgressConfig c;
  TRY_VOID(read_list(f, "local", egress::parse_prefix, c.rules.local));
  TRY_VOID(read_list(f, "deny", egress::parse_prefix, c.rules.deny));
  TRY_VOID(read_list(f, "deny_ports", egress::parse_ports, c.rules.deny_ports));
  TRY_VOID(read_list(f, "allow_ports", egress::parse_ports, c.rules.allow_ports));
  TRY_VOID(read_list(f, "resolvers", egress::parse_ip, c.resolvers));
  c.bytes_per_s = static_cast<std::uint64_t>(f.integer("bytes_per_s", 0, kMax));
  c.bytes_left = f.integer("bytes_left", -1, kMax);
  c.flows_max = static_cast<std::uint32_t>(f.integer("flows_max", 1, 65'536));
  c.blocked = f.text_or("blocked", {}, 64);
  return EgressOrder(std::move(c));
}

std::uint64_t count_at(const json::value& value, std::string_view key) {
  return static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(value, {key})));
}

}  // namespace

json::object counters_json(const std::string& lease, const EgressCounters& c) {
  json::object refused;
  for (const auto& [code, count] : c.refused) refused[code] = count;
  json::array now, last;
  for (const auto& flow : c.now)
    now.push_back(json::object{
        {"to", flow.to}, {"up_bytes", flow.up_bytes}, {"down_bytes", flow.down_bytes}, {"age_ms", flow.age_ms}});
  for (const auto& each : c.last_refused)
    last.push_back(json::object{{"what", each.what}, {"code", each.code}, {"age_ms", each.age_ms}});
  return {{"lease", lease},           {"flows", c.flows},
          {"open", c.open},           {"failed", c.failed},
          {"up_bytes", c.up_bytes},   {"down_bytes", c.down_bytes},
          {"questions", c.questions}, {"refused", std::move(refused)},
          {"now", std::move(now)},    {"last_refused", std::move(last)}};
}

EgressCounters read_counters(const json::value& row) {
  EgressCounters c;
  c.flows = count_at(row, "flows"), c.open = count_at(row, "open"), c.failed = count_at(row, "failed");
  c.up_bytes = count_at(row, "up_bytes"), c.down_bytes = count_at(row, "down_bytes");
  c.questions = count_at(row, "questions");
  if (const auto* refused = find_path(row, {"refused"}); refused != nullptr && refused->is_object()) {
    for (const auto& [code, count] : refused->get_object()) {
      if (c.refused.size() < 64 && code.size() < 64 && count.is_int64() && count.get_int64() >= 0)
        c.refused[std::string(code)] = static_cast<std::uint64_t>(count.get_int64());
    }
  }
  if (const auto* now = find_path(row, {"now"}); now != nullptr && now->is_array()) {
    for (const auto& each : now->get_array())
      c.now.push_back(
          {text_at(each, {"to"}), count_at(each, "up_bytes"), count_at(each, "down_bytes"), count_at(each, "age_ms")});
  }
  if (const auto* last = find_path(row, {"last_refused"}); last != nullptr && last->is_array()) {
    for (const auto& each : last->get_array())
      c.last_refused.push_back({text_at(each, {"what"}), text_at(each, {"code"}), count_at(each, "age_ms")});
  }
  return c;
}

std::string order_text(const EgressOrder& order) {
  if (const auto* config = std::get_if<EgressConfig>(&order)) return to_text(config_json(*config));
  if (const auto* add = std::get_if<AddWay>(&order)) return to_text(json::object{{"op", "add"}, {"lease", add->lease}});
  if (const auto* remove = std::get_if<RemoveWay>(&order))
    return to_text(json::object{{"op", "remove"}, {"lease", remove->lease}});
  return to_text(json::object{{"op", "report"}, {"flows", std::get<AskReport>(order).flows}});
}

Result<EgressOrder> parse_order(std::string_view text) {
  const json::object object = TRY(parse_object(text));
  Fields f(object);
  const std::string op = f.text("op", 16);
  Result<EgressOrder> order = error(Code::Unsupported, "the egress process knows no such order", "op");
  if (op == "configure") order = read_config(f);
  if (op == "add") order = EgressOrder(AddWay{f.text("lease", 64)});
  if (op == "remove") order = EgressOrder(RemoveWay{f.text("lease", 64)});
  if (op == "report") order = EgressOrder(AskReport{f.boolean_or("flows", false)});
  if (!order.ok()) return order;
  TRY_VOID(f.finish("order"));
  return order;
}

std::string report_text(const Result<EgressReport>& report) {
  if (!report.ok())
    return to_text(json::object{
        {"ok", false}, {"code", static_cast<int>(report.error().code)}, {"message", report.error().message}});
  json::array leases;
  for (const auto& [lease, counters] : report->leases) leases.push_back(counters_json(lease, counters));
  return to_text(json::object{{"ok", true}, {"bytes", report->bytes}, {"leases", std::move(leases)}});
}

Result<EgressReport> parse_report(std::string_view text) {
  const json::object object = TRY(parse_object(text));
  if (!bool_at(object, {"ok"})) {
    const auto code = int_at(object, {"code"});
    const bool known = code >= 1 && code <= static_cast<int>(Code::Unsupported);
    return error(known ? static_cast<Code>(code) : Code::Internal, "egress: " + text_at(object, {"message"}));
  }
  EgressReport report;
  report.bytes = count_at(object, "bytes");
  if (const auto* leases = object.if_contains("leases"); leases != nullptr && leases->is_array()) {
    for (const auto& row : leases->get_array()) {
      if (report.leases.size() < 256) report.leases[text_at(row, {"lease"})] = read_counters(row);
    }
  }
  return report;
}

}  // namespace muster::host
