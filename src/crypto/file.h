#pragma once
// Secrets on disk: written to a new file of mode 0600, synced, renamed over the old one and the directory synced, so a
// reader sees the old or the new bytes, never a part. Reading refuses files that others may read or that somebody else
// owns.
#include <string>

#include "base/bytes.h"
#include "base/result.h"

namespace muster::crypto {

Status write_secret_file(const std::string& path, ByteView data);
Status write_public_file(const std::string& path, ByteView data);  // mode 0644, same care
Result<Bytes> read_secret_file(const std::string& path, std::size_t bytes_max = 1 << 20);

}  // namespace muster::crypto
