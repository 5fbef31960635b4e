#include "server/audit.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>
#include <map>

#include "server/access_log.h"
#include "server/api.h"
#include "server/event_text.h"
#include "server/views.h"
#include "wire/names.h"

namespace muster::server {
namespace {

using namespace control;  // NOLINT: the events are the vocabulary of this file

constexpr std::size_t kAuditChunk = 500;
constexpr const char* kProgramKind = "service";  // of actors that are service accounts
constexpr std::size_t kRemembered = 100'000;     // of leases, in one call

struct MeaningOf {
  using M = std::optional<AuditMeaning>;
  M operator()(const OrgCreated&) const { return {{"create", "organisation"}}; }
  M operator()(const ProjectCreated&) const { return {{"create", "project"}}; }
  M operator()(const QuotaSet& e) const { return {{"limit", e.project ? "project" : "organisation"}}; }
  M operator()(const ImagePolicySet& e) const { return {{"limit-images", e.project ? "project" : "organisation"}}; }
  M operator()(const SigningKeysNoted&) const { return {{"rotate", "signing-key"}}; }
  M operator()(const TierShareSet&) const { return {{"guarantee", "platform"}}; }
  M operator()(const HeadroomSet&) const { return {{"keep-back", "platform"}}; }
  M operator()(const PrincipalCreated& e) const {
    return {{"create", e.principal.service ? "service-account" : "account"}};
  }
  M operator()(const PrincipalChanged&) const { return {{"change", "account"}}; }
  M operator()(const PrincipalDisabled&) const { return {{"disable", "account"}}; }
  M operator()(const ApiTokenCreated&) const { return {{"create", "api-token"}}; }
  M operator()(const ApiTokenRevoked&) const { return {{"revoke", "api-token"}}; }
  M operator()(const AccessGranted& e) const { return {{e.grant.break_glass ? "break-glass" : "give", "grant"}}; }
  M operator()(const GrantEnded&) const { return {{"end", "grant"}}; }
  M operator()(const RefreshReused&) const { return {{"revoke", "login", true}}; }
  M operator()(const JoinTokenCreated&) const { return {{"create", "join-token"}}; }
  M operator()(const JoinTokenRevoked&) const { return {{"revoke", "join-token"}}; }
  M operator()(const NodeEnrolled&) const { return {{"enroll", "machine"}}; }
  M operator()(const NodeFactsChanged&) const { return {{"report", "machine"}}; }
  M operator()(const NodeStateChanged& e) const {
    switch (e.state) {
      case NodeState::Disabled:
        return {{"disable", "machine"}};
      case NodeState::Revoked:
        return {{"revoke", "machine"}};
      case NodeState::Quarantined:
        return {{"quarantine", "machine", true}};
      case NodeState::Suspect:
      case NodeState::Lost:
        return {{"lose", "machine", true}};
      default:
        return {{e.draining ? "drain" : "change", "machine"}};
    }
  }
  M operator()(const NodeOffered&) const { return {{"offer", "machine"}}; }
  M operator()(const NodeTierChanged&) const { return {{"trust", "machine"}}; }
  M operator()(const NodeStruck& e) const { return {{e.strikes == 0 ? "trust" : "strike", "machine", e.strikes != 0}}; }
  M operator()(const PairJudged& e) const { return {{e.slow ? "degrade" : "recover", "cluster", e.slow}}; }
  M operator()(const CarriedCounted&) const { return {}; }
  M operator()(const ReplacementSought&) const { return {{"replace", "worker"}}; }
  M operator()(const FreezeSet&) const { return {{"freeze", "platform"}}; }
  M operator()(const ClusterCreated&) const { return {{"create", "cluster"}}; }
  M operator()(const ClusterUpdated&) const { return {{"update", "cluster"}}; }
  M operator()(const ClusterStateChanged& e) const {
    switch (e.state) {
      case ClusterState::Running:
        return {{"start", "cluster"}};
      case ClusterState::Stopping:
        return {{"stop", "cluster"}};
      case ClusterState::Stopped:
        return {{"end", "cluster"}};
      case ClusterState::Failed:
        return {{"end", "cluster", true}};
      default:
        return {{"change", "cluster"}};
    }
  }
  M operator()(const LeaseGranted&) const { return {{"grant", "lease"}}; }
  M operator()(const LeaseEnded& e) const { return {{"end", "lease", e.end != LeaseEnd::Confirmed}}; }
  M operator()(const JobCreated&) const { return {{"create", "job"}}; }
  M operator()(const JobStateChanged& e) const {
    switch (e.state) {
      case JobState::Running:
        return {{"start", "job"}};
      case JobState::Stopping:
        return {{"stop", "job"}};
      case JobState::Succeeded:
      case JobState::Stopped:
        return {{"end", "job"}};
      case JobState::Failed:
        return {{"end", "job", true}};
      default:
        return {{"change", "job"}};
    }
  }
  M operator()(const LeaderChanged&) const { return {{"lead", "platform"}}; }
  M operator()(const IncarnationRaised&) const { return {{"restore", "platform"}}; }
  M operator()(const FormatRaised&) const { return {{"upgrade", "platform"}}; }
  template <class E>
  M operator()(const E&) const {
    return {};
  }
};

std::string kind_of(const Actor& actor) {
  if (actor.system) return "system";
  if (actor.subject.node) return "machine";
  return actor.subject.principal ? std::string(wire::text(actor.subject.role)) : "nobody";
}
std::string id_of(const Actor& actor) {
  if (actor.system) return {};
  return actor.subject.node ? actor.subject.node.str() : actor.subject.principal.str();
}

template <class Table, class Name>
std::string name_in(const Table& table, std::string_view id, Name name) {
  const auto key = Table::key_type::parse(id);
  const auto found = key ? table.find(*key) : table.end();
  return found == table.end() ? std::string() : name(found->second);
}
std::string name_of(const State& s, const std::string& id) {
  const auto name = [](const auto& of) { return of.name; };
  if (id.starts_with("usr-")) return name_in(s.principals, id, name);
  if (id.starts_with("node-")) return name_in(s.nodes, id, name);
  if (id.starts_with("org-")) return name_in(s.orgs, id, name);
  if (id.starts_with("prj-")) return name_in(s.projects, id, name);
  if (id.starts_with("tok-")) return name_in(s.api_tokens, id, [](const auto& of) { return of.label; });
  if (id.starts_with("cl-")) {
    const auto key = ClusterId::parse(id);
    const Cluster* found = key ? s.find_cluster(*key) : nullptr;
    return found == nullptr ? std::string() : found->spec.name;
  }
  return {};
}

class TrailReader {
 public:
  TrailReader(const Context& context, const access::Subject& reader, const AuditQuery& query)
      : context_(context), reader_(reader), query_(query), all_(reads_everything(reader)) {
    context.runner->read([&](const State& state, const scheduler::Scheduler&) {
      up_to_ = state.seq;
      if (!query.org.empty()) org_ = find_org(state, query.org).value_or(OrgId{});
      actor_ = actor_of(state);
      object_ = object_named(state);
    });
  }

