// A rank's segment of shared memory: the window through which the ranks of its host read what it sends.
//
// The owner copies a piece into a free slot and queues its header to every rank that is to read it; each of them reads
// the slot where it lies and counts itself off. One writer and one reader a queue, so nothing here takes a lock. Slots
// are few and the lowest free one is taken first: they stay in the cache. Where one side writes and then looks whether the
// other sleeps, and the other the reverse, all four accesses are sequentially consistent.
#ifndef TFDIST_TRANSPORT_SHARED_MEMORY_H_
#define TFDIST_TRANSPORT_SHARED_MEMORY_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "transport/frame.h"

namespace tfdist {

// What a sleeping owner wants to be woken for.
enum : uint32_t { kRingForData = 1, kRingForSlots = 2 };

class Segment {
 public:
  static constexpr size_t kNonceBytes = 16;
  static constexpr size_t kNonceOffset = 16;

  // A new anonymous file that holds a segment; -1 where the platform has none. It has no name, so nothing can be left
  // behind: peers open it through /proc while its owner lives.
  static int create(int rank, int world_size, const unsigned char* nonce);

  // Maps the file; it may be closed afterwards. Throws std::bad_alloc where it is not a segment of this group.
  Segment(int descriptor, int rank, int world_size);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  size_t slot_bytes() const { return slot_bytes_; }
  // A bit set of kRingFor*: 0 while the owner is awake, or wants nothing.
  std::atomic<uint32_t>& ring_for() { return *ring_for_; }

  // The owner's side.
  int free_slot() const;  // -1: all are being read
  char* slot(uint32_t index) { return slots_ + size_t{index} * slot_bytes_; }
  void claim(uint32_t slot, uint32_t num_readers);
  void post(int reader, const FrameHeader& header);

  // A reader's side.
  uint64_t posted(int reader) const;                     // headers ever queued to it
  uint64_t waiting(int reader) const;                    // headers it has not read
  bool front(int reader, FrameHeader* header) const;     // false: nothing, or nothing valid
  bool is_valid(const FrameHeader& header) const;
  bool release(int reader, uint32_t slot);               // pops the front; true: the slot has become free

 private:
  struct Queue;
  struct Counter;

  const int world_size_;
  uint32_t num_slots_ = 0;
  size_t slot_bytes_ = 0;
  size_t total_bytes_ = 0;
  char* base_ = nullptr;
  std::atomic<uint32_t>* ring_for_ = nullptr;
  Counter* readers_ = nullptr;  // by slot: who has not read it yet
  char* queues_ = nullptr;
  size_t queue_bytes_ = 0;
  char* slots_ = nullptr;

  Queue& queue(int reader) const;
};

}  // namespace tfdist
#endif  // TFDIST_TRANSPORT_SHARED_MEMORY_H_
