#include "host/large.h"

#include <array>
#include <charconv>
#include <string>

namespace muster::host {
namespace {

using Release = std::array<unsigned, 3>;

// "6.6.44-1-lts"; what is missing is 0.
Release release_of(std::string_view text) {
  Release out{};
  for (unsigned& part : out) {
    const auto [end, fault] = std::from_chars(text.data(), text.data() + text.size(), part);
    if (fault != std::errc{} || end == text.data() + text.size() || *end != '.') break;
    text.remove_prefix(static_cast<std::size_t>(end - text.data()) + 1);
  }
  return out;
}

struct Known {
  Release first, last;
  std::string_view KernelFaults::*what;
  std::string_view why;
};
// Distributions carry repairs, and faults, under numbers of their own; what they changed shows by comparison.
constexpr std::array kKnown = {
    // tailscale/tailscale#19777, #19918: since b10b446 (7.0) headers of datagrams of one size are damaged.
    Known{{7, 0, 0}, {7, 1, 4}, &KernelFaults::udp_segments, "Linux 7.0 to 7.1.4 damages datagrams that it cuts"},
    // tailscale/tailscale#13041: e269d79c7d35 in stable releases, mended by 89add40066f9.
    Known{{6, 6, 44}, {6, 6, 44}, &KernelFaults::tun_joins, "Linux 6.6.44 refuses what a TUN is given joined"},
    Known{{6, 10, 3}, {6, 10, 3}, &KernelFaults::tun_joins, "Linux 6.10.3 refuses what a TUN is given joined"},
    // WireGuard/wireguard-go c92064f
    Known{{1, 0, 0}, {5, 11, 999}, &KernelFaults::udp_joins, "before Linux 5.12 joined datagrams are not usable"},
};

}  // namespace

LargeMode large_mode(const char* word) {
  const std::string_view text = word == nullptr ? std::string_view() : word;
  return text == "on" ? LargeMode::On : text == "off" ? LargeMode::Off : LargeMode::Auto;
}

KernelFaults kernel_faults(std::string_view release) {
  KernelFaults out;
  const Release at = release_of(release);
  for (const Known& known : kKnown)
    if (known.first <= at && at <= known.last) out.*known.what = known.why;
  return out;
}

Large::Large(LargeMode mode, std::string_view fault) : mode_(mode), bad_kernel_(!fault.empty()) {}

bool Large::counts(LeaseTime now) const {
  return mode_ == LargeMode::Auto && !bad_kernel_ && refused_until_ == LeaseTime{} && trial_.counts(now);
}

void Large::note(std::uint64_t way, std::uint64_t sent, std::uint64_t lost, LeaseTime now) {
  if (counts(now)) trial_.note(way, sent, lost, now);
}

void Large::refused(LeaseTime now) {
  if (refused_until_ == LeaseTime{}) refused_until_ = now + kRefusedFor;
}

bool Large::asks_again(LeaseTime now) {
  if (refused_until_ == LeaseTime{} || now < refused_until_) return false;
  refused_until_ = {};
  return true;
}

bool Large::tick(LeaseTime now) {
  trial_.tick(now);
  const session::NetLarge before = told_;
  told_ = state();
  return told_ != before;
}

session::NetLarge Large::state() const {
  using session::NetLarge;
  if (mode_ == LargeMode::Off) return NetLarge::Owner;
  if (mode_ == LargeMode::Auto && bad_kernel_) return NetLarge::Kernel;
  if (refused_until_ != LeaseTime{}) return NetLarge::Refused;
  if (trial_.state() == overlay::OffloadTrial::State::Compares) return NetLarge::Compares;
  return trial_.large() ? NetLarge::Used : NetLarge::Lost;
}

}  // namespace muster::host
