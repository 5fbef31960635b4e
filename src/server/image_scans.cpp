#include "server/image_scans.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "base/version.h"
#include "crypto/hash.h"
#include "model/image_policy.h"
#include "model/node_labels.h"
#include "server/event_hub.h"
#include "server/views.h"
#include "wire/rest.h"

namespace muster::server {
namespace fs = std::filesystem;
namespace {

constexpr const char* kScanTable = "image_scans";
constexpr std::size_t kFilesMax = 1'000'000;

Result<std::string> read_whole(const std::string& path, std::size_t bytes_max) {
  std::error_code failure;
  const auto size = fs::file_size(path, failure);
  if (failure || size > bytes_max) return error(Code::Unavailable, path + " cannot be read, or is too large");
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  if (!file) return error(Code::Unavailable, path + " cannot be read");
  return text.str();
}

Result<scan::ScanPolicy> read_policy(const std::string& path) {
  std::error_code failure;
  if (!fs::exists(path, failure)) return scan::ScanPolicy{};
  auto policy = scan::parse_scan_policy(TRY(read_whole(path, 4 << 20)));
  if (!policy.ok()) return error(policy.error().code, path + ": " + policy.error().message);
  return policy;
}

// A fault of one file is said, and the others are read: less is known then, and never more than before.
Status read_advisories(const std::string& folder, std::vector<scan::Matcher>& matchers) {
  Status fault;
  std::size_t files = 0, bad = 0;
  std::error_code failure;
  for (fs::recursive_directory_iterator walk(folder, failure), end; !failure && walk != end; walk.increment(failure)) {
    std::error_code ignored;
    if (walk->path().extension() != ".json" || !walk->is_regular_file(ignored)) continue;
    if (++files > kFilesMax) return error(Code::TooLarge, folder + " holds more than a million records");
    const auto text = read_whole(walk->path().string(), scan::kRecordMax);
    const auto record = text.ok() ? scan::parse_record(*text) : Result<wire::Json>(text.error());
    Status added = record.ok() ? Status() : Status(record.error());
    for (scan::Matcher& matcher : matchers)
      if (added.ok()) added = matcher.add(*record);
    if (!added.ok() && ++bad == 1)
      fault = error(Code::InvalidArgument, walk->path().string() + ": " + added.error().message);
  }
  if (failure) return error(Code::Unavailable, folder + " cannot be read: " + failure.message());
  if (bad > 1) fault = error(Code::InvalidArgument, fmt::format("{} ({} such files)", fault.error().message, bad));
  return fault;
}

// What is worse to know, or not to know.
int weight(scan::Outcome outcome) {
  switch (outcome) {
    case scan::Outcome::Block:
      return 4;
    case scan::Outcome::NotScanned:
      return 3;
    case scan::Outcome::Stale:
      return 2;
    case scan::Outcome::Warn:
      return 1;
    case scan::Outcome::Pass:
      return 0;
  }
  return 3;
}

std::string row_of(const std::string& image, OrgId supplier) {
  return crypto::sha256_hex(as_bytes(image)) + " " + supplier.str();
}

}  // namespace

std::uint64_t ImageScan::key() const {
  return std::stoull(crypto::sha256_hex(as_bytes(image)).substr(0, 15), nullptr, 16);
}

Status ImageScans::load() {
  const std::lock_guard lock(mutex_);
  std::string after;
  while (true) {
    const auto rows = TRY(context_.store->list_side(kScanTable, after, 100));
    if (rows.empty()) break;
    for (const auto& [name, bytes] : rows) {
      after = name;
      // "trusted image\n" and the inventory
      const std::string text = as_string(bytes);
      const auto line = text.find('\n');
      const auto supplier = OrgId::parse(name.substr(std::min(name.size(), name.find(' ') + 1)));
      auto inventory = line == std::string::npos ? Result<scan::Inventory>(error(Code::DataLoss, "no line"))
                                                 : scan::parse_inventory(std::string_view(text).substr(line + 1));
      if (!supplier || !inventory.ok() || line < 3 || told_.size() >= kImagesMax) {
        TRY_VOID(context_.store->erase_side(kScanTable, name));
        continue;
      }
      told_[text.substr(2, line - 2)].push_back({*supplier, text[0] == '1', std::move(*inventory)});
    }
  }
  due_ = !told_.empty();
  return {};
}

void ImageScans::start() {
  thread_ = std::thread([this] { run(); });
}

void ImageScans::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void ImageScans::refresh() {
  {
    const std::lock_guard lock(mutex_);
    due_ = true;
  }
  wake_.notify_all();
}

void ImageScans::run() {
  while (true) {
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return stopping_ || due_; });
      if (stopping_) return;
      due_ = false;
    }
    if (const Status judged = judge_all(); !judged.ok())
      log_error("images", "advisories about images: {}", judged.error().message);
  }
}

