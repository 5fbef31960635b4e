#include "server/sso_provider.h"

#include <fmt/format.h>

#include <fstream>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "crypto/secret.h"

namespace muster::server {
namespace {

constexpr Millis kKept{3'600'000}, kLookAgain{30'000}, kFailureKept{3000}, kPatience{5000};
constexpr std::size_t kFileMax = 1 << 20;

Result<std::string> read_plain(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf()) || text.str().size() > kFileMax)
    return error(Code::NotFound, fmt::format("{} cannot be read", path));
  return text.str();
}

Error unreachable() {
  return error(Code::Unavailable,
               "the identity provider cannot be reached or does not answer as one now; try again later, or log in with "
               "a local account: muster login --user NAME");
}

std::string host_of(const std::string& url) {  // for the log: a query may hold secrets
  const auto from = url.find("://");
  return from == std::string::npos ? url.substr(0, 80) : url.substr(0, url.find_first_of("/?", from + 3));
}

}  // namespace

Result<SsoProvider::Options> SsoProvider::load(const std::string& path) {
  const auto named = [](const std::string& file, const Error& why) {
    return error(why.code, fmt::format("{}: {}", file, why.message), why.field);
  };
  const auto text = read_plain(path);
  if (!text.ok()) return named("--sso", text.error());
  auto settings = oidc::parse_settings(*text);
  if (!settings.ok()) return named(path, settings.error());
  const auto url = net::parse_web_url(settings->issuer);
  if (!url.ok()) return named(path + ": issuer", url.error());
  Options out;
  if (!settings->client_secret_file.empty()) {
    const Bytes secret = TRY(crypto::read_secret_file(settings->client_secret_file, 4096));
    out.secret = as_string(secret);
    while (!out.secret.empty() && (out.secret.back() == '\n' || out.secret.back() == '\r')) out.secret.pop_back();
    if (out.secret.empty())
      return error(Code::InvalidArgument, fmt::format("{} holds no secret", settings->client_secret_file));
  }
  if (!settings->ca_file.empty()) out.ca_pem = TRY(read_plain(settings->ca_file));
  out.settings = std::move(*settings);
  return out;
}

SsoProvider::SsoProvider(Options options)
    : options_([&options] {
        if (options.fetch) return std::move(options);
        options.fetch = [ca = options.ca_pem](const std::string& text,
                                              const net::Client::Call& call) -> Result<net::Response> {
          net::WebUrl url = TRY(net::parse_web_url(text));
          if (url.endpoint.peer == net::Peer::Web) url.endpoint.ca_pem = ca;
          net::Client::Call sent = call;
          sent.target = url.target;
          return net::Client(url.endpoint).call(sent);
        };
        return std::move(options);
      }()) {}

Result<std::string> SsoProvider::document(const std::string& url, const std::map<std::string, std::string>& headers) {
  net::Client::Call call{.headers = headers, .timeout = kPatience, .body_max = oidc::kDocumentMax};
  call.headers["Accept"] = "application/json";
  const auto answer = options_.fetch(url, call);
  if (answer.ok() && answer->status == 200) return answer->body;
  log_warn("sso", "{}: {}", host_of(url),
           answer.ok() ? fmt::format("it answers with status {}", answer->status) : answer.error().message);
  return unreachable();
}

Result<net::Response> SsoProvider::post(const oidc::Provider& provider, const std::string& url, oidc::Fields fields) {
  net::Client::Call call{.method = "POST", .timeout = kPatience, .body_max = oidc::kDocumentMax};
  call.headers = {{"Accept", "application/json"}, {"Content-Type", "application/x-www-form-urlencoded"}};
  const auto encoded = [](const std::string& text) { return net::form_text({{"", text}}).substr(1); };
  if (options_.secret.empty() || provider.secret_in_body) fields.emplace_back("client_id", options_.settings.client_id);
  if (!options_.secret.empty() && provider.secret_in_body)
    fields.emplace_back("client_secret", options_.secret);
  else if (!options_.secret.empty())
    call.headers["Authorization"] =
        oidc::basic_credentials(encoded(options_.settings.client_id), encoded(options_.secret));
  call.body = net::form_text(fields);
  auto answer = options_.fetch(url, call);
  crypto::zeroise(call.body);
  if (answer.ok()) return answer;
  log_warn("sso", "{}: {}", host_of(url), answer.error().message);
  return unreachable();
}

Result<oidc::Provider> SsoProvider::about() {
  const std::lock_guard lock(mutex_);
  const LeaseTime now = read_clocks().lease;
  if (provider_ && now < provider_at_ + kKept) return *provider_;
  if (failure_ && now < failed_at_ + kFailureKept && !provider_) return *failure_;
  if (failure_ && now < failed_at_ + kFailureKept) return *provider_;
  auto page = document(oidc::discovery_url(options_.settings.issuer));
  auto provider =
      page.ok() ? oidc::parse_provider(*page, options_.settings.issuer) : Result<oidc::Provider>(page.error());
  if (!provider.ok()) {
    if (page.ok()) log_error("sso", "{}", provider.error().message);
    failed_at_ = now;
    failure_ = provider.error();
    if (provider_) return *provider_;  // what it said an hour ago will do until it can be asked again
    return provider;
  }
  failure_.reset();
  provider_ = std::move(*provider);
  provider_at_ = now;
  return *provider_;
}

