#pragma once
// Second factors of local accounts: the secret of an authenticator app (crypto/totp.h) and recovery codes, of which
// only hashes are kept. They lie sealed in the side table "totp", by account, not in the journal. Every check reads the
// row and writes what it used up before it answers, so a code counts once, whatever else happens; another process may
// take a row away (`musterd totp-reset`). What cannot be opened refuses. Thread-safe; blocks on the store.
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "base/time.h"
#include "journal/store.h"
#include "server/side_seal.h"

namespace muster::server {

inline constexpr std::size_t kRecoveryCodes = 10;
inline constexpr Millis kEnrolWithin{15 * 60'000};
inline constexpr std::uint32_t kEnrolTries = 10;

class SecondFactors {
 public:
  SecondFactors(const crypto::Secret32& secret, std::shared_ptr<journal::Store> store);
  // Who has one, from the store: at start, and before it is shown, for `musterd totp-reset` changes it too.
  Status load();

  // A new secret, which counts once a code of it came within kEnrolWithin. FailedPrecondition: there is a factor.
  Result<Bytes> enrol(PrincipalId who, WallTime now);
  // Recovery codes, told this once. Errors name the field "code".
  Result<std::vector<std::string>> confirm(PrincipalId who, const std::string& code, WallTime now);
  enum class Verdict : std::uint8_t { NotNeeded, Right, Wrong };
  Result<Verdict> check(PrincipalId who, const std::string& code, WallTime now);
  Status remove(PrincipalId who);
  static Status reset(journal::Store& store, PrincipalId who);  // from another process

  struct Info {
    WallTime since;
    std::size_t recovery_codes = 0;  // left
  };
  Result<std::optional<Info>> find(PrincipalId who);
  // From memory, for lists: what another process took away is noticed at the account's next find or check.
  bool holds(PrincipalId who) const;

 private:
  struct Row {
    Bytes secret;
    WallTime since;  // of the enrolment while it is pending, then of its confirmation
    bool confirmed = false;
    std::uint32_t tries = 0;         // wrong codes while it is pending
    std::uint64_t used = 0;          // the newest step of which a code was taken
    std::set<std::string> recovery;  // SHA-256, hex
  };
  void note(PrincipalId who, bool confirmed);
  Result<std::optional<Row>> read(PrincipalId who);
  Status write(PrincipalId who, const Row& row);
  static std::string text_of(const Row& row);
  static std::optional<Row> row_of(const std::string& text);

  const SideSeal seal_;
  const std::shared_ptr<journal::Store> store_;
  std::mutex mutex_;  // held while the store is read and written
  mutable std::mutex confirmed_mutex_;
  std::set<PrincipalId> confirmed_;
};

}  // namespace muster::server
