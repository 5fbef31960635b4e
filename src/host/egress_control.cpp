#include "host/egress_control.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "egress/ruleset.h"
#include "host/egress_dns.h"
#include "host/egress_sockets.h"
#include "host/json.h"
#include "host/lease_route.h"
#include "host/nft.h"

namespace muster::host {
namespace {

constexpr int kRoundMs = 2'000, kRestartMs = 200, kAnswerMs = 5'000;
constexpr std::int64_t kReportMs = 2'000, kSetAgainMs = 200;
constexpr std::uint64_t kSaveEvery = 16 << 20;

// Of the namespace itself; 0 when it cannot be entered there any more.
std::uint64_t inode_of(const std::string& network) {
  struct stat info {};
  return ::stat(network.c_str(), &info) == 0 ? static_cast<std::uint64_t>(info.st_ino) : 0;
}

// A listener on the loopback of the namespace of this thread, so that no other member of the overlay reaches it.
Result<Fd> listener(bool six, int type) {
  Fd fd(::socket(six ? AF_INET6 : AF_INET, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const auto loopback = egress::parse_ip(six ? "::1" : "127.0.0.1");
  const SocketAddress at = socket_address(*loopback, 0);
  const int one = 1;
  if (!fd || (six && ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one) != 0) ||
      ::bind(fd.get(), at.get(), at.size) != 0 || (type == SOCK_STREAM && ::listen(fd.get(), 128) != 0))
    return error(Code::Unavailable, "cannot listen in the lease's namespace: " + errno_text(errno), "egress.listen");
  return fd;
}

std::uint16_t port_of(const Fd& fd) {
  sockaddr_storage at{};
  socklen_t size = sizeof at;
  if (!fd || ::getsockname(fd.get(), reinterpret_cast<sockaddr*>(&at), &size) != 0) return 0;
  const auto local = ip_port(at);
  return local ? local->port : 0;
}

std::string month_of(WallTime now) {
  return format_utc(now).substr(0, 7);
}

}  // namespace

struct EgressControl::Way {
  LeaseWay way;
  std::uint64_t inode = 0;
  std::vector<Fd> listeners;  // kept, so that a restarted process gets the same; connections wait in them meanwhile
  std::string ruleset, listed;
  Fd watch;
  bool dirty = false, handed = false;
};

std::vector<egress::Prefix> machine_networks() {
  std::vector<egress::Prefix> out;
  ifaddrs* list = nullptr;
  if (::getifaddrs(&list) != 0) return out;
  for (const ifaddrs* each = list; each != nullptr && out.size() < 256; each = each->ifa_next) {
    if (each->ifa_addr == nullptr || (each->ifa_addr->sa_family != AF_INET && each->ifa_addr->sa_family != AF_INET6))
      continue;
    const bool six = each->ifa_addr->sa_family == AF_INET6;
    const auto read = [&](const sockaddr* from) {
      sockaddr_storage storage{};
      if (from != nullptr) std::memcpy(&storage, from, six ? sizeof(sockaddr_in6) : sizeof(sockaddr_in));
      storage.ss_family = six ? AF_INET6 : AF_INET;
      return ip_port(storage)->ip;
    };
    const egress::Ip ip = read(each->ifa_addr);
    // What is never public needs no mention; a netmask that covers half the world is a tunnel's, not a network's.
    if (egress::place_of(ip) != egress::Place::Public) continue;
    std::size_t bits = 0;
    for (const std::uint8_t byte : read(each->ifa_netmask).bytes) bits += static_cast<std::size_t>(std::popcount(byte));
    const bool subnet = bits >= (six ? 16U : 8U);
    const egress::Prefix prefix = egress::local_network(ip, subnet ? bits : ip.bits());
    if (std::find(out.begin(), out.end(), prefix) == out.end()) out.push_back(prefix);
  }
  ::freeifaddrs(list);
  std::sort(out.begin(), out.end());
  return out;
}

std::vector<egress::Ip> machine_resolvers(const std::string& path) {
  std::vector<egress::Ip> out;
  std::ifstream file(path);
  std::string line;
  while (out.size() < 3 && std::getline(file, line)) {
    std::istringstream words(line);
    std::string key, value;
    if (!(words >> key >> value) || key != "nameserver") continue;
    if (const auto ip = egress::parse_ip(value)) out.push_back(*ip);
  }
  return out;
}

EgressControl::EgressControl(EgressControlOptions options) : options_(std::move(options)) {}

EgressControl::~EgressControl() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake();
  if (thread_.joinable()) thread_.join();
  count_volume();
  if (month_bytes_ != month_saved_) save_volume();
}

Status EgressControl::start() {
  wake_ = Fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_) return error(Code::ResourceExhausted, "no descriptors left");
  load_volume();
  thread_ = std::thread([this] { run(); });
  return {};
}

