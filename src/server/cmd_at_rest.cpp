// at-rest: encryption of a data folder: begin with it, change the key that wraps, change the data key, look at a file.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "crypto/file.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"
#include "server/sealed_stream.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;

Result<std::string> rest_text(const std::string& root) {
  const auto bytes = crypto::read_secret_file(rest_path(root));
  if (bytes.ok()) return as_string(*bytes);
  if (bytes.error().code != Code::NotFound) return bytes.error();
  return error(Code::NotFound, fmt::format("{} is not encrypted at rest; do it with: musterd at-rest init", root));
}

Status reseal_all(const DataDir& dir, const AtRest& keys, const ResealRows& reseal, bool plain_too) {
  const auto rows =
      TRY(reseal(dir.journal(), dir.addresses(), *keys.ring, plain_too ? PlainRows::Sealed : PlainRows::Refused));
  const auto files = TRY(reseal_files(dir.root, keys.ring, plain_too ? PlainFiles::Sealed : PlainFiles::Refused));
  fmt::print("{} entries and rows and {} files are sealed anew\n", rows, files);
  return {};
}

Status rest_init(const Arguments& arguments, const ResealRows& reseal) {
  const DataDir dir{arguments.option("--data")};
  const auto lock = TRY(DirLock::alone(dir.root));
  if (!holds_platform(dir))
    return error(Code::NotFound, fmt::format("{} holds no control plane; make one that is encrypted with: musterd init "
                                             "--at-rest-key FILE",
                                             dir.root));
  const KeySource source = TRY(key_source(arguments));
  const auto known = rest_text(dir.root);
  if (!known.ok() && known.error().code != Code::NotFound) return known.error();
  AtRest keys = known.ok() ? TRY(unwrap_rest_file(*known, source)) : TRY(new_at_rest(source, RestState::Sealing));
  if (keys.state != RestState::Sealing)
    return error(Code::AlreadyExists, fmt::format("{} is encrypted already; see musterd at-rest status", dir.root));
  // The keys before anything that needs them; a crash from here on is gone on from.
  if (!known.ok()) TRY_VOID(write_at_rest(dir.root, keys));
  TRY_VOID(reseal_all(dir, keys, reseal, true));
  keys.state = RestState::On;
  TRY_VOID(write_at_rest(dir.root, keys));
  fmt::print(
      "{} is encrypted. The key is needed from now on by every command; without it nothing can be read.\n"
      "Older backups and blocks that the disk has given up are as they were.\n",
      dir.root);
  return {};
}

Status rest_rotate(const Arguments& arguments) {
  const DataDir dir = TRY(open_data_dir(arguments));
  if (!dir.at_rest) return rest_text(dir.root).error();
  AtRest keys = *dir.at_rest;
  keys.source = TRY(next_key_source(arguments));
  if (keys.source.none())
    return error(Code::InvalidArgument, "say which key follows: --to-key FILE or --to-program PATH");
  TRY_VOID(write_at_rest(dir.root, keys));
  fmt::print("The data keys of {} are wrapped by {} from now on. Keep the key before for backups made until now.\n",
             dir.root, keys.source.program.empty() ? keys.source.file : keys.source.program);
  return {};
}

Status rest_rekey(const Arguments& arguments, const ResealRows& reseal) {
  const DataDir dir{arguments.option("--data")};
  const auto lock = TRY(DirLock::alone(dir.root));
  AtRest keys = TRY(unwrap_rest_file(TRY(rest_text(dir.root)), TRY(key_source(arguments))));
  if (keys.state == RestState::Sealing)
    return error(Code::FailedPrecondition, "musterd at-rest init has not ended yet; call it again first");
  if (keys.state == RestState::On) {
    TRY_VOID(add_data_key(keys));
    keys.state = RestState::Rekeying;
    TRY_VOID(write_at_rest(dir.root, keys));
  }
  TRY_VOID(reseal_all(dir, keys, reseal, false));
  std::erase_if(keys.keys, [&](const auto& each) { return each.first != keys.current; });
  keys.ring = std::make_shared<crypto::KeyRing>(keys.keys, keys.current);
  keys.state = RestState::On;
  TRY_VOID(write_at_rest(dir.root, keys));
  fmt::print("Everything in {} is under the data key {}; the one before is gone.\n", dir.root, keys.current);
  return {};
}

