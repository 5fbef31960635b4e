#include "engine/tools.h"

#include <fmt/format.h>

#include <future>

#include "engine/core.h"

namespace muster::engine {
namespace {

constexpr std::size_t kPage = 1'000;

Status each_entry(const journal::Store& store, std::uint64_t from, std::uint64_t to,
                  const std::function<Status(const journal::Entry&, const Bytes&, const control::Event&)>& f) {
  std::uint64_t next = from < 1 ? 1 : from;
  while (next <= to) {
    const std::vector<Bytes> page = TRY(store.read_all(next, kPage));
    if (page.empty()) return {};
    for (const Bytes& stored : page) {
      const journal::Entry entry = TRY(journal::decode(stored));
      if (entry.seq > to) return {};
      const control::Event event = TRY(control::decode_event(entry.event));
      TRY_VOID(f(entry, stored, event));
      next = entry.seq + 1;
    }
  }
  return {};
}

std::string who(const journal::EntryActor& actor) {
  if (actor.system) return "system";
  if (actor.node) return actor.node.str();
  return actor.principal ? actor.principal.str() : "anonymous";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto code = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += std::string("\\") + c;
    else if (code < 0x20 || code >= 0x7f)
      out += fmt::format("\\u{:04x}", code);
    else
      out += c;
  }
  return out + "\"";
}

}  // namespace

Result<VerifyReport> verify(const journal::Store& store) {
  const std::optional<journal::Snapshot> snapshot = TRY(store.load_snapshot());
  const journal::Tail tail = TRY(store.tail());
  Base base;
  std::string differs;
  TRY_VOID(catch_up(store, base, [&](std::uint64_t seq, const Bytes& stored) {
    if (!snapshot || seq != snapshot->seq) return;
    if (journal::hash_of(stored) != snapshot->entry_hash ||
        control::encode_state(base.state, control::snapshot_format(snapshot->state)) != snapshot->state) {
      differs = fmt::format(
          "the snapshot at entry {} differs from the fold of the entries; delete the snapshots file, it is rebuilt",
          seq);
    }
  }));
  if (!differs.empty()) return error(Code::DataLoss, differs);
  if (base.seq < tail.seq)
    return error(Code::DataLoss, fmt::format("entries {} to {} are missing; restore a backup", base.seq + 1, tail.seq));
  VerifyReport report{base.seq, tail.leader_epoch, base.state.incarnation, snapshot ? snapshot->seq : 0, hex(base.hash),
                      {}};
  report.state_digest = hex(control::state_digest(base.state));
  return report;
}

Status show(const journal::Store& store, std::uint64_t from, std::uint64_t to, const Line& line) {
  return each_entry(store, from, to,
                    [&](const journal::Entry& entry, const Bytes&, const control::Event& event) -> Status {
                      line(fmt::format("{:>8}  {}  {:<10} {:<24} {}", entry.seq, format_utc(entry.wall),
                                       who(entry.actor), control::event_name(event), control::describe(event)));
                      return {};
                    });
}

Status export_json(const journal::Store& store, std::uint64_t from, std::uint64_t to, const Line& line) {
  return each_entry(
      store, from, to, [&](const journal::Entry& entry, const Bytes& stored, const control::Event& event) -> Status {
        line(fmt::format(
            R"({{"seq":{},"at":"{}","leader_epoch":{},"actor":"{}","org":"{}","request_id":{},"event":"{}","subject":{},)"
            R"("fields":{},"hash":"{}","prev_hash":"{}"}})",
            entry.seq, format_utc(entry.wall), entry.leader_epoch, who(entry.actor), entry.actor.org.str(),
            quoted(entry.actor.request_id), control::event_name(event), quoted(control::event_subject(event)),
            control::describe(event), hex(journal::hash_of(stored)), hex(entry.prev_hash)));
        return {};
      });
}

Result<std::uint64_t> raise_incarnation(journal::Store& store, Now now, const std::string& why) {
  Base loaded = TRY(load_base(store));
  Engine::Options options;
  options.tick = Millis(0);
  const Base again = loaded;
  Engine engine(options, store, std::move(loaded), [&] { return again; });
  TRY_VOID(engine.start(now));
  control::Actor actor;
  actor.system = true;
  TRY_VOID(engine.submit(control::Lane::Operator, control::RaiseIncarnation{why}, actor, 1));
  while (auto batch = engine.poll(now)) {
    auto answer = std::make_shared<std::promise<journal::AppendResult>>();
    auto future = answer->get_future();
    store.append(std::move(*batch), [answer](journal::AppendResult result) { answer->set_value(std::move(result)); });
    engine.on_append(future.get(), now);
  }
  for (const TokenReply& reply : engine.take_output().replies) {
    if (reply.token == 1 && !reply.result) return reply.result.error();
  }
  return TRY(load_base(store)).state.incarnation;
}

}  // namespace muster::engine
