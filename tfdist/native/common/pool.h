// Reusable memory: page faults on fresh memory cost more than the reduction itself.
#ifndef TFDIST_COMMON_POOL_H_
#define TFDIST_COMMON_POOL_H_

#include <cstddef>
#include <cstdlib>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

namespace tfdist {

// Buffers are aligned to 64 bytes and come in powers of two from 4 KiB. Thread-safe.
class Pool {
 public:
  ~Pool() {
    for (auto& list : free_) {
      for (void* memory : list) std::free(memory);
    }
  }

  void* take(size_t bytes) {
    const size_t order = order_of(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!free_[order].empty()) {
        void* memory = free_[order].back();
        free_[order].pop_back();
        return memory;
      }
      if (++num_taken_[order] > free_[order].capacity()) {  // so that giving back allocates nothing
        free_[order].reserve(2 * num_taken_[order] + 14);
      }
    }
    void* memory = std::aligned_alloc(64, size_t{1} << order);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }

  static size_t room_for(size_t bytes) { return size_t{1} << order_of(bytes); }

  void give(void* memory, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_[order_of(bytes)].push_back(memory);
  }

 private:
  static constexpr size_t kOrders = 64;
  static size_t order_of(size_t bytes) {
    size_t order = 12;
    while ((size_t{1} << order) < bytes) ++order;
    return order;
  }

  std::mutex mutex_;  // guards the next block
  std::vector<void*> free_[kOrders];
  size_t num_taken_[kOrders] = {};
};

// A buffer that goes back to its pool by itself.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Pool* pool, size_t bytes) : pool_(pool), bytes_(bytes), data_(static_cast<char*>(pool->take(bytes))) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(pool_, other.pool_);
    std::swap(bytes_, other.bytes_);
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() {
    if (data_ != nullptr) pool_->give(data_, bytes_);
  }

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  Pool* pool_ = nullptr;
  size_t bytes_ = 0;
  char* data_ = nullptr;
};

}  // namespace tfdist
#endif  // TFDIST_COMMON_POOL_H_
