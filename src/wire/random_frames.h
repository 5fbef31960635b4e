#pragma once
// For tests and seeds of the fuzzer: random frames of every kind within the bounds of the wire; one seed, one sequence.
#include <map>
#include <string>
#include <vector>

#include "base/rng.h"
#include "session/frames.h"

namespace muster::wire {

using namespace session;

struct Gen {
  Rng rng;
  std::string text(std::size_t max = 12) {
    std::string out;
    for (std::uint64_t n = rng.below(max); n > 0; --n) out.push_back(static_cast<char>('a' + rng.below(26)));
    return rng.chance(1, 5) ? out + "ü€" : out;
  }
  Bytes bytes(std::size_t max = 32) {
    Bytes out(rng.below(max + 1));
    for (auto& b : out) b = static_cast<std::uint8_t>(rng.next());
    return out;
  }
  std::uint64_t u64() { return rng.chance(1, 4) ? 0 : rng.next(); }
  std::uint32_t u32() { return static_cast<std::uint32_t>(u64()); }
  std::uint16_t u16() { return static_cast<std::uint16_t>(u64()); }
  bool flag() { return rng.chance(1, 2); }
  std::int64_t amount() { return rng.between(0, std::int64_t{1} << 50); }
  std::vector<std::string> texts() {
    std::vector<std::string> out(rng.below(4));
    for (auto& t : out) t = text();
    return out;
  }
  std::map<std::string, std::string> map() {
    std::map<std::string, std::string> out;
    for (std::uint64_t n = rng.below(5); n > 0; --n) out[text()] = text(40);
    return out;
  }
  template <typename F>
  auto list(F f) {
    std::vector<decltype(f())> out;
    for (std::uint64_t n = rng.below(4); n > 0; --n) out.push_back(f());
    return out;
  }
  Epoch epoch() { return {u64(), u64(), u64()}; }
  Resources resources() {
    Resources r{amount(), amount(), amount(), amount(), amount(), {}};
    for (std::uint64_t n = rng.below(3); n > 0; --n) r.custom_milli[text()] = amount();
    return r;
  }
  template <typename E>
  E choice(E low, E high) {
    return static_cast<E>(rng.between(static_cast<int>(low), static_cast<int>(high)));
  }
  LeaseId lease() { return {u64()}; }
  JobId job() { return {u64()}; }
  Assignment assignment() {
    Assignment a{lease(),
                 epoch(),
                 {u64()},
                 {u64()},
                 choice(SlotRole::Head, SlotRole::Spare),
                 choice(LeaseWant::Run, LeaseWant::Stop),
                 text(),
                 text(),
                 text(),
                 choice(RuntimeKind::Docker, RuntimeKind::Venv),
                 resources(),
                 texts(),
                 u32(),
                 u32(),
                 static_cast<std::uint8_t>(rng.below(33)),
                 u64(),
                 {},
                 texts(),
                 map(),
                 map(),
                 {},
                 flag(),
                 amount(),
                 amount(),
                 {},
                 texts()};
    a.roster = list([&] {
      return RosterEntry{
          {u64()}, choice(SlotRole::Head, SlotRole::Spare), u32(), {u64()}, bytes(), bytes(64), bytes(), epoch(),
          texts()};
    });
    a.files = list([&] { return FileMount{text(), text()}; });
    a.jobs = list([&] { return JobOrder{job(), u32(), text(), text(), text(), flag(), map(), text()}; });
    a.image_asked = text();
    a.gpu_share_milli = static_cast<std::int32_t>(rng.below(kGpuMilli + 1));
    a.image_policies = list([&] { return ImagePolicy{texts(), texts(), flag(), texts()}; });
    return a;
  }
  ObservedLease observed_lease() {
    return {lease(), epoch(), choice(LeasePhase::Pending, LeasePhase::Failed), text(), bytes(),
            bytes(), u64(),   {text(), text(), text(), flag(), flag()},        u32(),  text(),
            text()};
  }
  ObservedJob observed_job() {
    return {job(), u32(), choice(JobState::Queued, JobState::Stopped), static_cast<std::int32_t>(u32()), text(), u64()};
  }
  NodeFacts facts() {
    return {text(),
            text(),
            text(),
            text(),
            text(),
            text(),
            text(),
            resources(),
            list([&] {
              return Device{text(),
                            text(),
                            amount(),
                            choice(GpuSharing::Exclusive, GpuSharing::Mig),
                            static_cast<std::int32_t>(1 + rng.below(kGpuMilli)),
                            text()};
            }),
            list([&] { return choice(RuntimeKind::Docker, RuntimeKind::Venv); }),
            texts(),
            texts(),
            flag(),
            map()};
  }
  Desired desired() {
    return {u64(),
            u64(),
            list([&] { return assignment(); }),
            list([&] {
              return LeaseSecrets{lease(),
                                  bytes(),
                                  bytes(200),
                                  bytes(),
                                  text(),
                                  bytes(),
                                  list([&] {
                                    return RelayGrant{text(), text(), bytes()};
                                  }),
                                  list([&] {
                                    return IdentityToken{text(), bytes()};
                                  })};
            }),
            list([&] {
              return SignedRoster{
                  {u64()}, bytes(300), list([&] { return bytes(64); }), bytes(80), list([&] { return bytes(8); })};
            }),
            bytes(64),
            bytes(8)};
  }
  StreamData data() { return {u64(), static_cast<std::uint8_t>(rng.below(256)), bytes(2000)}; }
  StreamClose close() { return {u64(), static_cast<std::int32_t>(u32()), text()}; }
  ServerFrame server() {
    switch (rng.below(17)) {
      case 0:
        return Challenge{bytes(), text(), u32(), u32()};
      case 1:
        return Welcome{
            {u64()}, u64(),  Millis(amount() >> 20), Millis(amount() >> 20), {amount() >> 8}, u64(), bytes(), texts(),
            flag(),  texts()};
      case 2:
        return Refused{text(), text(), Millis(amount() >> 20)};
      case 3:
        return desired();
      case 4:
        return Renewed{u64(), list([&] { return lease(); }), Millis(5), text()};
      case 5:
        return LogAck{job(), u32(), u64()};
      case 6:
        return BlobChunk{text(), u64(), bytes(3000), flag(), text()};
      case 7:
        return Watch{flag()};
      case 8:
        return CertIssued{bytes(900)};
      case 9:
        return StreamOpen{u64(),   lease(), choice(StreamKind::Exec, StreamKind::WriteFile),
                          texts(), flag(),  u16(),
                          u16(),   u16(),   text()};
      case 10:
        return data();
      case 11:
        return StreamWindow{u64(), u32()};
      case 12:
        return StreamResize{u64(), u16(), u16()};
      case 15:
        return TrustTold{bytes(3000)};
      case 16:
        return KeysTold{bytes(3000)};
      case 13:
        return StreamEof{u64()};
      default:
        return close();
    }
  }
  NetPlace place() { return {u32(), u16(), flag() ? Bytes(16, static_cast<std::uint8_t>(u16())) : Bytes()}; }
  NetReport net() {
    NetReport out{kNetReportVersion, lease(), flag(), text(), u16(), {}, u32(), {}};
    for (std::uint64_t i = rng.below(kNetSeenMax + 1); i > 0; --i) out.seen.push_back(place());
    out.pairs = list([&] {
      NetPair pair{u32(),   choice(NetPath::None, NetPath::Peer),
                   place(), u32(),
                   u32(),   u32(),
                   u32(),   u32(),
                   u64(),   u64(),
                   u64(),   u64(),
                   {}};
      pair.tries = list([&] {
        return NetTry{place(), choice(NetOrigin::Roster, NetOrigin::Offered), u32(), u32(), flag(), u32(), flag()};
      });
      pair.rx_bytes_s = u64();
      pair.tx_bytes_s = u64();
      pair.carries_bytes_s = u64();
      pair.carries_age_ms = u64();
      pair.mtu = u32();
      pair.relay_udp = flag();
      pair.tested = flag();
      pair.at_least_bytes_s = u64();
      pair.at_least_age_ms = u64();
      pair.relay = u32();
      pair.relays = list([&] { return NetRelayTry{u32(), u32(), u32(), u32()}; });
      pair.by = u32();
      pair.hidden = flag();
      return pair;
    });
    out.relays = list([&] { return NetRelay{text(), text(), flag(), u32(), u32(), flag()}; });
    out.carries = flag();
    out.counted_from = {static_cast<std::int64_t>(u32())};
    out.carried = list([&] { return NetCarried{u32(), u32(), u64(), u64()}; });
    out.forwarded = list([&] { return NetForwarded{u32(), u32(), u64()}; });
    out.counts_signature = bytes(64);
    out.large_udp = choice(NetLarge::None, NetLarge::Lost);
    out.large_tun = choice(NetLarge::None, NetLarge::Lost);
    out.relay_only = flag();
    out.in_tunnel = flag();
    out.mapped = flag() ? "NAT-PMP" : "";
    return out;
  }
  AgentFrame agent() {
    switch (rng.below(21)) {
      case 0:
        return Hello{u32(), text(), bytes(64), text(),        text(),  bytes(),
                     u64(), u64(),  texts(),   Millis(u32()), bytes(), bytes()};
      case 1:
        return Inventory{facts(), list([&] { return observed_lease(); }), list([&] { return observed_job(); })};
      case 2:
        return Observed{u64(), list([&] { return observed_lease(); }), list([&] { return observed_job(); })};
      case 3:
        return Heartbeat{u64(), list([&] { return lease(); }), u64(), u64()};
      case 4:
        return LogChunk{job(), u32(), u64(), bytes(3000)};
      case 5:
        return RayReportFrame{
            {{u64()},
             lease(),
             list([&] { return RayNodeReport{text(), u32(), flag(), Millis(7), resources(), resources()}; }),
             list([&] {
               return RayDemand{resources(), u32(), flag(), u32(), flag()};
             })}};
      case 6:
        return BlobRequest{text(), u64()};
      case 7:
        return CertRequest{bytes(900)};
      case 8:
        return Telemetry{{amount() >> 8},
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         list([&] {
                           return GpuSample{text(), u32(), u32(), u32(), u64(), u64(), u32(),
                                            u32(),  u32(), u64(), u64(), u32(), u32()};
                         }),
                         list([&] { return ContainerSample{lease(), u64(), u64(), u64(), u64(), u64(), u64()}; }),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         u64(),
                         Millis(amount() >> 8),
                         text()};
      case 9:
        return Goodbye{text(), flag()};
      case 10:
        return OwnerPause{flag(), flag(), text()};
      case 11:
        return data();
      case 12:
        return StreamWindow{u64(), u32()};
      case 13:
        return StreamEof{u64()};
      case 14:
        return PullReport{lease(), u64(), u64()};
      case 15:
        return LockOffer{lease(), bytes(5000)};
      case 16:
        return net();
      case 17:
        return TrustTaken{u64(), bytes(32)};
      case 18:
        return KeysTaken{u64(), bytes(32)};
      case 19:
        return PackagesOffer{lease(), text(), text()};
      default:
        return close();
    }
  }
};

}  // namespace muster::wire
