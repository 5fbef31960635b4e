#include "host/seccomp_filter.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <map>
#include <memory>
#include <vector>

#include "host/json.h"
#include "host/unix_socket.h"

namespace muster::host {
namespace {

Error unknown(std::string_view what) {
  return error(Code::Internal, fmt::format("the seccomp profile holds {}, which is not understood", what), "seccomp");
}

Result<std::uint32_t> action_of(const json::object& object, const std::string& name, std::int64_t number) {
  (void)object;
  if (name == "SCMP_ACT_ALLOW") return static_cast<std::uint32_t>(SCMP_ACT_ALLOW);
  if (name == "SCMP_ACT_ERRNO") return static_cast<std::uint32_t>(SCMP_ACT_ERRNO(static_cast<std::uint16_t>(number)));
  return unknown("the action " + name);
}

Result<scmp_arg_cmp> test_of(const json::value& argument) {
  static const std::map<std::string, scmp_compare> operators{
      {"SCMP_CMP_EQ", SCMP_CMP_EQ}, {"SCMP_CMP_NE", SCMP_CMP_NE}, {"SCMP_CMP_MASKED_EQ", SCMP_CMP_MASKED_EQ}};
  const auto op = operators.find(text_at(argument, {"op"}));
  const auto index = int_at(argument, {"index"}, -1);
  if (op == operators.end() || index < 0 || index > 5) return unknown("an argument test");
  scmp_arg_cmp out{};
  out.arg = static_cast<unsigned>(index);
  out.op = op->second;
  out.datum_a = static_cast<scmp_datum_t>(int_at(argument, {"value"}));
  out.datum_b = static_cast<scmp_datum_t>(int_at(argument, {"valueTwo"}));
  return out;
}

Status add_rules(scmp_filter_ctx filter, const json::value& rule, std::uint32_t fallback) {
  const auto* object = rule.if_object();
  const auto* names = object == nullptr ? nullptr : object->if_contains("names");
  if (names == nullptr || !names->is_array()) return unknown("a rule without names");
  for (const char* key : {"includes", "excludes"}) {
    const auto* more = object->if_contains(key);
    if (more != nullptr && more->is_object() && !more->get_object().empty()) return unknown(key);
  }
  const auto action = TRY(action_of(*object, text_at(rule, {"action"}), int_at(rule, {"errnoRet"}, 1)));
  if (action == fallback) return {};  // libseccomp refuses a rule that says what is said anyway
  std::vector<scmp_arg_cmp> tests;
  if (const auto* arguments = object->if_contains("args"); arguments != nullptr && arguments->is_array()) {
    for (const auto& argument : arguments->get_array()) tests.push_back(TRY(test_of(argument)));
  }
  for (const auto& name : names->get_array()) {
    const int number = seccomp_syscall_resolve_name(name.is_string() ? name.get_string().c_str() : "");
    if (number == __NR_SCMP_ERROR) continue;  // newer than this library, or of another architecture
    const int added = seccomp_rule_add_array(filter, action, number, static_cast<unsigned>(tests.size()), tests.data());
    if (added != 0 && added != -EDOM) return unknown(name.is_string() ? name.get_string().c_str() : "a name");
  }
  return {};
}

}  // namespace

Result<Bytes> compile_seccomp(std::string_view profile) {
  const json::object object = TRY(parse_object(profile));
  const auto fallback =
      TRY(action_of(object, text_at(object, {"defaultAction"}), int_at(object, {"defaultErrnoRet"}, 1)));
  const std::unique_ptr<void, void (*)(void*)> filter(seccomp_init(fallback),
                                                      [](void* each) { seccomp_release(each); });
  if (!filter) return error(Code::Internal, "cannot build the system call filter", "seccomp");
  const auto* rules = object.if_contains("syscalls");
  if (rules == nullptr || !rules->is_array()) return unknown("no rules");
  for (const auto& rule : rules->get_array()) TRY_VOID(add_rules(filter.get(), rule, fallback));
  const Fd file(memfd_create("seccomp", MFD_CLOEXEC));
  if (!file || seccomp_export_bpf(filter.get(), file.get()) != 0)
    return error(Code::Internal, "cannot write the system call filter", "seccomp");
  Bytes out(static_cast<std::size_t>(lseek(file.get(), 0, SEEK_END)));
  if (pread(file.get(), out.data(), out.size(), 0) != static_cast<ssize_t>(out.size()))
    return error(Code::Internal, "cannot read the system call filter", "seccomp");
  return out;
}

Status load_seccomp(ByteView program) {
  std::vector<sock_filter> code(program.size() / sizeof(sock_filter));
  std::copy(program.begin(), program.begin() + static_cast<std::ptrdiff_t>(code.size() * sizeof(sock_filter)),
            reinterpret_cast<std::uint8_t*>(code.data()));
  sock_fprog filter{static_cast<unsigned short>(code.size()), code.data()};
  if (code.empty() || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter, 0, 0) != 0)
    return error(Code::Unavailable, "the kernel refused the system call filter: " + errno_text(errno), "seccomp");
  return {};
}

}  // namespace muster::host
