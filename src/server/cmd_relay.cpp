#include <fmt/format.h>

#include <cstdio>
#include <filesystem>

#include "crypto/file.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/relay_book.h"
#include "server/signer_socket.h"

namespace muster::server {
namespace {

constexpr const char* kRelayUsage =
    "musterd relay list --data DIR\n"
    "musterd relay add HOST:PORT --region REGION --data DIR [--out FOLDER] [--signer SOCKET]\n"
    "musterd relay files HOST:PORT --out FOLDER --data DIR [--signer SOCKET]\n"
    "musterd relay remove HOST:PORT --data DIR\n"
    "\n"
    "Machines connect to every relay of the list, and each pair of a cluster uses the one by which it is nearest. A "
    "change\n"
    "is seen within seconds, also while serving. --out: where what that relay needs is written (key, certificate, CA, "
    "the\n"
    "key of tokens), to be copied to its machine; `files` writes it anew before the certificate ends (90 days), and "
    "after\n"
    "`musterd ca rotate`. Where the signing keys are kept apart, add and remove also in their folder, there first; "
    "--signer\n"
    "is who signs then.\n";

Status list_relays(const DataDir& dir, const std::string& server_id) {
  const auto relays = TRY(read_relays(dir, server_id));
  if (relays.empty())
    fmt::print("No relay is listed. Add one: musterd relay add HOST:PORT --region REGION --data {}\n", dir.root);
  for (const auto& relay : relays)
    fmt::print("{:<40} {:<16} --relay-id {}\n", relay.address, relay.region.empty() ? "-" : relay.region, relay.id);
  return {};
}

Status write_relay_files_to(const Arguments& arguments, const RelayEntry& relay) {
  const std::string folder = arguments.option("--out"), socket = arguments.option("--signer");
  if (std::filesystem::exists(folder + "/key.pem"))
    return error(Code::AlreadyExists, folder + " holds a key already; choose another --out or remove it first");
  std::shared_ptr<Signer> signer;
  if (!socket.empty()) signer = std::make_shared<SignerLink>(socket);
  const DataDir dir = TRY(open_data_dir(arguments));
  const Identity identity = TRY(load_identity(dir, read_clocks().wall, std::move(signer)));
  TRY_VOID(write_relay_folder(identity, folder, relay.id));
  const auto port = relay.address.substr(relay.address.rfind(':') + 1);
  fmt::print(
      "Copy {0} to the relay's machine (it holds a key: keep it secret on the way) and start there, with TCP and UDP "
      "{1} "
      "open:\n"
      "  muster-relay --listen 0.0.0.0:{1} --cert cert.pem --key key.pem --controller-key controller.pub --relay-id "
      "{2}\n",
      folder, port, relay.id);
  return {};
}

Status change_relays(const Arguments& arguments) {
  const DataDir dir = TRY(open_data_dir(arguments));
  if (!holds_platform(dir)) return error(Code::NotFound, fmt::format("{} holds no control plane", dir.root));
  const Bytes server_name = TRY(dir.read(dir.key("server_id")));
  const std::string server_id = as_string(server_name), what = arguments.words[1];
  if (what == "list") return list_relays(dir, server_id);
  const std::string& address = arguments.words[2];
  if (what == "add") {
    const RelayEntry relay = TRY(parse_relay(address, arguments.option("--region")));
    TRY_VOID(add_relay(dir, server_id, relay));
    fmt::print("{} ({}) is listed; machines connect to it within seconds of its start.\n", relay.address, relay.region);
    if (std::filesystem::exists(dir.key("signer-apart")))
      fmt::print("Its tokens are signed once it is listed in the folder of the signing keys too.\n");
    return arguments.option("--out").empty() ? Status{} : write_relay_files_to(arguments, relay);
  }
  if (what == "files") {
    for (const auto& relay : TRY(read_relays(dir, server_id)))
      if (relay.address == address) return write_relay_files_to(arguments, relay);
    return error(Code::NotFound, "no relay " + address.substr(0, 64) + " is listed; see `musterd relay list`");
  }
  TRY_VOID(remove_relay(dir, server_id, address));
  fmt::print("{} is not listed any more; machines leave it within seconds.\n", address);
  return {};
}

bool fits_relay(const Arguments& arguments) {
  const auto& words = arguments.words;
  if (arguments.option("--data").empty() || words.size() < 2) return false;
  if (words[1] == "list") return words.size() == 2;
  if (words[1] == "files") return words.size() == 3 && !arguments.option("--out").empty();
  return words.size() == 3 && (words[1] == "add" || words[1] == "remove");
}

}  // namespace

int cmd_relay(const Arguments& arguments) {
  if (!fits_relay(arguments)) {
    std::fputs(kRelayUsage, stderr);
    return 2;
  }
  const Status done = change_relays(arguments);
  if (done.ok()) return 0;
  fmt::print(stderr, "musterd relay: {}\n", done.error().message);
  return done.error().code == Code::InvalidArgument ? 2 : 1;
}

}  // namespace muster::server