void ImageScans::offered(NodeId node, const session::PackagesOffer& offer) {
  OrgId supplier;
  bool trusted = false;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const Lease* lease = state.find_lease(offer.lease);
    const Cluster* cluster = lease == nullptr ? nullptr : state.find_cluster(lease->cluster);
    const Node* machine = state.find_node(node);
    if (cluster == nullptr || machine == nullptr || lease->node != node || lease->end != LeaseEnd::None) return;
    // It comes before the report that names the image first; after that it must be that one.
    if (!cluster->probe->digest.empty() && cluster->probe->digest != offer.image) return;
    supplier = machine->supplier, trusted = machine->tier != TrustTier::Community;
  });
  if (!supplier || offer.image.empty() || offer.image.size() > 512 || offer.image.find('\n') != std::string::npos)
    return;
  auto inventory = scan::parse_inventory(offer.packages);
  if (!inventory.ok())
    return log_warn("images", "{} tells what is installed in {} in a way that is refused: {}", node.str(), offer.image,
                    inventory.error().message);
  {
    const std::lock_guard lock(mutex_);
    if (!told_.contains(offer.image) && told_.size() >= kImagesMax) return;
    auto& told = told_[offer.image];
    const auto own = std::find_if(told.begin(), told.end(), [&](const Told& t) { return t.supplier == supplier; });
    if (own == told.end() && told.size() >= kTellersMax) return;
    if (own != told.end() && own->inventory.packages == inventory->packages && own->trusted == trusted) return;
    if (own == told.end())
      told.push_back({supplier, trusted, *inventory});
    else
      own->inventory = *inventory, own->trusted = trusted;
    due_ = true;
  }
  const Status kept = context_.store->put_side(kScanTable, row_of(offer.image, supplier),
                                               to_bytes((trusted ? "1 " : "0 ") + offer.image + "\n" + offer.packages));
  if (!kept.ok()) log_warn("images", "what is installed in {} is not kept: {}", offer.image, kept.error().message);
  wake_.notify_all();
}

Status ImageScans::judge_all() {
  const std::string folder = context_.dir.advisories();
  std::error_code failure;
  const bool on = fs::is_directory(folder, failure);
  auto policy = read_policy(context_.dir.scan_policy());
  Status fault = policy.ok() ? Status() : Status(policy.error());
  struct Work {
    std::string image;
    Told told;
  };
  std::vector<Work> work;  // a copy: the database takes its time
  {
    const std::lock_guard lock(mutex_);
    if (!on) scans_.clear();
    for (const auto& [image, told] : told_)
      for (const Told& each : told)
        if (on) work.push_back({image, each});
  }
  // A faulty policy changes nothing of what is in force.
  if (!on || !policy.ok() || work.empty()) return fault;
  std::vector<scan::Matcher> matchers;
  matchers.reserve(work.size());
  for (const Work& each : work) matchers.emplace_back(each.told.inventory);
  if (const Status read = read_advisories(folder, matchers); !read.ok()) fault = read;
  const WallTime now = read_clocks().wall;
  std::map<std::string, ImageScan> fresh;
  for (std::size_t i = 0; i < work.size(); ++i) {
    const scan::Inventory& inventory = work[i].told.inventory;
    scan::Facts facts = scan::facts_of(inventory, matchers[i], "muster " + std::string(kVersion));
    const WallTime database = facts.database;
    scan::Verdict verdict = scan::judge(std::move(facts), policy->rules, now);
    ImageScan& scan = fresh[work[i].image];
    const bool first = scan.suppliers++ == 0;
    if (!first && weight(verdict.outcome) < weight(scan.outcome)) continue;
    if (first || weight(verdict.outcome) > weight(scan.outcome)) scan.agree = 0, scan.trusted = false;
    ++scan.agree;
    scan.trusted = scan.trusted || work[i].told.trusted;
    scan.image = work[i].image, scan.outcome = verdict.outcome, scan.why = verdict.why;
    scan.system = inventory.system, scan.packages = inventory.packages.size(), scan.database = database;
    scan.findings = std::move(verdict.findings), scan.found = scan.findings.size();
    scan.findings.resize(std::min(scan.findings.size(), kShownMax));
  }
  std::vector<std::pair<ImageScan, bool>> news;
  {
    const std::lock_guard lock(mutex_);
    for (const auto& [image, scan] : fresh) {
      const auto before = scans_.find(image);
      const bool known = before != scans_.end();
      if (!known || before->second.outcome != scan.outcome || before->second.why != scan.why)
        news.emplace_back(scan, known);
    }
    scans_ = std::move(fresh);
  }
  for (const auto& [scan, known] : news) tell(scan, known);
  if (policy->deny)
    for (const ImageScan& scan : list())
      if (scan.outcome == scan::Outcome::Block) deny(scan);
  return fault;
}

