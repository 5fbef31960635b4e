#pragma once
// What is installed in an image, from the lists that the helper in its probe sends piece by piece (helper_link.h): read
// into an inventory (scan/inventory.h), bounded, and kept on disk beside the probe, for the control plane. An image's
// lists are its own word. One thread.
#include <string>

#include "host/helper_link.h"
#include "scan/inventory.h"

namespace muster::host {

inline constexpr std::size_t kListsBytesMax = 128 << 20, kListsFilesMax = 50'000;
inline constexpr std::size_t kPackagesTextMax = 900 << 10;  // of what is told; a frame holds it

class ImageLists {
 public:
  void take(HelperList piece);
  // The whole, as text. whole: nothing was left out, as far as the image says.
  std::string end(bool whole);

 private:
  scan::Inventory inventory_;
  std::string path_, file_;  // of the list that is coming
  std::size_t bytes_ = 0, files_ = 0;
};

// Where the inventory of an image lies, by the engine's name for it.
class PackageBook {
 public:
  explicit PackageBook(std::string folder) : folder_(std::move(folder)) {}
  void keep(const std::string& digest, const std::string& text);
  std::string of(const std::string& digest) const;  // empty: none is known

 private:
  std::string file(const std::string& digest) const;
  std::string folder_;
};

}  // namespace muster::host
