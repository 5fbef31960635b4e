#include "acme/order.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>

#include "crypto/hash.h"
#include "wire/json.h"

namespace muster::acme {
namespace {

using wire::Json;
constexpr int kLooksMax = 60, kNonceTries = 4;
constexpr std::int64_t kPauseMin = 1'000, kPauseMax = 60'000;  // milliseconds
constexpr std::string_view kErrorPrefix = "urn:ietf:params:acme:error:";

// Of somebody else's text what may stand in ours.
std::string printable(std::string_view text) {
  std::string out;
  for (const char c : text.substr(0, 300)) out += c >= ' ' && c < 127 ? c : ' ';
  return out;
}
Error nonsense(std::string_view what) {
  return error(Code::DataLoss, fmt::format("the CA's answer makes no sense: {}", what));
}
Error refusal(std::string_view doing, int status, const Json& problem) {
  std::string_view type = problem["type"].text();
  if (type.starts_with(kErrorPrefix)) type.remove_prefix(kErrorPrefix.size());
  const bool later = status >= 500 || type == "rateLimited" || status == 429;
  return error(later ? Code::Unavailable : Code::FailedPrecondition,
               fmt::format("the CA refuses {}: {} ({}, status {})", doing,
                           printable(problem["detail"].text().empty() ? "no reason given" : problem["detail"].text()),
                           printable(type.empty() ? "no type" : type), status));
}

class Order {
 public:
  Order(const Wish& wish, const crypto::AccountKey& account, const Hooks& hooks)
      : wish_(wish), account_(account), hooks_(hooks) {}

  Result<crypto::KeyAndCert> run() {
    directory_ = TRY(object(TRY(ask("GET", wish_.directory, "")), "the directory"));
    for (const char* each : {"newNonce", "newAccount", "newOrder"})
      if (directory_[each].text().empty()) return nonsense(fmt::format("its directory has no {}", each));
    TRY_VOID(enter());
    TRY_VOID(begin());
    for (const Json& each : order_["authorizations"].items()) TRY_VOID(prove(each.text()));
    crypto::KeyAndCert out{crypto::new_ca_key(), ""};
    const Bytes request = TRY(crypto::make_name_request(out.key_pem, wish_.names));
    TRY_VOID(until("ready"));
    Json body = Json::object();
    body.set("csr", Json::string(base64url(request)));
    (void)TRY(post("the certificate", order_["finalize"].text(), &body));
    TRY_VOID(until("valid"));
    out.cert_pem = TRY(post("the certificate's text", order_["certificate"].text(), nullptr)).body;
    TRY_VOID(check(out));
    return out;
  }

