#include "host/engine_http.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <chrono>

namespace muster::host {
namespace {

constexpr std::size_t kHeaderBytesMax = 64 << 10;
constexpr std::size_t kBodyBytesMax = 16 << 20;

Error broken(std::string_view why) {
  return error(Code::Unavailable, fmt::format("the container engine's answer is not HTTP: {}", why));
}

Error gone(std::string_view why) {
  return error(Code::Unavailable, fmt::format("the container engine is not there: {}", why), "engine.gone");
}

Result<Fd> connect_engine(const std::string& path) {
  auto fd = connect_unix(path, SocketKind::Stream);
  if (!fd.ok()) return gone(fd.error().message);
  return fd;
}

// Reads from one connection with a small buffer in front.
class Reader {
 public:
  Reader(int fd, const EngineCall& call) : fd_(fd), call_(call) {}

  Status fill() {
    const auto deadline = std::chrono::steady_clock::now() + call_.timeout;
    while (true) {
      if (call_.cancelled && call_.cancelled())
        return error(Code::Cancelled, "the call to the container engine was cancelled");
      pollfd wait{fd_, POLLIN, 0};
      const int ready = poll(&wait, 1, 250);
      if (ready == 0 || (ready < 0 && errno == EINTR)) {
        if (std::chrono::steady_clock::now() < deadline) continue;
        return error(Code::DeadlineExceeded, "the container engine did not answer in time; see its log");
      }
      std::array<char, 32768> buffer;
      const ssize_t n = read(fd_, buffer.data(), buffer.size());
      if (n < 0) return gone(errno_text(errno));
      if (n == 0) {
        ended_ = true;
        return {};
      }
      buffer_.append(buffer.data(), static_cast<std::size_t>(n));
      return {};
    }
  }

  Result<std::string> line(std::size_t bytes_max) {
    while (true) {
      const auto end = buffer_.find("\r\n");
      if (end != std::string::npos) {
        std::string out = buffer_.substr(0, end);
        buffer_.erase(0, end + 2);
        return out;
      }
      if (buffer_.size() > bytes_max) return broken("a line is too long");
      if (ended_) return gone("its answer ended in the middle of a line");
      TRY_VOID(fill());
    }
  }

  // Up to `want` bytes, at least one unless the peer ended.
  Result<std::string> some(std::size_t want) {
    if (buffer_.empty() && !ended_) TRY_VOID(fill());
    std::string out = buffer_.substr(0, std::min(want, buffer_.size()));
    buffer_.erase(0, out.size());
    return out;
  }
  const std::string& buffered() const { return buffer_; }

