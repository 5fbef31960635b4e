#include "wire/audit_views.h"

#include "muster/v1/api.pb.h"
#include "wire/message_json.h"
#include "wire/rest_spec.h"

namespace muster::wire {
namespace {

// Names that people and machines chose may be any bytes; JSON must stay UTF-8.
std::string utf8_only(const std::string& value) {
  if (valid_utf8(value)) return value;
  std::string out;
  for (const char c : value) out += static_cast<unsigned char>(c) < 0x80 ? c : '?';
  return out;
}
void write(const AuditActorView& from, v1::AuditActor& to) {
  to.set_kind(from.kind);
  to.set_id(from.id);
  to.set_name(utf8_only(from.name));
  to.set_org_id(from.org.str());
}

}  // namespace

std::string to_json(const AuditView& view) {
  v1::AuditEntry m;
  m.set_seq(view.seq);
  m.set_at(time_text(view.at));
  write(view.actor, *m.mutable_actor());
  m.set_request_id(utf8_only(view.request_id));
  m.set_verb(view.verb);
  auto& object = *m.mutable_object();
  object.set_kind(view.object.kind);
  object.set_id(view.object.id);
  object.set_name(utf8_only(view.object.name));
  object.set_org_id(view.object.org.str());
  m.set_outcome(view.outcome);
  m.set_event(view.event);
  m.set_text(utf8_only(view.text));
  m.set_address(view.address);
  return write_message(m);
}
std::string to_json(const RefusalView& view) {
  v1::Refusal m;
  write(view.actor, *m.mutable_actor());
  m.set_operation(view.operation);
  m.set_code(view.code);
  m.set_count(view.count);
  m.set_first_at(time_text(view.first));
  m.set_last_at(time_text(view.last));
  m.set_last_request_id(utf8_only(view.last_request_id));
  m.set_last_address(view.last_address);
  return write_message(m);
}
std::string to_json(const HeadView& view) {
  v1::JournalHead m;
  m.set_server_id(view.server_id);
  m.set_incarnation(view.incarnation);
  m.set_seq(view.seq);
  m.set_hash(view.hash);
  m.set_at(time_text(view.at));
  m.set_key_id(view.key_id);
  m.set_public_key(base64(view.public_key));
  m.set_signature(base64(view.signature));
  return write_message(m);
}

}  // namespace muster::wire
