// Backup file: "MUSTERB1", then for every file u32 name length, u64 size (little endian), name, bytes; closed by the
// SHA-256 of everything before. It holds all keys: mode 0600, keep it as you keep them. Logs and blobs are not in it.
// Of a folder that is encrypted at rest keys and journal are in it as they lie there, sealed, with the wrapped data
// keys.
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <vector>

#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/secret.h"
#include "engine/runner.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"

namespace muster::server {
namespace {

constexpr std::string_view kMagic = "MUSTERB1";
constexpr std::size_t kBlock = 1 << 20;
namespace fs = std::filesystem;

class Writer {
 public:
  explicit Writer(const std::string& path)
      : path_(path), fd_(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) {}
  Writer(const Writer&) = delete;
  Writer& operator=(const Writer&) = delete;
  ~Writer() {
    if (fd_ >= 0) ::close(fd_);
  }
  Status put(ByteView data, bool hashed = true) {
    if (fd_ < 0)
      return error(Code::Unavailable,
                   fmt::format("{} cannot be made; it must not exist yet and its directory must be writable", path_));
    if (hashed) hash_.update(data);
    while (!data.empty()) {
      const ssize_t n = ::write(fd_, data.data(), data.size());
      if (n <= 0) return error(Code::Unavailable, fmt::format("{} cannot be written; is the disk full?", path_));
      data = data.subspan(static_cast<std::size_t>(n));
    }
    return {};
  }
  Status number(std::uint64_t value, int bytes) {
    Bytes out;
    for (int i = 0; i < bytes; ++i) out.push_back(static_cast<std::uint8_t>(value >> (8 * i)));
    return put(out);
  }
  Status file(const std::string& name, const std::string& from) {
    std::ifstream in(from, std::ios::binary);
    std::error_code fault;
    const std::uint64_t size = fs::file_size(from, fault);
    if (!in || fault) return error(Code::Unavailable, fmt::format("{} cannot be read", from));
    TRY_VOID(number(name.size(), 4));
    TRY_VOID(number(size, 8));
    TRY_VOID(put(as_bytes(name)));
    std::vector<char> block(kBlock);
    for (std::uint64_t left = size; left > 0;) {
      const auto n = static_cast<std::streamsize>(std::min<std::uint64_t>(left, block.size()));
      if (!in.read(block.data(), n)) return error(Code::Unavailable, fmt::format("{} changed while it was read", from));
      TRY_VOID(put(as_bytes({block.data(), static_cast<std::size_t>(n)})));
      left -= static_cast<std::uint64_t>(n);
    }
    return {};
  }
  Status end() {
    TRY_VOID(put(hash_.finish(), false));
    if (::fsync(fd_) != 0) return error(Code::Unavailable, fmt::format("{} cannot be synced", path_));
    return {};
  }

