#include "session/frames.h"

namespace muster::session {

ServerFrame::ServerFrame() = default;
ServerFrame::ServerFrame(const ServerFrame&) = default;
ServerFrame::ServerFrame(ServerFrame&&) noexcept = default;
ServerFrame& ServerFrame::operator=(const ServerFrame&) = default;
ServerFrame& ServerFrame::operator=(ServerFrame&&) noexcept = default;
ServerFrame::~ServerFrame() = default;
bool ServerFrame::operator==(const ServerFrame& other) const {
  return static_cast<const AnyServerFrame&>(*this) == static_cast<const AnyServerFrame&>(other);
}

AgentFrame::AgentFrame() = default;
AgentFrame::AgentFrame(const AgentFrame&) = default;
AgentFrame::AgentFrame(AgentFrame&&) noexcept = default;
AgentFrame& AgentFrame::operator=(const AgentFrame&) = default;
AgentFrame& AgentFrame::operator=(AgentFrame&&) noexcept = default;
AgentFrame::~AgentFrame() = default;
bool AgentFrame::operator==(const AgentFrame& other) const {
  return static_cast<const AnyAgentFrame&>(*this) == static_cast<const AnyAgentFrame&>(other);
}

}  // namespace muster::session
