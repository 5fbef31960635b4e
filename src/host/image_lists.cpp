#include "host/image_lists.h"

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "crypto/hash.h"

namespace muster::host {
namespace fs = std::filesystem;
namespace {
constexpr std::size_t kInventoriesMax = 64;  // as many as probes are remembered
}

void ImageLists::take(HelperList piece) {
  if (piece.path != path_) {  // the end of the one before never came
    inventory_.skipped += path_.empty() ? 0 : 1;
    file_.clear();
    path_ = piece.path;
  }
  bytes_ += piece.data.size();
  if (!scan::wanted(path_) || bytes_ > kListsBytesMax || file_.size() + piece.data.size() > scan::kFileMax ||
      (!piece.more && ++files_ > kListsFilesMax)) {
    if (!piece.more) ++inventory_.skipped, path_.clear(), file_.clear();
    return;
  }
  file_ += as_string(piece.data);
  if (piece.more) return;
  scan::take(inventory_, path_, file_);
  path_.clear(), file_.clear(), file_.shrink_to_fit();
}

std::string ImageLists::end(bool whole) {
  if (!whole || !path_.empty()) ++inventory_.skipped;
  scan::settle(inventory_);
  return scan::inventory_text(inventory_, kPackagesTextMax);
}

std::string PackageBook::file(const std::string& digest) const {
  return folder_ + "/" + crypto::sha256_hex(as_bytes(digest));
}

void PackageBook::keep(const std::string& digest, const std::string& text) {
  std::error_code failure;
  fs::create_directories(folder_, failure);
  std::size_t others = 0;
  for (fs::directory_iterator each(folder_, failure), end; !failure && each != end; each.increment(failure))
    if (++others >= kInventoriesMax) {
      std::error_code ignored;
      fs::remove(each->path(), ignored);
    }
  if (const Status kept = crypto::write_secret_file(file(digest), as_bytes(text)); !kept.ok())
    log_warn("agent", "what is installed in an image is not kept: {}", kept.error().message);
}

std::string PackageBook::of(const std::string& digest) const {
  std::ifstream in(file(digest), std::ios::binary);
  std::stringstream text;
  if (in) text << in.rdbuf();
  std::string out = text.str();
  return out.size() <= kPackagesTextMax ? out : std::string();
}

}  // namespace muster::host
