#include <utility>

#include "control/codec.h"
#include "control/core.h"

namespace muster::control {
namespace {

constexpr std::uint64_t kEventVersion =
    1;  // of every type so far; a changed layout gets its own number and a reader for the old one
constexpr std::size_t kTypes = std::variant_size_v<Event>;

template <std::size_t I>
void decode_alternative(Decoder& decoder, Event& out) {
  decoder(out.emplace<I>());
}
template <std::size_t... I>
bool decode_type(std::uint64_t type, Decoder& decoder, Event& out, std::index_sequence<I...>) {
  return ((type == I + 1 ? (decode_alternative<I>(decoder, out), true) : false) || ...);
}

constexpr std::string_view kNames[] = {"org.created",        "project.created",    "principal.created",
                                       "principal.disabled", "api_token.created",  "api_token.revoked",
                                       "join_token.created", "join_token.revoked", "node.enrolled",
                                       "node.facts_changed", "node.state_changed", "node.tier_changed",
                                       "platform.freeze",    "cluster.backoff",    "cluster.backoff_ended",
                                       "cluster.created",    "cluster.updated",    "cluster.state_changed",
                                       "cluster.wanted",     "cluster.probed",     "lease.granted",
                                       "slot.keyed",         "slot.left",          "slot.promoted",
                                       "lease.want_changed", "lease.observed",     "lease.ended",
                                       "job.created",        "job.state_changed",  "job.log",
                                       "request.recorded",   "requests.aged",      "archived",
                                       "timer.set",          "leader.changed",     "incarnation.raised",
                                       "format.raised"};
static_assert(std::size(kNames) == kTypes);

struct SubjectOf {
  std::string operator()(const OrgCreated& e) const { return e.org.id.str(); }
  std::string operator()(const ProjectCreated& e) const { return e.project.id.str(); }
  std::string operator()(const PrincipalCreated& e) const { return e.principal.id.str(); }
  std::string operator()(const PrincipalDisabled& e) const { return e.principal.str(); }
  std::string operator()(const ApiTokenCreated& e) const { return e.token.id.str(); }
  std::string operator()(const ApiTokenRevoked& e) const { return e.token.str(); }
  std::string operator()(const JoinTokenCreated& e) const { return e.token.id.str(); }
  std::string operator()(const JoinTokenRevoked& e) const { return e.token.str(); }
  std::string operator()(const NodeEnrolled& e) const { return e.node.id.str(); }
  std::string operator()(const ClusterCreated& e) const { return e.cluster.id.str(); }
  std::string operator()(const LeaseGranted& e) const { return e.lease.id.str(); }
  std::string operator()(const JobCreated& e) const { return e.job.id.str(); }
  template <class E>
  std::string operator()(const E& e) const {
    if constexpr (requires { e.slot.str(); })
      return e.slot.str();
    else if constexpr (requires { e.lease.str(); })
      return e.lease.str();
    else if constexpr (requires { e.cluster.str(); })
      return e.cluster.str();
    else if constexpr (requires { e.job.str(); })
      return e.job.str();
    else if constexpr (requires { e.node.str(); })
      return e.node.str();
    else
      return {};
  }
};

}  // namespace

Bytes encode(const Event& event) {
  Encoder encoder;
  encoder.varint(event.index() + 1);
  encoder.varint(kEventVersion);
  std::visit([&](const auto& e) { encoder(e); }, event);
  return encoder.take();
}

Result<Event> decode_event(ByteView bytes) {
  Decoder decoder(bytes);
  const std::uint64_t type = decoder.varint();
  const std::uint64_t version = decoder.varint();
  if (!decoder.ok()) return error(Code::DataLoss, "a journal event is cut short; restore the journal from a backup");
  if (type == 0 || type > kTypes || version != kEventVersion)
    return error(Code::DataLoss, "a journal event has type " + std::to_string(type) + " version " +
                                     std::to_string(version) +
                                     ", which this build does not know; run the version that wrote it");
  Event event;
  decode_type(type, decoder, event, std::make_index_sequence<kTypes>());
  if (!decoder.done())
    return error(Code::DataLoss,
                 "a journal event of type " + std::to_string(type) + " is damaged; restore the journal from a backup");
  return event;
}

std::string_view event_name(const Event& event) {
  return kNames[event.index()];
}
std::string event_subject(const Event& event) {
  return std::visit(SubjectOf{}, event);
}

}  // namespace muster::control
