// How a store outlives its server: as a state that is saved, made whole again by what the workers still have.
#include <algorithm>
#include <cstring>

#include "parameter_server/store.h"

namespace tfdist {
namespace {

// A worker's record as it is saved; how often each staleness occurred is counted anew.
struct SavedWorker {
  uint64_t client, sequence;
  int64_t begun, clock, pushes, dropped;
  double waited_seconds;
  uint64_t is_active, has_joined, is_lost;
};

struct SavedStore {
  uint64_t history, generation, num_workers;
  int64_t updates;
};

}  // namespace

void Store::fill(Stamp* stamp) const {
  stamp->assign(1, history_ << kHistoryBits | static_cast<uint64_t>(updates_.load()));
  for (const WorkerRecord& record : workers_) stamp->push_back(record.sequence);
}

void Store::stamp(Outcome* outcome) {
  std::lock_guard<std::mutex> lock(mutex_);
  outcome->updates = updates_;
  fill(&outcome->stamp);
}

void Store::go_another_way() {
  if (is_restored_) ++history_;
  is_restored_ = false;
}

uint64_t Store::last_sequence(int worker) {
  uint64_t last = record(worker).sequence;
  for (auto& shard : shards_) last = std::max(last, shard->sequence(worker));
  return last;
}

// Saved before the shards, it never knows of a push that a shard which is saved later does not miss or have by itself.
size_t Store::save(char* buffer, size_t capacity) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t bytes = sizeof(SavedStore) + workers_.size() * sizeof(SavedWorker);
  if (buffer == nullptr || capacity < bytes) return bytes;
  const SavedStore head{history_, generation_, workers_.size(), updates_};
  std::memcpy(buffer, &head, sizeof(head));
  buffer += sizeof(head);
  for (const WorkerRecord& record : workers_) {
    const SavedWorker saved{record.client,     record.sequence,  record.begun,
                            record.clock,      record.pushes,    record.dropped,
                            record.waited_seconds, record.is_active, record.has_joined,
                            record.is_lost};
    std::memcpy(buffer, &saved, sizeof(saved));
    buffer += sizeof(saved);
  }
  return bytes;
}

bool Store::load(const char* buffer, size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  SavedStore head;
  if (bytes != sizeof(SavedStore) + workers_.size() * sizeof(SavedWorker)) return false;
  std::memcpy(&head, buffer, sizeof(head));
  if (head.num_workers != workers_.size()) return false;
  buffer += sizeof(head);
  for (WorkerRecord& record : workers_) {
    SavedWorker saved;
    std::memcpy(&saved, buffer, sizeof(saved));
    buffer += sizeof(saved);
    record.client = saved.client;
    record.sequence = saved.sequence;
    record.begun = saved.begun;
    record.clock = saved.clock;
    record.pushes = saved.pushes;
    record.dropped = saved.dropped;
    record.waited_seconds = saved.waited_seconds;
    record.is_active = saved.is_active != 0;
    record.has_joined = saved.has_joined != 0;
    record.is_lost = saved.is_lost != 0;
  }
  history_ = head.history;
  generation_ = head.generation;
  updates_ = head.updates;
  is_restored_ = was_restored_ = true;
  return true;
}

void Store::supersede(uint64_t incarnation) {
  std::lock_guard<std::mutex> lock(mutex_);
  history_ += incarnation * kManyHistories;
  for (auto& shard : shards_) shard->supersede(incarnation);
}

void Store::await_offers(double seconds) {
  std::lock_guard<std::mutex> lock(mutex_);
  for (int worker = 0; worker < num_workers(); ++worker) {
    const WorkerRecord& record = workers_[static_cast<size_t>(worker)];
    if (record.has_joined && !record.is_lost) awaited_.insert(worker);
  }
  const auto wait = std::chrono::duration<double>(seconds);
  await_until_ = std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::nanoseconds>(wait);
}

void Store::wait_until_whole() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (awaited_.empty()) return;
  changed_.wait_until(lock, await_until_, [&] { return is_closed_ || awaited_.empty(); });
  give_up_the_missing();
}

// Who has connected but has nothing to offer yet computes; the others are not waited for any more.
void Store::give_up_the_missing() {
  for (const int worker : awaited_) {
    if (come_.count(worker) > 0) continue;
    workers_[static_cast<size_t>(worker)].is_active = false;
    workers_[static_cast<size_t>(worker)].is_lost = true;
  }
  awaited_.clear();
  changed_.notify_all();
}

void Store::take_offer(int worker, uint64_t generation, const uint64_t* stamp) {
  std::lock_guard<std::mutex> lock(mutex_);
  awaited_.erase(worker);
  const uint64_t version = history_ << kHistoryBits | static_cast<uint64_t>(updates_.load());
  if (generation == generation_ && stamp[0] > version) {
    history_ = stamp[0] >> kHistoryBits;
    updates_ = static_cast<int64_t>(stamp[0] & kCountMask);
    for (size_t i = 0; i < workers_.size(); ++i) workers_[i].sequence = std::max(workers_[i].sequence, stamp[1 + i]);
    for (Push* push : contributions_) {  // the step was done before; its result has come back
      if (!has_counted(workers_[static_cast<size_t>(push->worker)], *push)) continue;
      push->outcome = Outcome{};
      push->outcome.is_repeated = push->is_decided = true;
    }
    const auto is_decided = [](const Push* push) { return push->is_decided; };
    contributions_.erase(std::remove_if(contributions_.begin(), contributions_.end(), is_decided),
                         contributions_.end());
  }
  changed_.notify_all();
}

bool Store::is_left_in_silence() {
  std::lock_guard<std::mutex> lock(mutex_);
  return is_closed_ && recovers_;
}

std::vector<Source> Store::sources() const {
  std::vector<Source> sources;
  for (const Push* push : contributions_) sources.push_back(Source{push->worker, push->header.sequence});
  return sources;
}

}  // namespace tfdist
