#include "acme/order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <optional>
#include <set>
#include <variant>

#include "crypto/cert.h"
#include "crypto/hash.h"
#include "crypto/web_key.h"
#include "wire/json.h"

namespace muster::acme {
namespace {

using testing::HasSubstr;
using wire::Json;
constexpr const char* kSite = "https://ca.example";

// A CA as RFC 8555 has it, small and strict: each nonce is good once, each request signed by the account for its URL.
class Authority {
 public:
  crypto::KeyAndCert ca = *crypto::create_ca("web CA", read_clocks().wall);
  std::function<void(const std::string& path, Reply& reply)> change;  // what goes wrong
  std::function<void(const Json&)> account;                           // sees what is asked of it
  std::set<std::string> shown;                                        // names that are proven by now
  int asked = 0, stale = 0;                                           // stale: refuses so many good nonces
  std::string refuse;                                                 // the proof of this name
  Millis waited{0};

  Hooks hooks() {
    Hooks out;
    out.ask = [this](const std::string& method, const std::string& url, const std::string& body) -> Result<Reply> {
      ++asked;
      EXPECT_TRUE(url.starts_with(kSite)) << url;
      const std::string path = url.substr(std::string(kSite).size());
      Reply reply = answer(method, path, url, body);
      reply.headers["replay-nonce"] = nonce_ = "nonce-" + std::to_string(asked);
      if (change) change(path, reply);
      return reply;
    };
    out.show = [this](const std::string& name, const crypto::KeyAndCert& proof) -> Status {
      EXPECT_TRUE(crypto::key_fits(proof));
      EXPECT_EQ(*crypto::dns_names(proof.cert_pem), std::vector<std::string>{name});
      shown.insert(name);
      return {};
    };
    out.wait = [this](Millis time) {
      waited += time;
      return true;
    };
    out.now = [] { return read_clocks().wall; };
    return out;
  }

 private:
  static Reply json(int status, const std::string& text) { return {status, {}, text}; }
  static Reply problem(int status, const std::string& type) {
    return json(status, R"({"type":"urn:ietf:params:acme:error:)" + type + R"(","detail":"because of )" + type + "\"}");
  }
  // The payload, or an answer.
  std::variant<std::string, Reply> open(const std::string& url, const std::string& body, bool first) {
    const Json whole = *wire::parse_json(body);
    const Json head = *wire::parse_json(as_string(*unbase64url(whole["protected"].text())));
    if (head["alg"].text() != "ES256" || head["url"].text() != url) return problem(400, "malformed");
    if (head["nonce"].text() != nonce_) return problem(400, "badNonce");
    if (stale > 0) return --stale, problem(400, "badNonce");
    if (first) {
      key_ = *crypto::WebKey::p256(*unbase64url(head["jwk"]["x"].text()), *unbase64url(head["jwk"]["y"].text()));
    } else if (head["kid"].text() != std::string(kSite) + "/account/7" || head.find("jwk") != nullptr) {
      return problem(403, "unauthorized");
    }
    const std::string text = whole["protected"].text() + "." + whole["payload"].text();
    if (!key_->verify(crypto::WebAlg::Es256, as_bytes(text), *unbase64url(whole["signature"].text())))
      return problem(403, "unauthorized");
    return as_string(*unbase64url(whole["payload"].text()));
  }

