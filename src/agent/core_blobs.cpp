#include <algorithm>

#include "agent/core_impl.h"

// Blobs come over the session: one BlobRequest is answered by one BlobChunk of at most kChunkBytesMax at that offset
// (empty and last past the end). A few requests are on their way at once; anything unexpected drops the rest and asks
// again from `have`.
namespace muster::agent {
namespace {
constexpr std::uint64_t kAhead = 8 * session::kChunkBytesMax;
constexpr Millis kChunkWait{30'000};
}  // namespace

bool Core::Impl::blob_ready(const std::string& blob, Now) {
  const auto it = blobs.find(blob);
  if (it != blobs.end()) return it->second.complete;
  if (blobs.size() >= kBlobsMax) {
    const auto done = std::find_if(blobs.begin(), blobs.end(), [](const auto& b) {
      return (b.second.complete || b.second.failed) && b.second.op == 0;
    });
    if (done == blobs.end()) return false;
    blobs.erase(done);
  }
  blobs[blob];
  return false;
}

bool Core::Impl::blob_failed(const std::string& blob) const {
  const auto it = blobs.find(blob);
  return it != blobs.end() && it->second.failed;
}

void Core::Impl::forget_blob_requests() {
  for (auto& [name, blob] : blobs) {
    blob.asked = blob.have;
    blob.arrived.clear();
  }
}

void Core::Impl::settle_blobs(Now now) {
  for (auto& [name, blob] : blobs) {
    if (blob.complete || blob.failed || blob.op != 0 || !engine_up || now.lease < blob.retry_at) continue;
    if (!blob.found) {
      blob.op = issue(FindBlob{name}, now);
      continue;
    }
    if (!blob.arrived.empty()) {
      session::BlobChunk chunk = std::move(blob.arrived.front());
      blob.arrived.erase(blob.arrived.begin());
      if (chunk.offset == blob.have) {
        blob.op = issue(WriteBlob{name, chunk.offset, std::move(chunk.data), chunk.last}, now);
        continue;
      }
      blob.arrived.clear();
      blob.asked = blob.have;
    }
    if (!link.online()) continue;
    if (blob.asked > blob.have && now.lease - blob.asked_at >= kChunkWait) blob.asked = blob.have;
    while (blob.asked < blob.have + kAhead) {
      send(session::BlobRequest{name, blob.asked});
      blob.asked += session::kChunkBytesMax;
      blob.asked_at = now.lease;
    }
  }
}

void Core::Impl::on_blob_chunk(const session::BlobChunk& chunk, Now) {
  const auto it = blobs.find(chunk.blob);
  if (it == blobs.end()) return;
  BlobRun& blob = it->second;
  if (!chunk.error.empty()) {
    blob.failed = true;
    return;
  }
  const bool expected =
      chunk.data.size() <= session::kChunkBytesMax && chunk.offset >= blob.have && chunk.offset < blob.asked;
  if (expected && blob.arrived.size() < kAhead / session::kChunkBytesMax) blob.arrived.push_back(chunk);
}

void Core::Impl::blob_result(const Op& op, const OpResult& result, Now now) {
  const auto* find = std::get_if<FindBlob>(&op);
  const std::string& name = find != nullptr ? find->blob : std::get<WriteBlob>(op).blob;
  const auto it = blobs.find(name);
  if (it == blobs.end()) return;
  BlobRun& blob = it->second;
  blob.op = 0;
  const auto* state = std::get_if<BlobState>(&result.value);
  if (!result.ok || state == nullptr) {
    blob.retry_at = now.lease + Millis(5000);
    blob.found = false;
    blob.arrived.clear();
    return;
  }
  blob.found = true;
  blob.complete = state->complete;
  const bool jumped = state->have > blob.asked || state->have < blob.have;
  blob.have = state->have;
  if (jumped || blob.asked < blob.have) blob.asked = blob.have;
}

}  // namespace muster::agent
