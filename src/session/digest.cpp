#include "session/digest.h"

#include "crypto/hash.h"

namespace muster::session {
namespace {

class Sink {
 public:
  void number(std::int64_t value) {
    Bytes bytes(8);
    for (std::size_t i = 0; i < 8; ++i)
      bytes[i] = static_cast<std::uint8_t>(static_cast<std::uint64_t>(value) >> (8 * i));
    hash_.update(bytes);
  }
  void text(const std::string& value) {
    number(static_cast<std::int64_t>(value.size()));
    hash_.update(as_bytes(value));
  }
  void texts(const std::vector<std::string>& values) {
    number(static_cast<std::int64_t>(values.size()));
    for (const std::string& value : values) text(value);
  }
  crypto::Digest finish() { return hash_.finish(); }

 private:
  crypto::Sha256 hash_;
};

}  // namespace

Bytes inventory_digest(const NodeFacts& facts) {
  Sink sink;
  for (const std::string* text :
       {&facts.hostname, &facts.arch, &facts.os, &facts.kernel, &facts.agent_version, &facts.boot_id, &facts.region}) {
    sink.text(*text);
  }
  const Resources& r = facts.capacity;
  for (const std::int64_t value : {r.cpu_milli, r.memory_bytes, r.gpus, r.disk_bytes, r.object_store_bytes})
    sink.number(value);
  sink.number(static_cast<std::int64_t>(r.custom_milli.size()));
  for (const auto& [name, value] : r.custom_milli) sink.text(name), sink.number(value);
  sink.number(static_cast<std::int64_t>(facts.devices.size()));
  for (const Device& device : facts.devices) {
    sink.text(device.uuid), sink.text(device.model), sink.number(device.memory_bytes);
    if (device.sharing == GpuSharing::Exclusive) continue;  // all that older agents know
    sink.number(static_cast<std::int64_t>(device.sharing)), sink.number(device.part_milli), sink.text(device.profile);
  }
  sink.number(static_cast<std::int64_t>(facts.runtimes.size()));
  for (const RuntimeKind kind : facts.runtimes) sink.number(static_cast<std::int64_t>(kind));
  sink.texts(facts.images);
  sink.texts(facts.lan);
  sink.number(facts.egress_allowed ? 1 : 0);
  sink.number(static_cast<std::int64_t>(facts.labels.size()));
  for (const auto& [key, value] : facts.labels) sink.text(key), sink.text(value);
  for (const auto& [key, value] : facts.image_bytes) sink.text(key), sink.number(value);  // older agents have none
  const crypto::Digest digest = sink.finish();
  return Bytes(digest.begin(), digest.end());
}

}  // namespace muster::session
