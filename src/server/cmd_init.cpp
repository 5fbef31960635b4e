#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <sstream>

#include "crypto/file.h"
#include "crypto/password.h"
#include "crypto/random.h"
#include "engine/runner.h"
#include "server/at_rest.h"
#include "server/commands.h"
#include "server/identity.h"

namespace muster::server {
namespace {

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) {
    if (!part.empty()) out.push_back(part);
  }
  return out;
}

struct Made {
  std::string ca_sha256, password;
  bool generated = false;
};

Result<std::string> make(engine::Runner& runner, control::Command command) {
  control::Actor actor;
  actor.system = true;
  return TRY(runner.submit_wait(control::Lane::Operator, std::move(command), std::move(actor))).outcome.id;
}

// Where a key is named, before anything else is written. What an attempt before left is gone on from.
Status encrypt_new(const Arguments& arguments, DataDir& dir) {
  const KeySource source = TRY(key_source(arguments));
  const auto known = crypto::read_secret_file(rest_path(dir.root));
  if (holds_platform(dir) || (source.none() && !known.ok())) return {};
  std::error_code fault;
  std::filesystem::create_directories(dir.root, fault);
  std::filesystem::permissions(dir.root, std::filesystem::perms::owner_all, fault);
  if (fault) return error(Code::Unavailable, fmt::format("the folder {} cannot be made", dir.root));
  AtRest keys = known.ok() ? TRY(unwrap_rest_file(as_string(*known), source)) : TRY(new_at_rest(source, RestState::On));
  if (!known.ok()) TRY_VOID(write_at_rest(dir.root, keys));
  dir.at_rest = std::make_shared<const AtRest>(std::move(keys));
  return {};
}

Result<Made> init(const Arguments& arguments, const OpenStore& open) {
  DataDir dir{arguments.option("--data")};
  const NewIdentity wanted{split(arguments.option("--name")), split(arguments.option("--relay")),
                           arguments.option("--root-out")};
  Made made;
  if (const auto file = arguments.option("--password-file"); !file.empty()) {
    made.password = TRY(read_password_file(file));
  } else {
    made.password = base64url(crypto::random_bytes(12));
    made.generated = true;
  }
  const std::string hash = TRY(crypto::hash_password(made.password));
  TRY_VOID(encrypt_new(arguments, dir));
  const Identity identity = TRY(create_identity(dir, wanted, read_clocks().wall));
  made.ca_sha256 = hex(identity.cas.pin);
  const auto store = TRY(open(dir.journal(), ring_of(dir)));
  engine::Runner::Options options;
  options.store = store;
  const auto runner = TRY(engine::Runner::start(std::move(options)));
  const std::string org = TRY(make(*runner, control::CreateOrg{"platform"}));
  const auto org_id = OrgId::parse(org);
  if (!org_id) return error(Code::Internal, "the first organisation could not be made");
  TRY_VOID(make(*runner, control::CreateProject{*org_id, "default"}));
  const std::string principal =
      TRY(make(*runner, control::CreatePrincipal{arguments.option("--operator", "admin"), Role::Operator, *org_id}));
  TRY_VOID(store->put_side("passwords", principal, to_bytes(hash)));
  return made;
}

}  // namespace

int cmd_init(const Arguments& arguments, const OpenStore& open) {
  if (arguments.option("--data").empty() || arguments.option("--name").empty()) {
    std::fputs(kUsage, stderr);
    return 2;
  }
  const auto made = init(arguments, open);
  if (!made.ok()) {
    fmt::print(stderr, "musterd init: {}\n", made.error().message);
    return 1;
  }
  const std::string data = arguments.option("--data"), name = split(arguments.option("--name")).front(),
                    account = arguments.option("--operator", "admin");
  fmt::print("The control plane is ready in {}\n", data);
  fmt::print("CA SHA-256: {}\n", made->ca_sha256);
  if (const auto root = arguments.option("--root-out"); !root.empty())
    fmt::print("The root's key is in {}, and nowhere else: keep it offline, with a copy\n", root);
  if (made->generated)
    fmt::print("Operator {} has the password {} (shown once; `muster passwd` changes it)\n", account, made->password);
  fmt::print("\nServe:   musterd serve --data {} --listen 0.0.0.0:8443{}\n", data, key_words(arguments));
  fmt::print("Log in:  muster login https://{}:8443 --user {} --ca-sha256 {}\n", name, account, made->ca_sha256);
  return 0;
}

}  // namespace muster::server
