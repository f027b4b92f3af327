#include "transport/shared_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace tfdist {
namespace {

constexpr uint64_t kSegmentMagic = 0x7464736567303031;  // "tdseg001"
constexpr size_t kPage = 4096;
constexpr size_t kLine = 64;

struct Geometry {
  uint32_t num_slots;
  size_t slot_bytes, readers, queues, queue_bytes, slots, total;
};

size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// Two slots a peer at least, so that nobody waits for the slowest; at most 4 MiB a rank.
Geometry geometry(int world_size) {
  Geometry g{};
  g.num_slots = static_cast<uint32_t>(std::max(16, 2 * world_size));
  g.slot_bytes = std::min(size_t{1} << 17, std::max(size_t{1} << 14, (size_t{1} << 22) / g.num_slots / kPage * kPage));
  g.readers = kPage;
  g.queues = g.readers + g.num_slots * kLine;
  g.queue_bytes = 2 * kLine + g.num_slots * sizeof(FrameHeader);
  g.slots = rounded(g.queues + static_cast<size_t>(world_size) * g.queue_bytes, kPage);
  g.total = g.slots + g.num_slots * g.slot_bytes;
  return g;
}

struct Head {
  uint64_t magic;
  int32_t rank, world_size;
  unsigned char nonce[Segment::kNonceBytes];
};
static_assert(offsetof(Head, nonce) == Segment::kNonceOffset, "Python reads it there");

}  // namespace

struct alignas(kLine) Segment::Counter {
  std::atomic<uint32_t> value;
};

// One entry a slot: as many headers as slots can be under way.
struct Segment::Queue {
  alignas(kLine) std::atomic<uint64_t> posted;
  alignas(kLine) std::atomic<uint64_t> read;
  FrameHeader* entries() { return reinterpret_cast<FrameHeader*>(this + 1); }
};

int Segment::create(int rank, int world_size, const unsigned char* nonce) {
#ifdef __linux__
  const int descriptor = memfd_create("tfdist", MFD_CLOEXEC);
  if (descriptor < 0) return -1;
  Head head{kSegmentMagic, rank, world_size, {}};
  std::memcpy(head.nonce, nonce, kNonceBytes);
  const bool written = ftruncate(descriptor, static_cast<off_t>(geometry(world_size).total)) == 0 &&
                       pwrite(descriptor, &head, sizeof(head), 0) == static_cast<ssize_t>(sizeof(head));
  if (written) return descriptor;
  close(descriptor);
#else
  static_cast<void>(rank), static_cast<void>(world_size), static_cast<void>(nonce);
#endif
  return -1;
}

Segment::Segment(int descriptor, int rank, int world_size) : world_size_(world_size) {
  const Geometry g = geometry(world_size);
  Head head{};
  const bool ours = pread(descriptor, &head, sizeof(head), 0) == static_cast<ssize_t>(sizeof(head)) &&
                    head.magic == kSegmentMagic && head.rank == rank && head.world_size == world_size;
  void* memory = ours ? mmap(nullptr, g.total, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0) : MAP_FAILED;
  if (memory == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<char*>(memory);
  num_slots_ = g.num_slots;
  slot_bytes_ = g.slot_bytes;
  total_bytes_ = g.total;
  ring_for_ = reinterpret_cast<std::atomic<uint32_t>*>(base_ + kPage / 2);
  readers_ = reinterpret_cast<Counter*>(base_ + g.readers);
  queues_ = base_ + g.queues;
  queue_bytes_ = g.queue_bytes;
  slots_ = base_ + g.slots;
}

Segment::~Segment() { munmap(base_, total_bytes_); }

Segment::Queue& Segment::queue(int reader) const {
  return *reinterpret_cast<Queue*>(queues_ + static_cast<size_t>(reader) * queue_bytes_);
}

int Segment::free_slot() const {
  for (uint32_t i = 0; i < num_slots_; ++i) {
    if (readers_[i].value.load() == 0) return static_cast<int>(i);
  }
  return -1;
}

void Segment::claim(uint32_t slot, uint32_t num_readers) {
  readers_[slot].value.store(num_readers, std::memory_order_relaxed);
}

void Segment::post(int reader, const FrameHeader& header) {
  Queue& q = queue(reader);
  const uint64_t position = q.posted.load(std::memory_order_relaxed);
  q.entries()[position % num_slots_] = header;
  q.posted.store(position + 1);
}

uint64_t Segment::posted(int reader) const { return queue(reader).posted.load(); }

uint64_t Segment::waiting(int reader) const {
  return posted(reader) - queue(reader).read.load(std::memory_order_relaxed);
}

bool Segment::front(int reader, FrameHeader* header) const {
  Queue& q = queue(reader);
  const uint64_t position = q.read.load(std::memory_order_relaxed);
  if (q.posted.load(std::memory_order_acquire) == position) return false;
  *header = q.entries()[position % num_slots_];
  return true;
}

bool Segment::is_valid(const FrameHeader& header) const {
  return header.magic == kMagic && header.type == FrameType::kData && header.slot < num_slots_ &&
         header.length <= slot_bytes_;
}

bool Segment::release(int reader, uint32_t slot) {
  Queue& q = queue(reader);
  q.read.store(q.read.load(std::memory_order_relaxed) + 1, std::memory_order_release);
  return readers_[slot].value.fetch_sub(1) == 1;
}

}  // namespace tfdist
