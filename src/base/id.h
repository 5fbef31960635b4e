#pragma once
// Strong ids. An id is a counter resolved by the core (never random, never secret); its text form is
// "<prefix>-<number>", e.g. "node-12". Zero means "none".
#include <compare>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace muster {

template <typename Tag>
struct Id {
  std::uint64_t value = 0;
  constexpr auto operator<=>(const Id&) const = default;
  constexpr explicit operator bool() const { return value != 0; }
  std::string str() const {
    return value == 0 ? std::string() : std::string(Tag::prefix) + "-" + std::to_string(value);
  }
  // "node-12" -> Id{12}; anything else -> nullopt. The empty text is "none".
  static std::optional<Id> parse(std::string_view text) {
    constexpr std::string_view prefix = Tag::prefix;
    if (text.size() <= prefix.size() + 1 || text.substr(0, prefix.size()) != prefix || text[prefix.size()] != '-')
      return {};
    text.remove_prefix(prefix.size() + 1);
    if (text.size() > 19 || text[0] == '0') return {};
    std::uint64_t value = 0;
    for (char c : text) {
      if (c < '0' || c > '9') return {};
      value = value * 10 + static_cast<std::uint64_t>(c - '0');
    }
    return Id{value};
  }
};

#define MUSTER_ID(Name, text)                        \
  struct Name##Tag {                                 \
    static constexpr std::string_view prefix = text; \
  };                                                 \
  using Name = ::muster::Id<Name##Tag>
MUSTER_ID(OrgId, "org");
MUSTER_ID(ProjectId, "prj");
MUSTER_ID(PrincipalId, "usr");
MUSTER_ID(TokenId, "tok");
MUSTER_ID(NodeId, "node");
MUSTER_ID(ClusterId, "cl");
MUSTER_ID(SlotId, "slot");
MUSTER_ID(LeaseId, "lease");
MUSTER_ID(JobId, "job");
#undef MUSTER_ID

}  // namespace muster

template <typename Tag>
struct std::hash<muster::Id<Tag>> {
  std::size_t operator()(const muster::Id<Tag>& id) const noexcept { return std::hash<std::uint64_t>{}(id.value); }
};
