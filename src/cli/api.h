#pragma once
// The REST API as the CLI uses it. Reads are retried on a lost connection; so are mutations, since each carries one
// Idempotency-Key. Problem details become Errors with their code. Transport is the seam that tests replace. One thread;
// blocking.
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "cli/config.h"
#include "net/net.h"
#include "wire/json.h"

namespace muster::cli {

class Transport {
 public:
  using Call = net::Client::Call;
  virtual ~Transport() = default;
  virtual Result<net::Response> call(const Call& call) = 0;
  virtual Result<net::Response> stream(const Call& call, const std::function<bool(std::string_view)>& on_chunk) = 0;
  virtual Result<net::Response> upload(const Call& call, const std::string& file,
                                       const std::function<void(std::uint64_t)>& progress) = 0;
  virtual void sleep(Millis time) = 0;
};
std::unique_ptr<Transport> net_transport(net::Endpoint endpoint);
Result<net::Endpoint> endpoint_of(const Account& account);

class Api {
 public:
  Api(std::unique_ptr<Transport> transport, Account account)
      : transport_(std::move(transport)), account_(std::move(account)) {}

  Result<wire::Json> get(const std::string& target);
  Result<wire::Json> send(const std::string& method, const std::string& target, const std::string& body = {});
  Result<std::vector<wire::Json>> list(const std::string& target);  // every page, at most 100,000 items
  Result<std::string> upload(const std::string& file, const std::string& sha256,
                             const std::function<void(std::uint64_t)>& progress);
  // One attempt at a stream; an error before or after some chunks is the caller's to resume.
  Status stream(const std::string& target, std::map<std::string, std::string> headers,
                const std::function<bool(std::string_view)>& on_chunk);

  // With a token that holds for a while yet: a login's is renewed when it nears its end.
  Result<std::map<std::string, std::string>> auth_headers();
  const Account& account() const { return account_; }
  void set_patience(Millis patience) { patience_ = patience; }
  void sleep(Millis time) { transport_->sleep(time); }

 private:
  Result<wire::Json> call(Transport::Call call);
  std::unique_ptr<Transport> transport_;
  Account account_;
  Millis patience_{60'000};
};

Error problem_of(int status, const std::string& body);  // RFC 9457 -> Error
bool worth_retrying(const Error& error);
std::string path_of(std::string_view collection, std::string_view id);  // "/api/v1/clusters/my%20name"

}  // namespace muster::cli
