// Who disagrees, who has not arrived, who left: every way in which a group ends says so on every rank.

#include "engine/engine.h"

namespace tfdist {
namespace {

constexpr int kDisputeMilliseconds = 2000;

}  // namespace

std::string Engine::name(int peer) const {
  const bool is_known = peer >= 0 && peer < world_size_;
  std::string text = "rank " + std::to_string(is_known ? slots_[static_cast<size_t>(peer)] : peer);
  if (peer >= 0 && peer < world_size_ && peers_[peer]) text += " at " + peers_[peer]->address;
  return text;
}

std::string Engine::headline(const Operation& operation) const {
  return operation.describe() + " failed on " + name(rank_) + " of " + std::to_string(world_size_);
}

bool Engine::is_recent(uint64_t tag) const {
  for (const Finished& entry : recent_) {
    if (entry.description && entry.tag == tag) return true;
  }
  return false;
}

std::string Engine::text_of(uint64_t tag) const {
  if (const Operation* operation = by_tag(tag)) return operation->describe();
  for (const Finished& entry : recent_) {
    if (!entry.description || entry.tag != tag) continue;
    return entry.step < 0 ? *entry.description : *entry.description + " at step " + std::to_string(entry.step);
  }
  return "";
}

void Engine::send_control(Peer* peer, FrameType type, uint64_t tag, const std::string& text) {
  if (peer->gone) return;
  FrameHeader header;
  header.generation = generation_;
  header.type = type;
  header.tag = tag;
  // What ends it all must not be overtaken by a closed connection.
  const bool is_last = type == FrameType::kGoodbye;
  for (size_t i = 0; i < (is_last ? peer->streams.size() : 1); ++i) peer->streams[i]->send_control(header, text);
}

// How long an operation may take before the peers are asked about it.
double Engine::patience_seconds() const { return std::min(3.0, timeout_seconds_ / 4); }

bool Engine::stalled(const Operation& operation) const {
  return std::chrono::duration<double>(Clock::now() - operation.started).count() > patience_seconds();
}

// Every rank that learns of a failure tells all others, so that the reason is nowhere overtaken by a closed connection.
void Engine::fail(int code, int peer, const std::string& text, int reporter) {
  if (failed_) return;
  failed_ = true;
  std::string whole = text;
  if (!active_.empty() && code != TFDIST_MISMATCH) whole = headline(*active_.front()) + ": " + text;
  if (reporter >= 0 && reporter != peer && code != TFDIST_MISMATCH) whole += " (reported by " + name(reporter) + ")";
  FrameHeader header;
  header.generation = generation_;
  header.type = FrameType::kAbort;
  header.message = static_cast<uint32_t>(code);
  header.offset = static_cast<uint64_t>(peer);
  for (auto& other : peers_) {
    if (!other) continue;
    for (auto& stream : other->streams) {
      if (other->rank != reporter && !other->gone) stream->send_control(header, text);
      stream->forget_target();
    }
  }
  active_.clear();
  early_.clear();
  early_bytes_ = 0;
  disputed_peer_ = -1;
  std::lock_guard<std::mutex> lock(mutex_);
  const bool is_known = peer >= 0 && peer < world_size_;
  if (failure_.code == TFDIST_OK) failure_ = {code, is_known ? slots_[static_cast<size_t>(peer)] : peer, whole};
  failed_code_ = failure_.code;
  changed_.notify_all();
}

void Engine::control_arrived(Peer* peer, const FrameHeader& header, const std::string& text) {
  switch (header.type) {
    case FrameType::kPing:
      if (peer->control().has_room()) send_control(peer, FrameType::kPong, 0, "");
      return;
    case FrameType::kQuery: return report_status(peer, header.tag);
    case FrameType::kStatus: return status_arrived(peer, header, text);
    case FrameType::kDescribe: return describe_arrived(peer, header.tag, text);
    case FrameType::kAbort: {
      const auto said = static_cast<int64_t>(header.offset);
      const int about = said >= -1 && said < world_size_ ? static_cast<int>(said) : peer->rank;
      // A code that is none of a failure would leave those who wait here waiting.
      const bool is_failure = header.message >= TFDIST_TIMEOUT && header.message <= TFDIST_BELOW_MINIMUM;
      peer->goodbye = true;  // it is about to close; the reason it gave counts, not the closing
      if (header.message == TFDIST_LOST && about >= 0 && peers_[about]) peers_[about]->silent = about != peer->rank;
      return fail(is_failure ? static_cast<int>(header.message) : TFDIST_LOST, about, text, peer->rank);
    }
    case FrameType::kGoodbye:
      if (++peer->num_goodbyes < peer->streams.size()) return;  // data may still be on its way by the others
      if (peer->is_shared()) read_shared(peer, true);  // what it posted before it left counts
      peer->goodbye = true;
      for (size_t i = 0; i < active_.size(); ++i) {
        if (peer_left_early(*active_[i])) return;
      }
      return;
    default: return;
  }
}

// True, and the group has failed, when a peer that has left is still needed.
bool Engine::peer_left_early(const Operation& operation) {
  for (auto& peer : peers_) {
    if (!peer || !peer->goodbye) continue;
    const Plan& plan = *operation.plan;
    bool needed = false;
    for (int step : plan.receives[peer->rank]) needed = needed || operation.arrived[step] < operation.bytes(step);
    for (int step : plan.sends[peer->rank]) needed = needed || operation.done[step] < operation.bytes(step);
    if (!needed) continue;
    fail(TFDIST_MISMATCH, peer->rank,
         "ranks disagree: " + name(rank_) + " waits in " + operation.describe() + ", but " +
             name(peer->rank) + " has finished and left the group");
    return true;
  }
  return false;
}

void Engine::report_status(Peer* peer, uint64_t tag) {
  if (!peer->control().has_room()) return;
  FrameHeader header;
  header.generation = generation_;
  header.type = FrameType::kStatus;
  header.tag = tag;
  PeerState state = PeerState::kNotStarted;
  if (!text_of(tag).empty()) state = by_tag(tag) != nullptr ? PeerState::kActive : PeerState::kFinished;
  header.message = static_cast<uint32_t>(state);
  std::string text;
  if (!active_.empty() && stalled(*active_.front())) {
    header.signature = active_.front()->tag;
    text = active_.front()->describe();
  }
  peer->control().send_control(header, text);
}

// Two ranks, each stuck for a while in an operation the other has not started, will never meet.
void Engine::status_arrived(Peer* peer, const FrameHeader& header, const std::string& text) {
  Operation* operation = by_tag(header.tag);
  if (operation == nullptr) return;
  operation->peer_state[peer->rank] = static_cast<PeerState>(header.message);
  const bool apart = operation->peer_state[peer->rank] == PeerState::kNotStarted && header.signature != 0 &&
                     text_of(header.signature).empty();
  uint64_t& suspect = operation->suspect[peer->rank];
  if (apart && suspect == header.signature) {
    fail(TFDIST_MISMATCH, peer->rank,
         "ranks disagree: " + name(rank_) + " waits in " + operation->describe() + ", but " +
             name(peer->rank) + " waits in " + text + "; neither has started the other's");
    return;
  }
  suspect = apart ? header.signature : 0;
}

void Engine::mismatch(int peer, uint64_t tag) {
  if (failed_ || disputed_peer_ >= 0) return;
  disputed_tag_ = tag;
  disputed_peer_ = peer;
  disputed_until_ = Clock::now() + std::chrono::milliseconds(kDisputeMilliseconds);
  send_control(peers_[static_cast<size_t>(peer)].get(), FrameType::kDescribe, tag, text_of(tag));
}

void Engine::describe_arrived(Peer* peer, uint64_t tag, const std::string& text) {
  if (failed_) return;
  const std::string mine = text_of(tag);
  if (disputed_peer_ < 0) mismatch(peer->rank, tag);  // the other side saw it first: it waits for our text
  fail(TFDIST_MISMATCH, peer->rank,
       "ranks disagree: " + name(rank_) + " has " + (mine.empty() ? "nothing of the kind" : mine) +
           ", but " + name(peer->rank) + " has " + (text.empty() ? "nothing of the kind" : text));
}

void Engine::check_clocks() {
  if (failed_) return;
  if (disputed_peer_ >= 0 && Clock::now() > disputed_until_) {
    return fail(TFDIST_MISMATCH, disputed_peer_,
                "ranks disagree: " + name(rank_) + " has " + text_of(disputed_tag_) + ", but " +
                    name(disputed_peer_) + " sent something else and does not say what");
  }
  query_stalled();
  check_pulses();
}

void Engine::query_stalled() {
  const auto now = Clock::now();
  for (Operation* operation : active_) {
    const double age = std::chrono::duration<double>(now - operation->started).count();
    if (age < patience_seconds() * (operation->num_queries + 1)) continue;
    ++operation->num_queries;
    for (auto& peer : peers_) {
      if (peer && !peer->goodbye) send_control(peer.get(), FrameType::kQuery, operation->tag, "");
    }
  }
}

void Engine::give_up_waiting(Operation* operation) {
  if (failed_) return;
  std::string absent, silent;
  int first = -1;
  for (int peer = 0; peer < world_size_; ++peer) {
    if (peer == rank_) continue;
    const PeerState state = operation->peer_state[peer];
    bool owes = false;
    for (int step : operation->plan->receives[peer]) owes = owes || operation->arrived[step] < operation->bytes(step);
    if (state == PeerState::kNotStarted) {
      absent += (absent.empty() ? "" : ", ") + name(peer);
      if (first < 0) first = peer;
    } else if (state == PeerState::kUnheard && owes) {
      silent += (silent.empty() ? "" : ", ") + name(peer);
      if (first < 0) first = peer;
    }
  }
  const double waited = std::chrono::duration<double>(Clock::now() - operation->started).count();
  auto seconds = [](double value) {
    const std::string digits = std::to_string(value);
    return digits.substr(0, digits.find('.') + 2) + " s";
  };
  std::string text = absent.empty() ? "" : absent + " has not arrived";
  if (!silent.empty()) text += (text.empty() ? "" : "; ") + silent + " has not answered";
  if (text.empty()) text = "every rank has arrived, but the transfer does not move";
  fail(TFDIST_TIMEOUT, first,
       text + ". Waited " + seconds(waited) + " of timeout " + seconds(timeout_seconds_));
}

}  // namespace tfdist
