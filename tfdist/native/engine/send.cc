// What leaves this rank. Into its shared memory the most advanced step first, so that what has just been reduced is
// passed on while it is in the cache. Into sockets in the plan's order: a link between hosts is kept busy by either, but
// what leaves it last then has the fewest hops left.

#include <cstring>

#include "common/copy.h"
#include "engine/engine.h"

namespace tfdist {
namespace {

constexpr int64_t kPieceBytesAtLeast = 1 << 16;  // but for the last of a message: less is not worth a system call

}  // namespace

bool Engine::flush() {
  bool moved = false;
  for (auto& peer : peers_) {
    if (!peer || peer->gone) continue;
    for (auto& stream : peer->streams) moved |= flush(stream.get());
  }
  return moved;
}

bool Engine::flush(Stream* stream) {
  bool moved = false;
  while (stream->has_output() && !stream->broken && !stream->blocked) moved |= flush_once(stream);
  return moved;
}

// Writes some of what a stream has to send, and counts it.
bool Engine::flush_once(Stream* stream) {
  Stream::Sent sent;
  const Stream::Event event = stream->flush(&sent);
  stream->broken = event == Stream::Event::kGone;
  if (sent.operation == nullptr || sent.bytes == 0 || failed_) return event == Stream::Event::kFrame;
  sent.operation->advance(sent.step, sent.bytes);
  settle(sent.operation);
  return true;
}

bool Engine::pump() {
  bool moved = flush();
  starved_ = false;
  for (size_t i = 0; i < active_.size();) {
    Operation* operation = active_[i];
    moved |= pump(operation);
    if (i < active_.size() && active_[i] == operation) ++i;  // else it has finished
  }
  return moved;
}

bool Engine::pump(Operation* operation) {
  bool moved = false;
  auto& sends = operation->sends;
  auto is_over = [&](int step) { return operation->done[step] == operation->bytes(step); };
  auto peer_of = [&](int step) { return peers_[static_cast<size_t>(operation->plan->steps[step].peer)].get(); };
  for (size_t k = sends.size(); k-- > 0 && !failed_;) {
    if (peer_of(sends[k])->is_shared() && !peer_of(sends[k])->goodbye && !is_over(sends[k])) moved |= post(operation, sends[k]);
  }
  for (size_t k = 0; k < sends.size() && !failed_; ++k) {
    if (!peer_of(sends[k])->is_shared() && !peer_of(sends[k])->goodbye && !is_over(sends[k])) moved |= write(operation, sends[k]);
  }
  if (failed_) return true;
  sends.erase(std::remove_if(sends.begin(), sends.end(), is_over), sends.end());
  if (moved) settle(operation);
  return moved;
}

FrameHeader Engine::header_of(const Operation& operation, int step) const {
  FrameHeader header;
  header.generation = generation_;
  header.message = operation.plan->steps[step].message;
  header.tag = operation.tag;
  header.signature = operation.signature;
  header.step = operation.step;
  header.offset = static_cast<uint64_t>(operation.done[step]);
  return header;
}

// Sends the next piece of a step by its socket, as far as that takes it.
bool Engine::write(Operation* operation, int step) {
  const PlanStep& plan_step = operation->plan->steps[step];
  Stream& stream = peers_[static_cast<size_t>(plan_step.peer)]->stream_of(plan_step.message);
  if (stream.has_output() || stream.blocked || stream.broken) return false;
  int64_t contiguous = 0;
  const int64_t limit = operation->limit(step), ready = limit - operation->done[step];
  if (ready <= 0 || (ready < kPieceBytesAtLeast && limit < operation->bytes(step))) return false;
  char* payload = operation->at(operation->position(step), &contiguous);
  const int64_t bytes = std::min({ready, contiguous, int64_t{kDataBytesAtMost} * operation->shrink});
  FrameHeader header = header_of(*operation, step);
  header.length = static_cast<uint32_t>(bytes / operation->shrink);
  if (operation->shrink > 1) {
    narrow(stream.narrowed(), reinterpret_cast<float*>(payload), bytes / 4, operation->wire_dtype);
    payload = stream.narrowed();
  }
  stream.send_data(header, payload, operation, step, bytes);
  Stream::Sent sent;
  stream.broken = stream.flush(&sent) == Stream::Event::kGone;
  if (sent.bytes > 0) operation->advance(step, sent.bytes);
  return true;
}

// Puts the next piece of a step into a slot, for all peers of its multicast that share our memory.
bool Engine::post(Operation* operation, int step) {
  const auto& steps = operation->plan->steps;
  const int64_t done = operation->done[step], ready = operation->limit(step) - done;
  if (ready <= 0) return false;
  const int slot = segment_->free_slot();
  if (slot < 0) {
    starved_ = true;
    return false;
  }
  const int64_t bytes = std::min(ready, static_cast<int64_t>(segment_->slot_bytes()) * operation->shrink);
  char* target = segment_->slot(static_cast<uint32_t>(slot));
  operation->visit(operation->position(step), bytes, [&](char* source, int64_t n) {
    if (operation->shrink > 1) {
      narrow(target, reinterpret_cast<float*>(source), n / 4, operation->wire_dtype);
    } else {
      copy_bytes(target, source, static_cast<size_t>(n));
    }
    target += n / operation->shrink;
  });
  auto takes_part = [&](int i) {
    return peers_[static_cast<size_t>(steps[i].peer)]->is_shared() && operation->done[i] == done;
  };
  uint32_t num_readers = 0;
  for (int i = steps[step].cast_begin; i < steps[step].cast_end; ++i) num_readers += takes_part(i);
  segment_->claim(static_cast<uint32_t>(slot), num_readers);
  for (int i = steps[step].cast_begin; i < steps[step].cast_end; ++i) {
    if (!takes_part(i)) continue;
    FrameHeader header = header_of(*operation, i);
    header.length = static_cast<uint32_t>(bytes / operation->shrink);
    header.slot = static_cast<uint32_t>(slot);
    segment_->post(steps[i].peer, header);
    operation->advance(i, bytes);
  }
  for (int i = steps[step].cast_begin; i < steps[step].cast_end; ++i) {
    ring(peers_[static_cast<size_t>(steps[i].peer)].get(), kRingForData);
  }
  return true;
}

// Wakes a peer of this host that sleeps and wants to know of `reason`.
void Engine::ring(Peer* peer, uint32_t reason) {
  if (!peer->is_shared()) return;
  std::atomic<uint32_t>& wishes = peer->segment->ring_for();
  if ((wishes.load() & reason) == 0 || wishes.exchange(0) == 0) return;
  send_control(peer, FrameType::kDoorbell, 0, "");
  flush(&peer->control());
}

}  // namespace tfdist
