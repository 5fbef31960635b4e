#include "server/public_name.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"

namespace muster::server {
namespace {

constexpr Millis kCertLookEvery{3'600'000}, kAcmeRetryMin{300'000}, kAcmeRetryMax{6 * 3'600'000}, kCaPatience{30'000};
constexpr const char *kPairFile = "public.pem", *kAccountFile = "acme-account.pem";
constexpr std::size_t kPublicFileMax = 256 << 10;

// "-----BEGIN PRIVATE KEY-----" first, then the certificates.
crypto::KeyAndCert split_pair(const std::string& text) {
  const auto at = text.find("-----BEGIN CERTIFICATE-----");
  return at == std::string::npos ? crypto::KeyAndCert{} : crypto::KeyAndCert{text.substr(0, at), text.substr(at)};
}

std::string ca_host(const std::string& url) {
  const auto from = url.find("://");
  return from == std::string::npos ? url : url.substr(from + 3, url.find('/', from + 3) - from - 3);
}

}  // namespace

Status PublicName::start() {
  if (options_.directory.empty()) return show(TRY(from_files()));
  if (const auto kept = context_.dir.read(context_.dir.key(kPairFile)); kept.ok()) {
    if (const Status shown = show(split_pair(as_string(*kept))); !shown.ok())
      log_warn("musterd", "the kept certificate of the public name is no good, another is asked for: {}",
               shown.error().message);
  } else if (kept.error().code != Code::NotFound) {
    return kept.error();
  }
  thread_ = std::thread([this] { run(); });
  return {};
}

void PublicName::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void PublicName::look(bool asked) {
  if (!options_.directory.empty()) {
    if (!asked) return;
    {
      const std::lock_guard lock(mutex_);
      told_ = true;
    }
    return wake_.notify_all();
  }
  auto pair = from_files();
  const Status shown = pair.ok() ? show(*pair) : Status(pair.error());
  if (!shown.ok())
    log_error("musterd", "the certificate of the public name stays as it was: {}", shown.error().message);
}

Result<crypto::KeyAndCert> PublicName::from_files() const {
  std::ifstream in(options_.certificate_file, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf()) || text.str().size() > kPublicFileMax)
    return error(Code::NotFound, fmt::format("--public-cert: {} cannot be read", options_.certificate_file));
  const Bytes key = TRY(crypto::read_secret_file(options_.key_file, kPublicFileMax));
  return crypto::KeyAndCert{as_string(key), text.str()};
}

Status PublicName::show(const crypto::KeyAndCert& pair) {
  const auto names = TRY(crypto::dns_names(pair.cert_pem));
  const auto valid = TRY(crypto::certificate_validity(pair.cert_pem));
  if (!crypto::key_fits(pair))
    return error(Code::InvalidArgument,
                 "the key of the public name is not that of its certificate, which must come first");
  for (const std::string& each : options_.names)
    if (std::find(names.begin(), names.end(), each) == names.end() &&
        std::find(names.begin(), names.end(), "*" + each.substr(each.find('.'))) == names.end())
      return error(Code::InvalidArgument, fmt::format("the certificate is not for {}", each));
  const auto& shown = options_.names.empty() ? names : options_.names;
  if (shown.empty()) return error(Code::InvalidArgument, "the certificate of the public name names none");
  TRY_VOID(server_.set_public_tls({shown.begin(), shown.end()}, {pair.cert_pem, pair.key_pem}));
  TRY_VOID(context_.certificates.set(kWatched, pair.cert_pem,
                                     options_.directory.empty()
                                         ? "put another into the files of --public-cert and --public-key"
                                         : "it is renewed by itself when a third of its life is left"));
  const std::lock_guard lock(mutex_);
  shown_names_ = shown;
  shown_ = valid;
  return {};
}

bool PublicName::due(WallTime now) const {
  return shown_names_ != options_.names || now + (shown_.not_after - shown_.not_before) / 3 >= shown_.not_after;
}

bool PublicName::wait(Millis time) {
  std::unique_lock lock(mutex_);
  wake_.wait_for(lock, time, [this] { return stopping_; });
  return !stopping_;
}

void PublicName::run() {
  Millis retry = kAcmeRetryMin;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    Millis next = kCertLookEvery;
    if (due(read_clocks().wall)) {
      lock.unlock();
      auto pair = ask();
      const Status shown = pair.ok() ? show(*pair) : Status(pair.error());
      if (shown.ok()) {
        log_info("musterd", "a certificate for {} is in use, from {}", fmt::join(options_.names, ", "),
                 ca_host(options_.directory));
        retry = kAcmeRetryMin;
      } else if (wait(Millis(0))) {
        next = std::exchange(retry, std::min(retry * 2, kAcmeRetryMax));
        log_error("musterd", "no certificate for {}: {}; trying again in {} minutes, and on SIGHUP",
                  fmt::join(options_.names, ", "), shown.error().message, next.count() / 60'000);
      }
      lock.lock();
    }
    wake_.wait_for(lock, next, [this] { return stopping_ || told_; });
    told_ = false;
  }
}

Result<crypto::AccountKey> PublicName::account() {
  const std::string path = context_.dir.key(kAccountFile);
  if (const auto kept = context_.dir.read(path); kept.ok())
    return crypto::AccountKey::from_pem(as_string(*kept));
  else if (kept.error().code != Code::NotFound)
    return kept.error();
  auto fresh = crypto::AccountKey::make();
  TRY_VOID(context_.dir.write(path, as_bytes(fresh.pem())));
  return fresh;
}

Result<crypto::KeyAndCert> PublicName::ask() {
  acme::Hooks hooks;
  hooks.ask = [this](const std::string& method, const std::string& url,
                     const std::string& body) -> Result<acme::Reply> {
    net::WebUrl parsed = TRY(net::parse_web_url(url));
    if (parsed.endpoint.peer == net::Peer::Web) parsed.endpoint.ca_pem = options_.ca_pem;
    net::Client::Call call{
        .method = method, .target = parsed.target, .body = body, .timeout = kCaPatience, .body_max = acme::kAnswerMax};
    call.headers = {{"User-Agent", "muster"}};
    if (!body.empty()) call.headers["Content-Type"] = "application/jose+json";
    const auto answer = net::Client(parsed.endpoint).call(call);
    if (!answer.ok())
      return error(Code::Unavailable, fmt::format("{} is not reached: {}", ca_host(url), answer.error().message));
    return acme::Reply{answer->status, answer->headers, answer->body};
  };
  hooks.show = [this](const std::string& name, const crypto::KeyAndCert& proof) {
    return server_.set_name_proof(name, {proof.cert_pem, proof.key_pem});
  };
  hooks.wait = [this](Millis time) { return wait(time); };
  hooks.now = [] { return read_clocks().wall; };
  auto pair =
      acme::obtain({options_.directory, options_.names, options_.contact, options_.binding_id, options_.binding_key},
                   TRY(account()), hooks);
  for (const std::string& each : options_.names) (void)server_.set_name_proof(each, {});
  if (!pair.ok()) return pair.error();
  const std::string text = pair->key_pem + pair->cert_pem;
  TRY_VOID(context_.dir.write(context_.dir.key(kPairFile), as_bytes(text)));
  return std::move(*pair);
}

}  // namespace muster::server
