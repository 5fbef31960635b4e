#include "server/app.h"

#include <set>

#include "base/log.h"
#include "server/access_tokens.h"
#include "server/api.h"
#include "server/at_rest.h"
#include "server/blob_store.h"
#include "server/event_hub.h"
#include "server/host_judge.h"
#include "server/image_scans.h"
#include "server/journal_head.h"
#include "server/log_store.h"
#include "server/registry_store.h"
#include "server/relay_book.h"
#include "server/relay_teller.h"
#include "server/reliability_book.h"
#include "server/second_factor.h"
#include "server/signed_book.h"
#include "server/sso.h"
#include "server/start_forecasts.h"
#include "server/way_memory.h"
#include "server/workload_identity.h"

namespace muster::server {

namespace {
// The chain holds the roots, so that a client which only knows the digest of one can pin it.
net::TlsFiles tls_files(const Identity& identity) {
  return {identity.tls.cert_pem + identity.cas.chain(), identity.tls.key_pem};
}
std::string issuer_of(const std::string& public_host, const Identity& identity) {
  if (public_host.empty()) return "https://" + identity.sans.front();
  return "https://" + (public_host.ends_with(":443") ? public_host.substr(0, public_host.size() - 4) : public_host);
}
// Takes note of the certificates in use, and says which of them near their end.
Status watch_certificates(Context& context, const Identity& identity) {
  TRY_VOID(context.certificates.set("server", identity.tls.cert_pem,
                                    "it is renewed by itself when a third of its life is left"));
  const auto& cas = identity.cas;
  std::set<std::string> names{"server", PublicName::kWatched};
  const auto watch = [&](const std::string& kind, const std::string& pem, bool newest, const std::string& advice) {
    const std::string name = newest ? kind : kind + " " + ca_id(pem);
    names.insert(name);
    return context.certificates.set(name, pem, advice);
  };
  const bool alone = cas.trust.revision == 0;
  TRY_VOID(watch("ca", cas.ca.cert_pem, true,
                 alone ? "give this control plane a root, then another CA: musterd ca new-root, then musterd ca rotate"
                       : "let another follow: musterd ca rotate"));
  for (const std::string& cert : cas.trust.intermediates) {
    if (cert != cas.ca.cert_pem)
      TRY_VOID(watch("ca", cert, false, "it is not in use any more; retire it: musterd ca retire"));
  }
  for (const std::string& cert : cas.trust.roots) {
    const bool newest = cert == cas.trust.roots.front();
    if (!alone)
      TRY_VOID(watch("root", cert, newest,
                     newest ? "let another follow: musterd ca new-root" : "retire it: musterd ca retire"));
  }
  context.certificates.keep_only(names);
  for (const std::string& warning : context.certificates.warnings(read_clocks().wall))
    log_warn("musterd", "{}", warning);
  return {};
}
}  // namespace

Context::Context() = default;
Context::~Context() = default;

Result<std::unique_ptr<App>> App::start(Options options) {
  std::unique_ptr<App> app(new App);
  app->context_ = std::make_unique<Context>();
  Context& context = *app->context_;
  context.dir = options.dir;
  context.identity = TRY(load_identity(options.dir, read_clocks().wall, std::move(options.signer)));
  context.cas.set(context.identity.cas);
  TRY_VOID(context.keys.set(context.identity.keys));
  TRY_VOID(watch_certificates(context, context.identity));
  context.store = options.store;
  context.public_host = options.public_host;
  context.certificate_life = options.certificate_life;
  context.reenrol_within = options.reenrol_within;
  context.factor_needed = options.factor_needed;
  engine::Runner::Options runner;
  runner.store = options.store;
  context.runner = TRY(engine::Runner::start(std::move(runner)));
  context.pool = std::make_unique<Pool>(8, 16'384);
  context.hashing = std::make_unique<Pool>(2, 256);
  const auto ring = ring_of(options.dir);
  context.logs = std::make_unique<LogStore>(options.dir.logs(), kLogBytesMax, Millis(200), ring);
  context.blobs = std::make_unique<BlobStore>(options.dir.blobs(), options.store, BlobStore::Bounds{}, ring);
  TRY_VOID(context.blobs->load());
  context.registries = std::make_unique<RegistryStore>(context.identity.secret, options.store);
  TRY_VOID(context.registries->load(read_clocks().wall));
  context.ways = std::make_unique<WayMemory>(options.store);
  TRY_VOID(context.ways->load(read_clocks().wall));
  if (auto known = context.ways->known(read_clocks().wall); !known.paths.empty())
    context.runner->tell_planner({std::move(known)});
  context.reliability = std::make_unique<ReliabilityBook>(options.store);
  TRY_VOID(context.reliability->load());
  context.factors = std::make_unique<SecondFactors>(context.identity.secret, options.store);
  TRY_VOID(context.factors->load());
  if (options.sso)
    context.sso =
        std::make_unique<Sso>(std::move(*options.sso), context.identity.secret, options.store, *context.runner);
  context.tokens = std::make_unique<AccessTokens>(context.identity.signer, context.identity.server_id);
  TRY_VOID(context.tokens->refresh());
  context.workloads = std::make_unique<WorkloadIdentity>(
      context.identity.signer,
      options.identity_issuer.empty() ? issuer_of(options.public_host, context.identity) : options.identity_issuer,
      options.identity_life);
  if (const Status keys = context.workloads->refresh(); !keys.ok())
    log_warn("musterd", "no identity tokens for clusters and jobs: {}", keys.error().message);
  context.signatures = std::make_unique<SignedBook>(context.identity.signer);
  context.relays = std::make_unique<RelayBook>(context.dir, context.identity.server_id, context.identity.relay_list);
  context.relay = std::make_unique<RelayTeller>(context, options.handoff);
  AccessLog::Options access;
  access.file = options.dir.refused_log();
  access.ring = ring;
  access.keep = options.addresses_kept;
  context.access = std::make_unique<AccessLog>(std::move(access), options.addresses);
  context.access->start();
  context.hosts = std::make_unique<HostJudge>(context);
  context.images = std::make_unique<ImageScans>(context);
  TRY_VOID(context.images->load());
  context.events = std::make_unique<EventHub>(*context.runner, EventHub::Options{});
  context.agents = std::make_unique<AgentHub>(context, options.agents);
  context.events->on_events([&context](const std::vector<engine::DurableEvent>& events) {
    context.agents->on_events(events);
    context.relay->on_events(events);
    for (const auto& event : events) keep_history(context, event);
  });
  context.starts = std::make_unique<StartForecasts>();
  context.queue_watch = std::make_unique<QueueWatch>(context, options.queue_watch);
  context.events->start(*context.runner);
  context.agents->start();
  context.queue_watch->start();
  context.images->start();
  context.relay->start();
  note_keys(context);
  app->judge_hosts();
  app->api_ = std::make_unique<Api>(context);
  Api* api = app->api_.get();
  net::ServerHandlers handlers;
  handlers.http = [api](net::Request request, net::ResponderPtr responder) {
    api->handle(std::move(request), std::move(responder));
  };
  handlers.upgrade = [api](const net::Request& request) { return api->upgrade(request); };
  handlers.upload = [api](const net::Request& request, net::Response& refusal) {
    return api->upload(request, refusal);
  };
  handlers.websocket = [api, &context](net::Request request, net::WebSocketPtr socket) {
    if (request.path == "/agent/v1") return context.agents->accept(std::move(socket));
    const auto call = api->admit(std::move(request));
    if (!call.ok()) return Streams::refuse(socket, call.error().message);
    context.agents->open_stream(*call, std::move(socket));
  };
  app->server_ =
      TRY(net::Server::create(std::move(handlers), tls_files(context.identity), net::Limits{}, options.threads));
  app->port_ = TRY(app->server_->listen(options.address, options.port));
  if (options.public_name) {
    app->public_name_ = std::make_unique<PublicName>(context, *app->server_, std::move(*options.public_name));
    TRY_VOID(app->public_name_->start());
  }
  if (!options.handoff.empty()) TRY_VOID(app->server_->adopt_from(options.handoff));
  if (const Status signed_head = app->sign_due_head(); !signed_head.ok())
    log_error("musterd", "the journal's head could not be signed: {}", signed_head.error().message);
  return app;
}

Status App::sign_due_head() {
  if (!head_due(context_->dir, read_clocks().wall)) return {};
  const std::string path = TRY(keep_head(context_->dir, TRY(new_head(*context_))));
  log_info("audit", "the journal's head is signed: {}; keep a copy elsewhere", path);
  return {};
}

void App::look_at_public_name(bool asked) {
  if (public_name_) public_name_->look(asked);
}

void App::judge_images() {
  context_->images->refresh();
}

void App::judge_hosts() {
  if (const Status judged = context_->hosts->refresh(); !judged.ok())
    log_error("musterd", "known holes of machines: {}", judged.error().message);
}

Status App::renew_certificate() {
  const Identity fresh = TRY(load_identity(context_->dir, read_clocks().wall, context_->identity.signer));
  const auto before = context_->cas.get();
  TRY_VOID(server_->reload_tls(tls_files(fresh)));
  if (fresh.cas.text != before->text || fresh.cas.ca.cert_pem != before->ca.cert_pem) {
    log_info("musterd", "the CA {} is in use now, roots of revision {}", ca_id(fresh.cas.ca.cert_pem),
             fresh.cas.trust.revision);
    context_->cas.set(fresh.cas);
    context_->signatures->forget();
    context_->agents->trust_changed();
  }
  TRY_VOID(take_keys(*context_, fresh.keys));
  TRY_VOID(context_->tokens->refresh());
  if (const Status keys = context_->workloads->refresh(); !keys.ok())
    log_warn("musterd", "the keys of identity tokens are not known anew: {}", keys.error().message);
  return watch_certificates(*context_, fresh);
}

App::~App() {
  stop();
}

void App::stop() {
  if (std::exchange(stopped_, true) || !context_) return;
  // Listeners first, then all threads that read the engine, then the engine itself.
  if (public_name_) public_name_->stop();
  if (server_) server_->stop();
  if (context_->queue_watch) context_->queue_watch->stop();
  if (context_->images) context_->images->stop();
  if (context_->events) context_->events->stop();
  if (context_->agents) context_->agents->stop();
  if (context_->relay) context_->relay->stop();
  if (context_->reliability)
    if (const Status saved = context_->reliability->save(); !saved.ok())
      log_warn("agents", "how reliable machines are is not kept: {}", saved.error().message);
  if (context_->ways)
    if (const Status saved = context_->ways->save(read_clocks().wall); !saved.ok())
      log_warn("musterd", "what was measured between machines is not kept: {}", saved.error().message);
  if (context_->sso) context_->sso->pool.stop();
  if (context_->hashing) context_->hashing->stop();
  if (context_->pool) context_->pool->stop();
  if (context_->access) context_->access->stop();
  context_->runner.reset();
  server_.reset();
}

}  // namespace muster::server
