#pragma once
// The signature of a machine under what it sent and got by way of members that carry: both ends of a pair sign for
// themselves, so that whoever carried can show what it is owed. By the device key; the lease says in which cluster.
#include "crypto/sign.h"
#include "session/frames.h"

namespace muster::session {

Bytes sign_carried(const crypto::SigningKey& device, const NetReport& report);
bool verify_carried(ByteView device_key, const NetReport& report);

}  // namespace muster::session
