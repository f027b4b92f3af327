#include "parameter_server/shard.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "common/copy.h"
#include "common/reduce.h"
#include "parameter_server/rule.h"

namespace tfdist {
namespace {

constexpr int64_t kBlockElements = 1 << 13;  // stays in the L1 and L2 caches from the update to the copy

// Checked here because a worker's declaration comes from another process.
size_t checked_bytes(const tfdist_shard& shard) {
  const bool is_real = shard.dtype == TFDIST_FLOAT32 || shard.dtype == TFDIST_FLOAT64;
  const bool is_sound = shard.name != nullptr && element_size(shard.dtype) > 0 && shard.elements >= 0 &&
                        shard.row_elements > 0 && shard.elements % shard.row_elements == 0 &&
                        shard.elements < (int64_t{1} << 48);
  if (!is_sound || (shard.is_hosted == 0 && !(is_real && is_valid(shard.rule)))) {
    throw std::invalid_argument("a tensor of float32 or float64 was expected, and a rule for it");
  }
  return static_cast<size_t>(shard.elements) * element_size(shard.dtype);
}

}  // namespace

Shard::Shard(const tfdist_shard& description, const StoreOptions* options)
    : name(description.name),
      dtype(description.dtype),
      elements(description.elements),
      row_elements(description.row_elements),
      is_hosted(description.is_hosted != 0),
      rule_(description.rule),
      options_(options),
      decays_(description.decays != 0),
      is_compensated_(options->compensation > 0 && !is_hosted && rule_.kind != TFDIST_RULE_ADD),
      bytes_(checked_bytes(description)),
      theta_(bytes_),
      applied_(options->num_workers) {
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
  if (rule_.kind != TFDIST_RULE_ADD && options->average_momentum >= 0) average_ = Memory(bytes_);
  if (is_compensated_ && options->compensation_decay >= 0) mean_square_ = Memory(bytes_);
}

Memory* Shard::array(int index) {
  if (index == 0) return &theta_;
  if (index <= num_slots()) return &slots_[static_cast<size_t>(index - 1)];
  return index == num_slots() + 1 && average_.data() != nullptr ? &average_ : nullptr;
}

void Shard::update(const UpdateOf& update, const Gradient& gradient, char* fresh, uint64_t* stamp) {
  std::lock_guard<std::mutex> lock(mutex);
  if (is_applied(update.sources[0])) {
    if (fresh != nullptr) copy_parameters(update.worker, fresh);
  } else {
    if (dtype == TFDIST_FLOAT32) apply(update, gradient, reinterpret_cast<float*>(fresh));
    if (dtype == TFDIST_FLOAT64) apply(update, gradient, reinterpret_cast<double*>(fresh));
    count(update);
  }
  if (stamp != nullptr) copy_stamp(stamp);
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
  auto* seen = is_compensated_ ? reinterpret_cast<T*>(seen_by(update.worker).data()) : nullptr;
  auto* dense = reinterpret_cast<T*>(const_cast<char*>(gradient.dense));
  for (int64_t begin = 0; begin < elements; begin += kBlockElements) {
    const int64_t end = std::min(begin + kBlockElements, elements);
    if (seen != nullptr) compensate(seen, dense, begin, end);
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
void Shard::compensate(const T* then, T* gradient, int64_t begin, int64_t end) {
  const auto* theta = reinterpret_cast<const T*>(theta_.data());
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

void Shard::read(int worker, char* target, int array, uint64_t* stamp) {
  std::lock_guard<std::mutex> lock(mutex);
  if (array == 0) {
    copy_parameters(worker, target);
  } else {
    copy_bytes(target, this->array(array)->data(), bytes_);
  }
  if (stamp != nullptr) copy_stamp(stamp);
}

void Shard::copy_parameters(int worker, char* target) {
  copy_bytes(target, theta_.data(), bytes_);
  if (is_compensated_) copy_bytes(seen_by(worker).data(), theta_.data(), bytes_);
}

// Whoever was never sent any is taken to have what there is now.
Memory& Shard::seen_by(int worker) {
  auto found = seen_.find(worker);
  if (found == seen_.end()) {
    found = seen_.emplace(worker, Memory(bytes_)).first;
    copy_bytes(found->second.data(), theta_.data(), bytes_);
  }
  return found->second;
}

void Shard::write(int array, const char* source) {
  std::lock_guard<std::mutex> lock(mutex);
  copy_bytes(this->array(array)->data(), source, bytes_);
  if (array != 0) return;
  for (auto& seen : seen_) copy_bytes(seen.second.data(), source, bytes_);
}

void Shard::read_rows(const int64_t* rows, int64_t num_rows, char* target) {
  std::lock_guard<std::mutex> lock(mutex);
  const size_t bytes = row_bytes();
  for (int64_t i = 0; i < num_rows; ++i) {
    std::memcpy(target + static_cast<size_t>(i) * bytes, theta_.data() + static_cast<size_t>(rows[i]) * bytes, bytes);
  }
}

}  // namespace tfdist
