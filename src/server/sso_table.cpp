#include "server/sso_table.h"

#include "crypto/hash.h"
#include "crypto/random.h"

namespace muster::server {
namespace {

Bytes hash_of(const std::string& handle) {
  const auto digest = crypto::sha256(as_bytes(handle));
  return Bytes(digest.begin(), digest.end());
}

}  // namespace

std::string SsoTable::add(SsoLogin login, LeaseTime now) {
  const std::string handle = base64url(crypto::random_bytes(32));
  const std::lock_guard lock(mutex_);
  prune(now);
  auto& of_source = by_source_[login.source];
  if (of_source.size() >= kOfSource)
    erase(rows_.find(of_source.begin()->second));
  else if (rows_.size() >= kRows)
    erase(rows_.find(by_age_.begin()->second));
  const Bytes key = hash_of(handle);
  by_age_[++count_] = key;
  by_source_[login.source][count_] = key;
  rows_.emplace(key, std::pair(count_, std::move(login)));
  return handle;
}

std::optional<SsoTable::Found> SsoTable::find(const std::string& handle, LeaseTime now) {
  const std::lock_guard lock(mutex_);
  prune(now);
  const auto row = rows_.find(hash_of(handle));
  if (row == rows_.end()) return {};
  SsoLogin& login = row->second.second;
  Found out{login, {}};
  if (now >= login.ends || !login.by_device) {
    const bool over = now >= login.ends;
    erase(row);
    return over ? std::nullopt : std::optional(std::move(out));
  }
  if (now < login.next_ask)
    out.wait = login.next_ask - now;
  else
    login.next_ask = now + login.interval;
  return out;
}

Millis SsoTable::slower(const std::string& handle, LeaseTime now) {
  const std::lock_guard lock(mutex_);
  const auto row = rows_.find(hash_of(handle));
  if (row == rows_.end()) return Millis(5000);
  SsoLogin& login = row->second.second;
  login.interval += Millis(5000);
  login.next_ask = now + login.interval;
  return login.interval;
}

void SsoTable::end(const std::string& handle) {
  const std::lock_guard lock(mutex_);
  if (const auto row = rows_.find(hash_of(handle)); row != rows_.end()) erase(row);
}

std::size_t SsoTable::size() const {
  const std::lock_guard lock(mutex_);
  return rows_.size();
}

void SsoTable::erase(Rows::iterator row) {
  const auto& [age, login] = row->second;
  const auto source = by_source_.find(login.source);
  source->second.erase(age);
  if (source->second.empty()) by_source_.erase(source);
  by_age_.erase(age);
  rows_.erase(row);
}

void SsoTable::prune(LeaseTime now) {
  // Lifetimes differ; what is over behind a younger one that lasts longer goes when it is asked for or pushed out.
  while (!by_age_.empty()) {
    const auto oldest = rows_.find(by_age_.begin()->second);
    if (oldest->second.second.ends > now) return;
    erase(oldest);
  }
}

}  // namespace muster::server
