#include <cerrno>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#if defined(__linux__)
#include <linux/sockios.h>
#include <sys/ioctl.h>
#endif
#include <unistd.h>

#include "transport/link.h"

namespace tfdist {
namespace {

class TcpLink final : public AbstractLink {
 public:
  explicit TcpLink(int descriptor) : descriptor_(descriptor) {
    fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
    const int on = 1;
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));  // fails harmlessly on a socketpair
#ifdef SO_NOSIGPIPE
    setsockopt(descriptor, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on));
#endif
  }
  ~TcpLink() override { close(descriptor_); }

  int descriptor() const override { return descriptor_; }

  ssize_t write(const iovec* parts, int count) override {
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts);
    message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(count);
#ifdef MSG_NOSIGNAL
    constexpr int flags = MSG_NOSIGNAL;
#else
    constexpr int flags = 0;
#endif
    return moved(sendmsg(descriptor_, &message, flags));
  }

  ssize_t read(const iovec* parts, int count) override {
    const ssize_t n = readv(descriptor_, parts, count);
    return n == 0 ? kGone : moved(n);
  }

  int64_t unsent_bytes() const override {
    int bytes = 0;
#if defined(__linux__)
    if (ioctl(descriptor_, SIOCOUTQ, &bytes) != 0) return 0;
#elif defined(SO_NWRITE)
    socklen_t length = sizeof(bytes);
    if (getsockopt(descriptor_, SOL_SOCKET, SO_NWRITE, &bytes, &length) != 0) return 0;
#endif
    return bytes;
  }

  void finish_writing() override { shutdown(descriptor_, SHUT_WR); }

 private:
  static ssize_t moved(ssize_t n) {
    if (n >= 0) return n;
    return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : kGone;
  }

  const int descriptor_;
};

}  // namespace

std::unique_ptr<AbstractLink> make_tcp_link(int descriptor) { return std::make_unique<TcpLink>(descriptor); }

}  // namespace tfdist
