// What this machine allows: the yardstick of `tfdist bench`. Prototypes without error handling, for measurements only.
//
// Compiled on demand by limits_library.py. Every function repeats its work `iterations` times on buffers of the caller.
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <ctime>

#if defined(__x86_64__)
#include <immintrin.h>
static inline void pause_briefly() { _mm_pause(); }
#else
static inline void pause_briefly() {}
#endif

namespace {

constexpr int kMaxRanks = 64;
constexpr int64_t kSlotFloats = 64 * 1024;  // a slot of a window; two in turn, so that staging runs ahead of reading
constexpr int64_t kFlatBytes = 8 * 1024;    // up to here everybody reads everything: one exchange instead of two
constexpr int64_t kTcpSliceBytes = 1 << 20;  // what one rank sends to another before it has as much back
constexpr int64_t kSpinNanoseconds = 50 * 1000;

// One rank's part of the shared memory: counters that only it writes, and its windows.
struct Window {
  alignas(128) std::atomic<int64_t> staged;
  alignas(128) std::atomic<int64_t> reduced;
  alignas(128) float stage[2][kSlotFloats];
  alignas(128) float result[2][kSlotFloats];
};

struct Shared {
  Window* windows;
  int rank, size, spins;

  void wait(std::atomic<int64_t> Window::* counter, int64_t value) const {
    for (int peer = 0; peer < size; ++peer) {
      if (peer == rank) continue;
      for (int64_t turn = 0; (windows[peer].*counter).load(std::memory_order_acquire) < value; ++turn) {
        if (turn < spins) pause_briefly();
        else sched_yield();
      }
    }
  }
};

int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000000000} + now.tv_nsec;
}

void add_into(float* __restrict__ sum, const float* __restrict__ other, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sum[i] += other[i];
}

void add_publish(float* __restrict__ sum, const float* __restrict__ other, float* __restrict__ out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = sum[i] += other[i];
}

// Everybody stages all of the array and adds what all staged: one wait for each other rank.
void reduce_flat(const Shared& shared, float* data, int64_t count) {
  Window& mine = shared.windows[shared.rank];
  const int64_t turn = mine.staged.load(std::memory_order_relaxed) + 1;
  const int slot = turn & 1;
  std::memcpy(mine.stage[slot], data, count * sizeof(float));
  mine.staged.store(turn, std::memory_order_release);
  mine.reduced.store(turn, std::memory_order_release);
  shared.wait(&Window::staged, turn);
  for (int peer = 0; peer < shared.size; ++peer)
    if (peer != shared.rank) add_into(data, shared.windows[peer].stage[slot], count);
}

// A slice of the array: part r of it is reduced by rank r. Both slots of a window are free again once everybody has
// staged the slice after the next, because a rank gathers slice s - 1 before it stages slice s + 1.
class Slices {
 public:
  Slices(const Shared& shared, float* data, int64_t count)
      : shared_(shared), data_(data), count_(count), mine_(shared.windows[shared.rank]),
        base_(mine_.staged.load(std::memory_order_relaxed)) {}

  void run() {
    const int64_t num = (count_ + kSlotFloats - 1) / kSlotFloats;
    for (int64_t index = 0; index < num; ++index) {
      stage(index);
      reduce(index);
      if (index > 0) gather(index - 1);
    }
    gather(num - 1);
  }

 private:
  struct Part { float* data; int64_t at, count; };  // `at`: where it lies within its slice

  Part part(int64_t index, int rank) const {
    const int64_t begin = index * kSlotFloats, size = std::min(kSlotFloats, count_ - begin);
    const int64_t low = size * rank / shared_.size, high = size * (rank + 1) / shared_.size;
    return {data_ + begin + low, low, high - low};
  }

  void stage(int64_t index) {
    float* window = mine_.stage[(base_ + index) & 1];
    for (int peer = 0; peer < shared_.size; ++peer) {
      if (peer == shared_.rank) continue;
      const Part p = part(index, peer);
      std::memcpy(window + p.at, p.data, p.count * sizeof(float));
    }
    mine_.staged.store(base_ + index + 1, std::memory_order_release);
  }

