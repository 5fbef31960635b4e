#pragma once
// The composition of musterd: engine, agents, events, logs, blobs and the HTTP server, started and stopped in order.
// stop() is graceful: no new connections, open ones closed, the journal's tail durable; agents go on working and come
// back. One object a process; any thread may call stop().
#include <memory>
#include <string>

#include "journal/address_book.h"
#include "net/net.h"
#include "server/access_log.h"
#include "server/agents.h"
#include "server/context.h"
#include "server/public_name.h"
#include "server/queue_watch.h"
#include "server/signer.h"
#include "server/sso_provider.h"

namespace muster::server {

class App {
 public:
  struct Options {
    DataDir dir;
    std::shared_ptr<journal::Store> store;
    std::shared_ptr<Signer> signer;  // nullptr: the keys in dir, in this process
    std::string address = "127.0.0.1";
    std::uint16_t port = 0;
    std::string handoff;      // unix socket of muster-relay; empty = none
    std::string public_host;  // put into join tokens; empty = none
    int threads = 4;
    std::string identity_issuer;      // of tokens for clusters and jobs; empty: https://public_host
    Millis identity_life{3'600'000};  // of such a token
    Millis certificate_life{86'400'000}, reenrol_within{30LL * 86'400'000};
    std::shared_ptr<journal::AddressBook> addresses;  // of clients; nullptr = they are not kept
    Millis addresses_kept = kAddressesKept;
    AgentHub::Options agents;
    QueueWatch::Options queue_watch;
    std::set<Role> factor_needed;                    // local accounts of these roles log in with a second factor only
    std::optional<SsoProvider::Options> sso;         // the identity provider that people may log in by
    std::optional<PublicName::Options> public_name;  // of the web, with a certificate that browsers trust
  };
  static Result<std::unique_ptr<App>> start(Options options);
  ~App();
  std::uint16_t port() const { return port_; }
  Context& context() { return *context_; }
  const Api& api() const { return *api_; }
  void stop();
  void judge_images();     // by the advisories and the policy of scans as they are now; on their own thread
  void judge_hosts();      // by the table and policy of known holes as they are now
  Status sign_due_head();  // once a day (UTC), into DIR/heads
  // Takes notice of what `musterd ca` changed, renews the server's certificate when it nears its end, warns of those
  // that do.
  Status renew_certificate();
  void look_at_public_name(bool asked);  // its files may have changed; asked: and it is tried again at once

 private:
  App() = default;
  std::unique_ptr<Context> context_;
  std::unique_ptr<Api> api_;
  std::unique_ptr<net::Server> server_;
  std::unique_ptr<PublicName> public_name_;
  std::uint16_t port_ = 0;
  bool stopped_ = false;
};

}  // namespace muster::server
