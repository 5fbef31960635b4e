#include "control/decide.h"

#include "control/mutants.h"

namespace muster::control {
namespace {

constexpr std::size_t kRequestsMax = 200'000;

// An id without a hash only names the request. Nothing more to do for a repeat: the answer it got the first time, or a
// refusal when the body differs.
Result<std::optional<Outcome>> replay(const State& state, const Actor& actor) {
  if (actor.request_id.empty() || actor.request_hash.empty() || MUSTER_MUTANT(mutants::kForgetIdempotency))
    return std::optional<Outcome>{};
  const auto it = state.requests.find({actor.subject.principal, actor.request_id});
  if (it == state.requests.end()) return std::optional<Outcome>{};
  if (it->second.hash != actor.request_hash && !MUSTER_MUTANT(mutants::kIgnoreRequestHash))
    return error(Code::AlreadyExists,
                 "this Idempotency-Key was used for another request; take a new key for a new request",
                 "Idempotency-Key");
  return std::optional<Outcome>{Outcome{it->second.outcome_id, true}};
}

}  // namespace

Status Asking::may(access::Verb verb, const access::Object& object) const {
  if (actor.system || MUSTER_MUTANT(mutants::kSkipAccessCheck)) return {};
  return access::check(actor.subject.node ? actor.subject : asker(), verb, object);
}
access::Subject Asking::asker() const {
  access::Subject subject = actor.subject;
  bring_up_to_date(subject, base, wall);
  return subject;
}
Status Asking::system_only(std::string_view what) const {
  if (actor.system) return {};
  return error(Code::PermissionDenied, "only the control plane itself may " + std::string(what));
}
Status Asking::device_only(NodeId node) const {
  if (actor.system || MUSTER_MUTANT(mutants::kAcceptWrongNode)) return {};
  return access::check(actor.subject, access::Verb::Report, {.kind = access::Kind::Node, .node = node});
}

Decision done(Draft& draft, std::string id) {
  Decision decision;
  decision.events = std::move(draft.events);
  decision.outcome.id = std::move(id);
  return decision;
}

Error missing(std::string_view what, const std::string& id) {
  return error(Code::NotFound,
               "there is no " + std::string(what) + " " + id + "; list what you may see, then try again");
}

Result<Decision> decide(const State& state, const Command& command, const Actor& actor, Now now) {
  if (actor.request_id.size() > 200)
    return error(Code::InvalidArgument, "the Idempotency-Key is longer than 200 bytes; use a UUID", "Idempotency-Key");
  if (const auto repeat = TRY(replay(state, actor))) {
    Decision decision;
    decision.outcome = *repeat;
    return decision;
  }
  const Asking asking{state, actor, journal_wall(state, now)};
  Decision decision = TRY(std::visit([&](const auto& c) -> Decided { return decide(asking, c); }, command));
  if (!actor.request_id.empty() && !actor.request_hash.empty()) {
    if (state.requests.size() >= kRequestsMax) decision.events.push_back(RequestsAged{kRequestsMax / 100});
    decision.events.push_back(
        RequestRecorded{actor.subject.principal, actor.request_id, actor.request_hash, decision.outcome.id});
  }
  return decision;
}

Decided decide(const Asking& a, const BecomeLeader& c) {
  TRY_VOID(a.system_only("take leadership"));
  if (c.leader_epoch <= a.base.leader_epoch && a.base.leader_epoch != 0)
    return error(Code::Aborted, "leader epoch " + std::to_string(c.leader_epoch) + " is not newer than " +
                                    std::to_string(a.base.leader_epoch));
  Decision decision = one(LeaderChanged{c.leader_epoch});
  // A new journal has no older readers.
  if (a.base.seq == 0 && a.base.format_version < kFormatVersion)
    decision.events.emplace_back(FormatRaised{kFormatVersion});
  return decision;
}
Decided decide(const Asking& a, const RaiseIncarnation& c) {
  if (!a.actor.system) TRY_VOID(a.may(access::Verb::Update, {.kind = access::Kind::Platform}));
  return one(IncarnationRaised{a.base.incarnation + 1, c.why.substr(0, 200)});
}
Decided decide(const Asking& a, const RaiseFormat& c) {
  TRY_VOID(a.may(access::Verb::Update, {.kind = access::Kind::Platform}));
  if (c.version <= a.base.format_version) return Decision{};
  if (c.version > kFormatVersion)
    return error(Code::Unsupported, "this build writes format " + std::to_string(kFormatVersion) +
                                        " at most; upgrade every control plane first");
  return one(FormatRaised{c.version});
}

}  // namespace muster::control