 private:
  Result<Reply> ask(const std::string& method, const std::string& url, const std::string& body) {
    if (!url.starts_with("https://") && !url.starts_with("http://127.0.0.1"))
      return nonsense("an address that is not https");
    Reply reply = TRY(hooks_.ask(method, url, body));
    if (const auto it = reply.headers.find("replay-nonce"); it != reply.headers.end()) nonce_ = it->second;
    return reply;
  }
  static Result<Json> read(const Reply& reply) {
    return wire::parse_json(reply.body, {.bytes = kAnswerMax, .depth = 16, .values = 10'000});
  }
  static Result<Json> object(const Reply& reply, std::string_view what) {
    auto out = read(reply);
    if (reply.status != 200 && reply.status != 201) return refusal(what, reply.status, out.ok() ? *out : Json());
    if (!out.ok() || !out->is(Json::Kind::Object)) return nonsense(fmt::format("{} is no JSON object", what));
    return std::move(*out);
  }

  // Signed by the account; no body: "POST as GET".
  Result<Reply> post(std::string_view doing, const std::string& url, const Json* body) {
    for (int tried = 0;; ++tried) {
      if (nonce_.empty()) (void)TRY(ask("HEAD", directory_["newNonce"].text(), ""));
      if (nonce_.empty()) return nonsense("it gives no nonce");
      Json head = Json::object();
      head.set("alg", Json::string("ES256"));
      if (account_url_.empty())
        head.set("jwk", TRY(wire::parse_json(account_.jwk())));
      else
        head.set("kid", Json::string(account_url_));
      head.set("nonce", Json::string(std::exchange(nonce_, "")));
      head.set("url", Json::string(url));
      const std::string protected_part = base64url(as_bytes(head.dump()));
      const std::string payload = body == nullptr ? "" : base64url(as_bytes(body->dump()));
      const Bytes signature = account_.sign(as_bytes(protected_part + "." + payload));
      Json whole = Json::object();
      whole.set("protected", Json::string(protected_part));
      whole.set("payload", Json::string(payload));
      whole.set("signature", Json::string(base64url(signature)));
      Reply reply = TRY(ask("POST", url, whole.dump()));
      if (reply.status >= 200 && reply.status < 300) return reply;
      const auto told = read(reply);
      const Json problem = told.ok() ? *told : Json();
      const bool stale = problem["type"].text() == std::string(kErrorPrefix) + "badNonce";
      if (!stale || tried + 1 == kNonceTries) return refusal(doing, reply.status, problem);
    }
  }

  Status enter() {
    Json body = Json::object();
    body.set("termsOfServiceAgreed", Json::boolean(true));
    if (!wish_.contact.empty()) {
      Json contact = Json::array();
      contact.push(Json::string("mailto:" + wish_.contact));
      body.set("contact", std::move(contact));
    }
    if (!wish_.binding_id.empty())
      body.set("externalAccountBinding", binding());
    else if (directory_["meta"]["externalAccountRequired"].truth())
      return error(
          Code::FailedPrecondition,
          "this CA wants an account that you have with it: get a key id and an HMAC key there and put them into "
          "a file for --acme-account");
    const Reply reply = TRY(post("the account", directory_["newAccount"].text(), &body));
    const auto it = reply.headers.find("location");
    if (it == reply.headers.end() || it->second.empty()) return nonsense("the account has no address");
    account_url_ = it->second;
    return {};
  }

  // The new account's key, vouched for by the CA's own secret.
  Json binding() const {
    Json head = Json::object();
    head.set("alg", Json::string("HS256"));
    head.set("kid", Json::string(wish_.binding_id));
    head.set("url", Json::string(directory_["newAccount"].text()));
    const std::string protected_part = base64url(as_bytes(head.dump())), payload = base64url(as_bytes(account_.jwk()));
    const auto mac = crypto::hmac_sha256(wish_.binding_key, as_bytes(protected_part + "." + payload));
    Json whole = Json::object();
    whole.set("protected", Json::string(protected_part));
    whole.set("payload", Json::string(payload));
    whole.set("signature", Json::string(base64url(mac)));
    return whole;
  }

  Status begin() {
    Json names = Json::array();
    for (const std::string& each : wish_.names) {
      Json name = Json::object();
      name.set("type", Json::string("dns"));
      name.set("value", Json::string(each));
      names.push(std::move(name));
    }
    Json body = Json::object();
    body.set("identifiers", std::move(names));
    const Reply reply = TRY(post("the order", directory_["newOrder"].text(), &body));
    const auto it = reply.headers.find("location");
    if (it == reply.headers.end() || it->second.empty()) return nonsense("the order has no address");
    order_url_ = it->second;
    order_ = TRY(object(reply, "the order"));
    if (order_["authorizations"].items().size() > wish_.names.size())
      return nonsense("more is to be proven than was asked for");
    return {};
  }

  Status prove(const std::string& url) {
    bool shown = false;
    for (int looks = 0; looks < kLooksMax; ++looks) {
      const Reply reply = TRY(post("what is to be proven", url, nullptr));
      const Json wanted = TRY(object(reply, "what is to be proven"));
      const std::string& name = wanted["identifier"]["value"].text();
      const std::string& status = wanted["status"].text();
      if (std::find(wish_.names.begin(), wish_.names.end(), name) == wish_.names.end())
        return nonsense("it wants another name proven than was asked for");
      if (status == "valid") return {};
      const Json* challenge = nullptr;
      for (const Json& each : wanted["challenges"].items())
        if (each["type"].text() == "tls-alpn-01") challenge = &each;
      if (status != "pending") {
        const Json fault = challenge == nullptr ? Json() : (*challenge)["error"];
        return refusal(fmt::format("that {} is this control plane's", name), 403, fault);
      }
      if (challenge == nullptr)
        return error(Code::FailedPrecondition,
                     fmt::format("the CA takes no proof of {} inside TLS (tls-alpn-01)", name));
      if (!std::exchange(shown, true)) TRY_VOID(show(name, *challenge));
      TRY_VOID(pause(reply));
    }
    return error(Code::Unavailable, "the CA does not come to look at the name in time");
  }
  Status show(const std::string& name, const Json& challenge) {
    const std::string& token = challenge["token"].text();
    const bool plain = !token.empty() && token.size() <= 256 && std::all_of(token.begin(), token.end(), [](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
    });
    if (!plain) return nonsense("the token of the proof");
    const std::string authorization = token + "." + account_.thumbprint();
    TRY_VOID(hooks_.show(name, TRY(crypto::make_name_proof(name, authorization, hooks_.now()))));
    const Json body = Json::object();
    (void)TRY(post("the proof", challenge["url"].text(), &body));
    return {};
  }

  Status until(std::string_view wanted) {
    for (int looks = 0; looks < kLooksMax; ++looks) {
      const Reply reply = TRY(post("the order", order_url_, nullptr));
      order_ = TRY(object(reply, "the order"));
      const std::string& status = order_["status"].text();
      if (status == wanted || status == "valid") return {};
      if (status == "invalid") return refusal("the order", 403, order_["error"]);
      TRY_VOID(pause(reply));
    }
    return error(Code::Unavailable, "the CA does not come to an end with the order in time");
  }

  Status pause(const Reply& reply) {
    std::int64_t seconds = 2;
    if (const auto it = reply.headers.find("retry-after"); it != reply.headers.end())
      (void)std::from_chars(it->second.data(), it->second.data() + it->second.size(), seconds);
    const std::int64_t span =
        std::clamp<std::int64_t>(std::clamp<std::int64_t>(seconds, 0, 3'600) * 1'000, kPauseMin, kPauseMax);
    if (!hooks_.wait(Millis(span))) return error(Code::Unavailable, "left before the CA had an answer");
    return {};
  }

  Status check(const crypto::KeyAndCert& pair) const {
    const auto names = crypto::dns_names(pair.cert_pem);
    if (!names.ok()) return nonsense("the certificate is none");
    for (const std::string& each : wish_.names)
      if (std::find(names->begin(), names->end(), each) == names->end())
        return nonsense("the certificate is not for " + each);
    if (!crypto::key_fits(pair)) return nonsense("the certificate is for another key");
    const auto valid = crypto::certificate_validity(pair.cert_pem);
    if (!valid.ok() || valid->not_after <= hooks_.now()) return nonsense("the certificate has ended already");
    return {};
  }

  const Wish& wish_;
  const crypto::AccountKey& account_;
  const Hooks& hooks_;
  Json directory_, order_;
  std::string nonce_, account_url_, order_url_;
};

}  // namespace

Result<crypto::KeyAndCert> obtain(const Wish& wish, const crypto::AccountKey& account, const Hooks& hooks) {
  const bool good = !wish.names.empty() && wish.names.size() <= crypto::kPublicNamesMax &&
                    std::all_of(wish.names.begin(), wish.names.end(),
                                [](const auto& each) { return crypto::valid_public_name(each); });
  if (!good) return error(Code::InvalidArgument, "a certificate is for one to sixteen names like muster.example.org");
  return Order(wish, account, hooks).run();
}

}  // namespace muster::acme