void EgressControl::wake() const {
  const std::uint64_t one = 1;
  if (wake_) [[maybe_unused]]
    const auto n = ::write(wake_.get(), &one, sizeof one);
}

void EgressControl::adopt(const std::vector<LeaseWay>& ways) {
  for (const LeaseWay& way : ways) {
    const Status opened = open(way);
    if (!opened.ok()) log_warn("privd", "{}: no way out: {}", way.lease, opened.error().message);
  }
  const std::lock_guard lock(mutex_);
  if (!ways_.empty() || ::access(options_.layout.egress_table().c_str(), F_OK) != 0) return;
  table_up_ = true;  // of a life before: the thread removes it
  wake();
}

Status EgressControl::open(const LeaseWay& asked) {
  const std::lock_guard lock(mutex_);
  const Policy policy = TRY(load_policy(options_.layout.policy()));
  if (!policy.egress_allowed)
    return error(Code::PermissionDenied, "the owner's policy lets no container out to the internet", "owner.egress");
  const std::uint64_t inode = inode_of(asked.network);
  if (inode == 0) return error(Code::FailedPrecondition, "the lease's namespace is gone", "container.missing");
  const auto known = ways_.find(asked.lease);
  if (known != ways_.end() && known->second->inode == inode && known->second->handed) return {};
  if (known != ways_.end()) forget(known);
  auto way = std::make_unique<Way>();
  way->way = asked;
  way->inode = inode;
  Way& kept = *(ways_[asked.lease] = std::move(way));
  Status done = sync(false);
  if (done.ok()) done = open_inside(kept);
  if (done.ok()) done = hand_over(kept);
  if (!done.ok()) {
    ways_.erase(asked.lease);
    wake();
    return error(done.error().code, done.error().message,
                 done.error().field.empty() ? "egress.open" : done.error().field);
  }
  log_info("privd", "{}: has a filtered way out to the internet", asked.lease);
  wake();
  return {};
}

// Everything of a lease that lives in its namespace.
Status EgressControl::open_inside(Way& way) {
  return within_namespace(way.way.network, [&]() -> Status {
    WayOut route{way.way.address, {}};
    const egress::Ip six = egress::lease_ip6(way.way.address);
    std::copy(six.bytes.begin(), six.bytes.end(), route.address6);
    const bool has_six = TRY(route_to_loopback(route));
    way.listeners.clear();
    for (const bool family : {false, true}) {
      if (family && !has_six) continue;
      for (const int type : {SOCK_STREAM, SOCK_DGRAM}) way.listeners.push_back(TRY(listener(family, type)));
    }
    egress::LeaseTable table;
    table.address = way.way.address;
    table.prefix_bits = static_cast<std::uint8_t>(way.way.prefix_bits);
    table.tcp4 = port_of(way.listeners[0]);
    table.dns4 = port_of(way.listeners[1]);
    if (has_six) table.tcp6 = port_of(way.listeners[2]), table.dns6 = port_of(way.listeners[3]);
    way.ruleset = egress::lease_ruleset(table);
    way.listed = TRY(nft_words(way.ruleset));
    way.watch = TRY(nft_watch());
    TRY_VOID(nft_apply(way.ruleset));
    return {};
  });
}

Status EgressControl::hand_over(Way& way) {
  std::vector<int> fds;
  for (const auto& fd : way.listeners) fds.push_back(fd.get());
  way.handed = false;
  TRY(ask(AddWay{way.way.lease}, fds));
  way.handed = true;
  return {};
}

void EgressControl::close(const std::string& lease) {
  const std::lock_guard lock(mutex_);
  const auto it = ways_.find(lease);
  if (it == ways_.end()) return;
  count_volume();
  forget(it);
  wake();
}

void EgressControl::forget(std::map<std::string, std::unique_ptr<Way>>::iterator it) {
  if (process_) static_cast<void>(ask(RemoveWay{it->first}).ok());
  ways_.erase(it);
}

EgressReport EgressControl::report(bool flows) {
  const std::lock_guard lock(mutex_);
  if (ways_.empty() || !process_) return {};
  auto report = ask(AskReport{flows});
  return report.ok() ? std::move(*report) : EgressReport{};
}

// ---- the process
bool EgressControl::connect() {
  if (process_) return true;
  auto fd = connect_unix(options_.layout.egress_socket(), SocketKind::Seqpacket);
  if (!fd.ok()) return false;
  process_ = std::move(*fd);
  told_.reset();
  for (auto& [lease, way] : ways_) way->handed = false;
  // Bytes from before this connection were counted already, or passed in the moment nobody counted.
  const auto first = ask(AskReport{});
  process_bytes_ = first.ok() ? first->bytes : 0;
  return static_cast<bool>(process_);
}

