#pragma once
// Frames between agent and control plane as bytes (proto/muster/v1/agent.proto), pure and thread-free. Decoding trusts
// nothing: every size, count, enum and number has a bound, an unknown frame kind is Unsupported (must-understand),
// anything else wrong is InvalidArgument naming the field. Encoding a valid value never fails; texts that are not UTF-8
// lose the bad bytes ('?').
#include "base/bytes.h"
#include "base/result.h"
#include "session/frames.h"

namespace muster::wire {

Bytes encode(const session::ServerFrame& frame);  // the caller checks against session::kFrameBytesMax before sending
Bytes encode(const session::AgentFrame& frame);
Result<session::ServerFrame> decode_server_frame(ByteView bytes);
Result<session::AgentFrame> decode_agent_frame(ByteView bytes);

// What the controller signs and the agent verifies: domain, node and everything of the Desired but its signature, in
// one deterministic form that is the same before sending and after decoding.
Bytes desired_signing_bytes(NodeId node, const session::Desired& desired);

}  // namespace muster::wire
