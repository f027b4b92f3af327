// One rank's plan: its steps, and which earlier steps each has to stay behind of.
#ifndef TFDIST_ENGINE_PLAN_H_
#define TFDIST_ENGINE_PLAN_H_

#include <cstdint>
#include <vector>

#include "tfdist.h"

namespace tfdist {

// The steps touching one chunk form a pipeline: a step may handle the first n bytes of its chunk once the steps it
// depends on have handled them. A plan is read in order, so sequential meaning is kept while chunks stream.
struct PlanStep {
  int kind = 0;
  int peer = -1;
  int chunk = 0;
  int source = -1;               // copy only
  uint32_t message = 0;          // index among this plan's sends to, or receives from, `peer`
  std::vector<int> behind;       // steps this one follows, byte by byte
  int cast_begin = 0, cast_end = 0;  // of the sends of this chunk that stand together: one copy serves them all
};

struct Plan {
  int num_chunks = 0;
  std::vector<PlanStep> steps;
  std::vector<std::vector<int>> sends;     // by peer, in order
  std::vector<std::vector<int>> receives;  // by peer, in order
  std::vector<int> all_sends, copies;      // in order

  // `table` is four int32 a step: kind, peer, chunk, source. Returns false where it makes no sense.
  bool load(const int32_t* table, int num_steps, int chunks, int rank, int world_size) {
    num_chunks = chunks;
    sends.resize(world_size);
    receives.resize(world_size);
    std::vector<int> last_write(chunks, -1);
    std::vector<std::vector<int>> reads(chunks);  // since the last write
    for (int i = 0; i < num_steps; ++i, table += 4) {
      PlanStep step{table[0], table[1], table[2], table[3], 0, {}, i, i + 1};
      const bool copy = step.kind == TFDIST_COPY, send = step.kind == TFDIST_SEND;
      if (step.kind < TFDIST_SEND || step.kind > TFDIST_RECEIVE_REDUCE_LAST || step.chunk < 0 || step.chunk >= chunks) return false;
      if (copy && (step.source < 0 || step.source >= chunks || step.source == step.chunk)) return false;
      if (!copy && (step.peer < 0 || step.peer >= world_size || step.peer == rank)) return false;
      if (!copy) {
        auto& messages = (send ? sends : receives)[step.peer];
        step.message = static_cast<uint32_t>(messages.size());
        messages.push_back(i);
      }
      if (send) all_sends.push_back(i);
      if (copy) copies.push_back(i);
      if (copy) read(step.source, i, &step, &last_write, &reads);
      if (send) {
        read(step.chunk, i, &step, &last_write, &reads);
      } else {
        if (last_write[step.chunk] >= 0) step.behind.push_back(last_write[step.chunk]);
        for (int reader : reads[step.chunk]) step.behind.push_back(reader);
        reads[step.chunk].clear();
        last_write[step.chunk] = i;
      }
      if (send && i > 0 && steps.back().kind == TFDIST_SEND && steps.back().chunk == step.chunk) {
        step.cast_begin = steps.back().cast_begin;
      }
      steps.push_back(std::move(step));
    }
    for (int i = num_steps - 2; i >= 0; --i) {
      if (steps[i + 1].cast_begin <= i) steps[i].cast_end = steps[i + 1].cast_end;
    }
    return true;
  }

 private:
  static void read(int chunk, int i, PlanStep* step, std::vector<int>* last_write,
                   std::vector<std::vector<int>>* reads) {
    if ((*last_write)[chunk] >= 0) step->behind.push_back((*last_write)[chunk]);
    (*reads)[chunk].push_back(i);
  }
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_PLAN_H_
