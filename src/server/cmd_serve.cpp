#include <fmt/format.h>
#include <signal.h>
#include <time.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <sstream>

#include "base/log.h"
#include "crypto/public_name.h"
#include "crypto/workload_token.h"
#include "model/names.h"
#include "net/net.h"
#include "server/app.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/public_name.h"
#include "server/signer_socket.h"
#include "wire/names.h"

namespace muster::server {
namespace {

constexpr std::string_view kLetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory";

Result<std::string> read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  if (!in || !(text << in.rdbuf()) || text.str().size() > (1 << 20))
    return error(Code::NotFound, path + " cannot be read");
  return text.str();
}

// The key id and the HMAC key (base64url, as CAs show it) of an account with a CA, in a line each.
Status read_account(const std::string& path, PublicName::Options& out) {
  std::istringstream lines(TRY(read_text(path)));
  std::string key, more;
  const auto printable = [](char c) { return c > ' ' && c < 127; };
  if (lines >> out.binding_id >> key && !(lines >> more) && out.binding_id.size() <= 256 &&
      std::all_of(out.binding_id.begin(), out.binding_id.end(), printable)) {
    while (key.ends_with('=')) key.pop_back();
    std::replace(key.begin(), key.end(), '+', '-');
    std::replace(key.begin(), key.end(), '/', '_');
    if (auto bytes = unbase64url(key); bytes && bytes->size() >= 16)
      return out.binding_key = std::move(*bytes), Status();
  }
  return error(
      Code::InvalidArgument,
      path + " must hold what the CA gave you for --acme-account: the key id and the HMAC key, in a line each");
}

struct Listen {
  std::string address = "127.0.0.1";
  std::uint16_t port = 8443;
};
Result<Listen> parse_listen(const std::string& text) {
  Listen out;
  if (text.empty()) return out;
  const auto colon = text.rfind(':');
  if (colon == std::string::npos)
    return error(Code::InvalidArgument, "--listen must be ADDR:PORT, for example 0.0.0.0:8443");
  out.address = text.substr(0, colon);
  if (out.address.starts_with("[") && out.address.ends_with("]"))
    out.address = out.address.substr(1, out.address.size() - 2);
  const auto [end, fault] = std::from_chars(text.data() + colon + 1, text.data() + text.size(), out.port);
  if (fault != std::errc() || end != text.data() + text.size())
    return error(Code::InvalidArgument, "--listen must be ADDR:PORT, for example 0.0.0.0:8443");
  return out;
}

Result<Millis> parse_span(const Arguments& arguments, const std::string& name, Millis unit, std::int64_t low,
                          std::int64_t high, Millis otherwise) {
  const std::string text = arguments.option(name);
  if (text.empty()) return otherwise;
  std::int64_t value = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (fault != std::errc() || end != text.data() + text.size() || value < low || value > high)
    return error(Code::InvalidArgument, fmt::format("{} must be a whole number from {} to {}", name, low, high));
  return unit * value;
}

// "operator,auditor" or "all"; empty: none.
Result<std::set<Role>> parse_roles(const std::string& text) {
  if (text == "all")
    return std::set{Role::Operator,    Role::Supplier,     Role::Tenant,        Role::Auditor,
                    Role::TenantAdmin, Role::TenantViewer, Role::SupplierMember};
  // Who may more of the same needs it too: naming tenants leaves out no administrator.
  const std::map<Role, std::set<Role>> more{{Role::Tenant, {Role::TenantAdmin}},
                                            {Role::TenantViewer, {Role::Tenant, Role::TenantAdmin}},
                                            {Role::SupplierMember, {Role::Supplier}}};
  std::set<Role> out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    const auto role = wire::parse_role(text.substr(at, end - at));
    if (!role)
      return error(Code::InvalidArgument, fmt::format("--second-factor takes a list of roles ({}), or all; not '{}'",
                                                      kRolesInWords, text.substr(at, end - at)));
    out.insert(*role);
    if (const auto found = more.find(*role); found != more.end())
      out.insert(found->second.begin(), found->second.end());
    at = end + 1;
  }
  return out;
}

// Of --public-name and what belongs to it; nothing: none.
Result<std::optional<PublicName::Options>> parse_public_name(const Arguments& arguments) {
  PublicName::Options out;
  const std::string names = arguments.option("--public-name");
  for (std::size_t at = 0; at < names.size();) {
    const std::size_t end = std::min(names.find(',', at), names.size());
    std::string name = names.substr(at, end - at);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
    if (!crypto::valid_public_name(name))
      return error(
          Code::InvalidArgument,
          "--public-name takes names of the web like muster.example.org, separated by commas; not '" + name + "'");
    out.names.push_back(std::move(name));
    at = end + 1;
  }
  out.certificate_file = arguments.option("--public-cert");
  out.key_file = arguments.option("--public-key");
  out.directory = arguments.option("--acme");
  out.contact = arguments.option("--acme-contact");
  const std::string ca = arguments.option("--acme-ca");
  const bool files = !out.certificate_file.empty() || !out.key_file.empty();
  const std::string account = arguments.option("--acme-account");
  const bool acme = !out.directory.empty() || !out.contact.empty() || !ca.empty() || !account.empty();
  if (!files && !acme && out.names.empty()) return std::optional<PublicName::Options>();
  if (files && acme)
    return error(Code::InvalidArgument,
                 "a public name has a certificate of yours (--public-cert, --public-key) or one "
                 "that is asked for (--acme), not both");
  if (files && (out.certificate_file.empty() || out.key_file.empty()))
    return error(Code::InvalidArgument, "--public-cert and --public-key belong together");
  if (!files && out.directory.empty())
    return error(Code::InvalidArgument,
                 "--public-name needs --acme letsencrypt, --acme URL, or --public-cert and --public-key");
  if (acme && out.names.empty())
    return error(Code::InvalidArgument, "--acme needs the names to ask for: --public-name muster.example.org");
  if (out.names.size() > crypto::kPublicNamesMax)
    return error(Code::InvalidArgument, fmt::format("--public-name takes {} names at most", crypto::kPublicNamesMax));
  if (out.directory == "letsencrypt") out.directory = std::string(kLetsEncrypt);
  if (acme) {
    if (const auto url = net::parse_web_url(out.directory); !url.ok())
      return error(Code::InvalidArgument,
                   "--acme takes letsencrypt or the https address of a CA's directory: " + url.error().message);
    const auto at = out.contact.find('@');
    if (!out.contact.empty() &&
        (at == 0 || at == std::string::npos || out.contact.size() > 254 ||
         !std::all_of(out.contact.begin(), out.contact.end(), [](char c) { return c > ' ' && c < 127; })))
      return error(Code::InvalidArgument, "--acme-contact takes an e-mail address");
    if (!ca.empty()) out.ca_pem = TRY(read_text(ca));
    if (!account.empty()) TRY_VOID(read_account(account, out));
  }
  return std::optional(std::move(out));
}

