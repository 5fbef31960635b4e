#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <condition_variable>
#include <deque>
#include <thread>

#include "base/log.h"
#include "net/dial.h"
#include "net/websocket.h"

namespace muster::net {
namespace {

constexpr std::size_t kDiallersMax = 8;
constexpr std::size_t kDialsWaitingMax = 1024;
constexpr Millis kDialTime{20'000};
constexpr Millis kStopTime{3000};

// Dialling resolves names, speaks to proxies and shakes hands: blocking, on a few threads of its own that come on
// demand.
class LoopImpl final : public Loop {
 public:
  explicit LoopImpl(int threads)
      : registry_(std::make_shared<Registry>(100'000, 100'000)), work_(asio::make_work_guard(*io_)) {
    for (int i = 0; i < std::max(threads, 1); ++i) {
      threads_.emplace_back([this] {
        while (true) {
          try {
            io_->run();
            return;
          } catch (const std::exception& e) {
            log_error("net", "a callback failed: {}", e.what());
          }
        }
      });
    }
  }
  ~LoopImpl() override { stop(); }

  void post(std::function<void()> f) override { asio::post(*io_, std::move(f)); }
  void after(Millis delay, std::function<void()> f) override {
    auto timer = std::make_shared<asio::steady_timer>(*io_, delay);
    timer->async_wait([timer, f = std::move(f)](ErrorCode ec) {
      if (!ec) f();
    });
  }

  void dial_websocket(Endpoint endpoint, std::string target, std::map<std::string, std::string> headers,
                      std::function<void(Result<WebSocketPtr>)> done) override {
    std::unique_lock lock(mutex_);
    if (stopped_ || jobs_.size() >= kDialsWaitingMax) {
      lock.unlock();
      return post([done = std::move(done)] {
        done(error(Code::ResourceExhausted, "too many connections are being opened at once; try again"));
      });
    }
    jobs_.push_back({std::move(endpoint), std::move(target), std::move(headers), std::move(done)});
    if (idle_ == 0 && diallers_.size() < kDiallersMax) diallers_.emplace_back([this] { dial_jobs(); });
    lock.unlock();
    wake_.notify_one();
  }

  void stop() override {
    {
      const std::lock_guard lock(mutex_);
      if (std::exchange(stopped_, true)) return;
      jobs_.clear();
    }
    wake_.notify_all();
    for (auto& thread : diallers_) thread.join();
    const Deadline deadline = deadline_in(kStopTime);
    do {
      registry_->abort_all();
      std::this_thread::sleep_for(Millis(2));
    } while (registry_->size() > 0 && std::chrono::steady_clock::now() < deadline);
    work_.reset();
    io_->stop();
    bool own = false;
    for (auto& thread : threads_) {
      if (thread.get_id() == std::this_thread::get_id())
        thread.detach(), own = true;
      else
        thread.join();
    }
    threads_.clear();
    if (own) return;
    // What is ready yet and was not run holds connections, and they hold this queue: nobody would ever free either.
    io_->restart();
    for (int i = 0; i < 1'000 && io_->poll() > 0; ++i) {
    }
  }

 private:
  struct Job {
    Endpoint endpoint;
    std::string target;
    std::map<std::string, std::string> headers;
    std::function<void(Result<WebSocketPtr>)> done;
  };

  void dial_jobs() {
    while (true) {
      Job job;
      {
        std::unique_lock lock(mutex_);
        ++idle_;
        wake_.wait(lock, [this] { return stopped_ || !jobs_.empty(); });
        --idle_;
        if (stopped_) return;
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      auto dialled = dial(job.endpoint, "http/1.1", deadline_in(kDialTime));
      if (!dialled.ok()) {
        post([done = std::move(job.done), e = dialled.error()] { done(e); });
        continue;
      }
      open(std::move(job), std::move(*dialled));
    }
  }

  void open(Job job, Dialled dialled) {
    tcp::socket socket(asio::make_strand(*io_));
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    ErrorCode ec;
    if (::getpeername(dialled.fd.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0) {
      socket.assign(address.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), dialled.fd.get(), ec);
    } else {
      ec = make_error_code(asio::error::not_connected);
    }
    auto guard = registry_->enter("");
    if (ec || !guard)
      return post([done = std::move(job.done)] {
        done(error(Code::Unavailable, "the connection was lost while it was opened"));
      });
    (void)dialled.fd.release();
    const auto executor = socket.get_executor();
    const std::string peer = job.endpoint.host + ":" + std::to_string(job.endpoint.port);
    auto stream = std::make_shared<TlsStream>(std::move(socket), std::move(dialled.ssl));
    asio::post(executor, [stream, peer, keep = io_, guard = std::move(guard), job = std::move(job)]() mutable {
      WebSocketOptions options;
      options.peer = peer;
      options.idle_timeout = Millis(60'000);
      options.guard = std::move(guard);
      options.keep = keep;
      connect_websocket(std::move(*stream), peer, job.target, job.headers, std::move(options), std::move(job.done));
    });
  }

  const std::shared_ptr<asio::io_context> io_ = std::make_shared<asio::io_context>();
  std::shared_ptr<Registry> registry_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::thread> threads_, diallers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<Job> jobs_;
  std::size_t idle_ = 0;
  bool stopped_ = false;
};

}  // namespace

std::unique_ptr<Loop> Loop::create(int threads) {
  return std::make_unique<LoopImpl>(threads);
}

}  // namespace muster::net
