#include "host/port_mapper.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>

#include "base/endian.h"
#include "base/ipv4.h"
#include "base/log.h"
#include "crypto/hash.h"

namespace muster::host {
namespace {
constexpr Millis kNever{3'600'000};
constexpr int kMissesMax = 3;
constexpr std::uint32_t kLifetimeMinS = 60;
}  // namespace

PortMapper::PortMapper(Bytes secret, Tell tell, MapOptions options)
    : secret_(std::move(secret)),
      tell_(std::move(tell)),
      options_(std::move(options)),
      stop_(::eventfd(0, EFD_CLOEXEC)) {}

PortMapper::~PortMapper() {
  {
    const std::lock_guard lock(mutex_);
    ends_ = true;
  }
  changed_.notify_all();
  const std::uint64_t one = 1;
  if (stop_) (void)!::write(stop_.get(), &one, sizeof one);
  if (thread_.joinable()) thread_.join();
}

void PortMapper::want(std::uint16_t port) {
  const std::lock_guard lock(mutex_);
  if (wanted_ == port) return;
  wanted_ = port;
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_all();
}

void PortMapper::run() {
  std::unique_lock lock(mutex_);
  while (!ends_) {
    const std::uint16_t port = wanted_;
    lock.unlock();
    const Millis wait = step(port);
    lock.lock();
    changed_.wait_for(lock, wait, [&] { return ends_ || wanted_ != port; });
  }
}

// Whoever starts anew gets the same mapping again, and nobody else does.
overlay::PcpNonce PortMapper::nonce(std::uint16_t port) const {
  Bytes message = to_bytes("muster port mapping");
  message.insert(message.end(), secret_.begin(), secret_.end());
  append_be(message, port);
  const crypto::Digest digest = crypto::sha256(message);
  overlay::PcpNonce out;
  std::copy_n(digest.begin(), out.size(), out.begin());
  return out;
}

Millis PortMapper::step(std::uint16_t port) {
  const auto router = port == 0 && !mapping_ ? Result<Router>(Router{}) : find_router(links_);
  const LeaseTime now = read_clocks().lease;
  const bool moved = router_ && (!router.ok() || *router != *router_);
  if (mapping_ && (port != mapping_->inside || moved)) {
    if (!moved) (void)end_mapping(*router_, *mapping_, stop_.get()).ok();  // the old router is not there any more
    drop();
  }
  if (port == 0) {
    router_.reset();
    say({{}, "nothing is to be reached"});
    return kNever;
  }
  if (!router.ok()) {
    router_.reset();
    say({{}, router.error().message});
    return options_.look;
  }
  if (!router_ || moved) next_try_ = now, wait_ = options_.again;
  router_ = *router;
  if (!mapping_ && now >= next_try_) attempt(port);
  if (mapping_ && now >= renew_at_) renew();
  const Millis every = mapping_ && mapping_->how == MapBy::Upnp ? options_.look_upnp : options_.look;
  if (mapping_ && now - looked_ >= every) look();
  return std::min(options_.look, every);
}

void PortMapper::attempt(std::uint16_t port) {
  std::string why;
  for (const MapBy how : options_.by) {
    Mapping wish;
    wish.how = how;
    wish.inside = port;
    wish.nonce = nonce(port);
    auto granted = map_port(*router_, wish, stop_.get());
    if (!granted.ok() && granted.error().code == Code::Cancelled) return;
    if (granted.ok() && is_public(granted->ip)) return took(std::move(*granted));
    if (granted.ok()) {
      (void)end_mapping(*router_, *granted, stop_.get()).ok();
      why = fmt::format(
          "the router's own outside address, {}, is not public: it sits behind another NAT (of the "
          "provider, or a second router), so letting members in there is of no use",
          ip4_text(granted->ip));
      break;
    }
    why += fmt::format("{}{}: {}",
                       why.empty() ? "the router at " + ip4_text(router_->gateway) + " lets nobody in: " : "; ",
                       map_by_text(how), granted.error().message);
  }
  next_try_ = read_clocks().lease + wait_;
  wait_ = std::min(wait_ * 2, options_.again_max);
  say({{}, why});
}

void PortMapper::took(Mapping mapping) {
  const LeaseTime now = read_clocks().lease;
  // One that is granted for ever is looked at like one that is not.
  const std::uint32_t granted = mapping.lifetime_s == 0 ? options_.lifetime_max_s : mapping.lifetime_s;
  const Millis lifetime(std::int64_t{std::clamp(granted, kLifetimeMinS, options_.lifetime_max_s)} * 1000);
  renew_at_ = now + lifetime / 2;
  until_ = now + lifetime;
  looked_ = now;
  misses_ = 0;
  wait_ = options_.again;
  mapping_ = std::move(mapping);
  Mapping shown = *mapping_;
  shown.epoch_s = 0;  // it says nothing new
  say({std::move(shown), {}});
}

// What was granted may be another place than before, and that may be of no use.
void PortMapper::renew() {
  auto granted = map_port(*router_, *mapping_, stop_.get());
  if (granted.ok() && is_public(granted->ip)) return took(std::move(*granted));
  const LeaseTime now = read_clocks().lease;
  if (granted.ok() || now >= until_) {
    drop();
    next_try_ = now;
    return;
  }
  misses_ = 0;
  renew_at_ = now + options_.look;
}

void PortMapper::look() {
  const LeaseTime now = read_clocks().lease;
  const auto passed = static_cast<std::uint32_t>((now - looked_).count() / 1000);
  const auto still = still_mapped(*router_, *mapping_, passed, stop_.get());
  if (still.ok()) looked_ = now, misses_ = 0;
  if (!still.ok() && still.error().code == Code::Cancelled) return;
  if (still.ok() && !*still) log_info("agent", "the router forgot that members may come in; it is asked again");
  if ((still.ok() && !*still) || (!still.ok() && ++misses_ >= kMissesMax)) renew();
}

void PortMapper::drop() {
  mapping_.reset();
  wait_ = options_.again;
  next_try_ = read_clocks().lease;
  say({{}, "the router is asked"});
}

void PortMapper::say(MapState state) {
  if (said_ == state) return;
  said_ = state;
  tell_(state);
}

}  // namespace muster::host
