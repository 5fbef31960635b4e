#pragma once
// A SigningDesk behind a unix socket, and who asks it there. A message is a length (u32, big endian), a byte (the
// operation; in answers 0 done, 1 refused) and byte strings, each behind its length. The kernel says who connected
// (SO_PEERCRED): only users that are named may ask, and what others send is not read. SignerLink keeps a few
// connections, makes others while the signer is started anew, and fails after some seconds. Thread-safe.
#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "server/signer.h"
#include "server/signing_desk.h"

namespace muster::server {

inline constexpr std::size_t kSignMessageMax = 16 << 20;

// Listens at the path (replacing a socket that is left over), or in the abstract namespace where the name begins with
// '@'.
Result<int> listen_for_signer(const std::string& socket);

class SignerService {
 public:
  // Takes the listening descriptor. users: who may ask.
  SignerService(SigningDesk& desk, int listener, std::set<uid_t> users);
  ~SignerService();
  SignerService(const SignerService&) = delete;
  SignerService& operator=(const SignerService&) = delete;

 private:
  void accept_all();
  void serve(int fd, const std::string& who);

  SigningDesk& desk_;
  const int listener_;
  const std::set<uid_t> users_;
  std::atomic<bool> stopping_ = false;
  std::mutex mutex_;
  std::set<int> open_;
  struct Worker {
    std::thread thread;
    std::shared_ptr<std::atomic<bool>> done = std::make_shared<std::atomic<bool>>(false);
  };
  std::vector<Worker> workers_;
  std::thread acceptor_;
};

class SignerLink final : public Signer {
 public:
  explicit SignerLink(std::string socket, Millis patience = Millis(10'000))
      : socket_(std::move(socket)), patience_(patience) {}
  ~SignerLink() override;
  Result<Fields> ask(SignOp op, const Fields& fields) override;

 private:
  Result<Fields> try_once(int fd, SignOp op, const Fields& fields);

  const std::string socket_;
  const Millis patience_;
  std::mutex mutex_;
  std::vector<int> idle_;
};

// A signer as a child of this process, with the keys in dir; started again when it ends. Its socket has no name in the
// file system and takes this user only.
class SignerChild {
 public:
  static Result<std::unique_ptr<SignerChild>> start(const DataDir& dir);
  ~SignerChild();
  const std::string& socket() const { return socket_; }
  pid_t pid() const { return pid_; }

 private:
  SignerChild() = default;
  Status launch();
  void watch();

  std::vector<std::string> words_;
  std::string socket_;
  int listener_ = -1;
  std::atomic<pid_t> pid_ = -1;
  std::atomic<bool> stopping_ = false;
  std::thread watcher_;
};

}  // namespace muster::server
