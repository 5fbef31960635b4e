#include "host/netd_protocol.h"

#include <charconv>

namespace muster::host::netd {
namespace {

constexpr std::size_t kListMax = 4096;

// The largest value that a field of this type may have.
template <typename T>
constexpr std::uint64_t largest() {
  if constexpr (std::is_same_v<T, bool>) return 1;
  if constexpr (std::is_same_v<T, session::NetPath>) return static_cast<std::uint64_t>(session::NetPath::Peer);
  if constexpr (std::is_same_v<T, session::NetOrigin>) return static_cast<std::uint64_t>(session::NetOrigin::Offered);
  return ~std::uint64_t{0};
}

class Writer {
 public:
  template <typename T>
    requires(std::is_integral_v<T> || std::is_enum_v<T>)
  void field(const T& value) {
    for (int shift = static_cast<int>(sizeof(T)) * 8 - 8; shift >= 0; shift -= 8) {
      out_ += static_cast<char>(static_cast<std::uint64_t>(value) >> shift);
    }
  }
  void field(const std::string& text) {
    field(static_cast<std::uint32_t>(text.size()));
    out_ += text;
  }
  void field(const Bytes& bytes) { field(as_string(bytes)); }
  template <typename T>
  void field(const std::vector<T>& list) {
    field(static_cast<std::uint32_t>(list.size()));
    for (const T& item : list) each(*this, item);
  }
  std::string take() { return std::move(out_); }

 private:
  std::string out_;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : rest_(bytes) {}
  template <typename T>
    requires(std::is_integral_v<T> || std::is_enum_v<T>)
  void field(T& value) {
    if (rest_.size() < sizeof(T)) return fail();
    std::uint64_t raw = 0;
    for (std::size_t i = 0; i < sizeof(T); ++i) raw = raw << 8 | static_cast<std::uint8_t>(rest_[i]);
    if (raw > largest<T>()) return fail();
    value = static_cast<T>(raw);
    rest_.remove_prefix(sizeof(T));
  }
  void field(std::string& text) {
    std::uint32_t size = 0;
    field(size);
    if (size > rest_.size()) return fail();
    text = rest_.substr(0, size);
    rest_.remove_prefix(size);
  }
  void field(Bytes& bytes) {
    std::string text;
    field(text);
    bytes = to_bytes(text);
  }
  template <typename T>
  void field(std::vector<T>& list) {
    std::uint32_t size = 0;
    field(size);
    if (size > kListMax || size > rest_.size()) return fail();
    for (std::uint32_t i = 0; i < size && ok_; ++i) {
      list.emplace_back();
      each(*this, list.back());
    }
  }
  bool finished() const { return ok_ && rest_.empty(); }

