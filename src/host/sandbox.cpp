#include "host/sandbox.h"

#include <grp.h>
#include <linux/if_tun.h>
#include <linux/netlink.h>
#include <sched.h>
#include <seccomp.h>
#include <sys/ioctl.h>
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

namespace {

// A list of what is allowed; all else fails with EPERM.
class AllowList {
 public:
  AllowList() : filter_(seccomp_init(SCMP_ACT_ERRNO(EPERM))) {}
  AllowList(const AllowList&) = delete;
  AllowList& operator=(const AllowList&) = delete;
  ~AllowList() {
    if (filter_ != nullptr) seccomp_release(filter_);
  }
  void allow(const char* name, std::initializer_list<scmp_arg_cmp> when = {}) { add(SCMP_ACT_ALLOW, name, when); }
  void allow(std::initializer_list<const char*> names) {
    for (const char* name : names) allow(name);
  }
  void refuse(const char* name, int with) { add(SCMP_ACT_ERRNO(static_cast<std::uint16_t>(with)), name, {}); }
  Status load() {
    if (filter_ == nullptr) return error(Code::Internal, "cannot build the system call filter");
    const int loaded = failed_ != 0 ? failed_ : seccomp_load(filter_);
    if (loaded == 0) return {};
    return error(Code::Unavailable, "the kernel refused the system call filter: " + errno_text(-loaded));
  }

 private:
  void add(std::uint32_t action, const char* name, std::initializer_list<scmp_arg_cmp> when) {
    const int number = seccomp_syscall_resolve_name(name);
    if (filter_ == nullptr || number == __NR_SCMP_ERROR) return;  // of another architecture
    const std::vector<scmp_arg_cmp> rules(when);
    const int added = seccomp_rule_add_array(filter_, action, number, static_cast<unsigned>(rules.size()),
                                             rules.empty() ? nullptr : rules.data());
    if (added != 0) failed_ = added;
  }

  scmp_filter_ctx filter_;
  int failed_ = 0;
};

constexpr std::uint64_t kNewNamespaces =
    CLONE_NEWNS | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
scmp_arg_cmp equals(unsigned argument, std::uint64_t value) {
  return {argument, SCMP_CMP_EQ, value, 0};
}
scmp_arg_cmp masked(unsigned argument, std::uint64_t mask, std::uint64_t value) {
  return {argument, SCMP_CMP_MASKED_EQ, mask, value};
}
void allow_memory(AllowList& list) {  // memory, never code
  for (const char* name : {"mmap", "mprotect"}) list.allow(name, {masked(2, PROT_EXEC, 0)});
}

}  // namespace

// Descriptors come from privd and from the network only.
Status confine_egress() {
  AllowList list;
  list.allow({"read",         "write",          "close",         "recvfrom",        "recvmsg",
              "sendto",       "sendmsg",        "accept4",       "connect",         "shutdown",
              "getsockname",  "getpeername",    "getsockopt",    "setsockopt",      "epoll_ctl",
              "epoll_wait",   "epoll_pwait",    "poll",          "ppoll",           "fcntl",
              "fstat",        "newfstatat",     "brk",           "munmap",          "mremap",
              "madvise",      "futex",          "clock_gettime", "clock_nanosleep", "nanosleep",
              "gettimeofday", "getrandom",      "getpid",        "gettid",          "tgkill",
              "rt_sigaction", "rt_sigprocmask", "rt_sigreturn",  "sigaltstack",     "restart_syscall",
              "exit",         "exit_group",     "rseq",          "sched_yield",     "getuid",
              "geteuid",      "getgid",         "getegid"});
  for (const int family : {AF_INET, AF_INET6}) list.allow("socket", {equals(0, static_cast<std::uint64_t>(family))});
  allow_memory(list);
  return list.load();
}

// Its own files, UDP and TCP sockets, threads. What is left out is programs, namespaces, mounts, tracing, other
// families of sockets (no unix sockets: it could speak to services of the machine), devices beyond the question whether
// a descriptor is a TUN, and memory that runs. Looking names up works without nscd and without modules of the name
// service that are loaded at run time: files and DNS are part of the C library.
Status confine_netd() {
  AllowList list;
  list.allow({"read",         "write",
              "readv",        "writev",
              "pread64",      "lseek",
              "close",        "openat",
              "fstat",        "newfstatat",
              "statx",        "fsync",
              "fdatasync",    "ftruncate",
              "fchmod",       "rename",
              "renameat",     "renameat2",
              "unlink",       "mkdir",
              "mkdirat",      "rmdir",
              "unlinkat",     "getdents64",
              "access",       "faccessat",
              "faccessat2",   "readlink",
              "readlinkat",   "open",
              "stat",         "lstat",
              "fcntl",        "memfd_create",
              "dup",          "dup3",
              "pipe2",        "recvfrom",
              "recvmsg",      "recvmmsg",
              "sendto",       "sendmsg",
              "sendmmsg",     "accept4",
              "connect",      "bind",
              "shutdown",     "getsockname",
              "getpeername",  "getsockopt",
              "setsockopt",   "epoll_create1",
              "epoll_ctl",    "epoll_wait",
              "epoll_pwait",  "poll",
              "ppoll",        "pselect6",
              "eventfd2",     "signalfd4",
              "brk",          "munmap",
              "mremap",       "madvise",
              "futex",        "clock_gettime",
              "clock_getres", "clock_nanosleep",
              "nanosleep",    "gettimeofday",
              "time",         "getrandom",
              "getpid",       "getppid",
              "gettid",       "tgkill",
              "rt_sigaction", "rt_sigprocmask",
              "rt_sigreturn", "rt_sigtimedwait",
              "sigaltstack",  "restart_syscall",
              "exit",         "exit_group",
              "rseq",         "set_robust_list",
              "sched_yield",  "sched_getaffinity",
              "getuid",       "geteuid",
              "getgid",       "getegid",
              "uname",        "sysinfo",
              "membarrier"});
  for (const int family : {AF_INET, AF_INET6}) list.allow("socket", {equals(0, static_cast<std::uint64_t>(family))});
  list.allow("socket", {equals(0, AF_NETLINK), equals(2, NETLINK_ROUTE)});  // which addresses this machine has
  list.allow("ioctl", {equals(1, TUNGETIFF)});
  list.allow("ioctl", {equals(1, FIONREAD)});  // the C library asks it of answers of DNS
  list.allow("prctl", {equals(0, PR_SET_NAME)});
  list.allow("prlimit64", {equals(2, 0)});  // to read them
  // Threads only. What clone3 asks for lies in memory, which a filter cannot see: the C library takes clone instead.
  list.allow("clone", {masked(0, CLONE_THREAD | kNewNamespaces, CLONE_THREAD)});
  list.refuse("clone3", ENOSYS);
  allow_memory(list);
  return list.load();
}

}  // namespace muster::host
