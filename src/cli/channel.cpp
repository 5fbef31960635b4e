#include "cli/channel.h"

#include <fmt/format.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>

#include "cli/session.h"
#include "cli/table.h"

namespace muster::cli {
namespace {

constexpr std::size_t kQueueMax = 8 << 20;

class NetChannel : public Channel {
 public:
  NetChannel() : event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {}
  ~NetChannel() override {
    if (socket_) socket_->close("done");
    if (loop_) loop_->stop();
    loop_.reset();
    close(event_);
  }

  Status dial(const Account& account, const std::string& target) {
    auto endpoint = TRY(endpoint_of(account));
    loop_ = net::Loop::create(1);
    std::map<std::string, std::string> headers;
    Account now = account;
    const std::string token = TRY(bearer_of(now));
    if (!token.empty()) headers["authorization"] = "Bearer " + token;
    std::mutex mutex;
    std::condition_variable ready;
    std::optional<Result<net::WebSocketPtr>> answer;
    loop_->dial_websocket(std::move(endpoint), target, std::move(headers), [&](Result<net::WebSocketPtr> result) {
      const std::lock_guard lock(mutex);
      answer.emplace(std::move(result));
      ready.notify_all();
    });
    std::unique_lock lock(mutex);
    ready.wait(lock, [&] { return answer.has_value(); });
    if (!answer->ok()) return answer->error();
    socket_ = **answer;
    lock.unlock();
    socket_->start([this](Bytes bytes) { arrived(std::move(bytes)); },
                   [this](std::string reason) { ended(std::move(reason)); });
    return {};
  }

  void send(Kind kind, std::string_view bytes) override {
    Bytes message;
    message.reserve(bytes.size() + 1);
    message.push_back(static_cast<std::uint8_t>(kind));
    message.insert(message.end(), bytes.begin(), bytes.end());
    socket_->send(std::move(message));
  }
  std::optional<Message> take() override {
    const std::lock_guard lock(mutex_);
    std::uint64_t ignored = 0;
    if (queue_.size() <= 1 && !ended_) [[maybe_unused]]
      const auto got = read(event_, &ignored, sizeof ignored);
    if (queue_.empty()) return {};
    Message message = std::move(queue_.front());
    queue_.pop_front();
    queued_ -= message.bytes.size();
    if (paused_ && queued_ < kQueueMax / 2) {
      paused_ = false;
      socket_->pause_reading(false);
    }
    return message;
  }
  bool closed() const override {
    const std::lock_guard lock(mutex_);
    return ended_ && queue_.empty();
  }
  std::string why_closed() const override {
    const std::lock_guard lock(mutex_);
    return clean(reason_);
  }
  std::size_t unsent() const override { return socket_->buffered(); }
  int fd() const override { return event_; }

 private:
  void arrived(Bytes bytes) {
    if (bytes.empty() || bytes[0] > static_cast<std::uint8_t>(Kind::EndOfInput)) return;
    const std::lock_guard lock(mutex_);
    queued_ += bytes.size() - 1;
    queue_.push_back({static_cast<Kind>(bytes[0]), std::string(bytes.begin() + 1, bytes.end())});
    if (!paused_ && queued_ > kQueueMax) {
      paused_ = true;
      socket_->pause_reading(true);
    }
    wake();
  }
  void ended(std::string reason) {
    const std::lock_guard lock(mutex_);
    ended_ = true;
    reason_ = std::move(reason);
    wake();
  }
  void wake() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto put = write(event_, &one, sizeof one);
  }

  mutable std::mutex mutex_;
  std::deque<Message> queue_;
  std::size_t queued_ = 0;
  bool ended_ = false, paused_ = false;
  std::string reason_;
  int event_;
  std::unique_ptr<net::Loop> loop_;
  net::WebSocketPtr socket_;
};

}  // namespace

std::string exec_target(const ExecRequest& request) {
  std::string target = path_of("clusters", request.cluster) + "/exec?";
  for (const auto& word : request.argv) target += "argv=" + escape_url(word) + "&";
  if (request.tty) target += fmt::format("tty=1&rows={}&cols={}&", request.rows, request.cols);
  if (!request.slot.empty()) target += "slot=" + escape_url(request.slot) + "&";
  target.pop_back();
  return target;
}

Result<std::unique_ptr<Channel>> Channel::open(const Account& account, const std::string& target) {
  auto channel = std::make_unique<NetChannel>();
  TRY_VOID(channel->dial(account, target));
  return std::unique_ptr<Channel>(std::move(channel));
}

std::optional<Exit> parse_exit(std::string_view bytes) {
  if (bytes.size() < 4) return {};
  std::uint32_t code = 0;
  for (int i = 0; i < 4; ++i) code = code << 8 | static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]);
  return Exit{static_cast<std::int32_t>(code), clean(bytes.substr(4))};
}

}  // namespace muster::cli
