#include "host/streams.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/log.h"

namespace muster::host {
namespace {
constexpr std::size_t kReadMax = 32 << 10;
constexpr std::size_t kFrameHeader = 8;  // of the engine's multiplexed streams: channel, 3 zero bytes, u32 length
}  // namespace

Streams::Streams(Poller& poller, PrivdClient& privd, Send send, Find find)
    : poller_(poller), privd_(privd), send_(std::move(send)), find_(std::move(find)) {}

Streams::~Streams() {
  close_all();
}

void Streams::close_all() {
  for (auto& [id, stream] : streams_) {
    if (stream.fd) poller_.unwatch(stream.fd.get());
    if (stream.outcome) poller_.unwatch(stream.outcome.get());
  }
  streams_.clear();
}

bool Streams::on_frame(const session::ServerFrame& frame) {
  if (const auto* request = std::get_if<session::StreamOpen>(&frame)) {
    open(*request);
    return true;
  }
  std::uint64_t id = 0;
  std::visit(
      [&](const auto& each) {
        if constexpr (requires { each.stream; }) id = each.stream;
      },
      frame);
  if (id == 0) return false;
  const auto it = streams_.find(id);
  if (it == streams_.end()) return true;  // crossed with our close
  Stream& stream = it->second;
  if (const auto* data = std::get_if<session::StreamData>(&frame)) {
    if (stream.pending.size() + data->data.size() > 2 * session::kStreamWindowBytes) {
      close(id, 255, "the peer sent more than its window");
      return true;
    }
    stream.pending.insert(stream.pending.end(), data->data.begin(), data->data.end());
    write_some(id, stream);
  } else if (const auto* window = std::get_if<session::StreamWindow>(&frame)) {
    stream.credit = std::min<std::uint64_t>(stream.credit + window->credit, 64 << 20);
    interest(stream);
  } else if (const auto* size = std::get_if<session::StreamResize>(&frame)) {
    stream.open.rows = size->rows;
    stream.open.cols = size->cols;
    if (!stream.exec.empty()) set_size(stream, [](const Result<PrivdReply>&) {});
  } else if (std::holds_alternative<session::StreamEof>(frame)) {
    stream.peer_eof = true;
    write_some(id, stream);
  } else if (std::holds_alternative<session::StreamClose>(frame)) {
    if (stream.fd) poller_.unwatch(stream.fd.get());
    if (stream.outcome) poller_.unwatch(stream.outcome.get());
    streams_.erase(it);
  }
  return true;
}

void Streams::open(const session::StreamOpen& request) {
  if (request.stream == 0 || streams_.contains(request.stream)) return;
  const auto address = find_(request.lease);
  if (!address || streams_.size() >= kStreamsMax) {
    send_(session::StreamClose{request.stream, 255,
                               address ? "too many streams on this machine" : "the container is not running"});
    return;
  }
  streams_[request.stream].open = request;
  Verb verb;
  verb.lease = request.lease.str();
  switch (request.kind) {
    case session::StreamKind::Exec:
      verb.kind = VerbKind::Exec;
      verb.argv = request.argv.empty()
                      ? std::vector<std::string>{"/bin/sh", "-c", "exec \"$(command -v bash || echo /bin/sh)\" -i"}
                      : request.argv;
      verb.tty = request.tty;
      break;
    case session::StreamKind::Tcp:
      verb.kind = VerbKind::Tcp;
      verb.address = *address;
      verb.port = request.port;
      break;
    case session::StreamKind::ReadFile:
    case session::StreamKind::WriteFile:
      verb.kind = request.kind == session::StreamKind::ReadFile ? VerbKind::ReadArchive : VerbKind::WriteArchive;
      verb.path = request.path;
      break;
  }
  privd_.call(std::move(verb), [this, id = request.stream](Result<PrivdReply> reply) { opened(id, std::move(reply)); });
}

void Streams::opened(std::uint64_t id, Result<PrivdReply> reply) {
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  if (!reply.ok() || reply->fds.empty())
    return close(id, 255, reply.ok() ? "privd sent no descriptor" : reply.error().message);
  Stream& stream = it->second;
  stream.fd = std::move(reply->fds[0]);
  stream.exec = text_at(reply->fields, {"exec"});
  (void)set_blocking(stream.fd.get(), false).ok();
  poller_.watch(stream.fd.get(), false, false, [this, id](Poller::Ready ready) { on_ready(id, ready); });
  if (reply->fds.size() > 1) {
    stream.outcome = std::move(reply->fds[1]);
    (void)set_blocking(stream.outcome.get(), false).ok();
    poller_.watch(stream.outcome.get(), true, false, [this, id](Poller::Ready) { on_outcome(id); });
  }
  if (stream.open.tty && stream.open.rows > 0 && !stream.exec.empty()) {
    stream.held = true;  // what is typed at once must not run on a terminal without a size
    set_size(stream, [this, id](const Result<PrivdReply>&) { release(id); });
  }
  write_some(id, stream);
  if (streams_.contains(id)) interest(stream);
}

void Streams::set_size(const Stream& stream, PrivdDone done) {
  Verb verb;
  verb.kind = VerbKind::Resize;
  verb.lease = stream.open.lease.str();
  verb.exec = stream.exec;
  verb.rows = std::max<int>(1, stream.open.rows);
  verb.cols = std::max<int>(1, stream.open.cols);
  privd_.call(std::move(verb), std::move(done));
}

void Streams::release(std::uint64_t id) {
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  it->second.held = false;
  write_some(id, it->second);
  if (const auto still = streams_.find(id); still != streams_.end()) interest(still->second);
}

void Streams::interest(Stream& stream) {
  if (!stream.fd) return;
  const bool reads = stream.open.kind != session::StreamKind::WriteFile && !stream.local_eof && stream.credit > 0;
  poller_.rearm(stream.fd.get(), reads, !stream.pending.empty() && !stream.held);
}

void Streams::on_ready(std::uint64_t id, Poller::Ready ready) {
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  if (ready.writable) write_some(id, it->second);
  const auto again = streams_.find(id);
  if (again != streams_.end() && (ready.readable || ready.hung_up)) read_some(id, again->second);
}

void Streams::read_some(std::uint64_t id, Stream& stream) {
  if (!stream.fd || stream.local_eof) return;
  if (stream.open.kind == session::StreamKind::WriteFile) {  // the reader at the other end went away
    poller_.unwatch(stream.fd.get());
    stream.fd.reset();
    return;
  }
  if (stream.credit == 0) {  // hung up while the peer is slow: look again when credit comes
    return poller_.rearm(stream.fd.get(), false, false);
  }
  std::array<std::uint8_t, kReadMax> buffer;
  const ssize_t n = read(stream.fd.get(), buffer.data(), std::min<std::uint64_t>(buffer.size(), stream.credit));
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    stream.local_eof = true;
    return ended(id);
  }
  deliver(id, stream, {buffer.data(), static_cast<std::size_t>(n)});
  interest(stream);
}

