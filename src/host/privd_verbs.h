#pragma once
// The language between agent and privd, parsed strictly: unknown verbs, unknown keys, wrong types, ids that are not of
// the form lease-N, blob names that are not 64 hex digits and paths with ".." are refused before anything is done with
// them. Descriptors travel beside the message. Pure.
#include <boost/json/object.hpp>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"
#include "host/runtime.h"

namespace muster::host {

enum class VerbKind : std::uint8_t {
  Info,
  List,
  Usage,
  Pull,
  Cancel,
  ProbeStart,
  ProbeStop,
  Launch,
  Secret,
  Identity,
  Blob,
  Stop,
  Remove,
  Helper,
  Exec,
  Resize,
  ExecCode,
  Tcp,
  ReadArchive,
  WriteArchive,
  PutFiles,
  Tun,
  Logs,
  RemoveEverything,
  Egress,
  TpmSign
};

struct Verb {
  std::uint64_t id = 0;
  VerbKind kind = VerbKind::Info;
  std::string lease, image, blob, path, exec;
  RegistryAuth auth;
  LaunchSpec launch;
  Bytes secret;
  std::vector<std::string> argv;
  Place place = Place::Main;
  bool tty = false;
  int grace_s = 0, rows = 0, cols = 0;
  std::uint16_t port = 0;
  std::uint32_t address = 0;
  std::uint64_t target = 0;  // of Cancel
};
struct Answer {
  boost::json::object fields;
  std::vector<Fd> fds;
};

Result<Verb> parse_verb(std::string_view text);
std::string verb_text(const Verb& verb);
bool lifecycle(VerbKind kind);  // changes a lease: one at a time for it

bool valid_lease(std::string_view text);
bool valid_image(std::string_view text);
bool valid_path(std::string_view text);  // absolute, no "." or ".." component, no control characters

std::string answer_text(std::uint64_t id, const Result<Answer>& answer);
std::string progress_text(std::uint64_t id, std::uint64_t done, std::uint64_t total);

}  // namespace muster::host
