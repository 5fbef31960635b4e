// Machines: join tokens, enrolment, actions, telemetry.
#include <fmt/format.h>

#include "crypto/cert.h"
#include "crypto/hash.h"
#include "crypto/token.h"
#include "crypto/tpm_key.h"
#include "model/node_labels.h"
#include "model/offer.h"
#include "server/agents.h"
#include "server/api.h"
#include "server/host_judge.h"
#include "server/list.h"
#include "server/relay_book.h"
#include "server/reliability_book.h"
#include "server/signer.h"
#include "server/time_zone.h"
#include "server/way_memory.h"
#include "wire/names.h"

namespace muster::server {
namespace {

std::string node_json(const Context& context, const control::State& state, const access::Subject& caller,
                      const Node& node) {
  wire::NodeView view =
      node_view(state, caller, node, context.agents->owner_word(node.id), context.hosts->findings(node));
  const WallTime now = read_clocks().wall;
  const ReliabilityBook::Row row = context.reliability->of(node.id, now);
  const scheduler::Reliability judged = context.reliability->reliability(node.id, now);
  view.lease_hours = row.hours, view.leases_lost = row.lost, view.newcomer = judged.newcomer();
  view.hours_between = 1e6 / static_cast<double>(std::max<std::int64_t>(1, judged.failures_ppm));
  return wire::to_json(view);
}

constexpr Millis kJoinLifetime{3600'000}, kJoinLifetimeMax{86'400'000};

Result<std::string> shown_join(const control::State& state, const std::string& id, const std::string& secret) {
  const auto token = TokenId::parse(id);
  const auto found = token ? state.join_tokens.find(*token) : state.join_tokens.end();
  if (found == state.join_tokens.end()) return error(Code::NotFound, "the join token is gone");
  return wire::to_json(wire::JoinTokenView{found->second, secret});
}
Result<Ask> ask_node(const control::State& state, Call& call, access::Verb verb) {
  const Node* node = find_node(state, call.caller.subject, call.id);
  if (node == nullptr) return missing(access::Kind::Node, call.id);
  call.id = node->id.str();
  return Ask{verb, object_of(*node)};
}
// A machine's offer is its owner's alone; whoever may not see the machine finds none.
Result<Ask> ask_offer(const control::State& state, Call& call, access::Verb verb) {
  const Node* node = find_node(state, call.caller.subject, call.id);
  if (node == nullptr) return missing(access::Kind::Offer, call.id);
  call.id = node->id.str();
  access::Object object = object_of(*node);
  object.kind = access::Kind::Offer;
  return Ask{verb, object};
}
// Said only to who may do it: to others the machine looks missing, whatever the body says.
Result<Ask> same_machine(const Call& call, Ask ask, const std::string& named, const std::string& in_body) {
  if (in_body.empty() || in_body == named || in_body == call.id ||
      !access::check(call.caller.subject, ask.verb, ask.object).ok())
    return ask;
  return error(Code::InvalidArgument, "id in the body names another machine than the path", "id");
}
// Organisations by name become ids, hours in a zone become UTC.
Result<Offer> resolved(const control::State& state, const wire::OfferText& said, WallTime now) {
  Offer offer = said.offer;
  for (std::size_t i = 0; i < said.tenants.size(); ++i) {
    const auto org = find_org(state, said.tenants[i]);
    const std::string field = fmt::format("offer.tenants[{}]", i);
    if (!org) return error(Code::InvalidArgument, fmt::format("{} names no organisation", field), field);
    offer.tenants.push_back(*org);
  }
  if (!offer.schedule.empty()) {
    if (offer.zone.empty())
      return error(Code::InvalidArgument, "offer.timezone is required with hours: UTC, or a name such as Europe/Berlin",
                   "offer.timezone");
    offer.offsets = TRY(zone_offsets(offer.zone, now, "offer.timezone"));
  }
  return offer;
}
Result<control::SetNode::Action> action_of(const std::string& text) {
  using enum control::SetNode::Action;
  if (text == "admit") return Admit;
  if (text == "disable") return Disable;
  if (text == "enable") return Enable;
  if (text == "drain") return Drain;
  if (text == "undrain") return Undrain;
  if (text == "revoke") return Revoke;
  return error(Code::InvalidArgument, "action must be admit, disable, enable, drain, undrain or revoke", "action");
}
access::Verb verb_of(const std::string& action) {
  if (action == "drain" || action == "undrain") return access::Verb::Drain;
  return action == "revoke" ? access::Verb::Revoke : access::Verb::Update;
}

}  // namespace

void Api::enroll(const CallPtr& call) {
  const auto request = wire::parse_enroll(call->request.body);
  if (!request.ok()) return fail(call, request.error());
  const std::string address = call->request.peer.substr(0, call->request.peer.rfind(':'));
  const auto token = crypto::parse_join_token(request->token);
  if (!token.ok()) return fail(call, error(token.error().code, token.error().message, "token"));
  const auto key = crypto::verify_csr(request->csr_pem);
  if (!key.ok()) return fail(call, error(key.error().code, key.error().message, "csrPem"));
  if (const Status may = access::check(call->caller.subject, access::Verb::Enroll, {access::Kind::Node, {}, {}, {}});
      !may.ok())
    return fail(call, may.error());
  Bytes tpm;
  if (!request->tpm_key.empty()) {
    if (!crypto::tpm_signed(request->tpm_key, crypto::kTpmEnrolDomain, *key, request->tpm_signature))
      return fail(call,
                  error(Code::InvalidArgument, "the key of the TPM has not signed this device key", "tpmSignature"));
    const crypto::Digest digest = crypto::sha256(request->tpm_key);
    tpm.assign(digest.begin(), digest.end());
  }
  const std::string name = request->name.empty() ? request->facts.hostname : request->name;
  NodeFacts facts = request->facts;
  std::string held = context_.hosts->judge({}, facts);
  submit(call,
         control::EnrollNode{token->hash, Bytes(key->begin(), key->end()), name, std::move(facts), std::move(held)},
         [this, key = *key, tpm](const control::State&, const scheduler::Scheduler&,
                                 const engine::Reply& reply) -> Result<std::string> {
           const Identity& id = context_.identity;
           const auto cas = context_.cas.get();
           const auto node = NodeId::parse(reply.outcome.id);
           if (!node) return error(Code::Internal, "enrolment gave no machine id");
           wire::EnrollView view;
           view.node = *node;
           view.certificate_pem = TRY(id.signer->device_certificate(*node, key, context_.certificate_life, tpm));
           view.ca_pem = crypto::roots_pem(cas->trust);
           if (cas->trust.revision != 0) view.trust = cas->text;
           const WallTime now = read_clocks().wall;
           const auto roster = context_.keys.signing(crypto::KeyKind::Roster, now, id.roster_key);
           const auto order = context_.keys.signing(crypto::KeyKind::Order, now, id.command_key);
           view.roster_key.assign(roster.begin(), roster.end());
           view.command_key.assign(order.begin(), order.end());
           view.relays = addresses_of(*context_.relays->relays());
           view.server_id = id.server_id;
           return wire::to_json(view);
         });
}

void Api::add_nodes() {
  using access::Kind;
  using access::Verb;
  add(
      "CreateJoinToken",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto request = TRY(wire::parse_create_join_token(call.request.body));
        return Ask{Verb::Create, {Kind::JoinToken, TRY(wanted_org(state, call.caller.subject, request.org)), {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto request = wire::parse_create_join_token(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        if (request->lifetime > kJoinLifetimeMax)
          return fail(call,
                      error(Code::InvalidArgument, "lifetimeSeconds must be at most 86400 (a day)", "lifetimeSeconds"));
        Result<OrgId> org = OrgId{};
        context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          org = wanted_org(state, call->caller.subject, request->org);
        });
        if (!org.ok()) return fail(call, org.error());
        const auto token = crypto::make_join_token(context_.cas.get()->pin, context_.public_host);
        const Millis lifetime = request->lifetime == Millis(0) ? kJoinLifetime : request->lifetime;
        submit(call, control::CreateJoinToken{*org, token.hash, request->labels, lifetime},
               [token](const control::State& state, const scheduler::Scheduler&, const engine::Reply& reply) {
                 return shown_join(state, reply.outcome.id, reply.outcome.replayed ? std::string() : token.text);
               });
      });
  add(
      "ListJoinTokens",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::JoinToken, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"used"});
        if (!query.ok()) return fail(call, query.error());
        read(call, [&](const control::State& state, const scheduler::Scheduler&) {
          return list_page(*query, state, state.join_tokens, [&](const JoinToken& token) -> std::optional<std::string> {
            if (!access::visible(call->caller.subject, object_of(token)) ||
                !passes(*query, "used", token.used_by ? "true" : "false"))
              return {};
            return wire::to_json(wire::JoinTokenView{token, {}});
          });
        });
      });
  add(
      "RevokeJoinToken",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto id = TokenId::parse(call.id);
        const auto found = id ? state.join_tokens.find(*id) : state.join_tokens.end();
        if (found == state.join_tokens.end()) return missing(Kind::JoinToken, call.id);
        return Ask{Verb::Revoke, object_of(found->second)};
      },
      [this](const CallPtr& call) {
        submit(call, control::RevokeJoinToken{*TokenId::parse(call->id)},
               [id = call->id](const control::State& state, const scheduler::Scheduler&, const engine::Reply&) {
                 return shown_join(state, id, {});
               });
      });
  add_open("Enroll", [this](const CallPtr& call) { enroll(call); });
  add(
      "ListNodes",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::Node, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"state", "name", "arch", "region", "tier"});
        if (!query.ok()) return fail(call, query.error());
        read(call, [&](const control::State& state, const scheduler::Scheduler&) {
          return list_page(*query, state, state.nodes, [&](const Node& node) -> std::optional<std::string> {
            if (!access::visible(call->caller.subject, object_of(node)) ||
                !passes(*query, "state", wire::text(node.state)) || !passes(*query, "name", node.name) ||
                !passes(*query, "arch", node.facts.arch) || !passes(*query, "region", region_of(node)) ||
                !passes(*query, "tier", wire::text(node.tier))) {
              return {};
            }
            return node_json(context_, state, call->caller.subject, node);
          });
        });
      });
  add(
      "GetNode", [](const control::State& state, Call& call) { return ask_node(state, call, Verb::Read); },
      [this](const CallPtr& call) {
        read(call, [&](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
          const Node* node = state.find_node(*NodeId::parse(call->id));
          if (node == nullptr) return error(Code::NotFound, "the machine is gone");
          return node_json(context_, state, call->caller.subject, *node);
        });
      });
  add(
      "ActOnNode",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto request = TRY(wire::parse_node_action(call.request.body));
        const std::string named = call.id;  // an id or a name
        return same_machine(call, TRY(ask_node(state, call, verb_of(request.action))), named, request.id);
      },
      [this](const CallPtr& call) {
        const auto request = wire::parse_node_action(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        const NodeId node = *NodeId::parse(call->id);
        control::Command command;
        if (request->tier) {
          if (!request->action.empty() && request->action != "admit")
            return fail(call, error(Code::InvalidArgument, "tier goes alone or with the action admit", "tier"));
          command = control::SetNodeTier{node, *request->tier};
        } else {
          const auto action = action_of(request->action);
          if (!action.ok()) return fail(call, action.error());
          command = control::SetNode{node, *action};
        }
        const auto render = [this, call](const control::State& state, const scheduler::Scheduler&,
                                         const engine::Reply&) -> Result<std::string> {
          const Node* found = state.find_node(*NodeId::parse(call->id));
          if (found == nullptr) return error(Code::NotFound, "the machine is gone");
          return node_json(context_, state, call->caller.subject, *found);
        };
        if (request->tier && request->action == "admit") {
          // Two commands, one request: the tier first, so that the machine is never admitted at the wrong one.
          control::Actor actor;
          actor.subject = call->caller.subject;
          return context_.runner->submit(
              control::Lane::Operator, std::move(command), std::move(actor),
              [this, call, node, render](Result<engine::Reply> reply) {
                if (!reply.ok()) return fail(call, reply.error());
                submit(call, control::SetNode{node, control::SetNode::Action::Admit}, render);
              });
        }
        submit(call, std::move(command), render);
      });
  add(
      "SetNodeOffer",
      [](const control::State& state, Call& call) -> Result<Ask> {
        const auto request = TRY(wire::parse_set_offer(call.request.body));
        const std::string named = call.id;
        return same_machine(call, TRY(ask_offer(state, call, Verb::Update)), named, request.id);
      },
      [this](const CallPtr& call) {
        const auto request = wire::parse_set_offer(call->request.body);
        if (!request.ok()) return fail(call, request.error());
        Result<Offer> offer = Offer{};
        const wire::OfferText nothing{{.currency = std::string(kPlainCurrency)}, {}};
        context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
          offer = resolved(state, request->offer.value_or(nothing), read_clocks().wall);
        });
        if (!offer.ok()) return fail(call, offer.error());
        submit(call, control::SetOffer{*NodeId::parse(call->id), *offer},
               [this, call](const control::State& state, const scheduler::Scheduler&,
                            const engine::Reply&) -> Result<std::string> {
                 const Node* found = state.find_node(*NodeId::parse(call->id));
                 if (found == nullptr) return error(Code::NotFound, "the machine is gone");
                 return node_json(context_, state, call->caller.subject, *found);
               });
      });
  add(
      "ExplainNode", [](const control::State& state, Call& call) { return ask_offer(state, call, Verb::Read); },
      [this](const CallPtr& call) {
        read(call, [&](const control::State& state, const scheduler::Scheduler& scheduler) -> Result<std::string> {
          const NodeId node = *NodeId::parse(call->id);
          return wire::to_json(wire::NodeRefusalsView{node, static_cast<std::uint32_t>(scheduler.waiting()),
                                                      scheduler.refused_by(node, read_clocks().wall), state.seq});
        });
      });
  add(
      "GetNodeWays", [](const control::State& state, Call& call) { return ask_node(state, call, Verb::Read); },
      [this](const CallPtr& call) {
        read(call, [&](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
          wire::NodeWaysView view;
          view.node = NodeId::parse(call->id).value_or(NodeId{});
          view.seq = state.seq;
          const WallTime now = read_clocks().wall;
          const auto seen = [&](const Node& node) {
            return access::check(call->caller.subject, Verb::Read, object_of(node)).ok();
          };
          if (const auto place = context_.ways->place(view.node))
            view.place_error = place->error, view.place_from = static_cast<std::uint32_t>(place->from);
          if (const std::string to = call->request.query_value("to").value_or(""); !to.empty()) {
            const Node* other = find_node(state, call->caller.subject, to);
            if (other == nullptr || !seen(*other))
              return error(Code::NotFound, "there is no machine of that name or id that you may see", "to");
            view.foretold_rtt_us = context_.ways->foretold_rtt_us(view.node, other->id).value_or(0);
          }
          for (const auto& [id, way] : context_.ways->of(view.node, now)) {
            const Node* other = state.find_node(id);
            const bool named = other != nullptr && seen(*other);
            const std::string_view path = way.kind == scheduler::PathKind::Relay ? "relay"
                                          : way.kind == scheduler::PathKind::Lan ? "lan"
                                                                                 : "direct";
            view.ways.push_back({id, named ? other->name : std::string(), std::string(path), way.kbps, way.samples,
                                 WayMemory::confidence(way, now), way.measured, way.seen, way.rtt_us});
          }
          return wire::to_json(view);
        });
      });
  add(
      "ListTelemetry",
      [](const control::State&, Call& call) -> Result<Ask> {
        return Ask{Verb::List, {Kind::Telemetry, call.caller.subject.org, {}, {}}};
      },
      [this](const CallPtr& call) {
        const auto query = list_query(call->request, {"node"});
        if (!query.ok()) return fail(call, query.error());
        context_.agents->watch();  // somebody looks: machines sample at 1 Hz for a while
        read(call, [&](const control::State& state, const scheduler::Scheduler&) {
          return list_page(*query, state, state.nodes, [&](const Node& node) -> std::optional<std::string> {
            access::Object object = object_of(node);
            object.kind = Kind::Telemetry;
            if (!passes(*query, "node", node.id.str()) && !passes(*query, "node", node.name)) return {};
            const bool whole = access::visible(call->caller.subject, object);
            if (!whole && !hires_from(state, call->caller.subject, node)) return {};
            const auto latest = context_.agents->telemetry(node.id);
            if (!latest) return {};
            return wire::to_json(telemetry_view(state, call->caller.subject, node, *latest,
                                                whole ? Sight::Machine : Sight::OwnContainers));
          });
        });
      });
}

}  // namespace muster::server
