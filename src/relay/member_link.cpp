#include "relay/member_link.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <sys/socket.h>

#include <atomic>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>

#include "net/dial.h"
#include "net/recall_frame.h"
#include "overlay/relay_protocol.h"
#include "overlay/udp_relay.h"
#include "relay/loops.h"
#include "relay/upgrade.h"

namespace muster::relay {
namespace {

using namespace net;
namespace ov = overlay;
constexpr std::size_t kReadBytes = 64 << 10;
constexpr std::size_t kRecordBytes = 16 << 10;  // of TLS, at most
constexpr std::size_t kSpareChunks = 64;        // of each thread
constexpr int kTurns = 16;                      // records that leave before others get their turn
constexpr Millis kTick{1000};
constexpr const char* kRecalled = "this key left its cluster";
constexpr int kStatementsMax = 4;  // of signing keys, on one connection

// What leaves as one TLS record: frames one behind the other.
struct Chunk {
  Bytes bytes;
  std::uint64_t frames = 0;
};
std::vector<Bytes>& spare_chunks() {
  thread_local std::vector<Bytes> spare;
  return spare;
}
Bytes take_spare() {
  auto& spare = spare_chunks();
  if (spare.empty()) return {};
  Bytes out = std::move(spare.back());
  spare.pop_back();
  return out;
}
void give_back(Bytes chunk) {
  auto& spare = spare_chunks();
  if (chunk.capacity() == 0 || chunk.capacity() > 2 * kRecordBytes || spare.size() >= kSpareChunks) return;
  chunk.clear();
  spare.push_back(std::move(chunk));
}

// Does not wait.
void say_goodbye(SSL& ssl) {
  ERR_clear_error();
  if (SSL_is_init_finished(&ssl) != 0) SSL_shutdown(&ssl);
  ERR_clear_error();
}

// An acknowledgement for each read costs as much as the read itself. The kernel spares those that can wait for the next
// segment, or 40 ms, where it takes a connection for a conversation; after a pause it has to be told again.
void spare_acknowledgements(int fd) {
  const int quick = 0;
  ::setsockopt(fd, IPPROTO_TCP, TCP_QUICKACK, &quick, sizeof quick);
}

class MemberLink final : public Member,
                         public Closable,
                         public Watched,
                         public std::enable_shared_from_this<MemberLink> {
 public:
  MemberLink(std::shared_ptr<Hub> hub, const RelayOptions& options, Loops::Io& home, Fd socket, SslPtr ssl,
             Registry::GuardPtr guard, std::shared_ptr<void> keep)
      : keep_(std::move(keep)),
        hub_(std::move(hub)),
        options_(options),
        timer_(home),
        pause_(home),
        guard_(std::move(guard)),
        door_(ov::open_door()),
        socket_(std::move(socket)),
        ssl_(std::move(ssl)) {}
  ~MemberLink() {
    if (joined_) --hub_->counts.members;
  }

  void start() {
    guard_->bind(weak_from_this());
    watched_self_ = shared_from_this();
    born_ = last_heard_ = std::chrono::steady_clock::now();
    tick();
    shake_hands();
  }

  void deliver(const crypto::Key32& source, ByteView payload) override {
    push([&](Bytes& out) { ov::append_recv(out, source, payload); }, ov::kRelayHeader + source.size() + payload.size());
  }
  void replaced() override {
    at_home([](MemberLink& self) { self.refuse(ov::RelayErrorCode::Replaced, "the same key connected again"); });
  }
  void recalled() override {
    at_home([](MemberLink& self) { self.turn_out(); });
  }
  void abort() override {
    at_home([](MemberLink& self) { self.close(); });
  }

  void ready(bool readable, bool writable) override {
    const auto keep = shared_from_this();
    if (!open_) return;
    if (!shaken_) return shake_hands();
    if (writable) {
      room_needed_ = false;
      watch();
      flush();
    }
    if (!readable || !open_) return;
    if (!reads()) return close();  // not asked for: an end
    take();
  }

 private:
  void tick() {
    timer_.expires_after(kTick);
    timer_.async_wait([weak = weak_from_this()](ErrorCode ec) {
      auto self = weak.lock();
      if (ec || !self || !self->open_) return;
      const auto now = std::chrono::steady_clock::now();
      const auto silent = now - self->last_heard_;
      if ((!self->joined_ && now - self->born_ > self->options_.hello_time) || silent > 3 * ov::kRelayPingEvery)
        return self->close();
      if (self->joined_ && read_clocks().wall > self->token_.not_after)
        return self->refuse(ov::RelayErrorCode::Expired, "the token is too old");
      self->watch_keys(now);
      if (self->leaving_) return;
      if (self->joined_ && silent <= kTick) spare_acknowledgements(self->socket_.get());
      if (self->joined_ && silent > ov::kRelayPingEvery && now - self->last_ping_ > ov::kRelayPingEvery) {
        self->last_ping_ = now;
        Bytes ping;
        ov::append_ping(ping, 0);
        self->queue(ping);
      }
      self->tick();
    });
  }

  // Token bucket of one second's worth: a member that sends faster is read later, so that the others get their turn.
  bool pause_needed() {
    const auto now = std::chrono::steady_clock::now();
    const auto since = std::chrono::duration_cast<std::chrono::microseconds>(now - refilled_).count();
    refilled_ = now;
    const auto rate = static_cast<std::int64_t>(options_.member_bytes_per_second);
    tokens_ = std::min(rate, tokens_ + std::min<std::int64_t>(since, 1'000'000) * rate / 1'000'000);
    return tokens_ < 0;
  }

  bool reads() const { return shaken_ && !paused_ && !leaving_; }
  // The loop is told what is waited for, where that changed.
  void watch() {
    Loops::For what = reads() ? Loops::For::Bytes : Loops::For::Nothing;
    if (room_needed_) what = what == Loops::For::Bytes ? Loops::For::Both : Loops::For::Room;
    watch(what);
  }
  void watch(Loops::For what) {
    const auto before = std::exchange(watched_, what);
    if (before == what) return;
    if (what == Loops::For::Nothing) return Loops::unwatch(socket_.get());
    if (before != Loops::For::Nothing) return Loops::rewatch(socket_.get(), *this, what);
    if (!Loops::watch(socket_.get(), *this, what)) close();
  }

  void shake_hands() {
    ErrorCode ec;
    switch (tls_handshake(*ssl_, ec)) {
      case TlsStep::WaitRead:
        return watch(Loops::For::Bytes);
      case TlsStep::WaitWrite:
        return watch(Loops::For::Room);
      case TlsStep::Failed:
        return close();
      case TlsStep::Done:
        break;
    }
    shaken_ = true;
    const std::uint8_t* name = nullptr;
    unsigned size = 0;
    SSL_get0_alpn_selected(ssl_.get(), &name, &size);
    if (as_string(ByteView(name, size)) == ov::kRelayAlpn)
      begin();
    else
      head_ = std::make_unique<HeadReader>();
    read(true);
  }
  void begin() {
    Bytes challenge;
    ov::append_challenge(challenge, ov::challenge_of(door_));
    queue(challenge);
  }
  // Before our protocol, where ALPN did not ask for it. What is left of the bytes is the protocol's.
  void upgrade(ByteView& bytes) {
    std::size_t taken = 0;
    const auto state = head_->feed(bytes, taken);
    bytes = bytes.subspan(taken);
    if (state == HeadReader::State::NeedMore) return;
    const int status = state == HeadReader::State::Whole ? judge_upgrade(head_->head()) : 431;
    head_.reset();
    if (status == 101) {
      ++hub_->counts.upgrades;
      queue(to_bytes(upgrade_answer(status)));
      return begin();
    }
    ++hub_->counts.hello_refused;
    leave(to_bytes(upgrade_answer(status)));
  }

  // more: the TLS layer may hold some already, of which the socket says nothing.
  void read(bool more) {
    if (pause_needed()) {
      ++hub_->counts.throttled;
      paused_ = true;
      watch();
      pause_.expires_after(Millis(5));
      return pause_.async_wait([self = shared_from_this(), more](ErrorCode ec) {
        if (ec || !self->open_ || self->leaving_) return;
        self->paused_ = false;
        self->read(more);
      });
    }
    watch();
    if (!more) return;
    at_home([](MemberLink& self) {  // behind the others
      if (self.open_ && self.reads()) self.take();
    });
  }

  // The buffer is the thread's: a member that says nothing holds none.
  void take() {
    thread_local Bytes input(kReadBytes);
    ErrorCode ec;
    std::size_t n = 0;
    {
      const std::lock_guard lock(stream_mutex_);
      n = tls_read_now(*ssl_, asio::buffer(input), ec);
    }
    if (ec) return close();
    if (n > 0) {
      last_heard_ = std::chrono::steady_clock::now();
      tokens_ -= static_cast<std::int64_t>(n);
      ByteView bytes(input.data(), n);
      if (head_) upgrade(bytes);
      reader_.feed(bytes);
    }
    while (open_ && !leaving_) {
      auto frame = reader_.next();
      if (!frame.ok()) return refuse(ov::RelayErrorCode::BadFrame, frame.error().message);
      if (!frame->has_value()) break;
      handle(**frame);
    }
    if (open_ && !leaving_) read(n == input.size());
  }

  void handle(const ov::RelayFrame& frame) {
    if (frame.type == ov::RelayType::Keys && (!joined_ || token_.cluster == ov::kControlCluster))
      return learn(frame.body);
    if (!joined_)
      return frame.type == ov::RelayType::Hello ? hello(frame.body)
                                                : refuse(ov::RelayErrorCode::BadFrame, "a hello must come first");
    switch (frame.type) {
      case ov::RelayType::Hello:
        return hello(frame.body);
      case ov::RelayType::Send:
        return forward(frame.body);
      case ov::RelayType::Ping: {
        const auto id = ov::parse_ping(frame.body);
        if (!id.ok()) return refuse(ov::RelayErrorCode::BadFrame, id.error().message);
        Bytes pong;
        ov::append_pong(pong, *id);
        return queue(pong);
      }
      case ov::RelayType::Pong:
        return;
      case ov::RelayType::Recall:
        return recall(frame.body);
      default:
        return refuse(ov::RelayErrorCode::BadFrame, "a member does not send such frames");
    }
  }

  // The first one lets the member in; a later one, with a newer token for the same place, only moves the end.
  void hello(ByteView body) {
    auto hello = ov::parse_hello(body);
    if (!hello.ok()) {
      ++hub_->counts.hello_refused;
      return refuse(ov::RelayErrorCode::BadFrame, hello.error().message);
    }
    const WallTime wall = read_clocks().wall;
    const auto keys = hub_->keys.believed(wall);
    crypto::Key32 signer{};
    auto token = ov::check_hello(door_, *hello, keys, options_.relay_id, wall, &signer);
    // Members may hear of another key before this relay does: they stay, and the token is looked at again then.
    if (!token.ok() && joined_ && ov::token_of_another_key(keys, hello->token)) {
      waiting_.assign(body.begin(), body.end());
      waiting_since_ = hub_->keys.revision();
      return;
    }
    if (!token.ok()) {
      ++hub_->counts.hello_refused;
      return refuse(ov::RelayErrorCode::BadToken, token.error().message);
    }
    const bool first = !joined_;
    if (!first && (token->cluster != token_.cluster || token->overlay_key != token_.overlay_key))
      return refuse(ov::RelayErrorCode::BadToken, "a member cannot change its cluster or key");
    token_ = std::move(*token);
    signer_ = signer;
    distrusted_ = {};
    waiting_.clear();
    const Hub::Key place{token_.cluster, token_.overlay_key};
    if (!first) return hub_->udp.renew(place, udp_id_, token_.not_after);
    joined_ = true;
    spare_acknowledgements(socket_.get());
    ++hub_->counts.members;
    ++hub_->counts.members_total;
    Bytes welcome, grant;
    if (const auto udp = token_.cluster == ov::kControlCluster
                             ? std::nullopt
                             : hub_->udp.open(place, token_.not_after, options_.member_bytes_per_second)) {
      udp_id_ = udp->id;
      grant = ov::encode_udp_grant(*udp);
    }
    ov::append_welcome(welcome, grant);
    crypto::zeroise(grant);
    queue(welcome);
    hub_->join(place, shared_from_this());
    // Looked up after it can be found, so that no recall slips in between.
    if (hub_->recalled(place)) {
      ++hub_->counts.hello_refused;
      turn_out();
    }
  }
  // Once a second. A connection that was let in by a key which is believed no longer ends, unless another token comes.
  void watch_keys(std::chrono::steady_clock::time_point now) {
    if (!joined_) return;
    if (!waiting_.empty() && waiting_since_ != hub_->keys.revision()) {
      const Bytes body = std::exchange(waiting_, {});
      hello(body);
      if (leaving_) return;
    }
    if (hub_->keys.believes(signer_, read_clocks().wall)) {
      distrusted_ = {};
    } else if (distrusted_ == std::chrono::steady_clock::time_point{}) {
      distrusted_ = now;
    } else if (now - distrusted_ > options_.other_token) {
      refuse(ov::RelayErrorCode::Expired, "the key that signed this token is believed no longer");
    }
  }

  // From anybody: a statement of signing keys speaks for itself.
  void learn(ByteView statement) {
    if (++statements_ > kStatementsMax) return refuse(ov::RelayErrorCode::BadFrame, "too many statements of keys");
    if (!hub_->keys.take(statement).ok()) ++hub_->counts.keys_refused;
  }

  void turn_out() {
    if (!joined_ || !open_) return;
    hub_->leave({token_.cluster, token_.overlay_key}, this);  // nobody's packets reach it from here on
    refuse(ov::RelayErrorCode::BadToken, kRecalled);
  }

  void recall(ByteView body) {
    if (token_.cluster != ov::kControlCluster)
      return refuse(ov::RelayErrorCode::BadFrame, "a member does not send such frames");
    Bytes bytes(body.begin(), body.end());
    const auto frame = take_recall(bytes);
    if (!frame.ok() || !*frame || !bytes.empty()) return refuse(ov::RelayErrorCode::BadFrame, "a damaged recall");
    hub_->recall((*frame)->entries, (*frame)->kind == RecallFrame::Kind::All ? Hub::Recall::All : Hub::Recall::More);
  }

  void forward(ByteView body) {
    auto packet = ov::parse_packet(body);
    if (!packet.ok()) return refuse(ov::RelayErrorCode::BadFrame, packet.error().message);
    Loops::carried();
    auto& counts = hub_->counts;
    if (hub_->udp.deliver({token_.cluster, packet->key}, token_.overlay_key, packet->payload, read_clocks().lease)) {
      counts.packets.fetch_add(1, std::memory_order_relaxed);
      counts.bytes.fetch_add(packet->payload.size(), std::memory_order_relaxed);
      counts.udp_packets.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    if (auto peer = hub_->find({token_.cluster, packet->key})) {
      counts.packets.fetch_add(1, std::memory_order_relaxed);
      counts.bytes.fetch_add(packet->payload.size(), std::memory_order_relaxed);
      return peer->deliver(token_.overlay_key, packet->payload);
    }
    ++counts.unknown_peer;
    const auto now = std::chrono::steady_clock::now();
    if (now - last_gone_ < Millis(100)) return;
    last_gone_ = now;
    Bytes gone;
    ov::append_peer_gone(gone, packet->key);
    queue(gone);
  }

  void queue(const Bytes& frame) {
    push([&](Bytes& out) { out.insert(out.end(), frame.begin(), frame.end()); }, frame.size());
  }

  // Any thread. Frames that wait share a record. Drop-head: old packets are worth least to the flows inside.
  template <typename Append>
  void push(Append append, std::size_t size) {
    bool wake = false;
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return;
      if (out_.empty() || out_.back().bytes.size() + size > kRecordBytes) out_.push_back({take_spare(), 0});
      append(out_.back().bytes);
      ++out_.back().frames;
      queued_ += size;
      while (queued_ > options_.queue_bytes_max && out_.size() > 1) {
        queued_ -= out_.front().bytes.size();
        hub_->counts.dropped.fetch_add(out_.front().frames, std::memory_order_relaxed);
        give_back(std::move(out_.front().bytes));
        out_.pop_front();
      }
      wake = !std::exchange(scheduled_, true);
    }
    if (wake) flush_soon();
  }

  // By this thread if it is one of the relay's, whoever the link belongs to, after what it has to do already: so what
  // came for it meanwhile leaves with it, and no other thread is woken.
  void flush_soon() {
    Loops::Io* here = Loops::here();
    if (here == nullptr) return at_home([](MemberLink& self) { self.flush(); });
    asio::post(*here, [self = shared_from_this()] { self->flush(); });
  }
  template <typename Then>
  void at_home(Then then) {
    asio::post(timer_.get_executor(), [self = shared_from_this(), then] { then(*self); });
  }

  void flush() {  // any thread, one at a time: scheduled_ stays true until the queue is empty
    const std::lock_guard lock(stream_mutex_);
    for (int turn = 0; open_ && turn < kTurns; ++turn) {
      if (written_ == leaves_.size() && !next_chunk()) {
        if (leaving_) at_home([](MemberLink& self) { self.close(); });
        return;
      }
      ErrorCode ec;
      std::size_t n = 0;
      (void)tls_write(*ssl_, asio::buffer(leaves_) + written_, n, ec);
      if (ec) return at_home([](MemberLink& self) { self.close(); });
      written_ += n;
      if (n == 0) return at_home([](MemberLink& self) { self.wait_for_room(); });
    }
    if (open_) flush_soon();
  }
  void wait_for_room() {
    if (!open_) return;
    room_needed_ = true;
    watch();
  }
  bool next_chunk() {
    give_back(std::exchange(leaves_, {}));
    written_ = 0;
    const std::lock_guard lock(mutex_);
    if (out_.empty()) {
      scheduled_ = false;
      return false;
    }
    leaves_ = std::move(out_.front().bytes);
    queued_ -= leaves_.size();
    out_.pop_front();
    return true;
  }

  void refuse(ov::RelayErrorCode code, const std::string& message) {
    if (leaving_ || !open_) return;
    Bytes frame;
    ov::append_error(frame, code, message);
    leave(frame);
  }
  // Once these words have left, or two seconds from now.
  void leave(const Bytes& words) {
    leave_udp(UdpLegs::End::Now);
    leaving_ = true;
    watch();
    queue(words);
    pause_.expires_after(Millis(2000));
    pause_.async_wait([self = shared_from_this()](ErrorCode ec) {
      if (!ec) self->close();
    });
  }

  void leave_udp(UdpLegs::End how) {
    if (joined_) hub_->udp.close({token_.cluster, token_.overlay_key}, udp_id_, how, read_clocks().lease);
  }

  void close() {
    if (!open_.exchange(false)) return;
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
      out_.clear();
    }
    if (joined_) hub_->leave({token_.cluster, token_.overlay_key}, this);
    leave_udp(UdpLegs::End::Grace);
    timer_.cancel();
    pause_.cancel();
    watch(Loops::For::Nothing);
    {
      const std::lock_guard lock(stream_mutex_);
      say_goodbye(*ssl_);
      socket_.reset();
    }
    guard_.reset();
    watched_self_.reset();
  }

