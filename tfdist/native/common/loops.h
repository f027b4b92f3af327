// The loops of kernels.h as plain C++ that compilers vectorise. One source per instruction set includes it and defines
//   TFDIST_TARGET         the attribute that names the instruction set, or nothing
//   TFDIST_HARDWARE_HALF  1 where the F16C instructions belong to it, else 0
// Everything here is of internal linkage: the instruction sets never meet in one symbol.
#ifndef TFDIST_COMMON_LOOPS_H_
#define TFDIST_COMMON_LOOPS_H_

#if TFDIST_HARDWARE_HALF
#include <immintrin.h>
#endif

#include <cstdint>
#include <type_traits>

#include "common/arithmetic.h"
#include "common/kernels.h"

namespace tfdist {
namespace {

#if TFDIST_HARDWARE_HALF
// Compilers do not find the F16C instructions by themselves: eight elements at a time, in one register of floats.
template <typename T>
constexpr bool kByEight = std::is_same_v<T, Float16>;

template <typename T>
TFDIST_STEP __m256 load_eight(const char* array, int64_t i) {
  if constexpr (std::is_same_v<T, float>) return _mm256_loadu_ps(reinterpret_cast<const float*>(array + 4 * i));
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(array + 2 * i)));
}

template <typename T>
TFDIST_STEP void store_eight(char* array, int64_t i, __m256 x) {
  if constexpr (std::is_same_v<T, float>) return _mm256_storeu_ps(reinterpret_cast<float*>(array + 4 * i), x);
  const __m128i halves = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(array + 2 * i), halves);
}
#endif

// Every loop below begins with the elements that were not done by eight.

template <typename T, typename S, typename Op>
TFDIST_TARGET void combine(void* target, const void* source, int64_t n, double divisor) {
  char* __restrict to = static_cast<char*>(target);
  const char* __restrict from = static_cast<const char*>(source);
  using V = typename Arithmetic<T>::Value;
  const V d = static_cast<V>(divisor);
  int64_t i = 0;
#if TFDIST_HARDWARE_HALF
  if constexpr (kByEight<S>) {
    const __m256 divisors = _mm256_set1_ps(d);
    for (; i + 8 <= n; i += 8) {
      store_eight<T>(to, i, Op::apply(load_eight<T>(to, i), load_eight<S>(from, i), divisors));
    }
  }
#endif
  if constexpr (std::is_same_v<T, BFloat16>) {
    for (int64_t pair = 0; pair < n / 2; ++pair) {
      const auto a = element_at<uint32_t>(to, pair), b = element_at<uint32_t>(from, pair);
      set_element(to, pair, apply_to_pair<Op>(a, b, d));
    }
    i = n - n % 2;
  }
  for (; i < n; ++i) {
    const V a = Arithmetic<T>::load(element_at<T>(to, i)), b = Arithmetic<S>::load(element_at<S>(from, i));
    set_element(to, i, Arithmetic<T>::store(Op::apply(a, b, d)));
  }
}

template <typename T>
TFDIST_TARGET void pack_apart(char* __restrict target, const char* __restrict source, int64_t n, double scale) {
  using A = Arithmetic<T>;
  const auto s = static_cast<typename A::Value>(scale);
  int64_t i = 0;
#if TFDIST_HARDWARE_HALF
  if constexpr (kByEight<T>) {
    for (; i + 8 <= n; i += 8) store_eight<T>(target, i, _mm256_set1_ps(s) * load_eight<T>(source, i));
  }
#endif
  for (; i < n; ++i) set_element(target, i, A::store(multiply(s, A::load(element_at<T>(source, i)))));
}

template <typename T>
TFDIST_TARGET void pack_in_place(char* target, int64_t n, double scale) {
  using A = Arithmetic<T>;
  const auto s = static_cast<typename A::Value>(scale);
  int64_t i = 0;
#if TFDIST_HARDWARE_HALF
  if constexpr (kByEight<T>) {
    for (; i + 8 <= n; i += 8) store_eight<T>(target, i, _mm256_set1_ps(s) * load_eight<T>(target, i));
  }
#endif
  for (; i < n; ++i) set_element(target, i, A::store(multiply(s, A::load(element_at<T>(target, i)))));
}

// Two loops, since one over pointers that may be equal does not vectorise.
template <typename T>
TFDIST_TARGET void pack(void* target, const void* source, int64_t n, double scale) {
  if (target == source) return pack_in_place<T>(static_cast<char*>(target), n, scale);
  pack_apart<T>(static_cast<char*>(target), static_cast<const char*>(source), n, scale);
}

template <typename T>
TFDIST_TARGET void widen_all(float* target, const void* wire, int64_t n) {
  char* __restrict to = reinterpret_cast<char*>(target);
  const char* __restrict from = static_cast<const char*>(wire);
  int64_t i = 0;
#if TFDIST_HARDWARE_HALF
  if constexpr (kByEight<T>) {
    for (; i + 8 <= n; i += 8) store_eight<float>(to, i, load_eight<T>(from, i));
  }
#endif
  for (; i < n; ++i) set_element(to, i, static_cast<float>(element_at<T>(from, i)));
}

template <typename T>
TFDIST_TARGET void narrow_all(void* wire, float* values, int64_t n) {
  char* __restrict to = static_cast<char*>(wire);
  char* __restrict from = reinterpret_cast<char*>(values);
  int64_t i = 0;
#if TFDIST_HARDWARE_HALF
  if constexpr (kByEight<T>) {
    for (; i + 8 <= n; i += 8) {
      store_eight<T>(to, i, load_eight<float>(from, i));
      store_eight<float>(from, i, load_eight<T>(to, i));
    }
  }
#endif
  for (; i < n; ++i) {
    const T rounded = T::from(element_at<float>(from, i));
    set_element(to, i, rounded);
    set_element(from, i, static_cast<float>(rounded));
  }
}

template <typename T, typename S>
void fill_operators(Kernels::Combine (&row)[kOperators]) {
  row[kAdd] = combine<T, S, Add>;
  row[kAddDivide] = combine<T, S, AddDivide>;
  row[kMinimum] = combine<T, S, Minimum>;
  row[kMaximum] = combine<T, S, Maximum>;
  row[kMultiply] = combine<T, S, Multiply>;
}

template <typename T>
void fill_element(Kernels& table, Element element) {
  fill_operators<T, T>(table.reduce[element]);
  table.pack[element] = pack<T>;
}

template <typename T>
void fill_wire(Kernels& table, Element element) {
  fill_operators<float, T>(table.reduce_wire[element]);
  table.narrow[element] = narrow_all<T>;
  table.widen[element] = widen_all<T>;
}

Kernels make_kernels(const char* name) {
  Kernels table{};
  table.name = name;
  fill_element<float>(table, kFloat32);
  fill_element<double>(table, kFloat64);
  fill_element<BFloat16>(table, kBFloat16);
  fill_element<Float16>(table, kFloat16);
  fill_element<int32_t>(table, kInt32);
  fill_element<int64_t>(table, kInt64);
  fill_wire<BFloat16>(table, kBFloat16);
  fill_wire<Float16>(table, kFloat16);
  return table;
}

}  // namespace
}  // namespace tfdist
#endif  // TFDIST_COMMON_LOOPS_H_
