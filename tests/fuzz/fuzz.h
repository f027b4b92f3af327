// What a fuzz target offers, to libFuzzer and to driver.cc: one input is what a hostile peer sends.
#ifndef TFDIST_TESTS_FUZZ_H_
#define TFDIST_TESTS_FUZZ_H_

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

std::vector<std::string> seeds();  // inputs that make sense: what mutations begin with

constexpr size_t kSentAtMost = 1 << 19;  // by one input: lengths are small numbers there, what they stand for is not

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

inline double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Numbers from an input; zeros behind its end.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool is_over() const { return at_ >= size_; }
  std::string take(size_t bytes) {
    std::string taken(bytes, '\0');
    const size_t n = bytes < size_ - at_ ? bytes : size_ - at_;
    if (n > 0) std::memcpy(&taken[0], data_ + at_, n);
    at_ += n;
    return taken;
  }
  template <typename T>
  T number() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  uint8_t byte() { return number<uint8_t>(); }

 private:
  const uint8_t* data_;
  const size_t size_;
  size_t at_ = 0;
};

template <typename T>
void append(std::string* text, const T& value) {
  text->append(reinterpret_cast<const char*>(&value), sizeof(T));
}

// Takes what lies ready; false once the other side has closed.
inline bool drain(int descriptor) {
  char taken[1 << 16];
  for (;;) {
    const ssize_t n = recv(descriptor, taken, sizeof(taken), MSG_DONTWAIT);
    if (n <= 0) return n < 0 && (errno == EAGAIN || errno == EINTR);
  }
}

// Sends all of it while it takes what comes back, as a peer would that is not stuck; stops where the other side does.
inline void send_all(int descriptor, const std::string& bytes) {
  const double deadline = now() + 10;
  for (size_t sent = 0; sent < bytes.size();) {
    const ssize_t n = send(descriptor, bytes.data() + sent, bytes.size() - sent, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) {
      sent += static_cast<size_t>(n);
      continue;
    }
    if (errno != EAGAIN && errno != EINTR) return;
    if (!drain(descriptor)) return;
    pollfd waited{descriptor, POLLIN | POLLOUT, 0};
    poll(&waited, 1, 100);
    if (now() > deadline) die("what was sent is not taken");
  }
}

}  // namespace fuzz
#endif  // TFDIST_TESTS_FUZZ_H_
