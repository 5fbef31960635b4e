#pragma once
// What was refused, added up by who, what and why, and where requests came from. Refusals: rows in memory, bounded, the
// one touched longest ago goes first; what changed is appended to a file as JSON lines once a minute and at the end,
// the file is rotated by size. No address is in either: addresses go to the address book in batches, under the actor
// and the request's id, and are erased after `keep`. A flood is dropped, never waited for. Own thread. Thread-safe.
#include <condition_variable>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "access/access.h"
#include "crypto/key_ring.h"
#include "journal/address_book.h"
#include "wire/audit_views.h"

namespace muster::server {

inline constexpr Millis kAddressesKept{90LL * 86'400'000};

// "usr-3", "node-7", "nobody".
std::string actor_text(const access::Subject& subject);
std::string address_of_peer(const std::string& peer);  // "203.0.113.5:1234" -> "203.0.113.5"

class AccessLog {
 public:
  struct Options {
    std::string file;                            // empty = none
    std::shared_ptr<crypto::KeyRing> ring = {};  // its lines are sealed (server/at_rest.h)
    std::size_t rows_max = 4096, queue_max = 20'000, file_bytes = 8 << 20;
    std::size_t addresses_a_minute = 60;  // noted of one row
    int files = 4;                        // the newest and the ones before it
    Millis write_every{60'000};
    Millis keep = kAddressesKept;  // of addresses; zero = they are not noted
  };
  // A book of nullptr: addresses are not kept.
  AccessLog(Options options, std::shared_ptr<journal::AddressBook> book);
  ~AccessLog();
  void start();
  void stop();  // writes what is left

  void refused(const access::Subject& subject, const std::string& operation, Code code, const std::string& request,
               const std::string& peer, WallTime now);
  void came_from(const std::string& actor, const std::string& request, const std::string& peer, WallTime now);
  // Those touched last come first. Addresses are not filled in.
  struct Row {
    access::Subject subject;
    wire::RefusalView view;
  };
  std::vector<Row> rows() const;
  std::string address(const std::string& actor, const std::string& request) const;  // empty: not known; reads the disk
  std::uint64_t dropped() const;

 private:
  using Key = std::tuple<std::string, std::string, std::string>;  // actor, operation, code
  struct Kept {
    Row row;
    bool changed = false;
    WallTime window;
    std::size_t noted = 0;  // addresses in that window
    std::list<Key>::iterator age;
  };
  void run();
  void write_addresses();
  void write_file();
  void enqueue(const std::string& actor, const std::string& request, const std::string& peer, WallTime now);

  const Options options_;
  const std::shared_ptr<journal::AddressBook> book_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<Key, Kept> rows_;
  std::list<Key> by_age_;  // touched last comes first
  std::vector<journal::AddressRow> queue_;
  std::uint64_t dropped_ = 0;
  bool stopping_ = false, failing_ = false;
  std::thread thread_;
};

}  // namespace muster::server
