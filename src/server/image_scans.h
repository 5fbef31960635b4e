#pragma once
// What is known to be wrong with the images that machines run. A machine tells what is installed in an image, by the
// image's own lists (scan/inventory.h); here it is held against the operator's database, by his policy, and again
// whenever one of them changes. The verdict goes to who runs the image: an event, a warning in the cluster's status;
// where the policy says so, a condemned image is also denied by the platform's image policy, so that it gets no more
// machines. Nothing is judged while there is no database.
//   DIR/advisories/        records in the OSV format (*.json, in folders of any depth)
//   DIR/scan-policy.json   scan/verdict.h, ScanPolicy
// Machines of up to kTellersMax suppliers are heard for each image, and the worst verdict counts: one that lies can
// condemn an image, and clear none that another tells the truth of. A denial needs two suppliers who agree, or a
// machine of a better tier than `community`. Lists outlast restarts in the side table "image_scans". Thread-safe; the
// database is read on a thread of its own.
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "control/state.h"
#include "scan/verdict.h"
#include "server/context.h"
#include "session/frames.h"

namespace muster::server {

struct ImageScan {
  std::string image;  // as the probe of a cluster names it
  scan::Outcome outcome = scan::Outcome::NotScanned;
  std::string why;
  std::string system;                                  // "Debian:12"
  std::size_t packages = 0, suppliers = 0, agree = 0;  // agree: with this verdict
  bool trusted = false;                                // one of those that agree is no `community` machine
  std::vector<scan::Finding> findings;                 // the worst first, at most kShownMax
  std::size_t found = 0;                               // so many there are
  WallTime database;
  std::uint64_t key() const;  // names it in lists
};

class ImageScans {
 public:
  static constexpr std::size_t kTellersMax = 4, kImagesMax = 2'000, kShownMax = 100;

  explicit ImageScans(Context& context) : context_(context) {}
  ~ImageScans() { stop(); }
  Status load();
  void start();
  void stop();
  // From a machine: taken if it runs that image, for a cluster that was told so.
  void offered(NodeId node, const session::PackagesOffer& offer);
  void refresh();  // database and policy may have changed, or the day
  std::vector<ImageScan> list() const;
  std::optional<ImageScan> of(const std::string& image) const;
  // For people who look at a cluster that runs it; empty: nothing stands against it, or nothing was judged.
  std::string warning(const std::string& image) const;
  std::map<std::string, std::size_t> counts() const;  // by verdict

  // Everything that is known, once, on the caller's thread; the own thread calls it.
  Status judge_all();

 private:
  struct Told {
    OrgId supplier;
    bool trusted = false;
    scan::Inventory inventory;
  };
  void run();
  void tell(const ImageScan& scan, bool news);
  void deny(const ImageScan& scan);

  Context& context_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false, due_ = false;
  std::map<std::string, std::vector<Told>> told_;  // by image
  std::map<std::string, ImageScan> scans_;
  std::thread thread_;
};

}  // namespace muster::server
