#pragma once
// HTTP/1.1 to a container engine over its unix socket: one connection per call, blocking, with a deadline. Bounds:
// header 64 KiB, buffered body 16 MiB, one chunk 16 MiB; a peer that breaks framing is an error, never a crash.
// An engine that is not there or went away meanwhile is Unavailable with the field "engine.gone". Thread-safe:
// stateless.
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "base/result.h"
#include "base/time.h"
#include "host/unix_socket.h"

namespace muster::host {

struct EngineReply {
  int status = 0;
  std::map<std::string, std::string> headers;  // lower-case names
  std::string body;
};
struct EngineCall {
  std::string method = "GET", target, body, content_type = "application/json";
  std::map<std::string, std::string> headers;
  Millis timeout{30'000};           // without a byte from the engine
  std::function<bool()> cancelled;  // asked about once a second
};
using ChunkSink = std::function<Status(std::string_view)>;

class EngineHttp {
 public:
  explicit EngineHttp(std::string socket_path) : path_(std::move(socket_path)) {}
  Result<EngineReply> call(const EngineCall& call) const;
  // A 2xx body goes to `sink` as it comes; other answers are buffered in the reply.
  Result<EngineReply> stream(const EngineCall& call, const ChunkSink& sink) const;
  // Sends what `source` (a descriptor) holds as a chunked body.
  Result<EngineReply> upload(const EngineCall& call, int source) const;
  // 101 Switching Protocols: the descriptor then carries the raw stream of that one exec or attach and nothing else.
  Result<Fd> hijack(const EngineCall& call) const;
  // A GET whose answer has begun and does not end while the engine lives: the descriptor is readable at its end, and
  // when the engine says something.
  Result<Fd> open_ended(const EngineCall& call) const;

 private:
  std::string path_;
};

}  // namespace muster::host
