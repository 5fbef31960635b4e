// muster-relay: owner of the public port; see relay/relay.h. Parses its flags, runs until SIGTERM or SIGINT, reads its
// certificate again when the files changed and on SIGHUP.
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <sstream>
#include <vector>

#include "base/log.h"
#include "relay/relay.h"

namespace {

using namespace muster;

constexpr const char* kHelp = R"(muster-relay: the public port of a Muster control plane

  muster-relay --listen ADDR:PORT --handoff PATH --cert FILE --key FILE --controller-key FILE --relay-id NAME [options]

  --listen ADDR:PORT        where to listen, e.g. 0.0.0.0:443 or [::]:443 (port 0: any, printed)
  --handoff PATH            unix socket where musterd takes all connections that are not for the relay
  --cert FILE, --key FILE   certificate chain and private key of the relay (PEM)
  --controller-key FILE     public Ed25519 key that signs relay tokens (PEM, or 32 bytes in base64)
  --relay-id NAME           this relay's name in the tokens
  --trust FILE              whom another key of tokens is believed from: roots and CAs (default: trust.pem, else
                            ca.pem, beside the controller key)
  --keys FILE               where what musterd said of those keys is kept (default: signing-keys.pem beside it)
  --metrics ADDR:PORT       Prometheus text for this machine, e.g. 127.0.0.1:9151
  --mirror on|off           tell machines over UDP, on the same port, how they are seen; they find direct ways to each
                            other with that (default on)
  --udp on|off              let members that came over TLS send over UDP too, on the same port; needs --mirror on
                            (default on)
  --udp-port N|off          a second UDP port for both, where networks block the first; members are told of it (default
                            3478 where --listen names port 443, else off)
  --threads N               threads (default 2)
  --member-mbyte-s N        bytes per second that one member may send, in MiB (default 64)
  --reload-seconds N        how often to look whether certificate or key changed (default 60)
  --hold-seconds N          how long connections wait for a musterd that is away (default 10)

Certificate, key, roots and keys of tokens are read again when their files change, without cutting a connection. Signals: SIGTERM stops, SIGHUP
reads them at once.
)";

Result<std::string> read_file(const std::string& flag, const std::string& path) {
  if (path.empty()) return error(Code::InvalidArgument, flag + " is missing; see muster-relay --help");
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  if (!in || !(out << in.rdbuf())) return error(Code::NotFound, flag + ": the file " + path + " cannot be read");
  return out.str();
}

// A PEM SubjectPublicKeyInfo of Ed25519 is 12 fixed bytes before the 32 of the key (RFC 8410).
Result<crypto::Key32> read_public_key(const std::string& text) {
  static constexpr std::uint8_t kPrefix[] = {0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00};
  const bool pem = text.find("-----BEGIN PUBLIC KEY-----") != std::string::npos;
  std::string body;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
    if (!line.starts_with("-----")) body += line;
  }
  auto bytes = unbase64(body);
  if (bytes && pem && bytes->size() == 44 && std::equal(std::begin(kPrefix), std::end(kPrefix), bytes->begin()))
    bytes->erase(bytes->begin(), bytes->begin() + 12);
  const auto key = bytes ? crypto::key32(*bytes) : std::nullopt;
  if (!key)
    return error(Code::InvalidArgument, "--controller-key: not an Ed25519 public key (PEM, or 32 bytes in base64)");
  return *key;
}

Result<std::uint64_t> number(const std::string& flag, const std::string& text, std::uint64_t max) {
  std::uint64_t value = 0;
  for (char c : text) {
    if (c < '0' || c > '9' || value > max)
      return error(Code::InvalidArgument, flag + ": '" + text + "' is not a number");
    value = value * 10 + static_cast<std::uint64_t>(c - '0');
  }
  if (text.empty() || value > max)
    return error(Code::InvalidArgument, flag + " must be a number up to " + std::to_string(max));
  return value;
}

struct Flags {
  std::string certificate, key, controller_key, trust, keys;
  std::string udp_port;
  std::uint64_t reload_seconds = 60;
  relay::RelayOptions options;
};

