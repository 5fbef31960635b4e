#include <array>
#include <utility>

#include "control/codec.h"
#include "control/core.h"

namespace muster::control {
namespace {

constexpr std::size_t kTypes = std::variant_size_v<AnyEvent>;
// Types that came after format 1: {index in Event, format}.
constexpr std::array<std::pair<std::size_t, std::uint32_t>, 14> kLaterTypes{{{38, 2},
                                                                             {39, 4},
                                                                             {40, 5},
                                                                             {41, 6},
                                                                             {42, 7},
                                                                             {43, 7},
                                                                             {44, 8},
                                                                             {45, 8},
                                                                             {46, 8},
                                                                             {47, 8},
                                                                             {48, 8},
                                                                             {49, 8},
                                                                             {50, 8},
                                                                             {51, 8}}};

template <std::size_t I>
void decode_alternative(Decoder& decoder, Event& out) {
  decoder(out.emplace<I>());
}
template <std::size_t... I>
bool decode_type(std::uint64_t type, Decoder& decoder, Event& out, std::index_sequence<I...>) {
  return ((type == I + 1 ? (decode_alternative<I>(decoder, out), true) : false) || ...);
}

constexpr std::string_view kNames[] = {"org.created",        "project.created",     "principal.created",
                                       "principal.disabled", "api_token.created",   "api_token.revoked",
                                       "join_token.created", "join_token.revoked",  "node.enrolled",
                                       "node.facts_changed", "node.state_changed",  "node.tier_changed",
                                       "platform.freeze",    "cluster.backoff",     "cluster.backoff_ended",
                                       "cluster.created",    "cluster.updated",     "cluster.state_changed",
                                       "cluster.wanted",     "cluster.probed",      "lease.granted",
                                       "slot.keyed",         "slot.left",           "slot.promoted",
                                       "lease.want_changed", "lease.observed",      "lease.ended",
                                       "job.created",        "job.state_changed",   "job.log",
                                       "request.recorded",   "requests.aged",       "archived",
                                       "timer.set",          "leader.changed",      "incarnation.raised",
                                       "format.raised",      "quota.set",           "node.struck",
                                       "node.offered",       "image_policy.set",    "headroom.set",
                                       "signing_keys.noted", "principal.changed",   "tier.guaranteed",
                                       "login.renewed",      "login.reused",        "access.granted",
                                       "access.ended",       "cluster.pair_judged", "cluster.replacement_sought",
                                       "node.carried"};
static_assert(std::size(kNames) == kTypes);

struct SubjectOf {
  std::string operator()(const OrgCreated& e) const { return e.org.id.str(); }
  std::string operator()(const ProjectCreated& e) const { return e.project.id.str(); }
  std::string operator()(const PrincipalCreated& e) const { return e.principal.id.str(); }
  std::string operator()(const PrincipalDisabled& e) const { return e.principal.str(); }
  std::string operator()(const PrincipalChanged& e) const { return e.principal.str(); }
  std::string operator()(const ApiTokenCreated& e) const { return e.token.id.str(); }
  std::string operator()(const ApiTokenRevoked& e) const { return e.token.str(); }
  std::string operator()(const AccessGranted& e) const { return e.grant.id.str(); }
  std::string operator()(const GrantEnded& e) const { return e.grant.id.str(); }
  std::string operator()(const LoginRenewed& e) const { return e.token.str(); }
  std::string operator()(const RefreshReused& e) const { return e.token.str(); }
  std::string operator()(const JoinTokenCreated& e) const { return e.token.id.str(); }
  std::string operator()(const JoinTokenRevoked& e) const { return e.token.str(); }
  std::string operator()(const NodeEnrolled& e) const { return e.node.id.str(); }
  std::string operator()(const ClusterCreated& e) const { return e.cluster.id.str(); }
  std::string operator()(const LeaseGranted& e) const { return e.lease.id.str(); }
  std::string operator()(const JobCreated& e) const { return e.job.id.str(); }
  std::string operator()(const NodeStruck& e) const { return e.node.str(); }
  std::string operator()(const QuotaSet& e) const { return e.project ? e.project.str() : e.org.str(); }
  std::string operator()(const ImagePolicySet& e) const { return e.project ? e.project.str() : e.org.str(); }
  std::string operator()(const CarriedCounted& e) const { return e.node.str(); }
  std::string operator()(const ReplacementSought& e) const { return e.cluster.str(); }
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

// Not damage: somebody upgraded the platform, and this build was left behind.
Error from_the_future(std::uint64_t format) {
  return error(Code::Unsupported, "the journal is written in format " + std::to_string(format) +
                                      " and this build reads up to " + std::to_string(kFormatVersion) +
                                      "; upgrade this control plane");
}

}  // namespace

std::uint32_t format_needed(const Event& event) {
  for (const auto& [index, format] : kLaterTypes)
    if (index == event.index()) return format;
  return 1;
}

Bytes encode(const Event& event, std::uint32_t format) {
  Encoder encoder(format);
  encoder.varint(event.index() + 1);
  encoder.varint(format);
  std::visit([&](const auto& e) { encoder(e); }, event);
  return encoder.take();
}

Result<Event> decode_event(ByteView bytes) {
  Decoder decoder(bytes);
  const std::uint64_t type = decoder.varint();
  const std::uint64_t format = decoder.varint();
  if (!decoder.ok()) return error(Code::DataLoss, "a journal event is cut short; restore the journal from a backup");
  if (format > kFormatVersion) return from_the_future(format);
  if (type == 0 || type > kTypes || format == 0)
    return error(Code::DataLoss, "a journal event has type " + std::to_string(type) + " in format " +
                                     std::to_string(format) +
                                     ", which this build does not know; run the version that wrote it");
  decoder.set_format(format);
  Event event;
  decode_type(type, decoder, event, std::make_index_sequence<kTypes>());
  if (!decoder.done())
    return error(Code::DataLoss,
                 "a journal event of type " + std::to_string(type) + " is damaged; restore the journal from a backup");
  if (const auto* raised = std::get_if<FormatRaised>(&event); raised != nullptr && raised->version > kFormatVersion)
    return from_the_future(raised->version);
  return event;
}

std::string_view event_name(const Event& event) {
  return kNames[event.index()];
}
std::string event_subject(const Event& event) {
  return std::visit(SubjectOf{}, event);
}

}  // namespace muster::control
