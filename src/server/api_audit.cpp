// The audit trail, what was refused, signed heads. Reads of the journal block, so they run on the pool, two at a time.
#include <fmt/format.h>

#include "control/core.h"
#include "server/access_log.h"
#include "server/api.h"
#include "server/audit.h"
#include "server/journal_head.h"
#include "server/list.h"

namespace muster::server {
namespace {

constexpr int kAuditsAtOnce = 2;

Result<AuditQuery> audit_query(const net::Request& request) {
  const ListQuery list = TRY(list_query(request, {"actor", "object", "verb", "org", "since", "until", "after"}));
  AuditQuery out;
  out.limit = list.limit;
  out.after = list.after;
  const auto text = [&](const std::string& key) {
    const auto found = list.filter.find(key);
    return found == list.filter.end() ? std::string() : found->second;
  };
  out.actor = text("actor"), out.object = text("object"), out.verb = text("verb"), out.org = text("org");
  for (const auto& [key, time] : {std::pair("since", &out.since), std::pair("until", &out.until)}) {
    if (text(key).empty()) continue;
    *time = parse_utc(text(key));
    if (!*time)
      return error(Code::InvalidArgument, fmt::format("{} must be a time such as 2026-11-23T01:02:03Z", key), "filter");
  }
  if (const std::string after = text("after"); !after.empty()) {
    if (after.size() > 18 || after.find_first_not_of("0123456789") != std::string::npos)
      return error(Code::InvalidArgument, "after must be the seq of an entry", "filter");
    out.after = std::max<std::uint64_t>(out.after, std::stoull(after));
  }
  return out;
}

Resolver audit_of_own(access::Verb verb) {
  return [verb](const control::State&, Call& call) -> Result<Ask> {
    return Ask{verb, {access::Kind::Audit, call.caller.subject.org, {}, {}}};
  };
}

}  // namespace

void Api::list_audit(const CallPtr& call) {
  const auto query = audit_query(call->request);
  if (!query.ok()) return fail(call, query.error());
  if (audits_.fetch_add(1) >= kAuditsAtOnce) {
    --audits_;
    return later(call, Millis(1000), "others read the audit trail");
  }
  const bool queued = post(call, [this, call, query = *query] {
    const auto page = read_audit(context_, call->caller.subject, query);
    --audits_;
    if (!page.ok()) return fail(call, page.error());
    std::vector<std::string> items;
    items.reserve(page->items.size());
    for (const auto& item : page->items) items.push_back(wire::to_json(item));
    ok(call, wire::list_json(items, page->next == 0 ? "" : cursor_text(page->next), page->seq));
  });
  if (!queued) --audits_;
}

void Api::list_refusals(const CallPtr& call) {
  const auto query = list_query(call->request, {"actor"});
  if (!query.ok()) return fail(call, query.error());
  post(call, [this, call, query = *query] {
    auto rows = context_.access->rows();
    const bool all = reads_everything(call->caller.subject);
    std::vector<std::string> items;
    std::uint64_t seq = 0;
    context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
      seq = state.seq;
      for (auto& [subject, view] : rows) {
        const auto found = state.principals.find(subject.principal);
        if (found != state.principals.end()) view.actor.name = found->second.name;
      }
    });
    for (auto& [subject, view] : rows) {
      const access::Object object{access::Kind::Audit, subject.org, {}, {}};
      if (items.size() >= query.limit || !access::check(call->caller.subject, access::Verb::Read, object).ok() ||
          (!passes(query, "actor", view.actor.id) && !passes(query, "actor", view.actor.name) &&
           !passes(query, "actor", view.actor.kind)))
        continue;
      if (all) view.last_address = context_.access->address(actor_text(subject), view.last_request_id);
      items.push_back(wire::to_json(view));
    }
    ok(call, wire::list_json(items, "", seq));
  });
}

void Api::add_audit() {
  using access::Verb;
  add("ListAudit", audit_of_own(Verb::List), [this](const CallPtr& call) { list_audit(call); });
  add("ListRefusals", audit_of_own(Verb::List), [this](const CallPtr& call) { list_refusals(call); });
  add(
      "GetJournalHead",
      [](const control::State&, Call&) -> Result<Ask> {
        return Ask{Verb::Read, {access::Kind::Audit, OrgId{}, {}, {}}};  // of everything
      },
      [this](const CallPtr& call) {
        post(call, [this, call] {
          const auto head = new_head(context_);
          if (!head.ok()) return fail(call, head.error());
          ok(call, wire::to_json(*head));
        });
      });
}

}  // namespace muster::server
