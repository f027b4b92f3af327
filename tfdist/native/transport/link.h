// A link carries a stream of bytes to one peer. The engine knows links only by this interface.
#ifndef TFDIST_TRANSPORT_LINK_H_
#define TFDIST_TRANSPORT_LINK_H_

#include <sys/types.h>
#include <sys/uio.h>

#include <cstdint>
#include <memory>

namespace tfdist {

class AbstractLink {
 public:
  static constexpr ssize_t kGone = -1;  // the peer closed or reset the connection

  virtual ~AbstractLink() = default;
  // What epoll watches for readiness to read and to write.
  virtual int descriptor() const = 0;
  // Both move as many bytes as they can without blocking: how many, 0 for "not now", or kGone.
  virtual ssize_t write(const iovec* parts, int count) = 0;
  virtual ssize_t read(const iovec* parts, int count) = 0;
  // How much of what was written the peer's host has not taken yet; 0 where nobody knows.
  virtual int64_t unsent_bytes() const { return 0; }
  // No more writes will come; what was written still arrives.
  virtual void finish_writing() = 0;
};

// Takes ownership of a connected stream socket.
std::unique_ptr<AbstractLink> make_tcp_link(int descriptor);

}  // namespace tfdist
#endif  // TFDIST_TRANSPORT_LINK_H_