Result<EgressReport> EgressControl::ask(const EgressOrder& order, const std::vector<int>& fds) {
  const auto gone = [this](std::string_view why) {
    process_.reset();
    return error(Code::Unavailable, fmt::format("the egress process {}; it is being restarted", why), "egress.process");
  };
  if (!process_) return gone("is not running");
  if (!send_message(process_.get(), order_text(order), fds).ok()) return gone("went away");
  pollfd wait{process_.get(), POLLIN, 0};
  if (::poll(&wait, 1, kAnswerMs) <= 0) return gone("does not answer");
  const auto message = receive_message(process_.get());
  if (!message.ok() || message->text.empty()) return gone("went away");
  return parse_report(message->text);
}

// ---- configuration
EgressConfig EgressControl::wanted_config(const Policy& policy) const {
  EgressConfig config;
  config.rules.local = machine_networks();
  config.rules.deny = policy.egress.deny;
  config.rules.deny_ports = policy.egress.deny_ports;
  config.rules.allow_ports = policy.egress.allow_ports;
  config.resolvers = policy.egress.resolvers.empty() ? machine_resolvers() : policy.egress.resolvers;
  config.bytes_per_s = static_cast<std::uint64_t>(policy.egress.max_bytes_per_s);
  config.flows_max = static_cast<std::uint32_t>(policy.egress.max_connections);
  if (policy.egress.max_bytes_per_month > 0)
    config.bytes_left =
        std::max<std::int64_t>(0, policy.egress.max_bytes_per_month - static_cast<std::int64_t>(month_bytes_));
  return config;
}

Status EgressControl::assert_table(const EgressConfig& config) {
  const std::string text = egress::host_ruleset({options_.egress_uid, config.resolvers, config.rules});
  if (table_up_ && text == asserted_) return {};
  std::ofstream(options_.layout.egress_table()) << "inet muster\n";
  if (!rules_watch_) rules_watch_ = TRY(nft_watch());
  if (text != worded_) listed_ = TRY(nft_words(text)), worded_ = text;
  TRY_VOID(nft_apply(text));  // it is read back when the watch tells of it
  asserted_ = text;
  table_up_ = true;
  return {};
}

// Table first, then the process: what it may do is never more than what the kernel holds it to.
Status EgressControl::sync(bool force) {
  const auto loaded = load_policy(options_.layout.policy());
  const Policy policy = loaded.ok() ? *loaded : Policy{};  // which allows no egress
  const std::string month = month_of(read_clocks().wall);
  const bool new_month = month != month_;
  if (new_month) month_ = month, month_bytes_ = 0, save_volume();
  EgressConfig config = wanted_config(policy);
  const Status table = assert_table(config);
  if (!table.ok()) config.blocked = "firewall";
  if (!policy.egress_allowed) config.blocked = loaded.ok() ? "owner" : "policy";  // until the owner says otherwise
  if (!connect()) return error(Code::Unavailable, "the egress process is not running yet", "egress.process");
  const auto same = [&] {
    EgressConfig told = *told_;
    told.bytes_left = config.bytes_left;
    const bool limit = (told_->bytes_left < 0) == (config.bytes_left < 0);
    return told == config && limit;
  };
  if (force || new_month || !told_ || !same()) {
    TRY(ask(config));
    told_ = config;
  }
  if (!table.ok()) return table;
  for (auto& [lease, way] : ways_) {
    if (!way->handed && !way->listeners.empty()) TRY_VOID(hand_over(*way));
  }
  return {};
}

// Against somebody who changes it again and again it is set once in kSetAgainMs.
void EgressControl::check_tables() {
  const bool soon = steady_ms() - set_again_ms_ < kSetAgainMs;
  if (rules_dirty_ && !soon) {
    rules_dirty_ = false;
    const auto now = nft_table();
    if (!now.ok() || *now != listed_) {
      log_warn("privd", "somebody changed or removed the table inet muster; it is set again");
      asserted_.clear();
      set_again_ms_ = steady_ms();
    }
  }
  for (auto& [lease, way] : ways_) {
    if (soon || !std::exchange(way->dirty, false)) continue;
    const Status kept = within_namespace(way->way.network, [&]() -> Status {
      const auto now = nft_table();
      if (now.ok() && *now == way->listed) return {};
      log_warn("privd", "{}: somebody changed the table in its namespace; it is set again", way->way.lease);
      set_again_ms_ = steady_ms();
      return nft_apply(way->ruleset);
    });
    if (!kept.ok()) log_warn("privd", "{}: {}", lease, kept.error().message);
  }
}

