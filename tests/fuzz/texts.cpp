// Texts from people and strangers: launcher files, tokens, URLs, certificates, tar streams, lists of packages, DNS, TLS
// hellos.
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "cli/archive.h"
#include "crypto/access_token.h"
#include "crypto/cert.h"
#include "crypto/signing_keys.h"
#include "crypto/token.h"
#include "crypto/trust.h"
#include "egress/dns.h"
#include "fuzz/fuzz.h"
#include "launcher/launcher.h"
#include "launcher/reader.h"
#include "model/node_labels.h"
#include "net/address_block.h"
#include "net/net.h"
#include "net/url.h"
#include "relay/client_hello.h"
#include "relay/upgrade.h"
#include "scan/inventory.h"
#include "scan/verdict.h"

namespace muster::fuzz {
namespace {

namespace fs = std::filesystem;
constexpr WallTime kNow{1'795'000'000'000};

Bytes file_bytes(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return to_bytes(text.str());
}

Seeds seeds_yaml() {
  Seeds out;
  for (const auto& file : fs::directory_iterator(in_tree("tests/data/launcher"))) {
    const Bytes whole = file_bytes(file.path());
    out.push_back(whole);
    // The same without its comments: shorter, so that more of what is tried is YAML.
    Bytes bare;
    std::istringstream lines(as_string(whole));
    for (std::string line; std::getline(lines, line);)
      if (const auto at = line.find_first_not_of(' '); at != std::string::npos && line[at] != '#')
        bare = std::move(bare) + line + "\n";
    out.push_back(bare);
  }
  for (const char* text :
       {"a: &x [1, 2]\nb: *x\nc: {<<: {d: 1}}\n", "- 0x1f\n- 1_000\n- .inf\n- ~\n- 'q'\n- \"\\u00e9\"\n",
        "a: |\n  text\n  more\nb: >-\n  folded\n", "cluster_name: x\nprovider: {type: aws}\n",
        "cluster_name: x\nprovider: {type: aws}\nmax_workers: 2\ndocker: {image: i}\n",
        "cluster_name: x\nprovider: {type: local, head_ip: a, worker_ips: [b]}\n",
        "cluster_name: x\nprovider: {type: aws}\nmuster: {spares: 1}\n",
        "provider: {type: gcp}\ncluster_name: x\nidle_timeout_minutes: 2\n",
        "cluster_name: x\nprovider: {type: aws}\nsetup_commands: [a]\n"})
    out.push_back(to_bytes(text));
  return out;
}
FUZZ_TARGET(yaml, 4 << 10) {
  const std::string text = as_string(input);
  launcher::Context context;
  context.find_node = [](std::string_view address) {
    return address == "10.0.0.5" ? std::optional(NodeId{5}) : std::nullopt;
  };
  const auto launch = launcher::from_yaml(text, context);
  if (launch.ok()) {
    plant(launch->spec.name.size() <= 3 && launch->spec.name != "x");
    (void)launcher::report_text(launch->report);
  }
  (void)launcher::json_of_yaml(text).ok();
  (void)launcher::parse_bytes(text);
  (void)launcher::split_words(text);
}

// Signed when it is read, so that what is tried passes the signature; as a whole, it hardly ever would.
crypto::SigningKey access_key() {
  return *crypto::SigningKey::from_seed(Bytes(32, 9));
}
constexpr std::int64_t kAccessNow = 1'795'000'000'000;
const crypto::AccessClaims kAccess{"muster-1", "usr-5", "tok-9", WallTime{kAccessNow}, WallTime{kAccessNow + 600'000}};
std::string access_head() {
  const std::string whole = crypto::make_access_token(access_key(), kAccess);
  return whole.substr(0, whole.find('.') + 1);
}
Seeds seeds_access_token() {
  const std::string token = crypto::make_access_token(access_key(), kAccess);
  const std::string payload = token.substr(token.find('.') + 1);
  const Bytes claims = *unbase64url(payload.substr(0, payload.find('.')));
  return {
      Bytes{0} + claims,
      Bytes{1} + token,
      Bytes{1} + "eyJhbGciOiJub25lIn0.e30.",
      Bytes{2} + ("mrf_" + base64url(Bytes(32, 1)) + "." + base64url(Bytes(32, 2))),
      Bytes{0} + R"({"aud":"muster-api","exp":1795000600,"iat":1795000000,"iss":"other","sid":"tok-9","sub":"usr-5"})",
      Bytes{0} + R"({"aud":"muster-api","exp":1,"iat":0,"iss":"muster-1","sid":"tok-9","sub":"usr-5"})"};
}
FUZZ_TARGET(access_token, 1200) {
  Input in(input);
  const int kind = in.byte() % 3;
  std::string text(in.text());
  if (kind == 2) {
    const auto refresh = crypto::parse_refresh_token(text);
    MUSTER_CHECK(!refresh.ok() || (refresh->session.size() == 32 && refresh->rotating.size() == 32));
    const auto next = crypto::next_refresh_token(text);
    MUSTER_CHECK(refresh.ok() ? next.hashes.session == refresh->session : next.text.empty());
    return;
  }
  static const std::string head = access_head();
  static const std::vector<crypto::AccessKey> keys{{access_key().public_key(), WallTime{0}}};
  if (kind == 0) {
    text = head + base64url(as_bytes(text));
    text += "." + base64url(access_key().sign(as_bytes(text)));
  }
  const auto claims = crypto::read_access_token(text, keys, "muster-1", WallTime{kAccessNow + 1000});
  if (!claims.ok()) return;
  // There is one way to say it, and it says no more than it may.
  MUSTER_CHECK(crypto::make_access_token(access_key(), *claims) == text && claims->server == "muster-1");
  MUSTER_CHECK(claims->expires.ms > kAccessNow + 1000 &&
               claims->expires - claims->issued <= crypto::kAccessLifetimeMax);
  plant(claims->session.size() != kAccess.session.size());
}

Seeds seeds_token() {
  const Bytes sha(32, 7);
  Seeds out{to_bytes(crypto::make_api_token().text), to_bytes(crypto::make_join_token(sha, "cp.example:8443").text),
            to_bytes(crypto::make_join_token(sha, "").text)};
  for (const char* text : {"https://host:8443/", "https://[::1]", "http://u:p%40@proxy:3128", "/api/v1/x%20y?a=1&b=%2f",
                           "[2001:db8::1%eth0]:80", "::ffff:203.0.113.5", "pool:gold", "pool:org-3/gold"})
    out.push_back(to_bytes(text));
  return out;
}
FUZZ_TARGET(token, 512) {
  const std::string text = as_string(input);
  const auto api = crypto::api_token_hash(text);
  MUSTER_CHECK(!api.ok() || api->size() == 32);
  const auto join = crypto::parse_join_token(text);
  if (join.ok()) {
    MUSTER_CHECK(join->hash.size() == 32 && join->ca_sha256.size() == 32);
  }
  if (const auto target = net::parse_target(text); target.ok()) {
    MUSTER_CHECK(target->path.empty() || target->path[0] == '/');
    plant(target->query.size() == 2 && target->path != "/api/v1/x y");
    MUSTER_CHECK(target->path.find("/../") == std::string::npos && valid_utf8(target->path));
  }
  (void)net::parse_url(text).ok();
  (void)net::parse_web_url(text).ok();
  (void)net::parse_request_line(text);
  (void)net::proxy_for("host", 443, text, "").ok();
  (void)net::proxy_for("host", 443, "http://proxy", text).ok();
  (void)net::address_block(text);
  if (const auto pool = parse_pool(text)) {
    MUSTER_CHECK(!pool->name.empty() && text == "pool:" + (pool->org.empty() ? "" : pool->org + "/") + pool->name);
  }
  if (const auto bytes = unbase64(text)) MUSTER_CHECK(base64(*bytes) == text);
  if (const auto bytes = unbase64url(text)) MUSTER_CHECK(base64url(*bytes) == text);
  if (const auto bytes = unhex(text)) MUSTER_CHECK(bytes->size() * 2 == text.size());
}

std::string pem(std::string_view label, ByteView der) {
  std::string out = "-----BEGIN " + std::string(label) + "-----\n";
  const std::string text = base64(der);
  for (std::size_t at = 0; at < text.size(); at += 64) out += text.substr(at, 64) + "\n";
  return out + "-----END " + std::string(label) + "-----\n";
}
Bytes der_of(std::string_view text) {  // of the first block
  const auto begin = text.find("-----\n") + 6, end = text.find("-----END");
  std::string body;
  for (const char c : text.substr(begin, end - begin))
    if (c != '\n') body.push_back(c);
  return unbase64(body).value_or(Bytes{});
}

Seeds seeds_certificate() {
  const auto ca = *crypto::create_ca("muster", kNow);
  const auto device = crypto::SigningKey::generate();
  const Bytes ca_der = der_of(ca.cert_pem);
  const std::string leaf = *crypto::issue_device_certificate(ca, device.public_key(), "node-12", kNow);
  const auto server = *crypto::issue_server_certificate(ca, crypto::ServerRole::ControlPlane, "cp",
                                                        {"cp.example", "10.0.0.1"}, kNow, Millis(86'400'000));
  const std::string csr = *crypto::make_csr(device, "box");
  return {Bytes{0} + sized(ca_der) + der_of(leaf),
          Bytes{0} + sized(ca_der) + der_of(server.cert_pem),
          Bytes{0} + sized(ca_der) + ca_der,
          Bytes{1} + der_of(csr),
          Bytes{2} + der_of(device.to_pem()),
          Bytes{3} + leaf,
          Bytes{3} + csr,
          Bytes{3} + (leaf + ca.cert_pem),
          Bytes{3} + crypto::trust_text({"srv-1", 2, {ca.cert_pem}, {}, {leaf}, {Bytes(70, 7)}}),
          Bytes{3} + crypto::signing_keys_text({"srv-1",
                                                2,
                                                {{crypto::KeyKind::Roster, device.public_key(), {}, WallTime{9}},
                                                 {crypto::KeyKind::Order, device.public_key(), WallTime{5}, {}}},
                                                {ca.cert_pem},
                                                Bytes(70, 7)})};
}
FUZZ_TARGET(certificate, 4 << 10) {
  Input in(input);
  const std::uint8_t kind = in.byte();
  if (kind == 0) {
    const std::string ca = pem("CERTIFICATE", in.sized()), cert = pem("CERTIFICATE", in.rest());
    if (const auto read = crypto::verify_device_certificate(cert, ca, kNow + Millis(1000)); read.ok())
      MUSTER_CHECK(NodeId::parse(read->node_id).has_value());
    (void)crypto::verify_chain(cert, ca, kNow).ok();
    const auto validity = crypto::certificate_validity(cert);
    if (validity.ok()) {
      plant((validity->not_after - validity->not_before).count() % 60'000 != 0);
    }
    (void)crypto::certificate_sha256(cert).ok();
    (void)crypto::server_role(cert).ok();
  } else if (kind == 1) {
    (void)crypto::verify_csr(pem("CERTIFICATE REQUEST", in.rest())).ok();
  } else if (kind == 2) {
    (void)crypto::SigningKey::from_pem(pem("PRIVATE KEY", in.rest())).ok();
  } else {
    const std::string_view text = in.text();
    (void)crypto::verify_csr(text).ok();
    (void)crypto::certificate_validity(text).ok();
    (void)crypto::find_certificate(text, Bytes(32, 1)).ok();
    (void)crypto::server_role(text).ok();
    (void)crypto::SigningKey::from_pem(text).ok();
    if (const auto trust = crypto::parse_trust(text); trust.ok() && trust->revision != 0)
      MUSTER_CHECK(*crypto::parse_trust(crypto::trust_text(*trust)) == *trust);
    if (const auto keys = crypto::parse_signing_keys(text); keys.ok()) {
      MUSTER_CHECK(*crypto::parse_signing_keys(crypto::signing_keys_text(*keys)) == *keys);
      MUSTER_CHECK(!crypto::vouched_for(*keys, {}));
    }
  }
}

// One header block of a tar with its checksum, and the body filled up to whole blocks.
Bytes tar_entry(const std::string& name, char kind, const std::string& body, const std::string& link = {}) {
  Bytes block(512, 0);
  const auto put = [&](std::size_t at, std::string_view text) {
    std::copy(text.begin(), text.end(), block.begin() + static_cast<std::ptrdiff_t>(at));
  };
  char size[12];
  std::snprintf(size, sizeof size, "%011o", static_cast<unsigned>(body.size()));
  put(0, name), put(100, "0000644"), put(124, size), put(136, "14400000000"), put(157, link);
  put(257, std::string_view("ustar\0"
                            "00",
                            8));
  block[156] = static_cast<std::uint8_t>(kind);
  unsigned sum = 8 * ' ';
  for (const std::uint8_t byte : block) sum += byte;
  char said[8];
  std::snprintf(said, sizeof said, "%06o", sum);
  put(148, said);
  Bytes padded = to_bytes(body);
  padded.resize((body.size() + 511) / 512 * 512);
  return std::move(block) + padded;
}
// The checksum of a header is set right before it is read: else nothing that is tried would pass it.
void right_sums(Bytes& tar) {
  for (std::size_t at = 0; at + 512 <= tar.size(); at += 512) {
    if (std::string_view(reinterpret_cast<const char*>(&tar[at + 257]), 5) != "ustar") continue;
    unsigned sum = 8 * ' ';
    for (std::size_t i = 0; i < 512; ++i) sum += i >= 148 && i < 156 ? 0U : tar[at + i];
    char said[8] = {};
    std::snprintf(said, sizeof said, "%06o", sum);
    std::copy(said, said + 8, tar.begin() + static_cast<std::ptrdiff_t>(at) + 148);
  }
}
const std::string& tar_folder() {
  static const std::string folder = [] {
    std::string name = (fs::exists("/dev/shm") ? "/dev/shm" : "/tmp") + std::string("/muster-fuzz-XXXXXX");
    MUSTER_CHECK(mkdtemp(name.data()) != nullptr);
    static std::string kept;
    kept = name;
    std::atexit([] { fs::remove_all(kept); });
    return name;
  }();
  return folder;
}
// Whatever modes the archive gave to folders.
void clear(const fs::path& folder) {
  ::chmod(folder.c_str(), 0700);
  for (const auto& item : fs::directory_iterator(folder))
    if (!item.is_symlink() && item.is_directory()) clear(item.path());
  fs::remove_all(folder);
}
Seeds seeds_tar() {
  const Bytes end(1024, 0);
  return {Bytes{0} + tar_entry("d/", '5', "") + tar_entry("d/a.txt", '0', "hello") + end,
          Bytes{1} + tar_entry("l", '2', "", "d/a") + tar_entry("b", '0', "x") + end,
          Bytes{0} + tar_entry("././@LongLink", 'L', std::string(150, 'n')) + tar_entry("n", '0', "y") + end,
          Bytes{0} + tar_entry("././@LongLink", 'K', "t") + tar_entry("n", '2', "y") + end,
          Bytes{7} + tar_entry("pax", 'x', "17 path=sub/name\n20 linkpath=sub/name\n") + tar_entry("n", '0', "z") + end,
          Bytes{0} + tar_entry("h", '1', "", "d/a.txt") + tar_entry("dev", '3', "") + end,
          Bytes{0} + tar_entry("../x", '0', "out") + end,
          Bytes{0} + tar_entry("s", '2', "", "/etc") + tar_entry("s/x", '0', "out") + end};
}
FUZZ_TARGET(tar, 8 << 10) {
  const fs::path target = fs::path(tar_folder()) / "in" / "here";
  fs::create_directories(target);
  Input in(input);
  const std::size_t piece = in.byte();
  const ByteView rest = in.rest();
  Bytes tar(rest.begin(), rest.end());
  right_sums(tar);
  {
    cli::Unpacker unpacker(target.string());
    Input pieces(tar);
    Status status;
    while (status.ok() && !pieces.empty())
      status = unpacker.feed(as_string(pieces.take(piece == 0 ? tar.size() : piece * 16)));
    if (status.ok()) (void)unpacker.finish().ok();
  }
  // Nothing but the target was touched, and no link in it leads out.
  std::size_t outside = 0;
  for (const auto& item : fs::directory_iterator(tar_folder())) outside += item.path().filename() != "in";
  for (const auto& item : fs::directory_iterator(target.parent_path())) outside += item.path().filename() != "here";
  MUSTER_CHECK(outside == 0);
  for (const auto& item : fs::recursive_directory_iterator(target, fs::directory_options::skip_permission_denied)) {
    const std::string name = item.path().filename().string();
    plant(name.size() == 150 && name.find_first_not_of('n') != std::string::npos);
    if (!item.is_symlink()) continue;
    const fs::path to = fs::read_symlink(item.path());
    const fs::path meant = (item.path().parent_path() / to).lexically_normal();
    MUSTER_CHECK(!to.is_absolute() && meant.string().starts_with(target.string()));
  }
  clear(target);
}

// ---- lists of packages, of images
constexpr std::array<const char*, 7> kLists{
    "var/lib/dpkg/status",  "lib/apk/db/installed",    "var/lib/rpm/rpmdb.sqlite",
    "var/lib/rpm/Packages", "var/lib/rpm/Packages.db", "usr/lib/python3/dist-packages/a.dist-info/METADATA",
    "etc/os-release"};
Seeds seeds_packages() {
  const auto rpm = [](const char* name) { return file_bytes(in_tree(std::string("tests/data/rpm/") + name)); };
  return {
      Bytes{0} +
          "Package: libssl3\nStatus: install ok installed\nSource: openssl (3.0-1)\nVersion: 3.0-1+b1\n\nPackage: x\n",
      Bytes{1} + "C:Q1\nP:libcrypto3\nV:3.1.4-r5\no:openssl\n\nP:musl\nV:1.2.4-r4\n",
      Bytes{2} + rpm("rpmdb.sqlite"),
      Bytes{3} + rpm("Packages"),
      Bytes{4} + rpm("Packages.db"),
      Bytes{5} + "Metadata-Version: 2.1\nName: Jinja2\nVersion: 3.1.2\n\ntext",
      Bytes{6} + "ID=sles\nVERSION_ID=\"15.5\"\n",
      Bytes{7} +
          "muster-packages 1\nsystem Debian:12\nskipped 0\n=Debian:12\nlibssl3 3.0-1+b1 openssl 3.0-1\nbash 5\n"};
}
FUZZ_TARGET(packages, 40 << 10) {
  Input in(input);
  const std::size_t which = in.byte() % (kLists.size() + 1);
  const std::string text(in.text());
  scan::Inventory inventory;
  if (which < kLists.size()) {
    scan::take(inventory, "etc/os-release", "ID=almalinux\nVERSION_ID=9\n");
    scan::take(inventory, kLists[which], text);
    scan::settle(inventory);
  } else if (auto told = scan::parse_inventory(text); told.ok()) {
    inventory = std::move(*told);
  }
  for (const scan::Package& each : inventory.packages) {
    MUSTER_CHECK(!each.name.empty() && !each.version.empty() && !each.source.empty());
    plant(which == 1 && each.name == "musl" && each.version.starts_with("2"));
  }
  const auto back = scan::parse_inventory(scan::inventory_text(inventory, 1 << 20));
  MUSTER_CHECK(back.ok() && back->packages == inventory.packages && back->skipped == inventory.skipped);
  scan::Matcher matcher(inventory);
  static const wire::Json record = *scan::parse_record(
      R"({"id":"CVE-1","affected":[{"package":{"ecosystem":"AlmaLinux:9","name":"gamma"},"ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},{"fixed":"2:2-1"}]}]}]})");
  MUSTER_CHECK(matcher.add(record).ok());
  (void)matcher.findings();
}

