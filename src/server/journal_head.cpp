#include "server/journal_head.h"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include "control/core.h"
#include "crypto/file.h"
#include "crypto/hash.h"
#include "crypto/sign.h"
#include "journal/entry.h"
#include "server/audit.h"
#include "server/context.h"
#include "server/signer.h"
#include "wire/json.h"

namespace muster::server {
namespace {

namespace fs = std::filesystem;
constexpr std::string_view kDomain = "muster journal head 1";
constexpr std::size_t kHeadPage = 1000;
constexpr std::size_t kHeadBytesMax = 64 * 1024;

Bytes signed_bytes(const wire::HeadView& head) {
  return crypto::framed(kDomain,
                        {as_bytes(head.server_id), as_bytes(std::to_string(head.incarnation)),
                         as_bytes(std::to_string(head.seq)), as_bytes(head.hash), as_bytes(format_utc(head.at))});
}

Status write_key(const DataDir& dir, const crypto::SigningKey& key) {
  const std::string id = audit_key_id(key.public_key());
  TRY_VOID(crypto::write_public_file(dir.key("audit-" + id + ".pub"), as_bytes(base64(key.public_key()) + "\n")));
  return dir.write(dir.key("audit.pem"), as_bytes(key.to_pem()));
}

std::string read_small(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string out(kHeadBytesMax, '\0');
  in.read(out.data(), static_cast<std::streamsize>(out.size()));
  out.resize(static_cast<std::size_t>(std::max<std::streamsize>(0, in.gcount())));
  return out;
}

std::string utc_day(WallTime time) {
  return format_utc(time).substr(0, 10);
}

struct Walked {
  std::uint64_t entries = 0;
  std::vector<std::pair<std::uint64_t, std::uint64_t>> raises;  // seq, incarnation
  std::map<std::uint64_t, std::string> hashes;                  // of the entries that a head speaks of
};
Result<Walked> walk_for_heads(const journal::Store& store, std::map<std::uint64_t, std::string> wanted) {
  Walked out;
  journal::ChainVerifier chain;
  while (true) {
    const auto page = TRY(store.read_all(chain.seq() + 1, kHeadPage));
    if (page.empty()) break;
    for (const Bytes& stored : page) {
      const auto entry = TRY(chain.next(stored));
      const auto event = control::decode_event(entry.event);
      if (!event.ok()) return error(event.error().code, fmt::format("entry {}: {}", entry.seq, event.error().message));
      if (const auto* raised = std::get_if<control::IncarnationRaised>(&*event))
        out.raises.emplace_back(entry.seq, raised->incarnation);
      if (wanted.contains(entry.seq)) out.hashes[entry.seq] = hex(chain.hash());
    }
  }
  out.entries = chain.seq();
  return out;
}

std::string cover_text(std::uint64_t proven, std::uint64_t up_to) {
  if (proven == 0) return fmt::format("no older head is kept that proves the entries 1 to {}", up_to);
  return fmt::format("an older head proves the entries 1 to {}", proven);
}

}  // namespace

std::string audit_key_id(ByteView public_key) {
  return crypto::sha256_hex(public_key).substr(0, 16);
}

Status ensure_audit_key(const DataDir& dir) {
  if (fs::exists(dir.key("audit.pem"))) return {};
  if (fs::exists(dir.key("signer-apart")))
    return error(
        Code::FailedPrecondition,
        "the key that signs heads is kept apart: `muster audit head` asks for one, and `musterd audit rotate` is "
        "for the signer's own folder");
  return write_key(dir, crypto::SigningKey::generate());
}

Result<std::string> rotate_audit_key(const DataDir& dir) {
  TRY_VOID(ensure_audit_key(dir));
  const auto key = crypto::SigningKey::generate();
  TRY_VOID(write_key(dir, key));
  return audit_key_id(key.public_key());
}

std::vector<Bytes> known_audit_keys(const DataDir& dir) {
  std::vector<Bytes> out;
  std::error_code fault;
  for (const auto& entry : fs::directory_iterator(dir.root + "/keys", fault)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("audit-") || !name.ends_with(".pub")) continue;
    if (auto key = read_audit_key(entry.path().string()); key.ok()) out.push_back(std::move(*key));
  }
  return out;
}

