#pragma once
// A program that wraps data keys, for a KMS: called as `PROGRAM wrap` and `PROGRAM unwrap`, one line on standard input,
// one line on standard output, exit code 0. wrap gets 32 bytes in base64 and answers with anything printable of at most
// 4096 bytes; unwrap gets that and answers with the 32 bytes in base64. It has half a minute. What it says on standard
// error is for people and is shown when it fails, so it must hold no key. Blocking; any thread.
#include <string>

#include "base/result.h"
#include "base/time.h"
#include "crypto/secret.h"

namespace muster::server {

inline constexpr std::size_t kWrappedBytesMax = 4096;
inline constexpr Millis kKeyProgramTime{30'000};

Result<std::string> program_wrap(const std::string& program, const crypto::Secret32& key,
                                 Millis patience = kKeyProgramTime);
Result<crypto::Secret32> program_unwrap(const std::string& program, const std::string& wrapped,
                                        Millis patience = kKeyProgramTime);

}  // namespace muster::server
