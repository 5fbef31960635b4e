#pragma once
// The REST API: one route per rpc of the contract (wire::operations()), each with a handler and with what it asks of
// access::check. The router authenticates, resolves the object, checks, and only then calls the handler; a route
// without a rule cannot exist. Identity comes from the bearer token alone. Mutations carry the idempotency key and the
// hash of the request to the core. Handlers may answer later; they never block a network thread. Thread-safe.
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "net/net.h"
#include "server/context.h"
#include "server/event_hub.h"
#include "server/login_guard.h"
#include "server/start_forecasts.h"
#include "server/views.h"
#include "wire/contract.h"

namespace muster::server {

struct Call {
  net::Request request;
  net::ResponderPtr responder;
  const wire::Operation* operation = nullptr;
  std::string id;  // the {id} of the path, resolved to an id of the state ("cl-3") unless archived
  Caller caller;
  bool archived = false;   // only in the history table
  std::string request_id;  // the client's Idempotency-Key, or ours: in the entry, the answer and the address book
};
using CallPtr = std::shared_ptr<Call>;
using Handler = std::function<void(const CallPtr&)>;

// What a route asks: the verb and the object, resolved against the state. nullopt: there is no such object.
struct Ask {
  access::Verb verb;
  access::Object object;
};
using Resolver = std::function<Result<Ask>(const control::State&, Call&)>;
// What a caller is told of an object that is not there, and word for word of one that is somebody else's.
Error missing(access::Kind kind, const std::string& asked);

class Api {
 public:
  explicit Api(Context& context);
  void handle(net::Request request, net::ResponderPtr responder);
  std::optional<net::Response> upgrade(const net::Request& request);  // nullopt: accepted
  std::optional<net::ServerHandlers::Upload> upload(const net::Request& request, net::Response& refusal);
  // The caller and the resolved object of an accepted WebSocket (exec, forward).
  Result<CallPtr> admit(net::Request request);
  Result<Caller> authenticate(const net::Request& request) const;
  bool has_route(std::string_view operation) const { return routes_.contains(std::string(operation)); }

 private:
  struct Route {
    bool open = false;
    Resolver resolve;
    Handler handler;
  };
  using Render =
      std::function<Result<std::string>(const control::State&, const scheduler::Scheduler&, const engine::Reply&)>;

  void add(const std::string& name, Resolver resolve, Handler handler);
  void add_open(const std::string& name, Handler handler);
  void sso_logout(const net::Request& request, const net::ResponderPtr& responder);
  void add_people();
  void add_quotas();
  void add_tokens();
  void add_services();
  void add_grants();
  void add_nodes();
  void add_carried();
  void add_clusters();
  void add_jobs();
  void add_rest();
  void add_registries();
  void add_images();
  void add_totp();
  void add_sso();
  void add_audit();
  Result<CallPtr> match(net::Request request, net::ResponderPtr responder) const;
  Status authorise(const CallPtr& call) const;
  void after_min_seq(const CallPtr& call, Handler handler);
  void special(const net::Request& request, const net::ResponderPtr& responder);

  void ok(const CallPtr& call, std::string body) const;
  void fail(const CallPtr& call, const Error& error) const;
  void answer(const CallPtr& call, net::Response response) const;
  // Counts it where it is a refusal, not a mistake in a request.
  void note_refusal(const Call& call, const Error& error) const;
  bool post(const CallPtr& call, std::function<void()> job);
  void submit(const CallPtr& call, control::Command command, Render render,
              std::function<void(const engine::Reply&)> before = {});
  // Answers from the follower's state.
  void read(const CallPtr& call,
            const std::function<Result<std::string>(const control::State&, const scheduler::Scheduler&)>& f);