  std::uint64_t up_to() const { return up_to_; }
  bool hopeless() const { return !query_.org.empty() && !org_; }  // no such organisation

  // The cheap part: without it a search in a long journal would look up everything.
  std::optional<engine::DurableEvent> wanted(const journal::Entry& entry, Event event) {
    if (const auto* granted = std::get_if<LeaseGranted>(&event); granted && leases_.size() < kRemembered)
      leases_[granted->lease.id] = granted->lease.cluster;
    const auto meaning = audit_meaning(event);
    if (!meaning || (!query_.verb.empty() && query_.verb != meaning->verb)) return {};
    engine::DurableEvent out{entry.seq, entry.wall, context_of(entry), std::move(event)};
    if (!actor_.empty() && actor_ != kProgramKind && actor_ != kind_of(out.actor) && actor_ != id_of(out.actor))
      return {};
    if (!object_.empty() && object_ != meaning->kind && object_ != event_subject(out.event) &&
        object_ != cluster_text(out.event))
      return {};
    return out;
  }

  // nullopt: not for this reader. archived: the object left the state, its organisation must be looked up.
  std::optional<wire::AuditView> view(const State& state, const engine::DurableEvent& event, bool& archived) {
    const auto shown = show_event(state, event);
    if (!shown) return {};
    wire::AuditView out;
    out.seq = event.seq;
    out.at = event.at;
    out.object.id = shown->view.subject;
    out.object.kind = std::string(audit_meaning(event.event)->kind);
    out.object.name = name_of(state, out.object.id);
    out.object.org = shown->object.owner;
    if (!out.object.org) {
      if (const Cluster* cluster = state.find_cluster(cluster_of(event.event)))
        out.object.org = object_of(state, *cluster).owner;
    }
    if (!out.object.org && out.object.kind != "platform") {
      archived = true;
      if (const auto known = past_.find(past_key(event.event)); known != past_.end()) out.object.org = known->second;
      if (!out.object.org && !event.actor.system) out.object.org = event.actor.subject.org;
    }
    const auto audit_of = [](OrgId owner) { return access::Object{access::Kind::Audit, owner, {}, {}}; };
    if (!access::check(reader_, access::Verb::Read, audit_of(out.object.org)).ok()) return {};
    if (org_ && out.object.org != org_) return {};
    out.verb = std::string(audit_meaning(event.event)->verb);
    out.outcome = audit_meaning(event.event)->failed ? "failed" : "done";
    out.event = shown->view.type;
    out.text = shown->view.text;
    out.actor.kind = kind_of(event.actor);
    const auto who = state.principals.find(event.actor.subject.principal);
    if (who != state.principals.end() && who->second.service) out.actor.kind = kProgramKind;
    if (actor_ == kProgramKind && out.actor.kind != kProgramKind) return {};
    // Machines act for their supplier.
    OrgId acting = event.actor.subject.org;
    if (const Node* node = event.actor.subject.node ? state.find_node(event.actor.subject.node) : nullptr)
      acting = node->supplier;
    if (all_ || (acting && acting == reader_.org)) {
      out.actor.id = id_of(event.actor);
      out.actor.name = name_of(state, out.actor.id);
      out.actor.org = acting;
      out.request_id = event.actor.request_id;
    } else if (!actor_.empty() && actor_ != out.actor.kind) {
      return {};  // a search must not tell what the entry hides
    }
    return out;
  }

