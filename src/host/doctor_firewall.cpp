#include "host/doctor_firewall.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <thread>

#include "host/child.h"
#include "host/egress_control.h"
#include "host/egress_sockets.h"
#include "host/identity.h"
#include "host/nft.h"
#include "net/net.h"

namespace muster::host {
namespace {

constexpr std::string_view kTable = "inet muster_doctor";
constexpr int kTries = 6;
constexpr std::string_view kUfw = "ufw", kFirewalld = "firewalld", kDocker = "Docker", kIptables = "iptables";

// By the names that they give.
std::string tool_of(const std::string& table, const std::string& chain) {
  if (chain.starts_with("ufw-") || chain.starts_with("ufw6-")) return std::string(kUfw);
  if (table == "firewalld") return std::string(kFirewalld);
  if (chain.starts_with("DOCKER") || table == "docker-bridges") return std::string(kDocker);
  const bool usual = table == "filter" || table == "mangle" || table == "raw" || table == "security" || table == "nat";
  return usual && chain == "OUTPUT" ? std::string(kIptables) : std::string();
}

// `nft monitor trace` while it lives; what it says is read in between.
class Monitor {
 public:
  Monitor() {
    int said[2];
    if (::pipe2(said, O_CLOEXEC | O_NONBLOCK) != 0) return;
    out_ = Fd(said[0]);
    const Fd in(said[1]);
    Child child;
    child.argv = {nft_program(), "monitor", "trace"};
    child.env = {"LC_ALL=C"};
    child.fds = {{in.get(), 1}};
    const auto started = start_child(child);
    pid_ = started.ok() ? *started : -1;
  }
  ~Monitor() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;
  // Reads until nothing came for a moment.
  std::string read() {
    std::string said;
    pollfd wait{out_.get(), POLLIN, 0};
    while (said.size() < (256U << 10) && ::poll(&wait, 1, 400) > 0) {
      std::array<char, 8192> buffer;
      const ssize_t n = ::read(out_.get(), buffer.data(), buffer.size());
      if (n <= 0) break;
      said.append(buffer.data(), static_cast<std::size_t>(n));
    }
    return said;
  }