Seeds seeds_osv() {
  return {
      to_bytes(
          R"({"id":"GHSA-x","aliases":["CVE-2024-9"],"modified":"2026-11-20T00:00:00Z","affected":[{"package":{"ecosystem":"PyPI","name":"jinja2"},)"
          R"("ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"0"},{"fixed":"3.1.4"}]}],"versions":["3.1.2"]}],)"
          R"("severity":[{"type":"CVSS_V3","score":"CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H"}]})"),
      to_bytes(
          R"({"id":"CVE-1","withdrawn":"2026-01-01","affected":[{"package":{"ecosystem":"Debian:12","name":"openssl"},)"
          R"("ranges":[{"type":"ECOSYSTEM","events":[{"introduced":"1:0~rc1"},{"last_affected":"3.0.12-1"}]}],)"
          R"("database_specific":{"severity":"MODERATE"}}]})"),
      to_bytes(
          R"({"waivers":[{"id":"CVE-1","owner":"ann","until":"2026-12-31"}],"block":"high","deny":true,"max_age_days":3})")};
}
FUZZ_TARGET(osv, 4 << 10) {
  static const scan::Inventory inventory =
      scan::inventory_of({{"etc/os-release", "ID=debian\nVERSION_ID=12\n"},
                          {"var/lib/dpkg/status", "Package: libssl3\nSource: openssl\nVersion: 3.0.11-1~deb12u1\n"},
                          {"a.dist-info/METADATA", "Name: Jinja2\nVersion: 3.1.2\n"}});
  const std::string text(as_string(input));
  scan::Matcher matcher(inventory);
  if (matcher.add(text).ok()) {
    for (const scan::Finding& each : matcher.findings()) {
      MUSTER_CHECK(each.id.size() <= scan::kFieldMax && each.fixed.size() <= scan::kFieldMax);
      plant(each.package == "jinja2" && each.fixed.starts_with("6"));
    }
  }
  if (const auto policy = scan::parse_scan_policy(text); policy.ok())
    MUSTER_CHECK(policy->rules.fresh > Millis(0) && policy->rules.block != scan::Severity::Unknown);
}

