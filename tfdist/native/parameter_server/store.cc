#include "parameter_server/store.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <stdexcept>

namespace tfdist {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kStalenessAtMost = 4096;  // of the histogram; larger ones count as this

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

std::string within(double timeout_seconds) {
  char text[64];
  std::snprintf(text, sizeof(text), " within timeout %g s", timeout_seconds);
  return text;
}

}  // namespace

Store::Store(const tfdist_store_options& options, const tfdist_shard* shards, int num_shards)
    : mode(options.mode),
      staleness_bound_(options.staleness_bound),
      backup_workers_(options.backup_workers),
      recovers_(options.recovers != 0),
      step_weights_(options.step_weights, options.step_weights + options.num_step_weights),
      host_(options.host),
      host_context_(options.host_context),
      workers_(static_cast<size_t>(options.num_workers)) {
  const bool is_sound = mode >= TFDIST_ASYNCHRONOUS && mode <= TFDIST_SYNCHRONOUS && !step_weights_.empty() &&
                        staleness_bound_ >= 0 && backup_workers_ >= 0;
  if (!is_sound) throw std::invalid_argument("a mode, weights of staleness and bounds >= 0 were expected");
  options_.num_workers = workers_.size();
  options_.weight_decay = options.weight_decay;
  options_.average_momentum = options.average_momentum;
  options_.average_overwrites = options.average_overwrites;
  options_.compensation = options.compensation;
  options_.compensation_decay = options.compensation_decay;
  options_.is_lazy = options.is_lazy != 0;
  for (int i = 0; i < num_shards; ++i) {
    shards_.push_back(std::make_unique<Shard>(shards[i], &options_));
    const bool is_real = shards[i].dtype == TFDIST_FLOAT32 || shards[i].dtype == TFDIST_FLOAT64;
    if (mode == TFDIST_SYNCHRONOUS && !is_real) throw std::invalid_argument("means are of float32 and float64 only");
  }
}

void Store::begin_generation(uint64_t generation, int64_t updates) {
  std::lock_guard<std::mutex> lock(mutex_);
  dismiss(-1, TFDIST_STALE, "the parameters were replaced by others while this gradient waited");
  generation_ = generation;
  updates_ = updates;
}

bool Store::has_counted(const WorkerRecord& record, const Push& push) const {
  return push.header.sequence <= record.sequence;
}

void Store::count(WorkerRecord* record, const Push& push, int64_t staleness) {
  record->sequence = push.header.sequence;
  record->last_seconds = std::chrono::duration<double>(Clock::now().time_since_epoch()).count();
  if (++record->pushes == 1) record->first_seconds = record->last_seconds;
  const auto position = std::min(static_cast<size_t>(staleness), kStalenessAtMost);
  if (record->staleness.size() <= position) record->staleness.resize(position + 1);
  ++record->staleness[position];
}

bool Store::is_refused(const Push& push, Outcome* outcome) const {
  const WorkerRecord& record = workers_[static_cast<size_t>(push.worker)];
  if (!recovers_ || !record.has_joined || record.client == push.client) return false;
  outcome->code = TFDIST_CLOSED;
  outcome->text = "another process has connected as worker " + std::to_string(push.worker) + " since";
  return true;
}

Outcome Store::begin(const Push& push) {
  std::lock_guard<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(push.worker)];
  Outcome outcome;
  if (is_refused(push, &outcome)) return outcome;
  outcome.is_repeated = has_counted(record, push);
  outcome.updates = updates_;
  fill(&outcome.stamp);
  if (outcome.is_repeated) return outcome;
  go_another_way();
  outcome.staleness = std::max<int64_t>(0, updates_ - push.header.base);
  outcome.updates = ++updates_;
  ++record.begun;
  count(&record, push, outcome.staleness);
  fill(&outcome.stamp);
  return outcome;
}

void Store::apply(const Push& push, const Outcome& begun, size_t entry, char* fresh, uint64_t* stamp) {
  const Source source{push.worker, push.header.sequence};
  const double learning_rate = push.header.learning_rate * step_weight(begun.staleness);
  const UpdateOf update{push.worker, begun.updates, learning_rate, &source, 1};
  shards_[push.entries[entry].shard]->update(update, push.gradients[entry], fresh, stamp);
}

void Store::finish(int worker) {
  std::lock_guard<std::mutex> lock(mutex_);
  ++workers_[static_cast<size_t>(worker)].clock;
  changed_.notify_all();
}

