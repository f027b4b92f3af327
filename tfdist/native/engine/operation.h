// One collective in flight on this rank.
#ifndef TFDIST_ENGINE_OPERATION_H_
#define TFDIST_ENGINE_OPERATION_H_

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "common/pool.h"
#include "engine/plan.h"
#include "transport/frame.h"

namespace tfdist {

using Clock = std::chrono::steady_clock;

// Why a group stopped: the first failure wins.
struct Failure {
  int code = TFDIST_OK;
  int peer = -1;
  std::string text;
};

// A piece that came before this rank was ready for it.
struct HeldPiece {
  int peer;
  FrameHeader header;
  std::unique_ptr<char[]> data;
};

enum class PeerState { kUnheard, kNotStarted, kActive, kFinished };

struct Operation {
  uint64_t tag = 0;
  uint64_t signature = 0;
  int64_t step = -1;
  std::string description;
  std::shared_ptr<const Plan> plan;
  int dtype = TFDIST_BYTE;
  int reduce = TFDIST_SUM;
  double divisor = 1;
  int64_t elements = 0;

  Buffer buffer;         // empty where `work` is the caller's memory
  char* work = nullptr;
  std::vector<int64_t> begin;  // of each chunk, bytes, and the end of the last

  // Below: the engine's thread only, until `finished`.
  std::vector<int64_t> done;      // bytes each step has handled
  std::vector<int64_t> arrived;   // bytes each receiving step was sent, held pieces included
  std::vector<size_t> first_send;  // by peer: sends before this one are done
  std::vector<HeldPiece> held;
  size_t remaining = 0;            // steps not done
  Clock::time_point started;
  int num_queries = 0;
  std::vector<PeerState> peer_state;
  std::vector<uint64_t> suspect;   // by peer: the operation it was stuck in when last heard

  // Guarded by the engine's mutex.
  bool finished = false;

  int64_t bytes(int step_index) const {
    const int chunk = plan->steps[step_index].chunk;
    return begin[chunk + 1] - begin[chunk];
  }
  char* chunk_data(int chunk) const { return work + begin[chunk]; }
  // How far a step may go now.
  int64_t limit(int step_index) const {
    int64_t allowed = bytes(step_index);
    for (int earlier : plan->steps[step_index].behind) allowed = std::min(allowed, done[earlier]);
    return allowed;
  }
  void advance(int step_index, int64_t n) {
    done[step_index] += n;
    if (done[step_index] == bytes(step_index)) --remaining;
  }
  std::string describe() const {
    return step < 0 ? description : description + " at step " + std::to_string(step);
  }
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_OPERATION_H_
