#pragma once
// For tests: answers privd's language on a socket, as the test's function says. The function runs on the server's own
// thread. Descriptors of an answer are the client's once sent.
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <thread>

#include "host/privd_verbs.h"

namespace muster::host::lab {

class VerbServer {
 public:
  using Handler = std::function<Result<Answer>(const Verb&)>;
  VerbServer(const std::string& path, Handler handler)
      : handler_(std::move(handler)),
        listener_(std::move(*listen_unix(path, SocketKind::Seqpacket, ::geteuid(), ::getegid(), 0600))) {
    EXPECT_TRUE(set_blocking(listener_.get(), false).ok());
    thread_ = std::thread([this] { serve(); });
  }
  ~VerbServer() {
    stop_ = true;
    thread_.join();
  }

 private:
  void serve() {
    std::vector<Fd> clients;
    while (!stop_) {
      std::this_thread::sleep_for(Millis(2));
      if (Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)); fd)
        clients.push_back(std::move(fd));
      for (Fd& client : clients) {
        const auto message = client ? receive_message(client.get()) : Result<Message>(error(Code::NotFound, "closed"));
        if (!message.ok()) continue;
        const auto verb = parse_verb(message->text);
        if (!verb.ok()) {
          client.reset();
          continue;
        }
        const Result<Answer> answer = handler_(*verb);
        std::vector<int> fds;
        if (answer.ok()) {
          for (const Fd& fd : answer->fds) fds.push_back(fd.get());
        }
        (void)send_message(client.get(), answer_text(verb->id, answer), fds).ok();
      }
    }
  }
  Handler handler_;
  Fd listener_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace muster::host::lab