void Streams::deliver(std::uint64_t id, Stream& stream, ByteView data) {
  stream.credit -= std::min<std::uint64_t>(stream.credit, data.size());
  if (stream.open.kind != session::StreamKind::Exec || stream.open.tty) {
    send_(session::StreamData{id, 0, Bytes(data.begin(), data.end())});
    return;
  }
  // Without a terminal the engine sends frames; the length says how much follows for that channel.
  stream.demux.append(reinterpret_cast<const char*>(data.data()), data.size());
  while (stream.demux.size() >= kFrameHeader) {
    const auto* head = reinterpret_cast<const std::uint8_t*>(stream.demux.data());
    const std::size_t length =
        (std::size_t{head[4]} << 24) | (std::size_t{head[5]} << 16) | (std::size_t{head[6]} << 8) | head[7];
    if (length > (1 << 20)) return close(id, 255, "the container engine sent a frame that is too large");
    if (stream.demux.size() < kFrameHeader + length) return;
    for (std::size_t at = 0; at < length; at += session::kChunkBytesMax) {
      const std::size_t part = std::min(session::kChunkBytesMax, length - at);
      const auto* from = head + kFrameHeader + at;
      send_(session::StreamData{id, static_cast<std::uint8_t>(head[0] == 2 ? 1 : 0), Bytes(from, from + part)});
    }
    stream.demux.erase(0, kFrameHeader + length);
  }
}

