#include "server/api.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "base/http_status.h"
#include "base/log.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "crypto/token.h"
#include "server/access_log.h"
#include "server/access_tokens.h"
#include "server/agents.h"
#include "server/blob_store.h"
#include "server/workload_identity.h"
#include "wire/openapi.h"

namespace muster::server {
namespace {

constexpr Millis kMinSeqWait{5000};
constexpr std::size_t kIdempotencyKeyMax = 128;

// What a request was sent with: an API token, or the short-lived token of a login.
struct Shown {
  Bytes hash;
  std::optional<AccessTokens::Read> access;
};
Result<Shown> shown_token(const net::Request& request, const AccessTokens& tokens) {
  const std::string header = request.header("authorization");
  if (header.empty()) return error(Code::Unauthenticated, "send your API token as: Authorization: Bearer mst_...");
  if (!header.starts_with("Bearer "))
    return error(Code::Unauthenticated, "the Authorization header must be: Bearer mst_...");
  const std::string_view text = std::string_view(header).substr(7);
  if (crypto::looks_like_access_token(text)) return Shown{{}, TRY(tokens.read(text, read_clocks().wall))};
  return Shown{TRY(crypto::api_token_hash(text)), {}};
}

// A login is looked up whatever its token says, so that one which was ended is over at once.
Result<Caller> caller_of(const control::State& state, const Shown& shown) {
  const ApiToken* token = nullptr;
  if (!shown.access) token = state.find_api_token(shown.hash);
  if (token != nullptr && !token->refresh.empty()) token = nullptr;  // a part of a refresh token opens nothing
  if (shown.access) {
    const auto found = state.api_tokens.find(shown.access->session);
    const bool login = found != state.api_tokens.end() && !found->second.refresh.empty() &&
                       found->second.owner == shown.access->account;
    if (login) token = &found->second;
  }
  const auto owner = token == nullptr ? state.principals.end() : state.principals.find(token->owner);
  if (token == nullptr || token->revoked || (token->expires.ms != 0 && token->expires <= read_clocks().wall) ||
      owner == state.principals.end() || owner->second.disabled)
    return error(Code::Unauthenticated, "this token is unknown, expired or revoked; log in again");
  Caller caller;
  caller.subject = {owner->second.id, owner->second.role, owner->second.org, {}, token->scopes, owner->second.service};
  control::bring_up_to_date(caller.subject, state, read_clocks().wall);
  caller.token = token->id;
  caller.expires = token->expires;
  caller.known = true;
  return caller;
}

// "/api/v1/nodes/{id}/action" against "/api/v1/nodes/node-3/action" -> "node-3".
std::optional<std::string> match_path(std::string_view pattern, std::string_view path) {
  const auto open = pattern.find('{');
  if (open == std::string_view::npos) return pattern == path ? std::optional<std::string>("") : std::nullopt;
  const auto close = pattern.find('}', open);
  const auto head = pattern.substr(0, open), tail = pattern.substr(close + 1);
  if (path.size() <= head.size() + tail.size() || !path.starts_with(head) || !path.ends_with(tail)) return {};
  const auto id = path.substr(head.size(), path.size() - head.size() - tail.size());
  if (id.find('/') != std::string_view::npos) return {};
  return std::string(id);
}

}  // namespace

control::Lane lane_of(const access::Subject& subject) {
  if (subject.role == Role::Operator) return control::Lane::Operator;
  const bool supplier = subject.role == Role::Supplier || subject.role == Role::SupplierMember;
  return supplier ? control::Lane::Supplier : control::Lane::Tenant;
}

net::Response problem(const Error& error) {
  net::Response response;
  response.status = http_status(error.code);
  response.content_type = "application/problem+json";
  response.body = wire::problem_json(error);
  if (error.code == Code::Unauthenticated) response.headers["WWW-Authenticate"] = "Bearer";
  if (error.code == Code::Unavailable || error.code == Code::ResourceExhausted) response.headers["Retry-After"] = "2";
  return response;
}

std::string cursor_text(std::uint64_t id) {
  return base64url(as_bytes(fmt::format("v1:{}", id)));
}

Result<ListQuery> list_query(const net::Request& request, std::initializer_list<std::string_view> keys) {
  ListQuery out;
  if (const auto limit = request.query_value("limit"); limit && !limit->empty()) {
    const auto [end, fault] = std::from_chars(limit->data(), limit->data() + limit->size(), out.limit);
    if (fault != std::errc() || end != limit->data() + limit->size() || out.limit < 1 || out.limit > 1000) {
      return error(Code::InvalidArgument, "limit must be a whole number between 1 and 1000", "limit");
    }
  }
  if (const auto cursor = request.query_value("cursor"); cursor && !cursor->empty()) {
    const auto bytes = unbase64url(*cursor);
    const std::string text = bytes ? as_string(*bytes) : std::string();
    const auto [end, fault] =
        std::from_chars(text.data() + std::min<std::size_t>(3, text.size()), text.data() + text.size(), out.after);
    if (!text.starts_with("v1:") || fault != std::errc() || end != text.data() + text.size()) {
      return error(Code::InvalidArgument, "cursor must be the nextCursor of the page before", "cursor");
    }
  }
  std::string_view filter;
  const auto text = request.query_value("filter");
  if (text) filter = *text;
  while (!filter.empty()) {
    const auto comma = filter.find(',');
    const auto part = filter.substr(0, comma);
    filter = comma == std::string_view::npos ? std::string_view() : filter.substr(comma + 1);
    const auto equals = part.find('=');
    const auto key = part.substr(0, equals);
    if (equals == std::string_view::npos || std::find(keys.begin(), keys.end(), key) == keys.end()) {
      return error(
          Code::InvalidArgument,
          fmt::format("filter must be key=value pairs, comma separated, with the keys: {}", fmt::join(keys, ", ")),
          "filter");
    }
    out.filter[std::string(key)] = std::string(part.substr(equals + 1));
  }
  return out;
}

Api::Api(Context& context) : context_(context) {
  for (const auto& operation : wire::operations()) {
    if (operation.path.find('{') == std::string::npos)
      fixed_paths_.emplace(operation.path, &operation);
    else
      open_paths_.push_back(&operation);
  }
  add_people();
  add_quotas();
  add_tokens();
  add_services();
  add_grants();
  add_nodes();
  add_carried();
  add_clusters();
  add_jobs();
  add_rest();
  add_registries();
  add_images();
  add_totp();
  add_sso();
  add_audit();
}

void Api::add(const std::string& name, Resolver resolve, Handler handler) {
  MUSTER_CHECK(wire::find_operation(name) != nullptr && resolve && handler);
  routes_[name] = Route{false, std::move(resolve), std::move(handler)};
}
void Api::add_open(const std::string& name, Handler handler) {
  MUSTER_CHECK(wire::find_operation(name) != nullptr && handler);
  routes_[name] = Route{true, {}, std::move(handler)};
}

void Api::answer(const CallPtr& call, net::Response response) const {
  response.headers["Muster-Request-Id"] = call->request_id;
  call->responder->send(std::move(response));
}
void Api::ok(const CallPtr& call, std::string body) const {
  net::Response response;
  response.body = std::move(body);
  response.headers["Cache-Control"] = "no-store";
  answer(call, std::move(response));
}
void Api::fail(const CallPtr& call, const Error& error) const {
  note_refusal(*call, error);
  answer(call, problem(error));
}
void Api::note_refusal(const Call& call, const Error& error) const {
  if (error.code != Code::Unauthenticated && error.code != Code::PermissionDenied && error.code != Code::NotFound &&
      error.code != Code::ResourceExhausted)
    return;
  context_.access->refused(call.caller.subject, call.operation->name, error.code, call.request_id, call.request.peer,
                           read_clocks().wall);
}

bool Api::post(const CallPtr& call, std::function<void()> job) {
  if (context_.pool->post(std::move(job))) return true;
  fail(call, error(Code::ResourceExhausted, "the server is busy; try again in a moment"));
  return false;
}

Result<Caller> Api::authenticate(const net::Request& request) const {
  const Shown shown = TRY(shown_token(request, *context_.tokens));
  Result<Caller> out = error(Code::Internal, "not looked up");
  context_.runner->read(
      [&](const control::State& state, const scheduler::Scheduler&) { out = caller_of(state, shown); });
  return out;
}

Result<CallPtr> Api::match(net::Request request, net::ResponderPtr responder) const {
  bool path_known = false;
  const auto take = [&](const wire::Operation& operation, std::string id) {
    auto call = std::make_shared<Call>();
    call->request = std::move(request);
    call->responder = std::move(responder);
    call->operation = &operation;
    call->id = std::move(id);
    call->request_id = "req-" + hex(crypto::random_bytes(8));
    return call;
  };
  const auto fixed = fixed_paths_.equal_range(request.path);
  for (auto it = fixed.first; it != fixed.second; ++it) {
    path_known = true;
    if (it->second->method == request.method) return take(*it->second, "");
  }
  for (const wire::Operation* operation : open_paths_) {
    auto id = match_path(operation->path, request.path);
    if (!id) continue;
    path_known = true;
    if (operation->method == request.method) return take(*operation, std::move(*id));
  }
  if (path_known)
    return error(Code::Unsupported,
                 "this path does not take the method " + request.method + "; see /api/v1/openapi.json");
  return error(Code::NotFound, "there is no such path; see /api/v1/openapi.json");
}

Error missing(access::Kind kind, const std::string& asked) {
  return error(Code::NotFound, fmt::format("there is no {} {} among those you may see; list them, then try again",
                                           access::kind_name(kind), asked));
}

Status Api::authorise(const CallPtr& call) const {
  const auto route = routes_.find(call->operation->name);
  if (route == routes_.end())
    return error(Code::PermissionDenied, "this operation has no access rule and is therefore closed");
  if (route->second.open) return {};
  const Shown shown = TRY(shown_token(call->request, *context_.tokens));
  Result<Ask> ask = error(Code::Internal, "not asked");
  Status known;
  const std::string asked = call->id;  // as it was written
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    auto caller = caller_of(state, shown);
    if (!caller.ok()) {
      known = caller.error();
      return;
    }
    call->caller = std::move(*caller);
    ask = route->second.resolve(state, *call);
  });
  TRY_VOID(known);
  if (!ask.ok()) {
    // What left the state may still be in the history.
    const std::string& name = call->operation->name;
    if (ask.error().code != Code::NotFound || (name != "GetJob" && name != "GetCluster" && name != "JobLogs"))
      return ask.error();
    const bool job = call->id.starts_with("job-");
    if (job != (name != "GetCluster")) return ask.error();  // the history holds both
    const auto past = read_history(context_, call->id);
    if (!past) return ask.error();
    call->archived = true;
    ask = Ask{call->operation->name == "JobLogs" ? access::Verb::Logs : access::Verb::Read,
              {job ? access::Kind::Job : access::Kind::Cluster, past->org, {}, past->owner}};
  }
  const Status may = access::check(call->caller.subject, ask->verb, ask->object);
  if (may.ok()) call->caller.grant = access::grant_used(call->caller.subject, ask->verb, ask->object);
  // A foreign object must not differ from a missing one in a single word.
  if (!may.ok() && may.error().code == Code::NotFound) return missing(ask->object.kind, asked);
  return may;
}