Status serve(const Arguments& arguments, const OpenStore& open, const OpenAddresses& open_addresses) {
  // Blocked before any thread starts, so that only the wait below takes them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  App::Options options;
  options.dir = TRY(open_data_dir(arguments));
  std::unique_ptr<SignerChild> child;
  std::string signer = arguments.option("--signer");
  if (signer.empty() && std::filesystem::exists(options.dir.key("ca.key.pem"))) {
    child = TRY(SignerChild::start(options.dir));
    signer = child->socket();
  }
  if (!signer.empty()) options.signer = std::make_shared<SignerLink>(signer);
  const Identity identity = TRY(load_identity(options.dir, read_clocks().wall, options.signer));
  const Listen listen = TRY(parse_listen(arguments.option("--listen")));
  options.address = listen.address;
  options.port = listen.port;
  options.handoff = arguments.option("--handoff");
  options.public_host = arguments.option("--public");
  if (options.public_host.empty()) {
    options.public_host = !identity.relay_list.empty() ? identity.relay_list.front().address
                                                       : fmt::format("{}:{}", identity.sans.front(), listen.port);
  }
  options.identity_issuer = arguments.option("--identity-issuer");
  if (!options.identity_issuer.empty() && !crypto::valid_issuer(options.identity_issuer))
    return error(Code::InvalidArgument,
                 "--identity-issuer is the https address under which services find the key set, without a slash at its "
                 "end: https://id.example.org");
  options.identity_life = TRY(parse_span(arguments, "--identity-life", Millis(1000), 60, 3'600, options.identity_life));
  options.certificate_life =
      TRY(parse_span(arguments, "--certificate-life", Millis(1000), 60, 7 * 86'400, options.certificate_life));
  options.reenrol_within =
      TRY(parse_span(arguments, "--reenrol-days", Millis(86'400'000), 0, 365, options.reenrol_within));
  options.addresses_kept =
      TRY(parse_span(arguments, "--address-days", Millis(86'400'000), 0, 3'650, options.addresses_kept));
  options.agents.carried_every =
      TRY(parse_span(arguments, "--carried-seconds", Millis(1000), 5, 86'400, options.agents.carried_every));
  options.factor_needed = TRY(parse_roles(arguments.option("--second-factor")));
  if (const std::string sso = arguments.option("--sso"); !sso.empty()) {
    options.sso = TRY(SsoProvider::load(sso));
    log_info("musterd", "people may log in by {}", options.sso->settings.issuer);
  }
  options.public_name = TRY(parse_public_name(arguments));
  if (open_addresses) options.addresses = TRY(open_addresses(options.dir.addresses(), ring_of(options.dir)));
  options.store = TRY(open(options.dir.journal(), ring_of(options.dir)));
  const auto app = TRY(App::start(options));
  log_info("musterd", "serving on {}:{} as {} (seq {})", listen.address, app->port(), identity.server_id,
           app->context().runner->durable_seq());
  while (true) {
    const timespec hour{3600, 0};
    const int got = sigtimedwait(&signals, nullptr, &hour);
    if (got == SIGTERM || got == SIGINT) break;
    if (got != SIGHUP && got >= 0) continue;
    // Every hour, and on SIGHUP: a certificate that nears its end is replaced without a restart.
    const Status renewed = app->renew_certificate();
    app->judge_hosts();
    app->judge_images();
    app->look_at_public_name(got == SIGHUP);
    if (const Status signed_head = app->sign_due_head(); !signed_head.ok())
      log_error("musterd", "the journal's head could not be signed: {}", signed_head.error().message);
    if (!renewed.ok()) log_error("musterd", "the server certificate could not be renewed: {}", renewed.error().message);
  }
  log_info("musterd", "stopping");
  app->stop();
  return {};
}

}  // namespace

int cmd_serve(const Arguments& arguments, const OpenStore& open, const OpenAddresses& open_addresses) {
  if (arguments.option("--data").empty()) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  const Status served = serve(arguments, open, open_addresses);
  if (served.ok()) return 0;
  fmt::print(stderr, "musterd serve: {}\n", served.error().message);
  return 1;
}

}  // namespace muster::server
