// Accounts of image registries: put, list, forget. Nothing of them enters the journal; who did it does enter the log.
#include <fmt/format.h>

#include "base/log.h"
#include "model/image_name.h"
#include "server/api.h"
#include "server/registry_store.h"

namespace muster::server {

void Api::add_registries() {
  using access::Kind;
  using access::Verb;
  const auto own = [](Verb verb) -> Resolver {
    return [verb](const control::State&, Call& call) -> Result<Ask> {
      return Ask{verb, {Kind::Registry, call.caller.subject.org, {}, call.caller.subject.principal}};
    };
  };
  add("PutRegistry", own(Verb::Create), [this](const CallPtr& call) {
    const auto request = wire::parse_put_registry(call->request.body);
    if (!request.ok()) return fail(call, request.error());
    if (!valid_registry(request->host))
      return fail(call, error(Code::InvalidArgument, "host must be a registry such as registry.example:5000", "host"));
    if (request->username.find_first_of("\r\n:") != std::string::npos || request->username.size() > 256)
      return fail(call,
                  error(Code::InvalidArgument, "username must have at most 256 characters, no colon", "username"));
    if (request->password.size() > 8000)
      return fail(call, error(Code::InvalidArgument, "password must have at most 8000 characters", "password"));
    if (request->lifetime > kRegistryLifetimeMax)
      return fail(call, error(Code::InvalidArgument, "lifetimeSeconds must be at most 30 days", "lifetimeSeconds"));
    post(call, [this, call, request = *request] {
      const WallTime now = read_clocks().wall;
      RegistryAccount account{request.host, request.username, request.password,
                              now + (request.lifetime == Millis(0) ? kRegistryLifetime : request.lifetime)};
      const Status kept = context_.registries->put(call->caller.subject.org, account, now);
      if (!kept.ok()) return fail(call, kept.error());
      log_info("audit", "{} logged {} in to registry {} until {}", call->caller.subject.principal.str(),
               call->caller.subject.org.str(), account.host, format_utc(account.expires));
      ok(call, wire::to_json(wire::RegistryView{account.host, account.username, account.expires}));
    });
  });
  add("ListRegistries", own(Verb::List), [this](const CallPtr& call) {
    read(call, [&](const control::State& state, const scheduler::Scheduler&) -> Result<std::string> {
      std::vector<std::string> items;
      for (const auto& each : context_.registries->list(call->caller.subject.org, read_clocks().wall))
        items.push_back(wire::to_json(wire::RegistryView{each.host, each.username, each.expires}));
      return wire::list_json(items, "", state.seq);
    });
  });
  add("DeleteRegistry", own(Verb::Delete), [this](const CallPtr& call) {
    post(call, [this, call] {
      const Status gone = context_.registries->remove(call->caller.subject.org, call->id);
      if (!gone.ok()) return fail(call, gone.error());
      log_info("audit", "{} logged {} out of registry {}", call->caller.subject.principal.str(),
               call->caller.subject.org.str(), call->id);
      ok(call, wire::to_json(wire::RegistryView{call->id, "", WallTime{}}));
    });
  });
}

}  // namespace muster::server