Result<Bytes> read_audit_key(const std::string& path) {
  std::string text = read_small(path);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
  auto key = unbase64(text);
  if (!key || key->size() != crypto::Key32{}.size())
    return error(
        Code::InvalidArgument,
        fmt::format("{} is no public audit key: it must hold 32 bytes in base64, as DIR/keys/audit-*.pub does", path));
  return *key;
}

Result<wire::HeadView> sign_head(const DataDir& dir, const std::string& server_id, std::uint64_t incarnation,
                                 const journal::Tail& tail, WallTime now) {
  const Bytes pem = TRY(dir.read(dir.key("audit.pem")));
  const auto key = TRY(crypto::SigningKey::from_pem(as_string(pem)));
  wire::HeadView head;
  head.server_id = server_id;
  head.incarnation = incarnation;
  head.seq = tail.seq;
  head.hash = hex(tail.hash);
  head.at = now;
  head.public_key.assign(key.public_key().begin(), key.public_key().end());
  head.key_id = audit_key_id(head.public_key);
  head.signature = key.sign(signed_bytes(head));
  return head;
}

Result<wire::HeadView> parse_head(const std::string& json) {
  const Error wrong = error(Code::InvalidArgument,
                            "this is no signed head; it must be a file that musterd journal head or muster audit head "
                            "wrote");
  const auto value = wire::parse_json(json, {.bytes = kHeadBytesMax});
  if (!value.ok()) return wrong;
  wire::HeadView out;
  out.server_id = (*value)["serverId"].text();
  out.incarnation = static_cast<std::uint64_t>((*value)["incarnation"].integer());
  out.seq = static_cast<std::uint64_t>((*value)["seq"].integer());
  out.hash = (*value)["hash"].text();
  out.key_id = (*value)["keyId"].text();
  const auto at = parse_utc((*value)["at"].text());
  const auto key = unbase64((*value)["publicKey"].text()), signature = unbase64((*value)["signature"].text());
  if (!at || !key || !signature || out.seq == 0 || out.hash.size() != 2 * journal::kHashBytes || !unhex(out.hash))
    return wrong;
  out.at = *at;
  out.public_key = *key;
  out.signature = *signature;
  return out;
}

Status check_signature(const wire::HeadView& head, const std::vector<Bytes>& keys) {
  const Bytes message = signed_bytes(head);
  const bool good = std::any_of(keys.begin(), keys.end(),
                                [&](const Bytes& key) { return crypto::verify(key, message, head.signature); });
  if (good) return {};
  if (keys.empty())
    return error(Code::FailedPrecondition,
                 "there is no public audit key to check the head with; name one with --key (DIR/keys/audit-*.pub)");
  return error(Code::PermissionDenied,
               fmt::format("the head is forged, damaged, or signed by another key ({}) than the ones known here; name "
                           "its public key with --key",
                           head.key_id));
}

Result<wire::HeadView> new_head(const Context& context) {
  std::uint64_t incarnation = 0;
  context.runner->read(
      [&](const control::State& state, const scheduler::Scheduler&) { incarnation = state.incarnation; });
  const auto tail = TRY(context.store->tail());
  return context.identity.signer->head(incarnation, tail.seq, tail.hash);
}

std::string heads_dir(const DataDir& dir) {
  return dir.root + "/heads";
}

Result<std::string> keep_head(const DataDir& dir, const wire::HeadView& head) {
  std::error_code fault;
  fs::create_directories(heads_dir(dir), fault);
  if (fault || ::chmod(heads_dir(dir).c_str(), 0700) != 0)
    return error(Code::Unavailable,
                 fmt::format("the folder {} cannot be made; check the disk and its owner", heads_dir(dir)));
  const std::string path =
      fmt::format("{}/{}-{}-{}.json", heads_dir(dir), utc_day(head.at), head.incarnation, head.seq);
  TRY_VOID(crypto::write_public_file(path, as_bytes(wire::to_json(head) + "\n")));
  return path;
}

