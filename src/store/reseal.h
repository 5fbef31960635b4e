#pragma once
// Brings what lies in the files of a SqliteStore and of SqliteAddresses under the current data key: plain things where
// they are allowed, and those sealed with an older key. Each file in one transaction: a crash leaves it as it was, and
// doing it again goes on. What was there before is overwritten (secure_delete), and the files' logs are cut. Nobody
// else may use the files meanwhile. Blocking.
#include <cstdint>
#include <string>

#include "base/result.h"
#include "crypto/key_ring.h"

namespace muster::store {

enum class Plain : std::uint8_t { Refused, Sealed };  // what is not sealed: DataLoss, or sealed

// path: of the journal; its snapshots lie beside. The number of things that changed. No file is no error.
Result<std::uint64_t> reseal_journal(const std::string& path, crypto::KeyRing& ring, Plain plain);
Result<std::uint64_t> reseal_addresses(const std::string& path, crypto::KeyRing& ring, Plain plain);

}  // namespace muster::store
