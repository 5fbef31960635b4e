#pragma once
// The process that holds the link to the control plane: agent core + executor + streams + telemetry under one poller.
// It runs as its own uid without capabilities; everything privileged is asked of privd. Serves the owner's commands
// (status, pause, ...) as JSON lines on agent.sock, to root and to its own uid only.
#include <memory>

#include "base/result.h"
#include "host/identity.h"
#include "host/layout.h"

namespace muster::host {

Status run_agent(const Layout& layout);  // until SIGTERM or SIGINT, or until `leave` is done

// One request to a running agent; the answer is a JSON object as text.
Result<std::string> ask_agent(const Layout& layout, const std::string& command, Millis timeout);

}  // namespace muster::host
