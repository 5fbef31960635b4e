#pragma once
// Which kinds of machines may serve which kinds of needs. Machines that no hard constraint can tell apart are one
// class; a need's constraints are compiled once; whether a class may serve a constraint is judged once per pair. Labels
// count only if some request ever named their key, so that arbitrary labels do not split the pool. Private.
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "scheduler/interner.h"
#include "scheduler/types.h"

namespace muster::scheduler {

struct DeviceKind {
  std::uint32_t model = 0, memory_mib = 0, count = 0;
  std::int32_t part = 0;  // the largest share of it that one lease may have; 0 = it is not shared
  bool instance = false;  // of MIG: never a whole GPU
  auto operator<=>(const DeviceKind&) const = default;
};
struct DeviceSet {
  std::vector<DeviceKind> kinds;  // sorted
  std::uint64_t hash() const;
  bool operator==(const DeviceSet&) const = default;
};
struct LabelSet {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> labels;  // key, value; sorted by key
  std::uint64_t hash() const;
  bool operator==(const LabelSet&) const = default;
};
struct SymbolSet {
  std::vector<std::uint32_t> symbols;  // sorted
  std::uint64_t hash() const;
  bool operator==(const SymbolSet&) const = default;
};
struct OfferTerms {  // the hard part of an offer
  std::vector<OrgId> tenants, refused;
  std::vector<std::string> images;
  std::int64_t shortest_ms = 0, longest_ms = 0;
  bool choosy() const { return !tenants.empty() || !refused.empty() || !images.empty(); }
  std::uint64_t hash() const;
  bool operator==(const OfferTerms&) const = default;
};

inline constexpr std::uint32_t kPriceLevels = 128, kRiskLevels = 32, kLinkLevels = 32, kHotImages = 8;
std::uint8_t price_level(std::int64_t micro_per_hour);  // eight levels an octave, 0 = free
std::uint8_t risk_level(std::int64_t failures_ppm);     // two levels an octave
std::int64_t risk_ppm(std::uint8_t level);              // of work lost per hour, about
std::uint8_t link_level(std::int64_t kbps);             // an octave each, 0 = not known

struct NodeClass {
  std::uint32_t arch = 0, pool = 0, jurisdiction = 0, devices = 0, labels = 0, taints = 0, offer = 0;
  std::uint32_t currency = 0;  // of its price, where it has one
  std::uint32_t driver = 0, cuda = 0;
  std::int64_t until_ms = 0;  // when its present hours end, notice taken off; 0 = they do not
  std::uint8_t runtimes = 0, tier = 0, price = 0, risk = 0, risk_hoped = 0, link = 0, hot = 0;
  bool egress = false, relayed = false;
  std::uint64_t hash() const;
  bool operator==(const NodeClass&) const = default;
};

enum class PoolKind : std::uint8_t { Market = 0, Own = 1, Named = 2 };
struct Constraint {
  std::uint32_t arch = 0, pool = 0, image = 0, gpus = 0, gpu_memory_mib = 0;
  PoolKind kind = PoolKind::Market;
  OrgId tenant;  // where it matters: own machines, and while some offer is to some only; so is the image
  std::uint8_t runtime = 0, floor = 0;
  bool egress = false;
  std::int32_t share = 0;                                       // of one GPU, 0 = whole ones
  std::vector<std::uint32_t> models;                            // accepted; empty = any
  std::vector<std::pair<std::uint32_t, std::uint32_t>> labels;  // key, value; sorted
  std::uint64_t hash() const;
  bool takes_instances() const;  // a virtual environment has no way to one MIG instance alone
  bool operator==(const Constraint&) const = default;
};

enum class Verdict : std::uint8_t { Unknown = 0, No = 1, Yes = 2, Check = 3 /* look at the machine itself */ };

class Matcher {
 public:
  Symbols symbols;
  Interner<DeviceSet> device_sets;
  Interner<LabelSet> label_sets;
  Interner<SymbolSet> taint_sets;
  Interner<OfferTerms> offers;

  // The class of a machine, one more user; what it is made of is held by the class. `hot` and `until_ms` are the
  // pool's.
  // explored: how reliable it is counts at its best (risk_hoped), as far as is known.
  std::uint32_t acquire_class(const NodeView& view, std::uint8_t hot, std::int64_t until_ms, bool explored);
  void release_class(std::uint32_t id);
  const NodeClass& class_of(std::uint32_t id) const { return classes_[id]; }
  std::uint32_t classes() const { return classes_.limit(); }
  std::uint64_t class_serial(std::uint32_t id) const { return classes_.serial(id); }
  const DeviceSet& devices_of(std::uint32_t cls) const { return device_sets[classes_[cls].devices]; }

  // One more user of what this bundle of this request demands. New label keys are noted: see take_new_keys().
  std::uint32_t acquire_constraint(const Request& request, const NodeRequest& need);
  void release_constraint(std::uint32_t id);
  const Constraint& constraint(std::uint32_t id) const { return constraints_[id].constraint; }
  bool take_new_keys() { return std::exchange(new_keys_, false); }  // machines must be classed anew
  // An offer looks at tenant and image for the first time: constraints must be compiled anew. It stays so.
  bool take_restriction() { return std::exchange(restriction_new_, false); }
  bool offers_restrict() const { return restricted_; }

  Verdict judge(std::uint32_t constraint, std::uint32_t cls);         // remembers
  Verdict judged(std::uint32_t constraint, std::uint32_t cls) const;  // does not
  // The same without the offer's word; and that word alone.
  Verdict suits(std::uint32_t constraint, std::uint32_t cls) const;
  bool takes_tenant(std::uint32_t constraint, std::uint32_t cls) const;
  bool takes_image(std::uint32_t constraint, std::uint32_t cls) const;
  // The same for one machine, by its own labels and devices.
  bool admits(std::uint32_t constraint, const NodeView& view) const;
  bool device_fits(const Constraint& c, const Device& device) const;

 private:
  struct Judged {
    Constraint constraint;
    std::vector<Verdict> verdicts;  // by class
    std::uint64_t hash() const { return constraint.hash(); }
    bool operator==(const Judged& other) const { return constraint == other.constraint; }
  };
  bool key_matters(const std::string& key) const;
  Verdict decide(const Constraint& c, const NodeClass& k) const;
  Verdict suits(const Constraint& c, const NodeClass& k) const;
  bool takes_tenant(const Constraint& c, const NodeClass& k) const;
  bool takes_image(const Constraint& c, const NodeClass& k) const;

  Interner<NodeClass> classes_;
  Interner<Judged> constraints_;
  std::vector<std::string> keys_;  // of labels that requests named, sorted
  bool new_keys_ = false;
  bool restricted_ = false, restriction_new_ = false;
};

}  // namespace muster::scheduler
