#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <thread>

#include "base/log.h"
#include "net/handoff.h"
#include "net/http_connection.h"

namespace muster::net {
namespace {

constexpr Millis kGraceTime{3000};

class ServerImpl;

// One listening socket of our own.
class Listener : public std::enable_shared_from_this<Listener> {
 public:
  Listener(ServerImpl& server, asio::io_context& io)
      : server_(server), acceptor_(asio::make_strand(io)), pause_(acceptor_.get_executor()) {}
  Result<std::uint16_t> open(const std::string& address, std::uint16_t port);
  void accept();
  void close() {
    asio::post(acceptor_.get_executor(), [self = shared_from_this()] {
      ErrorCode ignored;
      self->acceptor_.close(ignored);
      self->pause_.cancel();
    });
  }

 private:
  ServerImpl& server_;
  tcp::acceptor acceptor_;
  asio::steady_timer pause_;
};

// The connection to muster-relay's handoff socket.
class Adopter : public std::enable_shared_from_this<Adopter> {
 public:
  Adopter(ServerImpl& server, asio::io_context& io, std::string path)
      : server_(server), path_(std::move(path)), socket_(asio::make_strand(io)), pause_(socket_.get_executor()) {}
  void start() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] { self->connect(); });
  }
  void close() {
    asio::post(socket_.get_executor(), [self = shared_from_this()] {
      self->stopped_ = true;
      self->take();  // what was handed over already is ours to close
      ErrorCode ignored;
      self->socket_.close(ignored);
      self->pause_.cancel();
    });
  }

 private:
  void connect();
  void wait();
  void take();
  void retry();

  ServerImpl& server_;
  const std::string path_;
  asio::posix::stream_descriptor socket_;
  asio::steady_timer pause_;
  Millis back_off_{100};
  bool stopped_ = false, told_ = false;
};

class ServerImpl final : public Server {
 public:
  ServerImpl(ServerHandlers handlers, Limits limits)
      : registry_(std::make_shared<Registry>(limits.connections, limits.connections_per_address)),
        context_(std::make_shared<ServerContext>(ServerContext{std::move(handlers), limits, io_})),
        work_(asio::make_work_guard(*io_)) {}
  ~ServerImpl() override { stop(); }