// ---- the month's volume
void EgressControl::count_volume() {
  if (!process_) return;
  const auto told = ask(AskReport{});
  if (!told.ok()) return;
  month_bytes_ += told->bytes >= process_bytes_ ? told->bytes - process_bytes_ : told->bytes;
  process_bytes_ = told->bytes;
  if (month_bytes_ - month_saved_ >= kSaveEvery || ways_.empty()) save_volume();
}

void EgressControl::load_volume() {
  std::ifstream file(options_.layout.egress_volume());
  std::stringstream text;
  text << file.rdbuf();
  const auto said = parse_object(text.str());
  month_ = month_of(read_clocks().wall);
  if (said.ok() && text_at(*said, {"month"}) == month_)
    month_bytes_ = static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(*said, {"bytes"})));
  month_saved_ = month_bytes_;
}

void EgressControl::save_volume() {
  const std::string path = options_.layout.egress_volume(), part = path + ".part";
  std::ofstream(part) << to_text(json::object{{"month", month_}, {"bytes", month_bytes_}}) << "\n";
  if (::rename(part.c_str(), path.c_str()) != 0) log_warn("privd", "cannot write {}: {}", path, errno_text(errno));
  month_saved_ = month_bytes_;
}

// ---- the thread
void EgressControl::round() {
  for (auto it = ways_.begin(); it != ways_.end();) {
    const auto next = std::next(it);
    if (inode_of(it->second->way.network) != it->second->inode) {
      log_info("privd", "{}: its namespace is gone, and its way out", it->first);
      forget(it);
    }
    it = next;
  }
  if (ways_.empty()) {
    if (month_bytes_ != month_saved_) save_volume();
    if (table_up_) {
      const Status removed = nft_remove();
      if (!removed.ok()) log_warn("privd", "{}", removed.error().message);
      std::error_code ignored;
      std::filesystem::remove(options_.layout.egress_table(), ignored);
    }
    table_up_ = rules_dirty_ = false;  // or it would go on looking five times a second
    asserted_.clear();
    rules_watch_.reset();
    address_watch_.reset();
    return;
  }
  if (!address_watch_) {
    if (auto watch = address_watch(); watch.ok()) address_watch_ = std::move(*watch);
  }
  check_tables();
  const Status synced = sync(false);
  if (!synced.ok() && synced.error().message != fault_) log_warn("privd", "egress: {}", synced.error().message);
  fault_ = synced.ok() ? std::string() : synced.error().message;
  if (steady_ms() - asked_ms_ >= kReportMs) {
    asked_ms_ = steady_ms();
    count_volume();
  }
}

void EgressControl::run() {
  while (true) {
    std::vector<pollfd> wait{{wake_.get(), POLLIN, 0}};
    int timeout = -1;
    {
      const std::lock_guard lock(mutex_);
      for (const auto* fd : {&rules_watch_, &address_watch_, &process_}) {
        if (*fd) wait.push_back({fd->get(), POLLIN, 0});
      }
      for (const auto& [lease, way] : ways_) {
        if (way->watch) wait.push_back({way->watch.get(), POLLIN, 0});
      }
      if (!ways_.empty()) timeout = process_ ? kRoundMs : kRestartMs;
      const bool dirty =
          rules_dirty_ || std::ranges::any_of(ways_, [](const auto& each) { return each.second->dirty; });
      if (dirty) timeout = static_cast<int>(kSetAgainMs);
    }
    ::poll(wait.data(), wait.size(), timeout);
    const std::lock_guard lock(mutex_);
    if (stopping_) return;
    for (const auto& each : wait) {
      if (each.revents == 0) continue;
      if (each.fd == wake_.get()) {
        std::uint64_t count = 0;
        [[maybe_unused]] const auto n = ::read(wake_.get(), &count, sizeof count);
      }
      if (rules_watch_ && each.fd == rules_watch_.get()) drain_watch(each.fd), rules_dirty_ = true;
      if (address_watch_ && each.fd == address_watch_.get()) drain_watch(each.fd);
      for (auto& [lease, way] : ways_) {
        if (way->watch && each.fd == way->watch.get()) drain_watch(each.fd), way->dirty = true;
      }
    }
    // Nothing comes unasked, and asking is done under the mutex: readable now means that the process went away.
    if (pollfd gone{process_.get(), POLLIN, 0}; process_ && ::poll(&gone, 1, 0) > 0) process_.reset();
    round();
  }
}

}  // namespace muster::host