Status rest_status(const Arguments& arguments) {
  const std::string root = arguments.option("--data");
  const std::string text = TRY(rest_text(root));
  const RestFile file = TRY(parse_rest_file(text));
  fmt::print("{}\n", file.state == RestState::On        ? "encrypted"
                     : file.state == RestState::Sealing ? "encrypted only in part: call musterd at-rest init again"
                                                        : "encrypted, some of it still with the data key before: call "
                                                          "musterd at-rest rekey again");
  fmt::print("data keys wrapped by: {}\n", file.wrapped_by);
  for (const auto& [id, wrapped] : file.keys)
    fmt::print("data key {}{}\n", id, id == file.current ? " (in use)" : " (before)");
  const KeySource source = TRY(key_source(arguments));
  if (source.none()) return {};
  TRY_VOID(unwrap_rest_file(text, source));
  fmt::print("the key named here is the right one\n");
  return {};
}

Status show_stream(const DataDir& dir, const std::string& path, const std::string& place) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  if (fd < 0) return error(Code::NotFound, fmt::format("{} cannot be read", path));
  const auto print = [&]() -> Status {
    SealedStream stream(dir.at_rest->ring);
    if (!TRY(stream.read_header(fd, place)))
      return error(Code::DataLoss, fmt::format("{} is not sealed, or was changed", path));
    for (std::uint64_t at = 0;;) {
      const Bytes block = TRY(stream.read(fd, at, kStreamRecord));
      if (block.empty()) return {};
      std::fwrite(block.data(), 1, block.size(), stdout);
      at += block.size();
    }
  };
  const Status done = print();
  ::close(fd);
  return done;
}

Status rest_show(const Arguments& arguments) {
  const DataDir dir = TRY(open_data_dir(arguments));
  if (!dir.at_rest) return rest_text(dir.root).error();
  const std::string& name = arguments.words[2];
  const std::string path = dir.root + "/" + name;
  if (name.find("..") != std::string::npos || !fs::is_regular_file(path))
    return error(Code::NotFound,
                 fmt::format("there is no file {} in {}; name it as it lies there, e.g. refused.log", name, dir.root));
  const fs::path parts(name);
  const std::string first = parts.begin()->string();
  if (first == "logs")
    return show_stream(dir, path,
                       fmt::format("log {}/{}", parts.parent_path().filename().string(), parts.stem().string()));
  if (first == "blobs") return show_stream(dir, path, "upload " + parts.filename().string());
  std::string text;
  if (first.starts_with("refused.log") || first.starts_with("signer.log")) {
    std::ifstream in(path, std::ios::binary);
    const std::string lines{std::istreambuf_iterator<char>(in), {}};
    text = TRY(open_lines(*dir.at_rest->ring, first.starts_with("refused") ? "refused.log" : "signer.log", lines));
  } else {
    text = as_string(TRY(dir.read(path)));
  }
  std::fwrite(text.data(), 1, text.size(), stdout);
  crypto::zeroise(text);
  return {};
}

}  // namespace

int cmd_at_rest(const Arguments& arguments, const ResealRows& reseal) {
  const auto& words = arguments.words;
  const std::string what = words.size() > 1 ? words[1] : "";
  const bool has_data = !arguments.option("--data").empty();
  const bool plain = has_data && words.size() == 2;
  Status done;
  if (what == "new-key" && words.size() == 3) {
    done = make_key_file(words[2]);
    if (done.ok())
      fmt::print("{} holds a new key: keep it away from the data folder and its backups, with a copy\n", words[2]);
  } else if (what == "status" && plain) {
    done = rest_status(arguments);
  } else if (what == "init" && plain) {
    done = rest_init(arguments, reseal);
  } else if (what == "rotate" && plain) {
    done = rest_rotate(arguments);
  } else if (what == "rekey" && plain) {
    done = rest_rekey(arguments, reseal);
  } else if (what == "show" && has_data && words.size() == 3) {
    done = rest_show(arguments);
  } else {
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (done.ok()) return 0;
  fmt::print(stderr, "musterd at-rest {}: {}\n", what, done.error().message);
  return 1;
}

}  // namespace muster::server
