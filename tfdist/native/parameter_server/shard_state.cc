// What a shard has seen, and how it outlives its server: as a state that is saved, and by the copies of the workers.
#include <algorithm>
#include <cstring>

#include "common/copy.h"
#include "parameter_server/shard.h"

namespace tfdist {
namespace {

// Writes to a buffer, or only counts where it is null or too small.
class Writer {
 public:
  Writer(char* buffer, size_t capacity) : buffer_(buffer), capacity_(capacity) {}
  void add(const void* data, size_t bytes) {
    if (buffer_ != nullptr && bytes > 0 && size_ + bytes <= capacity_) {
      copy_bytes(buffer_ + size_, static_cast<const char*>(data), bytes);
    }
    size_ += bytes;
  }
  size_t size() const { return size_; }

 private:
  char* const buffer_;
  const size_t capacity_;
  size_t size_ = 0;
};

}  // namespace

bool Shard::has_applied(const Source& source) {
  std::lock_guard<std::mutex> lock(mutex);
  return is_applied(source);
}

void Shard::count(const UpdateOf& update) {
  if (is_restored_) version = ((version >> kHistoryBits) + 1) << kHistoryBits | (version & kCountMask);
  is_restored_ = false;
  ++version;
  for (size_t i = 0; i < update.num_sources; ++i) {
    uint64_t& last = applied_[static_cast<size_t>(update.sources[i].worker)];
    last = std::max(last, update.sources[i].sequence);
  }
}

uint64_t Shard::sequence(int worker) {
  std::lock_guard<std::mutex> lock(mutex);
  return applied_[static_cast<size_t>(worker)];
}

void Shard::copy_stamp(uint64_t* stamp) const {
  stamp[0] = version;
  std::copy(applied_.begin(), applied_.end(), stamp + 1);
}

// All copies of one history are stretches of the same sequence of updates: the newer contains the older.
void Shard::adopt(const char* parameters, const uint64_t* stamp) {
  std::lock_guard<std::mutex> lock(mutex);
  if (stamp[0] <= version) return;
  copy_bytes(theta_.data(), parameters, bytes_);
  version = stamp[0];
  std::copy(stamp + 1, stamp + stamp_words(applied_.size()), applied_.begin());
}

std::vector<Memory*> Shard::arrays() {
  std::vector<Memory*> all{&theta_};
  for (Memory& slot : slots_) all.push_back(&slot);
  if (average_.data() != nullptr) all.push_back(&average_);
  if (mean_square_.data() != nullptr) all.push_back(&mean_square_);
  return all;
}

size_t Shard::save(char* buffer, size_t capacity) {
  std::lock_guard<std::mutex> lock(mutex);
  Writer writer(buffer, capacity);
  writer.add(&version, sizeof(version));
  writer.add(applied_.data(), applied_.size() * sizeof(uint64_t));
  writer.add(scalars_, sizeof(scalars_));
  for (Memory* array : arrays()) writer.add(array->data(), bytes_);
  const uint64_t num_seen = seen_.size();
  writer.add(&num_seen, sizeof(num_seen));
  for (const auto& seen : seen_) {
    const uint64_t worker = static_cast<uint64_t>(seen.first);
    writer.add(&worker, sizeof(worker));
    writer.add(seen.second.data(), bytes_);
  }
  return writer.size();
}

bool Shard::load(const char* buffer, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  const char* const end = buffer + bytes;
  const auto take = [&](void* target, size_t count) {
    if (static_cast<size_t>(end - buffer) < count) return false;
    if (count > 0) std::memcpy(target, buffer, count);
    buffer += count;
    return true;
  };
  bool is_whole = take(&version, sizeof(version)) && take(applied_.data(), applied_.size() * sizeof(uint64_t)) &&
                  take(scalars_, sizeof(scalars_));
  for (Memory* array : arrays()) is_whole = is_whole && take(array->data(), bytes_);
  uint64_t num_seen = 0;
  is_whole = is_whole && take(&num_seen, sizeof(num_seen)) && num_seen <= applied_.size();
  for (uint64_t i = 0; i < num_seen && is_whole; ++i) {
    uint64_t worker = 0;
    is_whole = take(&worker, sizeof(worker)) && worker < applied_.size();
    if (is_whole) is_whole = take(seen_by(static_cast<int>(worker)).data(), bytes_);
  }
  is_restored_ = true;
  return is_whole && buffer == end;
}

void Shard::supersede(uint64_t incarnation) {
  std::lock_guard<std::mutex> lock(mutex);
  version += (incarnation * kManyHistories) << kHistoryBits;
}

}  // namespace tfdist
