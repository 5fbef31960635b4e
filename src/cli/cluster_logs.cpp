#include "cli/cluster_logs.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdio>

#include "cli/remote.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

// argv: lines, follow, session of before, FILE=OFFSET...; session_latest moves when Ray is started anew.
constexpr const char* kReader = R"(
import os, sys, time
folder, lines, follow = "/tmp/ray/session_latest/logs", int(sys.argv[1]), sys.argv[2] == "1"
names = ["gcs_server.out", "gcs_server.err", "raylet.out", "raylet.err", "dashboard.log"]
session, at, fresh = sys.argv[3], {k: int(v) for k, v in (w.split("=") for w in sys.argv[4:])}, not sys.argv[3]
out = sys.stdout.buffer
while True:
    now = os.path.basename(os.path.realpath("/tmp/ray/session_latest"))
    if now != session:
        session, at = now, {}
    for name in names:
        try:
            with open(os.path.join(folder, name), "rb") as f:
                size = os.fstat(f.fileno()).st_size
                if name not in at and fresh:
                    start = max(0, size - 262144)
                    f.seek(start)
                    tail = f.read(size - start)
                    cut = len(tail)
                    for _ in range(lines + 1):
                        cut = tail.rfind(b"\n", 0, cut)
                        if cut < 0:
                            break
                    at[name] = start + cut + 1 if lines else size
                offset = at.get(name, 0)
                if offset > size:
                    offset = 0
                f.seek(offset)
                data = f.read(65536)
        except OSError:
            continue
        if data:
            out.write(b"%s %s %d %d\n" % (session.encode(), name.encode(), offset, len(data)) + data)
            at[name] = offset + len(data)
    out.flush()
    fresh = False
    if not follow and all(at.get(n, 0) >= os.path.getsize(os.path.join(folder, n)) for n in names if n in at):
        break
    if follow:
        time.sleep(0.5)
)";

bool plain(std::string_view text) {
  return !text.empty() && text.size() <= 128 && std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' ||
           c == '.';
  });
}

bool read_number(std::string_view text, std::uint64_t& value) {
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), value);
  return failed == std::errc() && end == text.data() + text.size();
}

}  // namespace

Status LogFrames::start() {
  const std::string line = std::exchange(head_, {});
  std::string_view rest = line, words[4];
  for (auto& word : words) {
    const auto space = rest.find(' ');
    word = rest.substr(0, space);
    rest.remove_prefix(space == std::string_view::npos ? rest.size() : space + 1);
  }
  std::uint64_t offset = 0;
  if (!rest.empty() || !plain(words[0]) || !plain(words[1]) || !read_number(words[2], offset) ||
      !read_number(words[3], left_) || left_ > (1 << 20) || offset > (std::uint64_t{1} << 50))
    return error(Code::DataLoss, "what came back is not the log");
  if (session_ != words[0]) offsets_.clear();
  session_ = words[0];
  file_ = words[1];
  if (offsets_.size() >= 64 && !offsets_.contains(file_)) return error(Code::DataLoss, "too many log files came back");
  offsets_[file_] = offset;
  return {};
}

Status LogFrames::feed(std::string_view bytes) {
  while (!bytes.empty()) {
    if (left_ == 0) {
      const auto newline = bytes.find('\n');
      head_ += bytes.substr(0, newline);
      if (head_.size() > 1'024) return error(Code::DataLoss, "what came back is not the log");
      if (newline == std::string_view::npos) return {};
      bytes.remove_prefix(newline + 1);
      TRY_VOID(start());
      continue;
    }
    const auto take = static_cast<std::size_t>(std::min<std::uint64_t>(left_, bytes.size()));
    sink_(file_, bytes.substr(0, take));
    offsets_[file_] += take;
    left_ -= take;
    bytes.remove_prefix(take);
  }
  return {};
}

Result<int> follow_cluster_logs(Api& api, const ClusterLogOptions& options) {
  std::string shown;
  LogFrames frames([&](const std::string& file, std::string_view bytes) {
    if (file != shown) std::printf("%s==> %s <==\n", shown.empty() ? "" : "\n", file.c_str());
    shown = file;
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    std::fflush(stdout);
  });
  Millis broken{0}, delay{500};
  for (;;) {
    std::vector<std::string> argv = {
        "python", "-c", kReader, std::to_string(options.lines), options.follow ? "1" : "0", frames.session()};
    for (const auto& [file, offset] : frames.offsets()) argv.push_back(fmt::format("{}={}", file, offset));
    bool any = false;
    Feed feed;
    feed.output = [&](std::string_view bytes) -> Status {
      any = true;
      return frames.feed(bytes);
    };
    frames.restart();
    const auto ended =
        exec_fed(api.account(), {.cluster = options.cluster, .slot = options.slot, .argv = std::move(argv)}, feed);
    if (ended.ok() && !options.follow) return 0;
    // A container that is started anew also comes back.
    const bool again = !ended.ok() && (worth_retrying(ended.error()) ||
                                       (ended.error().code == Code::FailedPrecondition && !frames.session().empty()));
    if (!ended.ok() && (!options.follow || !again)) return ended.error();
    if (any) broken = Millis(0), delay = Millis(500);
    if (broken >= options.patience)
      return ended.ok() ? error(Code::Unavailable, "the log does not come back") : ended.error();
    if (broken == Millis(0)) say("-- the log's connection broke; it goes on where it was");
    api.sleep(delay);
    broken += delay;
    delay = std::min(delay * 2, Millis(5'000));
  }
}

}  // namespace muster::cli