Bytes dns_message(std::string_view name, std::uint16_t type, ByteView more) {
  Bytes out{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, static_cast<std::uint8_t>(more.empty() ? 0 : 1)};
  while (!name.empty()) {
    const auto dot = std::min(name.find('.'), name.size());
    out.push_back(static_cast<std::uint8_t>(dot));
    out = std::move(out) + name.substr(0, dot);
    name.remove_prefix(std::min(dot + 1, name.size()));
  }
  return std::move(out) + Bytes{0, static_cast<std::uint8_t>(type >> 8), static_cast<std::uint8_t>(type), 0, 1} + more;
}
Bytes dns_answer(const Bytes& query, std::uint16_t type, ByteView data) {
  Bytes out = query;
  out[2] = 0x81, out[3] = 0x80, out[7] = 1, out[11] = 0;
  return std::move(out) +
         Bytes{0xc0, 12, static_cast<std::uint8_t>(type >> 8), static_cast<std::uint8_t>(type), 0, 1, 0, 0, 0, 60} +
         sized(data);
}
Seeds seeds_dns() {
  const Bytes edns{0, 0, 41, 0x10, 0, 0, 0, 0x80, 0, 0, 0};
  const Bytes a = dns_message("www.example.com", 1, {}), aaaa = dns_message("www.example.com", 28, {}),
              txt = dns_message("example.org", 16, edns);
  const Bytes cname = dns_message("a.example", 1, {});
  return {sized(a) + dns_answer(a, 1, Bytes{93, 184, 216, 34}),
          sized(a) + dns_answer(a, 1, Bytes{10, 0, 0, 1}),
          sized(aaaa) + dns_answer(aaaa, 28, Bytes{0x26, 6, 0x28, 0, 2, 0x20, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}),
          sized(txt) + dns_answer(dns_message("example.org", 16, {}), 16, to_bytes("\x05hello")),
          sized(cname) + dns_answer(cname, 5, Bytes{1, 'b', 0xc0, 14}),
          sized(dns_message("4.3.2.1.in-addr.arpa", 12, {})) + a,
          sized(dns_message("printer.local", 1, {})) + a,
          sized(a) + dns_answer(a, 65, Bytes{0, 1, 0, 0, 4, 0, 4, 93, 184, 216, 34})};
}
FUZZ_TARGET(dns, 2 << 10) {
  Input in(input);
  const ByteView question = in.sized(), answer = in.rest();
  const egress::Rules rules;
  (void)egress::make_error(question, egress::Rcode::FormErr);
  const auto query = egress::parse_query(question);
  if (!query.ok()) return;
  (void)egress::question_refusal(rules, *query);
  const Bytes forward = egress::make_forward(question, *query, 0x4321);
  MUSTER_CHECK(egress::parse_query(forward).ok());
  MUSTER_CHECK(egress::make_answer(question, *query, egress::Rcode::Refused, "private").size() <= egress::kDnsUdpMax);
  // Answers come under the id of what was forwarded.
  Bytes said(answer.begin(), answer.end());
  if (said.size() >= 2) said[0] = 0x43, said[1] = 0x21;
  const auto checked = egress::check_answer(said, *query, 0x4321, rules);
  if (!checked.ok()) return;
  const Bytes relayed = egress::relay_answer(said, *query, 512);
  MUSTER_CHECK(relayed.size() <= 512 && relayed.size() >= 12);
  (void)egress::relay_answer(said, *query, egress::kDnsMessageMax);
  plant(checked->refused == "multicast" || checked->refused == "reserved");
}

