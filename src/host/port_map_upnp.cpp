// UPnP, in a child process: what answers there is HTTP and XML of anybody on the network. The child writes one line.
#include <fcntl.h>
#include <fmt/format.h>
#include <miniupnpc/miniupnpc.h>
#include <miniupnpc/upnpcommands.h>
#include <miniupnpc/upnperrors.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "crypto/random.h"
#include "host/port_map.h"

namespace muster::host {
namespace {

constexpr Millis kChildTime{8'000};
constexpr std::size_t kLineMax = 1024, kUrlMax = 256, kDescriptionsMax = 4;
constexpr std::uint64_t kChildMemory = 64 << 20, kVastMemory = 1ULL << 40;  // vast: of a sanitizer
constexpr int kSearchMs = 1'000, kOnlyForEver = 725, kTaken = 718;

// "http://192.168.1.1:5000/x" is at the gateway; what leads anywhere else is not asked.
bool at_gateway(std::string_view url, std::uint32_t gateway) {
  const std::string begin = "http://" + ip4_text(gateway);
  if (url.size() > kUrlMax || !url.starts_with(begin) || url.size() <= begin.size()) return false;
  return (url[begin.size()] == ':' || url[begin.size()] == '/') &&
         std::all_of(url.begin(), url.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

struct Service {
  std::string control, type;
};

// Of the first device at the gateway that is a router.
std::optional<Service> find_service(const Router& router) {
  const std::array<const char*, 3> kinds = {"urn:schemas-upnp-org:device:InternetGatewayDevice:1",
                                            "urn:schemas-upnp-org:device:InternetGatewayDevice:2", nullptr};
  int failed = 0;
  const std::string from = ip4_text(router.source);
  UPNPDev* devices = upnpDiscoverDevices(kinds.data(), kSearchMs, from.c_str(), nullptr, 0, 0, 2, &failed, 1);
  std::vector<std::string> seen;
  for (const UPNPDev* each = devices; each != nullptr; each = each->pNext) {
    if (!at_gateway(each->descURL, router.gateway) || seen.size() >= kDescriptionsMax ||
        std::find(seen.begin(), seen.end(), each->descURL) != seen.end())
      continue;
    seen.emplace_back(each->descURL);
    UPNPUrls urls{};
    IGDdatas data{};
    std::array<char, 64> lan{};
    if (UPNP_GetIGDFromUrl(each->descURL, &urls, &data, lan.data(), lan.size()) != 1) continue;
    if (urls.controlURL != nullptr && at_gateway(urls.controlURL, router.gateway))
      return Service{urls.controlURL, data.first.servicetype};
  }
  return {};
}

// ---- what the child does; its answer is a line
std::string do_map(const Router& router, const Mapping& wish, const std::array<std::uint16_t, 3>& ports) {
  const auto service = wish.control.empty() ? find_service(router) : Service{wish.control, wish.service};
  if (!service) return "none";
  std::array<char, 64> outside{};
  if (UPNP_GetExternalIPAddress(service->control.c_str(), service->type.c_str(), outside.data()) != 0) return "none";
  const std::string inside = std::to_string(wish.inside), source = ip4_text(router.source);
  std::string lifetime = std::to_string(kMapLifetimeS);
  int failed = 0;
  for (std::size_t i = 0; i < ports.size();) {
    const std::string port = std::to_string(ports[i]);
    failed = UPNP_AddPortMapping(service->control.c_str(), service->type.c_str(), port.c_str(), inside.c_str(),
                                 source.c_str(), "Muster", "UDP", nullptr, lifetime.c_str());
    if (failed == 0)
      return fmt::format("ok {} {} {} {} {}", outside.data(), port, lifetime, service->control, service->type);
    if (failed == kOnlyForEver && lifetime != "0")
      lifetime = "0";
    else if (failed == kTaken)
      ++i;
    else
      break;
  }
  return fmt::format("no {}", failed);
}
std::string do_end(const Mapping& mapping) {
  const std::string port = std::to_string(mapping.port);
  UPNP_DeletePortMapping(mapping.control.c_str(), mapping.service.c_str(), port.c_str(), "UDP", nullptr);
  return "ended";
}
std::string do_look(const Router& router, const Mapping& mapping) {
  std::array<char, 64> client{}, inside{}, enabled{}, lease{};
  std::array<char, 256> description{};
  const std::string port = std::to_string(mapping.port);
  const int failed =
      UPNP_GetSpecificPortMappingEntry(mapping.control.c_str(), mapping.service.c_str(), port.c_str(), "UDP", nullptr,
                                       client.data(), inside.data(), description.data(), enabled.data(), lease.data());
  if (failed > 0) return "gone";  // an error of the router's; below zero are those of the network
  if (failed < 0) return "none";
  const bool ours = client.data() == ip4_text(router.source) && inside.data() == std::to_string(mapping.inside);
  return ours ? "there" : "gone";
}

void confine_child(int answer) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  std::uint64_t pages = 0;
  std::ifstream("/proc/self/statm") >> pages;
  const std::uint64_t used = pages * static_cast<std::uint64_t>(sysconf(_SC_PAGESIZE));
  const rlimit memory{used + kChildMemory, used + kChildMemory}, time{4, 4};
  if (used < kVastMemory) setrlimit(RLIMIT_AS, &memory);
  setrlimit(RLIMIT_CPU, &time);
  if (answer > 3) close_range(3, static_cast<unsigned>(answer - 1), 0);
  close_range(static_cast<unsigned>(answer + 1), ~0U, 0);
}

template <typename Work>
Result<std::string> in_child(int stop, Work work) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0)
    return error(Code::NotFound, "no pipe: " + errno_text(errno), "router.silent");
  const Fd read_end(ends[0]);
  Fd write_end(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return error(Code::NotFound, "no process: " + errno_text(errno), "router.silent");
  if (child == 0) {
    confine_child(write_end.get());
    const std::string line = work() + "\n";
    const ssize_t written = ::write(write_end.get(), line.data(), line.size());
    ::_exit(written == static_cast<ssize_t>(line.size()) ? 0 : 1);
  }
  write_end.reset();
  std::string line;
  std::array<char, 256> part{};
  const LeaseTime until = read_clocks().lease + kChildTime;
  Waited waited = Waited::Readable;
  while (line.size() <= kLineMax) {
    waited = wait_readable(read_end.get(), stop, until - read_clocks().lease);
    const ssize_t n = waited == Waited::Readable ? ::read(read_end.get(), part.data(), part.size()) : 0;
    if (n <= 0) break;
    line.append(part.data(), static_cast<std::size_t>(n));
  }
  ::kill(child, SIGKILL);
  while (::waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  if (waited == Waited::Stopped) return error(Code::Cancelled, "this program ends", "router.stop");
  if (line.empty() || line.back() != '\n' || line.size() > kLineMax)
    return error(Code::NotFound, "no answer in time", "router.silent");
  line.pop_back();
  return line;
}

template <typename Number>
std::optional<Number> number_of(const std::string& text) {
  Number out = 0;
  const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), out);
  return fault == std::errc() && end == text.data() + text.size() ? std::optional(out) : std::nullopt;
}
std::optional<std::uint32_t> ip_of(const std::string& text) {
  std::istringstream in(text);
  std::uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    std::string part;
    if (!std::getline(in, part, '.')) return {};
    const auto value = number_of<std::uint8_t>(part);
    if (!value) return {};
    out = out << 8 | *value;
  }
  return in.eof() && ip4_text(out) == text ? std::optional(out) : std::nullopt;
}

}  // namespace

