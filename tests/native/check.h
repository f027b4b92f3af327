// The one assertion of the C++ tests: says where and what, and ends the program.
#ifndef TFDIST_TESTS_CHECK_H_
#define TFDIST_TESTS_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                        \
    }                                                                      \
  } while (0)

#endif  // TFDIST_TESTS_CHECK_H_