 private:
  Fd out_;
  pid_t pid_ = -1;
};

// The kernel takes a socket's user from the thread that made it, at that moment.
void knock_at(uid_t uid, const egress::Ip& ip, std::uint16_t port, Knock knock) {
  std::thread([&] {
    ::setfsuid(uid);
    const int kind = knock == Knock::Udp ? SOCK_DGRAM : SOCK_STREAM;
    const Fd fd(::socket(ip.six ? AF_INET6 : AF_INET, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    const SocketAddress at = socket_address(ip, port);
    if (knock == Knock::Udp) {
      static_cast<void>(::sendto(fd.get(), "", 1, 0, at.get(), at.size));  // what it means nobody knows, nor answers
      return;
    }
    if (::connect(fd.get(), at.get(), at.size) != 0 && errno == EINPROGRESS) {
      pollfd wait{fd.get(), POLLOUT, 0};
      ::poll(&wait, 1, 200);
    }
  }).join();
}

std::string trimmed(std::string text) {
  text.erase(0, text.find_first_not_of(' '));
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

std::optional<egress::Ip> address_of(const std::string& host) {
  addrinfo hints{}, *list = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  if (::getaddrinfo(host.c_str(), nullptr, &hints, &list) != 0) return {};
  sockaddr_storage storage{};
  std::memcpy(&storage, list->ai_addr, list->ai_addrlen);
  ::freeaddrinfo(list);
  const auto found = ip_port(storage);
  return found ? std::optional(found->ip) : std::nullopt;
}

bool resolver_answers(const egress::Ip& resolver) {
  static constexpr std::array<std::uint8_t, 29> kQuestion = {
      0x4d, 0x75, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 7, 'e', 'x', 'a', 'm', 'p', 'l', 'e', 3, 'c', 'o', 'm', 0, 0, 1, 0, 1};
  const Fd fd(::socket(resolver.six ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const SocketAddress at = socket_address(resolver, 53);
  if (!fd || ::connect(fd.get(), at.get(), at.size) != 0) return false;
  for (int i = 0; i < 2; ++i) {
    if (::send(fd.get(), kQuestion.data(), kQuestion.size(), 0) < 0) return false;
    pollfd wait{fd.get(), POLLIN, 0};
    std::array<std::uint8_t, 1500> answer;
    if (::poll(&wait, 1, 1500) > 0 && ::recv(fd.get(), answer.data(), answer.size(), 0) >= 12)
      return answer[0] == kQuestion[0] && answer[1] == kQuestion[1];
  }
  return false;
}

Finding good(std::string step, std::string detail) {
  return {std::move(step), Verdict::Good, std::move(detail), {}};
}

void look_at_rules(std::vector<Finding>& out, const std::string& server, const Accounts& accounts, bool egress) {
  const auto endpoint = net::parse_url(server);
  const auto ip = endpoint.ok() ? address_of(endpoint->host) : std::nullopt;
  if (!ip) {
    out.push_back({"firewall", Verdict::Note, "not checked: no address of a control plane to try", {}});
    return;
  }
  struct Who {
    const char* name;
    uid_t uid;
    Knock knock = Knock::Tcp;
  };
  // The relay usually stands where the control plane does, and has its UDP port beside the other.
  std::vector<Who> all{
      {"the agent", accounts.agent_uid}, {"netd", accounts.netd_uid}, {"netd's UDP", accounts.netd_uid, Knock::Udp}};
  if (egress) all.push_back({"the egress process", accounts.egress_uid});
  std::size_t blocked = 0;
  for (const Who& who : all) {
    const auto rule = who_blocks(who.uid, *ip, endpoint->port, who.knock);
    if (!rule.ok()) {
      out.push_back({"firewall", Verdict::Note, rule.error().message, {}});
      return;
    }
    if (!*rule) continue;
    ++blocked;
    out.push_back({"firewall", Verdict::Broken,
                   fmt::format("{}table {}, chain {} stops {} on its way to {}:{}: {}",
                               (*rule)->tool.empty() ? "" : (*rule)->tool + ": ", (*rule)->table, (*rule)->chain,
                               who.name, endpoint->host, endpoint->port, (*rule)->rule),
                   repair_of(**rule, who.uid, *ip, endpoint->port, who.knock)});
  }
  if (blocked == 0) out.push_back(good("firewall", "no rule stops our processes"));
}

void look_at_egress(std::vector<Finding>& out, const Layout& layout, const Policy& policy) {
  if (!policy.egress_allowed) {
    out.push_back(good("egress", "off: the policy lets no container out"));
    return;
  }
  const auto resolvers = policy.egress.resolvers.empty() ? machine_resolvers() : policy.egress.resolvers;
  std::string answering;
  for (const auto& each : resolvers) {
    if (resolver_answers(each)) answering += (answering.empty() ? "" : ", ") + egress::to_text(each);
  }
  if (answering.empty()) {
    out.push_back({"egress", Verdict::Broken,
                   resolvers.empty() ? "no name server in /etc/resolv.conf" : "none of the name servers answers",
                   "repair the machine's name resolution, or name servers as egress.resolvers in " + layout.policy()});
    return;
  }
  if (!has_route(false) && !has_route(true)) {
    out.push_back({"egress", Verdict::Broken, "this machine has no default route",
                   "containers reach what the machine reaches: connect it to the internet"});
    return;
  }
  out.push_back(good("egress", fmt::format("allowed; names by {}; IPv4 {}, IPv6 {}", answering,
                                           has_route(false) ? "yes" : "no", has_route(true) ? "yes" : "no")));
}

}  // namespace

std::optional<BlockingRule> read_trace(const std::string& said, const std::string& ours) {
  std::istringstream lines(said);
  std::string line;
  std::map<std::string, std::string> tools;  // by table, from the chains that the packet came through
  while (std::getline(lines, line)) {
    // trace id 5f1b3c2a inet filter output rule ip daddr 1.2.3.4 drop (verdict drop)
    // trace id 5f1b3c2a inet filter output policy drop
    std::istringstream words(line);
    std::string trace, id_word, id, family, table, chain, kind;
    if (!(words >> trace >> id_word >> id >> family >> table >> chain >> kind) || trace != "trace") continue;
    std::string rest;
    std::getline(words, rest);
    rest = trimmed(rest);
    const auto verdict = rest.find("(verdict drop)");
    const bool by_rule = kind == "rule" && verdict != std::string::npos;
    const bool by_policy = kind == "policy" && rest == "drop";
    const std::string where = family + " " + table;
    if (where == ours) continue;
    std::string& tool = tools[where];
    if (const std::string found = tool_of(table, chain); tool.empty() || (!found.empty() && found != kIptables))
      tool = found;
    if (!by_rule && !by_policy) continue;
    return BlockingRule{where, chain, by_rule ? trimmed(rest.substr(0, verdict)) : "policy drop", tool};
  }
  return {};
}

std::string repair_of(const BlockingRule& rule, uid_t uid, const egress::Ip& ip, std::uint16_t port, Knock knock) {
  const std::string protocol = knock == Knock::Udp ? "udp" : "tcp", to = egress::to_text(ip);
  if (rule.tool == kUfw)
    return fmt::format("ufw insert 1 allow out proto {} to {} port {}; its rules: ufw status numbered", protocol, to,
                       port);
  if (rule.tool == kFirewalld)
    return fmt::format(
        "let user {} out to {} port {}/{}; its rules: firewall-cmd --list-all-policies, firewall-cmd --direct "
        "--get-all-rules",
        uid, to, port, protocol);
  if (rule.tool == kDocker)
    return fmt::format("let user {} out to {} port {}/{}; Docker's rules: iptables -S DOCKER-USER", uid, to, port,
                       protocol);
  if (rule.tool == kIptables)
    return fmt::format("{} -I OUTPUT -m owner --uid-owner {} -p {} -d {} --dport {} -j ACCEPT",
                       ip.six ? "ip6tables" : "iptables", uid, protocol, to, port);
  return fmt::format("that rule is not ours; let user {} out on {} there", uid, knock == Knock::Udp ? "UDP" : "TCP");
}

Result<std::optional<BlockingRule>> who_blocks(uid_t uid, const egress::Ip& ip, std::uint16_t port, Knock knock) {
  const std::string replace = fmt::format("add table {0}\ndelete table {0}\n", kTable);
  TRY_VOID(
      nft_apply(replace + fmt::format("table {} {{\n  chain follow {{\n    type filter hook output priority -450;\n"
                                      "    meta skuid {} {} daddr {} {} dport {} meta nftrace set 1\n  }}\n}}\n",
                                      kTable, uid, ip.six ? "ip6" : "ip", egress::to_text(ip),
                                      knock == Knock::Udp ? "udp" : "tcp", port)));
  std::string said;
  {
    Monitor monitor;
    for (int i = 0; i < kTries && said.find("trace id") == std::string::npos; ++i) {  // it needs a moment to listen
      knock_at(uid, ip, port, knock);
      said += monitor.read();
    }
  }
  static_cast<void>(nft_apply(replace).ok());
  if (said.find("trace id") == std::string::npos)
    return error(Code::NotFound,
                 "this kernel does not trace packets (nf_tables tracing); rules of others are not checked");
  return read_trace(said, "inet muster");
}

std::vector<Finding> examine_firewall(const Layout& layout, const std::string& server) {
  std::vector<Finding> out;
  const auto loaded = load_policy(layout.policy());
  const Policy policy = loaded.ok() ? *loaded : Policy{};
  if (nft_program().empty()) {
    out.push_back({"firewall", policy.egress_allowed ? Verdict::Broken : Verdict::Note,
                   policy.egress_allowed ? "nft is missing: egress cannot be given"
                                         : "nft is missing; only clusters that need egress are affected",
                   "apt-get install nftables"});
    return out;
  }
  if (::geteuid() == 0) look_at_rules(out, server, find_accounts(), policy.egress_allowed);
  for (const char* names : {"/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"}) {
    std::ifstream file(names);
    std::string table;
    if (std::getline(file, table)) {
      out.push_back({"firewall", Verdict::Note, "rules of iptables-legacy are loaded too; they are not seen from here",
                     "if something is blocked, look at them: iptables-legacy -S"});
      break;
    }
  }
  look_at_egress(out, layout, policy);
  return out;
}

}  // namespace muster::host
