#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>

#include "control/core.h"
#include "crypto/file.h"
#include "engine/core.h"
#include "journal/entry.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"
#include "server/journal_head.h"
#include "wire/json.h"

namespace muster::server {
namespace {

constexpr std::size_t kPage = 1000;

std::string actor_of(const journal::EntryActor& actor) {
  if (actor.system) return "system";
  return actor.principal ? actor.principal.str() : actor.node ? actor.node.str() : "nobody";
}

wire::Json as_json(const journal::Entry& entry, const Bytes& stored) {
  auto out = wire::Json::object();
  out.set("seq", wire::Json::string(std::to_string(entry.seq))).set("at", wire::Json::string(format_utc(entry.wall)));
  out.set("leaderEpoch", wire::Json::string(std::to_string(entry.leader_epoch)))
      .set("actor", wire::Json::string(actor_of(entry.actor)));
  const auto event = control::decode_event(entry.event);
  out.set("type", wire::Json::string(event.ok() ? std::string(control::event_name(*event)) : "unknown"));
  out.set("subject", wire::Json::string(event.ok() ? control::event_subject(*event) : ""));
  out.set("event", wire::Json::string(base64(entry.event))).set("prevHash", wire::Json::string(hex(entry.prev_hash)));
  out.set("hash", wire::Json::string(hex(journal::hash_of(stored))));
  return out;
}

struct Walk {
  std::uint64_t entries = 0, bytes = 0;
  Bytes hash;
};

// Always from the first entry, so that the chain is checked even when only a part is printed.
Result<Walk> walk(const journal::Store& store, const std::function<bool(const journal::Entry&, const Bytes&)>& visit) {
  journal::ChainVerifier chain;
  Walk out;
  while (true) {
    const auto page = TRY(store.read_all(chain.seq() + 1, kPage));
    if (page.empty()) break;
    for (const auto& stored : page) {
      const auto entry = TRY(chain.next(stored));
      TRY_VOID(control::decode_event(entry.event));
      ++out.entries;
      out.bytes += stored.size();
      if (!visit(entry, stored)) return out;
    }
  }
  out.hash = chain.hash();
  return out;
}

// Signs the newest entry; also for a journal in use.
Result<std::string> make_head(const DataDir& dir, const journal::Store& store, const std::string& out) {
  // Not load_identity: that renews what nears its end, which is for the musterd that serves.
  const Bytes server_id = TRY(dir.read(dir.key("server_id")));
  TRY_VOID(ensure_audit_key(dir));
  const auto base = TRY(engine::load_base(store));
  if (base.seq == 0) return error(Code::FailedPrecondition, "the journal is empty: there is nothing to sign");
  journal::Tail tail;
  tail.seq = base.seq, tail.hash = base.hash;
  const auto head = TRY(sign_head(dir, as_string(server_id), base.state.incarnation, tail, read_clocks().wall));
  const std::string kept = TRY(keep_head(dir, head));
  if (out.empty()) return kept;
  TRY_VOID(crypto::write_public_file(out, as_bytes(wire::to_json(head) + "\n")));
  return out;
}

// A head against the journal; the public key comes from --key, else from the folder that is checked.
Result<HeadReport> check_head(const DataDir& dir, const journal::Store& store, const std::string& file,
                              const std::string& key) {
  std::ifstream in(file, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in || text.empty()) return error(Code::NotFound, fmt::format("--head {}: the file cannot be read", file));
  const auto head = TRY(parse_head(text));
  const std::vector<Bytes> keys = key.empty() ? known_audit_keys(dir) : std::vector<Bytes>{TRY(read_audit_key(key))};
  TRY_VOID(check_signature(head, keys));
  if (const auto id = dir.read(dir.key("server_id")); id.ok() && as_string(*id) != head.server_id)
    return error(Code::FailedPrecondition, fmt::format("the head is of the control plane {}, the folder holds {}",
                                                       head.server_id, as_string(*id)));
  return verify_head(store, head, kept_heads(dir, keys));
}

int print_head(const Result<HeadReport>& report) {
  if (!report.ok()) {
    fmt::print(stderr, "musterd journal: {}\n", report.error().message);
    return 1;
  }
  using Verdict = HeadReport::Verdict;
  const bool good = report->verdict == Verdict::Holds || report->verdict == Verdict::Restored;
  fmt::print(good ? stdout : stderr, "{}: {}\n",
             report->verdict == Verdict::Holds      ? "ok"
             : report->verdict == Verdict::Restored ? "restored"
                                                    : "TAMPERED",
             report->text);
  return good ? 0 : 1;
}

}  // namespace

int cmd_journal(const Arguments& arguments, const OpenStore& open) {
  const std::string what = arguments.words.size() == 2 ? arguments.words[1] : "";
  const std::string root = arguments.option("--data");
  if (root.empty() || (what != "verify" && what != "show" && what != "export" && what != "head")) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  const auto opened = open_data_dir(arguments);
  if (!opened.ok()) {
    fmt::print(stderr, "musterd journal: {}\n", opened.error().message);
    return 1;
  }
  const DataDir& dir = *opened;
  if (!std::filesystem::exists(dir.journal())) {
    fmt::print(stderr, "musterd journal: there is no journal in {}\n", dir.root);
    return 1;
  }
  const auto store = open(dir.journal(), ring_of(dir));
  if (!store.ok()) {
    fmt::print(stderr, "musterd journal: {}\n", store.error().message);
    return 1;
  }
  if (what == "head") {
    const auto made = make_head(dir, **store, arguments.option("--out"));
    if (made.ok()) {
      fmt::print("{}\n", *made);
      return 0;
    }
    fmt::print(stderr, "musterd journal: {}\n", made.error().message);
    return 1;
  }
  if (const std::string head = arguments.option("--head"); what == "verify" && !head.empty())
    return print_head(check_head(dir, **store, head, arguments.option("--key")));
  const std::uint64_t from = std::strtoull(arguments.option("--from", "1").c_str(), nullptr, 10);
  std::uint64_t left =
      std::strtoull(arguments.option("--count", what == "show" ? "100" : "18446744073709551615").c_str(), nullptr, 10);
  const auto done = walk(**store, [&](const journal::Entry& entry, const Bytes& stored) {
    if (what == "verify" || entry.seq < from) return true;
    if (left-- == 0) return false;
    if (what == "export") {
      fmt::print("{}\n", as_json(entry, stored).dump());
    } else {
      const auto event = control::decode_event(entry.event);
      fmt::print("{:>8}  {}  {:<22} {:<10} {}\n", entry.seq, format_utc(entry.wall), control::event_name(*event),
                 control::event_subject(*event), actor_of(entry.actor));
    }
    return true;
  });
  if (!done.ok()) {
    fmt::print(stderr, "musterd journal: {}\n", done.error().message);
    return 1;
  }
  if (what == "verify") fmt::print("ok: {} entries, {} bytes, head {}\n", done->entries, done->bytes, hex(done->hash));
  return 0;
}

}  // namespace muster::server
