#include "host/netns.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "host/unix_socket.h"

#ifndef NSFS_MAGIC
#define NSFS_MAGIC 0x6e736673
#endif

namespace muster::host {

bool netns_pinned(const std::string& path) {
  struct statfs info {};
  return statfs(path.c_str(), &info) == 0 && static_cast<long>(info.f_type) == static_cast<long>(NSFS_MAGIC);
}

Status pin_netns(const std::string& path) {
  if (netns_pinned(path)) return {};
  const Fd place(open(path.c_str(), O_RDONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0400));
  if (!place) return error(Code::Unavailable, "cannot make " + path + ": " + errno_text(errno), "disk");
  int failure = 0;
  // A thread of its own makes the namespace and ends there; the mount keeps what it made.
  std::thread([&] {
    if (unshare(CLONE_NEWNET) != 0 || mount("/proc/thread-self/ns/net", path.c_str(), nullptr, MS_BIND, nullptr) != 0)
      failure = errno;
  }).join();
  if (failure != 0)
    return error(Code::Unavailable,
                 "cannot make a network namespace: " + errno_text(failure) + "; privd must run as root",
                 "container.start");
  return {};
}

void unpin_netns(const std::string& path) {
  while (netns_pinned(path) && umount2(path.c_str(), MNT_DETACH) == 0) {
  }
  unlink(path.c_str());
}

}  // namespace muster::host
