#include <fmt/format.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>

#include "control/core.h"
#include "journal/entry.h"
#include "server/commands.h"
#include "server/identity.h"
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

}  // namespace

int cmd_journal(const Arguments& arguments, const OpenStore& open) {
  const std::string what = arguments.words.size() == 2 ? arguments.words[1] : "";
  const DataDir dir{arguments.option("--data")};
  if (dir.root.empty() || (what != "verify" && what != "show" && what != "export")) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  if (!std::filesystem::exists(dir.journal())) {
    fmt::print(stderr, "musterd journal: there is no journal in {}\n", dir.root);
    return 1;
  }
  const auto store = open(dir.journal());
  if (!store.ok()) {
    fmt::print(stderr, "musterd journal: {}\n", store.error().message);
    return 1;
  }
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
