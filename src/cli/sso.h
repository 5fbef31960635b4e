#pragma once
// Logging in by the control plane's identity provider. In the browser: it comes back to a listener on 127.0.0.1 (RFC
// 8252), whose answer counts only with the state that belongs to this login. By code (RFC 8628): shown here, typed
// anywhere. Neither way does a token of the provider come here; the control plane makes one of its own. One thread;
// blocking. World is the seam that tests replace.
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "base/time.h"
#include "net/net.h"
#include "wire/json.h"

namespace muster::cli {

class Callback {
 public:
  static Result<std::unique_ptr<Callback>> open();  // any free port of 127.0.0.1
  ~Callback();
  Callback(const Callback&) = delete;
  Callback& operator=(const Callback&) = delete;
  std::uint16_t port() const { return port_; }
  struct Answer {
    std::string code, issuer;
    std::string fault;  // the provider's word for why not: "access_denied"
  };
  // Whatever else comes to the port is told that it is wrong here. DeadlineExceeded: nothing came.
  Result<Answer> wait(const std::string& state, Millis patience);
  void tell(const std::string& title, const std::string& text);  // to the browser that brought the answer

 private:
  struct Peer {
    int fd = -1;
    std::string head;
  };
  Callback() = default;
  void accept_one();
  // true: this was the answer.
  bool read_from(Peer& peer, const std::string& state, Answer& out);
  int listener_ = -1, browser_ = -1;
  std::uint16_t port_ = 0;
  std::vector<Peer> peers_;
};

struct SsoWorld {
  std::function<Result<wire::Json>(const std::string& target, const std::string& body)> call;
  std::function<void(const std::string& text)> tell;     // a line for the person
  std::function<void(const std::string& url)> open_url;  // empty: no browser is started
  std::function<void(Millis)> sleep;
  std::string label;
};
// The body of the last answer: "login", "project".
Result<wire::Json> login_in_browser(const SsoWorld& world, Callback& callback, Millis patience);
Result<wire::Json> login_by_code(const SsoWorld& world);

bool has_desktop();  // a browser can be started for this person, here
void start_browser(const std::string& url);

}  // namespace muster::cli
