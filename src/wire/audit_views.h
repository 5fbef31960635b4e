#pragma once
// What the API shows of the audit trail, of refusals and of the journal's head. Shapes only; times are WallTime, 0 =
// "". Pure; thread-safe.
#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/id.h"
#include "base/time.h"
#include "model/types.h"

namespace muster::wire {

struct AuditActorView {
  std::string kind, id, name;
  OrgId org;
};
struct AuditObjectView {
  std::string kind, id, name;
  OrgId org;
};
struct AuditView {
  std::uint64_t seq = 0;
  WallTime at;
  AuditActorView actor;
  std::string request_id, verb;
  AuditObjectView object;
  std::string outcome, event, text, address;
};
struct RefusalView {
  AuditActorView actor;
  std::string operation, code;
  std::uint64_t count = 0;
  WallTime first, last;
  std::string last_request_id, last_address;
};
// What a signed head says; the signature is over bytes that server/journal_head.cpp defines.
struct HeadView {
  std::string server_id;
  std::uint64_t incarnation = 0, seq = 0;
  std::string hash;  // hex
  WallTime at;
  std::string key_id;
  Bytes public_key, signature;
};

std::string to_json(const AuditView& view);
std::string to_json(const RefusalView& view);
std::string to_json(const HeadView& view);

}  // namespace muster::wire
