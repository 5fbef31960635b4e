#pragma once
// Who may try a password now. Attempts are counted for a name from one address, for one address whatever the name, and
// for a name from all addresses it has not been logged in from; an IPv6 address counts as its /64. What succeeds is
// given back to the last two, so that an office behind one address is not shut out by its own people, and an account is
// never shut to an address it is used from. Every table is bounded: the row that was touched longest ago goes, nobody
// is refused for want of room. Thread-safe; time is an argument.
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "base/time.h"

namespace muster::server {

class LoginGuard {
 public:
  struct Bounds {
    std::size_t per_pair = 10, per_source = 60, per_name = 200;  // attempts in a window
    std::size_t at_once = 4;                                     // of one address, waiting or being checked
    std::size_t rows = 20'000;                                   // of each table
    Millis window{15 * 60'000};
  };
  explicit LoginGuard(Bounds bounds) : bounds_(bounds) {}

  // nullopt: go on, and call done() once. Otherwise the time after which another attempt may be made.
  std::optional<Millis> begin(const std::string& name, const std::string& source, LeaseTime now);
  enum class Outcome : std::uint8_t { Wrong, Right, NotTried };
  void done(const std::string& name, const std::string& source, LeaseTime now, Outcome outcome);
  std::size_t rows() const;  // in all tables

 private:
  // Attempts by key, the one touched longest ago first to go.
  class Table {
   public:
    std::deque<LeaseTime>& at(const std::string& key, std::size_t rows_max);
    std::deque<LeaseTime>* find(const std::string& key);
    void take_back(const std::string& key);
    std::size_t size() const { return rows_.size(); }

   private:
    struct Row {
      std::deque<LeaseTime> times;
      std::list<std::string>::iterator age;
    };
    std::map<std::string, Row> rows_;
    std::list<std::string> by_age_;
  };
  std::optional<Millis> full(std::deque<LeaseTime>& times, std::size_t max, LeaseTime now) const;

  const Bounds bounds_;
  mutable std::mutex mutex_;
  Table pairs_, sources_, names_, known_;       // known_: where a name was logged in from
  std::map<std::string, std::size_t> at_once_;  // bounded by the queue of those who wait
};

}  // namespace muster::server
