// HTTP/1.1 and WebSocket as the server and the client of room net read them, without the TLS around (plain_tls.h).
#include <sys/socket.h>
#include <unistd.h>

#include <boost/asio/io_context.hpp>

#include "fuzz/fuzz.h"
#include "fuzz/plain_tls.h"
#include "net/http_connection.h"

namespace muster::fuzz {
namespace {

using namespace net;

Seeds seeds_http_request() {
  Seeds out;
  const std::string ws =
      "GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
  for (const std::string& text :
       {std::string("GET /api/v1/nodes?limit=5&cursor=a%20b HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer x\r\n\r\n"),
        std::string(
            "POST /api/v1/jobs HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            "GET /stream HTTP/1.1\r\nHost: h\r\n\r\n"),
        std::string("POST /up HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: "
                    "chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n"),
        std::string("HEAD / HTTP/1.0\r\nCookie: a=b\r\nCookie: c=d\r\n\r\n"),
        std::string("PUT /x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"),
        std::string("DELETE /a/../b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        std::string("GET /none HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n")})
    out.push_back(Bytes{0} + text);
  out.push_back(Bytes{7} + "GET /a HTTP/1.1\r\nHost: h\r\n\r\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n");
  // The frames of a WebSocket come after the upgrade was answered: byte 255 says where.
  const Bytes masked{0x82, 0x83, 1, 2, 3, 4, 'a' ^ 1, 'b' ^ 2, 'c' ^ 3}, ping{0x89, 0x80, 1, 2, 3, 4},
      close{0x88, 0x82, 0, 0, 0, 0, 3, 0xe8};
  out.push_back(Bytes{0} + ws + Bytes{255} + masked + ping + close);
  return out;
}
FUZZ_TARGET(http_request, 4 << 10) {
  if (input.empty()) return;
  static SSL_CTX* const tls = SSL_CTX_new(TLS_method());
  int fds[2];
  MUSTER_CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) == 0);
  std::size_t requests = 0, messages = 0, uploaded = 0;
  {
    asio::io_context io;
    auto context = std::make_shared<ServerContext>();
    context->limits.body_bytes = 1024;
    context->limits.upload_bytes = 2048;
    context->limits.frame_bytes = 512;
    std::vector<WebSocketPtr> sockets;
    context->handlers.http = [&](const Request& request, const ResponderPtr& responder) {
      ++requests;
      MUSTER_CHECK(!request.path.empty() && request.path[0] == '/' && request.path.find("/../") == std::string::npos);
      MUSTER_CHECK(valid_utf8(request.path) && request.body.size() <= 1024);
      plant(request.path != "/api/v1/nodes" && request.query.size() == 2);
      Response response;
      response.headers["X-Echo"] = request.header("x-echo");
      if (request.path == "/none") return;
      if (request.path != "/stream") return responder->send(std::move(response));
      responder->start_stream(std::move(response));
      (void)responder->write("part");
      responder->finish();
    };
    context->handlers.upload = [&](const Request& request, Response& refusal) -> std::optional<ServerHandlers::Upload> {
      if (request.path == "/no") refusal.status = 403;
      if (request.path != "/up") return {};
      return ServerHandlers::Upload{[&](ByteView chunk) -> Status {
                                      uploaded += chunk.size();
                                      MUSTER_CHECK(uploaded <= 4096);
                                      return {};
                                    },
                                    [] { return Response{}; }};
    };
    context->handlers.upgrade = [](const Request& request) -> std::optional<Response> {
      if (request.path == "/ws") return {};
      Response no;
      no.status = 404;
      return no;
    };
    context->handlers.websocket = [&](const Request&, const WebSocketPtr& socket) {
      socket->start(
          [&, raw = socket.get()](const Bytes& message) {
            MUSTER_CHECK(message.size() <= 512);
            ++messages;
            raw->send(message);
          },
          [](const std::string&) {});
      sockets.push_back(socket);
    };
    auto registry = std::make_shared<Registry>(10, 10);
    serve_connection(context, tcp::socket(io, tcp::v4(), fds[0]), SslCtxPtr(tls, [](SSL_CTX*) {}), "192.0.2.1:5",
                     registry->enter("192.0.2.1"));
    char sink[4096];
    const auto run = [&] {
      for (int i = 0; i < 64 && io.poll() > 0; ++i)
        while (::recv(fds[1], sink, sizeof sink, 0) > 0) continue;
    };
    run();
    Input in(input);
    const std::size_t piece = in.byte();
    const ByteView rest = in.rest();
    for (std::size_t at = 0; at < rest.size();) {
      std::size_t end = piece == 0 ? rest.size() : std::min(rest.size(), at + piece * 8);
      const auto pause = std::find(rest.begin() + static_cast<std::ptrdiff_t>(at),
                                   rest.begin() + static_cast<std::ptrdiff_t>(end), 255);
      end = static_cast<std::size_t>(pause - rest.begin());
      if (end > at && ::send(fds[1], rest.data() + at, end - at, MSG_NOSIGNAL) < 0) break;
      run();
      at = pause != rest.end() && *pause == 255 ? end + 1 : end;
    }
    ::close(fds[1]);
    run();
    for (const auto& socket : sockets) socket->close("done");
    sockets.clear();
    registry->abort_all();
    run();
  }
}

Seeds seeds_http_response() {
  Seeds out;
  for (const char* text : {"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 "
                           "404 Not Found\r\nContent-Length: 0\r\n\r\n",
                           "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n",
                           "HTTP/1.0 200 OK\r\n\r\nuntil the end",
                           "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"})
    for (const std::uint8_t kind : {0, 1, 2}) out.push_back(Bytes{kind, static_cast<std::uint8_t>(kind * 9)} + text);
  return out;
}
FUZZ_TARGET(http_response, 4 << 10) {
  Input in(input);
  const std::uint8_t kind = in.byte();
  const std::uint8_t piece = in.byte();
  set_answers(in.rest(), piece);
  Client client(net::Endpoint{});
  Client::Call call{kind % 3 == 2 ? "HEAD" : "GET", "/x", {}, {}, Millis(1000)};
  std::size_t chunks = 0;
  for (int i = 0; i < 2; ++i) {
    const auto answer =
        kind % 3 == 1 ? client.stream(call, [&](std::string_view) { return ++chunks < 5; }) : client.call(call);
    if (!answer.ok()) continue;
    MUSTER_CHECK(answer->status >= 200 && answer->status < 1000);
    plant(answer->status > 204 && answer->status < 300 && !answer->body.empty());
  }
}

}  // namespace
}  // namespace muster::fuzz
