#pragma once
// Model values <-> contract messages that requests and views share (private to wire). Thousandths travel as decimal
// numbers and are rounded once; durations travel as whole seconds. Errors carry the field path below `path`.
#include <string>

#include "base/result.h"
#include "model/types.h"
#include "muster/v1/api.pb.h"

namespace muster::wire {

struct OfferText;

void write(const Resources& from, v1::Resources& to);
Result<Resources> read(const v1::Resources& from, const std::string& path);
void write(const ClusterSpec& from, v1::ClusterSpec& to);
Result<ClusterSpec> read(const v1::ClusterSpec& from, const std::string& path);
void write(const Device& from, v1::Device& to);
Result<Device> read(const v1::Device& from, const std::string& path);
void write(const NodeFacts& from, v1::NodeFacts& to);
Result<NodeFacts> read(const v1::NodeFacts& from, const std::string& path);
void write(const Offer& from, const std::vector<std::string>& tenants, v1::Offer& to);
Result<OfferText> read(const v1::Offer& from, const std::string& path);  // its hours without the zone's offsets
void write(const Quota& from, v1::Quota& to);
void write(const Share& from, v1::Share& to);
void write(const ImagePolicy& from, v1::ImagePolicy& to);
ImagePolicy read(const v1::ImagePolicy& from);
Result<std::int64_t> read_milli(double units, const std::string& path);
Result<Millis> read_seconds(std::int64_t seconds, const std::string& path);
std::string time_text(WallTime time);  // "" when 0

}  // namespace muster::wire
