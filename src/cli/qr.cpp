#include "cli/qr.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <limits>

namespace muster::cli {
namespace {

// Error correction L: codewords of data, of correction in a block, and blocks, which are all of one size up to here.
struct QrVersion {
  int data, correction, blocks;
};
constexpr std::array<QrVersion, 9> kQrVersions = {{{19, 7, 1},
                                                   {34, 10, 1},
                                                   {55, 15, 1},
                                                   {80, 20, 1},
                                                   {108, 26, 1},
                                                   {136, 18, 2},
                                                   {156, 20, 2},
                                                   {194, 24, 2},
                                                   {232, 30, 2}}};
constexpr std::array<int, 9> kAlignment = {0, 18, 22, 26, 30, 34, 22, 24, 26};  // the first after 6; 0: none
constexpr int kQuiet = 4;

using Words = std::vector<std::uint8_t>;

// The field of 256 elements over x^8 + x^4 + x^3 + x^2 + 1.
std::uint8_t times(std::uint8_t a, std::uint8_t b) {
  unsigned out = 0;
  for (int bit = 7; bit >= 0; --bit) {
    out = out << 1 ^ (out >> 7 & 1U) * 0x11dU;
    if ((b >> bit & 1) != 0) out ^= a;
  }
  return static_cast<std::uint8_t>(out);
}

// The remainder of data * x^count divided by (x - 1)(x - 2)...(x - 2^(count-1)).
Words correction_of(const Words& data, std::size_t from, std::size_t size, int count) {
  Words divisor(static_cast<std::size_t>(count), 0);
  divisor.back() = 1;
  std::uint8_t root = 1;
  for (int i = 0; i < count; ++i, root = times(root, 2)) {
    for (std::size_t j = 0; j < divisor.size(); ++j) {
      divisor[j] = times(divisor[j], root);
      if (j + 1 < divisor.size()) divisor[j] ^= divisor[j + 1];
    }
  }
  Words rest(divisor.size(), 0);
  for (std::size_t i = from; i < from + size; ++i) {
    const std::uint8_t factor = data[i] ^ rest.front();
    rest.erase(rest.begin());
    rest.push_back(0);
    for (std::size_t j = 0; j < rest.size(); ++j) rest[j] ^= times(divisor[j], factor);
  }
  return rest;
}

// Mode, length, the bytes, an end and padding; then the blocks, a codeword of each in turn.
Words codewords(std::string_view text, const QrVersion& version) {
  Words data;
  std::uint8_t carry = 4;  // mode "bytes", a half byte ahead of everything
  const auto push = [&](std::uint8_t byte) {
    data.push_back(static_cast<std::uint8_t>(carry << 4 | byte >> 4));
    carry = byte & 0xf;
  };
  push(static_cast<std::uint8_t>(text.size()));
  for (const char c : text) push(static_cast<std::uint8_t>(c));
  data.push_back(static_cast<std::uint8_t>(carry << 4));
  for (bool first = true; data.size() < static_cast<std::size_t>(version.data); first = !first)
    data.push_back(first ? 0xec : 0x11);
  const auto size = static_cast<std::size_t>(version.data / version.blocks);
  std::vector<Words> corrections;
  for (int block = 0; block < version.blocks; ++block)
    corrections.push_back(correction_of(data, static_cast<std::size_t>(block) * size, size, version.correction));
  Words out;
  for (std::size_t i = 0; i < size; ++i)
    for (std::size_t block = 0; block < corrections.size(); ++block) out.push_back(data[block * size + i]);
  for (std::size_t i = 0; i < static_cast<std::size_t>(version.correction); ++i)
    for (const Words& each : corrections) out.push_back(each[i]);
  return out;
}

class Canvas {
 public:
  explicit Canvas(int number) : number_(number), size_(17 + 4 * number), dark_(area(), false), fixed_(area(), false) {}

