#include "cli/remote.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <optional>

#include "cli/table.h"
#include "cli/terminal.h"

namespace muster::cli {
namespace {

constexpr std::size_t kUnsentMax = 1 << 20;

void write_all(int fd, std::string_view bytes) {
  while (!bytes.empty()) {
    const auto put = write(fd, bytes.data(), bytes.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0 && errno == EAGAIN) {
      pollfd wait{fd, POLLOUT, 0};
      poll(&wait, 1, 1'000);
      continue;
    }
    if (put <= 0) return;
    bytes.remove_prefix(static_cast<std::size_t>(put));
  }
}

std::string resize_bytes(Size size) {
  return {static_cast<char>(size.rows >> 8), static_cast<char>(size.rows & 0xff), static_cast<char>(size.cols >> 8),
          static_cast<char>(size.cols & 0xff)};
}

Error broke(const Channel& channel) {
  const std::string why = channel.why_closed();
  return error(Code::Unavailable, "the connection to the command broke" + (why.empty() ? "" : " (" + why + ")") +
                                      "; it may still be running");
}

}  // namespace

Result<int> exec_here(const Account& account, ExecRequest request) {
  Size size = terminal_size();
  request.rows = size.rows;
  request.cols = size.cols;
  auto channel = TRY(Channel::open(account, exec_target(request)));
  std::optional<RawMode> raw;
  if (request.tty && stdin_is_terminal()) raw.emplace();
  bool input_open = true;
  for (;;) {
    while (auto message = channel->take()) {
      if (message->kind == Kind::Data) write_all(STDOUT_FILENO, message->bytes);
      if (message->kind == Kind::ErrorData) write_all(STDERR_FILENO, message->bytes);
      if (message->kind != Kind::Exit) continue;
      raw.reset();
      const auto exit = parse_exit(message->bytes);
      if (!exit) return error(Code::Internal, "the command's exit code came back damaged");
      if (!exit->error.empty()) return error(Code::FailedPrecondition, exit->error);
      return exit->code;
    }
    if (channel->closed()) {
      raw.reset();
      return broke(*channel);
    }
    if (request.tty && !(terminal_size() == size)) {
      size = terminal_size();
      channel->send(Kind::Resize, resize_bytes(size));
    }
    const bool can_read = input_open && channel->unsent() < kUnsentMax;
    pollfd wait[2] = {{channel->fd(), POLLIN, 0}, {STDIN_FILENO, POLLIN, 0}};
    poll(wait, can_read ? 2 : 1, can_read ? 250 : 20);
    if (!can_read || wait[1].revents == 0) continue;
    char buffer[16'384];
    const auto got = read(STDIN_FILENO, buffer, sizeof buffer);
    if (got > 0) channel->send(Kind::Data, {buffer, static_cast<std::size_t>(got)});
    if (got == 0 || (got < 0 && errno != EINTR && errno != EAGAIN)) {
      input_open = false;
      channel->send(Kind::EndOfInput, {});
    }
  }
}

Result<std::string> exec_fed(const Account& account, const ExecRequest& request, const Feed& feed) {
  auto channel = TRY(Channel::open(account, exec_target(request)));
  std::string errors;
  bool input_open = true;
  for (;;) {
    while (auto message = channel->take()) {
      if (message->kind == Kind::Data && feed.output) TRY_VOID(feed.output(message->bytes));
      if (message->kind == Kind::ErrorData && errors.size() < 8'192) errors += message->bytes;
      if (message->kind != Kind::Exit) continue;
      const auto exit = parse_exit(message->bytes);
      if (exit && exit->code == 0 && exit->error.empty()) return errors;
      std::string what = exit && !exit->error.empty() ? exit->error : clean(errors.substr(0, 2'000));
      return error(Code::FailedPrecondition,
                   fmt::format("the command in the container failed ({}): {}", exit ? exit->code : -1,
                               what.empty() ? "it said nothing" : what));
    }
    if (channel->closed()) return broke(*channel);
    if (input_open && channel->unsent() < kUnsentMax) {
      const std::string piece = feed.input ? TRY(feed.input()) : std::string();
      if (piece.empty()) {
        input_open = false;
        channel->send(Kind::EndOfInput, {});
      } else {
        channel->send(Kind::Data, piece);
      }
      continue;
    }
    pollfd wait{channel->fd(), POLLIN, 0};
    poll(&wait, 1, input_open ? 10 : 1'000);
  }
}

Result<std::string> exec_output(const Account& account, const ExecRequest& request, std::size_t max_bytes) {
  std::string out;
  Feed feed;
  feed.output = [&](std::string_view bytes) -> Status {
    out += bytes;
    if (out.size() > max_bytes) return error(Code::TooLarge, "the command wrote too much");
    return {};
  };
  (void)TRY(exec_fed(account, request, feed));
  return out;
}

}  // namespace muster::cli
