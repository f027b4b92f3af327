#include <poll.h>
#include <unistd.h>

#include <cstring>

#include "common/reduce.h"
#include "engine/engine.h"

namespace tfdist {
namespace {

constexpr int kFramesPerVisit = 8;                    // then the other peers have a turn
constexpr size_t kEarlyBytesAtMost = size_t{1} << 30;  // past this a peer that runs ahead is not read
constexpr double kGoodbyeSeconds = 2.0;

}  // namespace

void Engine::loop() {
  for (;;) {
    std::deque<OperationPtr> submitted;
    std::vector<OperationPtr> given_up;
    bool closing;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      submitted.swap(submitted_);
      for (int64_t ticket : given_up_) {
        auto found = tickets_.find(ticket);
        if (found != tickets_.end() && !found->second->finished) given_up.push_back(found->second);
      }
      given_up_.clear();
      closing = closing_;
    }
    for (const OperationPtr& operation : submitted) admit(operation);
    for (const OperationPtr& operation : given_up) give_up_waiting(operation);
    if (closing) return say_goodbye();
    for (auto& peer : peers_) pump(peer.get());
    check_clocks();
    poll_once();
  }
}

int Engine::poll_timeout() const {
  if (disputed_peer_ >= 0) return 50;
  return active_.empty() ? -1 : static_cast<int>(patience_seconds() * 250) + 1;
}

void Engine::poll_once() {
  std::vector<pollfd> descriptors{{wake_read_, POLLIN, 0}};
  std::vector<Peer*> polled;
  for (auto& peer : peers_) {
    if (!peer || peer->gone) continue;
    short events = early_bytes_ > kEarlyBytesAtMost ? 0 : POLLIN;
    if (peer->blocked && !peer->broken) events |= POLLOUT;
    descriptors.push_back({peer->link->descriptor(), events, 0});
    polled.push_back(peer.get());
  }
  if (poll(descriptors.data(), static_cast<nfds_t>(descriptors.size()), poll_timeout()) <= 0) return;
  if (descriptors[0].revents != 0) {
    char drained[64];
    while (read(wake_read_, drained, sizeof(drained)) > 0) {
    }
  }
  for (size_t i = 0; i < polled.size(); ++i) {
    const short events = descriptors[i + 1].revents;
    if (events & POLLOUT) polled[i]->blocked = false;
    if (events & (POLLIN | POLLHUP | POLLERR)) receive(polled[i]);
  }
}

void Engine::admit(const OperationPtr& operation) {
  if (failed_) return;
  const Plan& plan = *operation->plan;
  operation->started = Clock::now();
  operation->done.assign(plan.steps.size(), 0);
  operation->arrived.assign(plan.steps.size(), 0);
  operation->first_send.assign(world_size_, 0);
  operation->peer_state.assign(world_size_, PeerState::kUnheard);
  operation->suspect.assign(world_size_, 0);
  for (size_t i = 0; i < plan.steps.size(); ++i) operation->remaining += operation->bytes(static_cast<int>(i)) > 0;
  active_.push_back(operation);
  by_tag_[operation->tag] = operation;
  auto early = early_.find(operation->tag);
  if (early != early_.end()) {
    std::vector<HeldPiece> pieces = std::move(early->second);
    early_.erase(early);
    for (HeldPiece& piece : pieces) {
      early_bytes_ -= piece.header.length;
      if (failed_ || !agrees(*operation, piece.header, piece.peer)) return;
      operation->arrived[plan.receives[piece.peer][piece.header.message]] += piece.header.length;
      operation->held.push_back(std::move(piece));
    }
  }
  settle(operation);
  if (!failed_ && operation->remaining > 0) peer_left_early(*operation);
}

