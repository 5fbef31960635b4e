// nodes offer, nodes explain
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>

#include "cli/money.h"
#include "cli/offer.h"
#include "cli/shell.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

std::vector<std::string> texts_of(const wire::Json& list) {
  std::vector<std::string> out;
  for (const auto& each : list.items()) out.push_back(each.text());
  return out;
}
std::vector<std::string> unless_all(const std::vector<std::string>& words) {
  return words == std::vector<std::string>{"all"} ? std::vector<std::string>{} : words;
}
std::string joined(const wire::Json& list) {
  std::string out;
  for (const auto& each : list.items()) out += (out.empty() ? "" : ", ") + clean(each.text());
  return out;
}

// The offer as the API shows it.
wire::OfferText offer_of(const wire::Json& o) {
  wire::OfferText out;
  Offer& offer = out.offer;
  offer.currency = o["currency"].text();
  offer.price = o["priceMicros"].integer(), offer.gpu_price = o["gpuPriceMicros"].integer();
  offer.floor = o["floorMicros"].integer(), offer.gpu_floor = o["gpuFloorMicros"].integer();
  offer.images = texts_of(o["images"]);
  offer.longest = Millis(o["maxLeaseSeconds"].integer() * 1000);
  offer.schedule = o["hours"].text(), offer.zone = o["timezone"].text();
  offer.notice = Millis(o["noticeSeconds"].integer() * 1000);
  out.tenants = texts_of(o["tenants"]);
  return out;
}

// An amount that names no currency is of the one in force.
Status read_amount(const std::string& text, const std::string& flag, std::int64_t& out, std::string& currency) {
  if (text.empty()) return {};
  const Money money = TRY(parse_money(text, flag));
  out = money.micros;
  const bool named =
      std::any_of(text.begin(), text.end(), [](char c) { return (c | 0x20) >= 'a' && (c | 0x20) <= 'z'; });
  if (!named) return {};
  if (!currency.empty() && currency != money.currency)
    return error(Code::InvalidArgument, fmt::format("{} is in {}, another amount in {}; all must be in one currency",
                                                    flag, money.currency, currency));
  currency = money.currency;
  return {};
}

Status change_prices(const OfferChange& change, Offer& offer) {
  const bool floored = offer.floor < offer.price, gpu_floored = offer.gpu_floor < offer.gpu_price;
  std::string currency;
  TRY_VOID(read_amount(change.price, "--price", offer.price, currency));
  TRY_VOID(read_amount(change.gpu_price, "--gpu-price", offer.gpu_price, currency));
  if (!floored) offer.floor = offer.price;
  if (!gpu_floored) offer.gpu_floor = offer.gpu_price;
  TRY_VOID(read_amount(change.floor, "--floor", offer.floor, currency));
  TRY_VOID(read_amount(change.gpu_floor, "--gpu-floor", offer.gpu_floor, currency));
  if (!currency.empty()) offer.currency = currency;
  return {};
}

Result<int> show_offer(Shell& shell, const std::string& node) {
  Api* api = TRY(shell.api());
  const auto n = TRY(api->get(path_of("nodes", node)));
  shell.show(n["offer"],
             [&] { return fmt::format("{} ({})\n", clean(n["name"].text()), clean(n["id"].text())) + offer_text(n); });
  return 0;
}

Result<int> offer(Shell& shell, const OfferChange& change) {
  if (!change.any()) return show_offer(shell, change.node);
  Api* api = TRY(shell.api());
  const auto n = TRY(change_offer(*api, change));
  shell.show(n["offer"], [&] {
    return fmt::format("{} ({}), for leases that begin from now on:\n", clean(n["name"].text()),
                       clean(n["id"].text())) +
           offer_text(n);
  });
  return 0;
}

