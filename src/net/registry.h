#pragma once
// Inside net: the open connections of a server or loop, counted (in all and by peer address, of IPv6 by /64) and
// closable from outside.
// A guard is held by each connection and leaves the registry with it. Any thread.
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
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
      registry_->targets_[id_] = std::move(target);
    }

   private:
    std::shared_ptr<Registry> registry_;
    std::uint64_t id_;
    std::string address_;
  };
  using GuardPtr = std::shared_ptr<Guard>;  // handed on when a connection becomes a WebSocket

  // nullptr: full.
  GuardPtr enter(const std::string& address) {
    std::uint64_t id = 0;
    const std::string block = address_block(address);
    {
      const std::lock_guard lock(mutex_);
      if (targets_.size() >= max_) return nullptr;
      auto& count = by_address_[block];
      if (count >= max_per_address_) return nullptr;
      ++count;
      id = ++last_id_;
      targets_.emplace(id, std::weak_ptr<Closable>());
    }
    return std::make_shared<Guard>(shared_from_this(), id, block);
  }
  void abort_all() {
    std::vector<std::shared_ptr<Closable>> alive;
    {
      const std::lock_guard lock(mutex_);
      for (auto& [id, target] : targets_) {
        if (auto strong = target.lock()) alive.push_back(std::move(strong));
      }
    }
    for (auto& target : alive) target->abort();
  }
  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return targets_.size();
  }

 private:
  void leave(std::uint64_t id, const std::string& address) {
    const std::lock_guard lock(mutex_);
    targets_.erase(id);
    const auto it = by_address_.find(address);
    if (it != by_address_.end() && --it->second == 0) by_address_.erase(it);
  }

  const std::size_t max_, max_per_address_;
  mutable std::mutex mutex_;
  std::uint64_t last_id_ = 0;
  std::unordered_map<std::uint64_t, std::weak_ptr<Closable>> targets_;
  std::unordered_map<std::string, std::size_t> by_address_;
};

}  // namespace muster::net
