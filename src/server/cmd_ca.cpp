// ca: what the CAs of a data folder are, another one, another root, and their end.
#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>

#include "crypto/file.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"

namespace muster::server {
namespace {

constexpr std::size_t kPemFileMax = 64 << 10;
constexpr const char* kTakesNotice = "A musterd that serves takes notice within the hour, or at once: kill -HUP PID\n";

Result<std::string> read_pem(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return error(Code::NotFound, fmt::format("{} cannot be read", path));
  std::string text(kPemFileMax, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<std::size_t>(in.gcount()));
  return text;
}

Status show_ca(const char* kind, const std::string& cert, const std::string& note) {
  const auto life = TRY(crypto::certificate_validity(cert));
  const std::string name = TRY(crypto::common_name(cert));
  fmt::print("{:<6} {}  until {}  {}{}\n", kind, ca_id(cert), format_utc(life.not_after).substr(0, 10), name, note);
  return {};
}

Status ca_status(const DataDir& dir) {
  const CaSet set = TRY(load_cas(dir));
  const crypto::Trust& trust = set.trust;
  for (const std::string& cert : trust.roots) {
    const bool newest = cert == trust.roots.front();
    const std::string place = set.root_here ? ", its key lies in DIR/keys" : ", its key is kept elsewhere";
    if (trust.revision == 0)
      TRY_VOID(show_ca("ca", cert, "  (in use; signs everything, there is no root)"));
    else
      TRY_VOID(show_ca("root", cert, newest ? fmt::format("  (the newest{})", place) : "  (still believed)"));
  }
  for (const std::string& cert : trust.intermediates)
    TRY_VOID(show_ca("ca", cert, cert == set.ca.cert_pem ? "  (in use)" : "  (still believed)"));
  for (const std::string& cert : trust.given_up) TRY_VOID(show_ca("ca", cert, "  (given up)"));
  if (trust.revision == 0) return {};
  const auto behind = read_behind(dir);
  if (!behind.ok() || behind->revision != trust.revision) {
    fmt::print("No musterd that serves has said yet which machines believe revision {}.\n", trust.revision);
  } else if (behind->machines.empty()) {
    fmt::print("All machines believe revision {}.\n", trust.revision);
  } else {
    fmt::print("{} machines have not said that they believe revision {}:\n", behind->machines.size(), trust.revision);
    for (const std::string& machine : behind->machines) fmt::print("  {}\n", machine);
  }
  return {};
}

Status report_rotated(const DataDir& dir) {
  const CaSet set = TRY(load_cas(dir));
  fmt::print("The CA {} signs from now on. Those before stay believed: musterd ca retire ID, {} days from now.\n{}",
             ca_id(set.ca.cert_pem), kCaSettles.count() / 86'400'000, kTakesNotice);
  return {};
}

struct Wanted {
  DataDir dir;
  std::string what, word, root, root_out, out;
  When when = When::Safe;
};

Status run_ca(const Wanted& w) {
  const WallTime now = read_clocks().wall;
  if (w.what == "status") return ca_status(w.dir);
  if (w.what == "rotate") {
    TRY_VOID(rotate_ca(w.dir, w.root, w.when, now));
    return report_rotated(w.dir);
  }
  if (w.what == "request") {
    const std::string request = TRY(request_ca(w.dir));
    TRY_VOID(crypto::write_public_file(w.out, as_bytes(request)));
    fmt::print("Where the root is: musterd ca sign {} --root FILE --out CERT; then here: musterd ca install CERT\n",
               w.out);
    return {};
  }
  if (w.what == "sign") {
    const std::string request = TRY(read_pem(w.word));
    const std::string cert = TRY(sign_request(w.root, request, now));
    TRY_VOID(crypto::write_public_file(w.out, as_bytes(cert)));
    fmt::print("{} is signed: {}\n", ca_id(cert), w.out);
    return {};
  }
  if (w.what == "install") {
    const std::string cert = TRY(read_pem(w.word));
    TRY_VOID(install_ca(w.dir, cert, w.when, now));
    return report_rotated(w.dir);
  }
  if (w.what == "new-root") {
    TRY_VOID(add_root(w.dir, w.root, w.root_out, now));
    const CaSet set = TRY(load_cas(w.dir));
    fmt::print("CA SHA-256: {}\n", hex(set.pin));
    fmt::print(
        "Both roots are believed. Let all machines learn it (musterd ca status) and people log in anew, then\n"
        "musterd ca rotate, and retire the root before: musterd ca retire {}\n{}",
        ca_id(set.trust.roots.back()), kTakesNotice);
    return {};
  }
  if (w.what == "retire") {
    TRY_VOID(retire_ca(w.dir, w.word, w.root, w.when, now));
    fmt::print("{} counts for nothing any more.\n{}", w.word, kTakesNotice);
    return {};
  }
  TRY_VOID(take_root_out(w.dir, w.word));
  fmt::print(
      "The root's key is in {}, and nowhere else: keep it offline, with a copy. Older backups of DIR hold it too\n",
      w.word);
  return {};
}

// Which words and options each asks for.
bool complete(const Wanted& w, std::size_t words) {
  const bool file = w.what == "sign" || w.what == "install" || w.what == "retire" || w.what == "root-out";
  const std::vector<std::string> known = {"status",  "rotate",   "request", "sign",
                                          "install", "new-root", "retire",  "root-out"};
  return std::find(known.begin(), known.end(), w.what) != known.end() && words == (file ? 3u : 2u) &&
         (w.what == "sign" ? !w.root.empty() : !w.dir.root.empty()) &&
         (!w.out.empty() || (w.what != "sign" && w.what != "request"));
}

}  // namespace

int cmd_ca(const Arguments& arguments) {
  const auto word = [&](std::size_t i) { return i < arguments.words.size() ? arguments.words[i] : std::string(); };
  Wanted wanted{{arguments.option("--data")},
                word(1),
                word(2),
                arguments.option("--root"),
                arguments.option("--root-out"),
                arguments.option("--out"),
                arguments.options.contains("--now") ? When::Now : When::Safe};
  if (!complete(wanted, arguments.words.size())) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  Status done;
  if (!wanted.dir.root.empty()) {
    if (auto dir = open_data_dir(arguments); dir.ok())
      wanted.dir = std::move(*dir);
    else
      done = dir.error();
  }
  if (done.ok()) done = run_ca(wanted);
  if (done.ok()) return 0;
  fmt::print(stderr, "musterd ca {}: {}\n", wanted.what, done.error().message);
  return 1;
}

}  // namespace muster::server