  Reply answer(const std::string& method, const std::string& path, const std::string& url, const std::string& body) {
    const std::string site = kSite;
    if (path == "/dir")
      return json(200, R"({"newNonce":")" + site + R"(/nonce","newAccount":")" + site + R"(/account","newOrder":")" +
                           site + R"(/order"})");
    if (path == "/nonce") return {method == "HEAD" ? 200 : 204, {}, ""};
    auto opened = open(url, body, path == "/account");
    if (auto* refused = std::get_if<Reply>(&opened)) return *refused;
    const std::string payload = std::get<std::string>(opened);
    if (path == "/account") {
      const Json wanted = *wire::parse_json(payload);
      EXPECT_TRUE(wanted["termsOfServiceAgreed"].truth());
      if (account) account(wanted);
      Reply out = json(201, "{}");
      out.headers["location"] = site + "/account/7";
      return out;
    }
    if (path == "/order") {
      names_.clear();
      const Json wished = *wire::parse_json(payload);
      for (const Json& each : wished["identifiers"].items()) names_.push_back(each["value"].text());
      Reply out = order();
      out.status = 201;
      out.headers["location"] = site + "/order/9";
      return out;
    }
    if (path == "/order/9") return order();
    if (path.starts_with("/authz/")) return authorization(path.substr(7));
    if (path.starts_with("/challenge/")) return came_.insert(path.substr(11)), json(200, "{}");
    if (path == "/finalize") {
      const Bytes der = *unbase64url((*wire::parse_json(payload))["csr"].text());
      const std::string pem =
          "-----BEGIN CERTIFICATE REQUEST-----\n" + base64(der) + "\n-----END CERTIFICATE REQUEST-----\n";
      const auto made = crypto::certify_server(ca, {}, "x", names_, pem, read_clocks().wall, Millis(90LL * 86'400'000));
      EXPECT_TRUE(made.ok()) << made.error().message;
      certificate_ = made.ok() ? *made : "";
      return order();
    }
    if (path == "/certificate") return {200, {}, certificate_ + ca.cert_pem};
    return problem(404, "malformed");
  }
  Reply order() {
    const std::string site = kSite;
    bool proven = true;
    std::string list;
    for (const std::string& each : names_) {
      proven = proven && came_.contains(each);
      list += (list.empty() ? "\"" : ",\"") + site + "/authz/" + each + "\"";
    }
    const char* status = !certificate_.empty() ? "valid" : proven ? "ready" : "pending";
    return json(200, std::string(R"({"status":")") + status + R"(","authorizations":[)" + list + R"(],"finalize":")" +
                         site + R"(/finalize","certificate":")" + site + R"(/certificate"})");
  }
  Reply authorization(const std::string& name) {
    const bool good = came_.contains(name) && shown.contains(name) && name != refuse;
    const char* status = good ? "valid" : came_.contains(name) ? "invalid" : "pending";
    const std::string fault =
        came_.contains(name) && !good
            ? R"(,"error":{"type":"urn:ietf:params:acme:error:connection","detail":"nobody answers"})"
            : "";
    return json(200, R"({"status":")" + std::string(status) + R"(","identifier":{"type":"dns","value":")" + name +
                         R"("},"challenges":[{"type":"http-01","token":"no"},{"type":"tls-alpn-01","token":"tok-)" +
                         (name == "dirty.example.org" ? "\\\"x" : "en") + R"(","url":")" + kSite + "/challenge/" +
                         name + "\"" + fault + "}]}");
  }

  std::string nonce_, certificate_;
  std::optional<crypto::WebKey> key_;
  std::vector<std::string> names_;
  std::set<std::string> came_;
};

const std::vector<std::string> kNames{"m.example.org", "n.example.org"};
Result<crypto::KeyAndCert> ask(Authority& authority, std::vector<std::string> names = kNames) {
  static const auto account = crypto::AccountKey::make();
  return obtain({std::string(kSite) + "/dir", std::move(names), "ops@example.org"}, account, authority.hooks());
}

TEST(Acme, ACertificateForTheNamesThatWereProven) {
  Authority authority;
  const auto got = ask(authority);
  ASSERT_TRUE(got.ok()) << got.error().message;
  EXPECT_EQ(*crypto::dns_names(got->cert_pem), kNames);
  EXPECT_TRUE(crypto::key_fits(*got));
  EXPECT_TRUE(got->cert_pem.ends_with(authority.ca.cert_pem)) << "the whole chain";
  EXPECT_EQ(authority.shown, (std::set<std::string>{kNames.begin(), kNames.end()}));
}

TEST(Acme, AnAccountWithTheAuthorityIsBoundByItsKey) {
  const auto account = crypto::AccountKey::make();
  const Bytes key(32, 7);
  std::string bound;
  Authority authority;
  authority.change = [&](const std::string& path, Reply& reply) {
    if (path == "/dir") {
      reply.body.pop_back();
      reply.body += R"(,"meta":{"externalAccountRequired":true}})";
    }
  };
  authority.account = [&](const Json& wanted) { bound = wanted["externalAccountBinding"].dump(); };
  Wish wish{std::string(kSite) + "/dir", kNames, "", "", {}};
  const auto without = obtain(wish, account, authority.hooks());
  EXPECT_EQ(without.error().code, Code::FailedPrecondition);
  EXPECT_THAT(without.error().message, HasSubstr("--acme-account"));
  wish.binding_id = "kid-1", wish.binding_key = key;
  ASSERT_TRUE(obtain(wish, account, authority.hooks()).ok());
  const Json said = *wire::parse_json(bound);
  const Json head = *wire::parse_json(as_string(*unbase64url(said["protected"].text())));
  EXPECT_EQ(head.dump(), R"({"alg":"HS256","kid":"kid-1","url":")" + std::string(kSite) + R"(/account"})");
  EXPECT_EQ(as_string(*unbase64url(said["payload"].text())), account.jwk());
  const auto mac = crypto::hmac_sha256(key, as_bytes(said["protected"].text() + "." + said["payload"].text()));
  EXPECT_EQ(*unbase64url(said["signature"].text()), Bytes(mac.begin(), mac.end()));
}

