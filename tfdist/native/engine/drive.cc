// Who moves the pieces, and how it sleeps: one thread drives at a time, a waiter if there is one.

#include <unistd.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif
#include <sched.h>

#include <cstring>

#include "common/copy.h"
#include "engine/engine.h"

namespace tfdist {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// A wake-up costs some 30 us each way, a step's wait is either shorter than that or much longer.
constexpr auto kSpin = microseconds(50);
constexpr auto kPause = microseconds(10);  // after it a spinning thread lets others run
constexpr auto kRecently = milliseconds(2);
constexpr auto kStandbyAtMost = milliseconds(64);
constexpr auto kCold = std::chrono::seconds(10);
constexpr auto kGoodbye = std::chrono::seconds(2);

void relax() {
#if defined(__x86_64__)
  for (int i = 0; i < 16; ++i) _mm_pause();
#elif defined(__aarch64__)
  for (int i = 0; i < 16; ++i) asm volatile("yield");
#endif
}

}  // namespace

void Engine::release_drive() {
  has_active_ = !active_.empty();
  driven_.store(false);
  if (sleepers_.load() == 0) return;
  std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
}

// Waits for an operation, driving if nobody else does; false when the deadline has passed.
bool Engine::await(const Operation& operation, Clock::time_point deadline) {
  while (!over(operation)) {
    if (!closing_ && try_drive()) {
      drive_until(operation, deadline);
      release_drive();
      if (!over(operation) && Clock::now() >= deadline) return false;
      continue;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    ++sleepers_;
    auto changed = [&] { return over(operation) || (!driven_ && !closing_); };
    if (deadline == Clock::time_point::max()) {
      changed_.wait(lock, changed);
    } else {
      changed_.wait_until(lock, deadline, changed);
    }
    --sleepers_;
    if (!over(operation) && Clock::now() >= deadline) return false;
  }
  return true;
}

void Engine::drive_until(const Operation& operation, Clock::time_point deadline) {
  auto idle_since = Clock::now();
  while (!over(operation) && !closing_) {
    if (drive(true)) {
      look_around(&waiter_descriptors_);
      idle_since = Clock::now();
      continue;
    }
    const auto now = Clock::now();
    if (now - idle_since >= kSpin) {
      if (now >= deadline) return;
      block(deadline);
      idle_since = Clock::now();
    } else if (is_crowded_ || now - idle_since >= kPause) {
      sched_yield();
    } else {
      relax();
    }
  }
}

// Moves what can move now; says whether anything did.
bool Engine::drive(bool reads_sockets) {
  if (segment_ && segment_->ring_for().load(std::memory_order_relaxed) != 0) segment_->ring_for().store(0);
  if (has_work_.load()) take_submitted();
  bool moved = false;
  for (Peer* peer : shared_peers_) moved |= read_shared(peer, false);
  if (reads_sockets && !holds_too_much()) {
    for (Peer* peer : stream_peers_) {
      for (auto& stream : peer->streams) {
        stream->blocked = false;
        moved |= read(peer, stream.get());
      }
    }
  }
  return pump() || moved;
}

void Engine::take_submitted() {
  Operation* given_up = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    has_work_.store(false);
    arriving_.swap(submitted_);
    for (Operation* operation : given_up_) {
      if (!operation->finished && given_up == nullptr) given_up = operation;
    }
    given_up_.clear();
  }
  for (Operation* operation : arriving_) admit(operation);
  arriving_.clear();
  if (given_up != nullptr) give_up_waiting(given_up);
}

// Sleeps until something may have come, for a waiter.
void Engine::block(Clock::time_point deadline) {
  check_clocks();
  if (pump() || hold_what_is_stuck()) return;  // what the clocks wanted said leaves first
  blocked_ = true;
  if (!has_work_ && !closing_ && arm(true)) {
    fill(&waiter_descriptors_);
    int limit = poll_milliseconds();
    if (deadline != Clock::time_point::max()) {
      const auto left = std::chrono::duration_cast<milliseconds>(deadline - Clock::now()).count() + 1;
      limit = static_cast<int>(std::max<int64_t>(0, limit < 0 ? left : std::min<int64_t>(limit, left)));
    }
    const int ready = poll(waiter_descriptors_.data(), static_cast<nfds_t>(waiter_descriptors_.size()), limit);
    blocked_ = false;
    if (ready > 0) read_ready(waiter_descriptors_);
  }
  blocked_ = false;
}