void Api::after_min_seq(const CallPtr& call, Handler handler) {
  const auto text = call->request.query_value("min_seq");
  std::uint64_t seq = 0;
  if (text && !text->empty()) {
    const auto [end, fault] = std::from_chars(text->data(), text->data() + text->size(), seq);
    if (fault != std::errc() || end != text->data() + text->size())
      return fail(call, error(Code::InvalidArgument, "min_seq must be a whole number", "min_seq"));
  }
  const auto go = [this, call, handler] {
    if (const Status allowed = authorise(call); !allowed.ok()) return fail(call, allowed.error());
    handler(call);
  };
  if (seq == 0 || context_.runner->wait_for(seq, Millis(0))) return go();
  post(call, [this, call, seq, go] {
    if (!context_.runner->wait_for(seq, kMinSeqWait)) {
      return fail(call, error(Code::Unavailable, fmt::format("this server has not reached seq {} yet; try again", seq),
                              "min_seq"));
    }
    go();
  });
}

void Api::handle(net::Request request, net::ResponderPtr responder) {
  if (!request.path.starts_with("/api/v1/") || request.path == "/api/v1/openapi.json")
    return special(request, responder);
  auto call = match(std::move(request), responder);
  if (!call.ok()) {
    net::Response response = problem(call.error());
    if (call.error().code == Code::Unsupported) {
      response.status = 405;
      response.body = wire::problem_json(405, call.error());
    }
    return responder->send(std::move(response));
  }
  if ((*call)->operation->streams == "websocket")
    return fail(*call, error(Code::InvalidArgument, "open this path as a WebSocket"));
  const auto route = routes_.find((*call)->operation->name);
  if (route == routes_.end()) return fail(*call, error(Code::PermissionDenied, "this operation is closed"));
  after_min_seq(*call, route->second.handler);
}

