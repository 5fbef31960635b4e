#pragma once
// The relays of this control plane, as its operator listed them in DIR/keys/relays, one a line: "HOST:PORT", of
// `musterd init`, or "HOST:PORT REGION", of `musterd relay add`. Tokens name the relay they are for (muster-relay
// --relay-id): one that was added by its address, those of before all by the first one's, as they were set up. Reading
// and changing the file is for any process; a RelayBook looks again when it changed. Thread-safe.
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "server/identity.h"

namespace muster::server {

inline constexpr std::size_t kRelaysListed = 8;  // as many as members connect to

Result<std::vector<RelayEntry>> read_relays(const DataDir& dir, const std::string& server_id);
Result<RelayEntry> parse_relay(const std::string& address, const std::string& region);
Status add_relay(const DataDir& dir, const std::string& server_id, const RelayEntry& relay);
Status remove_relay(const DataDir& dir, const std::string& server_id, const std::string& address);
// What a relay on another machine needs: a key and a certificate of its own, the CA, the key of tokens, its name.
Status write_relay_folder(const Identity& identity, const std::string& folder, const std::string& relay_id);

class RelayBook {
 public:
  using List = std::shared_ptr<const std::vector<RelayEntry>>;
  RelayBook(DataDir dir, std::string server_id, const std::vector<RelayEntry>& known);
  List relays() const;
  bool refresh();  // true: the list is another one now; a file that cannot be read changes nothing

 private:
  const DataDir dir_;
  const std::string server_id_;
  mutable std::mutex mutex_;
  List list_;
  std::int64_t seen_ns_ = -1;
};

std::vector<std::string> addresses_of(const std::vector<RelayEntry>& relays);

}  // namespace muster::server