Result<Mapping> map_by_upnp(const Router& router, const Mapping& wish, int stop) {
  const auto any = [] { return static_cast<std::uint16_t>(49'152 + crypto::random_u32() % 16'384); };
  const std::array<std::uint16_t, 3> ports{wish.port == 0 ? wish.inside : wish.port, any(), any()};
  const std::string line = TRY(in_child(stop, [&] { return do_map(router, wish, ports); }));
  if (line.starts_with("no "))
    return error(Code::FailedPrecondition, "it refuses with error " + line.substr(3, 8), "router.refuses");
  std::istringstream in(line);
  std::string word, ip, port, lifetime, control, service, more;
  in >> word >> ip >> port >> lifetime >> control >> service >> more;
  const auto at = ip_of(ip);
  const auto outside = number_of<std::uint16_t>(port);
  const auto seconds = number_of<std::uint32_t>(lifetime);
  if (word != "ok" || !at || !outside || *outside == 0 || !seconds || !at_gateway(control, router.gateway) ||
      service.empty() || service.size() > kUrlMax || !more.empty())
    return error(Code::NotFound, word == "ok" ? "its answer makes no sense" : "no answer", "router.silent");
  Mapping out = wish;
  out.ip = *at, out.port = *outside, out.lifetime_s = *seconds;
  out.control = control, out.service = service;
  return out;
}

Status end_by_upnp(const Router& router, const Mapping& mapping, int stop) {
  if (!at_gateway(mapping.control, router.gateway)) return {};
  TRY(in_child(stop, [&] { return do_end(mapping); }));
  return {};
}

Result<bool> still_by_upnp(const Router& router, const Mapping& mapping, int stop) {
  if (!at_gateway(mapping.control, router.gateway)) return false;
  const std::string line = TRY(in_child(stop, [&] { return do_look(router, mapping); }));
  if (line == "there" || line == "gone") return line == "there";
  return error(Code::NotFound, "no answer", "router.silent");
}

}  // namespace muster::host