std::string_view meaning(std::string_view code) {
  if (code == "price") return "may pay less than it asks, or in another currency";
  if (code == "tenants") return "are of organisations that its offer does not name";
  if (code == "images") return "bring an image that its offer does not name";
  if (code == "length") return "may last longer than its hours or its longest lease, or have no end";
  if (code == "link") return "state more traffic than its way out carries";
  if (code == "hours") return "fit, but it is outside its hours now";
  return "are refused by its offer";
}

Result<int> explain_node(Shell& shell, const std::string& node) {
  Api* api = TRY(shell.api());
  const auto n = TRY(api->get(path_of("nodes", node)));
  const auto refusals = TRY(api->get(path_of("nodes", node) + "/refusals"));
  shell.show(refusals, [&] {
    std::string out = fmt::format("{} ({})\n", clean(n["name"].text()), clean(n["id"].text()));
    if (!n["notHired"].text().empty()) out += "  not hired: " + clean(n["notHired"].text()) + "\n";
    out += fmt::format("  requests that wait, of everybody: {}\n", refusals["waiting"].integer());
    if (refusals["refused"].members().empty()) out += "  its offer keeps none of them from it\n";
    for (const auto& [code, count] : refusals["refused"].members())
      out += fmt::format("  {} {}\n", count.integer(), meaning(code));
    return out;
  });
  return 0;
}

}  // namespace

bool OfferChange::any() const {
  bool said = clear || max_hours || !tenants.empty() || !images.empty();
  for (const std::string* text : {&price, &gpu_price, &floor, &gpu_floor, &hours, &zone, &notice})
    said = said || !text->empty();
  return said;
}

std::string asks_text(const wire::Json& node) {
  const auto& o = node["offer"];
  const std::string base = price_text(o["priceMicros"], o["currency"]),
                    gpu = price_text(o["gpuPriceMicros"], o["currency"]);
  if (base.empty() && gpu.empty()) return "-";
  if (base.empty()) return gpu + "/GPU";
  return gpu.empty() ? base : base + " + " + amount_text(o["gpuPriceMicros"].integer()) + "/GPU";
}

std::string offer_text(const wire::Json& node) {
  const auto& o = node["offer"];
  if (!o.is(wire::Json::Kind::Object))
    return "  asks for nothing and takes whatever comes; `muster nodes offer` changes that\n";
  const auto money = [&](const char* field) { return money_text(o[field].integer(), clean(o["currency"].text())); };
  std::string out = "  asks      " + money("priceMicros") + " an hour";
  if (o["gpuPriceMicros"].integer() > 0) out += ", and " + money("gpuPriceMicros") + " for each GPU";
  out += "\n";
  if (o["floorMicros"].integer() < o["priceMicros"].integer() ||
      o["gpuFloorMicros"].integer() < o["gpuPriceMicros"].integer())
    out += fmt::format("  at least  {} an hour, {} for each GPU, from work that may pay no more\n",
                       money("floorMicros"), money("gpuFloorMicros"));
  out += "  tenants   " + (o["tenants"].items().empty() ? "all" : joined(o["tenants"])) + "\n";
  if (!o["images"].items().empty()) out += "  images    " + joined(o["images"]) + "\n";
  if (o["maxLeaseSeconds"].integer() > 0)
    out += "  a lease   at most " + duration_text(o["maxLeaseSeconds"].integer()) + "\n";
  if (!o["hours"].text().empty()) {
    out += fmt::format("  hours     {} ({}); ", clean(o["hours"].text()), clean(o["timezone"].text()));
    out += o["openUntil"].text().empty() ? "closed until " + short_time(o["opensAt"])
                                         : "open until " + short_time(o["openUntil"]);
    if (o["noticeSeconds"].integer() > 0)
      out += fmt::format(", work is told to leave {} before", duration_text(o["noticeSeconds"].integer()));
    out += "\n";
  }
  return out;
}

