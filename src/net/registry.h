#pragma once
// Inside net: the open connections of a server or loop, counted (in all and by peer address, of IPv6 by /64) and
// closable from outside. A guard is held by each connection and leaves the registry with it. Where it is full, who has
// waited longest without work (Guard::idle) makes room: connections that say nothing keep nobody out. Any thread.
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "net/address_block.h"

namespace muster::net {

class Closable {
 public:
  virtual ~Closable() = default;
  virtual void abort() = 0;  // any thread; returns at once
};

class Registry : public std::enable_shared_from_this<Registry> {
 public:
  Registry(std::size_t max, std::size_t max_per_address) : max_(max), max_per_address_(max_per_address) {}

  class Guard {
   public:
    Guard(std::shared_ptr<Registry> registry, std::uint64_t id, std::string address)
        : registry_(std::move(registry)), id_(id), address_(std::move(address)) {}
    ~Guard() { registry_->leave(id_, address_); }
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;
    void bind(std::weak_ptr<Closable> target) {
      const std::lock_guard lock(registry_->mutex_);
      if (const auto it = registry_->targets_.find(id_); it != registry_->targets_.end())
        it->second.target = std::move(target);
    }
    void idle() { registry_->set_idle(id_, true); }  // from now on it may have to make room
    void busy() { registry_->set_idle(id_, false); }

   private:
    std::shared_ptr<Registry> registry_;
    std::uint64_t id_;
    std::string address_;
  };
  using GuardPtr = std::shared_ptr<Guard>;  // handed on when a connection becomes a WebSocket

  // nullptr: full, of this address or of connections that all have work.
  GuardPtr enter(const std::string& address) {
    std::uint64_t id = 0;
    const std::string block = address_block(address);
    std::shared_ptr<Closable> leaving;
    {
      const std::lock_guard lock(mutex_);
      if (const auto it = by_address_.find(block); it != by_address_.end() && it->second >= max_per_address_)
        return nullptr;
      if (targets_.size() >= max_ && !make_room(leaving)) return nullptr;
      ++by_address_[block];
      id = ++last_id_;
      targets_.emplace(id, Target{{}, idle_.end()});
    }
    if (leaving) leaving->abort();
    return std::make_shared<Guard>(shared_from_this(), id, block);
  }
  void abort_all() {
    std::vector<std::shared_ptr<Closable>> alive;
    {
      const std::lock_guard lock(mutex_);
      for (auto& [id, each] : targets_) {
        if (auto strong = each.target.lock()) alive.push_back(std::move(strong));
      }
    }
    for (auto& target : alive) target->abort();
  }
  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return targets_.size();
  }

 private:
  struct Target {
    std::weak_ptr<Closable> target;
    std::list<std::uint64_t>::iterator place;  // in idle_, or its end
  };
  void set_idle(std::uint64_t id, bool idle) {
    const std::lock_guard lock(mutex_);
    const auto it = targets_.find(id);
    if (it == targets_.end()) return;
    auto& place = it->second.place;
    if (!idle && place != idle_.end()) idle_.erase(std::exchange(place, idle_.end()));
    if (idle && place == idle_.end()) place = idle_.insert(idle_.end(), id);
  }
  bool make_room(std::shared_ptr<Closable>& leaving) {
    if (idle_.empty()) return false;
    const auto it = targets_.find(idle_.front());
    leaving = it->second.target.lock();
    idle_.pop_front();
    targets_.erase(it);  // its address counts it until it is gone
    return true;
  }
  void leave(std::uint64_t id, const std::string& address) {
    const std::lock_guard lock(mutex_);
    if (const auto it = targets_.find(id); it != targets_.end()) {
      if (it->second.place != idle_.end()) idle_.erase(it->second.place);
      targets_.erase(it);
    }
    const auto it = by_address_.find(address);
    if (it != by_address_.end() && --it->second == 0) by_address_.erase(it);
  }

  const std::size_t max_, max_per_address_;
  mutable std::mutex mutex_;
  std::uint64_t last_id_ = 0;
  std::unordered_map<std::uint64_t, Target> targets_;
  std::list<std::uint64_t> idle_;  // who waits longest first
  std::unordered_map<std::string, std::size_t> by_address_;
};

}  // namespace muster::net
