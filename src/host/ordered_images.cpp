#include "host/ordered_images.h"

#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "crypto/file.h"
#include "host/json.h"

namespace muster::host {
namespace {

constexpr std::size_t kNameBytesMax = 512;

bool tellable(const std::string& name) {
  return !name.empty() && name.size() <= kNameBytesMax;
}

}  // namespace

OrderedImages::OrderedImages(std::string file) : file_(std::move(file)) {
  std::ifstream in(file_);
  std::stringstream text;
  text << in.rdbuf();
  const auto list = parse_value(text.str());
  if (!list.ok() || !list->is_array()) return;
  for (const auto& each : list->get_array()) {
    const auto* row = each.if_array();
    if (row == nullptr || images_.size() >= kOrderedMax) continue;
    std::vector<std::string> texts;
    for (const auto& item : *row)
      if (item.is_string() && texts.size() <= kNamesOrderedMax) texts.emplace_back(item.get_string().c_str());
    if (texts.size() < 2 || !std::all_of(texts.begin(), texts.end(), tellable)) continue;
    const std::string digest = texts.front();
    texts.erase(texts.begin());
    images_.emplace_back(digest, std::move(texts));
  }
}

void OrderedImages::note(const std::string& digest, const std::string& name) {
  if (!tellable(digest) || !tellable(name) || name == digest) return;
  if (!images_.empty() && images_.back().first == digest && images_.back().second.back() == name) return;
  std::vector<std::string> names;
  const auto known =
      std::find_if(images_.begin(), images_.end(), [&](const auto& each) { return each.first == digest; });
  if (known != images_.end()) {
    names = std::move(known->second);
    images_.erase(known);
  }
  // A name is one image's: the one that it was found to be last.
  for (auto& [other, of] : images_) std::erase(of, name);
  std::erase_if(images_, [](const auto& each) { return each.second.empty(); });
  std::erase(names, name);
  names.push_back(name);
  if (names.size() > kNamesOrderedMax) names.erase(names.begin());
  if (images_.size() >= kOrderedMax) images_.erase(images_.begin());
  images_.emplace_back(digest, std::move(names));
  save();
}

void OrderedImages::report(const std::vector<std::string>& here, const std::map<std::string, std::int64_t>& bytes,
                           NodeFacts& facts) const {
  const auto tell = [&](const std::string& name, const std::string& digest) {
    if (facts.images.size() >= kImagesReportedMax) return;
    facts.images.push_back(name);
    if (const auto size = bytes.find(digest); size != bytes.end()) facts.image_bytes[name] = size->second;
  };
  for (auto it = images_.rbegin(); it != images_.rend(); ++it) {
    if (std::find(here.begin(), here.end(), it->first) == here.end()) continue;
    for (const std::string& name : it->second) tell(name, it->first);
  }
  for (const std::string& digest : here)
    if (std::find(facts.images.begin(), facts.images.end(), digest) == facts.images.end()) tell(digest, digest);
}

void OrderedImages::save() const {
  json::array out;
  for (const auto& [digest, names] : images_) {
    json::array row{json::string(digest)};
    for (const std::string& name : names) row.emplace_back(name);
    out.push_back(std::move(row));
  }
  const Status written = crypto::write_secret_file(file_, as_bytes(to_text(json::value(out))));
  if (!written.ok()) log_warn("agent", "which images are here is not kept: {}", written.error().message);
}

}  // namespace muster::host
