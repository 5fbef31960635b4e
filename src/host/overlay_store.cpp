#include "host/overlay_store.h"

#include <algorithm>
#include <filesystem>
#include <string_view>

#include "crypto/file.h"
#include "crypto/hash.h"
#include "host/unix_socket.h"
#include "overlay/roster.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kHeader = "muster overlay 2\n";

Error damaged(LeaseId lease, const std::string& what) {
  return error(Code::FailedPrecondition, "the kept overlay of " + lease.str() + " is not used: " + what);
}

}  // namespace

OverlayStore::OverlayStore(std::string folder) : folder_(std::move(folder)) {
  std::error_code ignored;
  fs::create_directory(folder_, ignored);
  fs::permissions(folder_, fs::perms::owner_all, ignored);
}

Status OverlayStore::save(LeaseId lease, const netd::Configure& configured) {
  netd::Configure kept = configured;
  kept.psk.clear();
  Bytes bytes = to_bytes(std::string(kHeader) + netd::encode(netd::Request(kept)));
  const crypto::Digest sum = crypto::sha256(bytes);
  bytes.insert(bytes.end(), sum.begin(), sum.end());
  return crypto::write_secret_file(path(lease), bytes);
}

Result<netd::Configure> OverlayStore::load(LeaseId lease) const {
  const Bytes bytes = TRY(crypto::read_secret_file(path(lease), kLargeBytesMax + 256));
  const std::size_t sum_bytes = crypto::Digest{}.size();
  if (bytes.size() < kHeader.size() + sum_bytes) return damaged(lease, "the file is too short");
  const ByteView body = ByteView(bytes).first(bytes.size() - sum_bytes);
  const crypto::Digest sum = crypto::sha256(body);
  const std::string text = as_string(body);
  if (!std::equal(sum.begin(), sum.end(), bytes.end() - static_cast<std::ptrdiff_t>(sum_bytes)) ||
      !text.starts_with("muster overlay "))
    return damaged(lease, "the file is damaged");
  if (!text.starts_with(kHeader))
    return damaged(lease, "another version of the agent kept it; the control plane tells it again");
  auto request = TRY(netd::decode_request(std::string_view(text).substr(kHeader.size())));
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
  return std::move(*configured);
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
