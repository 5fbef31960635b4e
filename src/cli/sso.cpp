#include "cli/sso.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>

#include "cli/table.h"
#include "wire/rest.h"

namespace muster::cli {
namespace {

constexpr std::size_t kHeadMax = 16 << 10, kPeersMax = 16;
constexpr int kAsksMax = 4000;

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else
      out += c;
  }
  return out;
}

void answer_and_close(int fd, std::string_view status, std::string_view title, std::string_view text) {
  const std::string page = fmt::format("<!doctype html><meta charset=utf-8><title>{0}</title><h1>{0}</h1><p>{1}</p>\n",
                                       escaped(title), escaped(text));
  const std::string all = fmt::format(
      "HTTP/1.1 {}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n"
      "Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nX-Content-Type-Options: nosniff\r\n"
      "Content-Security-Policy: default-src 'none'; frame-ancestors 'none'\r\n\r\n{}",
      status, page.size(), page);
  // A page this small fits into the socket's buffer; a browser that is gone is no fault.
  static_cast<void>(::send(fd, all.data(), all.size(), MSG_NOSIGNAL | MSG_DONTWAIT));
  ::shutdown(fd, SHUT_WR);
  ::close(fd);
}

Error told_by_provider(const std::string& fault) {
  if (fault == "access_denied")
    return error(Code::Cancelled, "the login was cancelled at the identity provider; run the command again to log in");
  return error(Code::PermissionDenied, fmt::format("the identity provider refuses the login: {}; tell the operator of "
                                                   "the control plane",
                                                   clean(fault.substr(0, 100))));
}

}  // namespace

