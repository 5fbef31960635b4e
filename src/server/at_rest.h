#pragma once
// Encryption at rest of a data folder. What lies in it is sealed with data keys (crypto/key_ring.h); those lie in
// DIR/at-rest, a small text, wrapped by a key that is kept elsewhere: in a file, a systemd credential, or a KMS asked
// by a program (server/key_program.h). So that key is changed by writing DIR/at-rest anew, and data keys change one
// thing after another, the old ones staying until the last. DIR/at-rest is replaced as a whole; a crash leaves the old
// or the new. Whoever uses a folder holds a shared lock on it; who seals it anew needs it alone. Blocking; any thread.
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "crypto/key_ring.h"
#include "crypto/secret.h"

namespace muster::server {

struct Arguments;
struct DataDir;

// Where the key that wraps comes from: one of the two, or nothing.
struct KeySource {
  std::string file;         // 32 bytes, or 32 bytes in base64
  std::string program;      // server/key_program.h
  bool credential = false;  // `file` is systemd's
  bool none() const { return file.empty() && program.empty(); }
};
// From --at-rest-key and --at-rest-program, else $CREDENTIALS_DIRECTORY/muster-at-rest where there is one.
Result<KeySource> key_source(const Arguments& arguments);
Result<KeySource> next_key_source(const Arguments& arguments);  // --to-key, --to-program
std::string key_words(const Arguments& arguments);  // the option as it was given, to be shown: " --at-rest-key FILE"
Status make_key_file(const std::string& path);      // a new one, of mode 0600; never over another file

enum class RestState : std::uint8_t {
  Sealing,   // at-rest init has begun: plain things may lie beside sealed ones
  On,        // all is sealed
  Rekeying,  // all is sealed, some of it still with the data keys before
};

// DIR/at-rest as it is written.
struct RestFile {
  RestState state = RestState::On;
  std::string wrapped_by;  // "key 1f2e3d4c5b6a7988" (its fingerprint) or "program"
  std::uint32_t current = 1;
  std::map<std::uint32_t, std::string> keys;  // wrapped
  std::string mac;
};
std::string rest_path(const std::string& root);
Result<RestFile> parse_rest_file(const std::string& text);  // without looking at the mac

// The keys of a folder, unwrapped.
struct AtRest {
  RestState state = RestState::On;
  KeySource source;
  std::uint32_t current = 1;
  std::map<std::uint32_t, crypto::Secret32> keys;
  std::shared_ptr<crypto::KeyRing> ring;  // of these keys
};
// New data key, number 1. Nothing is written.
Result<AtRest> new_at_rest(const KeySource& source, RestState state);
Result<AtRest> unwrap_rest_file(const std::string& text, const KeySource& source);
Status write_at_rest(const std::string& root, const AtRest& keys);  // wrapped by its source
Status add_data_key(AtRest& keys);                                  // current from now on

// A lock on the folder itself, which needs no file.
class DirLock {
 public:
  ~DirLock();
  DirLock(const DirLock&) = delete;
  DirLock& operator=(const DirLock&) = delete;
  static Result<std::shared_ptr<DirLock>> shared(const std::string& root);  // nullptr where there is no folder
  static Result<std::shared_ptr<DirLock>> alone(const std::string& root);   // FailedPrecondition: it is in use

 private:
  explicit DirLock(int fd) : fd_(fd) {}
  int fd_;
};

// What every command begins with: the folder of --data, locked, with its keys where it is sealed. FailedPrecondition:
// it is sealed and no key is named, or the other way round, or sealing has not ended.
Result<DataDir> open_data_dir(const Arguments& arguments);

std::shared_ptr<crypto::KeyRing> ring_of(const DataDir& dir);  // null: not encrypted

// The small files that are sealed as a whole: their paths, whether they are sealed yet or not.
std::vector<std::string> sealed_files(const std::string& root);
std::string file_place(const std::string& root, const std::string& path);
// Lines of a log that is only appended to: each is sealed by itself.
std::string seal_lines(crypto::KeyRing& ring, const std::string& name, std::string_view text);
// The lines of such a log, those in the clear as they are.
Result<std::string> open_lines(crypto::KeyRing& ring, const std::string& name, std::string_view text);

// Everything in the folder but its databases under the current key. plain_allowed: what is not sealed yet is sealed.
enum class PlainFiles : std::uint8_t { Refused, Sealed };
Result<std::uint64_t> reseal_files(const std::string& root, const std::shared_ptr<crypto::KeyRing>& ring,
                                   PlainFiles plain);

}  // namespace muster::server