// Says what to be woken for; false if it has come meanwhile.
bool Engine::arm(bool by_waiter) {
  if (!segment_) return true;
  const bool moves = !active_.empty() && (by_waiter || is_eager_);
  const uint32_t wanted = !moves ? 0u : starved_ ? kRingForData | kRingForSlots : uint32_t{kRingForData};
  segment_->ring_for().store(wanted);  // before we look; peers post first and look at the wish then
  if (wanted == 0) return true;
  for (Peer* peer : shared_peers_) {
    if (peer->segment->posted(rank_) != peer->looked_at) return false;
  }
  return !starved_ || segment_->free_slot() < 0;
}

int Engine::poll_milliseconds() const {
  if (disputed_peer_ >= 0) return 50;
  const int patience = static_cast<int>(patience_seconds() * 250) + 1;
  const bool looks = has_heartbeat() && (!active_.empty() || holds_too_much() || watches());
  if (!looks) return patience;
  return std::min(patience, static_cast<int>(std::chrono::duration_cast<milliseconds>(look_interval()).count()) + 1);
}

void Engine::fill(std::vector<pollfd>* descriptors) const {
  descriptors->clear();
  descriptors->push_back({wake_read_, POLLIN, 0});
  for (auto& peer : peers_) {
    if (!peer) continue;
    for (auto& stream : peer->streams) {
      short events = holds_too_much() ? 0 : POLLIN;
      if (stream->blocked && !stream->broken) events |= POLLOUT;
      descriptors->push_back({peer->gone || stream->ended ? -1 : stream->link->descriptor(), events, 0});
    }
  }
}

void Engine::read_ready(const std::vector<pollfd>& descriptors) {
  if (descriptors[0].revents != 0) {
    char drained[64];
    while (::read(wake_read_, drained, sizeof(drained)) > 0) {
    }
  }
  size_t i = 1;
  for (auto& peer : peers_) {
    if (!peer) continue;
    for (auto& stream : peer->streams) {
      const short events = descriptors[i++].revents;
      if (events & POLLOUT) stream->blocked = false;
      if ((events & (POLLIN | POLLHUP | POLLERR)) && !peer->gone) read(peer.get(), stream.get());
    }
  }
}

// The engine's own thread: drives while nobody waits, and stands by while somebody does.
void Engine::loop() {
  auto standby = kRecently;
  bool polled = false;
  while (!closing_) {
    const auto since = Clock::now().time_since_epoch().count() - last_waited_;
    const bool was_waited = since < std::chrono::duration_cast<Clock::duration>(kRecently).count();
    if (waiters_ > 0 || (was_waited && !(is_eager_ && has_active_)) || !try_drive()) {
      std::unique_lock<std::mutex> lock(mutex_);
      standby_.wait_for(lock, standby, [&] { return closing_ || is_wanted_; });
      is_wanted_ = false;
      standby = std::min<milliseconds>(standby * 2, kStandbyAtMost);
      continue;
    }
    standby = kRecently;
    if (polled) read_ready(thread_descriptors_);
    polled = false;
    if (is_eager_ || has_work_) {
      while (drive(false) && waiters_ == 0 && !closing_) look_around(&thread_descriptors_);
    }
    check_clocks();
    flush();
    if (is_eager_ && hold_what_is_stuck()) {
      release_drive();
      continue;
    }
    const bool is_done = active_.empty() && disputed_peer_ < 0 && !holds_too_much() && !watches();
    const bool is_cold = is_done && Clock::now() - last_active_ > kCold;
    is_cold_ = is_cold;
    const bool sleeps = !has_work_ && arm(false);
    fill(&thread_descriptors_);
    const int limit = is_cold ? -1 : poll_milliseconds();
    release_drive();
    if (sleeps && waiters_ == 0 && !closing_) {
      polled = poll(thread_descriptors_.data(), static_cast<nfds_t>(thread_descriptors_.size()), limit) > 0;
    }
  }
  while (!try_drive()) sched_yield();  // waiters let go as they see that the group closes
  say_goodbye();
  release_drive();
}

