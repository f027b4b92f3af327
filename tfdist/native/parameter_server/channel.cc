#include "parameter_server/channel.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>

namespace tfdist {
namespace {

int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

bool is_not_now() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

// A peer whose host has vanished is noticed after 25 s of silence, at no cost to the processes.
void keep_alive(int descriptor) {
  const int on = 1;
  setsockopt(descriptor, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#ifdef TCP_KEEPIDLE
  const int idle_seconds = 10, interval_seconds = 5, probes = 3;
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPIDLE, &idle_seconds, sizeof(idle_seconds));
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPINTVL, &interval_seconds, sizeof(interval_seconds));
  setsockopt(descriptor, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
#endif
}

}  // namespace

Channel::Channel(int descriptor, double timeout_seconds) : descriptor_(descriptor), timeout_seconds_(timeout_seconds) {
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  const int on = 1;
  setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  keep_alive(descriptor);
#ifdef SO_NOSIGPIPE
  setsockopt(descriptor, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
}

Channel::~Channel() { close(descriptor_); }

Channel::Result Channel::wait_for(short events, int64_t deadline_ns) const {
  for (;;) {
    const int64_t left_ns = deadline_ns - now_ns();
    if (deadline_ns >= 0 && left_ns <= 0) return Result::kTimeout;
    pollfd waited{descriptor_, events, 0};
    const int milliseconds = deadline_ns < 0 ? -1 : static_cast<int>(std::min<int64_t>(left_ns / 1000000 + 1, 1 << 30));
    const int n = poll(&waited, 1, milliseconds);
    if (n > 0) return Result::kDone;
    if (n < 0 && errno != EINTR) return Result::kGone;
  }
}

Channel::Result Channel::await() { return wait_for(POLLIN, -1); }

Channel::Result Channel::send(const void* data, size_t bytes) {
  iovec part{const_cast<void*>(data), bytes};
  return send(&part, 1);
}

Channel::Result Channel::send(iovec* parts, int count) {
  const int64_t deadline = now_ns() + static_cast<int64_t>(timeout_seconds_ * 1e9);
  // Counted before they leave: whoever has them finds them counted.
  for (int i = 0; i < count; ++i) sent_bytes_ += static_cast<int64_t>(parts[i].iov_len);
  while (count > 0) {
    if (parts->iov_len == 0) {
      ++parts, --count;
      continue;
    }
    msghdr message{};
    message.msg_iov = parts;
    message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(count);
#ifdef MSG_NOSIGNAL
    ssize_t n = sendmsg(descriptor_, &message, MSG_NOSIGNAL);
#else
    ssize_t n = sendmsg(descriptor_, &message, 0);
#endif
    if (n < 0) {
      if (!is_not_now()) return Result::kGone;
      const Result result = wait_for(POLLOUT, deadline);
      if (result != Result::kDone) return result;
      continue;
    }
    while (n > 0) {
      const auto step = std::min(static_cast<size_t>(n), parts->iov_len);
      parts->iov_base = static_cast<char*>(parts->iov_base) + step;
      parts->iov_len -= step;
      n -= static_cast<ssize_t>(step);
      if (parts->iov_len == 0) ++parts, --count;
    }
  }
  return Result::kDone;
}

Channel::Result Channel::receive(void* target, size_t bytes) {
  const int64_t deadline = now_ns() + static_cast<int64_t>(timeout_seconds_ * 1e9);
  auto* to = static_cast<char*>(target);
  while (bytes > 0) {
    const ssize_t n = recv(descriptor_, to, bytes, 0);
    if (n == 0) return Result::kGone;
    if (n < 0) {
      if (!is_not_now()) return Result::kGone;
      const Result result = wait_for(POLLIN, deadline);
      if (result != Result::kDone) return result;
      continue;
    }
    received_bytes_ += n;
    to += n;
    bytes -= static_cast<size_t>(n);
  }
  return Result::kDone;
}

void Channel::shut_down() { shutdown(descriptor_, SHUT_RDWR); }

}  // namespace tfdist
