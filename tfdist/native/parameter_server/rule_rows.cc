// Update::apply_rows: rows with equal index are brought together, in the order in which they came.
#include <algorithm>
#include <numeric>
#include <vector>

#include "parameter_server/rule.h"

namespace tfdist {
namespace {

// The positions of `rows` in the order of their indices, equal ones as they came; empty where all are in order already.
std::vector<int64_t> sorted_positions(const int64_t* rows, int64_t num_rows) {
  if (std::is_sorted(rows, rows + num_rows)) return {};
  std::vector<int64_t> positions(static_cast<size_t>(num_rows));
  std::iota(positions.begin(), positions.end(), 0);
  std::stable_sort(positions.begin(), positions.end(), [rows](int64_t a, int64_t b) { return rows[a] < rows[b]; });
  return positions;
}

// What several rows with equal index amount to: their sum and, apart, the sum of their squares or absolute values.
template <typename T>
class RowSum {
 public:
  RowSum(int64_t row_elements, bool absolutes)
      : row_elements_(row_elements),
        sum_magnitudes_(absolutes ? rule_loops<T>().sum_absolutes : rule_loops<T>().sum_squares) {}

  void clear() {
    sum_.assign(static_cast<size_t>(row_elements_), T(0));
    magnitudes_.assign(static_cast<size_t>(row_elements_), T(0));
  }
  void add(const T* row) {
    rule_loops<T>().sum_row(sum_.data(), row, row_elements_);
    sum_magnitudes_(magnitudes_.data(), row, row_elements_);
  }
  const T* sum() const { return sum_.data(); }
  const T* magnitudes() const { return magnitudes_.data(); }

 private:
  int64_t row_elements_;
  void (*sum_magnitudes_)(T* sum, const T* row, int64_t n);
  std::vector<T> sum_, magnitudes_;
};

}  // namespace

template <typename T>
void Update::apply_rows(T* theta, T* const* slots, const int64_t* rows, const T* values, int64_t num_rows,
                        int64_t row_elements, int64_t num_rows_of_theta, bool is_lazy) const {
  const std::vector<int64_t> positions = sorted_positions(rows, num_rows);
  const auto position = [&](int64_t i) { return positions.empty() ? i : positions[static_cast<size_t>(i)]; };
  const bool sweeps = !is_lazy && !touches_only_rows_;
  RowSum<T> total(row_elements, variant_ == kRuleAdamax);
  T* at[3] = {};
  const auto move_to = [&](int64_t row) {
    for (int slot = 0; slot < num_slots_; ++slot) at[slot] = slots[slot] + row * row_elements;
    return theta + row * row_elements;
  };
  int64_t done = 0;  // rows before this one are finished, if the tensor is swept
  for (int64_t i = 0; i < num_rows;) {
    const int64_t row = rows[position(i)];
    if (sweeps) apply_zeros<T>(move_to(done), at, (row - done) * row_elements);
    done = row + 1;
    int64_t end = i + 1;
    while (end < num_rows && rows[position(end)] == row) ++end;
    if (end - i == 1) {
      apply_with<T>(move_to(row), at, values + position(i) * row_elements, nullptr, row_elements);
    } else {
      total.clear();
      for (int64_t k = i; k < end; ++k) total.add(values + position(k) * row_elements);
      apply_with<T>(move_to(row), at, total.sum(), is_lazy ? nullptr : total.magnitudes(), row_elements);
    }
    i = end;
  }
  if (sweeps) apply_zeros<T>(move_to(done), at, (num_rows_of_theta - done) * row_elements);
}

template void Update::apply_rows(float*, float* const*, const int64_t*, const float*, int64_t, int64_t, int64_t,
                                 bool) const;
template void Update::apply_rows(double*, double* const*, const int64_t*, const double*, int64_t, int64_t, int64_t,
                                 bool) const;

}  // namespace tfdist
