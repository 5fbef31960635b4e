#pragma once
// A certificate for names of the web, which browsers and programs trust that know nothing of our CA. It is the
// operator's own, in files that are read again when told, or one that is asked for over ACME (acme/order.h): kept in
// DIR/keys/public.pem (sealed where the folder is), renewed when a third of its life is left or the names changed,
// and asked for again after a failure, five minutes later and then more and more seldom, so that no CA has a reason to
// shut us out. What goes wrong is logged; the control plane serves all the same. Thread-safe; ACME on a thread of its
// own.
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "acme/order.h"
#include "net/net.h"
#include "server/context.h"

namespace muster::server {

class PublicName {
 public:
  static constexpr const char* kWatched = "public";  // its name among the certificates in use
  struct Options {
    std::vector<std::string> names;  // empty: those of the certificate
    std::string certificate_file, key_file;
    std::string directory, contact;  // of ACME; no directory: the files
    std::string binding_id;          // acme::Wish
    Bytes binding_key;
    std::string ca_pem;  // whom to trust as the ACME server; empty: the system's roots
  };
  PublicName(Context& context, net::Server& server, Options options)
      : context_(context), server_(server), options_(std::move(options)) {}
  ~PublicName() { stop(); }
  // An error where the operator's files are no good, or what is kept cannot be read.
  Status start();
  void stop();
  // The files are read again. By ACME only if somebody asks: a failure there has its own, growing pause.
  void look(bool asked);

 private:
  Status show(const crypto::KeyAndCert& pair);
  Result<crypto::KeyAndCert> from_files() const;
  Result<crypto::KeyAndCert> ask();
  Result<crypto::AccountKey> account();
  bool due(WallTime now) const;  // mutex_ is held
  void run();
  bool wait(Millis time);  // false: it is over

  Context& context_;
  net::Server& server_;
  const Options options_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false, told_ = false;
  std::vector<std::string> shown_names_;
  crypto::Validity shown_{};
  std::thread thread_;
};

}  // namespace muster::server