Result<std::unique_ptr<Callback>> Callback::open() {
  std::unique_ptr<Callback> out(new Callback);
  out->listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (out->listener_ < 0 || ::bind(out->listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(out->listener_, 16) != 0 ||
      ::getsockname(out->listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return error(Code::Unavailable, "no port of 127.0.0.1 can be listened on; log in with --device");
  out->port_ = ntohs(address.sin_port);
  return out;
}

Callback::~Callback() {
  for (const Peer& peer : peers_) ::close(peer.fd);
  if (listener_ >= 0) ::close(listener_);
  if (browser_ >= 0) ::close(browser_);
}

void Callback::accept_one() {
  const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  if (peers_.size() >= kPeersMax) {  // browsers open connections ahead and leave them silent
    ::close(peers_.front().fd);
    peers_.erase(peers_.begin());
  }
  peers_.push_back({fd, {}});
}

bool Callback::read_from(Peer& peer, const std::string& state, Answer& out) {
  char buffer[4096];
  const ssize_t n = ::recv(peer.fd, buffer, sizeof buffer, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  const auto refuse = [&](std::string_view status, std::string_view text) {
    answer_and_close(std::exchange(peer.fd, -1), status, "Muster", text);
    return false;
  };
  if (n <= 0) {
    ::close(std::exchange(peer.fd, -1));
    return false;
  }
  peer.head.append(buffer, static_cast<std::size_t>(n));
  if (peer.head.find("\r\n\r\n") == std::string::npos)
    return peer.head.size() > kHeadMax ? refuse("431 Request Header Fields Too Large", "Too long.") : false;
  const auto request = net::parse_request_line(std::string_view(peer.head).substr(0, peer.head.find("\r\n")));
  if (!request || request->method != "GET") return refuse("400 Bad Request", "This is no request of a browser.");
  if (request->path != "/callback") return refuse("404 Not Found", "There is nothing here.");
  if (request->query_value("state").value_or("") != state)
    return refuse("400 Bad Request", "This answer belongs to another login. Begin again in the terminal.");
  out.code = request->query_value("code").value_or("");
  out.issuer = request->query_value("iss").value_or("");
  out.fault = request->query_value("error").value_or("");
  if (out.code.empty() && out.fault.empty()) return refuse("400 Bad Request", "The answer holds no code.");
  browser_ = std::exchange(peer.fd, -1);
  return true;
}

Result<Callback::Answer> Callback::wait(const std::string& state, Millis patience) {
  const auto end = std::chrono::steady_clock::now() + patience;
  Answer out;
  while (true) {
    const auto left = std::chrono::duration_cast<Millis>(end - std::chrono::steady_clock::now()).count();
    if (left <= 0)
      return error(Code::DeadlineExceeded,
                   "the login was not finished in the browser in time; run the command again, or use --device");
    std::vector<pollfd> fds{{listener_, POLLIN, 0}};
    for (const Peer& peer : peers_) fds.push_back({peer.fd, POLLIN, 0});
    if (::poll(fds.data(), fds.size(), static_cast<int>(std::min<std::int64_t>(left, 60'000))) <= 0) continue;
    for (std::size_t i = 1; i < fds.size(); ++i)
      if (fds[i].revents != 0 && read_from(peers_[i - 1], state, out)) return out;
    std::erase_if(peers_, [](const Peer& peer) { return peer.fd < 0; });
    if (fds[0].revents != 0) accept_one();
  }
}

void Callback::tell(const std::string& title, const std::string& text) {
  if (browser_ >= 0) answer_and_close(std::exchange(browser_, -1), "200 OK", title, text);
}

Result<wire::Json> login_in_browser(const SsoWorld& world, Callback& callback, Millis patience) {
  const auto begun = TRY(world.call("/api/v1/sso/begin", wire::to_json(wire::BeginSsoRequest{false, callback.port()})));
  const std::string url = clean(begun["url"].text());
  // It goes to a program as an argument: only what a browser is for.
  if (!url.starts_with("https://") && !url.starts_with("http://"))
    return error(Code::PermissionDenied, "the control plane names no web page to log in at");
  world.tell("To log in, open this page in a browser on this machine (elsewhere: --device):\n\n  " + url + "\n");
  if (world.open_url) world.open_url(url);
  const auto came = TRY(callback.wait(begun["state"].text(), patience));
  if (!came.fault.empty()) {
    const Error why = told_by_provider(came.fault);
    callback.tell("Not logged in", why.message);
    return why;
  }
  auto done = world.call("/api/v1/sso/finish",
                         wire::to_json(wire::FinishSsoRequest{begun["handle"].text(), came.code, begun["state"].text(),
                                                              came.issuer, world.label}));
  callback.tell(done.ok() ? "Logged in" : "Not logged in",
                done.ok() ? "You may close this page and go on in the terminal." : done.error().message);
  return done;
}

Result<wire::Json> login_by_code(const SsoWorld& world) {
  const auto begun = TRY(world.call("/api/v1/sso/begin", wire::to_json(wire::BeginSsoRequest{true, 0})));
  const std::string url = clean(begun["verificationUrl"].text()),
                    whole = clean(begun["verificationUrlComplete"].text());
  world.tell(fmt::format("To log in, open {} on any device and enter the code\n\n  {}\n", url,
                         clean(begun["userCode"].text())));
  if (!whole.empty()) world.tell(fmt::format("or open {}\n", whole));
  const std::string body = wire::to_json(wire::FinishSsoRequest{begun["handle"].text(), "", "", "", world.label});
  Millis wait{std::clamp<std::int64_t>(begun["intervalSeconds"].integer(), 1, 60) * 1000};
  for (int i = 0; i < kAsksMax; ++i) {
    world.sleep(wait);
    const auto answer = world.call("/api/v1/sso/finish", body);
    if (!answer.ok()) {
      const Code code = answer.error().code;
      if (code != Code::Unavailable && code != Code::ResourceExhausted) return answer;
      continue;  // the control plane knows when the time is over
    }
    if (!(*answer)["pending"].truth()) return answer;
    wait = Millis(std::clamp<std::int64_t>((*answer)["retrySeconds"].integer(), 1, 120) * 1000);
  }
  return error(Code::DeadlineExceeded, "the code was not used in time; run the command again");
}

bool has_desktop() {
  const auto set = [](const char* name) {
    const char* value = std::getenv(name);
    return value != nullptr && *value != 0;
  };
  return (set("DISPLAY") || set("WAYLAND_DISPLAY")) && !set("SSH_CONNECTION");
}

void start_browser(const std::string& url) {
  posix_spawn_file_actions_t files;
  ::posix_spawn_file_actions_init(&files);
  for (const int fd : {0, 1, 2}) ::posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
  std::string program = "xdg-open", argument = url;
  char* argv[] = {program.data(), argument.data(), nullptr};
  pid_t child = 0;
  static_cast<void>(::posix_spawnp(&child, argv[0], &files, nullptr, argv, environ));  // the page was shown as well
  ::posix_spawn_file_actions_destroy(&files);
}

}  // namespace muster::cli
