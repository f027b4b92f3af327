#include "parameter_server/shard.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/copy.h"
#include "common/reduce.h"
#include "parameter_server/rule.h"

namespace tfdist {
namespace {

constexpr int64_t kBlockElements = 1 << 13;  // stays in the L1 and L2 caches from the update to the copy

}  // namespace

Shard::Shard(const tfdist_shard& description, const StoreOptions* options, int num_workers)
    : name(description.name),
      dtype(description.dtype),
      elements(description.elements),
      row_elements(description.row_elements),
      is_hosted(description.is_hosted != 0),
      rule_(description.rule),
      options_(options),
      decays_(description.decays != 0),
      bytes_(static_cast<size_t>(description.elements) * element_size(description.dtype)),
      theta_(bytes_),
      applied_(static_cast<size_t>(num_workers), 0) {
  if (is_hosted) return;
  for (int slot = 0; slot < tfdist::num_slots(rule_); ++slot) {
    slots_.emplace_back(bytes_);
    const double initial = initial_slot_value(rule_, slot);
    if (initial == 0) continue;
    for (int64_t i = 0; i < elements; ++i) {
      if (dtype == TFDIST_FLOAT32) reinterpret_cast<float*>(slots_.back().data())[i] = static_cast<float>(initial);
      if (dtype == TFDIST_FLOAT64) reinterpret_cast<double*>(slots_.back().data())[i] = initial;
    }
  }
  tfdist_rule_initialize(&rule_, scalars_);
  const bool is_trained = rule_.kind != TFDIST_RULE_ADD;
  if (is_trained && options->average_momentum >= 0) average_ = Memory(bytes_);
  if (is_trained && options->compensation > 0 && options->compensation_decay >= 0) mean_square_ = Memory(bytes_);
}

Memory* Shard::array(int index) {
  if (index == 0) return &theta_;
  if (index <= num_slots()) return &slots_[static_cast<size_t>(index - 1)];
  return index == num_slots() + 1 && average_.data() != nullptr ? &average_ : nullptr;
}

void Shard::update(const UpdateOf& update, const Gradient& gradient, char* fresh) {
  std::lock_guard<std::mutex> lock(mutex);
  auto& applied = applied_[static_cast<size_t>(update.worker)];
  if (update.sequence != 0 && update.sequence <= applied) {  // sent again: it counts once
    if (fresh != nullptr) copy_bytes(fresh, theta_.data(), bytes_);
    return;
  }
  if (dtype == TFDIST_FLOAT32) apply(update, gradient, reinterpret_cast<float*>(fresh));
  if (dtype == TFDIST_FLOAT64) apply(update, gradient, reinterpret_cast<double*>(fresh));
  applied = update.sequence;
  ++version;
}

template <typename T>
void Shard::apply(const UpdateOf& update, const Gradient& gradient, T* fresh) {
  Update step(rule_, update.learning_rate, decays_ ? options_->weight_decay : 0, update.count, scalars_);
  auto* theta = reinterpret_cast<T*>(theta_.data());
  T* slots[kSlotsAtMost] = {};
  for (int i = 0; i < num_slots(); ++i) slots[i] = reinterpret_cast<T*>(slots_[static_cast<size_t>(i)].data());
  if (gradient.dense == nullptr) {
    step.apply_rows(theta, slots, gradient.rows, reinterpret_cast<const T*>(gradient.values), gradient.num_rows,
                    row_elements, elements / row_elements, options_->is_lazy);
    average<T>(update.count, 0, elements);
    if (fresh != nullptr) copy_bytes(fresh, theta, bytes_);
    return;
  }
  const bool is_compensated = options_->compensation > 0 && rule_.kind != TFDIST_RULE_ADD;
  if (is_compensated && seen_.count(update.worker) == 0) seen_.emplace(update.worker, Memory(bytes_));
  auto* seen = is_compensated ? reinterpret_cast<T*>(seen_[update.worker].data()) : nullptr;
  auto* dense = reinterpret_cast<T*>(const_cast<char*>(gradient.dense));
  for (int64_t begin = 0; begin < elements; begin += kBlockElements) {
    const int64_t end = std::min(begin + kBlockElements, elements);
    if (is_compensated) compensate(update.worker, dense, begin, end);
    T* at[kSlotsAtMost] = {};
    for (int i = 0; i < num_slots(); ++i) at[i] = slots[i] + begin;
    step.apply(theta + begin, at, dense + begin, end - begin);
    average<T>(update.count, begin, end);
    const auto bytes = static_cast<size_t>(end - begin) * sizeof(T);
    if (fresh != nullptr) copy_bytes(fresh + begin, theta + begin, bytes);
    if (seen != nullptr) copy_bytes(seen + begin, theta + begin, bytes);
  }
}

// Zheng et al. 2017, equation 10: g + lambda g g (theta - theta_then), and for the adaptive kind lambda divided by the
// root of a moving average of g g.
template <typename T>
void Shard::compensate(int worker, T* gradient, int64_t begin, int64_t end) {
  if (version == 0) return;  // nothing has been sent yet
  const auto* theta = reinterpret_cast<const T*>(theta_.data());
  const auto* then = reinterpret_cast<const T*>(seen_[worker].data());
  const T lambda = static_cast<T>(options_->compensation);
  if (mean_square_.data() == nullptr) {
    for (int64_t i = begin; i < end; ++i) gradient[i] += lambda * gradient[i] * gradient[i] * (theta[i] - then[i]);
    return;
  }
  auto* mean_square = reinterpret_cast<T*>(mean_square_.data());
  const T m = static_cast<T>(options_->compensation_decay);
  for (int64_t i = begin; i < end; ++i) {
    const T square = gradient[i] * gradient[i];
    mean_square[i] = m * mean_square[i] + (1 - m) * square;
    gradient[i] += lambda / std::sqrt(mean_square[i] + static_cast<T>(1e-7)) * square * (theta[i] - then[i]);
  }
}

// Keras: the average begins as the parameters after the first update.
template <typename T>
void Shard::average(int64_t count, int64_t begin, int64_t end) {
  if (average_.data() == nullptr) return;
  auto* theta = reinterpret_cast<T*>(theta_.data());
  auto* mean = reinterpret_cast<T*>(average_.data());
  const T momentum = count == 1 ? T{0} : static_cast<T>(options_->average_momentum);
  for (int64_t i = begin; i < end; ++i) mean[i] = momentum * mean[i] + (1 - momentum) * theta[i];
  if (options_->average_overwrites > 0 && count % options_->average_overwrites == 0) {
    std::memcpy(theta + begin, mean + begin, static_cast<size_t>(end - begin) * sizeof(T));
  }
}

void Shard::read(int worker, char* target) {
  std::lock_guard<std::mutex> lock(mutex);
  copy_bytes(target, theta_.data(), bytes_);
  if (options_->compensation <= 0 || rule_.kind == TFDIST_RULE_ADD || worker < 0) return;
  if (seen_.count(worker) == 0) seen_.emplace(worker, Memory(bytes_));
  copy_bytes(seen_[worker].data(), theta_.data(), bytes_);
}

void Shard::write(int index, const char* source) {
  std::lock_guard<std::mutex> lock(mutex);
  Memory* target = array(index);
  if (target != nullptr) copy_bytes(target->data(), source, bytes_);
  if (index != 0) return;
  for (auto& seen : seen_) copy_bytes(seen.second.data(), source, bytes_);
}

void Shard::read_rows(const int64_t* rows, int64_t num_rows, char* target) {
  std::lock_guard<std::mutex> lock(mutex);
  const size_t bytes = row_bytes();
  for (int64_t i = 0; i < num_rows; ++i) {
    std::memcpy(target + static_cast<size_t>(i) * bytes, theta_.data() + static_cast<size_t>(rows[i]) * bytes, bytes);
  }
}

void Shard::note_hosted_update() {
  std::lock_guard<std::mutex> lock(mutex);
  ++version;
}

}  // namespace tfdist
