// musterd: parse, compose, run. The store is chosen here; everything else lives in server/.
#include <cstdio>

#include "server/commands.h"
#include "store/reseal.h"
#include "store/sealed_store.h"
#include "store/sqlite_addresses.h"
#include "store/sqlite_store.h"

int main(int count, char** values) {
  using namespace muster;
  const auto arguments = server::parse_arguments(count, values);
  if (!arguments.ok()) {
    std::fprintf(stderr, "musterd: %s\n%s", arguments.error().message.c_str(), server::kUsage);
    return 2;
  }
  if (arguments->words.empty() || arguments->options.contains("--help")) {
    std::fputs(server::kUsage, arguments->words.empty() && !arguments->options.contains("--help") ? stderr : stdout);
    return arguments->options.contains("--help") ? 0 : 2;
  }
  const server::OpenStore open = [](const std::string& path,
                                    std::shared_ptr<crypto::KeyRing> ring) -> Result<std::shared_ptr<journal::Store>> {
    store::SqliteStore::Options options;
    options.path = path;
    std::shared_ptr<journal::Store> plain = TRY(store::SqliteStore::open(std::move(options)));
    if (!ring) return plain;
    return std::shared_ptr<journal::Store>(std::make_shared<store::SealedStore>(std::move(plain), std::move(ring)));
  };
  const server::CopyStore copy = [](const std::string& from, const std::string& to) -> Status {
    store::SqliteStore::Options options;
    options.path = from;
    return TRY(store::SqliteStore::open(std::move(options)))->backup(to);
  };
  const server::OpenAddresses open_addresses =
      [](const std::string& path,
         std::shared_ptr<crypto::KeyRing> ring) -> Result<std::shared_ptr<journal::AddressBook>> {
    std::shared_ptr<journal::AddressBook> plain = TRY(store::SqliteAddresses::open(path));
    if (!ring) return plain;
    return std::shared_ptr<journal::AddressBook>(
        std::make_shared<store::SealedAddresses>(std::move(plain), std::move(ring)));
  };
  const server::ResealRows reseal = [](const std::string& journal, const std::string& addresses, crypto::KeyRing& ring,
                                       server::PlainRows plain) -> Result<std::uint64_t> {
    const auto how = plain == server::PlainRows::Sealed ? store::Plain::Sealed : store::Plain::Refused;
    const auto rows = TRY(store::reseal_journal(journal, ring, how));
    return rows + TRY(store::reseal_addresses(addresses, ring, how));
  };
  const std::string& command = arguments->words.front();
  if (command == "init") return server::cmd_init(*arguments, open);
  if (command == "serve") return server::cmd_serve(*arguments, open, open_addresses);
  if (command == "passwd") return server::cmd_passwd(*arguments, open);
  if (command == "totp-reset") return server::cmd_totp_reset(*arguments, open);
  if (command == "sso-forget") return server::cmd_sso_forget(*arguments, open);
  if (command == "journal") return server::cmd_journal(*arguments, open);
  if (command == "audit") return server::cmd_audit(*arguments, open_addresses);
  if (command == "relay") return server::cmd_relay(*arguments);
  if (command == "signer") return server::cmd_signer(*arguments);
  if (command == "ca") return server::cmd_ca(*arguments);
  if (command == "keys") return server::cmd_keys(*arguments);
  if (command == "at-rest") return server::cmd_at_rest(*arguments, reseal);
  if (command == "backup") return server::cmd_backup(*arguments, copy);
  if (command == "restore") return server::cmd_restore(*arguments, open);
  std::fprintf(stderr, "musterd: unknown command %s\n%s", command.c_str(), server::kUsage);
  return 2;
}