std::optional<net::Response> Api::upgrade(const net::Request& request) {
  if (request.path == "/agent/v1") return {};  // proves itself inside
  if (auto call = admit(request); !call.ok()) return problem(call.error());
  return {};
}

Result<CallPtr> Api::admit(net::Request request) {
  CallPtr call = TRY(match(std::move(request), nullptr));
  if (call->operation->streams != "websocket") return error(Code::InvalidArgument, "this path is no WebSocket");
  if (const Status allowed = authorise(call); !allowed.ok()) {
    note_refusal(*call, allowed.error());
    return allowed.error();
  }
  if (call->archived) return error(Code::FailedPrecondition, "the cluster ended; nothing runs there any more");
  return call;
}

std::optional<net::ServerHandlers::Upload> Api::upload(const net::Request& request, net::Response& refusal) {
  auto call = match(request, nullptr);
  if (!call.ok() || (*call)->operation->body != "binary") return {};
  if (const Status allowed = authorise(*call); !allowed.ok()) {
    note_refusal(**call, allowed.error());
    refusal = problem(allowed.error());
    return {};
  }
  auto sink = context_.blobs->begin((*call)->caller.subject.org);
  if (!sink.ok()) {
    refusal = problem(sink.error());
    return {};
  }
  net::ServerHandlers::Upload out;
  out.chunk = [sink = *sink](ByteView data) { return sink->chunk(data); };
  out.end = [sink = *sink] {
    const auto done = sink->end();
    if (!done.ok()) return problem(done.error());
    net::Response response;
    response.body = wire::to_json(wire::BlobView{done->digest, done->bytes});
    return response;
  };
  return out;
}