// A worker that is more steps behind than the bound allows, or -1.
int Store::too_slow_for(int worker) const {
  const int64_t least = workers_[static_cast<size_t>(worker)].begun - staleness_bound_;
  for (int other = 0; other < num_workers() && mode == TFDIST_BOUNDED; ++other) {
    const WorkerRecord& record = workers_[static_cast<size_t>(other)];
    if (other != worker && record.is_active && record.clock < least) return other;
  }
  return -1;
}

bool Store::must_wait(int worker) {
  std::lock_guard<std::mutex> lock(mutex_);
  return too_slow_for(worker) >= 0;
}

void Store::wait_for_slower(int worker, double timeout_seconds, Outcome* outcome) {
  const auto begin = Clock::now();
  std::unique_lock<std::mutex> lock(mutex_);
  if (too_slow_for(worker) < 0) return;
  changed_.wait_until(lock, after(timeout_seconds), [&] { return is_closed_ || too_slow_for(worker) < 0; });
  outcome->waited_seconds = seconds_since(begin);
  workers_[static_cast<size_t>(worker)].waited_seconds += outcome->waited_seconds;
  const int slowest = too_slow_for(worker);
  if (is_closed_) {
    outcome->code = TFDIST_CLOSED;
    outcome->text = "the parameter server was stopped while this worker waited";
  } else if (slowest >= 0) {
    outcome->code = TFDIST_TIMEOUT;
    outcome->text = "worker " + std::to_string(slowest) + " is more than " + std::to_string(staleness_bound_) +
                    " steps behind and did not come" + within(timeout_seconds);
  }
}

void Store::apply_hosted(const Push& push, const std::vector<Source>& sources, Outcome* outcome) {
  std::lock_guard<std::mutex> lock(host_mutex_);
  std::vector<tfdist_hosted_gradient> gradients;
  const UpdateOf update{push.worker, outcome->updates, 0, sources.data(), sources.size()};
  for (size_t i = 0; i < push.entries.size(); ++i) {
    const Gradient& g = push.gradients[i];
    Shard& shard = *shards_[push.entries[i].shard];
    if (!is_pushed(push.entries[i]) || !shard.is_hosted || shard.has_applied(sources.front())) continue;
    const char* values = g.dense != nullptr ? g.dense : g.values;
    gradients.push_back({static_cast<int32_t>(push.entries[i].shard), values, g.rows, g.num_rows});
  }
  if (!gradients.empty()) {
    call_host(gradients, push.header.learning_rate * step_weight(outcome->staleness), update, outcome);
  }
  for (size_t i = 0; i < push.entries.size() && outcome->code == TFDIST_OK; ++i) {
    Shard& shard = *shards_[push.entries[i].shard];
    if (is_pushed(push.entries[i]) && !shard.is_hosted) shard.update(update, push.gradients[i], nullptr, nullptr);
  }
}

void Store::call_host(const std::vector<tfdist_hosted_gradient>& gradients, double learning_rate,
                      const UpdateOf& update, Outcome* outcome) {
  std::vector<std::unique_lock<std::mutex>> locks;  // nobody reads a tensor that is half written
  for (auto& shard : shards_) locks.emplace_back(shard->mutex);
  char text[1024] = {};
  outcome->code = host_(host_context_, gradients.data(), static_cast<int32_t>(gradients.size()), learning_rate, text,
                        sizeof(text));
  if (outcome->code != TFDIST_OK) {
    outcome->text = text;
    return;
  }
  for (const auto& gradient : gradients) shards_[static_cast<size_t>(gradient.shard)]->count(update);
}

size_t Store::required() const {
  const auto num_active = static_cast<size_t>(
      std::count_if(workers_.begin(), workers_.end(), [](const WorkerRecord& record) { return record.is_active; }));
  const size_t wanted = workers_.size() - static_cast<size_t>(backup_workers_);
  return std::max<size_t>(1, std::min(wanted, num_active));
}

std::string Store::missing() const {
  std::string text;
  for (int worker = 0; worker < num_workers(); ++worker) {
    const bool is_here = std::any_of(contributions_.begin(), contributions_.end(),
                                     [&](const Push* push) { return push->worker == worker; });
    if (!is_here && workers_[static_cast<size_t>(worker)].is_active) {
      text += (text.empty() ? "" : ", ") + std::to_string(worker);
    }
  }
  return text;
}

