#include "parameter_server/store.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace tfdist {
namespace {

constexpr size_t kStalenessAtMost = 4096;  // of the histogram; larger ones count as this

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

}  // namespace

Store::Store(const tfdist_store_options& options, const tfdist_shard* shards, int num_shards)
    : mode(options.mode),
      staleness_bound_(options.staleness_bound),
      backup_workers_(options.backup_workers),
      step_weights_(options.step_weights, options.step_weights + options.num_step_weights),
      host_(options.host),
      host_context_(options.host_context),
      workers_(static_cast<size_t>(options.num_workers)) {
  options_.weight_decay = options.weight_decay;
  options_.average_momentum = options.average_momentum;
  options_.average_overwrites = options.average_overwrites;
  options_.compensation = options.compensation;
  options_.compensation_decay = options.compensation_decay;
  options_.is_lazy = options.is_lazy != 0;
  for (int i = 0; i < num_shards; ++i) {
    shards_.push_back(std::make_unique<Shard>(shards[i], &options_, options.num_workers));
  }
}

void Store::begin_generation(uint64_t generation, int64_t updates) {
  generation_ = generation;
  updates_ = updates;
}

void Store::note(WorkerRecord* record, int64_t staleness) {
  ++record->pushes;
  const auto position = std::min(static_cast<size_t>(std::max<int64_t>(staleness, 0)), kStalenessAtMost);
  if (record->staleness.size() <= position) record->staleness.resize(position + 1);
  ++record->staleness[position];
}

Outcome Store::begin(const Push& push) {
  Outcome outcome;
  outcome.updates = updates_.fetch_add(1) + 1;
  outcome.staleness = std::max<int64_t>(0, outcome.updates - 1 - push.header.base);
  std::lock_guard<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(push.worker)];
  ++record.clock;
  note(&record, outcome.staleness);
  changed_.notify_all();
  return outcome;
}

void Store::apply(const Push& push, const Outcome& begun, size_t entry, char* fresh) {
  const auto position = std::min(static_cast<size_t>(begun.staleness), step_weights_.size() - 1);
  const UpdateOf update{push.worker, push.header.sequence, begun.updates,
                        push.header.learning_rate * step_weights_[position]};
  shards_[push.entries[entry].shard]->update(update, push.gradients[entry], fresh);
}

bool Store::wait_for_slower(int worker, double timeout_seconds, Outcome* outcome) {
  const auto begin = std::chrono::steady_clock::now();
  const auto deadline = begin + std::chrono::duration<double>(timeout_seconds);
  std::unique_lock<std::mutex> lock(mutex_);
  WorkerRecord& own = workers_[static_cast<size_t>(worker)];
  int slowest = worker;
  const auto may_go_on = [&] {
    for (int other = 0; other < num_workers(); ++other) {
      const WorkerRecord& record = workers_[static_cast<size_t>(other)];
      if (record.is_active && record.clock < own.clock - staleness_bound_) return slowest = other, false;
    }
    return true;
  };
  if (may_go_on()) return false;
  const bool came = changed_.wait_until(lock, deadline, [&] { return is_closed_ || may_go_on(); });
  outcome->waited_seconds = seconds_since(begin);
  own.waited_seconds += outcome->waited_seconds;
  if (is_closed_) {
    outcome->code = TFDIST_CLOSED;
    outcome->text = "the parameter server was stopped while this worker waited";
  } else if (!came) {
    outcome->code = TFDIST_TIMEOUT;
    outcome->text = "worker " + std::to_string(slowest) + " is more than " + std::to_string(staleness_bound_) +
                    " steps behind and does not come";
  }
  return true;
}