  // Of what left the state, from the history; outside of the state's lock.
  void look_up(const Event& event) {
    const std::string key = past_key(event);
    if (key.empty() || past_.contains(key)) return;
    const auto found = read_history(context_, key);
    past_[key] = found ? found->org : OrgId{};
  }
  void add_address(wire::AuditView& view) const {
    if (!all_ || !context_.access || view.request_id.empty()) return;
    view.address = context_.access->address(view.actor.id.empty() ? "nobody" : view.actor.id, view.request_id);
  }

 private:
  // Names become ids; what is no name is taken as an id or a kind.
  std::string actor_of(const State& state) const {
    const auto who = state.principal_by_name.find(query_.actor);
    if (who != state.principal_by_name.end()) return who->second.str();
    const Node* node = query_.actor.empty() ? nullptr : find_node(state, reader_, query_.actor);
    return node != nullptr ? node->id.str() : query_.actor;
  }
  std::string object_named(const State& state) const {
    const std::string& text = query_.object;
    if (text.empty()) return {};
    if (const Cluster* cluster = find_cluster(state, reader_, text)) return cluster->id.str();
    if (const Job* job = find_job(state, reader_, text)) return job->id.str();
    const Node* node = find_node(state, reader_, text);
    return node != nullptr ? node->id.str() : text;
  }
  static Actor context_of(const journal::Entry& entry) {
    Actor out;
    out.subject = {entry.actor.principal, entry.actor.role, entry.actor.org, entry.actor.node, {}};
    out.system = entry.actor.system;
    out.request_id = entry.actor.request_id;
    return out;
  }
  ClusterId cluster_of(const Event& event) const {
    if (const auto* granted = std::get_if<LeaseGranted>(&event)) return granted->lease.cluster;
    const auto* ended = std::get_if<LeaseEnded>(&event);
    const auto found = ended == nullptr ? leases_.end() : leases_.find(ended->lease);
    return found == leases_.end() ? ClusterId{} : found->second;
  }
  std::string cluster_text(const Event& event) const { return cluster_of(event).str(); }
  std::string past_key(const Event& event) const {
    const std::string cluster = cluster_text(event), subject = event_subject(event);
    if (!cluster.empty()) return cluster;
    return subject.starts_with("cl-") || subject.starts_with("job-") ? subject : std::string();
  }