// Brings an operation as far as it goes without the network, and finishes it if that is all.
void Engine::settle(const OperationPtr& operation) {
  while (settle_once(operation.get())) {
  }
  if (operation->remaining > 0 || failed_) return;
  for (size_t i = 0; i < active_.size(); ++i) {
    if (active_[i] == operation) active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  by_tag_.erase(operation->tag);
  recent_.emplace_back(operation->tag, operation->describe());
  if (recent_.size() > 256) recent_.pop_front();
  std::lock_guard<std::mutex> lock(mutex_);
  operation->finished = true;
  changed_.notify_all();
}

bool Engine::settle_once(Operation* operation) {
  bool moved = false;
  const Plan& plan = *operation->plan;
  for (size_t h = 0; h < operation->held.size();) {
    HeldPiece& piece = operation->held[h];
    const int step = plan.receives[piece.peer][piece.header.message];
    if (!can_take(*operation, step, piece.header)) {
      ++h;
      continue;
    }
    take(operation, step, piece.data.get(), piece.header.length);
    operation->held.erase(operation->held.begin() + static_cast<std::ptrdiff_t>(h));
    moved = true;
  }
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    const PlanStep& step = plan.steps[i];
    const int index = static_cast<int>(i);
    if (step.kind != TFDIST_COPY || operation->done[i] == operation->bytes(index)) continue;
    if (operation->limit(index) < operation->bytes(index)) continue;
    std::memcpy(operation->chunk_data(step.chunk), operation->chunk_data(step.source), operation->bytes(index));
    operation->advance(index, operation->bytes(index));
    moved = true;
  }
  return moved;
}

void Engine::pump(Peer* peer) {
  if (peer == nullptr) return;
  while (!peer->gone && !peer->broken && !peer->blocked && (peer->has_output() || next_data_frame(peer))) {
    Peer::Sent sent;
    const Peer::Event event = peer->flush(&sent);
    peer->broken = event == Peer::Event::kGone;
    if (event != Peer::Event::kFrame || !sent.operation || failed_) continue;
    sent.operation->advance(sent.step, sent.bytes);
    settle(sent.operation);
  }
}

bool Engine::next_data_frame(Peer* peer) {
  if (failed_ || peer->goodbye) return false;
  for (const OperationPtr& operation : active_) {
    const auto& sends = operation->plan->sends[peer->rank];
    size_t& first = operation->first_send[peer->rank];
    for (size_t k = first; k < sends.size(); ++k) {
      const int step = sends[k];
      const int64_t done = operation->done[step];
      if (done == operation->bytes(step)) {
        if (k == first) ++first;
        continue;
      }
      const int64_t ready = std::min<int64_t>(operation->limit(step) - done, kDataBytesAtMost);
      if (ready <= 0) continue;
      FrameHeader header;
      header.generation = generation_;
      header.message = operation->plan->steps[step].message;
      header.tag = operation->tag;
      header.signature = operation->signature;
      header.step = operation->step;
      header.offset = static_cast<uint64_t>(done);
      header.length = static_cast<uint32_t>(ready);
      peer->send_data(header, operation->chunk_data(operation->plan->steps[step].chunk) + done, operation, step);
      return true;
    }
  }
  return false;
}

void Engine::receive(Peer* peer) {
  for (int frames = 0; frames < kFramesPerVisit;) {
    switch (peer->receive()) {
      case Peer::Event::kNothing: return;
      case Peer::Event::kGone: return lost(peer, "its connection was closed");
      case Peer::Event::kHeader:
        if (!peer->header().valid(generation_)) return lost(peer, "it sent a frame that is not one of ours");
        choose_target(peer);
        break;
      case Peer::Event::kFrame:
        ++frames;
        frame_arrived(peer);
        if (peer->gone) return;
        break;
    }
  }
}

void Engine::choose_target(Peer* peer) {
  const FrameHeader& header = peer->header();
  peer->target_operation = nullptr;
  peer->target_step = -1;
  peer->held = nullptr;
  peer->set_target(peer->staging());
  if (header.type != FrameType::kData || failed_) return;
  auto found = by_tag_.find(header.tag);
  if (found != by_tag_.end()) {
    const OperationPtr& operation = found->second;
    if (!agrees(*operation, header, peer->rank)) return;
    const int step = operation->plan->receives[peer->rank][header.message];
    operation->arrived[step] += header.length;
    peer->target_operation = operation;
    if (can_take(*operation, step, header)) {
      peer->target_step = step;
      const PlanStep& plan_step = operation->plan->steps[step];
      if (plan_step.kind == TFDIST_RECEIVE) {
        peer->set_target(operation->chunk_data(plan_step.chunk) + header.offset);
      }
      return;
    }
  } else if (!text_of(header.tag).empty()) {
    return mismatch(peer->rank, header.tag);  // finished here, yet the peer has more for it
  }
  peer->held.reset(new char[header.length + 1]);
  peer->set_target(peer->held.get());
}

