#pragma once
// One exec or forward WebSocket as a queue for a blocking thread. Framing: proto/muster/v1/api.proto, above service
// Api. When the reader falls behind (8 MiB), reading pauses. fd() becomes readable when there is something to take.
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "base/time.h"
#include "cli/api.h"

namespace muster::cli {

enum class Kind : std::uint8_t { Data = 0, ErrorData = 1, Resize = 2, Exit = 3, EndOfInput = 4 };
struct Message {
  Kind kind = Kind::Data;
  std::string bytes;
};

struct ExecRequest {
  std::string cluster, slot;
  std::vector<std::string> argv;
  bool tty = false;
  std::uint16_t rows = 24, cols = 80;
};
std::string exec_target(const ExecRequest& request);

class Channel {
 public:
  static Result<std::unique_ptr<Channel>> open(const Account& account, const std::string& target);
  virtual ~Channel() = default;
  virtual void send(Kind kind, std::string_view bytes) = 0;
  virtual std::optional<Message> take() = 0;  // never waits
  virtual bool closed() const = 0;            // and nothing left to take
  virtual std::string why_closed() const = 0;
  virtual std::size_t unsent() const = 0;
  virtual int fd() const = 0;
};

// What a command's exit message says: i32 big-endian, then error text.
struct Exit {
  std::int32_t code = 0;
  std::string error;
};
std::optional<Exit> parse_exit(std::string_view bytes);

}  // namespace muster::cli