void Api::special(const net::Request& request, const net::ResponderPtr& responder) {
  net::Response response;
  const bool get = request.method == "GET" || request.method == "HEAD";
  if (get && request.path == "/api/v1/openapi.json") {
    response.body = wire::openapi_json();
  } else if (get && request.path == "/.well-known/openid-configuration") {
    response.body = context_.workloads->discovery();
  } else if (get && request.path == "/.well-known/jwks.json") {
    response.body = context_.workloads->jwk_set(read_clocks().wall);
  } else if (request.method == "POST" && request.path == "/sso/logout") {
    return sso_logout(request, responder);
  } else if (get && request.path == "/healthz") {
    response.content_type = "text/plain";
    response.body = "ok\n";
  } else if (get && request.path == "/readyz") {
    response.content_type = "text/plain";
    response.status = context_.runner->read_only() ? 503 : 200;
    response.body = context_.runner->read_only() ? "read-only: the journal takes no writes\n" : "ready\n";
  } else if (get && request.path == "/metrics") {
    bool allowed = request.peer.starts_with("127.0.0.1:") || request.peer.starts_with("[::1]:");
    if (!allowed) {
      const auto caller = authenticate(request);
      const Status may = caller.ok()
                             ? access::check(caller->subject, access::Verb::Read, {access::Kind::Platform, {}, {}, {}})
                             : Status(caller.error());
      if (!may.ok()) return responder->send(problem(may.error()));
    }
    response.content_type = "text/plain; version=0.0.4";
    response.body = metrics_text(context_);
  } else {
    response = problem(error(Code::NotFound, "there is no such path; the API is described at /api/v1/openapi.json"));
  }
  responder->send(std::move(response));
}

