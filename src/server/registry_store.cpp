#include "server/registry_store.h"

#include <fmt/format.h>

#include <cstdlib>

namespace muster::server {
namespace {

constexpr const char* kRegistryTable = "registries";

std::string row(OrgId org, const std::string& host) {
  return org.str() + "/" + host;
}

// user, expiry and password, a line each; none of the first two can hold a line's end.
std::string text_of(const RegistryAccount& account) {
  return fmt::format("{}\n{}\n{}", account.username, account.expires.ms, account.password);
}

std::optional<RegistryAccount> account_of(const std::string& text) {
  const auto first = text.find('\n'), second = text.find('\n', first == std::string::npos ? first : first + 1);
  if (second == std::string::npos) return {};
  RegistryAccount out;
  out.username = text.substr(0, first);
  out.expires = WallTime{std::strtoll(text.substr(first + 1, second - first - 1).c_str(), nullptr, 10)};
  out.password = text.substr(second + 1);
  return out;
}

}  // namespace

RegistryStore::RegistryStore(const crypto::Secret32& secret, std::shared_ptr<journal::Store> store)
    : seal_(secret, "muster-registries-v1"), store_(std::move(store)) {}

Status RegistryStore::load(WallTime now) {
  const std::lock_guard lock(mutex_);
  std::string after;
  while (true) {
    const auto rows = TRY(store_->list_side(kRegistryTable, after, 1000));
    if (rows.empty()) return {};
    for (const auto& [name, bytes] : rows) {
      after = name;
      const auto slash = name.find('/');
      const auto org = OrgId::parse(name.substr(0, slash));
      const auto text = seal_.open(name, bytes);
      auto account = text ? account_of(*text) : std::nullopt;
      if (!org || slash == std::string::npos || !account || account->expires <= now) {
        TRY_VOID(store_->erase_side(kRegistryTable, name));
        continue;
      }
      account->host = name.substr(slash + 1);
      accounts_[{*org, account->host}] = std::move(*account);
    }
  }
}

Status RegistryStore::put(OrgId org, const RegistryAccount& account, WallTime now) {
  const std::lock_guard lock(mutex_);
  std::size_t held = 0;
  for (auto it = accounts_.lower_bound({org, ""}); it != accounts_.end() && it->first.first == org;) {
    if (it->second.expires <= now) {
      TRY_VOID(store_->erase_side(kRegistryTable, row(org, it->first.second)));
      it = accounts_.erase(it);
      continue;
    }
    held += it->first.second == account.host ? 0 : 1;
    ++it;
  }
  if (held >= kRegistriesMax)
    return error(
        Code::ResourceExhausted,
        fmt::format("an organisation has at most {} registries; log out of one that is not used", kRegistriesMax));
  const std::string name = row(org, account.host);
  TRY_VOID(store_->put_side(kRegistryTable, name, seal_.seal(name, text_of(account))));
  accounts_[{org, account.host}] = account;
  return {};
}

Status RegistryStore::remove(OrgId org, const std::string& host) {
  const std::lock_guard lock(mutex_);
  if (accounts_.erase({org, host}) == 0)
    return error(Code::NotFound, fmt::format("nobody is logged in to {}; see `muster registry list`", host));
  return store_->erase_side(kRegistryTable, row(org, host));
}

std::optional<RegistryAccount> RegistryStore::find(OrgId org, const std::string& host, WallTime now) const {
  const std::lock_guard lock(mutex_);
  const auto found = accounts_.find({org, host});
  if (found == accounts_.end() || found->second.expires <= now) return {};
  return found->second;
}

std::vector<RegistryAccount> RegistryStore::list(OrgId org, WallTime now) const {
  const std::lock_guard lock(mutex_);
  std::vector<RegistryAccount> out;
  for (auto it = accounts_.lower_bound({org, ""}); it != accounts_.end() && it->first.first == org; ++it) {
    if (it->second.expires <= now) continue;
    out.push_back({it->second.host, it->second.username, {}, it->second.expires});
  }
  return out;
}

}  // namespace muster::server
