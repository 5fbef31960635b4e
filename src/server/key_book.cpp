#include "server/key_book.h"

#include "base/log.h"
#include "control/command.h"
#include "crypto/hash.h"
#include "server/agents.h"
#include "server/context.h"
#include "server/relay_teller.h"
#include "server/signed_book.h"
#include "server/signer.h"

namespace muster::server {

Status KeyBook::set(const std::string& text) {
  auto fresh = std::make_shared<KeysNow>();
  if (!text.empty()) fresh->statement = TRY(crypto::parse_signing_keys(text));
  fresh->text = text;
  const crypto::Digest digest = crypto::sha256(as_bytes(text));
  fresh->sha256.assign(digest.begin(), digest.end());
  const std::lock_guard lock(mutex_);
  now_ = std::move(fresh);
  return {};
}

crypto::Key32 KeyBook::signing(crypto::KeyKind kind, WallTime now, const crypto::Key32& otherwise) const {
  const auto keys = get();
  const auto* found = crypto::signing_key(keys->statement, kind, now);
  return found != nullptr ? found->key : otherwise;
}

bool KeyBook::names(crypto::KeyKind kind, ByteView key_id) const {
  const auto keys = get();
  if (keys->statement.revision == 0) return true;
  for (const auto& each : keys->statement.keys) {
    const Bytes id = crypto::short_key_id(each.key);
    if (each.kind == kind && std::equal(id.begin(), id.end(), key_id.begin(), key_id.end())) return true;
  }
  return false;
}

WallTime KeyBook::next_change(WallTime now) const {
  const auto keys = get();
  WallTime out{0};
  for (const auto& each : keys->statement.keys)
    for (const WallTime at : {each.from, each.until})
      if (at > now && (out.ms == 0 || at < out)) out = at;
  return out;
}

Status take_keys(Context& context, const std::string& text) {
  const auto before = context.keys.get();
  if (text == before->text) return {};
  TRY_VOID(context.keys.set(text));
  const auto now = context.keys.get();
  log_info("musterd", "signing keys of revision {} are in use now", now->statement.revision);
  context.signatures->forget();
  context.agents->keys_changed();
  context.relay->keys_changed();
  note_keys(context);
  return {};
}

Status refresh_keys(Context& context) {
  return take_keys(context, TRY(context.identity.signer->view()).keys);
}

void note_keys(Context& context) {
  const auto now = context.keys.get();
  if (now->statement.revision == 0) return;
  control::NoteSigningKeys command;
  command.revision = now->statement.revision;
  for (const auto& each : now->statement.keys)
    command.keys.push_back(
        {static_cast<std::uint8_t>(each.kind), crypto::key_id_text(each.key), each.from, each.until});
  control::Actor actor;
  actor.system = true;
  context.runner->submit(
      control::Lane::Liveness, std::move(command), std::move(actor), [](const Result<engine::Reply>& reply) {
        if (!reply.ok())
          log_warn("musterd", "the signing keys in use could not be written down: {}", reply.error().message);
      });
}

}  // namespace muster::server