 private:
  int fd_;
  const EngineCall& call_;
  std::string buffer_;
  bool ended_ = false;
};

Status send_all(int fd, std::string_view data) {
  while (!data.empty()) {
    const ssize_t n = send(fd, data.data(), data.size(), MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return gone(errno_text(errno));
    data.remove_prefix(static_cast<std::size_t>(n));
  }
  return {};
}

std::string head_of(const EngineCall& call, std::string_view extra) {
  std::string out =
      fmt::format("{} {} HTTP/1.1\r\nHost: engine\r\nUser-Agent: muster-agent\r\n{}", call.method, call.target, extra);
  for (const auto& [name, value] : call.headers) out += fmt::format("{}: {}\r\n", name, value);
  return out + "\r\n";
}

Result<EngineReply> read_head(Reader& reader) {
  EngineReply reply;
  std::string status = TRY(reader.line(kHeaderBytesMax));
  if (status.size() < 12 || status.compare(0, 7, "HTTP/1.") != 0) return broken("bad status line");
  const char* digits = status.data() + 9;
  if (std::from_chars(digits, digits + 3, reply.status).ptr != digits + 3 || reply.status < 100)
    return broken("bad status line");
  std::size_t bytes = 0;
  while (true) {
    const std::string line = TRY(reader.line(kHeaderBytesMax));
    if (line.empty()) return reply;
    bytes += line.size();
    const auto colon = line.find(':');
    if (bytes > kHeaderBytesMax || colon == std::string::npos) return broken("bad header");
    std::string name = line.substr(0, colon);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const auto start = line.find_first_not_of(' ', colon + 1);
    reply.headers[name] = start == std::string::npos ? std::string() : line.substr(start);
  }
}

Status read_exactly(Reader& reader, std::size_t size, const ChunkSink& sink) {
  while (size > 0) {
    const std::string part = TRY(reader.some(size));
    if (part.empty()) return gone("its answer ended too early");
    size -= part.size();
    TRY_VOID(sink(part));
  }
  return {};
}

Status read_chunked(Reader& reader, const ChunkSink& sink) {
  while (true) {
    const std::string line = TRY(reader.line(1024));
    std::size_t size = 0;
    const auto parsed = std::from_chars(line.data(), line.data() + line.size(), size, 16);
    if (parsed.ec != std::errc() || size > kBodyBytesMax) return broken("bad chunk size");
    if (size == 0) return {};
    TRY_VOID(read_exactly(reader, size, sink));
    const std::string end = TRY(reader.line(16));
    if (!end.empty()) return broken("a chunk is longer than it says");
  }
}

Status read_body(Reader& reader, const EngineReply& reply, const ChunkSink& sink) {
  if (reply.status == 204 || reply.status == 304) return {};
  const auto encoding = reply.headers.find("transfer-encoding");
  if (encoding != reply.headers.end() && encoding->second == "chunked") return read_chunked(reader, sink);
  const auto length = reply.headers.find("content-length");
  if (length != reply.headers.end()) {
    std::size_t size = 0;
    const auto& text = length->second;
    if (std::from_chars(text.data(), text.data() + text.size(), size).ec != std::errc()) return broken("bad length");
    return read_exactly(reader, size, sink);
  }
  while (true) {
    const std::string part = TRY(reader.some(32768));
    if (part.empty()) return {};
    TRY_VOID(sink(part));
  }
}

ChunkSink buffer_into(std::string& body) {
  return [&body](std::string_view part) -> Status {
    if (body.size() + part.size() > kBodyBytesMax)
      return error(Code::TooLarge, "the container engine's answer is too large");
    body.append(part);
    return {};
  };
}

std::string body_headers(const EngineCall& call) {
  if (call.method == "GET" || call.method == "DELETE") return "Connection: close\r\n";
  return fmt::format("Connection: close\r\nContent-Type: {}\r\nContent-Length: {}\r\n", call.content_type,
                     call.body.size());
}

}  // namespace

Result<EngineReply> EngineHttp::stream(const EngineCall& call, const ChunkSink& sink) const {
  const Fd fd = TRY(connect_engine(path_));
  TRY_VOID(send_all(fd.get(), head_of(call, body_headers(call)) + call.body));
  Reader reader(fd.get(), call);
  EngineReply reply = TRY(read_head(reader));
  const bool good = reply.status / 100 == 2;
  TRY_VOID(read_body(reader, reply, good ? sink : buffer_into(reply.body)));
  return reply;
}

Result<EngineReply> EngineHttp::call(const EngineCall& call) const {
  std::string body;
  EngineReply reply = TRY(stream(call, buffer_into(body)));
  if (reply.body.empty()) reply.body = std::move(body);
  return reply;
}

Result<EngineReply> EngineHttp::upload(const EngineCall& call, int source) const {
  const Fd fd = TRY(connect_engine(path_));
  TRY_VOID(send_all(fd.get(),
                    head_of(call, fmt::format("Connection: close\r\nContent-Type: {}\r\nTransfer-Encoding: chunked\r\n",
                                              call.content_type))));
  std::array<char, 65536> buffer;
  Status sent;
  while (sent.ok()) {
    const ssize_t n = read(source, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return error(Code::Unavailable, "cannot read what is to be sent: " + errno_text(errno));
    if (n == 0) break;
    sent = send_all(fd.get(), fmt::format("{:x}\r\n", n));
    if (sent.ok()) sent = send_all(fd.get(), std::string_view(buffer.data(), static_cast<std::size_t>(n)));
    if (sent.ok()) sent = send_all(fd.get(), "\r\n");
  }
  // The engine may refuse early: its answer says more than the broken pipe.
  if (sent.ok()) TRY_VOID(send_all(fd.get(), "0\r\n\r\n"));
  Reader reader(fd.get(), call);
  EngineReply reply = TRY(read_head(reader));
  TRY_VOID(read_body(reader, reply, buffer_into(reply.body)));
  return reply;
}

Result<Fd> EngineHttp::hijack(const EngineCall& call) const {
  Fd fd = TRY(connect_engine(path_));
  const std::string extra =
      fmt::format("Connection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
                  call.content_type, call.body.size());
  TRY_VOID(send_all(fd.get(), head_of(call, extra) + call.body));
  // Read byte by byte up to the blank line: whatever follows belongs to the stream and to the next owner.
  std::string head;
  while (head.size() < kHeaderBytesMax && !head.ends_with("\r\n\r\n")) {
    pollfd wait{fd.get(), POLLIN, 0};
    if (poll(&wait, 1, static_cast<int>(call.timeout.count())) <= 0) {
      return error(Code::DeadlineExceeded, "the container engine did not open the stream in time");
    }
    char c = 0;
    if (read(fd.get(), &c, 1) != 1) return gone("it closed the stream while opening it");
    head.push_back(c);
  }
  if (head.compare(0, 12, "HTTP/1.1 101") != 0) {
    return error(Code::Unavailable, "the container engine refused the stream: " + head.substr(0, head.find('\r')));
  }
  return fd;
}

Result<Fd> EngineHttp::open_ended(const EngineCall& call) const {
  Fd fd = TRY(connect_engine(path_));
  TRY_VOID(send_all(fd.get(), head_of(call, "Connection: close\r\n")));
  Reader reader(fd.get(), call);
  const EngineReply reply = TRY(read_head(reader));
  if (reply.status != 200)
    return error(Code::Unavailable, fmt::format("the container engine refused the stream: status {}", reply.status));
  return fd;
}

}  // namespace muster::host
