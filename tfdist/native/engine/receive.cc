// What reaches this rank: pieces are reduced where they lie in a peer's shared memory, or as they are read from a socket.

#include <cstring>

#include "common/copy.h"
#include "engine/engine.h"

namespace tfdist {
namespace {

constexpr int kPartsPerVisit = 8;  // then what can leave does, and the other peers have a turn

}  // namespace

Operation* Engine::by_tag(uint64_t tag) const {
  for (Operation* operation : active_) {
    if (operation->tag == tag) return operation;
  }
  return nullptr;
}

// Takes what a peer of this host has posted. What cannot be taken yet stays where it is, or with `hold` is put aside.
bool Engine::read_shared(Peer* peer, bool hold) {
  Segment& segment = *peer->segment;
  bool moved = false;
  FrameHeader header;
  for (;;) {
    peer->looked_at = segment.posted(rank_);
    if (!segment.front(rank_, &header)) return moved;
    if (!segment.is_valid(header) || header.generation != generation_) {
      lost(peer, "it sent a frame that is not one of ours");
      return true;
    }
    Operation* operation = failed_ ? nullptr : by_tag(header.tag);
    int step = -1;
    if (operation != nullptr) {
      if (!agrees(*operation, header, peer->rank)) return false;
      step = operation->plan->receives[peer->rank][header.message];
      if (!can_take(*operation, step, header)) step = -1;
    } else if (!failed_ && is_recent(header.tag)) {
      mismatch(peer->rank, header.tag);  // finished here, yet the peer has more for it
      return false;
    }
    if (step < 0 && !failed_ && !hold) return moved;
    if (step >= 0) {
      operation->arrived[step] += header.length * operation->shrink;
      take(operation, step, segment.slot(header.slot), header.length);
    } else if (!failed_) {
      Buffer data(&pool_, header.length);
      copy_bytes(data.data(), segment.slot(header.slot), header.length);
      this->hold(peer, header, std::move(data));
    }
    const bool is_free = segment.release(rank_, header.slot);
    if (is_free) ring(peer, kRingForSlots);
    if (step >= 0) settle(operation);
    moved = true;
  }
}

// Before sleeping: a piece whose turn has not come must not keep those behind it from us.
bool Engine::hold_what_is_stuck() {
  if (active_.empty()) return false;
  bool moved = false;
  for (Peer* peer : shared_peers_) {
    if (peer->segment->waiting(rank_) >= 2) moved |= read_shared(peer, true);
  }
  return moved;
}

bool Engine::read(Peer* peer, Stream* stream) {
  if (stream->ended) return false;
  bool moved = false;
  stream->begin_visit();
  for (int parts = 0; (parts < kPartsPerVisit || stream->has_ahead()) && !peer->gone;) {
    switch (stream->receive()) {
      case Stream::Event::kNothing: return moved;
      case Stream::Event::kGone:
        stream->ended = true;
        if (stream->said_goodbye && !peer->goodbye) return moved;  // its other streams have not ended yet
        lost(peer, "its connection was closed");
        return true;
      case Stream::Event::kHeader:
        if (!stream->header().valid(generation_)) {
          lost(peer, "it sent a frame that is not one of ours");
          return true;
        }
        choose_target(peer, stream);
        break;
      case Stream::Event::kPart:
        ++parts;
        ++peer->num_events;
        moved = true;
        part_arrived(stream);
        break;
      case Stream::Event::kFrame:
        ++parts;
        ++peer->num_events;
        moved = true;
        frame_arrived(peer, stream);
        break;
    }
  }
  return moved;
}

void Engine::choose_target(Peer* peer, Stream* stream) {
  const FrameHeader& header = stream->header();
  stream->forget_target();
  stream->held = Buffer();
  stream->target_is_work = false;
  if (header.type != FrameType::kData) {
    stream->held = Buffer(&pool_, size_t{header.length} + 1);
    return stream->set_target(stream->held.data());
  }
  if (failed_) return;
  if (Operation* operation = by_tag(header.tag)) {
    if (!agrees(*operation, header, peer->rank)) return;
    const int step = operation->plan->receives[peer->rank][header.message];
    operation->arrived[step] += header.length * operation->shrink;
    stream->target_operation = operation;
    if (can_take(*operation, step, header)) {
      stream->target_step = step;
      int64_t contiguous = 0;
      char* target = operation->at(operation->position(step), &contiguous);
      const bool only_moves = operation->plan->steps[step].kind == TFDIST_RECEIVE && operation->shrink == 1;
      if (only_moves && contiguous >= static_cast<int64_t>(header.length)) {
        stream->target_is_work = true;
        stream->set_target(target);
      }
      return;
    }
  } else if (is_recent(header.tag)) {
    return mismatch(peer->rank, header.tag);  // finished here, yet the peer has more for it
  }
  stream->held = Buffer(&pool_, size_t{header.length} + 1);
  stream->set_target(stream->held.data());
}

// Uses what has come of a piece.
void Engine::part_arrived(Stream* stream) {
  Operation* operation = stream->target_operation;
  const auto bytes = static_cast<int64_t>(stream->part_bytes());
  if (failed_ || operation == nullptr || stream->target_step < 0 || bytes == 0) return;
  if (stream->target_is_work) {
    operation->advance(stream->target_step, bytes);
  } else {
    take(operation, stream->target_step, stream->staging(), bytes);
  }
}

void Engine::frame_arrived(Peer* peer, Stream* stream) {
  const FrameHeader header = stream->header();
  if (header.type != FrameType::kData) {
    const std::string text(stream->held.data(), header.length);
    stream->forget_target();
    stream->said_goodbye |= header.type == FrameType::kGoodbye;
    return control_arrived(peer, header, text);
  }
  part_arrived(stream);
  Operation* operation = stream->target_operation;
  stream->forget_target();
  if (failed_) return;
  if (stream->held.data() == nullptr) {
    if (operation != nullptr) settle(operation);
  } else if (operation != nullptr) {
    operation->held.push_back({peer->rank, header, std::move(stream->held)});
    settle(operation);
  } else {
    hold(peer, header, std::move(stream->held));
  }
}

// Puts a piece aside that nothing counts yet.
void Engine::hold(Peer* peer, const FrameHeader& header, Buffer data) {
  Operation* operation = by_tag(header.tag);  // it may have been admitted while the payload was on its way
  if (operation == nullptr) {
    early_.push_back({peer->rank, header, std::move(data)});
    early_bytes_ += early_.back().memory_bytes();
    return;
  }
  if (!agrees(*operation, header, peer->rank)) return;
  operation->arrived[operation->plan->receives[peer->rank][header.message]] += header.length * operation->shrink;
  operation->held.push_back({peer->rank, header, std::move(data)});
  settle(operation);
}

bool Engine::agrees(const Operation& operation, const FrameHeader& header, int peer) {
  const auto& receives = operation.plan->receives[peer];
  bool same = header.signature == operation.signature && header.step == operation.step &&
              header.message < receives.size() && header.length > 0 &&
              header.length * operation.shrink % static_cast<int64_t>(element_size(operation.dtype)) == 0;
  if (same) {
    const int step = receives[header.message];
    const int64_t end = static_cast<int64_t>(header.offset) + header.length * operation.shrink;
    same = header.offset == static_cast<uint64_t>(operation.arrived[step]) && end <= operation.bytes(step);
  }
  if (!same) mismatch(peer, header.tag);
  return same;
}

bool Engine::can_take(const Operation& operation, int step, const FrameHeader& header) const {
  const int64_t end = static_cast<int64_t>(header.offset) + header.length * operation.shrink;
  return static_cast<int64_t>(header.offset) == operation.done[step] && operation.limit(step) >= end;
}

void Engine::take(Operation* operation, int step, const char* data, int64_t length) {
  const PlanStep& plan_step = operation->plan->steps[step];
  const double divisor = plan_step.kind == TFDIST_RECEIVE_REDUCE_LAST ? operation->divisor : 1;
  const auto size = static_cast<int64_t>(element_size(operation->dtype));
  const bool reduces = plan_step.kind != TFDIST_RECEIVE, widens = operation->shrink > 1;
  operation->visit(operation->position(step), length * operation->shrink, [&](char* target, int64_t n) {
    auto* values = reinterpret_cast<float*>(target);
    if (reduces && widens) {
      reduce_wire_into(values, data, n / size, operation->wire_dtype, operation->reduce, divisor);
    } else if (reduces) {
      reduce_into(target, data, n / size, operation->dtype, operation->reduce, divisor);
    } else if (widens) {
      widen(values, data, n / size, operation->wire_dtype);
    } else {
      copy_bytes(target, data, static_cast<size_t>(n));
    }
    data += n / operation->shrink;
  });
  operation->advance(step, length * operation->shrink);
}

void Engine::lost(Peer* peer, const std::string& cause) {
  if (peer->is_shared() && !failed_) read_shared(peer, true);  // what it left behind counts
  const bool expected = peer->goodbye;
  peer->gone = true;
  for (auto& stream : peer->streams) stream->link->finish_writing();
  if (!expected) fail(TFDIST_LOST, peer->rank, "lost " + name(peer->rank) + ": " + cause);
}

}  // namespace tfdist
