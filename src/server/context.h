#pragma once
// What every part of the server shares. Owned by App, outlives all requests; the parts are thread-safe each.
#include <functional>
#include <memory>
#include <set>
#include <string>

#include "crypto/cert_watch.h"
#include "engine/runner.h"
#include "journal/store.h"
#include "server/ca_book.h"
#include "server/identity.h"
#include "server/key_book.h"
#include "server/pool.h"

namespace muster::server {

class AccessLog;
class AccessTokens;
class AgentHub;
class EventHub;
class HostJudge;
class ImageScans;
class LogStore;
class BlobStore;
class RegistryStore;
class SecondFactors;
class ReliabilityBook;
class WayMemory;
class WorkloadIdentity;
struct Sso;
class SignedBook;
class RelayTeller;
class StartForecasts;
class QueueWatch;
class RelayBook;

struct Context {
  DataDir dir;
  Identity identity;
  CaBook cas;    // identity.cas as they are now
  KeyBook keys;  // identity.keys as they are now
  std::shared_ptr<journal::Store> store;
  std::unique_ptr<engine::Runner> runner;
  std::unique_ptr<Pool> pool;
  std::unique_ptr<Pool> hashing;  // of passwords: slow on purpose, so few at a time and never on the pool of all others
  std::unique_ptr<LogStore> logs;
  std::unique_ptr<BlobStore> blobs;
  std::unique_ptr<RegistryStore> registries;
  std::unique_ptr<WayMemory> ways;
  std::unique_ptr<ReliabilityBook> reliability;
  std::unique_ptr<SecondFactors> factors;
  std::unique_ptr<Sso> sso;  // null: no identity provider is configured
  std::unique_ptr<AccessTokens> tokens;
  std::unique_ptr<WorkloadIdentity> workloads;
  std::unique_ptr<SignedBook> signatures;
  std::unique_ptr<RelayBook> relays;
  std::unique_ptr<RelayTeller> relay;
  std::unique_ptr<HostJudge> hosts;
  std::unique_ptr<ImageScans> images;
  std::unique_ptr<EventHub> events;
  std::unique_ptr<AgentHub> agents;
  std::unique_ptr<StartForecasts> starts;
  std::unique_ptr<QueueWatch> queue_watch;
  crypto::CertWatch certificates;            // what is in use, for metrics and warnings
  std::string public_host;                   // host[:port] put into join tokens
  Millis certificate_life{86'400'000};       // of machines; they renew at two thirds of it
  std::set<Role> factor_needed;              // local accounts of these roles log in with a second factor only
  Millis reenrol_within{30LL * 86'400'000};  // an expired certificate is renewed on proof of the device key for so long
  std::unique_ptr<AccessLog> access;
  Context();
  ~Context();
};

}  // namespace muster::server
