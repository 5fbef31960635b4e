#include "host/doctor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "crypto/cert.h"
#include "host/agent_process.h"
#include "host/doctor_firewall.h"
#include "host/identity.h"
#include "host/json.h"
#include "host/nvml.h"
#include "host/policy.h"
#include "host/runtimes.h"
#include "host/supervisor.h"
#include "host/versions.h"
#include "net/net.h"

namespace muster::host {
namespace {

class Walk {
 public:
  void good(std::string step, std::string detail) {
    findings.push_back({std::move(step), Verdict::Good, std::move(detail), {}});
  }
  void note(std::string step, std::string detail, std::string repair = {}) {
    findings.push_back({std::move(step), Verdict::Note, std::move(detail), std::move(repair)});
  }
  void broken(std::string step, std::string detail, std::string repair) {
    findings.push_back({std::move(step), Verdict::Broken, std::move(detail), std::move(repair)});
  }
  std::vector<Finding> findings;
};

std::string proxy_of_environment() {
  for (const char* name : {"HTTPS_PROXY", "https_proxy", "ALL_PROXY"}) {
    if (const char* value = std::getenv(name); value != nullptr && *value != 0) return name;
  }
  return {};
}

bool reach(const addrinfo* list, std::string* why) {
  for (const addrinfo* each = list; each != nullptr; each = each->ai_next) {
    const Fd fd(socket(each->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd) continue;
    if (connect(fd.get(), each->ai_addr, each->ai_addrlen) == 0) return true;
    pollfd wait{fd.get(), POLLOUT, 0};
    int failure = errno;
    if (failure == EINPROGRESS && poll(&wait, 1, 5000) > 0) {
      socklen_t size = sizeof failure;
      getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &failure, &size);
      if (failure == 0) return true;
    }
    *why = failure == EINPROGRESS ? "no answer within 5 s" : errno_text(failure);
  }
  return false;
}

void network(Walk& walk, const std::string& server, const std::string& ca_pem) {
  auto endpoint = net::parse_url(server);
  if (!endpoint.ok())
    return walk.broken("control plane", endpoint.error().message, "give the address as https://HOST[:PORT]");
  const std::string proxy = proxy_of_environment();
  if (proxy.empty()) {
    addrinfo hints{}, *list = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    const int failed = getaddrinfo(endpoint->host.c_str(), std::to_string(endpoint->port).c_str(), &hints, &list);
    if (failed != 0)
      return walk.broken("DNS", fmt::format("{}: {}", endpoint->host, gai_strerror(failed)),
                         "check /etc/resolv.conf and the address of the control plane");
    walk.good("DNS", endpoint->host + " resolves");
    std::string why;
    const bool reached = reach(list, &why);
    freeaddrinfo(list);
    if (!reached)
      return walk.broken(
          "TCP", fmt::format("{}:{}: {}", endpoint->host, endpoint->port, why),
          fmt::format("let outgoing TCP {} pass in firewall and router, or set HTTPS_PROXY", endpoint->port));
    walk.good("TCP", fmt::format("{}:{} answers", endpoint->host, endpoint->port));
  }
  if (ca_pem.empty()) return walk.note("TLS", "not checked: this machine is not enrolled and knows no CA yet");
  endpoint->ca_pem = ca_pem;
  net::Client client(*endpoint);
  const auto response = client.call({.target = "/healthz", .timeout = Millis(15'000)});
  const std::string fault = response.ok() ? std::string() : response.error().message;
  const auto says = [&](std::string_view words) { return fault.find(words) != std::string::npos; };
  if (!proxy.empty() && says("the proxy")) {
    return walk.broken("proxy", fmt::format("{} is set, but {}", proxy, fault),
                       "correct " + proxy +
                           " (in the service: systemctl edit muster-agent), or put the control plane "
                           "into NO_PROXY if it can be reached directly");
  }
  if (!proxy.empty()) walk.good("proxy", fmt::format("{} is set: connections go through it", proxy));
  // The control plane's certificate is renewed long before its end: dates that do not fit are this clock's.
  if (says("not yet valid") || says("has expired")) {
    return walk.broken("clock",
                       fmt::format("at this machine's time, {}, the control plane's certificate is not valid: {}",
                                   format_utc(read_clocks().wall), fault),
                       "turn time synchronisation on: timedatectl set-ntp true");
  }
  if (!response.ok()) {
    return walk.broken("TLS", fault,
                       "something on the way answers in the control plane's name: exempt it from TLS inspection, and "
                       "check that its address is right");
  }
  walk.good("TLS", "the control plane is genuine");
  const auto date = response->headers.find("date");
  std::tm parsed{};
  if (date == response->headers.end() ||
      strptime(date->second.c_str(), "%a, %d %b %Y %H:%M:%S GMT", &parsed) == nullptr) {
    return walk.note("clock", "the control plane did not say its time");
  }
  const double off = std::difftime(std::time(nullptr), timegm(&parsed));
  if (off > 120 || off < -120)
    walk.broken("clock", fmt::format("this machine's clock is {:.0f} s off", off),
                "turn time synchronisation on: timedatectl set-ntp true");
  else
    walk.good("clock", "agrees with the control plane");
}

// As the running agent knows them of its leases; without a lease nothing is connected.
void relays_of_leases(Walk& walk, const json::object& status) {
  struct Known {
    bool up = false, by_udp = false;
    std::string region;
    std::int64_t rtt_us = 0, udp_rtt_us = 0;
  };
  std::map<std::string, Known> all;
  const auto* leases = status.if_contains("leases");
  if (leases == nullptr || !leases->is_array()) return;
  for (const auto& lease : leases->get_array()) {
    const auto* network = lease.is_object() ? lease.get_object().if_contains("network") : nullptr;
    const auto* list =
        network != nullptr && network->is_object() ? network->get_object().if_contains("relays") : nullptr;
    if (list == nullptr || !list->is_array()) continue;
    for (const auto& relay : list->get_array()) {
      Known& known = all[text_at(relay, {"address"})];
      known.up = known.up || bool_at(relay, {"up"});
      known.by_udp = known.by_udp || bool_at(relay, {"by_udp"});
      known.region = text_at(relay, {"region"});
      known.rtt_us = std::max(known.rtt_us, int_at(relay, {"rtt_us"}));
      known.udp_rtt_us = std::max(known.udp_rtt_us, int_at(relay, {"udp_rtt_us"}));
    }
  }
  for (const auto& [address, known] : all) {
    const std::string name = address + (known.region.empty() ? "" : " (" + known.region + ")");
    if (known.up)
      walk.good("relay",
                fmt::format("{}: {} over TLS, {}{}", name,
                            known.rtt_us == 0 ? "not measured yet"
                                              : fmt::format("{:.1f} ms", static_cast<double>(known.rtt_us) / 1000),
                            known.udp_rtt_us == 0
                                ? "no answer over UDP (let it out to that port or to 3478)"
                                : fmt::format("{:.1f} ms over UDP", static_cast<double>(known.udp_rtt_us) / 1000),
                            known.by_udp ? "; packets go over UDP" : ""));
    else
      walk.note("relay", name + " is not connected",
                "another one is used meanwhile, if there is one; let outgoing TCP to it pass in firewall and router");
  }
}

// Whether members get in at the home's router, and else why not; only while there is a lease.
void ways_in(Walk& walk, const json::object& status) {
  const auto ways = [&](const char* key) { return text_at(status, {"ways", key}); };
  const std::int64_t port = int_at(status, {"ways", "udp_port"}), wanted = int_at(status, {"ways", "udp_port_wanted"});
  if (bool_at(status, {"ways", "relay_only"}))
    return walk.note("ways", "the owner hides this machine's address: everything goes by relays, and slower",
                     "muster-agent limits set relay-only off lets members reach it directly");
  if (wanted != 0 && port != 0 && port != wanted)
    walk.broken("ways",
                fmt::format("UDP port {} is taken by another program; {} is used until it is free", wanted, port),
                fmt::format("end that program (ss -ulpn 'sport = {}' names it), or choose another: muster-agent limits "
                            "set udp-port N",
                            wanted));
  if (!ways("mapped").empty())
    walk.good("ways",
              fmt::format("the router leads {} to UDP port {}, by {}", ways("mapped"), port, ways("mapped_by")));
  else if (bool_at(status, {"ways", "port_mapping"}) && !ways("not_mapped").empty())
    walk.note("ways", "no port of the router leads here: " + ways("not_mapped"),
              "that is fine where members reach this machine all the same (muster net); else switch PCP or UPnP on in "
              "the router, or forward a UDP port: muster-agent limits set endpoint ADDRESS:PORT");
}

bool gpu_on_the_bus() {
  std::error_code failure;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/bus/pci/devices", failure)) {
    std::string vendor, kind;
    std::ifstream(entry.path() / "vendor") >> vendor;
    std::ifstream(entry.path() / "class") >> kind;
    if (vendor == "0x10de" && kind.starts_with("0x03")) return true;
  }
  return std::filesystem::exists("/dev/nvidiactl");
}

void gpus(Walk& walk, const std::string& gpu_mode) {
  Nvml& nvml = Nvml::instance();
  const auto devices = nvml.devices();
  if (devices.empty() && !gpu_on_the_bus())
    return walk.note("GPU", "no NVIDIA GPU on this machine; it serves CPU work");
  if (devices.empty())
    return walk.broken("GPU driver", "a GPU is there but its driver does not answer",
                       "install the NVIDIA driver that fits the kernel and reboot; nvidia-smi must work");
  walk.good("GPU driver",
            fmt::format("{} GPUs, driver {}, CUDA {}", devices.size(), nvml.driver_version(), nvml.cuda_version()));
  const auto lendable = nvml.lendable();
  for (const auto& device : devices)
    if (std::none_of(lendable.begin(), lendable.end(), [&](const Lendable& each) { return each.gpu == device.uuid; }))
      walk.note("MIG",
                fmt::format("GPU {} is in MIG mode and has no instance that can be lent; make some (nvidia-smi mig "
                            "-cgi PROFILE -C), or switch the mode off",
                            device.uuid));
  if (gpu_mode == "none") {
    walk.broken("GPU toolkit", "the container engine cannot give GPUs to containers",
                "install nvidia-container-toolkit, then: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml");
  } else {
    walk.good("GPU toolkit", gpu_mode);
  }
}

// By the table that this version came with; the control plane may have a newer one, and exceptions.
void known_holes(Walk& walk, const EngineInfo& info) {
  auto parts = engine_parts_of(info.parts);
  for (const auto component : {scan::kDocker, scan::kPodman, scan::kContainerd, scan::kRunc, scan::kCrun})
    if (info.kind == "venv") parts.try_emplace(std::string(component), "none");
  const auto versions = installed_versions(version_sources(), parts);
  const auto findings = scan::judge_host(scan::built_in_holes(), {}, versions, "", read_clocks().wall);
  std::string open, unknown;
  std::map<std::string, std::vector<const scan::HoleFinding*>> blocking;
  for (const auto& each : findings) {
    const std::string name = (each.id.empty() ? "version" : each.id) + " (" + each.component + ")";
    if (each.blocks)
      blocking[each.component].push_back(&each);
    else if (each.state == scan::HoleState::Unknown)
      unknown += (unknown.empty() ? "" : ", ") + name;
    else
      open += (open.empty() ? "" : ", ") + name;
  }
  for (const auto& [component, holes] : blocking) {
    std::string said;
    for (const scan::HoleFinding* each : holes)
      said += fmt::format("{}{}{}: {}", said.empty() ? "" : "; ", each->id,
                          each->fixed.empty() ? "" : " (mended in " + each->fixed + ")", each->what);
    walk.broken("known holes", fmt::format("{} {}: {}", component, holes.front()->version, said),
                fmt::format("update {}; nothing new is placed here before. See {}", component, holes.front()->source));
  }
  const std::string date = format_utc(scan::built_in_holes().date).substr(0, 10);
  if (!open.empty())
    walk.note("known holes", "open, though leases alone cannot use them as far as is known: " + open,
              "update them when your distribution has mended versions");
  if (!unknown.empty())
    walk.note("known holes", "not known whether open here, which is not the same as mended: " + unknown);
  if (findings.empty()) walk.good("known holes", "none of the table of " + date);
}

void engine(Walk& walk, const Layout& layout) {
  Runtimes runtimes(docker_options(layout, "doctor", "doctor"), venv_options(layout, "doctor"));
  if (const auto without = runtimes.info(); without.ok() && without->kind == "venv") {
    walk.good("runtime", "virtual environments in a sandbox; no container engine is used");
    known_holes(walk, *without);
    return gpus(walk, without->gpu_mode);
  }
  const std::string socket = engine_socket(layout);
  if (!std::filesystem::exists(socket)) {
    return walk.broken(
        "container engine", socket + " does not exist",
        "install Docker (apt-get install docker.io) and start it, or name the socket as engine_socket in policy.json");
  }
  DockerRuntime runtime(docker_options(layout, "doctor", "doctor"));
  const auto info = runtime.info();
  if (!info.ok())
    return walk.broken("container engine", info.error().message,
                       "start the engine (systemctl start docker) and run this as root");
  walk.good("container engine", fmt::format("{} {} (API {})", info->kind, info->version, info->api));
  if (info->own_users)
    walk.good("user ids", "leases have their own");
  else
    walk.note("user ids",
              "leases share the machine's: a lower isolation, which is told; docs/security/hardening.md "
              "says how to give them their own");
  known_holes(walk, *info);
  gpus(walk, info->gpu_mode);
}

void disk(Walk& walk, const Layout& layout, const Policy& policy) {
  struct statvfs info {};
  const std::string place = std::filesystem::exists(layout.root) ? layout.root : "/";
  if (statvfs(place.c_str(), &info) != 0)
    return walk.broken("disk", fmt::format("{}: {}", place, errno_text(errno)), "check the disk and its mount");
  const double gib = static_cast<double>(info.f_bavail) * static_cast<double>(info.f_frsize) / (1 << 30);
  const double needed = static_cast<double>(std::max<std::int64_t>(policy.reserve_disk_bytes, 1 << 30)) / (1 << 30);
  if (gib < needed)
    return walk.broken(
        "disk", fmt::format("{:.1f} GiB free at {}", gib, place),
        fmt::format("free at least {:.0f} GiB: images and workspaces need it, and nothing new starts below "
                    "the owner's keep-disk",
                    needed));
  walk.good("disk", fmt::format("{:.0f} GiB free at {}", gib, place));
}

}  // namespace

std::vector<Finding> examine(const Layout& layout, const std::string& server) {
  Walk walk;
  const auto config = load_config(layout);
  if (config.ok())
    walk.good("enrolment", fmt::format("{} ({}) at {}", config->node_id, config->name, config->server));
  else
    walk.note("enrolment", config.error().message);
  const std::string where = config.ok() ? config->server : server;
  if (where.empty())
    walk.note("control plane", "no address known yet", "muster-agent doctor https://HOST tries one");
  else
    network(walk, where, config.ok() ? crypto::trust_text(load_trust(layout, *config)) : std::string());
  const auto policy = load_policy(layout.policy());
  if (policy.ok())
    walk.good("policy", "readable");
  else
    walk.broken("policy", policy.error().message, "repair or remove " + layout.policy());
  disk(walk, layout, policy.ok() ? *policy : Policy{});
  engine(walk, layout);
  const Fd tun(open("/dev/net/tun", O_RDWR | O_CLOEXEC));
  if (tun)
    walk.good("TUN", "/dev/net/tun opens");
  else
    walk.broken("TUN", "/dev/net/tun: " + errno_text(errno), "modprobe tun, and run this as root");
  for (auto& finding : examine_firewall(layout, where)) walk.findings.push_back(std::move(finding));
  if (config.ok()) {
    std::ifstream file(layout.certificate());  // the agent's own, so not for read_secret_file
    std::stringstream certificate;
    certificate << file.rdbuf();
    const auto expiry = crypto::certificate_expiry(certificate.str());
    if (!expiry.ok())
      walk.broken("certificate", expiry.error().message, "muster-agent leave, then join with a new token");
    else if (*expiry < read_clocks().wall)
      walk.note("certificate", "ended " + format_utc(*expiry) + "; it is renewed as soon as there is a link",
                "when the control plane refuses it for its age: muster-agent leave, then join with a new token");
    else
      walk.good("certificate", "ends " + format_utc(*expiry) + "; renewed by itself well before");
    if (!config->tpm_key.empty()) {
      const auto key = load_tpm_key(layout, *config);
      if (key.ok())
        walk.good("TPM", "the key that this machine's certificates are bound to is in it");
      else
        walk.broken("TPM", key.error().message,
                    "without that key the control plane refuses this machine: muster-agent leave, then join with a new "
                    "token");
    }
    const auto status = ask_agent(layout, "status", Millis(3000));
    const auto said = status.ok() ? parse_object(*status) : Result<json::object>(status.error());
    if (!status.ok())
      walk.broken("agent", status.error().message, "start it: systemctl start muster-agent, or muster-agent run");
    else if (!said.ok() || !bool_at(*said, {"ready"}))
      walk.broken("link",
                  "the agent runs but the control plane does not have it online: " +
                      (said.ok() ? text_at(*said, {"refusal"}) + text_at(*said, {"link_fault"}) : std::string()),
                  "see the agent's log; the steps above name what is in the way");
    else
      walk.good("link", "online");
    if (said.ok()) relays_of_leases(walk, *said);
    if (said.ok()) ways_in(walk, *said);
    if (said.ok() && !text_at(*said, {"owner"}).empty())
      walk.note("owner", "not hired now: " + text_at(*said, {"owner"}));
    if (said.ok() && !text_at(*said, {"held"}).empty())
      walk.broken("admission", "the control plane places nothing new here for known holes: " + text_at(*said, {"held"}),
                  "update what it names and restart the engine; its operators may grant an exception meanwhile");
  }
  return walk.findings;
}

}  // namespace muster::host
