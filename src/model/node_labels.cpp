#include "model/node_labels.h"

#include "model/validate.h"

namespace muster {

std::optional<std::string> label_of(const Node& node, const std::string& name) {
  if (name == "pool") {
    const std::string pool = pool_of(node);
    return pool.empty() ? std::nullopt : std::optional(pool);
  }
  if (const auto word = node.labels.find(name); word != node.labels.end()) return word->second;
  if (name == kJurisdictionLabel) return {};
  if (const auto claim = node.facts.labels.find(name); claim != node.facts.labels.end()) return claim->second;
  return {};
}

std::string region_of(const Node& node) {
  const auto word = node.labels.find("region");
  return word != node.labels.end() ? word->second : node.facts.region;
}

bool region_is_claimed(const Node& node) {
  return !node.labels.contains("region") && !node.facts.region.empty();
}

std::optional<PoolName> parse_pool(std::string_view text) {
  if (!text.starts_with("pool:")) return {};
  text.remove_prefix(5);
  PoolName out;
  if (const auto slash = text.find('/'); slash != std::string_view::npos) {
    out.org = text.substr(0, slash);
    if (!valid_name(out.org)) return {};
    text.remove_prefix(slash + 1);
  }
  out.name = text;
  if (!valid_name(out.name)) return {};
  return out;
}

std::string held_for(const Node& node) {
  const auto held = node.facts.labels.find(std::string(kHeldLabel));
  return held == node.facts.labels.end() ? std::string() : held->second;
}

std::string pool_of(const Node& node) {
  const auto label = node.labels.find("pool");
  if (label == node.labels.end() || !valid_name(label->second)) return {};
  return node.supplier == kPlatformOrg ? label->second : node.supplier.str() + "/" + label->second;
}

bool in_pool(const Node& node, std::string_view pool, OrgId tenant) {
  if (pool == "own") return node.supplier == tenant;
  if (!pool.starts_with("pool:")) return true;
  const std::string is = pool_of(node);
  return !is.empty() && is == pool.substr(5);
}

}  // namespace muster
