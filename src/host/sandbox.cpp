#include "host/sandbox.h"

#include <grp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <initializer_list>
#include <vector>

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

// An allow list: what is not on it fails with EPERM. Descriptors come from privd and from the network only.
Status confine_egress() {
  scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
  if (filter == nullptr) return error(Code::Internal, "cannot build the system call filter");
  int failed = 0;
  const auto allow = [&](const char* name, std::initializer_list<scmp_arg_cmp> when = {}) {
    const int number = seccomp_syscall_resolve_name(name);
    if (number == __NR_SCMP_ERROR) return;  // of another architecture
    const std::vector<scmp_arg_cmp> rules(when);
    const int added = seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, static_cast<unsigned>(rules.size()),
                                             rules.empty() ? nullptr : rules.data());
    if (added != 0) failed = added;
  };
  for (const char* name : {"read",         "write",          "close",         "recvfrom",        "recvmsg",
                           "sendto",       "sendmsg",        "accept4",       "connect",         "shutdown",
                           "getsockname",  "getpeername",    "getsockopt",    "setsockopt",      "epoll_ctl",
                           "epoll_wait",   "epoll_pwait",    "poll",          "ppoll",           "fcntl",
                           "fstat",        "newfstatat",     "brk",           "munmap",          "mremap",
                           "madvise",      "futex",          "clock_gettime", "clock_nanosleep", "nanosleep",
                           "gettimeofday", "getrandom",      "getpid",        "gettid",          "tgkill",
                           "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",  "sigaltstack",     "restart_syscall",
                           "exit",         "exit_group",     "rseq",          "sched_yield",     "getuid",
                           "geteuid",      "getgid",         "getegid"})
    allow(name);
  for (const int family : {AF_INET, AF_INET6})
    allow("socket", {scmp_arg_cmp{0, SCMP_CMP_EQ, static_cast<scmp_datum_t>(family), 0}});
  for (const char* name : {"mmap", "mprotect"})  // memory, never code
    allow(name, {scmp_arg_cmp{2, SCMP_CMP_MASKED_EQ, PROT_EXEC, 0}});
  const int loaded = failed != 0 ? failed : seccomp_load(filter);
  seccomp_release(filter);
  if (loaded != 0) return error(Code::Unavailable, "the kernel refused the system call filter: " + errno_text(-loaded));
  return {};
}

}  // namespace muster::host
