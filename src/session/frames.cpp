#include "session/frames.h"

#include <array>

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

std::string_view text(NetLarge large) {
  static constexpr std::array<std::string_view, 7> kTexts = {"not known",
                                                             "used",
                                                             "off by the owner's word",
                                                             "off, since this kernel damages them",
                                                             "off, since the kernel refuses them",
                                                             "off for a moment, to see whether less gets lost",
                                                             "off, since they got lost where single ones did not"};
  return kTexts.at(static_cast<std::size_t>(large));
}

}  // namespace muster::session