  void reduce(int64_t index) {
    const int slot = (base_ + index) & 1;
    const Part p = part(index, shared_.rank);
    shared_.wait(&Window::staged, base_ + index + 1);
    const int last = shared_.rank == shared_.size - 1 ? shared_.size - 2 : shared_.size - 1;
    for (int peer = 0; peer < last; ++peer)
      if (peer != shared_.rank) add_into(p.data, shared_.windows[peer].stage[slot] + p.at, p.count);
    add_publish(p.data, shared_.windows[last].stage[slot] + p.at, mine_.result[slot], p.count);
    mine_.reduced.store(base_ + index + 1, std::memory_order_release);
  }

  void gather(int64_t index) {
    const int slot = (base_ + index) & 1;
    shared_.wait(&Window::reduced, base_ + index + 1);
    for (int peer = 0; peer < shared_.size; ++peer) {
      if (peer == shared_.rank) continue;
      const Part p = part(index, peer);
      std::memcpy(p.data, shared_.windows[peer].result[slot], p.count * sizeof(float));
    }
  }

  const Shared& shared_;
  float* data_;
  int64_t count_;
  Window& mine_;
  int64_t base_;
};

// Sends `count` bytes to each other rank and receives as many from each.
void exchange(const int* sockets, int rank, int size, bool spin, char* data, int64_t count) {
  int64_t sent[kMaxRanks] = {}, received[kMaxRanks] = {};
  int64_t left = 2 * count * (size - 1), idle_since = 0;
  while (left > 0) {
    bool moved = false;
    pollfd waiting[kMaxRanks];
    int num_waiting = 0;
    for (int distance = 1; distance < size; ++distance) {
      const int peer = (rank + distance) % size, sock = sockets[peer];
      short events = 0;
      if (sent[peer] < count) {
        const int64_t n = send(sock, data + sent[peer], count - sent[peer], MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n > 0) sent[peer] += n, left -= n, moved = true;
        events |= POLLOUT;
      }
      if (received[peer] < count) {
        const int64_t n = recv(sock, data + received[peer], count - received[peer], MSG_DONTWAIT);
        if (n == 0) return;  // the peer has gone
        if (n > 0) received[peer] += n, left -= n, moved = true;
        events |= POLLIN;
      }
      if (events) waiting[num_waiting++] = {sock, events, 0};
    }
    if (moved || left == 0) { idle_since = 0; continue; }
    if (spin) {
      const int64_t now = nanoseconds();
      if (idle_since == 0) idle_since = now;
      if (now - idle_since < kSpinNanoseconds) continue;
    }
    poll(waiting, num_waiting, 1000);
  }
}

}  // namespace

extern "C" {

int64_t limits_window_bytes() { return sizeof(Window); }

void limits_copy(char* to, const char* from, int64_t bytes, int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
    std::memcpy(to, from, bytes);
    asm volatile("" ::: "memory");
  }
}

void limits_add(float* sum, const float* other, int64_t count, int64_t iterations) {
  for (int64_t i = 0; i < iterations; ++i) {
    add_into(sum, other, count);
    asm volatile("" ::: "memory");
  }
}

// Staged all-reduce through shared memory; `memory` holds limits_window_bytes() zero bytes per rank, mapped by all.
void limits_shm(void* memory, int rank, int size, int spins, float* data, int64_t count, int64_t iterations) {
  const Shared shared{static_cast<Window*>(memory), rank, size, spins};
  for (int64_t i = 0; i < iterations; ++i) {
    if (count * int64_t{sizeof(float)} <= kFlatBytes) reduce_flat(shared, data, count);
    else Slices(shared, data, count).run();
  }
}

// The traffic of an all-reduce, nothing added: 2/size of the bytes to each other rank, and as many back.
void limits_tcp(const int* sockets, int rank, int size, int spin, char* data, int64_t bytes, int64_t iterations) {
  const int64_t share = std::max<int64_t>(1, 2 * bytes / size);
  for (int64_t i = 0; i < iterations; ++i)
    for (int64_t begin = 0; begin < share; begin += kTcpSliceBytes)
      exchange(sockets, rank, size, spin, data + begin, std::min(kTcpSliceBytes, share - begin));
}

}  // extern "C"
