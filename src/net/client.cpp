#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/parser.hpp>

#include "net/dial.h"
#include "net/url.h"

namespace muster::net {
namespace {

namespace http = boost::beast::http;
using ErrorCode = boost::system::error_code;

constexpr std::size_t kAnswerHeaderMax = 64 << 10;

// Hands body bytes to a function as they come.
struct ChunkBody {
  struct value_type {
    std::function<bool(std::string_view)> sink;
  };
  struct reader {
    template <bool isRequest, typename Fields>
    reader(http::header<isRequest, Fields>&, value_type& value) : value_(value) {}
    void init(const boost::optional<std::uint64_t>&, ErrorCode& ec) { ec = {}; }
    template <typename Buffers>
    std::size_t put(const Buffers& buffers, ErrorCode& ec) {
      ec = {};
      std::size_t total = 0;
      for (auto it = boost::asio::buffer_sequence_begin(buffers); it != boost::asio::buffer_sequence_end(buffers);
           ++it) {
        const boost::asio::const_buffer piece = *it;
        total += piece.size();
        if (!value_.sink({static_cast<const char*>(piece.data()), piece.size()})) ec = http::error::end_of_stream;
      }
      return total;
    }
    void finish(ErrorCode& ec) { ec = {}; }
    value_type& value_;
  };
};
using AnswerParser = http::response_parser<ChunkBody>;

bool repeatable(const Client::Call& call) {
  if (call.method == "GET" || call.method == "HEAD" || call.method == "PUT" || call.method == "DELETE") return true;
  for (const auto& [name, value] : call.headers) {
    if (lower(name) == "idempotency-key") return true;
  }
  return false;
}

bool clean(std::string_view text) {
  return text.find_first_of(std::string_view("\r\n\0", 3)) == std::string_view::npos;
}

// An upload that the server refuses is answered before the file is sent whole: look for the answer while sending. Bytes
// on the socket alone prove nothing (TLS 1.3 sends session tickets unasked), so the record layer is asked. Also true at
// the end.
bool readable(Dialled& connection) {
  pollfd poll_fd{connection.fd.get(), POLLIN, 0};
  const bool held = connection.ssl && SSL_pending(connection.ssl.get()) > 0;
  if (!held && ::poll(&poll_fd, 1, 0) <= 0) return false;
  if (!connection.ssl) return true;
  char byte = 0;
  ERR_clear_error();
  const int rc = SSL_peek(connection.ssl.get(), &byte, 1);
  return rc > 0 || SSL_get_error(connection.ssl.get(), rc) != SSL_ERROR_WANT_READ;
}

}  // namespace

struct Client::Impl {
  explicit Impl(Endpoint e) : endpoint(std::move(e)) {}

  struct Source {  // the body that is sent
    std::string_view text;
    int file = -1;
    std::uint64_t size = 0;
    const std::function<void(std::uint64_t)>* progress = nullptr;
  };

  Result<std::string> head(const Call& call, std::uint64_t body_bytes) const {
    if (call.target.empty() || call.target[0] != '/' || !clean(call.target) || !clean(call.method) ||
        call.target.find(' ') != std::string::npos) {
      return error(Code::InvalidArgument, "'" + call.target + "' is not a request path");
    }
    const std::string host = endpoint.host.find(':') == std::string::npos ? endpoint.host : "[" + endpoint.host + "]";
    std::string out = call.method + " " + call.target + " HTTP/1.1\r\nHost: " + host +
                      (endpoint.port == 443 ? "" : ":" + std::to_string(endpoint.port)) + "\r\nUser-Agent: muster\r\n";
    for (const auto& [name, value] : call.headers) {
      if (!clean(name) || !clean(value))
        return error(Code::InvalidArgument, "the header " + name + " holds a line end");
      out += name + ": " + value + "\r\n";
    }
    if (body_bytes > 0 || call.method == "POST" || call.method == "PUT")
      out += "Content-Length: " + std::to_string(body_bytes) + "\r\n";
    return out + "\r\n";
  }

  Status send_body(const Source& source, Millis patience) {
    if (source.file < 0) return write_all(*connection, source.text, deadline_in(patience));
    std::string buffer(64 << 10, '\0');
    std::uint64_t sent = 0;
    while (sent < source.size) {
      if (readable(*connection)) return {};
      const ssize_t n = ::read(source.file, buffer.data(), std::min<std::uint64_t>(buffer.size(), source.size - sent));
      if (n <= 0) return error(Code::Aborted, "the file became shorter while it was sent; try again");
      TRY_VOID(write_all(*connection, std::string_view(buffer).substr(0, static_cast<std::size_t>(n)),
                         deadline_in(patience)));
      sent += static_cast<std::uint64_t>(n);
      if (*source.progress) (*source.progress)(sent);
    }
    return {};
  }

