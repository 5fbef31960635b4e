#include "server/at_rest.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "server/commands.h"
#include "server/identity.h"
#include "server/key_program.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kRestFormat = "muster-at-rest 1";
constexpr std::string_view kRestMac = "muster-at-rest file";
constexpr std::size_t kRestBytesMax = 64 << 10, kKeyFileMax = 256;
constexpr std::size_t kNonceBytes = 24;
constexpr std::uint32_t kDataKeysMax = 64;

// systemd gives a service's credentials rights of its own (an access list), so only the file's kind is looked at.
Result<Bytes> read_credential(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  struct stat facts {};
  const bool regular = fd >= 0 && ::fstat(fd, &facts) == 0 && S_ISREG(facts.st_mode);
  Bytes out(kKeyFileMax + 1);
  const ssize_t n = regular ? ::read(fd, out.data(), out.size()) : -1;
  if (fd >= 0) ::close(fd);
  if (n < 0) return error(Code::Unavailable, fmt::format("the credential {} cannot be read", path));
  out.resize(static_cast<std::size_t>(n));
  return out;
}

Result<crypto::Secret32> read_key_file(const KeySource& source) {
  Bytes bytes =
      source.credential ? TRY(read_credential(source.file)) : TRY(crypto::read_secret_file(source.file, kKeyFileMax));
  auto key = crypto::key32(bytes);
  if (!key) {
    std::string text = as_string(bytes);
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
    auto raw = unbase64(text);
    crypto::zeroise(text);
    if (raw) {
      key = crypto::key32(*raw);
      crypto::zeroise(*raw);
    }
  }
  crypto::zeroise(bytes);
  if (!key || crypto::Secret32(*key).zero())
    return error(Code::InvalidArgument,
                 fmt::format("{} is no key: it must hold 32 random bytes, as they are or in base64; make one with: "
                             "musterd at-rest new-key FILE",
                             source.file));
  return crypto::Secret32(*key);
}

crypto::Secret32 derive_key(const crypto::Secret32& key, std::string_view what) {
  Bytes bytes = crypto::hkdf_sha256(key.view(), {}, as_bytes(what), 32);
  const crypto::Secret32 out(*crypto::key32(bytes));
  crypto::zeroise(bytes);
  return out;
}

std::string key_fingerprint(const crypto::Secret32& key) {
  return hex(derive_key(key, "muster-at-rest fingerprint").view()).substr(0, 16);
}

std::string data_key_place(std::uint32_t id) {
  return fmt::format("muster-at-rest data key {}", id);
}

std::string wrap_with(const crypto::Secret32& key, std::uint32_t id, const crypto::Secret32& data) {
  Bytes out = crypto::random_bytes(kNonceBytes);
  const std::string place = data_key_place(id);
  const Bytes sealed = crypto::xchacha_seal(derive_key(key, "muster-at-rest wrap"),
                                            std::span<const std::uint8_t, kNonceBytes>(out.data(), kNonceBytes),
                                            as_bytes(place), data.view());
  out.insert(out.end(), sealed.begin(), sealed.end());
  return base64(out);
}

Result<crypto::Secret32> unwrap_with(const crypto::Secret32& key, std::uint32_t id, const std::string& wrapped) {
  const auto raw = unbase64(wrapped);
  const std::string place = data_key_place(id);
  if (raw && raw->size() > kNonceBytes) {
    auto plain = crypto::xchacha_open(derive_key(key, "muster-at-rest wrap"),
                                      std::span<const std::uint8_t, kNonceBytes>(raw->data(), kNonceBytes),
                                      as_bytes(place), ByteView(*raw).subspan(kNonceBytes));
    const auto data = plain ? crypto::key32(*plain) : std::nullopt;
    if (plain) crypto::zeroise(*plain);
    if (data) return crypto::Secret32(*data);
  }
  return error(Code::DataLoss,
               fmt::format("the data key {} in the file at-rest is damaged; restore that file from a backup", id));
}

std::string_view state_name(RestState state) {
  return state == RestState::Sealing ? "sealing" : state == RestState::On ? "on" : "rekeying";
}

std::string rest_body(const RestFile& file) {
  std::string out = fmt::format("{}\nstate {}\nwrapped-by {}\ncurrent {}\n", kRestFormat, state_name(file.state),
                                file.wrapped_by, file.current);
  for (const auto& [id, wrapped] : file.keys) out += fmt::format("key {} {}\n", id, wrapped);
  return out;
}

std::shared_ptr<crypto::KeyRing> make_ring(const AtRest& keys) {
  return std::make_shared<crypto::KeyRing>(keys.keys, keys.current);
}

Result<KeySource> named_source(const Arguments& arguments, const std::string& file, const std::string& program) {
  KeySource out;
  out.file = arguments.option(file), out.program = arguments.option(program);
  if (!out.file.empty() && !out.program.empty())
    return error(Code::InvalidArgument, fmt::format("{} or {}, not both", file, program));
  return out;
}

}  // namespace