TEST(Acme, ANonceThatIsStaleIsReplacedAFewTimes) {
  Authority authority;
  authority.stale = 3;
  EXPECT_TRUE(ask(authority).ok());
  Authority stubborn;
  stubborn.stale = 1000;
  EXPECT_EQ(ask(stubborn).error().code, Code::FailedPrecondition);
  EXPECT_LT(stubborn.asked, 10);
}

TEST(Acme, ARefusalIsToldInTheWordsOfTheAuthority) {
  Authority authority;
  authority.refuse = "n.example.org";
  const auto got = ask(authority);
  ASSERT_FALSE(got.ok());
  EXPECT_EQ(got.error().code, Code::FailedPrecondition);
  EXPECT_THAT(got.error().message, HasSubstr("n.example.org"));
  EXPECT_THAT(got.error().message, HasSubstr("nobody answers"));
  Authority limited;
  limited.change = [](const std::string& path, Reply& reply) {
    if (path == "/order")
      reply = {429, reply.headers,
               R"({"type":"urn:ietf:params:acme:error:rateLimited","detail":"too \u001b[1m many"})"};
  };
  const auto later = ask(limited);
  EXPECT_EQ(later.error().code, Code::Unavailable);
  EXPECT_THAT(later.error().message, HasSubstr("rateLimited"));
  EXPECT_EQ(later.error().message.find('\x1b'), std::string::npos) << "what a terminal would obey";
}

TEST(Acme, WhatMakesNoSenseIsNotBelieved) {
  const auto with = [](const std::string& where, const std::function<void(Reply&)>& change) {
    Authority authority;
    authority.change = [&](const std::string& path, Reply& reply) {
      if (path == where) change(reply);
    };
    const auto got = ask(authority);
    EXPECT_LT(authority.asked, 200) << where;
    return got.ok() ? Code::Internal : got.error().code;
  };
  const auto body = [](const std::string& text) { return [text](Reply& reply) { reply.body = text; }; };
  EXPECT_EQ(with("/dir", body("no json")), Code::DataLoss);
  EXPECT_EQ(with("/dir", body("{}")), Code::DataLoss);
  EXPECT_EQ(with("/dir", body(R"({"newNonce":"file:///etc/passwd","newAccount":"x","newOrder":"x"})")), Code::DataLoss);
  EXPECT_EQ(with("/account", [](Reply& reply) { reply.headers.erase("location"); }), Code::DataLoss);
  EXPECT_EQ(with("/order", [](Reply& reply) { reply.headers.erase("location"); }), Code::DataLoss);
  EXPECT_EQ(with("/order", body(R"({"authorizations":["a","b","c"]})")), Code::DataLoss);
  EXPECT_EQ(
      with("/authz/m.example.org",
           body(R"({"status":"pending","identifier":{"type":"dns","value":"other.example.org"},"challenges":[]})")),
      Code::DataLoss);
  EXPECT_EQ(with("/authz/m.example.org",
                 body(R"({"status":"pending","identifier":{"type":"dns","value":"m.example.org"},"challenges":[]})")),
            Code::FailedPrecondition);
  EXPECT_EQ(with("/order/9", body(R"({"status":"processing"})")), Code::Unavailable) << "not for ever";
  EXPECT_EQ(with("/certificate", body("no certificate")), Code::DataLoss);
  EXPECT_EQ(with("/certificate", body(crypto::create_ca("other", read_clocks().wall)->cert_pem)), Code::DataLoss);
  const auto foreign = *crypto::issue_server_certificate(*crypto::create_ca("c", read_clocks().wall), {}, "x", kNames,
                                                         read_clocks().wall, Millis(86'400'000));
  EXPECT_EQ(with("/certificate", body(foreign.cert_pem)), Code::DataLoss) << "another key";
  Authority dirty;
  EXPECT_EQ(ask(dirty, {"dirty.example.org"}).error().code, Code::DataLoss) << "a token that is none";
  EXPECT_TRUE(dirty.shown.empty());
}

TEST(Acme, NothingIsAskedForNamesThatAreNone) {
  for (const auto& names : std::vector<std::vector<std::string>>{{}, {"localhost"}, {"*.example.org"}}) {
    Authority authority;
    EXPECT_EQ(ask(authority, names).error().code, Code::InvalidArgument);
    EXPECT_EQ(authority.asked, 0);
  }
}

}  // namespace
}  // namespace muster::acme