void Engine::frame_arrived(Peer* peer) {
  const FrameHeader header = peer->header();
  if (header.type != FrameType::kData) {
    return control_arrived(peer, std::string(peer->staging(), header.length));
  }
  const OperationPtr operation = std::move(peer->target_operation);
  peer->target_operation = nullptr;
  if (failed_) return;
  if (peer->held) {
    HeldPiece piece{peer->rank, header, std::move(peer->held)};
    if (operation) {
      operation->held.push_back(std::move(piece));
      return settle(operation);
    }
    auto started = by_tag_.find(header.tag);  // it may have been admitted while the payload was on its way
    if (started == by_tag_.end()) {
      early_bytes_ += header.length;
      early_[header.tag].push_back(std::move(piece));
      return;
    }
    const OperationPtr late = started->second;
    if (!agrees(*late, header, peer->rank)) return;
    late->arrived[late->plan->receives[peer->rank][header.message]] += header.length;
    late->held.push_back(std::move(piece));
    return settle(late);
  }
  if (!operation || peer->target_step < 0) return;
  if (operation->plan->steps[peer->target_step].kind == TFDIST_RECEIVE) {
    operation->advance(peer->target_step, header.length);
  } else {
    take(operation.get(), peer->target_step, peer->staging(), header.length);
  }
  settle(operation);
}

bool Engine::agrees(const Operation& operation, const FrameHeader& header, int peer) {
  const auto& receives = operation.plan->receives[peer];
  bool same = header.signature == operation.signature && header.step == operation.step &&
              header.message < receives.size() && header.length > 0;
  if (same) {
    const int step = receives[header.message];
    same = header.offset == static_cast<uint64_t>(operation.arrived[step]) &&
           static_cast<int64_t>(header.offset + header.length) <= operation.bytes(step);
  }
  if (!same) mismatch(peer, header.tag);
  return same;
}

bool Engine::can_take(const Operation& operation, int step, const FrameHeader& header) const {
  const auto end = static_cast<int64_t>(header.offset + header.length);
  return static_cast<int64_t>(header.offset) == operation.done[step] && operation.limit(step) >= end;
}

void Engine::take(Operation* operation, int step, const char* data, int64_t length) {
  const PlanStep& plan_step = operation->plan->steps[step];
  char* target = operation->chunk_data(plan_step.chunk) + operation->done[step];
  if (plan_step.kind == TFDIST_RECEIVE) {
    std::memcpy(target, data, static_cast<size_t>(length));
  } else {
    const auto size = static_cast<int64_t>(element_size(operation->dtype));
    const double divisor = plan_step.kind == TFDIST_RECEIVE_REDUCE_LAST ? operation->divisor : 1;
    reduce_into(target, data, length / size, operation->dtype, operation->reduce, divisor);
  }
  operation->advance(step, length);
}

void Engine::lost(Peer* peer, const std::string& cause) {
  const bool expected = peer->goodbye;
  peer->gone = true;
  peer->link->finish_writing();
  if (!expected) fail(TFDIST_LOST, peer->rank, "lost " + name(peer->rank) + ": " + cause);
}

// Leaves in good order: what was queued is sent, then the peers are told, then their ends are awaited briefly so that
// nothing of ours is cut off.
void Engine::say_goodbye() {
  std::string reason;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    reason = closing_reason_;
  }
  if (!failed_ && !reason.empty()) fail(TFDIST_LOST, rank_, reason);
  FrameHeader header;
  header.generation = generation_;
  header.type = FrameType::kGoodbye;
  if (!failed_) {
    for (auto& peer : peers_) {
      if (peer) peer->send_control(header, "");
    }
  }
  failed_ = true;  // from here on pieces are only drained
  const auto deadline = Clock::now() + std::chrono::milliseconds(static_cast<int>(kGoodbyeSeconds * 1000));
  for (;;) {
    bool pending = false;
    std::vector<pollfd> descriptors;
    for (auto& peer : peers_) {
      if (!peer) continue;
      pump(peer.get());
      if (peer->gone || peer->broken || !peer->has_output()) continue;
      pending = true;
      descriptors.push_back({peer->link->descriptor(), POLLOUT, 0});
      peer->blocked = false;
    }
    if (!pending || Clock::now() > deadline) break;
    poll(descriptors.data(), static_cast<nfds_t>(descriptors.size()), 50);
  }
  for (auto& peer : peers_) {
    if (peer && !peer->gone) peer->link->finish_writing();
  }
}

}  // namespace tfdist
