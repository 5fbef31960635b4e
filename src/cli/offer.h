#pragma once
// What a machine's owner asks for it, for `muster nodes offer` and `muster nodes explain`.
#include <optional>
#include <string>
#include <vector>

#include "cli/api.h"

namespace CLI {
class App;
}

namespace muster::cli {

struct Shell;

struct OfferChange {  // what is not named stays as it is
  std::string node;
  std::string price, gpu_price, floor, gpu_floor;  // "1.20 EUR"; without a name of the currency that is in force
  std::vector<std::string> tenants, images;        // "all" = no restriction
  std::optional<double> max_hours;                 // 0 = no limit
  std::string hours, zone, notice;                 // "always"; "Europe/Berlin"; "15m"
  bool clear = false;                              // back to whatever comes, for nothing
  bool any() const;
};
// Reads the machine, puts its offer back with the change; the answer is the machine.
Result<wire::Json> change_offer(Api& api, const OfferChange& change);
std::string offer_text(const wire::Json& node);  // lines; of one without an offer, that
std::string asks_text(const wire::Json& node);   // "1.20 EUR + 0.80/GPU", "-": nothing
void add_offer(CLI::App& nodes, Shell& shell);   // offer, explain

}  // namespace muster::cli