 private:
  std::string path_;
  int fd_;
  crypto::Sha256 hash_;
};

Status backup(const Arguments& arguments, const CopyStore& copy) {
  const DataDir dir{arguments.option("--data")};
  const std::string target = arguments.words[1], copied = dir.root + "/backup.tmp.db";
  if (!holds_platform(dir)) return error(Code::NotFound, fmt::format("{} holds no control plane", dir.root));
  // What is encrypted goes into the backup as it lies there: no key is needed, and none is in it.
  const auto lock = TRY(DirLock::shared(dir.root));
  const auto rest = crypto::read_secret_file(rest_path(dir.root));
  if (!rest.ok() && rest.error().code != Code::NotFound) return rest.error();
  if (rest.ok() && TRY(parse_rest_file(as_string(*rest))).state == RestState::Sealing)
    return error(Code::FailedPrecondition,
                 fmt::format("{} is encrypted only in part; call musterd at-rest init again first", dir.root));
  std::error_code ignored;
  fs::remove(copied, ignored);
  TRY_VOID(copy(dir.journal(), copied));
  Writer out(target);
  const auto write = [&]() -> Status {
    TRY_VOID(out.put(as_bytes(kMagic)));
    for (const auto& entry : fs::directory_iterator(dir.root + "/keys")) {
      if (entry.is_regular_file())
        TRY_VOID(out.file("keys/" + entry.path().filename().string(), entry.path().string()));
    }
    // The relay's key is in the clear, for muster-relay alone; where nothing may be it is made anew instead.
    if (rest.ok()) TRY_VOID(out.file("at-rest", rest_path(dir.root)));
    for (const auto& entry : fs::directory_iterator(dir.relay())) {
      if (entry.is_regular_file() && !rest.ok())
        TRY_VOID(out.file("relay/" + entry.path().filename().string(), entry.path().string()));
    }
    TRY_VOID(out.file("ca.pem", dir.root + "/ca.pem"));
    TRY_VOID(out.file("journal.db", copied));
    return out.end();
  };
  const Status written = write();
  fs::remove(copied, ignored);
  return written;
}

Result<std::uint64_t> number(std::istream& in, crypto::Sha256& hash, int bytes) {
  std::string raw(static_cast<std::size_t>(bytes), '\0');
  if (!in.read(raw.data(), bytes)) return error(Code::DataLoss, "the backup ends too early");
  hash.update(as_bytes(raw));
  std::uint64_t value = 0;
  for (int i = bytes - 1; i >= 0; --i)
    value = value << 8 | static_cast<unsigned char>(raw[static_cast<std::size_t>(i)]);
  return value;
}

bool safe_name(const std::string& name) {
  if (name == "ca.pem" || name == "journal.db" || name == "at-rest") return true;
  for (const char* prefix : {"keys/", "relay/"}) {
    if (name.starts_with(prefix) && name.size() > std::string_view(prefix).size() &&
        name.find('/', std::string_view(prefix).size()) == std::string::npos && name.find("..") == std::string::npos)
      return true;
  }
  return false;
}

// Unpacks into `root`; with an empty root only checks the digest. rest: gets what is in the file at-rest.
Status unpack(const std::string& path, const std::string& root, std::string& rest) {
  std::ifstream in(path, std::ios::binary);
  std::error_code fault;
  const std::uint64_t total = fs::file_size(path, fault);
  if (!in || fault || total < kMagic.size() + 32)
    return error(Code::NotFound, fmt::format("{} is no backup of Muster", path));
  crypto::Sha256 hash;
  std::string magic(kMagic.size(), '\0');
  in.read(magic.data(), static_cast<std::streamsize>(magic.size()));
  hash.update(as_bytes(magic));
  if (magic != kMagic) return error(Code::InvalidArgument, fmt::format("{} is no backup of Muster", path));
  std::vector<char> block(kBlock);
  while (static_cast<std::uint64_t>(in.tellg()) < total - 32) {
    const auto name_size = TRY(number(in, hash, 4));
    const auto size = TRY(number(in, hash, 8));
    if (name_size > 512 || size > total) return error(Code::DataLoss, "the backup is damaged");
    std::string name(name_size, '\0');
    in.read(name.data(), static_cast<std::streamsize>(name_size));
    hash.update(as_bytes(name));
    if (!safe_name(name)) return error(Code::DataLoss, "the backup holds a file that does not belong there");
    std::ofstream out;
    if (!root.empty()) {
      out.open(root + "/" + name, std::ios::binary | std::ios::trunc);
      ::chmod((root + "/" + name).c_str(), 0600);
    }
    for (std::uint64_t left = size; left > 0;) {
      const auto n = static_cast<std::streamsize>(std::min<std::uint64_t>(left, block.size()));
      if (!in.read(block.data(), n)) return error(Code::DataLoss, "the backup ends too early");
      hash.update(as_bytes({block.data(), static_cast<std::size_t>(n)}));
      if (name == "at-rest") rest.append(block.data(), static_cast<std::size_t>(n));
      if (!root.empty() && !out.write(block.data(), n))
        return error(Code::Unavailable, fmt::format("{}/{} cannot be written", root, name));
      left -= static_cast<std::uint64_t>(n);
    }
  }
  std::string stored(32, '\0');
  if (!in.read(stored.data(), 32) || !crypto::equal(as_bytes(stored), hash.finish()))
    return error(Code::DataLoss, "the backup is damaged: its digest does not match");
  return {};
}

Result<std::uint64_t> restore(const Arguments& arguments, const OpenStore& open) {
  DataDir dir{arguments.option("--data")};
  const std::string& file = arguments.words[1];
  if (holds_platform(dir) || fs::exists(dir.journal())) {
    return error(Code::AlreadyExists,
                 fmt::format("{} holds a control plane already; restore into an empty directory", dir.root));
  }
  std::string rest, again;
  TRY_VOID(unpack(file, "", rest));  // whole, undamaged and with the right key before anything is written
  const KeySource source = TRY(key_source(arguments));
  if (!rest.empty()) {
    auto keys = unwrap_rest_file(rest, source);
    if (!keys.ok()) return error(keys.error().code, fmt::format("{}: {}", file, keys.error().message));
    dir.at_rest = std::make_shared<const AtRest>(std::move(*keys));
  } else if (!source.none() && !source.credential) {
    return error(Code::FailedPrecondition,
                 fmt::format("{} is not encrypted: restore it without a key, then call musterd at-rest init", file));
  }
  std::error_code fault;
  for (const auto& path : {dir.root, dir.root + "/keys", dir.relay(), dir.logs(), dir.blobs()}) {
    fs::create_directories(path, fault);
    if (::chmod(path.c_str(), 0700) != 0)
      return error(Code::Unavailable, fmt::format("the directory {} cannot be made", path));
  }
  TRY_VOID(unpack(file, dir.root, again));
  engine::Runner::Options options;
  options.store = TRY(open(dir.journal(), ring_of(dir)));
  const auto runner = TRY(engine::Runner::start(std::move(options)));
  control::Actor actor;
  actor.system = true;
  const auto reply = TRY(runner->submit_wait(control::Lane::Operator,
                                             control::RaiseIncarnation{"restored from a backup"}, std::move(actor)));
  runner->wait_for(reply.seq, Millis(5000));
  std::uint64_t incarnation = 0;
  runner->read([&](const control::State& state, const scheduler::Scheduler&) { incarnation = state.incarnation; });
  return incarnation;
}

bool usable(const Arguments& arguments) {
  if (!arguments.option("--data").empty() && arguments.words.size() == 2) return true;
  std::fputs(kUsage, stderr);
  return false;
}

}  // namespace

int cmd_backup(const Arguments& arguments, const CopyStore& copy) {
  if (!usable(arguments)) return 2;
  const Status done = backup(arguments, copy);
  if (!done.ok()) {
    fmt::print(stderr, "musterd backup: {}\n", done.error().message);
    return 1;
  }
  fmt::print("{} holds the keys and the journal of {}; keep it as secret as the keys\n", arguments.words[1],
             arguments.option("--data"));
  return 0;
}

int cmd_restore(const Arguments& arguments, const OpenStore& open) {
  if (!usable(arguments)) return 2;
  const auto done = restore(arguments, open);
  if (!done.ok()) {
    fmt::print(stderr, "musterd restore: {}\n", done.error().message);
    return 1;
  }
  fmt::print("{} is restored as incarnation {}; start it with: musterd serve --data {}{}\n", arguments.option("--data"),
             *done, arguments.option("--data"), key_words(arguments));
  return 0;
}

}  // namespace muster::server
