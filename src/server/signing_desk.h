#pragma once
// The signing keys of one folder and the policy of what they sign: for each kind what it may say, how long it may hold
// and how often it may be asked. A line in DIR/signer.log for everything that was asked, signed or refused; where the
// line cannot be written nothing is signed. One key signs one kind. Thread-safe.
#include <array>
#include <fstream>
#include <functional>
#include <memory>
#include <mutex>

#include "crypto/sign.h"
#include "server/access_keys.h"
#include "server/identity.h"
#include "server/relay_book.h"
#include "server/signer.h"
#include "server/signing_keys.h"

namespace muster::server {

inline constexpr Millis kServerLifetime{90LL * 86'400'000};  // of the certificates of musterd and its relay

class SigningDesk final : public Signer {
 public:
  static constexpr Millis kDeviceLifetimeMax{7LL * 86'400'000}, kRelayTokenMax{12LL * 3'600'000};
  // How many of a kind at once, and how many a minute from then on.
  struct Rate {
    std::uint64_t burst = 0, a_minute = 0;
  };
  struct Options {
    std::array<Rate, kSignOps + 1> rates = default_rates();
    std::uint64_t log_bytes_max = 64 << 20;  // then it becomes signer.log.1
    std::function<WallTime()> wall = [] { return read_clocks().wall; };
  };
  static std::array<Rate, kSignOps + 1> default_rates();
  static Result<std::unique_ptr<SigningDesk>> open(const DataDir& dir, Options options);
  static Result<std::unique_ptr<SigningDesk>> open(const DataDir& dir) { return open(dir, Options()); }
  Result<Fields> ask(SignOp op, const Fields& fields) override { return ask_as("here", op, fields); }
  // who: for the log, such as "uid 990 pid 4711".
  Result<Fields> ask_as(const std::string& who, SignOp op, const Fields& fields);

 private:
  struct Keys {
    KeySet own;
    AccessKeySet access, workload;
    CaSet cas;
    crypto::MachineProver prover;  // with the CA in use
    std::string ca;                // its id
    std::string server_id;
    std::vector<std::string> sans;
  };
  struct Asked {
    std::string about, key;  // for the log
    Fields answer;
  };
  SigningDesk(DataDir dir, Options options) : dir_(std::move(dir)), options_(std::move(options)) {}
  Status load();
  Status within_rate(SignOp op);
  Status write_line(const std::string& line);
  Status perform(SignOp op, const Fields& fields, Asked& out);
  Status note_behind(SignOp op, const Fields& fields);
  Status sign_device(const Fields& fields, Asked& out);
  Status sign_server(const Fields& fields, Asked& out);
  Status sign_proof(const Fields& fields, Asked& out);
  Status sign_roster(const Fields& fields, Asked& out);
  Status sign_order(const Fields& fields, Asked& out);
  Status sign_relay_token(const Fields& fields, Asked& out);
  Status sign_head_of(const Fields& fields, Asked& out);
  Status sign_access(const Fields& fields, Asked& out);
  Status tell_access_keys(const Fields& fields, Asked& out);
  Status sign_workload(const Fields& fields, Asked& out);
  Status tell_workload_keys(const Fields& fields, Asked& out);
  void note_incarnation(std::uint64_t incarnation);

  const DataDir dir_;
  const Options options_;
  std::mutex mutex_;
  std::shared_ptr<Keys> keys_;
  std::unique_ptr<RelayBook> relays_;  // of this folder: tokens are for those
  struct Left {
    std::uint64_t thousandths = 0;
    LeaseTime at{0};
  };
  std::array<Left, kSignOps + 1> left_;
  std::ofstream log_;
  std::uint64_t incarnation_ = 0, head_seq_ = 0;  // the newest that was signed for: nothing older is signed again
};

}  // namespace muster::server
