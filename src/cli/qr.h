#pragma once
// QR codes (ISO/IEC 18004): a text as bytes, error correction L, versions 1 to 9, so at most 230 bytes. Pure.
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace muster::cli {

struct QrCode {
  int size = 0;                        // modules a side, without the quiet zone
  std::vector<bool> dark;              // row by row
  bool at(int row, int column) const;  // outside: light
};
inline constexpr int kQrMaskBest = -1;
// mask: 0 to 7, or the one that scanners read best. TooLarge.
Result<QrCode> encode_qr(std::string_view text, int mask = kQrMaskBest);
// Two rows of modules a line, dark on light whatever the terminal's colours, with the quiet zone.
std::string qr_text(const QrCode& code);

}  // namespace muster::cli
