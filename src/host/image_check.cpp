#include "host/image_check.h"

#include <fmt/format.h>

#include <fstream>
#include <iostream>
#include <sstream>

#include "host/image_signature.h"
#include "host/registry_reader.h"
#include "model/image_name.h"
#include "model/reason.h"

namespace muster::host {
namespace {

constexpr std::size_t kFileMax = 16 << 10;

Result<std::string> small_file(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  if (file) text << file.rdbuf();
  if (!file || text.str().size() > kFileMax)
    return error(Code::InvalidArgument, path + " cannot be read, or is too large to be a key or a password");
  return text.str();
}

Status check(const std::string& image, const std::vector<std::string>& key_files, RegistryAuth auth,
             const std::string& password_file) {
  if (!image_pinned(image)) return error(Code::InvalidArgument, "name the image by its digest: REPOSITORY@sha256:...");
  if (key_files.empty()) return error(Code::InvalidArgument, "say with which keys it may be signed: --key cosign.pub");
  std::vector<std::string> keys;
  for (const std::string& file : key_files) keys.push_back(TRY(small_file(file)));
  if (!password_file.empty()) auth.password = TRY(small_file(password_file));
  while (auth.password.ends_with('\n') || auth.password.ends_with('\r')) auth.password.pop_back();
  RegistryReader registry(image_repository(image), std::move(auth));
  const SignatureSource source{
      [&](const std::string& tag) { return registry.manifest(tag); },
      [&](const std::string& digest, std::size_t bytes_max) { return registry.blob(digest, bytes_max); }};
  return check_image_signature(source, image, {keys});
}

}  // namespace

int image_check(const std::string& image, const std::vector<std::string>& key_files, const std::string& username,
                const std::string& password_file) {
  const Status signed_by = check(image, key_files, {username, {}}, password_file);
  if (signed_by.ok()) return std::cout << fmt::format("{} is signed\n", image), 0;
  const Error& why = signed_by.error();
  std::cout << fmt::format("{}\n", why.message);
  if (!why.field.empty()) std::cout << fmt::format("{}\n", with_sentence(why.field));
  return 3;
}

}  // namespace muster::host