// Those who run it. After a restart everything is judged for the first time, and only what condemns is told again.
void ImageScans::tell(const ImageScan& scan, bool news) {
  const bool bad = scan.outcome == scan::Outcome::Block;
  if (bad)
    log_warn("images", "{} is condemned: {}", scan.image, scan.why);
  else
    log_info("images", "{}: {}, {}", scan.image, scan::text(scan.outcome), scan.why);
  if (!bad && !news) return;
  std::vector<std::pair<access::Object, wire::EventView>> events;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    for (const auto& [id, cluster] : state.clusters) {
      if (control::terminal(cluster.state) || cluster.probe->digest != scan.image) continue;
      wire::EventView event{
          0,
          read_clocks().wall,
          "image.verdict",
          id.str(),
          fmt::format("the image of {}: {}, {}", cluster.spec.name, scan::text(scan.outcome), scan.why),
          {},
          {}};
      event.data = {{"verdict", std::string(scan::text(scan.outcome))}, {"image", scan.image}, {"why", scan.why}};
      events.emplace_back(object_of(state, cluster), std::move(event));
    }
  });
  for (auto& [object, event] : events) context_.events->transient(object, event.type, wire::to_json(event));
}

// Put among what the platform's policy denies, where everybody sees it and an operator takes it off again.
void ImageScans::deny(const ImageScan& scan) {
  if (scan.agree < 2 && !scan.trusted) return;
  const std::string named = image_digest(scan.image);
  const std::string& digest = named.empty() ? scan.image : named;
  if (!digest.starts_with("sha256:")) return;
  bool there = false;
  context_.runner->read([&](const control::State& state, const scheduler::Scheduler&) {
    const auto found = state.orgs.find(kPlatformOrg);
    if (found == state.orgs.end()) return;
    const auto& denied = found->second.images.deny;
    there = std::find(denied.begin(), denied.end(), digest) != denied.end();
  });
  if (there) return;
  control::Actor actor;
  actor.system = true;
  context_.runner->submit(control::Lane::Liveness, control::DenyImage{digest}, std::move(actor),
                          [digest, why = scan.why](const auto& reply) {
                            if (reply.ok())
                              log_warn("images", "{} is denied from now on: {}", digest, why);
                            else
                              log_error("images", "{} is condemned and cannot be denied, deny it by hand: {}", digest,
                                        reply.error().message);
                          });
}

std::vector<ImageScan> ImageScans::list() const {
  const std::lock_guard lock(mutex_);
  std::vector<ImageScan> out;
  for (const auto& [image, scan] : scans_) out.push_back(scan);
  return out;
}

std::optional<ImageScan> ImageScans::of(const std::string& image) const {
  const std::lock_guard lock(mutex_);
  const auto found = scans_.find(image);
  return found == scans_.end() ? std::nullopt : std::optional(found->second);
}

std::string ImageScans::warning(const std::string& image) const {
  const auto scan = of(image);
  if (!scan || scan->outcome == scan::Outcome::Pass || scan->outcome == scan::Outcome::Warn) return {};
  if (scan->outcome != scan::Outcome::Block)
    return fmt::format("what is known against the image's packages: {}, {}", scan::text(scan->outcome), scan->why);
  const auto& worst = scan->findings.front();
  return fmt::format("the image is condemned: {}, such as {} in {} {}{}; `muster images verdicts` shows all", scan->why,
                     worst.id, worst.package, worst.version,
                     worst.fixed.empty() ? std::string() : ", mended in " + worst.fixed);
}

std::map<std::string, std::size_t> ImageScans::counts() const {
  const std::lock_guard lock(mutex_);
  std::map<std::string, std::size_t> out;
  for (const auto& [image, scan] : scans_) ++out[std::string(scan::text(scan.outcome))];
  return out;
}

}  // namespace muster::server
