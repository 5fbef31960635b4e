#pragma once
// Inside wire only: model values <-> protobuf messages. put() writes a value, get() reads one through a Check that
// keeps the first fault (field and bound) and makes everything after it harmless; the caller asks ok() once at the end.
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "model/types.h"
#include "muster/v1/agent.pb.h"

namespace muster::wire {

namespace pb = ::muster::v1::agent;

inline constexpr std::size_t kNameMax = 512;       // names, ids, codes, versions
inline constexpr std::size_t kTextMax = 64 << 10;  // commands, environment values, runtime environments
inline constexpr std::size_t kReasonMax = 4096;
inline constexpr std::size_t kOutputMax = 4096;  // last lines of what failed
inline constexpr int kListMax = 1024;
inline constexpr int kRosterMax = 8192;
inline constexpr std::int64_t kAmountMax = std::int64_t{1} << 60;
inline constexpr std::int64_t kMillisMax = std::int64_t{400} * 365 * 86'400 * 1000;

class Check {
 public:
  bool ok() const { return !error_; }
  Error take_error() const { return *error_; }
  void fail(const char* field, const std::string& why);

  std::string text(const std::string& value, std::size_t max, const char* field);
  Bytes bytes(const std::string& value, std::size_t max, const char* field);
  std::uint64_t below(std::uint64_t value, std::uint64_t max, const char* field);  // 0..max
  std::int64_t amount(std::int64_t value, const char* field) { return between(value, 0, kAmountMax, field); }
  Millis millis(std::int64_t value, const char* field) { return Millis(between(value, 0, kMillisMax, field)); }
  std::int64_t between(std::int64_t value, std::int64_t low, std::int64_t high, const char* field);
  template <typename E>
  E choice(std::uint32_t value, E low, E high, const char* field) {
    if (value >= static_cast<std::uint32_t>(low) && value <= static_cast<std::uint32_t>(high))
      return static_cast<E>(value);
    fail(field, "has the unknown value " + std::to_string(value));
    return low;
  }
  template <typename Repeated>
  bool count(const Repeated& list, int max, const char* field) {
    if (static_cast<std::size_t>(list.size()) > static_cast<std::size_t>(max)) {
      fail(field, "has " + std::to_string(list.size()) + " entries, at most " + std::to_string(max) + " are allowed");
    }
    return ok();
  }
  template <typename Repeated>
  std::vector<std::string> texts(const Repeated& list, int count_max, std::size_t size_max, const char* field) {
    std::vector<std::string> out;
    if (!count(list, count_max, field)) return out;
    out.reserve(static_cast<std::size_t>(list.size()));
    for (const auto& item : list) out.push_back(text(item, size_max, field));
    return out;
  }
  template <typename Map>
  std::map<std::string, std::string> text_map(const Map& map, std::size_t size_max, const char* field) {
    std::map<std::string, std::string> out;
    if (!count(map, kListMax, field)) return out;
    for (const auto& [key, value] : map) out.emplace(text(key, kNameMax, field), text(value, size_max, field));
    return out;
  }

 private:
  std::optional<Error> error_;
};

std::string utf8(const std::string& text);  // the text, its bad bytes replaced by '?'
inline std::string raw(ByteView bytes) {
  return as_string(bytes);
}

void put(const Epoch& value, pb::Epoch& out);
void put(const Resources& value, pb::Resources& out);
void put(const Device& value, pb::Device& out);
void put(const NodeFacts& value, pb::NodeFacts& out);
void put(const ImageProbe& value, pb::ImageProbe& out);
void put(const FileMount& value, pb::FileMount& out);
void put(const RosterEntry& value, pb::RosterEntry& out);
void put(const ImagePolicy& value, pb::ImagePolicy& out);
void put(const JobOrder& value, pb::JobOrder& out);
void put(const Assignment& value, pb::Assignment& out);
void put(const ObservedLease& value, pb::ObservedLease& out);
void put(const ObservedJob& value, pb::ObservedJob& out);
void put(const RayNodeReport& value, pb::RayNodeReport& out);
void put(const RayDemand& value, pb::RayDemand& out);
void put(const RayReport& value, pb::RayReport& out);

void get(const pb::Epoch& in, Epoch& value, Check& check);
void get(const pb::Resources& in, Resources& value, Check& check);
void get(const pb::Device& in, Device& value, Check& check);
void get(const pb::NodeFacts& in, NodeFacts& value, Check& check);
void get(const pb::ImageProbe& in, ImageProbe& value, Check& check);
void get(const pb::FileMount& in, FileMount& value, Check& check);
void get(const pb::RosterEntry& in, RosterEntry& value, Check& check);
void get(const pb::ImagePolicy& in, ImagePolicy& value, Check& check);
void get(const pb::JobOrder& in, JobOrder& value, Check& check);
void get(const pb::Assignment& in, Assignment& value, Check& check);
void get(const pb::ObservedLease& in, ObservedLease& value, Check& check);
void get(const pb::ObservedJob& in, ObservedJob& value, Check& check);
void get(const pb::RayNodeReport& in, RayNodeReport& value, Check& check);
void get(const pb::RayDemand& in, RayDemand& value, Check& check);
void get(const pb::RayReport& in, RayReport& value, Check& check);

// Lists of messages, both ways.
template <typename T, typename Message>
void put_list(const std::vector<T>& values, google::protobuf::RepeatedPtrField<Message>& out) {
  for (const T& value : values) put(value, *out.Add());
}
template <typename T, typename Message>
void get_list(const google::protobuf::RepeatedPtrField<Message>& in, std::vector<T>& values, int max, const char* field,
              Check& check) {
  if (!check.count(in, max, field)) return;
  values.resize(static_cast<std::size_t>(in.size()));
  for (int i = 0; i < in.size() && check.ok(); ++i) get(in.Get(i), values[static_cast<std::size_t>(i)], check);
}

}  // namespace muster::wire
