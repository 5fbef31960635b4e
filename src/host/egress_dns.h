#pragma once
// Carries a lease's questions to the machine's resolvers and their checked answers back: over UDP with an id and a port
// of its own each, over TCP where the asker came that way or the answer says it was cut. Every question is answered
// once: by the resolver, or by us (refused, failed, no such family here). Poller's thread only. Bounds: kQuestionsMax
// under way; the caller bounds a lease's own share.
#include <functional>
#include <map>
#include <memory>

#include "egress/dns.h"
#include "host/poller.h"
#include "host/unix_socket.h"

namespace muster::host {

// A DNS message stream over TCP, either side: two bytes of length before each message (RFC 7766).
class DnsStream {
 public:
  // Appends what is there to read; false: the peer closed or failed.
  bool read(int fd);
  std::optional<Bytes> next();  // a whole message, once it is there
  void put(ByteView message);
  bool flush(int fd);  // false: failed
  bool writing() const { return !out_.empty(); }
  bool overfull() const { return out_.size() > (256U << 10); }

 private:
  Bytes in_, out_;
};

class DnsForwarder {
 public:
  struct Outcome {
    Bytes answer;              // empty: nothing may be answered
    std::string name;          // asked for, printable
    std::string_view refused;  // a stable code, or empty
  };
  using Done = std::function<void(Outcome)>;

  explicit DnsForwarder(Poller& poller) : poller_(poller) {}
  ~DnsForwarder();
  void set(std::vector<egress::Ip> resolvers, egress::Rules rules);
  // `done` is called once, perhaps before ask() returns; never after forget(owner).
  void ask(ByteView message, bool stream, const void* owner, Done done);
  void forget(const void* owner);
  void tick(std::int64_t now_ms);
  std::size_t under_way() const { return questions_.size(); }

 private:
  static constexpr std::size_t kQuestionsMax = 1024;
  struct Question {
    Bytes message;
    egress::DnsQuery query;
    bool stream = false, upstream_tcp = false, connecting = false;
    const void* owner = nullptr;
    Done done;
    std::size_t attempt = 0;
    std::uint16_t id = 0;
    std::int64_t deadline_ms = 0, retry_ms = 0;
    Fd fd;
    DnsStream upstream;
  };
  void send(std::uint64_t key);
  void send_udp(std::uint64_t key, Question& q, const egress::Ip& resolver);
  void send_tcp(std::uint64_t key, Question& q, const egress::Ip& resolver);
  void on_udp(std::uint64_t key);
  void on_tcp(std::uint64_t key);
  bool take(std::uint64_t key, ByteView answer);
  void close(Question& q);
  void finish(std::uint64_t key, Bytes answer, std::string_view refused = {});

  Poller& poller_;
  std::vector<egress::Ip> resolvers_;
  egress::Rules rules_;
  std::map<std::uint64_t, Question> questions_;
  std::uint64_t next_ = 1;
};

std::int64_t steady_ms();
std::string printable(std::string_view name);  // for reports: one line, ASCII, bounded

}  // namespace muster::host