  void patterns() {
    for (int i = 0; i < size_; ++i) {
      fix(6, i, i % 2 == 0);
      fix(i, 6, i % 2 == 0);
    }
    finder(3, 3);
    finder(3, size_ - 4);
    finder(size_ - 4, 3);
    const int second = kAlignment[static_cast<std::size_t>(number_ - 1)];
    std::vector<int> centres;
    if (second != 0) centres = {6, second};
    if (number_ >= 7) centres.push_back(2 * second - 6);
    const auto last = centres.empty() ? 0 : centres.back();
    for (const int row : centres)
      for (const int column : centres)
        if (!(row == 6 && (column == 6 || column == last)) && !(row == last && column == 6)) alignment(row, column);
    format(0);
    if (number_ >= 7) version();
  }
  // In pairs of columns from the right, up and down in turn, around what is fixed.
  void data(const Words& words) {
    std::size_t bit = 0;
    for (int right = size_ - 1; right >= 1; right -= 2) {
      if (right == 6) right = 5;
      for (int step = 0; step < size_; ++step) {
        const bool up = ((right + 1) & 2) == 0;
        for (int j = 0; j < 2; ++j) {
          const int row = up ? size_ - 1 - step : step, column = right - j;
          if (fixed_[index(row, column)]) continue;
          if (bit < words.size() * 8) dark_[index(row, column)] = (words[bit / 8] >> (7 - bit % 8) & 1) != 0;
          ++bit;
        }
      }
    }
  }
  void mask(int number) {  // twice takes it off again
    for (int row = 0; row < size_; ++row)
      for (int column = 0; column < size_; ++column)
        if (!fixed_[index(row, column)] && masked(number, row, column))
          dark_[index(row, column)] = !dark_[index(row, column)];
  }
  // Level L and the mask, with ten bits of correction, twice.
  void format(int mask) {
    const unsigned value = 1U << 3 | static_cast<unsigned>(mask);
    unsigned rest = value << 10;
    for (int bit = 14; bit >= 10; --bit)
      if ((rest >> bit & 1U) != 0) rest ^= 0x537U << (bit - 10);
    const unsigned bits = (value << 10 | rest) ^ 0x5412U;
    for (int i = 0; i < 15; ++i) {
      const bool dark = (bits >> i & 1U) != 0;
      fix(i < 6 ? i : i < 8 ? i + 1 : size_ - 15 + i, 8, dark);
      fix(8, i < 8 ? size_ - 1 - i : i == 8 ? 7 : 14 - i, dark);
    }
    fix(size_ - 8, 8, true);
  }
  int penalty() const {
    int total = 0, dark = 0;
    for (int i = 0; i < size_; ++i) total += line_penalty(i, false) + line_penalty(i, true);
    for (int row = 0; row < size_; ++row)
      for (int column = 0; column < size_; ++column) {
        dark += at(row, column) ? 1 : 0;
        if (row + 1 < size_ && column + 1 < size_ && at(row, column) == at(row, column + 1) &&
            at(row, column) == at(row + 1, column) && at(row, column) == at(row + 1, column + 1))
          total += 3;
      }
    return total + std::abs(dark * 20 - size_ * size_ * 10) / (size_ * size_) * 10;
  }
  QrCode code() const { return {size_, dark_}; }

