#include "common/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <vector>

#include "common/reduce.h"

namespace tfdist {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kPiece = 64 << 10;  // bytes
constexpr size_t kPairs = 64, kLeastPairs = 16;  // of a target and a source: 8 MiB, or 2 MiB where pages come slowly
constexpr std::chrono::microseconds kBudget{2000};  // of touching the memory first, and again of measuring

size_t touch(char* memory) {
  const auto end = Clock::now() + kBudget;
  size_t pairs = 0;
  for (; pairs < kPairs && (pairs < kLeastPairs || Clock::now() < end); ++pairs) {
    std::memset(memory + 2 * pairs * kPiece, 0, 2 * kPiece);  // zeros: sums of subnormals would be slow
  }
  return pairs;
}

// The median time of `handle(target, source)` over the pairs of pieces, divided by the bytes of a piece.
template <typename Function>
double median_seconds_per_byte(Function handle) {
  const std::unique_ptr<char[]> memory(new char[2 * kPairs * kPiece]);
  const size_t pairs = touch(memory.get());
  std::vector<double> seconds;
  const auto end = Clock::now() + kBudget;
  for (size_t i = 0; i < pairs; ++i) {
    char* target = memory.get() + 2 * i * kPiece;
    const auto before = Clock::now();
    if (before >= end && !seconds.empty()) break;
    handle(target, target + kPiece);
    seconds.push_back(std::chrono::duration<double>(Clock::now() - before).count());
  }
  const auto middle = seconds.begin() + static_cast<std::ptrdiff_t>(seconds.size() / 2);
  std::nth_element(seconds.begin(), middle, seconds.end());
  return *middle / kPiece;
}

}  // namespace

double measure_copy_seconds_per_byte() {
  return median_seconds_per_byte([](char* target, const char* source) { std::memcpy(target, source, kPiece); });
}

double measure_reduce_seconds_per_byte() {
  return median_seconds_per_byte([](char* target, const char* source) {
    reduce_into(target, source, kPiece / sizeof(float), TFDIST_FLOAT32, TFDIST_SUM, 1);
  });
}

}  // namespace tfdist