Result<KeySource> key_source(const Arguments& arguments) {
  KeySource out = TRY(named_source(arguments, "--at-rest-key", "--at-rest-program"));
  const char* folder = std::getenv("CREDENTIALS_DIRECTORY");
  if (!out.none() || folder == nullptr || *folder == '\0') return out;
  const std::string path = std::string(folder) + "/muster-at-rest";
  std::error_code fault;
  if (fs::exists(path, fault)) out.file = path, out.credential = true;
  return out;
}

Result<KeySource> next_key_source(const Arguments& arguments) {
  return named_source(arguments, "--to-key", "--to-program");
}

std::string key_words(const Arguments& arguments) {
  for (const char* name : {"--at-rest-key", "--at-rest-program"}) {
    if (const std::string value = arguments.option(name); !value.empty()) return fmt::format(" {} {}", name, value);
  }
  return {};
}

Status make_key_file(const std::string& path) {
  std::error_code fault;
  if (fs::exists(fs::symlink_status(path, fault)))
    return error(Code::AlreadyExists, fmt::format("{} is there already; a key never goes over another file", path));
  const crypto::Secret32 key(crypto::random_key32());
  std::string text = base64(key.view()) + "\n";
  const Status written = crypto::write_secret_file(path, as_bytes(text));
  crypto::zeroise(text);
  return written;
}

std::string rest_path(const std::string& root) {
  return root + "/at-rest";
}

Result<RestFile> parse_rest_file(const std::string& text) {
  const Error damaged = error(Code::DataLoss, "the file at-rest is damaged; restore it from a backup");
  RestFile out;
  std::istringstream in(text);
  std::string line;
  if (text.size() > kRestBytesMax || !std::getline(in, line)) return damaged;
  if (line != kRestFormat) {
    if (line.starts_with("muster-at-rest "))
      return error(Code::Unsupported, "the file at-rest was written by a newer program; use that one");
    return damaged;
  }
  const auto number = [](const std::string& word, std::uint32_t& value) {
    const auto [end, fault] = std::from_chars(word.data(), word.data() + word.size(), value);
    return fault == std::errc() && end == word.data() + word.size() && value > 0;
  };
  bool good = true, stated = false;
  while (good && std::getline(in, line)) {
    std::istringstream words(line);
    std::string name, first, second, more;
    words >> name >> first >> second >> more;
    if (name == "state" && second.empty()) {
      stated = true;
      if (first == "sealing")
        out.state = RestState::Sealing;
      else if (first == "rekeying")
        out.state = RestState::Rekeying;
      else
        good = first == "on";
    } else if (name == "wrapped-by" && more.empty()) {
      out.wrapped_by = second.empty() ? first : first + " " + second;
      good = out.wrapped_by == "program" || (first == "key" && !second.empty());
    } else if (name == "current") {
      good = number(first, out.current);
    } else if (name == "key" && more.empty()) {
      std::uint32_t id = 0;
      good = number(first, id) && !second.empty() && out.keys.size() < kDataKeysMax && !out.keys.contains(id);
      out.keys[id] = second;
    } else if (name == "mac" && out.mac.empty()) {
      out.mac = first;
    } else {
      good = false;
    }
  }
  if (!good || !stated || out.wrapped_by.empty() || !out.keys.contains(out.current) ||
      text != rest_body(out) + "mac " + out.mac + "\n")
    return damaged;
  return out;
}

Result<AtRest> new_at_rest(const KeySource& source, RestState state) {
  if (source.none())
    return error(Code::InvalidArgument,
                 "name the key with --at-rest-key FILE or --at-rest-program PATH; musterd at-rest new-key FILE makes "
                 "one");
  AtRest out;
  out.state = state, out.source = source;
  out.keys.emplace(1, crypto::Secret32(crypto::random_key32()));
  out.ring = make_ring(out);
  return out;
}

Result<AtRest> unwrap_rest_file(const std::string& text, const KeySource& source) {
  const RestFile file = TRY(parse_rest_file(text));
  const bool by_program = file.wrapped_by == "program";
  if (source.none())
    return error(Code::FailedPrecondition,
                 by_program ? "it is encrypted at rest, and the key is asked of a program: name it with "
                              "--at-rest-program PATH"
                            : fmt::format("it is encrypted at rest: name the key ({}) with --at-rest-key FILE, or give "
                                          "it as the systemd credential muster-at-rest",
                                          file.wrapped_by.substr(4)));
  if (by_program != !source.program.empty())
    return error(Code::FailedPrecondition, by_program ? "its data keys are wrapped by a program: name it with "
                                                        "--at-rest-program PATH"
                                                      : "its data keys are wrapped by a key in a file: name it with "
                                                        "--at-rest-key FILE");
  AtRest out;
  out.state = file.state, out.source = source, out.current = file.current;
  if (by_program) {
    for (const auto& [id, wrapped] : file.keys) out.keys.emplace(id, TRY(program_unwrap(source.program, wrapped)));
  } else {
    const crypto::Secret32 key = TRY(read_key_file(source));
    if (const std::string ours = key_fingerprint(key); file.wrapped_by != "key " + ours)
      return error(Code::PermissionDenied, fmt::format("{} is the wrong key: it is {}, and the one needed is {}",
                                                       source.file, ours, file.wrapped_by.substr(4)));
    for (const auto& [id, wrapped] : file.keys) out.keys.emplace(id, TRY(unwrap_with(key, id, wrapped)));
  }
  out.ring = make_ring(out);
  if (!crypto::equal(as_bytes(hex(out.ring->mac(kRestMac, as_bytes(rest_body(file))))), as_bytes(file.mac)))
    return error(Code::DataLoss, "the file at-rest was changed, or the program unwraps to other keys than it wrapped");
  return out;
}

