#pragma once
// The program nft, for our one table `inet muster` in the namespace of the calling thread: apply a text as one
// transaction, read the table back in nft's own words, hear of changes that anybody makes to the rules. Needs root.
// Blocking, at most a few seconds a call. Any thread.
#include <string>

#include "host/unix_socket.h"

namespace muster::host {

inline constexpr std::string_view kNftMissing = "nft is not installed; on Debian and Ubuntu: apt-get install nftables";

std::string nft_program();  // its path, or empty
Status nft_apply(const std::string& script);
Result<std::string> nft_table();  // without counters' values; NotFound when it is not there
// How nft tells the table that the script makes: in a network namespace of its own, where nobody else adds to it. What
// is read back after nft_apply may hold what somebody else did in between.
Result<std::string> nft_words(const std::string& script);
Status nft_remove();  // fine when it is not there

// Readable when somebody changed rules in the namespace where it was opened. drain() empties it.
Result<Fd> nft_watch();
Result<Fd> address_watch();  // the same for the machine's addresses
void drain_watch(int fd);

}  // namespace muster::host
