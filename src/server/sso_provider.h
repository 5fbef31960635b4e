#pragma once
// The conversation with the operator's identity provider, in which musterd is the client and keeps its secret: what the
// provider says of itself and its keys (kept an hour; an unknown key id asks once more, at most twice a minute), codes
// into claims of a verified person. Tokens of the provider are used here and forgotten. Every answer is bounded in size
// and time, no redirect is followed. Blocks on the network: on its own threads, never on others'. Thread-safe.
#include <functional>
#include <mutex>
#include <optional>
#include <string>

#include "net/net.h"
#include "oidc/exchange.h"
#include "oidc/id_token.h"

namespace muster::server {

class SsoProvider {
 public:
  // The seam that tests replace.
  using Fetch = std::function<Result<net::Response>(const std::string& url, const net::Client::Call& call)>;
  struct Options {
    oidc::Settings settings;
    std::string secret;  // empty: a client without one
    std::string ca_pem;  // empty: the system's roots
    Fetch fetch = {};    // empty: over the network
  };
  // The settings' file with the files that it names; the secret must be readable for musterd's own user alone.
  static Result<Options> load(const std::string& path);

  explicit SsoProvider(Options options);
  const oidc::Settings& settings() const { return options_.settings; }

  Result<std::string> authorization_url(const std::string& redirect_uri, const std::string& state,
                                        const std::string& nonce, const std::string& verifier);
  Result<oidc::DeviceCode> begin_device();
  struct BrowserCode {
    std::string code, redirect_uri, verifier, nonce;
    std::string issuer;  // as the browser's answer named it, empty where it did not
  };
  Result<wire::Json> claims_of_code(const BrowserCode& code);
  // What the provider posts when a login there has ended (oidc/id_token.h).
  Result<oidc::Logout> logout_of(const std::string& token);
  // Error fields "authorization_pending" and "slow_down": not yet.
  Result<wire::Json> claims_of_device(const std::string& device_code);

 private:
  Result<oidc::Provider> about();
  Result<std::vector<oidc::Key>> keys_for(const oidc::TokenHead& head);
  Result<std::string> document(const std::string& url, const std::map<std::string, std::string>& headers = {});
  Result<net::Response> post(const oidc::Provider& provider, const std::string& url, oidc::Fields fields);
  Result<wire::Json> claims_of(const oidc::Provider& provider, const oidc::Tokens& tokens, const std::string& nonce);
  Status add_userinfo(const oidc::Provider& provider, const oidc::Tokens& tokens, wire::Json& claims);

  const Options options_;
  std::mutex mutex_;  // held while either document is fetched: who comes meanwhile wants the same one
  std::optional<oidc::Provider> provider_;
  std::optional<std::vector<oidc::Key>> keys_;
  LeaseTime provider_at_{0}, keys_at_{0}, looked_again_at_{0}, failed_at_{0};
  std::optional<Error> failure_;  // for a moment, so that a flood does not queue up behind a dead provider
};

}  // namespace muster::server