Result<wire::Json> change_offer(Api& api, const OfferChange& change) {
  const auto node = TRY(api.get(path_of("nodes", change.node)));
  const std::string target = path_of("nodes", change.node) + "/offer";
  wire::SetOfferRequest request;
  if (!change.clear) {
    request.offer = offer_of(node["offer"]);
    Offer& offer = request.offer->offer;
    TRY_VOID(change_prices(change, offer));
    if (!change.tenants.empty()) request.offer->tenants = unless_all(change.tenants);
    if (!change.images.empty()) offer.images = unless_all(change.images);
    if (change.max_hours) {
      if (!(*change.max_hours >= 0 && *change.max_hours <= 8784))
        return error(Code::InvalidArgument, "--max-hours must lie between 0 (no limit) and 8784 (a year)");
      offer.longest = Millis(std::llround(*change.max_hours * 3600) * 1000);
    }
    if (!change.zone.empty()) offer.zone = change.zone;
    if (!change.hours.empty()) offer.schedule = change.hours == "always" ? "" : change.hours;
    if (offer.schedule.empty()) offer.zone.clear();
    if (!offer.schedule.empty() && offer.zone.empty())
      return error(Code::InvalidArgument, "--hours needs --tz: UTC, or a name such as Europe/Berlin");
    if (!change.notice.empty()) {
      const auto seconds = parse_duration(change.notice);
      if (!seconds) return error(Code::InvalidArgument, "--notice must be a time such as 15m or 1h");
      offer.notice = Millis(*seconds * 1000);
    }
  }
  return api.send("PUT", target, wire::to_json(request));
}

void add_offer(CLI::App& nodes, Shell& shell) {
  auto change = std::make_shared<OfferChange>();
  auto* command = nodes.add_subcommand("offer", "What you ask for a machine of yours, and whose work it takes");
  command->add_option("node", change->node, "id or name")->required();
  command->add_option("--price", change->price, "of an hour of every lease, such as \"1.20 EUR\"; 0 = nothing");
  command->add_option("--gpu-price", change->gpu_price, "of an hour of each GPU that a lease gets");
  command->add_option("--floor", change->floor, "the least: taken from work whose max_price is below the price");
  command->add_option("--gpu-floor", change->gpu_floor, "the same for each GPU");
  command->add_option("--tenants", change->tenants, "only these organisations, or all")->delimiter(',');
  command->add_option("--images", change->images, "only images whose names begin so, or sha256:..., or all")
      ->delimiter(',');
  command->add_option("--max-hours", change->max_hours, "the longest lease, in hours; 0 = no limit");
  command->add_option("--hours", change->hours, "when it may be used: \"Mon-Fri 18:00-08:00, Sat, Sun\", or always");
  command->add_option("--tz", change->zone, "whose clock the hours are of: Europe/Berlin, UTC, +02:00");
  command->add_option("--notice", change->notice, "so long before the hours end what runs is told to leave: 15m");
  command->add_flag("--clear", change->clear, "ask for nothing and take whatever comes, as at first");
  command->footer(
      "What is not named stays as it is; without any option the offer is shown. It counts for leases that begin from\n"
      "then on, never for one that runs. The limits on the machine itself (`muster-agent limits`) hold whatever is\n"
      "offered here. Examples:\n  muster nodes offer gaming-pc --price \"1.20 EUR\" --hours \"Mon-Fri 18:00-08:00\" "
      "--tz "
      "Europe/Berlin\n  muster nodes offer node-3 --gpu-price \"0.80 EUR\" --tenants lab,school --max-hours 12\n  "
      "muster "
      "nodes offer node-3 --clear");
  command->callback([change, &shell] { shell.action = [change, &shell] { return offer(shell, *change); }; });
  auto name = std::make_shared<std::string>();
  auto* explain =
      nodes.add_subcommand("explain", "Why a machine of yours is not hired: what its offer refuses, counted");
  explain->add_option("node", *name, "id or name")->required();
  explain->footer("Example:\n  muster nodes explain gaming-pc");
  explain->callback([name, &shell] { shell.action = [name, &shell] { return explain_node(shell, *name); }; });
}

}  // namespace muster::cli
