// The synchronous update: the contributors' gradients are added in the order of their ranks, and applied once. All of it
// runs under Store::mutex_ while the contributors' threads wait, so that their buffers stay as they are.
#include <algorithm>
#include <exception>

#include "parameter_server/store.h"

namespace tfdist {

void Store::combine() {
  std::sort(contributions_.begin(), contributions_.end(),
            [](const Push* a, const Push* b) { return a->worker < b->worker; });
  Outcome outcome;
  try {
    outcome.text = difference();
    if (!outcome.text.empty()) {
      outcome.code = TFDIST_MISMATCH;
    } else {
      combine_all(&outcome);
    }
  } catch (const std::exception& error) {
    outcome.code = TFDIST_INVALID;
    outcome.text = std::string("the gradients could not be combined: ") + error.what();
  }
  if (outcome.code == TFDIST_OK) {
    go_another_way();
    ++updates_;
  }
  outcome.updates = updates_;
  for (Push* push : contributions_) {
    push->outcome = outcome;
    push->is_decided = true;
    if (outcome.code == TFDIST_OK) count(&workers_[static_cast<size_t>(push->worker)], *push, 0);
  }
  contributions_.clear();
  changed_.notify_all();
}

std::string Store::difference() const {
  const Push& first = *contributions_.front();
  const auto is_equal = [](const Entry& a, const Entry& b) {
    return a.shard == b.shard && a.kind == b.kind && (a.flags & kPush) == (b.flags & kPush);
  };
  for (const Push* push : contributions_) {
    const size_t common = std::min(push->entries.size(), first.entries.size());
    size_t i = 0;
    while (i < common && is_equal(push->entries[i], first.entries[i])) ++i;
    if (i == push->entries.size() && i == first.entries.size()) continue;
    const auto name = [&](const Push& of) {
      if (i >= of.entries.size()) return std::string("nothing more");
      const Entry& entry = of.entries[i];
      return (entry.kind == EntryKind::kRows ? "rows of " : "all of ") + shards_[entry.shard]->name;
    };
    return "worker " + std::to_string(first.worker) + " pushes as gradient " + std::to_string(i) + " of " +
           std::to_string(first.entries.size()) + " " + name(first) + ", worker " + std::to_string(push->worker) +
           " of " + std::to_string(push->entries.size()) + " " + name(*push) + ": do all workers train the same model?";
  }
  return "";
}

void Store::combine_all(Outcome* outcome) {
  const bool is_empty = std::all_of(contributions_.begin(), contributions_.end(),
                                    [](const Push* push) { return push->header.weight == 0; });
  if (is_empty) return;  // a step in which nobody's gradient counts moves nothing
  if (is_hosted()) return combine_hosted(outcome);
  for (size_t i = 0; i < contributions_.front()->entries.size(); ++i) combine_entry(i);
}

void Store::combine_hosted(Outcome* outcome) {
  Push total = *contributions_.front();
  std::vector<std::vector<int64_t>> rows(total.entries.size());
  std::vector<std::vector<char>> values(total.entries.size());
  outcome->updates = updates_ + 1;
  for (size_t i = 0; i < total.entries.size(); ++i) {
    if (!is_pushed(total.entries[i])) continue;
    const bool is_double = shards_[total.entries[i].shard]->dtype == TFDIST_FLOAT64;
    if (total.gradients[i].dense != nullptr) {
      is_double ? average_dense<double>(i) : average_dense<float>(i);
      continue;
    }
    is_double ? concatenate_rows<double>(i, &rows[i], &values[i]) : concatenate_rows<float>(i, &rows[i], &values[i]);
    total.gradients[i] = Gradient{nullptr, rows[i].data(), values[i].data(), static_cast<int64_t>(rows[i].size())};
  }
  apply_hosted(total, sources(), outcome);
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
  Shard& shard = *shards_[first.entries[entry].shard];
  const std::vector<Source> sources = this->sources();
  const bool is_whole = std::all_of(contributions_.begin(), contributions_.end(),
                                    [=](const Push* push) { return is_pushed(push->entries[entry]); });
  if (!is_whole || shard.has_applied(sources.front())) return;  // this part of the step was done before
  const bool is_double = shard.dtype == TFDIST_FLOAT64;
  const UpdateOf update{first.worker, updates_ + 1, first.header.learning_rate, sources.data(), sources.size()};
  if (first.gradients[entry].dense != nullptr) {
    is_double ? average_dense<double>(entry) : average_dense<float>(entry);
    shard.update(update, first.gradients[entry], nullptr, nullptr);
    return;
  }
  std::vector<int64_t> rows;
  std::vector<char> values;
  is_double ? concatenate_rows<double>(entry, &rows, &values) : concatenate_rows<float>(entry, &rows, &values);
  shard.update(update, Gradient{nullptr, rows.data(), values.data(), static_cast<int64_t>(rows.size())}, nullptr,
               nullptr);
}

}  // namespace tfdist