  void run(int threads) {
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

  Result<std::uint16_t> listen(const std::string& address, std::uint16_t port) override {
    auto listener = std::make_shared<Listener>(*this, *io_);
    const std::uint16_t bound = TRY(listener->open(address, port));
    const std::lock_guard lock(mutex_);
    listeners_.push_back(std::move(listener));
    return bound;
  }

  Status adopt_from(const std::string& unix_socket) override {
    if (unix_socket.empty() || unix_socket.size() > 107)
      return error(Code::InvalidArgument, "the handoff path must have 1 to 107 characters");
    auto adopter = std::make_shared<Adopter>(*this, *io_, unix_socket);
    adopter->start();
    const std::lock_guard lock(mutex_);
    adopters_.push_back(std::move(adopter));
    return {};
  }

  Status reload_tls(TlsFiles files) override { return context_->doors->set_own(files); }
  Status set_public_tls(const std::set<std::string>& names, TlsFiles files) override {
    return context_->doors->set_public(names, files);
  }
  Status set_name_proof(const std::string& name, TlsFiles files) override {
    return context_->doors->set_proof(name, files);
  }

  void stop() override {
    if (stopped_.exchange(true)) return;
    {
      const std::lock_guard lock(mutex_);
      for (auto& listener : listeners_) listener->close();
      for (auto& adopter : adopters_) adopter->close();
    }
    const Deadline deadline = deadline_in(kGraceTime);
    do {
      registry_->abort_all();
      std::this_thread::sleep_for(Millis(5));
    } while (registry_->size() > 0 && std::chrono::steady_clock::now() < deadline);
    work_.reset();
    while (!io_->stopped() && std::chrono::steady_clock::now() < deadline) std::this_thread::sleep_for(Millis(2));
    io_->stop();
    for (auto& thread : threads_) {
      if (thread.get_id() == std::this_thread::get_id())
        thread.detach();
      else
        thread.join();
    }
    threads_.clear();
  }

  void serve(tcp::socket socket) {
    ErrorCode ec;
    const auto remote = socket.remote_endpoint(ec);
    if (ec || stopped_) return;
    const std::string address = remote.address().to_string();
    auto guard = registry_->enter(address);
    if (!guard) {
      if (refused_++ % 1000 == 0) log_warn("net", "too many connections: one from {} is closed", address);
      return;
    }
    set_socket_options(socket.native_handle());
    socket.native_non_blocking(true, ec);
    const std::string shown = remote.address().is_v6() ? "[" + address + "]" : address;
    serve_connection(context_, std::move(socket), context_->doors->context(),
                     shown + ":" + std::to_string(remote.port()), std::move(guard));
  }

  void serve_fd(Fd fd) {
    sockaddr_storage address{};
    socklen_t size = sizeof address;
    if (!fd || ::getpeername(fd.get(), reinterpret_cast<sockaddr*>(&address), &size) != 0) return;
    tcp::socket socket(asio::make_strand(*io_));
    ErrorCode ec;
    socket.assign(address.ss_family == AF_INET6 ? tcp::v6() : tcp::v4(), fd.get(), ec);
    if (ec) return;
    (void)fd.release();
    serve(std::move(socket));
  }

  asio::io_context& io() { return *io_; }

 private:
  const std::shared_ptr<asio::io_context> io_ = std::make_shared<asio::io_context>();
  std::mutex mutex_;
  std::shared_ptr<Registry> registry_;
  std::shared_ptr<const ServerContext> context_;
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::vector<std::shared_ptr<Listener>> listeners_;
  std::vector<std::shared_ptr<Adopter>> adopters_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopped_{false};
  std::atomic<std::uint64_t> refused_{0};
};

Result<std::uint16_t> Listener::open(const std::string& address, std::uint16_t port) {
  ErrorCode ec;
  const auto ip = asio::ip::make_address(address, ec);
  if (ec) return error(Code::InvalidArgument, "'" + address + "' is not an IP address to listen on");
  const tcp::endpoint endpoint(ip, port);
  acceptor_.open(endpoint.protocol(), ec);
  if (!ec) acceptor_.set_option(tcp::acceptor::reuse_address(true), ec);
  if (!ec) acceptor_.bind(endpoint, ec);
  if (!ec) acceptor_.listen(1024, ec);
  if (ec)
    return error(Code::Unavailable, "cannot listen on " + address + ":" + std::to_string(port) + ": " + ec.message());
  asio::post(acceptor_.get_executor(), [self = shared_from_this()] { self->accept(); });
  return acceptor_.local_endpoint(ec).port();
}

void Listener::accept() {
  if (!acceptor_.is_open()) return;
  acceptor_.async_accept(asio::make_strand(server_.io()),
                         [self = shared_from_this()](ErrorCode ec, tcp::socket socket) {
                           if (ec == asio::error::operation_aborted || !self->acceptor_.is_open()) return;
                           if (!ec) {
                             self->server_.serve(std::move(socket));
                             return self->accept();
                           }
                           // Out of descriptors: the queue of the kernel holds them while we wait.
                           self->pause_.expires_after(Millis(100));
                           self->pause_.async_wait([self](ErrorCode) { self->accept(); });
                         });
}

void Adopter::connect() {
  if (stopped_) return;
  auto fd = connect_unix(path_);
  if (!fd.ok()) {
    if (!std::exchange(told_, true))
      log_warn("net", "muster-relay is not there yet ({}); trying on", fd.error().message);
    return retry();
  }
  ErrorCode ec;
  socket_.assign(fd->get(), ec);
  if (ec) return retry();
  (void)fd->release();
  log_info("net", "taking connections from muster-relay at {}", path_);
  told_ = false;
  back_off_ = Millis(100);
  wait();
}

void Adopter::wait() {
  socket_.async_wait(asio::posix::stream_descriptor::wait_read, [self = shared_from_this()](ErrorCode ec) {
    if (ec || self->stopped_) return;
    self->take();
  });
}

void Adopter::take() {
  while (socket_.is_open()) {
    auto fd = receive_descriptor(socket_.native_handle());
    if (!fd.ok()) {
      ErrorCode ignored;
      socket_.close(ignored);
      if (!stopped_) {
        log_warn("net", "muster-relay went away; reconnecting");
        retry();
      }
      return;
    }
    if (!fd->has_value()) break;
    if (::send(socket_.native_handle(), &kHandoffAck, 1, MSG_NOSIGNAL | MSG_DONTWAIT) != 1)
      continue;  // it keeps its copy
    server_.serve_fd(std::move(**fd));
  }
  if (!stopped_) wait();
}

void Adopter::retry() {
  pause_.expires_after(back_off_);
  back_off_ = std::min(back_off_ * 2, Millis(1000));
  pause_.async_wait([self = shared_from_this()](ErrorCode ec) {
    if (!ec) self->connect();
  });
}

}  // namespace

Result<std::unique_ptr<Server>> Server::create(ServerHandlers handlers, TlsFiles tls, Limits limits, int threads) {
  auto server = std::make_unique<ServerImpl>(std::move(handlers), limits);
  TRY_VOID(server->reload_tls(std::move(tls)));
  server->run(threads);
  return std::unique_ptr<Server>(std::move(server));
}

}  // namespace muster::net