void Api::submit(const CallPtr& call, control::Command command, Render render,
                 std::function<void(const engine::Reply&)> before) {
  control::Actor actor;
  actor.subject = call->caller.subject;
  const std::string key = call->request.header("idempotency-key");
  if (!key.empty()) {
    const bool plain = std::all_of(key.begin(), key.end(), [](char c) { return c > ' ' && c < 0x7f; });
    if (key.size() > kIdempotencyKeyMax || !plain) {
      return fail(
          call, error(Code::InvalidArgument,
                      fmt::format("Idempotency-Key must be at most {} printable ASCII characters", kIdempotencyKeyMax),
                      "Idempotency-Key"));
    }
    call->request_id = key;
    crypto::Sha256 hash;
    for (const std::string* part : {&call->request.method, &call->request.path, &call->request.body}) {
      hash.update(as_bytes(fmt::format("{}:", part->size())));
      hash.update(as_bytes(*part));
    }
    const auto digest = hash.finish();
    actor.request_hash.assign(digest.begin(), digest.end());
  }
  actor.request_id = call->request_id;
  context_.runner->submit(
      lane_of(call->caller.subject), std::move(command), std::move(actor),
      [this, call, render = std::move(render), before = std::move(before)](Result<engine::Reply> reply) {
        if (!reply.ok()) return fail(call, reply.error());
        if (!reply->outcome.replayed)
          context_.access->came_from(actor_text(call->caller.subject), call->request_id, call->request.peer,
                                     read_clocks().wall);
        auto respond = [this, call, render, before, reply = *reply] {
          if (before) before(reply);
          if (!context_.runner->wait_for(reply.seq, kMinSeqWait)) {
            return fail(call,
                        error(Code::Unavailable,
                              fmt::format("it is done (seq {}), but this server cannot show it yet; read it again",
                                          reply.seq)));
          }
          Result<std::string> body = error(Code::Internal, "not rendered");
          context_.runner->read([&](const control::State& state, const scheduler::Scheduler& scheduler) {
            body = render(state, scheduler, reply);
          });
          if (!body.ok()) return fail(call, body.error());
          net::Response response;
          response.body = std::move(*body);
          response.headers["Muster-Seq"] = std::to_string(reply.seq);
          answer(call, std::move(response));
        };
        // Nothing of it blocks when the follower is there already: no other thread need be woken.
        if (!before && context_.runner->wait_for(reply->seq, Millis(0))) return respond();
        post(call, std::move(respond));
      });
}

void Api::read(const CallPtr& call,
               const std::function<Result<std::string>(const control::State&, const scheduler::Scheduler&)>& f) {
  Result<std::string> body = error(Code::Internal, "not rendered");
  context_.runner->read(
      [&](const control::State& state, const scheduler::Scheduler& scheduler) { body = f(state, scheduler); });
  if (!body.ok()) return fail(call, body.error());
  ok(call, std::move(*body));
}

}  // namespace muster::server
