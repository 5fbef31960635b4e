#include "host/sandbox.h"

#include <grp.h>
#include <seccomp.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>

#include "host/unix_socket.h"

namespace muster::host {

Status become(uid_t uid, gid_t gid) {
  const auto failed = [](const char* what) {
    return error(Code::PermissionDenied, std::string("cannot give up privileges (") + what + "): " + errno_text(errno));
  };
  if (geteuid() == 0) {
    if (setgroups(0, nullptr) != 0) return failed("groups");
    if (setresgid(gid, gid, gid) != 0) return failed("gid");
    if (setresuid(uid, uid, uid) != 0) return failed("uid");  // drops every capability with it
  }
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return failed("no_new_privs");
  if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0) return failed("dumpable");
  if (uid != 0 && (geteuid() == 0 || setuid(0) == 0)) return error(Code::Internal, "privileges were not given up");
  return {};
}

Status confine_agent() {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
  if (filter == nullptr) return error(Code::Internal, "cannot build the system call filter");
  for (const char* name : {"execve",           "execveat",
                           "ptrace",           "mount",
                           "umount2",          "pivot_root",
                           "chroot",           "setns",
                           "unshare",          "bpf",
                           "kexec_load",       "kexec_file_load",
                           "init_module",      "finit_module",
                           "delete_module",    "perf_event_open",
                           "process_vm_readv", "process_vm_writev",
                           "add_key",          "keyctl",
                           "request_key",      "open_by_handle_at",
                           "userfaultfd",      "reboot",
                           "swapon",           "swapoff",
                           "io_uring_setup",   "move_mount",
                           "fsopen",           "open_tree"}) {
    const int number = seccomp_syscall_resolve_name(name);
    if (number != __NR_SCMP_ERROR) seccomp_rule_add(filter, SCMP_ACT_ERRNO(EPERM), number, 0);
  }
  const int loaded = seccomp_load(filter);
  seccomp_release(filter);
  if (loaded != 0) return error(Code::Unavailable, "the kernel refused the system call filter: " + errno_text(-loaded));
  return {};
}

}  // namespace muster::host