  void login(const CallPtr& call);
  // A token of the account, and the answer that `render` makes of it. Scopes: none for all that the account may.
  void give_login(const CallPtr& call, const Principal& who, const std::string& label,
                  const std::vector<std::string>& scopes, Millis lifetime,
                  std::function<std::string(const wire::LoginView&)> render);
  void submit_login(const CallPtr& call, control::Command command, const std::string& refresh,
                    std::function<std::string(const wire::LoginView&)> render);
  void renew_login(const CallPtr& call);
  void begin_sso(const CallPtr& call);
  void finish_sso(const CallPtr& call);
  void enroll(const CallPtr& call);
  void create_principal(const CallPtr& call);
  void make_principal(const CallPtr& call, const wire::CreatePrincipalRequest& request,
                      std::function<void(const engine::Reply&)> keep);
  void invite_person(const CallPtr& call, const wire::CreatePrincipalRequest& request);  // of the identity provider
  void stream_events(const CallPtr& call);
  void job_logs(const CallPtr& call);
  void plan_cluster(const CallPtr& call);
  void list_audit(const CallPtr& call);
  void list_refusals(const CallPtr& call);
  void later(const CallPtr& call, Millis wait, const std::string& why) const;  // 429
  // Runs the job where passwords are hashed. dropped: it will not run, because too many wait; the call was answered.
  void post_hashing(const CallPtr& call, std::function<void()> job, std::function<void()> dropped);
  // Calls good with the account if this is its password, answers the call with `wrong` otherwise; counts and bounds the
  // attempts.
  void check_password(const CallPtr& call, const std::string& name, const std::string& password, const Error& wrong,
                      std::function<void(const Principal&)> good);
  // Goes on with `good` if the account has no second factor or this is a code of it, which is then used up; answers the
  // call otherwise. Where passwords are hashed: it blocks on the store.
  void check_code(const CallPtr& call, const Principal& who, const std::string& code,
                  const std::function<void()>& good);
  // Keeps the hash unless the one that was checked against is no longer there; true: kept.
  Result<bool> replace_password(PrincipalId who, const std::string& checked, const std::string& hash);
  void change_password(const CallPtr& call);
  void enrol_totp(const CallPtr& call);
  void confirm_totp(const CallPtr& call);
  void disable_totp(const CallPtr& call);
  // A new token of the account, its secret in the answer alone. lifetime 0: thirty days.
  void create_token(const CallPtr& call, PrincipalId owner, const wire::CreateApiTokenRequest& request);
  std::string account_name(const CallPtr& call) const;  // the caller's; empty: it is gone
  wire::PrincipalView shown_view(const control::State& state, const Principal& principal) const;
  Result<std::string> shown_principal(const control::State& state, const std::string& id) const;
  Result<std::size_t> end_other_logins(const CallPtr& call);                         // blocks
  void with_starts(const CallPtr& call, bool wanted, std::function<void()> answer);  // then the likely starts are fresh

  Context& context_;
  std::map<std::string, Route> routes_;
  std::mutex plan_mutex_;    // one what-if at a time: each forks the planner
  LeaseTime plan_after_{0};  // a large planner is not copied again at once
  std::unordered_multimap<std::string, const wire::Operation*> fixed_paths_;
  std::vector<const wire::Operation*> open_paths_;  // with an {id}
  LoginGuard logins_{{}};
  // Of codes, by who knows the password: ten wrong ones an hour for an account, of which three at a time would do.
  LoginGuard codes_{{.per_pair = 10, .per_name = 10, .window = Millis(3'600'000)}};
  std::mutex password_mutex_;    // of writes to the table of passwords
  std::atomic<int> audits_ = 0;  // running
};

// Query parameters of a list: limit, cursor, filter ("state=running,name=x").
struct ListQuery {
  std::size_t limit = 100;
  std::uint64_t after = 0;
  std::map<std::string, std::string> filter;
};
Result<ListQuery> list_query(const net::Request& request, std::initializer_list<std::string_view> keys);
std::string cursor_text(std::uint64_t id);
net::Response problem(const Error& error);
control::Lane lane_of(const access::Subject& subject);
std::string metrics_text(Context& context);
// Keeps ended jobs and clusters readable after they left the state.
void keep_history(Context& context, const engine::DurableEvent& event);
struct History {
  OrgId org;
  PrincipalId owner;
  std::string json;
};
std::optional<History> read_history(const Context& context, const std::string& id);

}  // namespace muster::server
