#pragma once
// A durable event as people and programs see it: type, subject, one sentence, and whose it is (for the access check).
// Reads the follower's state under its lock; pure otherwise. Events that only keep the house (timers, recorded
// requests) are not shown.
#include <optional>

#include "access/access.h"
#include "control/core.h"
#include "engine/runner.h"
#include "wire/rest.h"

namespace muster::server {

struct ShownEvent {
  wire::EventView view;
  access::Object object;
};
std::optional<ShownEvent> show_event(const control::State& state, const engine::DurableEvent& event);

}  // namespace muster::server
