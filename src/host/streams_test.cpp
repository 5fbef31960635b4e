// Terminals of a lease against a privd played by hand.
#include "host/streams.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <filesystem>
#include <future>
#include <thread>

namespace muster::host {
namespace {

class Terminal : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string made_dir = "/tmp/muster-streams-XXXXXX";
    ASSERT_NE(::mkdtemp(made_dir.data()), nullptr);
    dir = made_dir;
    const std::string path = dir + "/privd.sock";
    auto made = listen_unix(path, SocketKind::Seqpacket, ::geteuid(), ::getegid(), 0600);
    ASSERT_TRUE(made.ok()) << made.error().message;
    listener = std::move(*made);
    privd.emplace(poller, path);
    peer = Fd(::accept(listener.get(), nullptr, nullptr));
    streams.emplace(
        poller, *privd, [](const session::AgentFrame&) {}, [](LeaseId) { return std::optional<std::uint32_t>(1); });
    std::array<int, 2> pair{};
    ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()), 0);
    shell = Fd(pair[0]);
    theirs = Fd(pair[1]);
    thread = std::thread([this] { poller.run(); });
  }
  void TearDown() override {
    if (thread.joinable()) poller.stop(), thread.join();
    streams.reset();
    privd.reset();
    std::filesystem::remove_all(dir);
  }
  // What privd is asked next; its id for answer().
  json::object asked() {
    auto message = receive_message(peer.get());
    auto verb = message.ok() ? parse_object(message->text) : Result<json::object>(message.error());
    EXPECT_TRUE(verb.ok());
    return verb.ok() ? *verb : json::object{};
  }
  void answer(const json::object& verb, bool ok, const std::vector<int>& fds = {}) {
    const json::object said{{"id", int_at(verb, {"id"})}, {"ok", ok}, {"exec", "e1"}};
    ASSERT_TRUE(send_message(peer.get(), to_text(said), fds).ok());
  }
  void frame(session::ServerFrame each) {
    std::promise<void> done;
    poller.post([&] {
      streams->on_frame(each);
      done.set_value();
    });
    done.get_future().wait();
  }
  void type(const std::string& text) { frame(session::StreamData{7, 0, Bytes(text.begin(), text.end())}); }
  // What comes to the shell within `patience`, at most `size` bytes.
  std::string at_the_shell(std::size_t size, int patience) {
    std::string out;
    std::array<char, 256> buffer{};
    pollfd wait{shell.get(), POLLIN, 0};
    while (out.size() < size && ::poll(&wait, 1, patience) > 0) {
      const ssize_t n = ::read(shell.get(), buffer.data(), std::min(buffer.size(), size - out.size()));
      if (n <= 0) break;
      out.append(buffer.data(), static_cast<std::size_t>(n));
    }
    return out;
  }
  void expect_at_the_shell(const std::string& text) { EXPECT_EQ(at_the_shell(text.size(), 10'000), text); }

  std::string dir;
  std::thread thread;
  Poller poller;
  Fd listener, peer, shell, theirs;
  std::optional<PrivdClient> privd;
  std::optional<Streams> streams;
};

TEST_F(Terminal, HoldsWhatIsTypedUntilItHasItsSize) {
  for (const bool sized : {true, false}) {  // a size that cannot be set stops nobody from typing
    frame(session::StreamOpen{
        .stream = 7, .lease = LeaseId{1}, .argv = {"sh"}, .tty = true, .rows = 40, .cols = 132, .path = {}});
    type("stty size\n");
    const json::object exec = asked();
    EXPECT_EQ(text_at(exec, {"verb"}), "exec");
    answer(exec, true, {theirs.get()});
    const json::object resize = asked();
    EXPECT_EQ(text_at(resize, {"verb"}), "resize");
    EXPECT_EQ(int_at(resize, {"rows"}), 40);
    EXPECT_EQ(int_at(resize, {"cols"}), 132);
    type("ls\n");
    EXPECT_EQ(at_the_shell(1, 100), "");
    answer(resize, sized);
    expect_at_the_shell("stty size\nls\n");
    type("exit\n");
    expect_at_the_shell("exit\n");
    frame(session::StreamClose{7, 0, ""});
  }
}

}  // namespace
}  // namespace muster::host
