// Who has fallen silent: a rank that is stopped, or cut off, closes no connection.
//
// While an operation waits, its rank asks all peers now and then; a peer's engine answers whatever its training thread
// does. Anything that comes from a peer proves that it lives, and so does what it takes of what is on its way to it.

#include "engine/engine.h"

namespace tfdist {
namespace {

// A host takes some bytes for a process that is stopped, such as our questions; a slow link has more than this under way.
constexpr int64_t kUnderWay = 4096;

std::string tenths(Clock::duration duration) {
  const std::string digits = std::to_string(std::chrono::duration<double>(duration).count());
  return digits.substr(0, digits.find('.') + 2) + " s";
}

}  // namespace

// Called by users' threads: somebody waits for what a peer does without this engine.
void Engine::watch(double seconds) {
  const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const bool was_watched = watches();
  watched_until_ = until.time_since_epoch().count();
  if (!was_watched) call_thread();
}

void Engine::check_pulses() {
  const auto now = Clock::now();
  const auto away = now - last_look_;
  if (!has_heartbeat() || away < look_interval()) return;
  last_look_ = now;
  const bool waits = watches() || (!active_.empty() && now - active_.front()->started >= look_interval());
  for (auto& peer : peers_) {
    if (failed_) return;
    if (!peer || peer->gone || peer->goodbye || peer->control().said_goodbye) continue;
    if (holds_too_much()) {  // nothing is read, so nobody can ask, nor be heard
      if (!peer->control().has_output()) send_control(peer.get(), FrameType::kPong, 0, "");
      peer->pulse.asked = false;
    } else if (waits) {
      check_pulse(peer.get(), now, away > heartbeat_ / 2);
    } else {
      peer->pulse.asked = false;
    }
  }
}

// Asks a peer, and gives it up where it has not answered for too long. `was_away`: this rank itself has not run.
void Engine::check_pulse(Peer* peer, Clock::time_point now, bool was_away) {
  Pulse& pulse = peer->pulse;
  if (has_moved(peer) || !pulse.asked || was_away) pulse.since = now;
  pulse.asked = true;
  if (now - pulse.since >= heartbeat_) {
    if (!has_moved_after_all(peer)) {
      if (failed_ || (active_.empty() && !watches())) return;
      const std::string what = active_.empty() ? "for what it has to finish" : "in " + active_.front()->describe();
      peer->silent = true;
      return fail(TFDIST_LOST, peer->rank,
                  "lost " + name(peer->rank) + ": it has been silent for " + tenths(now - pulse.since) + " while rank " +
                      std::to_string(rank_) + " waited " + what +
                      " (TFDIST_HEARTBEAT_SECONDS allows " + tenths(heartbeat_) + ")");
    }
    pulse.since = now;
  }
  if (!peer->control().has_output()) send_control(peer, FrameType::kPing, 0, "");
}

// Whether the peer has done anything since the last look.
bool Engine::has_moved(Peer* peer) {
  Pulse& pulse = peer->pulse;
  int64_t written = 0, unsent = 0;
  for (auto& stream : peer->streams) {
    written += stream->written_bytes();
    unsent += stream->link->unsent_bytes();
  }
  const uint64_t posted = peer->is_shared() ? peer->segment->posted(rank_) : 0;
  const bool takes = unsent > kUnderWay && written - unsent > pulse.taken_bytes;
  const bool moved = takes || posted != pulse.posted || peer->num_events != pulse.num_events;
  pulse.taken_bytes = written - unsent;
  pulse.posted = posted;
  pulse.num_events = peer->num_events;
  return moved;
}

// The same once everything that has come is read.
bool Engine::has_moved_after_all(Peer* peer) {
  if (peer->is_shared()) read_shared(peer, true);
  for (auto& stream : peer->streams) {
    if (!peer->gone) read(peer, stream.get());
  }
  return has_moved(peer);
}

// What moves without a pause never sleeps: it listens to those who share memory, whose sockets are read after a sleep, too.
void Engine::look_around(std::vector<pollfd>* descriptors) {
  if (!has_heartbeat() || failed_ || Clock::now() - last_look_ < look_interval()) return;
  check_clocks();
  last_look_ = Clock::now();
  fill(descriptors);
  if (poll(descriptors->data(), static_cast<nfds_t>(descriptors->size()), 0) > 0) read_ready(*descriptors);
}

}  // namespace tfdist
