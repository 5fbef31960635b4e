#pragma once
// `muster audit`, and entries of the audit trail and refusals as lines for other programs: ArcSight CEF (version 0) and
// syslog (RFC 5424, facility 13 "log audit", with structured data). Input is an item of GET /api/v1/audit or
// /api/v1/audit/refused; control characters never reach a line. Pure.
#include <string>

#include "wire/json.h"

namespace CLI {
class App;
}

namespace muster::cli {

struct Shell;
void add_audit(CLI::App& app, Shell& shell);

std::string audit_line(const wire::Json& entry);                            // for people, without the newline
std::string cef_line(const wire::Json& entry);                              // the same
std::string syslog_line(const wire::Json& entry, const std::string& host);  // host: of the control plane

}  // namespace muster::cli
