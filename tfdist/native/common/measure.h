// How fast this machine moves and adds bytes: two coefficients of the cost model, each measured in under 5 ms.
#ifndef TFDIST_COMMON_MEASURE_H_
#define TFDIST_COMMON_MEASURE_H_

namespace tfdist {

// Seconds per byte of memcpy, and of reduce_into for float32 sums (bytes of one array), on pieces of 64 KiB out of
// 8 MiB: more than a second-level cache holds, as it is for a bucket. Medians; every call measures anew.
double measure_copy_seconds_per_byte();
double measure_reduce_seconds_per_byte();

}  // namespace tfdist
#endif  // TFDIST_COMMON_MEASURE_H_
