// The third part of DockerRuntime: images. What we pulled is remembered in the state directory, so that leaving removes
// it and nothing else; the oldest unused ones go when there are too many.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include "base/bytes.h"
#include "base/log.h"
#include "host/docker_runtime.h"
#include "host/facts.h"
#include "host/image_fault.h"
#include "host/json.h"

namespace muster::host {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::size_t kProgressLineMax = 1 << 20, kLayersMax = 512, kPulledMax = 16;
constexpr std::chrono::minutes kPatience{5};        // without a byte more
constexpr std::chrono::seconds kPatienceFirst{30};  // for a registry that never answered
constexpr Millis kPullSilence{600'000};             // the engine unpacks large layers without a word

std::string encode_query(std::string_view text) {
  std::string out;
  for (const unsigned char c : text) {
    if (std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.' || c == '~')
      out.push_back(static_cast<char>(c));
    else
      out += fmt::format("%{:02X}", c);
  }
  return out;
}

std::string pull_query(const std::string& image) {
  if (image.find('@') != std::string::npos) return "fromImage=" + encode_query(image);
  const std::string repository = image_repository(image);
  const std::string tag = repository.size() == image.size() ? "latest" : image.substr(repository.size() + 1);
  return "fromImage=" + encode_query(repository) + "&tag=" + encode_query(tag);
}

// The engine's names of architectures are Go's.
bool runs_here(const std::string& image_arch, const std::string& machine) {
  if (image_arch.empty()) return true;
  const std::string go = machine == "x86_64" ? "amd64" : machine == "aarch64" ? "arm64" : machine;
  return image_arch == go || image_arch == machine;
}

// The repository of `image` as the engine writes it in digests: docker.io/library/... is left out by Docker.
bool same_repository(std::string_view a, std::string_view b) {
  const auto plain = [](std::string_view name) {
    for (const std::string_view prefix : {"docker.io/", "library/"}) {
      if (name.starts_with(prefix)) name.remove_prefix(prefix.size());
    }
    return name;
  };
  return plain(a) == plain(b);
}

// The engine's progress, layer by layer, as two sums that never shrink.
class Sums {
 public:
  void add(const json::object& said) {
    const std::string id = text_at(said, {"id"}), status = text_at(said, {"status"});
    if (id.empty() || (layers_.size() >= kLayersMax && !layers_.contains(id))) return;
    const auto number = [&](std::string_view key) {
      return static_cast<std::uint64_t>(std::max<std::int64_t>(0, int_at(said, {"progressDetail", key})));
    };
    auto& [done, total] = layers_[id];
    if (status == "Download complete" || status == "Pull complete" || status == "Already exists") {
      done = total;
    } else if (status != "Extracting") {  // counts from zero once more
      done = std::max(done, number("current"));
      total = std::max(total, number("total"));
    }
    done_ = total_ = 0;
    for (const auto& [layer, counts] : layers_) {
      done_ += counts.first;
      total_ += counts.second;
    }
  }
  std::uint64_t done() const { return done_; }
  std::uint64_t total() const { return total_; }

 private:
  std::map<std::string, std::pair<std::uint64_t, std::uint64_t>> layers_;
  std::uint64_t done_ = 0, total_ = 0;
};

}  // namespace

Result<Pulled> DockerRuntime::find_image(const std::string& image) {
  const EngineReply reply = TRY(ask("GET", "/images/" + image + "/json"));
  if (reply.status == 404)
    return error(Code::NotFound, "image " + image + " is not on this machine", "image_pull.not_found");
  const auto object = parse_object(reply.body);
  if (reply.status != 200 || !object.ok()) return image_error(image, reply.status, reply.body);
  const std::string arch = text_at(*object, {"Architecture"});
  if (!runs_here(arch, machine_arch())) {
    return error(
        Code::InvalidArgument,
        fmt::format("image {} is for {}, this machine is {}; name an image for it, or set `arch` in the request", image,
                    arch, machine_arch()),
        "image_pull.wrong_architecture");
  }
  Pulled out;
  out.digest = text_at(*object, {"Id"});
  if (!out.digest.starts_with("sha256:")) out.digest = "sha256:" + out.digest;
  const auto* digests = object->if_contains("RepoDigests");
  if (digests == nullptr || !digests->is_array() || image.starts_with("sha256:")) return out;
  const std::string wanted = image_repository(image);
  for (const auto& each : digests->get_array()) {
    const std::string pinned = each.is_string() ? std::string(each.get_string().c_str()) : std::string();
    // What was imported by hand has a digest too where the engine is Podman, but no registry behind it.
    const bool short_name = wanted.find_first_of(".:") == std::string::npos;
    if (short_name && podman() && !pulled_by_us(out.digest)) continue;
    if (same_repository(image_repository(pinned), wanted)) out.pinned = wanted + pinned.substr(pinned.find('@'));
  }
  return out;
}

Status DockerRuntime::pull_once(const std::string& image, const RegistryAuth& auth, const Progress& progress) {
  EngineCall call{.method = "POST",
                  .target = TRY(api("/images/create?" + pull_query(image))),
                  .timeout = kPullSilence,
                  .cancelled = [&] { return !progress(0, 0); }};
  if (!auth.username.empty()) {
    const json::object credentials{{"username", auth.username}, {"password", auth.password}};
    std::string encoded = base64url(as_bytes(to_text(credentials)));
    encoded.append((4 - encoded.size() % 4) % 4, '=');  // the engine's decoder wants the padding
    call.headers["X-Registry-Auth"] = encoded;
  }
  std::string line, failure;
  Sums sums;
  const auto reply = http_.stream(call, [&](std::string_view part) -> Status {
    line.append(part);
    if (line.size() > kProgressLineMax)
      return error(Code::TooLarge, "the engine's progress line is too long", "image_pull.failed");
    for (auto end = line.find('\n'); end != std::string::npos; end = line.find('\n')) {
      const auto said = parse_object(line.substr(0, end));
      line.erase(0, end + 1);
      if (!said.ok()) continue;
      if (said->contains("error")) failure = text_at(*said, {"error"});
      sums.add(*said);
      if (!progress(sums.done(), sums.total())) return error(Code::Cancelled, "the pull was cancelled", "cancelled");
    }
    return {};
  });
  if (!reply.ok()) return reply.error();
  if (reply->status != 200) {
    const auto parsed = parse_object(reply->body);
    return image_error(image, reply->status, parsed.ok() ? text_at(*parsed, {"message"}) : reply->body);
  }
  if (!failure.empty()) return image_error(image, 200, failure);
  return {};
}

Result<Pulled> DockerRuntime::pull(const PullSpec& spec, const Progress& progress) {
  const std::string& image = spec.image;
  const auto present = find_image(image);
  if (present.ok() && (present->pinned.empty() || !asks_again(image))) return present;
  if (!present.ok() && (present.error().code != Code::NotFound || image.starts_with("sha256:"))) return present;
  std::uint64_t done = 0, total = 0;  // over all tries: what one try fetched the next one does not
  auto moved = Clock::now();
  const auto on_progress = [&](std::uint64_t now_done, std::uint64_t now_total) {
    if (now_done > done) moved = Clock::now();
    done = std::max(done, now_done);
    total = std::max(total, now_total);
    return progress(done, total);
  };
  for (int tries = 1;; ++tries) {
    const Status pulled = pull_once(image, spec.auth, on_progress);
    if (pulled.ok()) break;
    const auto& why = pulled.error();
    if (why.code == Code::Cancelled) return why;
    const bool passing = why.field.empty() || why.field == "engine.gone" || image_fault(0, why.message).passing;
    if (!passing) return why;
    if (present.ok()) {  // only wanted to know whether there is a newer one
      log_info("privd", "{}; what is here already is used", why.message);
      return present;
    }
    if (Clock::now() - moved > (done > 0 ? kPatience : kPatienceFirst)) return why;
    log_info("privd", "{}; trying again", why.message);
    const auto again = Clock::now() + std::chrono::seconds(std::min(1 << std::min(tries, 4), 15));
    while (Clock::now() < again) {
      if (!progress(done, total)) return error(Code::Cancelled, "the pull was cancelled", "cancelled");
      std::this_thread::sleep_for(Millis(250));
    }
  }
  const auto found = find_image(image);
  if (!found.ok() || (present.ok() && present->digest == found->digest)) return found;
  remember_pulled(found->digest);
  return find_image(image);
}

std::vector<std::string> DockerRuntime::pulled_images() {
  std::ifstream file(options_.layout.root + "/images.json");
  std::stringstream text;
  text << file.rdbuf();
  std::vector<std::string> out;
  const auto list = parse_value(text.str());
  if (!list.ok() || !list->is_array()) return out;
  for (const auto& each : list->get_array()) {
    if (each.is_string() && out.size() < 2 * kPulledMax) out.emplace_back(each.get_string().c_str());
  }
  return out;
}

bool DockerRuntime::pulled_by_us(const std::string& digest) {
  const auto images = pulled_images();
  return std::find(images.begin(), images.end(), digest) != images.end();
}

// The oldest go first; the engine itself refuses to remove one that a container needs.
void DockerRuntime::remember_pulled(const std::string& digest) {
  const std::lock_guard lock(images_mutex_);
  auto images = pulled_images();
  std::erase(images, digest);
  for (auto it = images.begin(); it != images.end() && images.size() >= kPulledMax;) {
    const auto removed = ask("DELETE", "/images/" + *it, {}, 120);
    const bool gone = removed.ok() && (removed->status == 200 || removed->status == 404);
    it = gone ? images.erase(it) : it + 1;
  }
  images.push_back(digest);
  json::array kept;
  for (const auto& image : images) kept.emplace_back(image);
  const Status written = write_whole(options_.layout.root + "/images.json", as_bytes(to_text(json::value(kept))), 0600,
                                     geteuid(), getegid());
  if (!written.ok()) log_warn("privd", "{}", written.error().message);
}

// Not by force: an image that somebody else uses or has named otherwise stays.
void DockerRuntime::remove_pulled() {
  const std::lock_guard lock(images_mutex_);
  for (const auto& image : pulled_images()) (void)ask("DELETE", "/images/" + image, {}, 120).ok();
  unlink((options_.layout.root + "/images.json").c_str());
}

}  // namespace muster::host
