#include "host/overlay_store.h"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "base/endian.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "host/unix_socket.h"
#include "overlay/roster.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

// The older form ends after the first message.
constexpr std::string_view kHeader = "muster overlay 3\n", kOlder = "muster overlay 2\n";
constexpr std::size_t kLength = 4;

Error damaged(LeaseId lease, const std::string& what) {
  return error(Code::FailedPrecondition, "the kept overlay of " + lease.str() + " is not used: " + what);
}

}  // namespace

OverlayStore::OverlayStore(std::string folder) : folder_(std::move(folder)) {
  std::error_code ignored;
  fs::create_directory(folder_, ignored);
  fs::permissions(folder_, fs::perms::owner_all, ignored);
}

Status OverlayStore::save(LeaseId lease, const KeptOverlay& overlay) {
  netd::Configure kept = overlay.configured;
  kept.psk.clear();
  netd::SetRelays relays = overlay.relays;
  relays.lease = kept.lease;
  const std::string first = netd::encode(netd::Request(kept));
  Bytes bytes = to_bytes(kHeader);
  append_be(bytes, static_cast<std::uint32_t>(first.size()));
  for (const std::string& part : {first, netd::encode(netd::Request(relays))})
    bytes.insert(bytes.end(), part.begin(), part.end());
  const crypto::Digest sum = crypto::sha256(bytes);
  bytes.insert(bytes.end(), sum.begin(), sum.end());
  return crypto::write_secret_file(path(lease), bytes);
}

Result<KeptOverlay> OverlayStore::load(LeaseId lease) const {
  const Bytes bytes = TRY(crypto::read_secret_file(path(lease), kLargeBytesMax + 256));
  const std::size_t sum_bytes = crypto::Digest{}.size();
  if (bytes.size() < kHeader.size() + sum_bytes) return damaged(lease, "the file is too short");
  const ByteView body = ByteView(bytes).first(bytes.size() - sum_bytes);
  const crypto::Digest sum = crypto::sha256(body);
  const std::string text = as_string(body);
  if (!std::equal(sum.begin(), sum.end(), bytes.end() - static_cast<std::ptrdiff_t>(sum_bytes)) ||
      !text.starts_with("muster overlay "))
    return damaged(lease, "the file is damaged");
  const bool older = text.starts_with(kOlder);
  if (!older && !text.starts_with(kHeader))
    return damaged(lease, "another version of the agent kept it; the control plane tells it again");
  std::string_view first = std::string_view(text).substr(kHeader.size());
  netd::SetRelays relays;
  if (!older) {
    const std::size_t size = first.size() < kLength ? first.size() : load_be32(body.data() + kHeader.size());
    if (first.size() < kLength || size > first.size() - kLength) return damaged(lease, "the file is too short");
    const std::string_view second = first.substr(kLength + size);
    first = first.substr(kLength, size);
    auto decoded = TRY(netd::decode_request(second));
    auto* told = std::get_if<netd::SetRelays>(&decoded);
    if (told == nullptr || told->lease != lease.str()) return damaged(lease, "its relays are of another lease");
    relays = std::move(*told);
  }
  auto request = TRY(netd::decode_request(first));
  auto* configured = std::get_if<netd::Configure>(&request);
  if (configured == nullptr || configured->lease != lease.str()) return damaged(lease, "it is of another lease");
  std::vector<crypto::Key32> signers;
  for (const Bytes& signer : configured->signers) {
    const auto key = crypto::key32(signer);
    if (!key) return damaged(lease, "a signer's key has not 32 bytes");
    signers.push_back(*key);
  }
  if (signers.empty()) return damaged(lease, "nobody signed its roster");
  const auto roster = TRY(overlay::verify_roster(configured->roster, configured->signatures, signers)).roster;
  const auto seen = seen_.find(ClusterId{roster.cluster});
  if (seen != seen_.end() && roster.epoch < seen->second) return damaged(lease, "a newer roster was seen since");
  return KeptOverlay{std::move(*configured), std::move(relays)};
}

void OverlayStore::remove(LeaseId lease) {
  std::error_code ignored;
  fs::remove(path(lease), ignored);
}

void OverlayStore::keep_only(const std::set<LeaseId>& leases) {
  std::error_code ignored;
  for (const auto& file : fs::directory_iterator(folder_, ignored)) {
    const auto lease = LeaseId::parse(file.path().filename().string());
    if (!lease || !leases.contains(*lease)) fs::remove(file.path(), ignored);
  }
}

}  // namespace muster::host