  const Context& context_;
  const access::Subject& reader_;
  const AuditQuery& query_;
  const bool all_;
  std::uint64_t up_to_ = 0;
  OrgId org_;
  std::string actor_, object_;
  std::map<LeaseId, ClusterId> leases_;
  std::map<std::string, OrgId> past_;
};

// The first entry at or after that time; entries are in the order of their times.
Result<std::uint64_t> first_at(const journal::Store& store, WallTime time, std::uint64_t up_to) {
  std::uint64_t low = 1, high = up_to + 1;
  while (low < high) {
    const std::uint64_t middle = low + (high - low) / 2;
    const auto found = TRY(store.read_all(middle, 1));
    if (found.empty())
      return error(Code::DataLoss, fmt::format("entry {} is missing; run musterd journal verify", middle));
    const auto entry = TRY(journal::decode(found.front()));
    if (entry.wall < time)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

}  // namespace

std::optional<AuditMeaning> audit_meaning(const Event& event) {
  return std::visit(MeaningOf{}, event);
}

bool reads_everything(const access::Subject& reader) {
  return access::check(reader, access::Verb::Read, {access::Kind::Audit, OrgId{}, {}, {}}).ok();
}

std::optional<WallTime> parse_utc(const std::string& text) {
  using namespace std::chrono;
  if (text.size() < 20 || text.size() > 24 || text.back() != 'Z') return {};
  const std::string_view shape = "dddd-dd-ddTdd:dd:dd";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != shape[i]) return {};
  }
  const auto number = [&](std::size_t from, std::size_t size) {
    int value = 0;
    std::from_chars(text.data() + from, text.data() + from + size, value);
    return value;
  };
  int millis = 0;
  if (text.size() > 20) {
    if (text[19] != '.' || text.size() == 21) return {};
    for (std::size_t i = 20, unit = 100; i + 1 < text.size(); ++i, unit /= 10) {
      if (text[i] < '0' || text[i] > '9') return {};
      millis += (text[i] - '0') * static_cast<int>(unit);
    }
  }
  const year_month_day date{year{number(0, 4)}, month{static_cast<unsigned>(number(5, 2))},
                            day{static_cast<unsigned>(number(8, 2))}};
  if (!date.ok() || number(11, 2) > 23 || number(14, 2) > 59 || number(17, 2) > 60) return {};
  const std::int64_t days = sys_days(date).time_since_epoch().count();
  return WallTime{((days * 24 + number(11, 2)) * 60 + number(14, 2)) * 60'000 + number(17, 2) * 1000 + millis};
}

Result<AuditPage> read_audit(const Context& context, const access::Subject& reader, const AuditQuery& query,
                             std::size_t scan_max) {
  TrailReader audit(context, reader, query);
  AuditPage page;
  page.seq = audit.up_to();
  if (audit.hopeless()) return page;
  std::uint64_t next = query.after + 1;
  if (query.since) next = std::max(next, TRY(first_at(*context.store, *query.since, page.seq)));
  for (std::size_t scanned = 0; next <= page.seq;) {
    const auto stored = TRY(context.store->read_all(next, std::min<std::uint64_t>(kAuditChunk, page.seq - next + 1)));
    if (stored.empty())
      return error(Code::DataLoss, fmt::format("entry {} is missing; run musterd journal verify", next));
    std::vector<engine::DurableEvent> events;
    bool over = false;
    for (const Bytes& bytes : stored) {
      const auto entry = TRY(journal::decode(bytes));
      if (query.until && *query.until <= entry.wall) {
        over = true;
        break;
      }
      next = entry.seq + 1;
      if (auto event = audit.wanted(entry, TRY(decode_event(entry.event)))) events.push_back(std::move(*event));
    }
    std::vector<std::optional<wire::AuditView>> views(events.size());
    std::vector<char> archived(events.size(), 0);
    const auto show = [&](bool again) {
      context.runner->read([&](const State& state, const scheduler::Scheduler&) {
        for (std::size_t i = 0; i < events.size(); ++i) {
          bool past = false;
          if (!again || archived[i] != 0) views[i] = audit.view(state, events[i], past);
          archived[i] = past ? 1 : 0;
        }
      });
    };
    show(false);
    bool any = false;
    for (std::size_t i = 0; i < events.size(); ++i) {
      if (archived[i] != 0) audit.look_up(events[i].event), any = true;
    }
    if (any) show(true);
    for (auto& view : views) {
      if (!view) continue;
      audit.add_address(*view);
      page.items.push_back(std::move(*view));
      if (page.items.size() < query.limit) continue;
      page.next = page.items.back().seq;
      return page;
    }
    scanned += stored.size();
    if (over) return page;
    if (scanned >= scan_max && next <= page.seq) {
      page.next = next - 1;
      return page;
    }
  }
  return page;
}

}  // namespace muster::server