void Store::apply_hosted(const Push& push, Outcome* outcome) {
  std::lock_guard<std::mutex> lock(host_mutex_);
  std::vector<tfdist_hosted_gradient> gradients;
  for (size_t i = 0; i < push.entries.size(); ++i) {
    if ((push.entries[i].flags & kPush) == 0) continue;
    const Gradient& g = push.gradients[i];
    Shard& shard = *shards_[push.entries[i].shard];
    if (!shard.is_hosted) {
      shard.update(UpdateOf{push.worker, push.header.sequence, outcome->updates, 0}, g, nullptr);
      continue;
    }
    const char* values = g.dense != nullptr ? g.dense : g.values;
    gradients.push_back({static_cast<int32_t>(push.entries[i].shard), values, g.rows, g.num_rows});
  }
  if (gradients.empty()) return;
  char text[1024] = {};
  outcome->code = host_(host_context_, gradients.data(), static_cast<int32_t>(gradients.size()),
                        push.header.learning_rate, text, sizeof(text));
  outcome->text = text;
  for (const auto& gradient : gradients) shards_[static_cast<size_t>(gradient.shard)]->note_hosted_update();
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
  const auto begin = std::chrono::steady_clock::now();
  const auto deadline = begin + std::chrono::duration<double>(timeout_seconds);
  std::unique_lock<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(push->worker)];
  const int64_t step = push->header.base;
  Outcome outcome;
  if (step < updates_) {
    ++record.pushes, ++record.dropped;
    outcome.is_dropped = true;
    outcome.staleness = updates_ - step;
    outcome.updates = updates_;
    return outcome;
  }
  contributions_.push_back(push);
  const auto is_over = [&] { return is_closed_ || lost_ >= 0 || updates_ > step; };
  changed_.notify_all();
  const bool came = changed_.wait_until(lock, deadline, [&] { return is_over() || contributions_.size() >= required(); });
  if (!is_over() && came) {
    combine();
    changed_.notify_all();
  } else if (updates_ <= step) {
    contributions_.erase(std::remove(contributions_.begin(), contributions_.end(), push), contributions_.end());
    outcome.code = is_closed_ ? TFDIST_CLOSED : lost_ >= 0 ? TFDIST_LOST : TFDIST_TIMEOUT;
    outcome.text = is_closed_ ? "the parameter server was stopped while this worker waited"
                   : lost_ >= 0 ? "worker " + std::to_string(lost_) + " closed its connection to the parameter server"
                                : "no gradient came from worker " + missing();
    return outcome;
  }
  outcome = combined_;
  outcome.updates = updates_;
  outcome.waited_seconds = seconds_since(begin);
  record.waited_seconds += outcome.waited_seconds;
  note(&record, 0);
  return outcome;
}

// Under mutex_: the contributors' threads wait, their buffers stay as they are.
void Store::combine() {
  combined_ = Outcome{};
  std::sort(contributions_.begin(), contributions_.end(),
            [](const Push* a, const Push* b) { return a->worker < b->worker; });  // a fixed order of summation
  const Push& first = *contributions_.front();
  for (const Push* push : contributions_) {
    const bool is_same = push->entries.size() == first.entries.size() &&
                         std::equal(push->entries.begin(), push->entries.end(), first.entries.begin(),
                                    [](const Entry& a, const Entry& b) { return a.shard == b.shard && a.kind == b.kind; });
    if (is_same) continue;
    combined_.code = TFDIST_MISMATCH;
    combined_.text = "worker " + std::to_string(push->worker) + " pushes gradients of " +
                     std::to_string(push->entries.size()) + " tensors, worker " + std::to_string(first.worker) + " of " +
                     std::to_string(first.entries.size()) + ", or of others: do all workers train the same model?";
  }
  if (combined_.code == TFDIST_OK && is_hosted()) {
    Push total = first;
    std::vector<std::vector<int64_t>> rows(total.entries.size());
    std::vector<std::vector<char>> values(total.entries.size());
    for (size_t i = 0; i < total.entries.size(); ++i) {
      Shard& shard = *shards_[total.entries[i].shard];
      const bool is_double = shard.dtype == TFDIST_FLOAT64;
      if (total.gradients[i].dense != nullptr) {
        is_double ? average_dense<double>(i) : average_dense<float>(i);
        continue;
      }
      is_double ? concatenate_rows<double>(i, &rows[i], &values[i]) : concatenate_rows<float>(i, &rows[i], &values[i]);
      total.gradients[i] = Gradient{nullptr, rows[i].data(), values[i].data(), static_cast<int64_t>(rows[i].size())};
    }
    apply_hosted(total, &combined_);
  } else if (combined_.code == TFDIST_OK) {
    for (size_t i = 0; i < first.entries.size(); ++i) combine_entry(i);
  }
  contributions_.clear();
  ++updates_;
}