Status set_listen(relay::RelayOptions& options, const std::string& value) {
  const auto colon = value.rfind(':');
  if (colon == std::string::npos) return error(Code::InvalidArgument, "--listen must be ADDR:PORT, e.g. 0.0.0.0:443");
  options.address = value.substr(0, colon);
  if (options.address.size() > 2 && options.address.front() == '[')
    options.address = options.address.substr(1, options.address.size() - 2);
  options.port = static_cast<std::uint16_t>(TRY(number("--listen", value.substr(colon + 1), 65'535)));
  return {};
}

// 3478 is the port that firewalls know for such (STUN and TURN, RFC 8489 and 8656).
Status set_udp_port(Flags& flags) {
  constexpr std::uint16_t kUsual = 3478, kHttps = 443;
  relay::RelayOptions& options = flags.options;
  if (flags.udp_port.empty() && options.port == kHttps) options.second_udp_port = kUsual;
  if (flags.udp_port.empty() || flags.udp_port == "off") return {};
  const std::uint64_t port = TRY(number("--udp-port", flags.udp_port, 65'535));
  if (port == 0 || port == options.port)
    return error(Code::InvalidArgument, "--udp-port is a port beside that of --listen, or off");
  options.second_udp_port = static_cast<std::uint16_t>(port);
  return {};
}

Result<Flags> parse(const std::vector<std::string>& args) {
  Flags flags;
  bool listen = false;
  for (std::size_t i = 0; i < args.size(); i += 2) {
    const std::string& flag = args[i];
    if (i + 1 == args.size()) return error(Code::InvalidArgument, flag + " needs a value; see muster-relay --help");
    const std::string& value = args[i + 1];
    if (flag == "--listen") {
      TRY_VOID(set_listen(flags.options, value));
      listen = true;
    } else if (flag == "--handoff")
      flags.options.handoff_path = value;
    else if (flag == "--cert")
      flags.certificate = value;
    else if (flag == "--key")
      flags.key = value;
    else if (flag == "--controller-key")
      flags.controller_key = value;
    else if (flag == "--trust")
      flags.trust = value;
    else if (flag == "--keys")
      flags.keys = value;
    else if (flag == "--relay-id")
      flags.options.relay_id = value;
    else if (flag == "--metrics")
      flags.options.metrics_address = value;
    else if (flag == "--mirror" && (value == "on" || value == "off"))
      flags.options.mirror = value == "on";
    else if (flag == "--udp" && (value == "on" || value == "off"))
      flags.options.udp = value == "on";
    else if (flag == "--mirror")
      return error(Code::InvalidArgument, "--mirror is on or off");
    else if (flag == "--udp-port")
      flags.udp_port = value;
    else if (flag == "--threads")
      flags.options.threads = static_cast<int>(TRY(number(flag, value, 256)));
    else if (flag == "--member-mbyte-s")
      flags.options.member_bytes_per_second = std::max<std::uint64_t>(1, TRY(number(flag, value, 100'000))) << 20;
    else if (flag == "--reload-seconds")
      flags.reload_seconds = std::max<std::uint64_t>(1, TRY(number(flag, value, 86'400)));
    else if (flag == "--hold-seconds")
      flags.options.hold_time = Millis(1000 * static_cast<std::int64_t>(TRY(number(flag, value, 3600))));
    else
      return error(Code::InvalidArgument, "unknown flag " + flag + "; see muster-relay --help");
  }
  if (!listen) return error(Code::InvalidArgument, "--listen is missing; see muster-relay --help");
  if (flags.options.relay_id.empty())
    return error(Code::InvalidArgument, "--relay-id is missing; see muster-relay --help");
  TRY_VOID(set_udp_port(flags));
  return flags;
}

std::string beside(const std::string& path, const std::string& name) {
  const auto slash = path.rfind('/');
  return slash == std::string::npos ? name : path.substr(0, slash + 1) + name;
}

Result<net::TlsFiles> read_tls(const Flags& flags) {
  return net::TlsFiles{TRY(read_file("--cert", flags.certificate)), TRY(read_file("--key", flags.key))};
}

// Empty where there is none: then the controller key stays the only one.
std::string read_trust(const Flags& flags) {
  for (const std::string& path : {flags.trust, beside(flags.controller_key, "ca.pem")}) {
    if (auto text = read_file("--trust", path); text.ok()) return std::move(*text);
  }
  return {};
}

// Changes with any write, rename or change of rights of a file; all zero where there is none.
using Stamp = std::array<std::int64_t, 8>;
Stamp stamp_of(const std::string& one, const std::string& other) {
  Stamp out{};
  std::size_t at = 0;
  for (const std::string* path : {&one, &other}) {
    struct stat info {};
    if (::stat(path->c_str(), &info) == 0) {
      out[at] = static_cast<std::int64_t>(info.st_ino), out[at + 1] = info.st_size;
      out[at + 2] = info.st_ctim.tv_sec, out[at + 3] = info.st_ctim.tv_nsec;
    }
    at += 4;
  }
  return out;
}

Status run(const std::vector<std::string>& args) {
  sigset_t signals;
  sigemptyset(&signals);
  for (int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);  // before any thread: they inherit it
  std::signal(SIGPIPE, SIG_IGN);
  Flags flags = TRY(parse(args));
  if (flags.trust.empty()) flags.trust = beside(flags.controller_key, "trust.pem");
  if (flags.keys.empty()) flags.keys = beside(flags.controller_key, "signing-keys.pem");
  Stamp seen = stamp_of(flags.certificate, flags.key), seen_trust = stamp_of(flags.trust, flags.keys);
  flags.options.trust_pem = read_trust(flags);
  flags.options.keys_file = flags.keys;
  flags.options.tls = TRY(read_tls(flags));
  flags.options.controller_key = TRY(read_public_key(TRY(read_file("--controller-key", flags.controller_key))));
  const auto relay = TRY(relay::Relay::create(flags.options));
  log_info("relay", "{} listens on {}:{}", flags.options.relay_id, flags.options.address, relay->port());
  std::printf("port %u\n", relay->port());
  if (relay->metrics_port() != 0) std::printf("metrics %u\n", relay->metrics_port());
  std::fflush(stdout);
  relay->warn_of_expiry();
  while (true) {
    const timespec pause{static_cast<time_t>(flags.reload_seconds), 0};
    const int signal = ::sigtimedwait(&signals, nullptr, &pause);
    if (signal == SIGTERM || signal == SIGINT) break;
    if (signal < 0 && errno != EAGAIN) continue;
    // Taken before the files are read, so that what changes meanwhile is seen the next time. Of a pair that is only
    // half replaced the other half changes yet.
    const Stamp now = stamp_of(flags.certificate, flags.key), now_trust = stamp_of(flags.trust, flags.keys);
    if (signal == SIGHUP || now_trust != seen_trust) {
      seen_trust = now_trust;
      relay->reload_trust(read_trust(flags));
    }
    if (signal == SIGHUP || now != seen) {
      seen = now;
      auto files = read_tls(flags);
      const Status status = files.ok() ? relay->reload_tls(*files) : Status(files.error());
      if (status.ok())
        log_info("relay", "the certificate was read again");
      else
        log_error("relay", "the old certificate stays in use: {}", status.error().message);
    }
    relay->warn_of_expiry();
  }
  relay->stop();
  log_info("relay", "stopped");
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> args(argv + 1, argv + argc);
  if (args.empty() || args[0] == "--help" || args[0] == "-h") {
    std::fputs(kHelp, args.empty() ? stderr : stdout);
    return args.empty() ? 2 : 0;
  }
  const auto status = run(args);
  if (status.ok()) return 0;
  std::fprintf(stderr, "muster-relay: %s\n", status.error().message.c_str());
  return status.error().code == muster::Code::InvalidArgument ? 2 : 1;
}