Result<std::vector<oidc::Key>> SsoProvider::keys_for(const oidc::TokenHead& head) {
  const oidc::Provider provider = TRY(about());
  const std::lock_guard lock(mutex_);
  const LeaseTime now = read_clocks().lease;
  const bool fresh = keys_ && now < keys_at_ + kKept;
  if (fresh && oidc::knows_key(*keys_, head)) return *keys_;
  // It may have new keys; but who sends tokens of invented ones must not make us ask all the time.
  if (fresh && looked_again_at_.ms != 0 && now < looked_again_at_ + kLookAgain) return *keys_;
  if (fresh) looked_again_at_ = now;
  keys_ = TRY(oidc::parse_keys(TRY(document(provider.jwks_uri))));
  keys_at_ = now;
  return *keys_;
}

Result<std::string> SsoProvider::authorization_url(const std::string& redirect_uri, const std::string& state,
                                                   const std::string& nonce, const std::string& verifier) {
  const oidc::Provider provider = TRY(about());
  TRY_VOID(net::parse_web_url(provider.authorization_endpoint));
  const bool has_query = provider.authorization_endpoint.find('?') != std::string::npos;
  return provider.authorization_endpoint + (has_query ? "&" : "?") +
         net::form_text(oidc::authorization_fields(options_.settings, redirect_uri, state, nonce, verifier));
}

Result<oidc::DeviceCode> SsoProvider::begin_device() {
  const oidc::Provider provider = TRY(about());
  if (provider.device_endpoint.empty())
    return error(Code::FailedPrecondition,
                 "the identity provider knows no logins by code; log in without --device, on a machine with a browser");
  oidc::Fields fields = oidc::device_fields(options_.settings);
  if (!options_.secret.empty() && !provider.secret_in_body)
    fields.emplace_back("client_id", options_.settings.client_id);  // RFC 8628 wants it, the header or not
  const auto answer = TRY(post(provider, provider.device_endpoint, std::move(fields)));
  const oidc::DeviceCode code = TRY(oidc::parse_device_code(answer.status, answer.body));
  for (const std::string* each : {&code.url, &code.complete_url})
    if (!each->empty()) TRY_VOID(net::parse_web_url(*each));
  return code;
}

Result<wire::Json> SsoProvider::claims_of_code(const BrowserCode& code) {
  const oidc::Provider provider = TRY(about());
  // RFC 9207: else one provider's answer could be taken for another's.
  if (code.issuer.empty() ? provider.names_itself : code.issuer != provider.issuer)
    return error(Code::PermissionDenied, "the browser's answer is of another identity provider; begin again", "iss");
  const auto answer =
      TRY(post(provider, provider.token_endpoint, oidc::code_fields(code.code, code.redirect_uri, code.verifier)));
  return claims_of(provider, TRY(oidc::parse_tokens(answer.status, answer.body)), code.nonce);
}

Result<wire::Json> SsoProvider::claims_of_device(const std::string& device_code) {
  const oidc::Provider provider = TRY(about());
  const auto answer = TRY(post(provider, provider.token_endpoint, oidc::poll_fields(device_code)));
  return claims_of(provider, TRY(oidc::parse_tokens(answer.status, answer.body)), "");
}

Result<oidc::Logout> SsoProvider::logout_of(const std::string& token) {
  const oidc::TokenHead head = TRY(oidc::token_head(token));
  const oidc::Provider provider = TRY(about());
  const auto keys = TRY(keys_for(head));
  return oidc::verify_logout_token(token, keys, provider.issuer, options_.settings.client_id, read_clocks().wall);
}

Result<wire::Json> SsoProvider::claims_of(const oidc::Provider& provider, const oidc::Tokens& tokens,
                                          const std::string& nonce) {
  const auto keys = TRY(keys_for(TRY(oidc::token_head(tokens.id_token))));
  wire::Json claims = TRY(oidc::verify_id_token(
      tokens.id_token, keys,
      {provider.issuer, options_.settings.client_id, nonce, tokens.access_token, read_clocks().wall}));
  if (!oidc::complete(options_.settings, claims)) TRY_VOID(add_userinfo(provider, tokens, claims));
  return claims;
}

Status SsoProvider::add_userinfo(const oidc::Provider& provider, const oidc::Tokens& tokens, wire::Json& claims) {
  if (provider.userinfo_endpoint.empty()) return {};
  const std::string body =
      TRY(document(provider.userinfo_endpoint, {{"Authorization", "Bearer " + tokens.access_token}}));
  const auto more = wire::parse_json(body, {.bytes = oidc::kDocumentMax, .depth = 16, .values = 10'000});
  if (!more.ok()) return unreachable();
  // It is about the person of the token, or it is not used at all (OpenID Connect Core, 5.3.2).
  if ((*more)["sub"] != claims["sub"])
    return error(Code::PermissionDenied, "the identity provider tells of another person than its token; begin again",
                 "sub");
  for (const auto& [name, value] : more->members())
    if (claims.find(name) == nullptr) claims.set(name, value);
  return {};
}

}  // namespace muster::server
