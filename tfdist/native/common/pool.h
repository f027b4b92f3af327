// Reusable memory: page faults on fresh memory cost more than the reduction itself.
#ifndef TFDIST_COMMON_POOL_H_
#define TFDIST_COMMON_POOL_H_

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <utility>

namespace tfdist {

// Buffers are aligned to 64 bytes and come in powers of two from 4 KiB. Thread-safe.
class Pool {
 public:
  ~Pool() {
    for (auto& entry : free_) std::free(entry.second);
  }

  void* take(size_t bytes) {
    const size_t size = rounded(bytes);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      auto found = free_.find(size);
      if (found != free_.end()) {
        void* memory = found->second;
        free_.erase(found);
        return memory;
      }
    }
    void* memory = std::aligned_alloc(64, size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
  }

  void give(void* memory, size_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.emplace(rounded(bytes), memory);
  }

 private:
  static size_t rounded(size_t bytes) {
    size_t size = 4096;
    while (size < bytes) size *= 2;
    return size;
  }

  std::mutex mutex_;  // guards free_
  std::multimap<size_t, void*> free_;
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
