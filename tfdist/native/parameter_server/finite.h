// Copies that look out for NaN and infinity: their exponents have all bits set.
#ifndef TFDIST_PARAMETER_SERVER_FINITE_H_
#define TFDIST_PARAMETER_SERVER_FINITE_H_

#include <cstdint>
#include <cstring>

#include "tfdist.h"

namespace tfdist {

template <typename Word, bool copies>
bool scan_finite(char* target, const char* source, size_t bytes, Word mask) {
  const auto* from = reinterpret_cast<const Word*>(source);
  auto* to = reinterpret_cast<Word*>(target);
  Word bad = 0;
  const size_t count = bytes / sizeof(Word);
  for (size_t i = 0; i < count; ++i) {
    const Word value = from[i];
    bad |= static_cast<Word>((value & mask) == mask);
    if (copies) to[i] = value;
  }
  return bad == 0;
}

template <bool copies>
bool scan_finite(int32_t dtype, char* target, const char* source, size_t bytes) {
  switch (dtype) {
    case TFDIST_FLOAT32: return scan_finite<uint32_t, copies>(target, source, bytes, 0x7f800000u);
    case TFDIST_FLOAT64: return scan_finite<uint64_t, copies>(target, source, bytes, 0x7ff0000000000000u);
    case TFDIST_BFLOAT16: return scan_finite<uint16_t, copies>(target, source, bytes, uint16_t{0x7f80});
    case TFDIST_FLOAT16: return scan_finite<uint16_t, copies>(target, source, bytes, uint16_t{0x7c00});
    default: break;
  }
  if (copies) std::memcpy(target, source, bytes);
  return true;
}

inline bool copy_finite(int32_t dtype, char* target, const char* source, size_t bytes) {
  return scan_finite<true>(dtype, target, source, bytes);
}

inline bool is_finite(int32_t dtype, const void* source, size_t bytes) {
  return scan_finite<false>(dtype, nullptr, static_cast<const char*>(source), bytes);
}

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_FINITE_H_
