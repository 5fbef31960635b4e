// musterd serve on a disk that loses power: the same server, engine and store, on the VFS that remembers what was not
// synced. MUSTER_KILL_AT=N: at the N-th write, truncate or sync of a journal file the disk is left as a power loss
// could leave it (MUSTER_LOSS=all|subset|torn: what becomes of unsynced bytes) and the process gets SIGKILL. On a clean
// end it prints how many such operations there were.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "server/commands.h"
#include "store/fault_vfs.h"
#include "store/sqlite_store.h"

namespace {

const char* setting(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

}  // namespace

int main(int count, char** values) {
  using namespace muster;
  const auto arguments = server::parse_arguments(count, values);
  if (arguments.ok() && arguments->words == std::vector<std::string>{"signer"}) return server::cmd_signer(*arguments);
  if (!arguments.ok() || arguments->words != std::vector<std::string>{"serve"}) {
    std::fprintf(stderr, "usage: MUSTER_KILL_AT=N MUSTER_LOSS=all|subset|torn musterd-faulty serve --data DIR ...\n");
    return 2;
  }
  const char* loss = setting("MUSTER_LOSS", "all");
  store::FaultVfs& disk = store::FaultVfs::instance();
  disk.kill_at(std::strtoull(setting("MUSTER_KILL_AT", "0"), nullptr, 10),
               std::strcmp(loss, "torn") == 0     ? store::Loss::Torn
               : std::strcmp(loss, "subset") == 0 ? store::Loss::Subset
                                                  : store::Loss::All);
  const server::OpenStore open =
      [](const std::string& path, const std::shared_ptr<crypto::KeyRing>&) -> Result<std::shared_ptr<journal::Store>> {
    store::SqliteStore::Options options;
    options.path = path;
    options.vfs = store::FaultVfs::kName;
    return std::shared_ptr<journal::Store>(TRY(store::SqliteStore::open(std::move(options))));
  };
  const int rc = server::cmd_serve(*arguments, open, {});
  std::printf("operations %llu\n", static_cast<unsigned long long>(disk.operations()));
  return rc;
}
