#include "server/commands.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iostream>

namespace muster::server {

const char* const kUsage =
    "musterd: the control plane of Muster\n"
    "\n"
    "  musterd init --data DIR --name SAN[,SAN...] [--operator NAME] [--password-file F] [--relay HOST:PORT,...]\n"
    "                [--root-out FILE]       (the root's key goes there and nowhere else, to be kept offline)\n"
    "                [--at-rest-key FILE | --at-rest-program PATH]   (encrypted at rest from the beginning)\n"
    "  musterd serve --data DIR [--listen ADDR:PORT] [--handoff SOCKET] [--public HOST:PORT]\n"
    "                [--certificate-life SECONDS] [--reenrol-days N] [--address-days N] [--sso FILE]\n"
    "                [--second-factor ROLE,...|all] [--carried-seconds N] [--identity-issuer URL]\n"
    "                [--identity-life SECONDS]\n"
    "                [--public-name NAME,... --acme letsencrypt|URL [--acme-contact EMAIL] [--acme-ca FILE] "
    "[--acme-account FILE]]\n"
    "                [--public-cert FILE --public-key FILE [--public-name NAME,...]]\n"
    "                [--signer SOCKET]       (who signs; without it a process of its own is started with the keys in "
    "DIR)\n"
    "  musterd passwd NAME --data DIR [--password-file F]   (a lost password; also while serving)\n"
    "  musterd totp-reset NAME --data DIR    (a lost second factor; also while serving)\n"
    "  musterd sso-forget NAME --data DIR    (the person of the identity provider may begin with a new account; also\n"
    "                while serving)\n"
    "  musterd journal verify|show|export|head --data DIR [--from SEQ] [--count N] [--head FILE [--key PUB]]\n"
    "                [--out FILE]            (head: sign the newest entry, also while serving; verify --head: check "
    "it)\n"
    "  musterd audit erase|rotate --data DIR [--actor ID] [--older-than DAYS]   (erase: client addresses; rotate: the\n"
    "                key that signs heads; both also while serving)\n"
    "  musterd relay list|add|files|remove [HOST:PORT] --data DIR [--region REGION] [--out FOLDER] [--signer SOCKET]\n"
    "                (the relays that clusters may use, by region; also while serving)\n"
    "  musterd signer --data DIR --socket SOCKET [--users NAME,...]   (holds the keys; only this user and those named "
    "may ask)\n"
    "  musterd signer split --data DIR --to DIR   (the signing keys go into a folder of their own)\n"
    "  musterd ca status --data DIR          (roots and CAs: in use, until when, which machines know the newest root)\n"
    "  musterd ca rotate --data DIR [--root FILE] [--now]   (another CA signs from now on)\n"
    "  musterd ca request --data DIR --out FILE, ca sign FILE --root FILE --out FILE, ca install FILE --data DIR "
    "[--now]\n"
    "                (the same where the root is kept offline: it signs there)\n"
    "  musterd ca new-root --data DIR [--root FILE] [--root-out FILE]   (another root beside those that are believed)\n"
    "  musterd ca retire ID --data DIR [--root FILE] [--now]   (a root or CA counts for nothing any more)\n"
    "  musterd ca root-out FILE --data DIR   (takes the root's key out of DIR; all of ca: also while serving, which "
    "takes\n"
    "                notice on SIGHUP and every hour)\n"
    "  musterd keys list --data DIR          (which keys sign rosters, orders and relay tokens, and which are "
    "believed)\n"
    "  musterd keys rotate roster|order|relay-token|access-token|workload|all --data DIR [--keep-hours N] [--start-in "
    "SECONDS] "
    "[--now]\n"
    "                (another one signs from now on, or from then on; the one before is believed for so long, 24 "
    "hours)\n"
    "  musterd keys rotate ... --compromised (none but the new one is believed any more; both: also while serving)\n"
    "  musterd at-rest new-key FILE          (a key for encryption at rest)\n"
    "  musterd at-rest status|init|rekey --data DIR   (init: encrypt what is there; rekey: another data key, "
    "everything\n"
    "                sealed anew; both while stopped, and again after an interruption)\n"
    "  musterd at-rest rotate --data DIR --to-key FILE | --to-program PATH   (another key wraps the data keys; also\n"
    "                while serving)\n"
    "  musterd at-rest show NAME --data DIR  (a sealed file of DIR in the clear: refused.log, logs/job-1/1.log, ...)\n"
    "  musterd backup --data DIR FILE        (keys and journal; also while serving)\n"
    "  musterd restore FILE --data DIR       (raises the incarnation: nothing old wins against it)\n"
    "\n"
    "Machines' certificates live 24 hours and are renewed at two thirds of that. A machine that slept through the end "
    "of\n"
    "its certificate proves its device key and gets a new one for --reenrol-days (30), then it must join anew.\n"
    "--sso: the settings of an identity provider (OpenID Connect) that people log in by: docs/operator.md.\n"
    "Client addresses lie in DIR/addresses.db for --address-days (90; 0 = not at all), never in the journal.\n"
    "What members carried for others, as both ends signed it, goes into the journal every --carried-seconds (600);\n"
    "what is not there yet when musterd ends is not counted.\n"
    "Where DIR is encrypted at rest every command but backup needs its key:\n"
    "  --at-rest-key FILE       32 random bytes, as they are or in base64\n"
    "  --at-rest-program PATH   a program that asks a KMS: docs/operator.md\n"
    "or the systemd credential muster-at-rest, which is found by itself.\n"
    "Browsers trust no CA of ours: with --public-name they are shown a certificate that they do, yours or one that is "
    "asked\n"
    "for over ACME and renewed in time. The CA looks at port 443 of the name; to use --acme is to agree to its terms "
    "of\n"
    "service. --acme-account: a file with the key id and the HMAC key of your account, for CAs that want one.\n"
    "Machines and muster go on with our own CA. Files are read again every hour and on SIGHUP.\n"
    "What muster-relay needs (certificate, key, the controller's public key) lies in DIR/relay after init.\n";

std::string Arguments::option(const std::string& name, const std::string& otherwise) const {
  const auto found = options.find(name);
  return found == options.end() ? otherwise : found->second;
}

Result<Arguments> parse_arguments(int count, char** values) {
  static const std::vector<std::string> known = {"--data",
                                                 "--name",
                                                 "--operator",
                                                 "--password-file",
                                                 "--relay",
                                                 "--listen",
                                                 "--handoff",
                                                 "--public",
                                                 "--from",
                                                 "--count",
                                                 "--certificate-life",
                                                 "--identity-issuer",
                                                 "--identity-life",
                                                 "--reenrol-days",
                                                 "--second-factor",
                                                 "--carried-seconds",
                                                 "--head",
                                                 "--key",
                                                 "--out",
                                                 "--actor",
                                                 "--older-than",
                                                 "--address-days",
                                                 "--sso",
                                                 "--region",
                                                 "--root",
                                                 "--root-out",
                                                 "--signer",
                                                 "--socket",
                                                 "--users",
                                                 "--listener",
                                                 "--to",
                                                 "--at-rest-key",
                                                 "--at-rest-program",
                                                 "--to-key",
                                                 "--to-program",
                                                 "--keep-hours",
                                                 "--start-in",
                                                 "--public-name",
                                                 "--public-cert",
                                                 "--public-key",
                                                 "--acme",
                                                 "--acme-contact",
                                                 "--acme-ca",
                                                 "--acme-account"};
  static const std::vector<std::string> flags = {"--help", "--now", "--compromised"};
  Arguments out;
  for (int i = 1; i < count; ++i) {
    std::string word = values[i];
    if (!word.starts_with("--")) {
      out.words.push_back(std::move(word));
      continue;
    }
    std::string value;
    const auto equals = word.find('=');
    if (equals != std::string::npos) {
      value = word.substr(equals + 1);
      word.resize(equals);
    } else if (std::find(flags.begin(), flags.end(), word) != flags.end()) {
      value = "yes";
    } else if (i + 1 < count) {
      value = values[++i];
    } else {
      return error(Code::InvalidArgument, word + " needs a value");
    }
    bool fits = false;
    for (const auto* list : {&known, &flags}) fits = fits || std::find(list->begin(), list->end(), word) != list->end();
    if (!fits) return error(Code::InvalidArgument, "unknown option " + word);
    out.options[word] = value;
  }
  return out;
}

Result<std::string> read_password_file(const std::string& path) {
  std::ifstream file;
  if (path != "-") file.open(path);
  std::istream& in = path == "-" ? std::cin : file;
  std::string line;
  if (!in || !std::getline(in, line))
    return error(Code::InvalidArgument, fmt::format("--password-file {}: the first line cannot be read", path));
  if (line.size() < 8 || line.size() > 1024)
    return error(Code::InvalidArgument, "the password must have between 8 and 1024 characters");
  return line;
}

}  // namespace muster::server
