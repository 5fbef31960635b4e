#include "cli/api.h"

#include <fmt/format.h>

#include <algorithm>
#include <thread>

#include "cli/session.h"
#include "cli/table.h"
#include "crypto/random.h"

namespace muster::cli {
namespace {

class NetTransport : public Transport {
 public:
  explicit NetTransport(net::Endpoint endpoint) : client_(std::move(endpoint)) {}
  Result<net::Response> call(const Call& call) override { return client_.call(call); }
  Result<net::Response> stream(const Call& call, const std::function<bool(std::string_view)>& on_chunk) override {
    return client_.stream(call, on_chunk);
  }
  Result<net::Response> upload(const Call& call, const std::string& file,
                               const std::function<void(std::uint64_t)>& progress) override {
    return client_.upload(call, file, progress);
  }
  void sleep(Millis time) override { std::this_thread::sleep_for(time); }

 private:
  net::Client client_;
};

Code code_of(std::string_view name, int status) {
  for (int i = 1; i <= 15; ++i)
    if (code_name(static_cast<Code>(i)) == name) return static_cast<Code>(i);
  switch (status) {
    case 400:
    case 422:
      return Code::InvalidArgument;
    case 401:
      return Code::Unauthenticated;
    case 403:
      return Code::PermissionDenied;
    case 404:
      return Code::NotFound;
    case 409:
      return Code::FailedPrecondition;
    case 413:
      return Code::TooLarge;
    case 429:
      return Code::ResourceExhausted;
    case 501:
      return Code::Unsupported;
    case 502:
    case 503:
      return Code::Unavailable;
    case 504:
      return Code::DeadlineExceeded;
    default:
      return Code::Internal;
  }
}

}  // namespace

std::unique_ptr<Transport> net_transport(net::Endpoint endpoint) {
  return std::make_unique<NetTransport>(std::move(endpoint));
}

Result<net::Endpoint> endpoint_of(const Account& account) {
  net::Endpoint endpoint = TRY(net::parse_url(account.server));
  endpoint.ca_pem = account.ca_pem;
  if (endpoint.ca_pem.empty())
    return error(Code::Unauthenticated,
                 "no CA is known for " + account.server + "; log in again with --ca-sha256, or set MUSTER_CA_FILE");
  return endpoint;
}

Error problem_of(int status, const std::string& body) {
  const auto parsed = wire::parse_json(body);
  if (!parsed.ok() || !parsed->is(wire::Json::Kind::Object))
    return error(code_of("", status), fmt::format("the server answered {} without saying why", status));
  const auto& problem = *parsed;
  std::string text = problem["detail"].text().empty() ? problem["title"].text() : problem["detail"].text();
  if (text.empty()) text = fmt::format("the server answered {}", status);
  const std::string& field = problem["field"].text();
  return error(code_of(problem["code"].text(), status), clean(text), clean(field));
}

bool worth_retrying(const Error& error) {
  return error.code == Code::Unavailable || error.code == Code::DeadlineExceeded || error.code == Code::Cancelled;
}

std::string path_of(std::string_view collection, std::string_view id) {
  return fmt::format("/api/v1/{}/{}", collection, escape_url(id));
}

Result<std::map<std::string, std::string>> Api::auth_headers() {
  const std::string token = TRY(bearer_of(account_));
  if (token.empty()) return std::map<std::string, std::string>{};
  return std::map<std::string, std::string>{{"authorization", "Bearer " + token}};
}

Result<wire::Json> Api::call(Transport::Call call) {
  Millis waited{0};
  Millis delay{200};
  bool renewed = false;
  for (;;) {
    auto headers = auth_headers();
    if (!headers.ok() && (!worth_retrying(headers.error()) || waited >= patience_)) return headers.error();
    if (headers.ok())
      for (const auto& [name, value] : *headers) call.headers[name] = value;
    auto answer = headers.ok() ? transport_->call(call) : Result<net::Response>(headers.error());
    Error failure;
    if (answer.ok() && answer->status >= 200 && answer->status < 300) {
      if (answer->body.empty()) return wire::Json::object();
      return wire::parse_json(answer->body, {.bytes = 64 << 20, .depth = 64, .values = 4'000'000});
    }
    failure = answer.ok() ? problem_of(answer->status, answer->body) : answer.error();
    // Refused before its time, by clocks that differ or by a key that changed: another one, once.
    if (failure.code == Code::Unauthenticated && !account_.refresh.empty() && !std::exchange(renewed, true)) {
      TRY(bearer_of(account_, Renewal::Now));
      continue;
    }
    if (!worth_retrying(failure) || waited >= patience_) return failure;
    transport_->sleep(delay);
    waited += delay;
    delay = std::min(delay * 2, Millis(5'000));
  }
}

Result<wire::Json> Api::get(const std::string& target) {
  return call({.method = "GET", .target = target});
}

Result<wire::Json> Api::send(const std::string& method, const std::string& target, const std::string& body) {
  Transport::Call request{.method = method, .target = target, .body = body};
  if (!body.empty()) request.headers["content-type"] = "application/json";
  request.headers["idempotency-key"] = hex(crypto::random_bytes(16));
  return call(std::move(request));
}

Result<std::vector<wire::Json>> Api::list(const std::string& target) {
  std::vector<wire::Json> out;
  std::string cursor;
  for (;;) {
    std::string page = target + (target.find('?') == std::string::npos ? "?" : "&") + "limit=500";
    if (!cursor.empty()) page += "&cursor=" + escape_url(cursor);
    const auto answer = TRY(get(page));
    for (const auto& item : answer["items"].items()) out.push_back(item);
    const std::string next = answer["nextCursor"].text();
    if (next.empty() || next == cursor || out.size() >= 100'000) return out;
    cursor = next;
  }
}

Result<std::string> Api::upload(const std::string& file, const std::string& sha256,
                                const std::function<void(std::uint64_t)>& progress) {
  Transport::Call request{
      .method = "POST", .target = "/api/v1/blobs", .headers = TRY(auth_headers()), .timeout = Millis(3'600'000)};
  request.headers["content-type"] = "application/octet-stream";
  request.headers["idempotency-key"] = hex(crypto::random_bytes(16));
  Millis delay{500};
  for (int attempt = 0;; ++attempt) {
    auto answer = transport_->upload(request, file, progress);
    if (answer.ok() && answer->status < 300) {
      const auto parsed = TRY(wire::parse_json(answer->body));
      const std::string digest = parsed["digest"].text();
      if (digest != sha256) return error(Code::DataLoss, "the server stored other bytes than were sent; try again");
      return digest;
    }
    const Error failure = answer.ok() ? problem_of(answer->status, answer->body) : answer.error();
    if (!worth_retrying(failure) || attempt >= 6) return failure;
    transport_->sleep(delay);
    delay = std::min(delay * 2, Millis(10'000));
  }
}

Status Api::stream(const std::string& target, std::map<std::string, std::string> headers,
                   const std::function<bool(std::string_view)>& on_chunk) {
  Transport::Call request{.method = "GET", .target = target, .headers = std::move(headers), .timeout = Millis(120'000)};
  const auto authorised = TRY(auth_headers());
  for (const auto& [name, value] : authorised) request.headers[name] = value;
  auto answer = transport_->stream(request, on_chunk);
  if (!answer.ok()) return answer.error();
  if (answer->status < 200 || answer->status >= 300) return problem_of(answer->status, answer->body);
  return {};
}

}  // namespace muster::cli
