#pragma once
// The messages between Muster and an identity provider: where the browser is sent (OAuth 2.0 with PKCE, RFC 6749 and
// 7636), forms of the token and device endpoints (RFC 8628), and what their answers mean for a person. Texts in, texts
// out; who sends them is the caller. Pure; any thread. Secrets go into the forms and into no error.
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "oidc/provider.h"
#include "oidc/settings.h"

namespace muster::oidc {

using Fields = std::vector<std::pair<std::string, std::string>>;

std::string pkce_challenge(std::string_view verifier);  // S256
// The query that goes behind the authorization endpoint's URL.
Fields authorization_fields(const Settings& settings, const std::string& redirect_uri, const std::string& state,
                            const std::string& nonce, const std::string& verifier);
Fields code_fields(const std::string& code, const std::string& redirect_uri, const std::string& verifier);
Fields device_fields(const Settings& settings);
Fields poll_fields(const std::string& device_code);
// "Basic ..." of a client with a secret, both form-encoded first (RFC 6749, 2.3.1); `encode` percent-encodes.
std::string basic_credentials(const std::string& encoded_id, const std::string& encoded_secret);

struct Tokens {
  std::string id_token, access_token;
};
// An error has as its field the provider's own word for it ("authorization_pending", "slow_down", "access_denied").
Result<Tokens> parse_tokens(int status, std::string_view body);

struct DeviceCode {
  std::string device_code;  // secret
  std::string user_code, url, complete_url;
  Millis interval{5000}, lifetime{0};
};
Result<DeviceCode> parse_device_code(int status, std::string_view body);

// What an error of the provider means (RFC 6749, 5.2 and 4.1.2.1; RFC 8628, 3.5), for people.
Error meaning(std::string_view provider_error);

}  // namespace muster::oidc
