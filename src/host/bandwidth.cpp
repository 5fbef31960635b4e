#include "host/bandwidth.h"

#include <sys/stat.h>

#include <fstream>

#include "base/log.h"

namespace muster::host {

void Bandwidth::refresh() {
  if (file_.empty()) return;
  struct stat info {};
  if (stat(file_.c_str(), &info) != 0) return;  // not written yet: no cap was ever asked for
  const std::int64_t changed = std::int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
  if (changed == seen_ns_) return;
  std::ifstream file(file_);
  std::int64_t sent = 0, received = 0;
  if (!(file >> sent >> received) || sent < 0 || received < 0) return;
  seen_ns_ = changed;
  std::int64_t carries = 0, carry_s = 0, carry_month = 0;
  if (!(file >> carries >> carry_s >> carry_month) || carry_s < 0 || carry_month < 0) carries = 0;
  carry.set(carries == 1, carry_s, carry_month);
  std::int64_t tested = 0, test_s = 0, test_month = 0;  // not there: an older privd wrote it
  if (!(file >> tested >> test_s >> test_month) || test_s < 0 || test_month < 0) tested = 0;
  tests.set(tested == 1, test_s, test_month);
  if (up.rate() == sent && down.rate() == received) return;
  up.set_rate(sent);
  up_control.set_rate(sent / 5 * 4);
  down.set_rate(received);
  log_info("netd", "the owner's cap: {} bytes/s up, {} bytes/s down (0 = none)", sent, received);
}

}  // namespace muster::host
