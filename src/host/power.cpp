#include "host/power.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "host/json.h"
#include "host/nvml.h"

namespace muster::host {

PowerKeeper::PowerKeeper(Nvml& nvml, std::string path) : nvml_(nvml), path_(std::move(path)) {
  std::ifstream file(path_);
  std::stringstream text;
  text << file.rdbuf();
  const auto kept = parse_object(text.str());
  if (!kept.ok()) return;
  for (const auto& member : *kept) {
    if (const auto* value = member.value().if_int64(); value != nullptr && *value > 0 && was_.size() < 64)
      was_[std::string(member.key())] = static_cast<std::uint32_t>(*value);
  }
}

void PowerKeeper::keep() {
  std::error_code ignored;
  if (was_.empty()) {
    std::filesystem::remove(path_, ignored);
    return;
  }
  json::object out;
  for (const auto& [uuid, milliwatts] : was_) out[uuid] = static_cast<std::int64_t>(milliwatts);
  const Status written = crypto::write_secret_file(path_, as_bytes(to_text(out)));
  if (!written.ok()) log_error("privd", "{}", written.error().message);
}

void PowerKeeper::reconcile(std::int64_t cap_w, const std::set<std::string>& hired) {
  const auto complain = [&](const std::string& uuid, const Error& why) {
    if (complained_.insert(uuid).second) log_warn("privd", "the power cap of a GPU does not hold: {}", why.message);
  };
  for (auto it = was_.begin(); it != was_.end();) {
    if (cap_w > 0 && hired.contains(it->first)) {
      ++it;
      continue;
    }
    const Status restored = nvml_.set_power_limit(it->first, it->second);
    if (!restored.ok()) {
      complain(it->first, restored.error());
      ++it;
      continue;
    }
    log_info("privd", "GPU {} may draw {} W again", it->first, it->second / 1000);
    it = was_.erase(it);
    keep();
  }
  if (cap_w <= 0) return;
  for (const auto& uuid : hired) {
    const auto power = nvml_.power(uuid);
    if (!power.ok()) {
      complain(uuid, power.error());
      continue;
    }
    std::uint32_t wanted = static_cast<std::uint32_t>(cap_w * 1000);
    if (power->min_mw > 0) wanted = std::max(wanted, power->min_mw);  // the driver takes no less
    const auto before = was_.find(uuid);
    const std::uint32_t own = before == was_.end() ? power->limit_mw : before->second;
    wanted = std::min(wanted, own);
    if (power->limit_mw == wanted) continue;
    if (before == was_.end()) {
      was_[uuid] = power->limit_mw;
      keep();  // before the change: a crash in between must not lose what it was
    }
    const Status set = nvml_.set_power_limit(uuid, wanted);
    if (!set.ok()) {
      complain(uuid, set.error());
      continue;
    }
    complained_.erase(uuid);
    log_info("privd", "GPU {} may draw {} W while it is hired", uuid, wanted / 1000);
  }
}

}  // namespace muster::host