Seeds seeds_client_hello() {
  const auto extension = [](std::uint16_t type, const Bytes& data) {
    return Bytes{static_cast<std::uint8_t>(type >> 8), static_cast<std::uint8_t>(type)} + sized(data);
  };
  const auto hello = [&](const Bytes& extensions) {
    Bytes body =
        Bytes{3, 3} + Bytes(32, 9) + Bytes{0} + sized(Bytes{0x13, 1, 0x13, 2}) + Bytes{1, 0} + sized(extensions);
    body = Bytes{1, 0} + sized(body);
    return Bytes{22, 3, 1} + sized(body);
  };
  const Bytes sni = extension(0, sized(Bytes{0} + sized(to_bytes("muster"))));
  const Bytes alpn = extension(16, sized(Bytes{14} + "muster-relay/1" + Bytes{8} + "http/1.1"));
  return {hello(sni + alpn), hello(alpn), hello({}), hello(extension(43, {2, 3, 4}) + sni),
          to_bytes("GET / HTTP/1.1\r\n")};
}
FUZZ_TARGET(client_hello, 2 << 10) {
  const auto hello = relay::read_client_hello(input);
  // Less of it is never something else, only not enough; more changes nothing.
  if (hello.kind == relay::ClientHello::Kind::Hello && input.size() > 6) {
    MUSTER_CHECK(relay::read_client_hello(input.first(5)).kind == relay::ClientHello::Kind::NeedMore);
    plant(hello.alpn.size() == 2 && hello.server_name.size() == 6 && hello.server_name != "muster");
  }
}

