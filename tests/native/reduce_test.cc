// Holds common/reduce.h against reduce_reference.h, bit for bit, in the instruction set that is in use.
//
// Built and run by sanitize.py, once per TFDIST_INSTRUCTION_SET; names the set and returns 0 when every check held.

#include "check.h"
#include "common/reduce.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "common/half.h"
#include "common/measure.h"
#include "reduce_reference.h"

namespace {

using reference::bit_cast;
using tfdist::BFloat16;
using tfdist::Float16;

constexpr char kGuard = 0x5a;
const int64_t kSizes[] = {0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 251, 257, 1009};

// An array at a chosen distance from an aligned address, with a guard on both sides.
class Array {
 public:
  Array(size_t bytes, size_t shift) : bytes_(bytes), shift_(64 + shift), memory_(bytes + 192 + shift, kGuard) {}
  char* data() { return memory_.data() + shift_; }
  bool guarded() const {
    const auto is_guard = [](char c) { return c == kGuard; };
    const auto begin = memory_.begin() + static_cast<std::ptrdiff_t>(shift_);
    return std::all_of(memory_.begin(), begin, is_guard) &&
           std::all_of(begin + static_cast<std::ptrdiff_t>(bytes_), memory_.end(), is_guard);
  }

 private:
  size_t bytes_, shift_;
  std::vector<char> memory_;
};

template <typename T>
constexpr int kType = 0;
template <> constexpr int kType<float> = TFDIST_FLOAT32;
template <> constexpr int kType<double> = TFDIST_FLOAT64;
template <> constexpr int kType<BFloat16> = TFDIST_BFLOAT16;
template <> constexpr int kType<Float16> = TFDIST_FLOAT16;
template <> constexpr int kType<int32_t> = TFDIST_INT32;
template <> constexpr int kType<int64_t> = TFDIST_INT64;

template <typename T>
constexpr bool kIsHalf = std::is_same_v<T, BFloat16> || std::is_same_v<T, Float16>;

// What an element is computed with, and back.
template <typename T>
auto value_of(T x) {
  if constexpr (kIsHalf<T>) return reference::widen(x.bits, reference::format_of(kType<T>));
  else return x;
}
template <typename T, typename V>
T stored(V x) {
  if constexpr (kIsHalf<T>) return T{reference::narrow(x, reference::format_of(kType<T>))};
  else return x;
}

template <typename T>
bool equal(T a, T b) {
  if constexpr (!std::is_integral_v<T>) {
    if (std::isnan(value_of(a)) && std::isnan(value_of(b))) return true;  // which NaN is not promised of a sum
  }
  return std::memcmp(&a, &b, sizeof(T)) == 0;
}

// A third of any bits, a third of moderate size, a third special: NaN, infinities, subnormals, extremes.
template <typename T>
std::vector<T> make_values(size_t n, unsigned seed) {
  std::mt19937_64 random(seed);
  std::vector<T> values(n);
  const double special[] = {0.0, -0.0, 1, -1, INFINITY, -INFINITY, NAN, 65504, -65504, 1e-7, 3e38, 1e-40};
  for (auto& value : values) {
    const uint64_t bits = random();
    if (bits % 3 == 0) {
      std::memcpy(&value, &bits, sizeof(T));
    } else if constexpr (std::is_integral_v<T>) {
      const T small = static_cast<T>(random() % 7) - 3, extreme = std::numeric_limits<T>::min();
      value = bits % 3 == 1 ? small : extreme + static_cast<T>(bits % 2);
    } else {
      const double moderate = static_cast<double>(random() % 20001) / 1000 - 10;
      const double chosen = bits % 3 == 1 ? moderate : special[random() % std::size(special)];
      value = stored<T>(static_cast<decltype(value_of(T{}))>(chosen));
    }
  }
  return values;
}

template <typename T>
T at(const char* array, size_t i) {
  T value;
  std::memcpy(&value, array + i * sizeof(T), sizeof(T));
  return value;
}

template <typename T>
void test_reduce(int reduce, double divisor, int64_t n, size_t target_shift, size_t source_shift) {
  const size_t count = static_cast<size_t>(n);
  const auto a = make_values<T>(count, 1), b = make_values<T>(count, 2);
  Array target(count * sizeof(T), target_shift), source(count * sizeof(T), source_shift);
  if (n > 0) std::memcpy(target.data(), a.data(), count * sizeof(T));
  if (n > 0) std::memcpy(source.data(), b.data(), count * sizeof(T));
  tfdist::reduce_into(target.data(), source.data(), n, kType<T>, reduce, divisor);
  for (size_t i = 0; i < count; ++i) {
    const T expected = stored<T>(reference::combine(value_of(a[i]), value_of(b[i]), reduce, divisor));
    const T found = at<T>(target.data(), i);
    const bool is_exact = divisor == 1 && (reduce == TFDIST_MIN || reduce == TFDIST_MAX);  // of NaNs too
    CHECK(is_exact ? std::memcmp(&found, &expected, sizeof(T)) == 0 : equal(found, expected));
    CHECK(std::memcmp(source.data() + i * sizeof(T), &b[i], sizeof(T)) == 0);
  }
  CHECK(target.guarded() && source.guarded());
}

template <typename T>
void test_pack(double scale, int64_t n, size_t target_shift, size_t source_shift, bool in_place) {
  const size_t count = static_cast<size_t>(n);
  const auto a = make_values<T>(count, 3);
  Array target(count * sizeof(T), target_shift), source(count * sizeof(T), source_shift);
  char* from = in_place ? target.data() : source.data();
  if (n > 0) std::memcpy(from, a.data(), count * sizeof(T));
  tfdist::pack_scaled(target.data(), from, n, kType<T>, scale);
  for (size_t i = 0; i < count; ++i) {
    using V = decltype(value_of(T{}));
    const V product = reference::combine(static_cast<V>(scale), value_of(a[i]), TFDIST_PRODUCT, 1);
    CHECK(equal(at<T>(target.data(), i), scale == 0 ? T{} : stored<T>(product)));
  }
  CHECK(target.guarded() && source.guarded());
}

template <typename T>
void test_type() {
  for (const int64_t n : kSizes) {
    for (const size_t shift : {size_t{0}, size_t{4}, size_t{1}}) {  // odd addresses too: nothing is assumed
      for (int reduce = TFDIST_SUM; reduce <= TFDIST_PRODUCT; ++reduce) test_reduce<T>(reduce, 1, n, shift, 2 * shift);
      for (const double divisor : {2.0, 3.0, 7.0, 1000003.0}) test_reduce<T>(TFDIST_MEAN, divisor, n, shift, 0);
      for (const double scale : {0.0, 1.0, 3.0, -2.0}) {
        test_pack<T>(scale, n, shift, 2 * shift, false);
        test_pack<T>(scale, n, shift, 0, true);
      }
    }
  }
}

void check_narrow(const std::vector<float>& values, int wire_dtype) {
  const reference::Format format = reference::format_of(wire_dtype);
  std::vector<float> seen = values, received(values.size());
  std::vector<uint16_t> wire(values.size());
  const auto n = static_cast<int64_t>(values.size());
  tfdist::narrow(wire.data(), seen.data(), n, wire_dtype);
  tfdist::widen(received.data(), wire.data(), n, wire_dtype);
  CHECK(std::memcmp(seen.data(), received.data(), values.size() * sizeof(float)) == 0);
  for (size_t i = 0; i < values.size(); ++i) {
    CHECK(wire[i] == reference::narrow(values[i], format));
    CHECK(bit_cast<uint32_t>(seen[i]) == bit_cast<uint32_t>(reference::widen(wire[i], format)));
  }
}

void test_widen_all(int wire_dtype) {
  const reference::Format format = reference::format_of(wire_dtype);
  std::vector<uint16_t> halves(1 << 16);
  for (size_t i = 0; i < halves.size(); ++i) halves[i] = static_cast<uint16_t>(i);
  std::vector<float> wide(halves.size());
  tfdist::widen(wide.data(), halves.data(), 1 << 16, wire_dtype);
  for (size_t i = 0; i < halves.size(); ++i) {
    const uint32_t expected = bit_cast<uint32_t>(reference::widen(halves[i], format));
    CHECK(bit_cast<uint32_t>(wide[i]) == expected);
    float alone;  // less than a register: what the last elements of an array take
    tfdist::widen(&alone, &halves[i], 1, wire_dtype);
    CHECK(bit_cast<uint32_t>(alone) == expected);
  }
}

// All signs and exponents; mantissas whose kept and dropped bits lie at, beside and between the ties of any step.
void test_narrow_all(int wire_dtype) {
  std::vector<uint32_t> mantissas;
  for (uint32_t kept = 0; kept < 1u << 23; kept += 1u << 12) {
    for (const uint32_t dropped : {0u, 1u, 0x7ffu, 0x800u, 0xfffu}) mantissas.push_back(kept | dropped);
  }
  for (int bit = 0; bit < 23; ++bit) {
    for (const uint32_t delta : {~0u, 0u, 1u}) {
      mantissas.push_back(((1u << bit) + delta) & 0x7fffffu);
      mantissas.push_back(((3u << bit) + delta) & 0x7fffffu);
    }
  }
  for (uint32_t exponent = 0; exponent < 512; ++exponent) {  // with the sign
    std::vector<float> values;
    for (const uint32_t mantissa : mantissas) values.push_back(bit_cast<float>(exponent << 23 | mantissa));
    check_narrow(values, wire_dtype);
  }
}

void test_wire(int wire_dtype) {
  const reference::Format format = reference::format_of(wire_dtype);
  for (const int64_t n : kSizes) {
    const size_t count = static_cast<size_t>(n);
    const auto a = make_values<float>(count, 4), b = make_values<float>(count, 5);
    for (int reduce = TFDIST_SUM; reduce <= TFDIST_PRODUCT; ++reduce) {
      const double divisor = reduce == TFDIST_MEAN ? 3 : 1;
      Array target(count * 4, 4), wire(count * 2, 2);
      std::vector<float> sent = b;
      tfdist::narrow(wire.data(), sent.data(), n, wire_dtype);
      if (n > 0) std::memcpy(target.data(), a.data(), count * 4);
      tfdist::reduce_wire_into(reinterpret_cast<float*>(target.data()), wire.data(), n, wire_dtype, reduce, divisor);
      for (size_t i = 0; i < count; ++i) {
        const float received = reference::widen(reference::narrow(b[i], format), format);
        CHECK(equal(at<float>(target.data(), i), reference::combine(a[i], received, reduce, divisor)));
      }
      CHECK(target.guarded() && wire.guarded());
    }
  }
}

void test_questions() {
  for (int dtype = TFDIST_BYTE; dtype <= TFDIST_INT64; ++dtype) {
    for (int wire = TFDIST_BYTE; wire <= TFDIST_INT64; ++wire) {
      const bool expected = dtype == TFDIST_FLOAT32 && (wire == TFDIST_BFLOAT16 || wire == TFDIST_FLOAT16);
      CHECK(tfdist::can_travel_as(dtype, wire) == expected);
    }
  }
  for (const double seconds : {tfdist::measure_copy_seconds_per_byte(), tfdist::measure_reduce_seconds_per_byte()}) {
    CHECK(seconds > 0 && std::isfinite(seconds));
  }
}

}  // namespace

int main() {
  test_type<float>();
  test_type<double>();
  test_type<BFloat16>();
  test_type<Float16>();
  test_type<int32_t>();
  test_type<int64_t>();
  for (const int wire_dtype : {TFDIST_BFLOAT16, TFDIST_FLOAT16}) {
    test_widen_all(wire_dtype);
    test_narrow_all(wire_dtype);
    test_wire(wire_dtype);
  }
  test_questions();
  std::printf("reduce_test: all checks held with %s\n", tfdist::instruction_set());
}
