#include "crypto/key_ring.h"

#include <fmt/format.h>

#include <algorithm>

#include "crypto/hash.h"
#include "crypto/random.h"

namespace muster::crypto {
namespace {

constexpr std::size_t kIdAt = 4, kPrefixAt = 8, kCounterAt = 24, kBodyAt = 32;
constexpr std::size_t kOpenersMax = 64;

std::array<std::uint8_t, 16> fresh_prefix() {
  std::array<std::uint8_t, 16> out;
  random_fill(out);
  return out;
}

}  // namespace

KeyRing::KeyRing(std::map<std::uint32_t, Secret32> keys, std::uint32_t current)
    : keys_(std::move(keys)),
      current_(current),
      prefix_(fresh_prefix()),
      sealer_(hchacha20(keys_.at(current), std::span<const std::uint8_t, 16>(prefix_))) {}

Bytes KeyRing::seal(std::string_view place, ByteView plain) {
  Bytes out(plain.size() + kOverhead);
  std::copy(kMark.begin(), kMark.end(), out.begin());
  for (std::size_t i = 0; i < 4; ++i) out[kIdAt + i] = static_cast<std::uint8_t>(current_ >> (8 * i));
  const std::lock_guard lock(mutex_);
  const std::uint64_t counter = ++counter_;
  std::copy(prefix_.begin(), prefix_.end(), out.begin() + kPrefixAt);
  for (std::size_t i = 0; i < 8; ++i) out[kCounterAt + i] = static_cast<std::uint8_t>(counter >> (8 * i));
  sealer_.seal(counter, as_bytes(place), plain, out.data() + kBodyAt);
  return out;
}

std::optional<std::uint32_t> KeyRing::key_of(ByteView bytes) {
  if (bytes.size() < kOverhead || !std::equal(kMark.begin(), kMark.end(), bytes.begin())) return {};
  std::uint32_t id = 0;
  for (std::size_t i = 0; i < 4; ++i) id |= static_cast<std::uint32_t>(bytes[kIdAt + i]) << (8 * i);
  return id;
}

OpenKey& KeyRing::opener(std::uint32_t id, const Secret32& key, const Prefix& prefix) {
  const auto found = openers_.find({id, prefix});
  if (found != openers_.end()) return found->second;
  if (openers_.size() >= kOpenersMax) openers_.clear();
  return openers_.emplace(std::pair(id, prefix), OpenKey(hchacha20(key, std::span<const std::uint8_t, 16>(prefix))))
      .first->second;
}

Result<Bytes> KeyRing::open(std::string_view place, ByteView sealed) {
  const auto id = key_of(sealed);
  if (!id) return error(Code::DataLoss, fmt::format("{} is not sealed, but everything here must be", place));
  const auto key = keys_.find(*id);
  if (key == keys_.end())
    return error(Code::DataLoss, fmt::format("{} is sealed with the data key {}, which is not here", place, *id));
  Prefix prefix;
  std::copy_n(sealed.begin() + kPrefixAt, prefix.size(), prefix.begin());
  std::uint64_t counter = 0;
  for (std::size_t i = 0; i < 8; ++i) counter |= static_cast<std::uint64_t>(sealed[kCounterAt + i]) << (8 * i);
  Bytes out(sealed.size() - kOverhead);
  const std::lock_guard lock(mutex_);
  // An empty body still needs somewhere to point to.
  std::uint8_t nothing = 0;
  const bool good = opener(*id, key->second, prefix)
                        .open(counter, as_bytes(place), sealed.subspan(kBodyAt), out.empty() ? &nothing : out.data());
  if (good) return out;
  return error(Code::DataLoss, fmt::format("{} does not open: it was changed, or moved there from elsewhere", place));
}

Bytes KeyRing::mac(std::string_view purpose, ByteView text) const {
  Bytes key = hkdf_sha256(keys_.at(current_).view(), {}, as_bytes(purpose), 32);
  const Digest tag = hmac_sha256(key, text);
  zeroise(key);
  return Bytes(tag.begin(), tag.end());
}

}  // namespace muster::crypto