  const std::shared_ptr<void> keep_;
  const std::shared_ptr<Hub> hub_;
  const RelayOptions& options_;  // of the relay, which outlives its members
  asio::steady_timer timer_, pause_;
  Registry::GuardPtr guard_;
  ov::RelayDoor door_;
  ov::RelayToken token_;
  std::unique_ptr<HeadReader> head_;  // until the upgrade, where there is one
  ov::FrameReader reader_;
  std::chrono::steady_clock::time_point born_, last_heard_, last_ping_{}, last_gone_{},
      refilled_ = std::chrono::steady_clock::now();
  std::int64_t tokens_ = 1 << 20;
  crypto::Key32 signer_{};  // of token_
  std::chrono::steady_clock::time_point distrusted_{};
  Bytes waiting_;  // a hello by a key that is not known yet, and the revision at that time
  std::uint64_t waiting_since_ = 0;
  int statements_ = 0;
  std::uint32_t udp_id_ = 0;
  bool shaken_ = false, joined_ = false, paused_ = false, room_needed_ = false;
  Loops::For watched_ = Loops::For::Nothing;
  std::shared_ptr<MemberLink> watched_self_;         // until close()
  std::atomic<bool> open_ = true, leaving_ = false;  // changed at home only
  // Whoever reads, writes or closes the stream; taken before mutex_.
  std::mutex stream_mutex_;
  Fd socket_;
  SslPtr ssl_;
  Bytes leaves_;  // the chunk under way
  std::size_t written_ = 0;
  std::mutex mutex_;
  std::deque<Chunk> out_;
  std::size_t queued_ = 0;
  bool scheduled_ = false, closed_ = false;
};

}  // namespace

void serve_member(std::shared_ptr<Hub> hub, const RelayOptions& options, net::tcp::socket socket, net::SslCtxPtr tls,
                  net::Registry::GuardPtr guard, std::shared_ptr<void> keep) {
  ErrorCode ec;
  Fd fd(socket.release(ec));
  auto ssl = ec ? nullptr : new_ssl(*tls, fd.get());
  if (!ssl) return;
  SSL_set_default_read_buffer_len(ssl.get(), kReadBytes);  // many records in one recv; released when it is empty
  SSL_set_accept_state(ssl.get());
  auto link = std::make_shared<MemberLink>(std::move(hub), options, *Loops::here(), std::move(fd), std::move(ssl),
                                           std::move(guard), std::move(keep));
  link->start();
}

}  // namespace muster::relay