void Engine::admit(Operation* operation) {
  if (failed_) return;
  const Plan& plan = *operation->plan;
  const auto world_size = static_cast<size_t>(world_size_);
  operation->started = Clock::now();
  last_active_ = operation->started;
  operation->num_queries = 0;
  operation->done.assign(plan.steps.size(), 0);
  operation->arrived.assign(plan.steps.size(), 0);
  operation->peer_state.assign(world_size, PeerState::kUnheard);
  operation->suspect.assign(world_size, 0);
  operation->held.clear();
  operation->remaining = 0;
  operation->sends.clear();
  for (int i : plan.all_sends) {
    if (operation->bytes(i) > 0) operation->sends.push_back(i);
  }
  for (size_t i = 0; i < plan.steps.size(); ++i) operation->remaining += operation->bytes(static_cast<int>(i)) > 0;
  active_.push_back(operation);
  for (size_t i = 0; i < early_.size();) {
    if (early_[i].header.tag != operation->tag) {
      ++i;
      continue;
    }
    HeldPiece piece = std::move(early_[i]);
    early_.erase(early_.begin() + static_cast<std::ptrdiff_t>(i));
    early_bytes_ -= piece.memory_bytes();
    if (failed_ || !agrees(*operation, piece.header, piece.peer)) return;
    operation->arrived[plan.receives[piece.peer][piece.header.message]] += piece.header.length * operation->shrink;
    operation->held.push_back(std::move(piece));
  }
  if (settle(operation)) peer_left_early(*operation);
}

// Brings an operation as far as it goes without the network, and finishes it if that is all: then it is no longer to
// be touched, since its waiter may reuse it. True while it goes on; nothing ends well while ranks disagree.
bool Engine::settle(Operation* operation) {
  while (settle_once(operation)) {
  }
  if (operation->remaining > 0 || failed_ || disputed_peer_ >= 0) return !failed_;
  for (size_t i = 0; i < active_.size(); ++i) {
    if (active_[i] != operation) continue;
    active_.erase(active_.begin() + static_cast<std::ptrdiff_t>(i));
    break;
  }
  recent_[next_recent_] = {operation->tag, operation->step, operation->description};
  next_recent_ = (next_recent_ + 1) % recent_.size();
  last_active_ = Clock::now();
  operation->finished.store(true);
  if (sleepers_.load() == 0) return false;
  std::lock_guard<std::mutex> lock(mutex_);
  changed_.notify_all();
  return false;
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
    take(operation, step, piece.data.data(), piece.header.length);
    operation->held.erase(operation->held.begin() + static_cast<std::ptrdiff_t>(h));
    moved = true;
  }
  for (int i : plan.copies) {
    const PlanStep& step = plan.steps[i];
    const int64_t bytes = operation->bytes(i);
    if (operation->done[i] == bytes || operation->limit(i) < bytes) continue;
    int64_t source = operation->begin[step.source];
    operation->visit(operation->begin[step.chunk], bytes, [&](char* target, int64_t n) {
      operation->visit(source, n, [&target](char* part, int64_t m) {
        copy_bytes(target, part, static_cast<size_t>(m));
        target += m;
      });
      source += n;
    });
    operation->advance(i, bytes);
    moved = true;
  }
  return moved;
}

// Leaves in good order: what was queued is sent, then the peers are told, then their ends are awaited briefly so that
// nothing of ours is cut off.
void Engine::say_goodbye() {
  if (is_abandoned_) {
    failed_ = true;
    return;
  }
  std::string reason;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    reason = closing_reason_;
  }
  if (!failed_ && !reason.empty()) fail(TFDIST_RAISED, rank_, reason);
  if (!failed_) {
    for (auto& peer : peers_) {
      if (peer) send_control(peer.get(), FrameType::kGoodbye, 0, "");
    }
  }
  failed_ = true;  // from here on pieces are only drained
  const auto deadline = Clock::now() + kGoodbye;
  for (;;) {
    bool pending = false;
    std::vector<pollfd> descriptors;
    for (auto& peer : peers_) {
      if (!peer || peer->gone) continue;
      for (auto& stream : peer->streams) {
        stream->blocked = false;
        flush(stream.get());
        if (stream->broken || peer->silent || !stream->has_output()) continue;
        pending = true;
        descriptors.push_back({stream->link->descriptor(), POLLOUT, 0});
      }
    }
    if (!pending || Clock::now() > deadline) break;
    poll(descriptors.data(), static_cast<nfds_t>(descriptors.size()), 50);
  }
  for (auto& peer : peers_) {
    if (!peer || peer->gone) continue;
    for (auto& stream : peer->streams) stream->link->finish_writing();
  }
}

}  // namespace tfdist
