// Memory that starts as zeros and costs nothing until it is touched: of this process, or shared with a worker.
#ifndef TFDIST_PARAMETER_SERVER_MEMORY_H_
#define TFDIST_PARAMETER_SERVER_MEMORY_H_

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>

namespace tfdist {

class Memory {
 public:
  // Before the data of a shared file: a page in which the two sides recognise it (comm/shared_memory.py).
  static constexpr size_t kHeadBytes = 4096;

  Memory() = default;
  explicit Memory(size_t bytes) : Memory(bytes, -1) {}
  // Of the file `descriptor` behind its head, or of this process where it is negative.
  Memory(size_t bytes, int descriptor) : bytes_(bytes) {
    if (bytes == 0) return;
    const bool is_shared = descriptor >= 0;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, is_shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS,
                        descriptor, is_shared ? static_cast<off_t>(kHeadBytes) : 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<char*>(memory);
  }
  Memory(Memory&& other) noexcept { swap(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Memory() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }

  char* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  void swap(Memory& other) {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }
  char* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_MEMORY_H_
