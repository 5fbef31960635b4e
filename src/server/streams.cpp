#include "server/streams.h"

#include <algorithm>

namespace muster::server {
namespace {

enum Channel : std::uint8_t { kData = 0, kStderr = 1, kResize = 2, kExit = 3, kEof = 4 };

Bytes exit_message(std::int32_t code, const std::string& why) {
  const auto bits = static_cast<std::uint32_t>(code);
  Bytes out{kExit, static_cast<std::uint8_t>(bits >> 24), static_cast<std::uint8_t>(bits >> 16),
            static_cast<std::uint8_t>(bits >> 8), static_cast<std::uint8_t>(bits)};
  out.insert(out.end(), why.begin(), why.end());
  return out;
}

}  // namespace

void Streams::refuse(const net::WebSocketPtr& user, const std::string& why) {
  user->start([](Bytes) {}, [](const std::string&) {});
  user->send(exit_message(-1, why));
  user->close("refused");
}

std::size_t Streams::size() const {
  const std::lock_guard lock(mutex_);
  return streams_.size();
}

void Streams::open(NodeId node, std::uint64_t link, Send send, session::StreamOpen open, net::WebSocketPtr user,
                   std::function<std::shared_ptr<void>(std::function<void()>)> guard) {
  auto stream = std::make_shared<Stream>();
  {
    const std::lock_guard lock(mutex_);
    if (streams_.size() < bounds_.in_all && per_node_[node] < bounds_.per_node) {
      stream->id = open.stream = next_++;
      stream->node = node;
      stream->link = link;
      stream->send = send;
      stream->user = user;
      streams_[stream->id] = stream;
      ++per_node_[node];
    }
  }
  if (stream->id == 0) return refuse(user, "too many streams are open to this machine; close one and try again");
  const std::uint64_t id = stream->id;
  if (!send(open)) {
    user->start([](Bytes) {}, [](const std::string&) {});
    return end(id, -1, "the machine is not connected just now; try again", false);
  }
  auto held = guard([this, id] { end(id, -1, "your token was revoked or expired", true); });
  {
    const std::lock_guard lock(mutex_);
    stream->guard = std::move(held);
  }
  user->start([this, id](Bytes message) { from_user(id, std::move(message)); },
              [this, id](const std::string&) { user_gone(id); });
}

// Locked. Sends what the agent's credit allows, in order, end of input last.
void Streams::push(Stream& stream) {
  while (!stream.pending.empty() && stream.credit > 0) {
    Bytes& front = stream.pending.front();
    const std::size_t n = std::min({front.size(), static_cast<std::size_t>(stream.credit), session::kChunkBytesMax});
    session::StreamData data{stream.id, 0, Bytes(front.begin(), front.begin() + static_cast<std::ptrdiff_t>(n))};
    stream.send(data);
    stream.credit -= n;
    stream.pending_bytes -= n;
    if (n == front.size()) {
      stream.pending.pop_front();
    } else {
      front.erase(front.begin(), front.begin() + static_cast<std::ptrdiff_t>(n));
    }
  }
  if (stream.pending.empty() && stream.eof && !stream.eof_sent) {
    stream.eof_sent = true;
    stream.send(session::StreamEof{stream.id});
  }
  const bool pause = stream.pending_bytes > 0;
  if (pause != stream.paused) {
    stream.paused = pause;
    stream.user->pause_reading(pause);
  }
}

void Streams::from_user(std::uint64_t id, Bytes message) {
  std::string fault;
  {
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(id);
    if (found == streams_.end()) return;
    Stream& stream = *found->second;
    const std::uint8_t channel = message.empty() ? 255 : message[0];
    if (channel == kData && !stream.eof) {
      message.erase(message.begin());
      stream.pending_bytes += message.size();
      if (!message.empty()) stream.pending.push_back(std::move(message));
      if (stream.pending_bytes > bounds_.pending_bytes) {
        fault = "more was sent than the machine takes; send slower";
      } else {
        push(stream);
      }
    } else if (channel == kResize && message.size() == 5) {
      stream.send(session::StreamResize{id, static_cast<std::uint16_t>(message[1] << 8 | message[2]),
                                        static_cast<std::uint16_t>(message[3] << 8 | message[4])});
    } else if (channel == kEof) {
      stream.eof = true;
      push(stream);
    } else {
      fault = "a message of an unknown kind was sent on this stream";
    }
  }
  if (!fault.empty()) end(id, -1, fault, true);
}

void Streams::user_gone(std::uint64_t id) {
  end(id, -1, "", true);
}

void Streams::end(std::uint64_t id, std::int32_t exit_code, const std::string& why, bool tell_agent) {
  StreamPtr stream;
  {
    const std::lock_guard lock(mutex_);
    const auto found = streams_.find(id);
    if (found == streams_.end()) return;
    stream = found->second;
    streams_.erase(found);
    if (--per_node_[stream->node] == 0) per_node_.erase(stream->node);
  }
  if (tell_agent) stream->send(session::StreamClose{id, exit_code, why.empty() ? "the user's end was closed" : why});
  stream->user->send(exit_message(exit_code, why));
  stream->user->close("done");
}

void Streams::from_agent(std::uint64_t link, const session::AgentFrame& frame) {
  std::optional<session::StreamClose> closed;
  {
    const std::lock_guard lock(mutex_);
    const auto find = [&](std::uint64_t id) -> Stream* {
      const auto found = streams_.find(id);
      return found != streams_.end() && found->second->link == link ? found->second.get()
                                                                    : nullptr;  // never another machine's
    };
    if (const auto* data = std::get_if<session::StreamData>(&frame)) {
      Stream* stream = find(data->stream);
      if (stream == nullptr) return;
      Bytes message{data->channel == 1 ? kStderr : kData};
      message.insert(message.end(), data->data.begin(), data->data.end());
      stream->owed += data->data.size();
      stream->user->send(std::move(message));
      if (stream->owed > 4ULL * session::kStreamWindowBytes) {
        closed = session::StreamClose{data->stream, -1, "the machine sent more than it may"};
      } else if (stream->owed >= session::kStreamWindowBytes / 4 && stream->user->buffered() < bounds_.user_buffer) {
        stream->send(session::StreamWindow{stream->id, static_cast<std::uint32_t>(std::exchange(stream->owed, 0))});
      }
    } else if (const auto* window = std::get_if<session::StreamWindow>(&frame)) {
      if (Stream* stream = find(window->stream)) {
        stream->credit = std::min<std::uint64_t>(stream->credit + window->credit, 64ULL << 20);
        push(*stream);
      }
    } else if (const auto* eof = std::get_if<session::StreamEof>(&frame)) {
      if (Stream* stream = find(eof->stream)) stream->user->send(Bytes{kEof});
    } else if (const auto* close = std::get_if<session::StreamClose>(&frame)) {
      if (find(close->stream) != nullptr) closed = *close;
    }
  }
  if (closed) end(closed->stream, closed->exit_code, closed->error, false);
}

void Streams::link_lost(std::uint64_t link) {
  std::vector<std::uint64_t> ids;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [id, stream] : streams_) {
      if (stream->link == link) ids.push_back(id);
    }
  }
  for (const auto id : ids) end(id, -1, "the connection to the machine was lost", false);
}

void Streams::tick() {
  const std::lock_guard lock(mutex_);
  for (const auto& [id, stream] : streams_) {
    if (stream->owed == 0 || stream->user->buffered() >= bounds_.user_buffer) continue;
    stream->send(session::StreamWindow{id, static_cast<std::uint32_t>(std::exchange(stream->owed, 0))});
  }
}

}  // namespace muster::server
