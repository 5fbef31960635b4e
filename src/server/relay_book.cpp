#include "server/relay_book.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"

namespace muster::server {
namespace {

constexpr std::size_t kAddressMax = 200, kRegionMax = 32;

std::string line_of(const RelayEntry& relay) {
  return relay.region.empty() ? relay.address : relay.address + " " + relay.region;
}

Status write_relays(const DataDir& dir, const std::vector<RelayEntry>& relays) {
  std::string text;
  for (const auto& relay : relays) text += line_of(relay) + "\n";
  return dir.write(dir.key("relays"), as_bytes(text));
}

}  // namespace

std::vector<RelayEntry> parse_relay_lines(const std::string& text, const std::string& server_id) {
  std::vector<RelayEntry> out;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) {
    RelayEntry relay;
    std::istringstream(line) >> relay.address >> relay.region;
    if (!relay.address.empty()) out.push_back(std::move(relay));
  }
  const std::string first = out.empty() ? server_id : out.front().address;
  for (auto& relay : out) relay.id = relay.region.empty() ? first : relay.address;
  return out;
}

Result<std::vector<RelayEntry>> read_relays(const DataDir& dir, const std::string& server_id) {
  const Bytes text = TRY(dir.read(dir.key("relays")));
  return parse_relay_lines(as_string(text), server_id);
}

Result<RelayEntry> parse_relay(const std::string& address, const std::string& region) {
  const auto plain = [](const std::string& text, std::string_view also) {
    return std::all_of(text.begin(), text.end(), [&](char c) {
      return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
             also.find(c) != std::string_view::npos;
    });
  };
  const auto colon = address.rfind(':');
  const std::string port = colon == std::string::npos ? "" : address.substr(colon + 1);
  const bool number = !port.empty() && port.size() <= 5 &&
                      std::all_of(port.begin(), port.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (colon == 0 || !number || std::stoi(port) < 1 || std::stoi(port) > 65'535 || address.size() > kAddressMax ||
      !plain(address.substr(0, colon), ".-"))
    return error(Code::InvalidArgument, "'" + address.substr(0, 64) +
                                            "' is not a relay's address: give HOST:PORT, as machines reach it from "
                                            "everywhere, e.g. relay-eu.example.org:443");
  if (region.empty() || region.size() > kRegionMax || !plain(region, "-_."))
    return error(Code::InvalidArgument,
                 "--region must have 1 to 32 letters, digits or -_. and says where the relay is, e.g. eu-west");
  return RelayEntry{address, region, address};
}

Status add_relay(const DataDir& dir, const std::string& server_id, const RelayEntry& relay) {
  auto relays = TRY(read_relays(dir, server_id));
  for (auto& known : relays) {
    if (known.address != relay.address) continue;
    if (!known.region.empty() || known.id != known.address)
      return error(Code::AlreadyExists,
                   relay.address + " is listed already; `musterd relay files` writes its files anew");
    known.region = relay.region;  // one of `musterd init`, which keeps its name
    return write_relays(dir, relays);
  }
  if (relays.size() >= kRelaysListed)
    return error(Code::ResourceExhausted,
                 fmt::format("{} relays are listed, and members connect to no more; remove one first", kRelaysListed));
  relays.push_back(relay);
  return write_relays(dir, relays);
}

Status remove_relay(const DataDir& dir, const std::string& server_id, const std::string& address) {
  auto relays = TRY(read_relays(dir, server_id));
  const auto found =
      std::find_if(relays.begin(), relays.end(), [&](const auto& each) { return each.address == address; });
  if (found == relays.end())
    return error(Code::NotFound, "no relay " + address.substr(0, 64) + " is listed; see `musterd relay list`");
  if (relays.size() == 1)
    return error(Code::FailedPrecondition,
                 "it is the only relay: clusters could not be reached without; add another first");
  // Relays of before go by the first one's name.
  if (found == relays.begin() && found->region.empty() && relays[1].region.empty())
    return error(Code::FailedPrecondition,
                 "other relays go by this one's name (--relay-id): add them anew with a region before it is removed");
  relays.erase(found);
  return write_relays(dir, relays);
}

RelayBook::RelayBook(DataDir dir, std::string server_id, const std::vector<RelayEntry>& known)
    : dir_(std::move(dir)),
      server_id_(std::move(server_id)),
      list_(std::make_shared<const std::vector<RelayEntry>>(known)) {
  (void)refresh();
}

RelayBook::List RelayBook::relays() const {
  const std::lock_guard lock(mutex_);
  return list_;
}

bool RelayBook::refresh() {
  struct stat info {};
  if (::stat(dir_.key("relays").c_str(), &info) != 0) return false;
  const std::int64_t changed = std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  const std::lock_guard lock(mutex_);
  if (changed == seen_ns_) return false;
  auto fresh = read_relays(dir_, server_id_);
  if (!fresh.ok()) {
    log_error("relays", "the list of relays cannot be read and stays as it was: {}", fresh.error().message);
    return false;
  }
  seen_ns_ = changed;
  if (*fresh == *list_) return false;
  list_ = std::make_shared<const std::vector<RelayEntry>>(std::move(*fresh));
  log_info("relays", "{} relays are listed now", list_->size());
  return true;
}

std::vector<std::string> addresses_of(const std::vector<RelayEntry>& relays) {
  std::vector<std::string> out;
  for (const auto& relay : relays) out.push_back(relay.address);
  return out;
}

}  // namespace muster::server
