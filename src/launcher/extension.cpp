// The muster: section, this project's own extension of the cluster YAML.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launcher/parts.h"
#include "model/names.h"
#include "model/node_labels.h"
#include "model/offer.h"
#include "model/validate.h"
#include "model/workload_identity.h"

namespace muster::launcher {
namespace {

const std::vector<std::string_view>& muster_keys() {
  static const std::vector<std::string_view> keys = {
      "spares",        "pool",        "egress",        "tier",         "priority",  "max_lifetime_minutes",
      "region",        "gpu_model",   "image",         "arch",         "runtime",   "head",
      "node_labels",   "env",         "policy",        "min_trust",    "max_price", "budget",
      "may_end_early", "uplink_mbps", "downlink_mbps", "transfer_gib", "pair_mbps", "replace_slow",
      "jurisdiction",  "isolation",   "identity",      "gpu_share"};
  return keys;
}

Status read_runtime(Draft& draft, const Entry& entry, const std::string& key) {
  const std::string text = TRY(read_text(*entry.value, key));
  if (text == "docker")
    draft.launch.spec.runtime = RuntimeKind::Docker;
  else if (text == "venv")
    draft.launch.spec.runtime = RuntimeKind::Venv;
  else
    return fault(*entry.value, key, "must be docker or venv");
  return {};
}

Status read_arch(Draft& draft, const Entry& entry, const std::string& key) {
  const std::string text = TRY(read_text(*entry.value, key));
  if (text == "x86_64" || text == "amd64")
    draft.launch.spec.arch = "x86_64";
  else if (text == "aarch64" || text == "arm64")
    draft.launch.spec.arch = "aarch64";
  else
    return fault(*entry.value, key, "must be x86_64 or aarch64");
  return {};
}

Status read_pool(Draft& draft, const Entry& entry, const std::string& key) {
  const std::string text = TRY(read_text(*entry.value, key));
  if (text != "own" && text != "market" && (text.rfind("pool:", 0) != 0 || text.size() == 5))
    return fault(*entry.value, key,
                 "must be own (your machines), market, pool:NAME (of the platform) or pool:ORGANISATION/NAME");
  draft.launch.spec.pool = text;
  return {};
}

// One of the names, as the value at that place.
template <typename E, std::size_t N>
Status read_named(E& out, const Entry& entry, const std::string& key, const std::array<std::string_view, N>& names) {
  const std::string text = TRY(read_text(*entry.value, key));
  const auto found = std::find(names.begin(), names.end(), text);
  if (found == names.end())
    return fault(*entry.value, key,
                 fmt::format("must be {} or {}", fmt::join(names.begin(), names.end() - 1, ", "), names.back()));
  out = static_cast<E>(found - names.begin());
  return {};
}

// Both amounts are of one currency.
Status read_money(std::int64_t& out, ClusterSpec& spec, const Entry& entry, const std::string& key, std::int64_t max) {
  const auto money = parse_money(TRY(read_text(*entry.value, key)), key, max);
  if (!money.ok()) return fault(*entry.value, key, money.error().message.substr(key.size() + 1));
  if (!spec.currency.empty() && spec.currency != money->currency)
    return fault(*entry.value, key,
                 fmt::format("is in {}, but the other amount is in {}; give both in one currency", money->currency,
                             spec.currency));
  out = money->micros, spec.currency = money->currency;
  return {};
}

Status read_gpu_share(Draft& draft, const Entry& entry, const std::string& key) {
  const double share = TRY(read_number(*entry.value, key));
  const auto milli = share < 1 ? std::llround(share * kGpuMilli) : kGpuMilli;
  if (milli < kGpuShareLeast || milli >= kGpuMilli)
    return fault(
        *entry.value, key,
        fmt::format("must be at least 0.01 and less than 1, such as 0.5, but is {}; leave it out for whole GPUs",
                    entry.value->text));
  draft.gpu_share_milli = static_cast<std::int32_t>(milli), draft.gpu_share_line = entry.line;
  return {};
}

Status read_identity(Draft& draft, const Entry& entry, const std::string& key) {
  const std::string text = TRY(read_text(*entry.value, key));
  if (!parse_audiences(text))
    return fault(*entry.value, key,
                 "names whom the cluster's identity token is for: one to eight audiences, separated by commas, such as "
                 "sts.amazonaws.com");
  draft.launch.spec.env[std::string(kIdentityAudienceEnv)] = text;
  return {};
}

Status read_key(Draft& draft, const Entry& entry, const std::string& key) {
  ClusterSpec& spec = draft.launch.spec;
  const Tree& value = *entry.value;
  if (entry.key == "spares")
    spec.spares = static_cast<std::uint32_t>(TRY(read_count(value, key, 1'000)));
  else if (entry.key == "pool")
    return read_pool(draft, entry, key);
  else if (entry.key == "egress")
    spec.egress = TRY(read_flag(value, key));
  else if (entry.key == "tier")
    spec.tier = static_cast<std::uint8_t>(TRY(read_count(value, key, 9)));
  else if (entry.key == "priority")
    spec.priority = static_cast<std::int32_t>(TRY(read_integer(value, key, -100, 100)));
  else if (entry.key == "max_lifetime_minutes") {
    const double minutes = TRY(read_number(value, key));
    if (minutes > 5'256'000) return fault(value, key, "is more than ten years");
    spec.max_lifetime = Millis(std::llround(minutes * 60'000));
  } else if (entry.key == "region")
    draft.constraints["region"] = TRY(read_text(value, key));
  else if (entry.key == "isolation") {
    const std::string wanted = TRY(read_text(value, key));
    if (wanted == "gvisor")
      return fault(
          value, key,
          "asks for gvisor, which no machine offers yet; leave it out, or take machines of your own (pool: own)");
    if (wanted == kUserNamespace)
      draft.constraints[std::string(kIsolationLabel)] = wanted;
    else if (wanted != "container")
      return fault(value, key, "must be container or user-namespace");
  } else if (entry.key == "jurisdiction")
    draft.constraints["jurisdiction"] = TRY(read_text(value, key));
  else if (entry.key == "gpu_model")
    draft.gpu_model = TRY(read_text(value, key));
  else if (entry.key == "gpu_share")
    return read_gpu_share(draft, entry, key);
  else if (entry.key == "image")
    spec.image = TRY(read_text(value, key));
  else if (entry.key == "arch")
    return read_arch(draft, entry, key);
  else if (entry.key == "runtime")
    return read_runtime(draft, entry, key);
  else if (entry.key == "policy")
    return read_named(draft.launch.spec.policy, entry, key, kPolicyNames);
  else if (entry.key == "min_trust")
    return read_named(draft.launch.spec.min_trust, entry, key, kTrustTierNames);
  else if (entry.key == "max_price")
    return read_money(spec.max_price, spec, entry, key, kPriceMax);
  else if (entry.key == "budget")
    return read_money(spec.budget, spec, entry, key, kBudgetMax);
  else if (entry.key == "may_end_early")
    spec.may_end_early = TRY(read_flag(value, key));
  else if (entry.key == "uplink_mbps")
    draft.traffic.up_kbps = TRY(read_count(value, key, 1'000'000)) * 1'000;
  else if (entry.key == "downlink_mbps")
    draft.traffic.down_kbps = TRY(read_count(value, key, 1'000'000)) * 1'000;
  else if (entry.key == "transfer_gib")
    draft.traffic.volume_bytes = static_cast<std::int64_t>(TRY(read_count(value, key, 1'000'000))) << 30;
  else if (entry.key == "pair_mbps")
    spec.pair_kbps = TRY(read_count(value, key, kPairKbpsMax / 1'000)) * 1'000;
  else if (entry.key == "replace_slow")
    spec.replace_slow = TRY(read_flag(value, key));
  else if (entry.key == "head")
    draft.head_resources = TRY(read_resources(draft, value, key));
  else if (entry.key == "node_labels")
    for (const auto& [name, text] : TRY(read_text_map(value, key))) draft.constraints[name] = text;
  else if (entry.key == "env")
    for (const auto& [name, text] : TRY(read_text_map(value, key))) spec.env[name] = text;
  else if (entry.key == "identity")
    return read_identity(draft, entry, key);
  else {
    const std::string near = nearest(entry.key, muster_keys());
    return fault(value, key,
                 near.empty() ? "is not a key of the muster section; remove it"
                              : "is not a key of the muster section; did you mean " + near + "?");
  }
  return {};
}

}  // namespace

Status read_muster(Draft& draft, const Tree& muster) {
  TRY_VOID(expect_map(muster, "muster"));
  for (const auto& entry : muster.entries) {
    const std::string key = "muster." + entry.key;
    TRY_VOID(read_key(draft, entry, key));
    draft.report.mapped(key, entry.line, entry.value->kind == Tree::Kind::Scalar ? entry.value->text : "set");
  }
  if (draft.launch.spec.replace_slow && draft.launch.spec.pair_kbps == 0)
    return fault(muster, "muster.replace_slow", "says who is replaced, but not what is slow; add pair_mbps");
  return {};
}

}  // namespace muster::launcher