Outcome Store::contribute(Push* push, double timeout_seconds) {
  const auto begin = Clock::now();
  std::unique_lock<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(push->worker)];
  int64_t late = updates_ - push->header.base;
  if (was_restored_) late = std::max<int64_t>(0, late);  // it has seen steps that are lost
  Outcome outcome;
  if (is_refused(*push, &outcome)) return outcome;
  outcome.updates = updates_;
  outcome.is_repeated = has_counted(record, *push);
  if (outcome.is_repeated) return outcome;
  if (late < 0) {
    outcome.code = TFDIST_STALE;
    outcome.text = "the gradient was computed for parameters after " + std::to_string(push->header.base) +
                   " updates, the server has applied " + std::to_string(updates_);
    return outcome;
  }
  if (late > 0) {
    count(&record, *push, late);
    ++record.dropped;
    outcome.is_dropped = true;
    outcome.staleness = late;
    return outcome;
  }
  dismiss(push->worker, TFDIST_CLOSED, "the worker has sent its gradient again");
  push->is_decided = false;
  contributions_.push_back(push);
  changed_.notify_all();
  const auto is_over = [&] { return push->is_decided || is_closed_ || lost_ >= 0; };
  changed_.wait_until(lock, after(timeout_seconds),
                      [&] { return is_over() || contributions_.size() >= required(); });
  if (!is_over() && contributions_.size() >= required()) combine();
  if (!push->is_decided) {
    push->outcome = undecided(timeout_seconds);
    contributions_.erase(std::find(contributions_.begin(), contributions_.end(), push));
  }
  push->outcome.waited_seconds = seconds_since(begin);
  record.waited_seconds += push->outcome.waited_seconds;
  return push->outcome;
}

Outcome Store::undecided(double timeout_seconds) const {
  Outcome outcome;
  if (is_closed_) {
    outcome.code = TFDIST_CLOSED;
    outcome.text = "the parameter server was stopped while this worker waited";
  } else if (lost_ >= 0) {
    outcome.code = TFDIST_LOST;
    outcome.text = "worker " + std::to_string(lost_) + " closed its connection to the parameter server";
  } else {
    outcome.code = TFDIST_TIMEOUT;
    outcome.text = "no gradient came from worker " + missing() + within(timeout_seconds);
  }
  return outcome;
}

void Store::dismiss(int worker, int code, const std::string& text) {
  for (Push* push : contributions_) {
    if (worker >= 0 && push->worker != worker) continue;
    push->outcome = Outcome{};
    push->outcome.code = code;
    push->outcome.text = text;
    push->is_decided = true;
  }
  const auto is_decided = [](const Push* push) { return push->is_decided; };
  contributions_.erase(std::remove_if(contributions_.begin(), contributions_.end(), is_decided), contributions_.end());
  changed_.notify_all();
}

void Store::join(int worker, uint64_t client) {
  std::lock_guard<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(worker)];
  if (record.has_joined && record.client == client) return;
  dismiss(worker, TFDIST_CLOSED, "another process has connected as this worker since");
  record.is_active = record.is_lost = false;  // active when it says so
  record.client = client;
  record.has_joined = true;
  come_.insert(worker);
  changed_.notify_all();
}

void Store::set_active(int worker, uint64_t client, bool is_active) {
  std::lock_guard<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(worker)];
  if (recovers_ && record.has_joined && record.client != client) return;
  if (is_active && !record.is_active) {
    int64_t furthest = 0;  // whoever joins stands with those in front, and holds nobody up
    for (const WorkerRecord& other : workers_) {
      if (other.is_active) furthest = std::max(furthest, other.clock);
    }
    record.begun = record.clock = furthest;
  }
  if (is_active && lost_ == worker) lost_ = -1;  // it has come back
  record.is_active = is_active;
  record.client = client;
  changed_.notify_all();
}

void Store::lose(int worker, uint64_t client) {
  std::lock_guard<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(worker)];
  if (record.client != client) return;
  record.is_lost = true;
  if (!record.is_active) return;
  if (backup_workers_ == 0 && mode == TFDIST_SYNCHRONOUS && !recovers_) lost_ = worker;
  // Otherwise the step is that of the others. A gradient that waits here may not have reached every server.
  dismiss(worker, TFDIST_LOST, "the worker has closed its connection");
  record.is_active = false;
  changed_.notify_all();
}

void Store::close() {
  std::lock_guard<std::mutex> lock(mutex_);
  is_closed_ = true;
  changed_.notify_all();
}

WorkerRecord Store::record(int worker) {
  std::lock_guard<std::mutex> lock(mutex_);
  return workers_[static_cast<size_t>(worker)];
}

}  // namespace tfdist