 private:
  std::size_t area() const { return static_cast<std::size_t>(size_) * static_cast<std::size_t>(size_); }
  std::size_t index(int row, int column) const {
    return static_cast<std::size_t>(row) * static_cast<std::size_t>(size_) + static_cast<std::size_t>(column);
  }
  bool at(int row, int column) const { return dark_[index(row, column)]; }
  void fix(int row, int column, bool dark) {
    dark_[index(row, column)] = dark;
    fixed_[index(row, column)] = true;
  }
  void finder(int row, int column) {
    for (int y = -4; y <= 4; ++y)
      for (int x = -4; x <= 4; ++x) {
        const int ring = std::max(std::abs(x), std::abs(y));
        if (row + y >= 0 && row + y < size_ && column + x >= 0 && column + x < size_)
          fix(row + y, column + x, ring != 2 && ring != 4);
      }
  }
  void alignment(int row, int column) {
    for (int y = -2; y <= 2; ++y)
      for (int x = -2; x <= 2; ++x) fix(row + y, column + x, std::max(std::abs(x), std::abs(y)) != 1);
  }
  void version() {
    unsigned rest = static_cast<unsigned>(number_) << 12;
    for (int bit = 17; bit >= 12; --bit)
      if ((rest >> bit & 1U) != 0) rest ^= 0x1f25U << (bit - 12);
    const unsigned bits = static_cast<unsigned>(number_) << 12 | rest;
    for (int i = 0; i < 18; ++i) {
      fix(i / 3, size_ - 11 + i % 3, (bits >> i & 1U) != 0);
      fix(size_ - 11 + i % 3, i / 3, (bits >> i & 1U) != 0);
    }
  }
  static bool masked(int number, int row, int column) {
    switch (number) {
      case 0:
        return (row + column) % 2 == 0;
      case 1:
        return row % 2 == 0;
      case 2:
        return column % 3 == 0;
      case 3:
        return (row + column) % 3 == 0;
      case 4:
        return (row / 2 + column / 3) % 2 == 0;
      case 5:
        return row * column % 2 + row * column % 3 == 0;
      case 6:
        return (row * column % 2 + row * column % 3) % 2 == 0;
      default:
        return ((row + column) % 2 + row * column % 3) % 2 == 0;
    }
  }
  // Runs of five and more, and what looks like a finder.
  int line_penalty(int line, bool down) const {
    int total = 0, run = 0;
    unsigned seen = 0;
    bool before = false;
    for (int i = 0; i < size_; ++i) {
      const bool dark = down ? at(i, line) : at(line, i);
      run = i > 0 && dark == before ? run + 1 : 1;
      before = dark;
      total += run == 5 ? 3 : run > 5 ? 1 : 0;
      seen = (seen << 1 | (dark ? 1U : 0U)) & 0x7ffU;
      if (i >= 10 && (seen == 0x5d0U || seen == 0x05dU)) total += 40;
    }
    return total;
  }

  int number_, size_;
  std::vector<bool> dark_, fixed_;
};

}  // namespace

bool QrCode::at(int row, int column) const {
  return row >= 0 && column >= 0 && row < size && column < size &&
         dark[static_cast<std::size_t>(row) * static_cast<std::size_t>(size) + static_cast<std::size_t>(column)];
}

Result<QrCode> encode_qr(std::string_view text, int mask) {
  std::size_t number = 0;
  while (number < kQrVersions.size() && static_cast<std::size_t>(kQrVersions[number].data) < text.size() + 2) ++number;
  if (number == kQrVersions.size()) return error(Code::TooLarge, "a QR code here holds at most 230 bytes");
  Canvas canvas(static_cast<int>(number) + 1);
  canvas.patterns();
  canvas.data(codewords(text, kQrVersions[number]));
  if (mask == kQrMaskBest) {
    int least = std::numeric_limits<int>::max();
    for (int each = 0; each < 8; ++each) {
      canvas.mask(each);
      canvas.format(each);
      if (const int penalty = canvas.penalty(); penalty < least) least = penalty, mask = each;
      canvas.mask(each);
    }
  }
  canvas.mask(mask);
  canvas.format(mask);
  return canvas.code();
}

std::string qr_text(const QrCode& code) {
  std::string out;
  for (int row = -kQuiet; row < code.size + kQuiet; row += 2) {
    out += "\x1b[0;30;107m";
    for (int column = -kQuiet; column < code.size + kQuiet; ++column) {
      const bool upper = code.at(row, column), lower = code.at(row + 1, column);
      out += upper ? (lower ? "█" : "▀") : (lower ? "▄" : " ");
    }
    out += "\x1b[0m\n";
  }
  return out;
}

}  // namespace muster::cli
