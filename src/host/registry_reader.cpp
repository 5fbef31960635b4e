#include "host/registry_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <fstream>
#include <sstream>

#include "host/json.h"
#include "model/image_policy.h"

namespace muster::host {
namespace {

constexpr std::size_t kManifestMax = 1 << 20, kTokenMax = 64 << 10, kCaMax = 256 << 10;
constexpr int kRedirectsMax = 3;
constexpr Millis kAnswerWithin{10'000};
constexpr std::string_view kManifests =
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";

bool this_machine(std::string_view host) {
  for (const std::string_view name : {"localhost", "127.0.0.1", "[::1]"})
    if (host.starts_with(name) && (host.size() == name.size() || host[name.size()] == ':')) return true;
  return false;
}

// What the owner made his engine trust for this registry.
std::string engines_ca(const std::string& host) {
  for (const char* folder : {"/etc/docker/certs.d/", "/etc/containers/certs.d/"}) {
    std::ifstream file(folder + host + "/ca.crt");
    std::stringstream text;
    if (file) text << file.rdbuf();
    if (std::string pem = text.str(); !pem.empty() && pem.size() <= kCaMax) return pem;
  }
  return {};
}

std::string basic(const RegistryAuth& auth) {
  return "Basic " + base64(as_bytes(auth.username + ":" + auth.password));
}

Error unreadable(const std::string& host, std::string_view what) {
  return error(Code::Unavailable, fmt::format("the registry {} {}", host, what), "image_signature.unreachable");
}

}  // namespace

std::map<std::string, std::string> parse_challenge(std::string_view text) {
  std::map<std::string, std::string> out;
  const auto blank = text.find(' ');
  for (const char c : text.substr(0, blank))
    out[""].push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(c))));
  std::size_t at = blank;
  while (at != std::string_view::npos && at < text.size()) {
    at = text.find_first_not_of(" ,", at);
    const auto equals = at == std::string_view::npos ? at : text.find("=\"", at);
    const auto end = equals == std::string_view::npos ? equals : text.find('"', equals + 2);
    if (end == std::string_view::npos) break;
    out.emplace(text.substr(at, equals - at), text.substr(equals + 2, end - equals - 2));
    at = end + 1;
  }
  return out;
}

RegistryReader::RegistryReader(std::string repository, RegistryAuth auth) : auth_(std::move(auth)) {
  // A name that is pinned says no tag, and is made whole by docker.io and library.
  const std::string full = full_image_name(repository + "@");
  host_ = full.substr(0, full.find('/'));
  path_ = full.substr(host_.size() + 1);
  const std::string server = host_ == "docker.io" ? "registry-1.docker.io" : host_;
  base_ = (this_machine(host_) ? "http://" : "https://") + server;
}

Result<std::string> RegistryReader::manifest(const std::string& tag) {
  return TRY(ask("/v2/" + path_ + "/manifests/" + tag, std::string(kManifests), kManifestMax)).body;
}
Result<std::string> RegistryReader::blob(const std::string& digest, std::size_t bytes_max) {
  return TRY(ask("/v2/" + path_ + "/blobs/" + digest, "application/octet-stream", bytes_max)).body;
}

Result<net::Response> RegistryReader::ask(const std::string& path, const std::string& accept, std::size_t bytes_max) {
  for (bool again : {true, false}) {
    std::map<std::string, std::string> headers{{"Accept", accept}};
    if (!authorisation_.empty()) headers["Authorization"] = authorisation_;
    net::Response reply = TRY(get(base_ + path, std::move(headers), bytes_max));
    if (reply.status == 200) return reply;
    if (reply.status == 404) return error(Code::NotFound, host_ + " has no " + path, "image_signature.missing");
    if (reply.status == 401 && again) {
      TRY_VOID(authorise(reply.headers["www-authenticate"]));
      continue;
    }
    if (reply.status == 401 || reply.status == 403)
      return error(Code::PermissionDenied, "the registry " + host_ + " denies " + path, "image_signature.denied");
    return unreadable(host_, fmt::format("answers {} for {}", reply.status, path));
  }
  return unreadable(host_, "asks for an account again and again");
}

// Redirects are followed where registries keep blobs elsewhere; nothing of the account goes along.
Result<net::Response> RegistryReader::get(const std::string& url, std::map<std::string, std::string> headers,
                                          std::size_t bytes_max) {
  std::string where = url;
  for (int hops = 0;; ++hops) {
    const auto parsed = net::parse_web_url(where);
    const bool plain = where.starts_with("http://");
    if (!parsed.ok() || (plain && !base_.starts_with("http://")))
      return unreadable(host_, "leads to an address that is no HTTPS one");
    net::Endpoint endpoint = parsed->endpoint;
    if (!plain && where.starts_with(base_ + "/")) endpoint.ca_pem = engines_ca(host_);
    net::Client client(endpoint);
    auto reply = client.call({.method = "GET",
                              .target = parsed->target,
                              .headers = headers,
                              .body = {},
                              .timeout = kAnswerWithin,
                              .body_max = bytes_max});
    if (!reply.ok()) return unreadable(host_, "cannot be read: " + reply.error().message);
    const bool moved = reply->status == 301 || reply->status == 302 || reply->status == 303 || reply->status == 307 ||
                       reply->status == 308;
    if (!moved) return reply;
    if (hops == kRedirectsMax) return unreadable(host_, "sends from one address to the next");
    const std::string to = reply->headers["location"];
    where = to.starts_with('/') ? where.substr(0, where.find('/', 8)) + to : to;
    headers.erase("Authorization");
  }
}

Status RegistryReader::authorise(const std::string& challenge) {
  auto wants = parse_challenge(challenge);
  const bool account = !auth_.username.empty();
  if (wants[""] == "basic" && account) {
    authorisation_ = basic(auth_);
    return {};
  }
  if (wants[""] != "bearer" || wants["realm"].empty())
    return error(Code::PermissionDenied, "the registry " + host_ + " wants an account", "image_signature.denied");
  const std::string url = wants["realm"] + (wants["realm"].find('?') == std::string::npos ? "?" : "&") +
                          net::form_text({{"service", wants["service"]}, {"scope", "repository:" + path_ + ":pull"}});
  std::map<std::string, std::string> headers;
  if (account) headers["Authorization"] = basic(auth_);
  const net::Response reply = TRY(get(url, std::move(headers), kTokenMax));
  const auto said = parse_object(reply.body);
  std::string token = said.ok() ? text_at(*said, {"token"}) : "";
  if (token.empty() && said.ok()) token = text_at(*said, {"access_token"});
  if (reply.status != 200 || token.empty() || token.find_first_of("\r\n") != std::string::npos)
    return error(reply.status >= 500 ? Code::Unavailable : Code::PermissionDenied,
                 fmt::format("the registry {} gives no token to read {} ({})", host_, path_, reply.status),
                 reply.status >= 500 ? "image_signature.unreachable" : "image_signature.denied");
  authorisation_ = "Bearer " + token;
  return {};
}

}  // namespace muster::host
