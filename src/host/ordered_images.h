#pragma once
// The names under which the control plane ordered images for its assignments, by the digest that each was found to be.
// What the agent reports of the images on this machine is made of these and of digests that privd says were pulled for
// leases: names that the owner gave his own images are in neither. Bounded, the oldest go; kept in a file of the
// agent's, so that it outlasts restarts. One thread.
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/types.h"

namespace muster::host {

inline constexpr std::size_t kOrderedMax = 48, kNamesOrderedMax = 4, kImagesReportedMax = 64;

class OrderedImages {
 public:
  explicit OrderedImages(std::string file);                       // loads it; a damaged one is as none
  void note(const std::string& digest, const std::string& name);  // the newest from now on; names too long are left out
  // Of the digests that are here: the newest first, names before digests, at most kImagesReportedMax of both together.
  void report(const std::vector<std::string>& here, const std::map<std::string, std::int64_t>& bytes,
              NodeFacts& facts) const;

 private:
  void save() const;
  const std::string file_;
  std::vector<std::pair<std::string, std::vector<std::string>>> images_;  // the newest last
};

}  // namespace muster::host
