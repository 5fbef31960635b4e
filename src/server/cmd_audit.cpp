// audit erase: client addresses, by actor or by age. audit rotate: another key signs heads from now on.
#include <fmt/format.h>

#include <charconv>
#include <cstdio>
#include <filesystem>

#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"
#include "server/journal_head.h"

namespace muster::server {
namespace {

Result<std::size_t> erase(const Arguments& arguments, const DataDir& dir, const OpenAddresses& open) {
  const std::string actor = arguments.option("--actor"), age = arguments.option("--older-than");
  if (actor.empty() == age.empty())
    return error(Code::InvalidArgument,
                 "say whose addresses go (--actor usr-3, node-7 or nobody) or from what age on (--older-than DAYS)");
  const auto book = TRY(open(dir.addresses(), ring_of(dir)));
  if (!actor.empty()) return book->erase_actor(actor);
  int days = 0;
  const auto [end, fault] = std::from_chars(age.data(), age.data() + age.size(), days);
  if (fault != std::errc() || end != age.data() + age.size() || days < 0 || days > 36'500)
    return error(Code::InvalidArgument, "--older-than must be a whole number of days; 0 erases all");
  return book->erase_before(read_clocks().wall - Millis(86'400'000) * days);
}

}  // namespace

int cmd_audit(const Arguments& arguments, const OpenAddresses& open) {
  const std::string what = arguments.words.size() == 2 ? arguments.words[1] : "";
  const std::string root = arguments.option("--data");
  if (root.empty() || (what != "erase" && what != "rotate")) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  Status done;
  const auto opened = open_data_dir(arguments);
  const DataDir dir = opened.ok() ? *opened : DataDir{root};
  if (!opened.ok()) {
    done = opened.error();
  } else if (!holds_platform(dir)) {
    done = error(Code::NotFound, fmt::format("{} holds no control plane", dir.root));
  } else if (what == "rotate") {
    const auto made = rotate_audit_key(dir);
    if (!made.ok())
      done = made.error();
    else
      fmt::print("Heads are signed by the key {} from now on. Give auditors {}; heads of the old key stay valid.\n",
                 *made, dir.key("audit-" + *made + ".pub"));
  } else {
    const auto gone = erase(arguments, dir, open);
    if (!gone.ok())
      done = gone.error();
    else
      fmt::print("{} addresses are erased.\n", *gone);
  }
  if (done.ok()) return 0;
  fmt::print(stderr, "musterd audit: {}\n", done.error().message);
  return 1;
}

}  // namespace muster::server
