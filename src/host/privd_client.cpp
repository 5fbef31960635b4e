#include "host/privd_client.h"

#include "base/log.h"

namespace muster::host {

PrivdClient::PrivdClient(Poller& poller, std::string path) : poller_(poller), path_(std::move(path)) {
  connect();
}

PrivdClient::~PrivdClient() {
  if (fd_) poller_.unwatch(fd_.get());
  if (retry_ != 0) poller_.cancel(retry_);
}

void PrivdClient::connect() {
  retry_ = 0;
  auto fd = connect_unix(path_, SocketKind::Seqpacket);
  if (!fd.ok() || !set_blocking(fd->get(), false).ok()) {
    retry_ = poller_.after(Millis(300), [this] { connect(); });
    return;
  }
  fd_ = std::move(*fd);
  poller_.watch(fd_.get(), true, false, [this](Poller::Ready) { on_readable(); });
}

void PrivdClient::lost() {
  if (!fd_) return;
  poller_.unwatch(fd_.get());
  fd_.reset();
  log_warn("agent", "lost privd; it is being restarted");
  auto pending = std::move(pending_);
  pending_.clear();
  if (retry_ == 0) retry_ = poller_.after(Millis(300), [this] { connect(); });
  for (auto& [id, call] : pending) call.done(error(Code::Unavailable, "privd went away", "privd.gone"));
}

void PrivdClient::on_readable() {
  while (fd_) {
    auto message = receive_message(fd_.get());
    if (!message.ok() && message.error().code == Code::NotFound) return;
    if (!message.ok() || (message->text.empty() && message->fds.empty())) {
      lost();
      return;
    }
    auto fields = parse_object(message->text);
    if (!fields.ok()) continue;
    const auto id = static_cast<std::uint64_t>(int_at(*fields, {"id"}));
    const auto it = pending_.find(id);
    if (it == pending_.end()) continue;
    if (!fields->contains("ok")) {
      const auto progress = it->second.progress;
      if (progress)
        progress(static_cast<std::uint64_t>(int_at(*fields, {"done"})),
                 static_cast<std::uint64_t>(int_at(*fields, {"total"})));
      continue;
    }
    const auto done = std::move(it->second.done);
    pending_.erase(it);
    if (bool_at(*fields, {"ok"})) {
      done(PrivdReply{std::move(*fields), std::move(message->fds)});
    } else {
      done(error(static_cast<Code>(int_at(*fields, {"code"}, static_cast<int>(Code::Internal))),
                 text_at(*fields, {"message"}), text_at(*fields, {"reason"})));
    }
  }
}

std::uint64_t PrivdClient::call(Verb verb, PrivdDone done, PrivdProgress progress, const std::vector<int>& fds) {
  verb.id = next_++;
  const std::uint64_t id = verb.id;
  Status sent = error(Code::Unavailable, "privd is not running", "privd.gone");
  if (fd_) sent = send_message(fd_.get(), verb_text(verb), fds);
  if (!sent.ok()) {
    Error why = sent.error();
    if (why.field.empty()) why.field = "privd.gone";
    poller_.post([done = std::move(done), why] { done(why); });
    return id;
  }
  pending_[id] = Pending{std::move(done), std::move(progress)};
  return id;
}

void PrivdClient::cancel(std::uint64_t call_id) {
  Verb verb;
  verb.kind = VerbKind::Cancel;
  verb.target = call_id;
  call(std::move(verb), [](const Result<PrivdReply>&) {});
}

}  // namespace muster::host
