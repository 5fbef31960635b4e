#include "host/privd_verbs.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "base/id.h"
#include "host/json.h"
#include "model/venv_image.h"
#include "model/workload_identity.h"

namespace muster::host {
namespace {

constexpr std::array<std::pair<std::string_view, VerbKind>, 26> kVerbs{
    {{"info", VerbKind::Info},
     {"list", VerbKind::List},
     {"usage", VerbKind::Usage},
     {"pull", VerbKind::Pull},
     {"cancel", VerbKind::Cancel},
     {"probe_start", VerbKind::ProbeStart},
     {"probe_stop", VerbKind::ProbeStop},
     {"launch", VerbKind::Launch},
     {"secret", VerbKind::Secret},
     {"identity", VerbKind::Identity},
     {"blob", VerbKind::Blob},
     {"stop", VerbKind::Stop},
     {"remove", VerbKind::Remove},
     {"helper", VerbKind::Helper},
     {"exec", VerbKind::Exec},
     {"resize", VerbKind::Resize},
     {"exec_code", VerbKind::ExecCode},
     {"tcp", VerbKind::Tcp},
     {"read_archive", VerbKind::ReadArchive},
     {"write_archive", VerbKind::WriteArchive},
     {"put_files", VerbKind::PutFiles},
     {"tun", VerbKind::Tun},
     {"logs", VerbKind::Logs},
     {"remove_everything", VerbKind::RemoveEverything},
     {"egress", VerbKind::Egress},
     {"tpm_sign", VerbKind::TpmSign}}};

constexpr std::int64_t kInt64Max = std::numeric_limits<std::int64_t>::max();

bool is_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}
bool valid_blob(std::string_view text) {
  const std::string_view stem = text.ends_with(".zip") ? text.substr(0, text.size() - 4) : text;
  return stem.size() == 64 && is_hex(stem);
}
bool valid_identity_file(std::string_view text) {
  if (text == kIdentityFile) return true;
  const std::string prefix = std::string(kIdentityFile) + "-";
  return text.starts_with(prefix) && JobId::parse(text.substr(prefix.size())).has_value();
}
bool valid_exec(std::string_view text) {
  return text.size() == 64 && is_hex(text);
}
bool valid_env_name(std::string_view text) {
  if (text.empty() || text.size() > 256 || (text[0] >= '0' && text[0] <= '9')) return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '_'; });
}
bool valid_device(std::string_view text) {
  return !text.empty() && text.size() <= 64 &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isalnum(c) != 0 || c == '-'; });
}

bool needs_lease(VerbKind kind) {
  switch (kind) {
    case VerbKind::Info:
    case VerbKind::List:
    case VerbKind::Usage:
    case VerbKind::Pull:
    case VerbKind::Cancel:
    case VerbKind::RemoveEverything:
    case VerbKind::Egress:
    case VerbKind::TpmSign:
      return false;
    default:
      return true;
  }
}

Error bad(std::string_view field, std::string_view why) {
  return error(Code::InvalidArgument, fmt::format("'{}' {}", field, why), std::string(field));
}

Status read_launch(Fields& f, Verb& verb) {
  LaunchSpec& spec = verb.launch;
  spec.lease = verb.lease;
  spec.image = f.text("image", 256);
  spec.cpu_milli = f.integer_or("cpu_milli", 0, 10'000'000, 0);
  spec.memory_bytes = f.integer_or("memory_bytes", 0, kInt64Max, 0);
  spec.shm_bytes = f.integer_or("shm_bytes", 0, kInt64Max, 0);
  spec.nofile = f.integer_or("nofile", 0, 1 << 30, 65536);
  spec.pids = f.integer_or("pids", 64, 1 << 20, 8192);
  spec.workspace_bytes_max = f.integer_or("workspace_bytes", 0, kInt64Max, 0);
  spec.devices = f.texts("devices", 64, 64);
  spec.gpu_share_milli = f.integer_or("gpu_share_milli", 0, kGpuMilli - 1, 0);
  spec.env = f.text_map("env", 256, 16'384);
  spec.address = static_cast<std::uint32_t>(f.integer("address", 0, 0xffffffffLL));
  spec.prefix_bits = static_cast<int>(f.integer_or("prefix_bits", 8, 30, 16));
  spec.head = f.boolean_or("head", false);
  spec.group = f.text_or("group", {}, 128);
  spec.egress = f.boolean_or("egress", false);
  if (!spec.image.starts_with("sha256:") || spec.image.size() != 71 || !is_hex(spec.image.substr(7)))
    return bad("image", "is not a content digest");
  for (const auto& device : spec.devices) {
    if (!valid_device(device)) return bad("devices", "holds something that is not a device id");
  }
  if (spec.gpu_share_milli > 0 && spec.devices.size() != 1)
    return bad("gpu_share_milli", "is of one GPU, and another number of them is named");
  for (const auto& [key, value] : spec.env) {
    if (!valid_env_name(key) || value.find('\0') != std::string::npos)
      return bad("env", "holds a name or value that no environment can have");
  }
  return {};
}

}  // namespace