std::vector<double> Store::weights(double* divisor) const {
  std::vector<double> weights;
  double total = 0;
  bool are_equal = true;
  for (const Push* push : contributions_) {
    weights.push_back(push->header.weight);
    total += weights.back();
    are_equal = are_equal && weights.back() == weights.front();
  }
  if (contributions_.front()->header.flags & kSum) {
    *divisor = 1;
  } else if (are_equal && total > 0) {  // the plain mean: nothing to be rounded twice
    std::fill(weights.begin(), weights.end(), 1.0);
    *divisor = static_cast<double>(weights.size());
  } else {
    *divisor = total > 0 ? total : 1;
  }
  return weights;
}

// Leaves the mean in the buffer of the first contributor.
template <typename T>
void Store::average_dense(size_t entry) {
  double divisor = 1;
  const std::vector<double> weight = weights(&divisor);
  const int64_t elements = shards_[contributions_.front()->entries[entry].shard]->elements;
  auto* total = reinterpret_cast<T*>(const_cast<char*>(contributions_.front()->gradients[entry].dense));
  constexpr int64_t kBlock = 1 << 13;
  for (int64_t begin = 0; begin < elements; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, elements);
    for (size_t i = 0; i < contributions_.size(); ++i) {
      const auto* own = reinterpret_cast<const T*>(contributions_[i]->gradients[entry].dense);
      const T w = static_cast<T>(weight[i]);
      if (i == 0) {
        for (int64_t k = begin; k < end; ++k) total[k] = w == 0 ? T{0} : w * own[k];  // of no weight: not even NaN
      } else if (w != 0) {
        for (int64_t k = begin; k < end; ++k) total[k] += w * own[k];
      }
    }
    if (divisor == 1) continue;
    for (int64_t k = begin; k < end; ++k) total[k] /= static_cast<T>(divisor);
  }
}

template <typename T>
void Store::concatenate_rows(size_t entry, std::vector<int64_t>* rows, std::vector<char>* values) {
  double divisor = 1;
  const std::vector<double> weight = weights(&divisor);
  const int64_t row_elements = shards_[contributions_.front()->entries[entry].shard]->row_elements;
  for (size_t i = 0; i < contributions_.size(); ++i) {
    const Gradient& gradient = contributions_[i]->gradients[entry];
    if (weight[i] == 0) continue;
    rows->insert(rows->end(), gradient.rows, gradient.rows + gradient.num_rows);
    const auto count = static_cast<size_t>(gradient.num_rows * row_elements);
    const size_t before = values->size();
    values->resize(before + count * sizeof(T));
    auto* target = reinterpret_cast<T*>(values->data() + before);
    const auto* source = reinterpret_cast<const T*>(gradient.values);
    const T scale = static_cast<T>(weight[i] / divisor);
    for (size_t k = 0; k < count; ++k) target[k] = source[k] * scale;
  }
}

void Store::combine_entry(size_t entry) {
  const Push& first = *contributions_.front();
  if ((first.entries[entry].flags & kPush) == 0) return;
  Shard& shard = *shards_[first.entries[entry].shard];
  const bool is_double = shard.dtype == TFDIST_FLOAT64;
  const UpdateOf update{first.worker, 0, updates_ + 1, first.header.learning_rate};
  if (first.gradients[entry].dense != nullptr) {
    is_double ? average_dense<double>(entry) : average_dense<float>(entry);
    shard.update(update, first.gradients[entry], nullptr);
    return;
  }
  std::vector<int64_t> rows;
  std::vector<char> values;
  is_double ? concatenate_rows<double>(entry, &rows, &values) : concatenate_rows<float>(entry, &rows, &values);
  shard.update(update, Gradient{nullptr, rows.data(), values.data(), static_cast<int64_t>(rows.size())}, nullptr);
}

void Store::set_active(int worker, bool is_active) {
  std::lock_guard<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(worker)];
  if (is_active && !record.is_active) {
    int64_t furthest = 0;  // whoever joins stands with those in front, and holds nobody up
    for (const WorkerRecord& other : workers_) {
      if (other.is_active) furthest = std::max(furthest, other.clock);
    }
    record.clock = furthest;
  }
  record.is_active = is_active;
  changed_.notify_all();
}

void Store::lose(int worker) {
  std::lock_guard<std::mutex> lock(mutex_);
  WorkerRecord& record = workers_[static_cast<size_t>(worker)];
  if (record.is_active && backup_workers_ == 0 && mode == TFDIST_SYNCHRONOUS) lost_ = worker;
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