Seeds seeds_relay_upgrade() {
  Seeds out = {to_bytes(relay::upgrade_request("muster-relay")),
               to_bytes("POST /relay/v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"),
               to_bytes("GET /relay/v2 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, upgrade\r\n\r\n"),
               to_bytes("GET /relay/v1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\nUpgrade: h2c\r\n\r\n")};
  for (const int status : {101, 400, 404, 405, 426, 431}) out.push_back(to_bytes(relay::upgrade_answer(status)));
  return out;
}
FUZZ_TARGET(relay_upgrade, relay::kUpgradeHeadMax + 64) {
  using State = relay::HeadReader::State;
  relay::HeadReader reader, slowly;
  std::size_t taken = 0, sum = 0;
  const State state = reader.feed(input, taken);
  MUSTER_CHECK(taken <= input.size() && taken <= relay::kUpgradeHeadMax);
  MUSTER_CHECK(reader.head() == as_string(input.first(taken)));
  // The same however it was cut.
  State last = State::NeedMore;
  for (std::size_t i = 0; i < input.size() && last == State::NeedMore; ++i) {
    std::size_t one = 0;
    last = slowly.feed(input.subspan(i, 1), one);
    sum += one;
  }
  MUSTER_CHECK(last == state && sum == taken);
  const int status = relay::judge_upgrade(reader.head());
  const auto refusal = relay::upgrade_refusal(reader.head());
  if (state != State::Whole) MUSTER_CHECK(status == 400 && refusal);
  // Whoever gets 101 asked with GET for the path, and every answer of ours is read as what it is.
  if (status == 101) MUSTER_CHECK(reader.head().starts_with("GET /relay/v1 HTTP/1.1\r\n"));
  const std::string answer = relay::upgrade_answer(status);
  const auto read = relay::upgrade_refusal(answer.substr(0, answer.find("\r\n\r\n") + 4));
  MUSTER_CHECK(status == 101 ? !read : read == std::to_string(status));
  plant(status == 405 && reader.head().starts_with("PUT"));
}

}  // namespace
}  // namespace muster::fuzz
