// A connected socket on which both sides take turns. Calls block, but never longer than the time-out.
#ifndef TFDIST_PARAMETER_SERVER_CHANNEL_H_
#define TFDIST_PARAMETER_SERVER_CHANNEL_H_

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace tfdist {

class Channel {
 public:
  enum class Result { kDone, kTimeout, kGone };

  Channel(int descriptor, double timeout_seconds);  // owns the descriptor
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  Result send(const void* data, size_t bytes);
  Result send(iovec* parts, int count);  // changes `parts`
  Result receive(void* target, size_t bytes);
  Result await();  // for as long as it takes, until there is something to receive
  int descriptor() const { return descriptor_; }
  void shut_down();  // wakes whoever blocks here, for good

  // Bytes that went by shared memory instead count as well.
  void count_shared(size_t received, size_t sent) {
    received_bytes_ += static_cast<int64_t>(received);
    sent_bytes_ += static_cast<int64_t>(sent);
  }
  int64_t sent_bytes() const { return sent_bytes_; }
  int64_t received_bytes() const { return received_bytes_; }

 private:
  Result wait_for(short events, int64_t deadline_ns) const;

  const int descriptor_;
  const double timeout_seconds_;
  std::atomic<int64_t> sent_bytes_{0}, received_bytes_{0};
};

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_CHANNEL_H_
