// One collective in flight on this rank.
#ifndef TFDIST_ENGINE_OPERATION_H_
#define TFDIST_ENGINE_OPERATION_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/pool.h"
#include "common/reduce.h"
#include "engine/plan.h"
#include "transport/frame.h"

namespace tfdist {

using Clock = std::chrono::steady_clock;

struct Failure {
  int code = TFDIST_OK;
  int peer = -1;
  std::string text;
};

// A piece that came before its turn.
struct HeldPiece {
  int peer = -1;
  FrameHeader header;
  Buffer data;

  size_t memory_bytes() const { return sizeof(*this) + Pool::room_for(data.bytes()); }
};

enum class PeerState { kUnheard, kNotStarted, kActive, kFinished };

// The work buffer is these stretches one after another: large tensors lie where they are, small ones are packed.
struct Stretch {
  int64_t begin = 0, end = 0;  // bytes of the work buffer
  char* data = nullptr;
};

// Operations are reused, so that the steady state allocates nothing.
struct Operation {
  int64_t ticket = 0;
  uint64_t tag = 0;
  uint64_t signature = 0;
  int64_t step = -1;
  std::shared_ptr<const std::string> description;
  std::shared_ptr<const Plan> plan;
  int dtype = TFDIST_BYTE;
  int wire_dtype = TFDIST_BYTE;  // what elements travel as; TFDIST_BYTE: as they are
  int reduce = TFDIST_SUM;
  double divisor = 1;
  int64_t elements = 0;
  int64_t shrink = 1;            // bytes of the work buffer for each byte that travels

  Buffer buffer;                 // the packed stretches
  std::vector<Stretch> stretches;
  std::vector<int64_t> begin;    // of each chunk, bytes, and the end of the last

  // Below: whoever drives the engine, until `finished`.
  std::vector<int64_t> done;      // bytes each step has handled
  std::vector<int64_t> arrived;   // bytes each receiving step was sent, held pieces included
  std::vector<int> sends;         // steps not done
  std::vector<HeldPiece> held;
  size_t remaining = 0;           // steps not done
  Clock::time_point started;
  int num_queries = 0;
  std::vector<PeerState> peer_state;
  std::vector<uint64_t> suspect;  // by peer: the operation it was stuck in when last heard

  std::atomic<bool> finished{false};

  int64_t bytes(int step_index) const {
    const int chunk = plan->steps[step_index].chunk;
    return begin[chunk + 1] - begin[chunk];
  }
  // How far a step may go now.
  int64_t limit(int step_index) const {
    int64_t allowed = bytes(step_index);
    for (int earlier : plan->steps[step_index].behind) allowed = std::min(allowed, done[earlier]);
    return allowed;
  }
  // Where a step stands in the work buffer, bytes.
  int64_t position(int step_index) const { return begin[plan->steps[step_index].chunk] + done[step_index]; }
  void advance(int step_index, int64_t n) {
    done[step_index] += n;
    if (done[step_index] == bytes(step_index)) --remaining;
  }
  // The memory at `offset` of the work buffer, and how many bytes follow it there.
  char* at(int64_t offset, int64_t* contiguous) const {
    size_t i = 0;
    if (stretches.size() > 1) {
      auto after = std::upper_bound(stretches.begin(), stretches.end(), offset,
                                    [](int64_t value, const Stretch& s) { return value < s.end; });
      i = static_cast<size_t>(after - stretches.begin());
    }
    *contiguous = stretches[i].end - offset;
    return stretches[i].data + (offset - stretches[i].begin);
  }
  // Calls visit(memory, bytes) for each contiguous part of [offset, offset + length).
  template <typename Visitor>
  void visit(int64_t offset, int64_t length, Visitor visitor) const {
    while (length > 0) {
      int64_t contiguous = 0;
      char* memory = at(offset, &contiguous);
      const int64_t n = std::min(length, contiguous);
      visitor(memory, n);
      offset += n;
      length -= n;
    }
  }
  std::string describe() const { return step < 0 ? *description : *description + " at step " + std::to_string(step); }
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_OPERATION_H_