void Streams::write_some(std::uint64_t id, Stream& stream) {
  if (!stream.fd) {
    if (stream.exec.empty() && stream.open.kind == session::StreamKind::WriteFile && stream.outcome)
      stream.pending.clear();
    return;
  }
  if (stream.held) return;
  std::size_t done = 0;
  while (done < stream.pending.size()) {
    const ssize_t n = write(stream.fd.get(), stream.pending.data() + done, stream.pending.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno != EAGAIN) {
      done = stream.pending.size();  // nobody reads any more; what the other side still says is delivered
      break;
    }
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  stream.pending.erase(stream.pending.begin(), stream.pending.begin() + static_cast<std::ptrdiff_t>(done));
  if (done > 0) send_(session::StreamWindow{id, static_cast<std::uint32_t>(done)});
  if (stream.peer_eof && stream.pending.empty() && !stream.shut) {
    stream.shut = true;
    if (stream.open.kind == session::StreamKind::WriteFile) {
      poller_.unwatch(stream.fd.get());
      stream.fd.reset();
      return;
    }
    shutdown(stream.fd.get(), SHUT_WR);
    if (stream.local_eof) return ended(id);
  }
  interest(stream);
}

void Streams::on_outcome(std::uint64_t id) {
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  std::array<char, 4096> buffer;
  const ssize_t n = read(it->second.outcome.get(), buffer.data(), buffer.size());
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n > 0) {
    it->second.told.append(buffer.data(), static_cast<std::size_t>(n));
    return;
  }
  poller_.unwatch(it->second.outcome.get());
  it->second.outcome.reset();
  if (it->second.open.kind == session::StreamKind::WriteFile || it->second.local_eof) ended(id);
}

void Streams::ended(std::uint64_t id) {
  Stream& stream = streams_.at(id);
  if (stream.fd) poller_.rearm(stream.fd.get(), false, false);
  switch (stream.open.kind) {
    case session::StreamKind::Tcp:
      if (stream.shut) return close(id, 0, {});
      send_(session::StreamEof{id});  // half closed: the peer may still have something to say
      return;
    case session::StreamKind::ReadFile:
    case session::StreamKind::WriteFile:
      if (stream.outcome) return;  // how it went comes on the second pipe
      return stream.told == "ok" ? close(id, 0, {})
                                 : close(id, 1, stream.told.empty() ? "privd went away" : stream.told);
    case session::StreamKind::Exec:
      break;
  }
  if (stream.fd) poller_.unwatch(stream.fd.get());
  stream.fd.reset();
  Verb verb;
  verb.kind = VerbKind::ExecCode;
  verb.lease = stream.open.lease.str();
  verb.exec = stream.exec;
  privd_.call(std::move(verb), [this, id](Result<PrivdReply> reply) {
    if (!streams_.contains(id)) return;
    if (!reply.ok()) return close(id, 255, "the container ended");
    const auto code = int_at(reply->fields, {"exit_code"}, -1);
    if (code < 0) {  // the stream ended a moment before the command
      poller_.after(Millis(50), [this, id] {
        if (streams_.contains(id)) ended(id);
      });
      return;
    }
    close(id, static_cast<int>(code), {});
  });
}

void Streams::close(std::uint64_t id, int code, std::string error) {
  const auto it = streams_.find(id);
  if (it == streams_.end()) return;
  if (it->second.fd) poller_.unwatch(it->second.fd.get());
  if (it->second.outcome) poller_.unwatch(it->second.outcome.get());
  streams_.erase(it);
  send_(session::StreamClose{id, code, std::move(error)});
}

}  // namespace muster::host