bool head_due(const DataDir& dir, WallTime now) {
  std::error_code fault;
  for (const auto& entry : fs::directory_iterator(heads_dir(dir), fault)) {
    if (entry.path().filename().string().starts_with(utc_day(now))) return false;
  }
  return true;
}

std::vector<wire::HeadView> kept_heads(const DataDir& dir, const std::vector<Bytes>& keys) {
  std::vector<wire::HeadView> out;
  std::error_code fault;
  for (const auto& entry : fs::directory_iterator(heads_dir(dir), fault)) {
    auto head = parse_head(read_small(entry.path().string()));
    if (head.ok() && check_signature(*head, keys).ok()) out.push_back(std::move(*head));
  }
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.seq < b.seq; });
  return out;
}

Result<HeadReport> verify_head(const journal::Store& store, const wire::HeadView& head,
                               const std::vector<wire::HeadView>& others) {
  std::map<std::uint64_t, std::string> wanted;
  for (const auto& each : others) wanted[each.seq] = "";
  wanted[head.seq] = "";
  const Walked walked = TRY(walk_for_heads(store, std::move(wanted)));
  const auto holds = [&](const wire::HeadView& each) {
    const auto found = walked.hashes.find(each.seq);
    return found != walked.hashes.end() && found->second == each.hash;
  };
  HeadReport out;
  out.entries = walked.entries;
  out.incarnation = walked.raises.empty() ? 1 : walked.raises.back().second;
  for (const auto& each : others) {
    if (holds(each)) out.proven = std::max(out.proven, each.seq);
  }
  if (holds(head)) {
    out.proven = std::max(out.proven, head.seq);
    out.text = fmt::format("the journal contains entry {} as the head of {} says it, and so every entry before it",
                           head.seq, format_utc(head.at));
    for (const auto& [seq, incarnation] : walked.raises) {
      if (seq <= head.seq) continue;
      out.restored_at = seq;
      out.text += fmt::format("; a backup was restored later, at entry {} (incarnation {})", seq, incarnation);
    }
    return out;
  }
  for (const auto& [seq, incarnation] : walked.raises) {
    if (seq > head.seq || incarnation <= head.incarnation) continue;
    out.verdict = HeadReport::Verdict::Restored;
    out.restored_at = seq;
    out.text = fmt::format(
        "a backup that ended with entry {} was restored (entry {} raised the incarnation to {}): the entries {} to {} "
        "that "
        "the head of {} speaks of were given up with it; {}",
        seq - 1, seq, incarnation, seq, head.seq, format_utc(head.at), cover_text(out.proven, seq - 1));
    return out;
  }
  if (walked.entries < head.seq) {
    out.verdict = HeadReport::Verdict::Truncated;
    out.text = fmt::format(
        "the journal was cut off: it ends with entry {}, but on {} it had {}; the entries {} to {} are missing; {}",
        walked.entries, format_utc(head.at), head.seq, walked.entries + 1, head.seq,
        cover_text(out.proven, walked.entries));
    return out;
  }
  out.verdict = HeadReport::Verdict::Rewritten;
  // A later head may hold where it was signed after the change.
  std::uint64_t good = 0;
  for (const auto& each : others) {
    if (each.seq < head.seq && holds(each)) good = std::max(good, each.seq);
  }
  out.proven = good;
  out.text = fmt::format(
      "the journal was rewritten after {}: entry {} is not the one that the head speaks of although the chain is "
      "whole, so "
      "an entry between {} and {} was changed; {}",
      format_utc(head.at), head.seq, good + 1, head.seq, cover_text(good, head.seq));
  return out;
}

}  // namespace muster::server