Status write_at_rest(const std::string& root, const AtRest& keys) {
  RestFile file;
  file.state = keys.state, file.current = keys.current;
  if (keys.source.program.empty()) {
    const crypto::Secret32 key = TRY(read_key_file(keys.source));
    file.wrapped_by = "key " + key_fingerprint(key);
    for (const auto& [id, data] : keys.keys) file.keys[id] = wrap_with(key, id, data);
  } else {
    file.wrapped_by = "program";
    for (const auto& [id, data] : keys.keys) file.keys[id] = TRY(program_wrap(keys.source.program, data));
  }
  const std::string body = rest_body(file);
  const std::string text = body + "mac " + hex(make_ring(keys)->mac(kRestMac, as_bytes(body))) + "\n";
  // What cannot be read back must not take the place of what can.
  TRY_VOID(unwrap_rest_file(text, keys.source));
  return crypto::write_secret_file(rest_path(root), as_bytes(text));
}

Status add_data_key(AtRest& keys) {
  const std::uint32_t next = keys.keys.rbegin()->first + 1;
  if (keys.keys.size() >= kDataKeysMax)
    return error(Code::ResourceExhausted, "there are too many data keys already; end the change that was begun");
  keys.keys.emplace(next, crypto::Secret32(crypto::random_key32()));
  keys.current = next;
  keys.ring = make_ring(keys);
  return {};
}

DirLock::~DirLock() {
  ::close(fd_);
}

Result<std::shared_ptr<DirLock>> DirLock::shared(const std::string& root) {
  const int fd = ::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return std::shared_ptr<DirLock>();
  std::shared_ptr<DirLock> out(new DirLock(fd));
  if (::flock(fd, LOCK_SH | LOCK_NB) != 0)
    return error(Code::FailedPrecondition, fmt::format("musterd at-rest is at work in {}; wait for its end", root));
  return out;
}

Result<std::shared_ptr<DirLock>> DirLock::alone(const std::string& root) {
  const int fd = ::open(root.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return error(Code::NotFound, fmt::format("there is no folder {}", root));
  std::shared_ptr<DirLock> out(new DirLock(fd));
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0)
    return error(Code::FailedPrecondition, fmt::format("{} is in use; stop musterd and its signer first", root));
  return out;
}

Result<DataDir> open_data_dir(const Arguments& arguments) {
  DataDir dir{arguments.option("--data")};
  dir.lock = TRY(DirLock::shared(dir.root));
  const KeySource source = TRY(key_source(arguments));
  const auto text = crypto::read_secret_file(rest_path(dir.root), kRestBytesMax);
  if (!text.ok() && text.error().code == Code::NotFound) {
    if (source.none()) return dir;
    if (!source.credential)
      return error(Code::FailedPrecondition,
                   fmt::format("a key for encryption at rest is named, but {} is not encrypted; do it with: musterd "
                               "at-rest init --data {}",
                               dir.root, dir.root));
    log_warn("musterd", "there is a credential muster-at-rest, but {} is not encrypted: see musterd at-rest init",
             dir.root);
    return dir;
  }
  if (!text.ok()) return text.error();
  auto keys = unwrap_rest_file(as_string(*text), source);
  if (!keys.ok()) return error(keys.error().code, fmt::format("{}: {}", dir.root, keys.error().message));
  if (keys->state == RestState::Sealing)
    return error(
        Code::FailedPrecondition,
        fmt::format("{} is encrypted only in part, for musterd at-rest init did not end; call it again", dir.root));
  if (keys->state == RestState::Rekeying)
    log_warn("musterd", "{} still holds data under the data key before: musterd at-rest rekey ends that", dir.root);
  dir.at_rest = std::make_shared<const AtRest>(std::move(*keys));
  return dir;
}

std::shared_ptr<crypto::KeyRing> ring_of(const DataDir& dir) {
  return dir.at_rest ? dir.at_rest->ring : nullptr;
}

}  // namespace muster::server