 private:
  void fail() {
    ok_ = false;
    rest_ = {};
  }
  std::string_view rest_;
  bool ok_ = true;
};

// One list of fields serves writing (const values) and reading.
template <typename A, typename... F>
void fields(A& archive, F&... f) {
  (archive.field(f), ...);
}
template <typename A, typename T>
void each(A& a, T& v) {
  using U = std::remove_const_t<T>;
  if constexpr (std::is_same_v<U, RelayAddress>)
    fields(a, v.host, v.port);
  else if constexpr (std::is_same_v<U, Bytes>)
    a.field(v);
  else if constexpr (std::is_same_v<U, AddLease> || std::is_same_v<U, RemoveLease> || std::is_same_v<U, GetStats> ||
                     std::is_same_v<U, GetPaths>)
    fields(a, v.lease);
  else if constexpr (std::is_same_v<U, GetInfo> || std::is_same_v<U, Done>)
    static_cast<void>(a);
  else if constexpr (std::is_same_v<U, Configure>)
    fields(a, v.lease, v.address, v.prefix_bits, v.roster, v.signatures, v.signers, v.relays, v.relay_ca_pem,
           v.relay_server_name, v.relay_token, v.psk, v.machine_ca_pem, v.machines);
  else if constexpr (std::is_same_v<U, SetRelays>)
    fields(a, v.lease, v.relays);
  else if constexpr (std::is_same_v<U, SetMapped>)
    fields(a, v.places, v.how);
  else if constexpr (std::is_same_v<U, session::RelayGrant>)
    fields(a, v.address, v.region, v.token);
  else if constexpr (std::is_same_v<U, session::NetRelayTry>)
    fields(a, v.relay, v.sent, v.answered, v.rtt_us);
  else if constexpr (std::is_same_v<U, session::NetRelay>)
    fields(a, v.address, v.region, v.up, v.rtt_us, v.udp_rtt_us, v.by_udp);
  else if constexpr (std::is_same_v<U, session::NetCarried>)
    fields(a, v.by, v.with, v.sent, v.received);
  else if constexpr (std::is_same_v<U, session::NetForwarded>)
    fields(a, v.from, v.to, v.bytes);
  else if constexpr (std::is_same_v<U, Failed>)
    fields(a, v.code, v.message);
  else if constexpr (std::is_same_v<U, LeaseKey>)
    fields(a, v.public_key);
  else if constexpr (std::is_same_v<U, Configured>)
    fields(a, v.incarnation, v.epoch, v.rejected);
  else if constexpr (std::is_same_v<U, PeerLine>)
    fields(a, v.address, v.rx_bytes, v.tx_bytes, v.last_handshake_ms, v.path);
  else if constexpr (std::is_same_v<U, Stats>)
    fields(a, v.tun, v.relay_up, v.relay_detail, v.incarnation, v.epoch, v.peers);
  else if constexpr (std::is_same_v<U, LeaseLine>)
    fields(a, v.lease, v.public_key, v.tun, v.configured);
  else if constexpr (std::is_same_v<U, Info>)
    fields(a, v.udp_port, v.leases);
  else if constexpr (std::is_same_v<U, session::NetPlace>)
    fields(a, v.ip, v.port, v.six);
  else if constexpr (std::is_same_v<U, session::NetTry>)
    each(a, v.at), fields(a, v.origin, v.sent, v.answered, v.full, v.rtt_us, v.tunnel);
  else if constexpr (std::is_same_v<U, session::NetPair>) {
    each(a, v.at);
    fields(a, v.address, v.path, v.rtt_us, v.relay_rtt_us, v.asked, v.lost, v.changes, v.age_ms, v.handshake_age_ms,
           v.rx_bytes, v.tx_bytes, v.tries, v.rx_bytes_s, v.tx_bytes_s, v.carries_bytes_s, v.carries_age_ms, v.relay,
           v.relays, v.by, v.mtu, v.relay_udp, v.tested, v.at_least_bytes_s, v.at_least_age_ms, v.hidden);
  } else if constexpr (std::is_same_v<U, Paths>) {
    auto& r = v.report;
    fields(a, r.version, r.relay_up, r.relay, r.udp_port, r.seen, r.others, r.pairs, v.relayed, v.lan, v.direct,
           v.limited, v.peer, r.relays, r.carries, r.counted_from.ms, r.carried, r.forwarded, v.relayed_udp,
           r.large_udp, r.large_tun, r.relay_only, r.in_tunnel, r.mapped);
  }
}

template <typename V>
std::string encode_variant(const V& value) {
  Writer writer;
  writer.field(static_cast<std::uint8_t>(value.index()));
  std::visit([&](const auto& v) { each(writer, v); }, value);
  return writer.take();
}

template <typename V, std::size_t I = 0>
bool decode_at(std::size_t index, Reader& reader, V& out) {
  if constexpr (I < std::variant_size_v<V>) {
    if (index != I) return decode_at<V, I + 1>(index, reader, out);
    each(reader, out.template emplace<I>());
    return reader.finished();
  } else {
    return false;
  }
}

template <typename V>
Result<V> decode_variant(std::string_view bytes) {
  V out;
  if (!bytes.empty()) {
    Reader reader(bytes.substr(1));
    if (decode_at(static_cast<std::uint8_t>(bytes[0]), reader, out)) return out;
  }
  return error(Code::InvalidArgument, "damaged message between agent and netd; are both from the same version?");
}

}  // namespace

std::string encode(const Request& request) {
  return encode_variant(request);
}
std::string encode(const Reply& reply) {
  return encode_variant(reply);
}
Result<Request> decode_request(std::string_view bytes) {
  return decode_variant<Request>(bytes);
}
Result<Reply> decode_reply(std::string_view bytes) {
  return decode_variant<Reply>(bytes);
}

std::optional<RelayAddress> parse_relay(std::string_view text) {
  const auto colon = text.rfind(':');
  unsigned port = 0;
  if (colon == std::string_view::npos || colon == 0) return {};
  const char* end = text.data() + text.size();
  const auto [next, fault] = std::from_chars(text.data() + colon + 1, end, port);
  if (fault != std::errc{} || next != end || port == 0 || port > 65'535) return {};
  std::string_view host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return RelayAddress{std::string(host), static_cast<std::uint16_t>(port)};
}

bool valid_lease_name(std::string_view lease) {
  if (lease.empty() || lease.size() > 64 || lease[0] == '-') return false;
  for (char c : lease) {
    if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-')) return false;
  }
  return true;
}

}  // namespace muster::host::netd