bool valid_lease(std::string_view text) {
  return LeaseId::parse(text).has_value();
}

bool valid_image(std::string_view text) {
  if (is_venv_image(text)) return parse_venv_image(text).ok();
  if (text.empty() || text.size() > 512 || text.find("..") != std::string_view::npos || text.front() == '-' ||
      text.front() == '/')
    return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) {
    return std::isalnum(c) != 0 || c == '.' || c == '-' || c == '_' || c == '/' || c == ':' || c == '@';
  });
}

bool valid_path(std::string_view text) {
  if (text.empty() || text.size() > 4096 || text.front() != '/') return false;
  if (std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; })) return false;
  std::size_t start = 1;
  while (start <= text.size()) {
    const auto end = std::min(text.find('/', start), text.size());
    const auto part = text.substr(start, end - start);
    if (part == "." || part == "..") return false;
    start = end + 1;
  }
  return true;
}

bool lifecycle(VerbKind kind) {
  return kind == VerbKind::ProbeStart || kind == VerbKind::ProbeStop || kind == VerbKind::Launch ||
         kind == VerbKind::Secret || kind == VerbKind::Blob || kind == VerbKind::Remove;
}

Result<Verb> parse_verb(std::string_view text) {
  const json::object object = TRY(parse_object(text));
  Fields f(object);
  Verb verb;
  verb.id = static_cast<std::uint64_t>(f.integer("id", 1, kInt64Max));
  const std::string name = f.text("verb", 32);
  const auto* known =
      std::find_if(kVerbs.begin(), kVerbs.end(), [&](const auto& entry) { return entry.first == name; });
  if (known == kVerbs.end()) return error(Code::Unsupported, fmt::format("privd knows no verb '{}'", name), "verb");
  verb.kind = known->second;
  if (needs_lease(verb.kind)) {
    verb.lease = f.text("lease", 32);
    if (!valid_lease(verb.lease)) return bad("lease", "is not a lease id");
  }
  switch (verb.kind) {
    case VerbKind::Pull:
      verb.image = f.text("image", 512);
      verb.auth = {f.text_or("username", {}, 256), f.text_or("password", {}, 8192)};
      if (!valid_image(verb.image)) return bad("image", "is not an image reference");
      break;
    case VerbKind::Cancel:
      verb.target = static_cast<std::uint64_t>(f.integer("target", 1, kInt64Max));
      break;
    case VerbKind::ProbeStart:
      verb.image = f.text("image", 512);
      if (!valid_image(verb.image)) return bad("image", "is not an image reference");
      break;
    case VerbKind::Launch:
      TRY_VOID(read_launch(f, verb));
      break;
    case VerbKind::Secret: {
      const auto secret = unbase64(f.text("secret", 8192));
      if (!secret || secret->empty()) return bad("secret", "is not base64");
      verb.secret = *secret;
      break;
    }
    case VerbKind::TpmSign: {
      const auto message = unbase64(f.text("message", 2048));
      if (!message || message->empty()) return bad("message", "is not base64");
      verb.secret = *message;
      break;
    }
    case VerbKind::Identity: {
      verb.path = f.text("file", 64);
      const auto secret = unbase64(f.text("secret", 16'384));
      if (!valid_identity_file(verb.path)) return bad("file", "is not identity or identity-job-N");
      if (!secret || secret->empty()) return bad("secret", "is not base64");
      verb.secret = *secret;
      break;
    }
    case VerbKind::Blob:
      verb.blob = f.text("blob", 80);
      if (!valid_blob(verb.blob)) return bad("blob", "is not a SHA-256 in hex");
      break;
    case VerbKind::Stop:
      verb.grace_s = static_cast<int>(f.integer_or("grace_s", 0, 600, 10));
      break;
    case VerbKind::Helper:
      verb.place = f.boolean_or("probe", false) ? Place::Probe : Place::Main;
      break;
    case VerbKind::Exec:
      verb.argv = f.texts("argv", 256, 65'536);
      verb.tty = f.boolean_or("tty", false);
      if (verb.argv.empty() || verb.argv[0].empty()) return bad("argv", "is empty");
      break;
    case VerbKind::Resize:
    case VerbKind::ExecCode:
      verb.exec = f.text("exec", 64);
      if (!valid_exec(verb.exec)) return bad("exec", "is not a command id");
      if (verb.kind == VerbKind::Resize) {
        verb.rows = static_cast<int>(f.integer("rows", 1, 4096));
        verb.cols = static_cast<int>(f.integer("cols", 1, 4096));
      }
      break;
    case VerbKind::Tcp:
      verb.address = static_cast<std::uint32_t>(f.integer("address", 0, 0xffffffffLL));
      verb.port = static_cast<std::uint16_t>(f.integer("port", 1, 65'535));
      break;
    case VerbKind::ReadArchive:
    case VerbKind::WriteArchive:
    case VerbKind::PutFiles:
      verb.path = f.text("path", 4096);
      if (!valid_path(verb.path)) return bad("path", "is not a plain absolute path");
      break;
    default:
      break;
  }
  TRY_VOID(f.finish("request"));
  return verb;
}

std::string verb_text(const Verb& verb) {
  json::object out;
  out["id"] = verb.id;
  for (const auto& [name, kind] : kVerbs) {
    if (kind == verb.kind) out["verb"] = json::string_view(name.data(), name.size());
  }
  if (needs_lease(verb.kind)) out["lease"] = verb.lease;
  switch (verb.kind) {
    case VerbKind::Pull:
      out["image"] = verb.image;
      if (!verb.auth.username.empty()) {
        out["username"] = verb.auth.username;
        out["password"] = verb.auth.password;
      }
      break;
    case VerbKind::Cancel:
      out["target"] = verb.target;
      break;
    case VerbKind::ProbeStart:
      out["image"] = verb.image;
      break;
    case VerbKind::Launch: {
      const auto& spec = verb.launch;
      json::array devices;
      for (const auto& device : spec.devices) devices.emplace_back(device);
      json::object env;
      for (const auto& [key, value] : spec.env) env[key] = value;
      for (auto&& [key, value] :
           std::initializer_list<std::pair<const char*, json::value>>{{"image", json::value(spec.image)},
                                                                      {"cpu_milli", spec.cpu_milli},
                                                                      {"memory_bytes", spec.memory_bytes},
                                                                      {"shm_bytes", spec.shm_bytes},
                                                                      {"nofile", spec.nofile},
                                                                      {"pids", spec.pids},
                                                                      {"workspace_bytes", spec.workspace_bytes_max},
                                                                      {"devices", devices},
                                                                      {"gpu_share_milli", spec.gpu_share_milli},
                                                                      {"env", env},
                                                                      {"address", spec.address},
                                                                      {"prefix_bits", spec.prefix_bits},
                                                                      {"head", spec.head},
                                                                      {"group", json::value(spec.group)},
                                                                      {"egress", spec.egress}}) {
        out[key] = value;
      }
      break;
    }
    case VerbKind::Secret:
      out["secret"] = base64(verb.secret);
      break;
    case VerbKind::TpmSign:
      out["message"] = base64(verb.secret);
      break;
    case VerbKind::Identity:
      out["file"] = json::value(verb.path);
      out["secret"] = base64(verb.secret);
      break;
    case VerbKind::Blob:
      out["blob"] = verb.blob;
      break;
    case VerbKind::Stop:
      out["grace_s"] = verb.grace_s;
      break;
    case VerbKind::Helper:
      out["probe"] = verb.place == Place::Probe;
      break;
    case VerbKind::Exec: {
      json::array argv;
      for (const auto& word : verb.argv) argv.emplace_back(word);
      out["argv"] = argv;
      out["tty"] = verb.tty;
      break;
    }
    case VerbKind::Resize:
      out["rows"] = verb.rows;
      out["cols"] = verb.cols;
      out["exec"] = verb.exec;
      break;
    case VerbKind::ExecCode:
      out["exec"] = verb.exec;
      break;
    case VerbKind::Tcp:
      out["address"] = verb.address;
      out["port"] = verb.port;
      break;
    case VerbKind::ReadArchive:
    case VerbKind::WriteArchive:
    case VerbKind::PutFiles:
      out["path"] = verb.path;
      break;
    default:
      break;
  }
  return to_text(out);
}

std::string answer_text(std::uint64_t id, const Result<Answer>& answer) {
  json::object out;
  if (answer.ok()) {
    out = answer->fields;
    out["ok"] = true;
  } else {
    out["ok"] = false;
    out["code"] = static_cast<int>(answer.error().code);
    out["reason"] = answer.error().field;
    out["message"] = answer.error().message;
  }
  out["id"] = id;
  return to_text(out);
}

std::string progress_text(std::uint64_t id, std::uint64_t done, std::uint64_t total) {
  return to_text(json::object{{"id", id}, {"done", done}, {"total", total}});
}

}  // namespace muster::host
