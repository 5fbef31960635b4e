#include "server/access_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>

#include "base/log.h"
#include "server/at_rest.h"
#include "wire/names.h"

namespace muster::server {
namespace {

constexpr Millis kBatch{500};
constexpr Millis kWindow{60'000};
constexpr Millis kEraseEvery{3'600'000};

std::string numbered(const std::string& file, int number) {
  return number == 0 ? file : fmt::format("{}.{}", file, number);
}

}  // namespace

std::string actor_text(const access::Subject& subject) {
  if (subject.node) return subject.node.str();
  return subject.principal ? subject.principal.str() : "nobody";
}

std::string address_of_peer(const std::string& peer) {
  std::string out = peer.substr(0, peer.rfind(':'));
  if (out.size() > 2 && out.front() == '[' && out.back() == ']') out = out.substr(1, out.size() - 2);
  return out.substr(0, 64);
}

AccessLog::AccessLog(Options options, std::shared_ptr<journal::AddressBook> book)
    : options_(std::move(options)), book_(std::move(book)) {}

AccessLog::~AccessLog() {
  stop();
}

void AccessLog::start() {
  thread_ = std::thread([this] { run(); });
}

void AccessLog::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void AccessLog::enqueue(const std::string& actor, const std::string& request, const std::string& peer, WallTime now) {
  if (!book_ || options_.keep == Millis(0) || request.empty() || peer.empty()) return;
  if (queue_.size() >= options_.queue_max) {
    ++dropped_;
    return;
  }
  queue_.push_back({now, actor, request, address_of_peer(peer)});
}

void AccessLog::came_from(const std::string& actor, const std::string& request, const std::string& peer, WallTime now) {
  const std::lock_guard lock(mutex_);
  enqueue(actor, request, peer, now);
}

void AccessLog::refused(const access::Subject& subject, const std::string& operation, Code code,
                        const std::string& request, const std::string& peer, WallTime now) {
  const std::string actor = actor_text(subject);
  const Key key{actor, operation, std::string(code_name(code))};
  const std::lock_guard lock(mutex_);
  auto found = rows_.find(key);
  if (found == rows_.end()) {
    if (rows_.size() >= options_.rows_max) {
      rows_.erase(by_age_.back());
      by_age_.pop_back();
    }
    by_age_.push_front(key);
    found = rows_.emplace(key, Kept{}).first;
    found->second.age = by_age_.begin();
    auto& row = found->second.row;
    row.subject = subject;
    row.subject.scopes.clear();
    const std::string kind = subject.node                 ? "machine"
                             : subject.role == Role::None ? "nobody"
                                                          : std::string(wire::text(subject.role));
    row.view.actor = {kind, actor == "nobody" ? "" : actor, "", subject.org};
    row.view.operation = operation;
    row.view.code = std::get<2>(key);
    row.view.first = now;
  }
  Kept& kept = found->second;
  by_age_.splice(by_age_.begin(), by_age_, kept.age);
  ++kept.row.view.count;
  kept.row.view.last = now;
  kept.changed = true;
  if (kept.window + kWindow < now || now < kept.window) kept.window = now, kept.noted = 0;
  if (kept.noted >= options_.addresses_a_minute) return;
  ++kept.noted;
  kept.row.view.last_request_id = request;
  enqueue(actor, request, peer, now);
}

std::vector<AccessLog::Row> AccessLog::rows() const {
  std::vector<Row> out;
  const std::lock_guard lock(mutex_);
  out.reserve(rows_.size());
  for (const Key& key : by_age_) out.push_back(rows_.at(key).row);
  return out;
}

std::string AccessLog::address(const std::string& actor, const std::string& request) const {
  if (!book_ || request.empty()) return {};
  const auto found = book_->find(actor, request);
  return found.ok() ? found->value_or("") : "";
}

std::uint64_t AccessLog::dropped() const {
  const std::lock_guard lock(mutex_);
  return dropped_;
}

void AccessLog::write_addresses() {
  std::vector<journal::AddressRow> rows;
  {
    const std::lock_guard lock(mutex_);
    rows.swap(queue_);
  }
  if (rows.empty()) return;
  const Status done = book_->put(rows);
  if (!done.ok() && !failing_)
    log_warn("audit", "client addresses are not noted: {}; the work goes on without them", done.error().message);
  failing_ = !done.ok();
}

void AccessLog::write_file() {
  std::string text;
  {
    const std::lock_guard lock(mutex_);
    for (auto& [key, kept] : rows_) {
      if (std::exchange(kept.changed, false)) text += wire::to_json(kept.row.view) + "\n";
    }
  }
  if (text.empty() || options_.file.empty()) return;
  struct stat info {};
  if (::stat(options_.file.c_str(), &info) == 0 && static_cast<std::size_t>(info.st_size) >= options_.file_bytes) {
    for (int number = options_.files - 2; number >= 0; --number)
      std::rename(numbered(options_.file, number).c_str(), numbered(options_.file, number + 1).c_str());
  }
  if (options_.ring) text = seal_lines(*options_.ring, "refused.log", text);
  const int fd = ::open(options_.file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
  const bool written = fd >= 0 && ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  if (fd >= 0) ::close(fd);
  if (!written) log_warn("audit", "{} cannot be written; check the disk and the owner", options_.file);
}

void AccessLog::run() {
  Now now = read_clocks();
  LeaseTime next_file = now.lease + options_.write_every, next_erase = now.lease;
  for (bool last = false; !last;) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, kBatch, [&] { return stopping_; });
      last = stopping_;
    }
    now = read_clocks();
    write_addresses();
    if (last || next_file <= now.lease) {
      write_file();
      next_file = now.lease + options_.write_every;
    }
    if (book_ && !last && next_erase <= now.lease) {
      if (const auto gone = book_->erase_before(now.wall - options_.keep); !gone.ok())
        log_warn("audit", "old client addresses are not erased: {}", gone.error().message);
      next_erase = now.lease + kEraseEvery;
    }
  }
}

}  // namespace muster::server
