#include "session/carried.h"

#include "base/endian.h"

namespace muster::session {
namespace {

constexpr std::string_view kCarriedDomain = "muster-carried-v1";

Bytes carried_statement(const NetReport& report) {
  Bytes out;
  append_be(out, report.lease.value);
  append_be(out, static_cast<std::uint64_t>(report.counted_from.ms));
  append_be(out, static_cast<std::uint32_t>(report.carried.size()));
  for (const NetCarried& each : report.carried) {
    append_be(out, each.by);
    append_be(out, each.with);
    append_be(out, each.sent);
    append_be(out, each.received);
  }
  return out;
}

}  // namespace

Bytes sign_carried(const crypto::SigningKey& device, const NetReport& report) {
  return device.sign(kCarriedDomain, {carried_statement(report)});
}

bool verify_carried(ByteView device_key, const NetReport& report) {
  return crypto::verify(device_key, kCarriedDomain, {carried_statement(report)}, report.counts_signature);
}

}  // namespace muster::session
