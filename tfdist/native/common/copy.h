// Copying out of another process's window.
#ifndef TFDIST_COMMON_COPY_H_
#define TFDIST_COMMON_COPY_H_

#include <cstddef>
#include <cstring>
#ifdef __x86_64__
#include <emmintrin.h>
#endif

namespace tfdist {

// memcpy of what another core has just written. The C library's own turns into `rep movsb` for such sizes, which reads
// lines that are modified in another core's cache at a tenth of the speed of plain loads (measured: 2.9 and 25 GB/s).
inline void copy_from_window(void* target, const void* source, size_t bytes) {
#ifdef __x86_64__
  auto* to = static_cast<char*>(target);
  auto* from = static_cast<const char*>(source);
  for (; bytes >= 64; bytes -= 64, to += 64, from += 64) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16));
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 32));
    const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 48));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), a);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 16), b);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 32), c);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 48), d);
  }
  std::memcpy(to, from, bytes);
#else
  std::memcpy(target, source, bytes);
#endif
}

}  // namespace tfdist
#endif  // TFDIST_COMMON_COPY_H_