  // gap: the longest silence while the body comes; 0 = none.
  Result<Response> receive(const Call& call, const std::function<bool(std::string_view)>* on_chunk, Millis gap,
                           bool& any) {
    Response out;
    AnswerParser parser;
    parser.header_limit(kAnswerHeaderMax);
    parser.body_limit(boost::none);
    bool stopped = false, too_large = false;
    parser.get().body().sink = [&](std::string_view data) {
      if (on_chunk != nullptr && out.status < 300) {
        stopped = stopped || !(*on_chunk)(data);  // more may lie in what was read already
        return !stopped;
      }
      too_large = out.body.size() + data.size() > call.body_max;
      if (!too_large) out.body.append(data);
      return !too_large;
    };
    if (call.method == "HEAD") parser.skip(true);
    std::string buffer;
    Deadline deadline = deadline_in(call.timeout);
    bool header = false;
    while (!parser.is_done()) {
      ErrorCode ec;
      const std::size_t used = parser.put(boost::asio::buffer(buffer), ec);
      buffer.erase(0, used);
      if (stopped || too_large) break;
      if (ec && ec != http::error::need_more)
        return error(Code::Unavailable, "the server's answer is not valid HTTP (" + ec.message() + ")");
      if (!header && parser.is_header_done()) {
        header = true;
        out.status = parser.get().result_int();
        if (out.status < 200)
          return error(Code::Unsupported, "the server sent an interim answer that was not asked for");
        for (const auto& field : parser.get())
          out.headers[lower(std::string_view(field.name_string()))] = std::string(field.value());
        out.content_type = out.headers["content-type"];
        continue;
      }
      if (parser.is_done() || (used > 0 && !buffer.empty() && ec != http::error::need_more)) continue;
      char data[16 << 10];
      const bool endless = header && on_chunk != nullptr;
      if (endless) deadline = gap.count() > 0 ? deadline_in(gap) : deadline_in(Millis(365LL * 86'400'000));
      const std::size_t n = TRY(read_some(*connection, data, sizeof data, deadline));
      if (n == 0) {
        if (parser.got_some()) parser.put_eof(ec);
        if (ec || !header)
          return error(Code::Unavailable, "the server closed the connection in the middle of its answer");
        break;
      }
      any = true;
      buffer.append(data, n);
    }
    if (too_large) {
      connection.reset();
      return error(Code::TooLarge, "the server's answer is larger than " + std::to_string(call.body_max) + " bytes");
    }
    if (stopped || !parser.is_done() || !parser.keep_alive() || !buffer.empty()) connection.reset();
    return out;
  }
  Result<Response> run(const Call& call, const Source& source, const std::function<bool(std::string_view)>* on_chunk,
                       Millis gap) {
    const std::string header = TRY(head(call, source.size));
    for (int attempt = 0;; ++attempt) {
      const bool reused = connection.has_value() && !readable(*connection);
      if (!reused) {
        connection.reset();
        connection = TRY(dial(endpoint, "http/1.1", deadline_in(call.timeout)));
        ca_pem = connection->ca_pem;
      }
      bool any = false;
      auto sent = write_all(*connection, header, deadline_in(call.timeout));
      if (sent.ok()) sent = send_body(source, call.timeout);
      // Even when sending broke, the server may have said why.
      auto answer =
          sent.ok() || readable(*connection) ? receive(call, on_chunk, gap, any) : Result<Response>(sent.error());
      if (answer.ok()) {
        if (!sent.ok()) connection.reset();
        return answer;
      }
      connection.reset();
      const bool again = reused && attempt == 0 && !any && source.file < 0 &&
                         answer.error().code == Code::Unavailable && repeatable(call);
      if (!again)
        return error(answer.error().code,
                     call.method + " " + call.target.substr(0, call.target.find('?')) + ": " + answer.error().message);
    }
  }

  const Endpoint endpoint;
  std::optional<Dialled> connection;
  std::string ca_pem;
};

Client::Client(Endpoint endpoint) : impl_(std::make_unique<Impl>(std::move(endpoint))) {}
Client::~Client() = default;
std::string Client::last_ca_pem() const {
  return impl_->ca_pem;
}

Result<Response> Client::call(const Call& call) {
  return impl_->run(call, {call.body, -1, call.body.size()}, nullptr, Millis(0));
}

Result<Response> Client::stream(const Call& call, const std::function<bool(std::string_view)>& on_chunk) {
  return impl_->run(call, {call.body, -1, call.body.size()}, &on_chunk, Millis(0));
}

Result<Response> Client::upload(const Call& call, const std::string& file_path,
                                const std::function<void(std::uint64_t)>& progress) {
  const Fd file(::open(file_path.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat info {};
  if (!file || ::fstat(file.get(), &info) != 0 || !S_ISREG(info.st_mode)) {
    return error(Code::InvalidArgument, "the file " + file_path + " cannot be read");
  }
  return impl_->run(call, {{}, file.get(), static_cast<std::uint64_t>(info.st_size), &progress}, nullptr, Millis(0));
}

}  // namespace muster::net
