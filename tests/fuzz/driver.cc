// Where there is no libFuzzer: mutates the seeds of a target, the same way each time.
//
//   target --runs N [--seed K] [FILE ...]     runs the seeds, the files, then N mutations
//   target --write FOLDER                     writes the seeds, one a file, for libFuzzer
//
// What it was running when it died is shown in hexadecimal.
#include <csignal>
#include <fstream>
#include <iterator>
#include <random>

#include "fuzz.h"

extern "C" void __sanitizer_set_death_callback(void (*)(void)) __attribute__((weak));

namespace {

constexpr unsigned kSecondsAtMost = 30;  // for one input
constexpr size_t kBytesAtMost = 4096;

std::string current;

void show() {
  std::fprintf(stderr, "fuzz: died of the input ");
  for (const char c : current) std::fprintf(stderr, "%02x", static_cast<unsigned char>(c));
  std::fprintf(stderr, "\n");
}

void on_signal(int number) {
  show();
  std::signal(number, SIG_DFL);
  std::raise(number);
}

void run(const std::string& input) {
  current = input;
  alarm(kSecondsAtMost);
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()), input.size());
  alarm(0);
}

class Mutator {
 public:
  Mutator(uint64_t seed, const std::vector<std::string>& corpus) : random_(seed), corpus_(corpus) {}

  std::string next() {
    std::string input = corpus_[below(corpus_.size())];
    for (size_t i = below(6) + 1; i > 0; --i) change(&input);
    if (input.size() > kBytesAtMost) input.resize(kBytesAtMost);
    return input;
  }

 private:
  size_t below(size_t bound) { return bound == 0 ? 0 : static_cast<size_t>(random_() % bound); }

  void change(std::string* input) {
    static const uint64_t kNumbers[] = {0,      1,       2,          63,         64,          127,      128, 255, 256,
                                        0x7fff, 0xffff,  0x7fffffff, 0x80000000, 0xffffffff,  1u << 18, 1u << 20,
                                        ~0ull,  1ull << 32, 1ull << 62, 1ull << 63};
    const size_t at = below(input->size());
    switch (below(8)) {
      case 0: if (!input->empty()) (*input)[at] = static_cast<char>((*input)[at] ^ (1 << below(8))); return;
      case 1: if (!input->empty()) (*input)[at] = static_cast<char>(random_()); return;
      case 2: {
        const uint64_t number = kNumbers[below(std::size(kNumbers))];
        const size_t bytes = size_t{1} << below(4);
        if (at + bytes <= input->size()) std::memcpy(&(*input)[at], &number, bytes);
        return;
      }
      case 3: input->erase(at, below(32) + 1); return;
      case 4: input->insert(at, input->substr(below(input->size()), below(64))); return;
      case 5: input->insert(at, std::string(below(16), static_cast<char>(random_()))); return;
      case 6: input->resize(at); return;
      default: {
        const std::string& other = corpus_[below(corpus_.size())];
        const size_t from = below(other.size());
        input->replace(at, below(64), other, from, below(256));
      }
    }
  }

  std::mt19937_64 random_;
  const std::vector<std::string>& corpus_;
};

int write(const std::string& folder) {
  int number = 0;
  for (const std::string& seed : fuzz::seeds()) std::ofstream(folder + "/seed-" + std::to_string(number++), std::ios::binary) << seed;
  return 0;
}

}  // namespace

int main(int count, char** arguments) {
  std::vector<std::string> corpus = fuzz::seeds();
  uint64_t runs = 0, seed = 1;
  for (int i = 1; i < count; ++i) {
    const std::string word = arguments[i];
    if (word == "--write" && i + 1 < count) return write(arguments[i + 1]);
    if (word == "--runs" && i + 1 < count) {
      runs = std::strtoull(arguments[++i], nullptr, 10);
    } else if (word == "--seed" && i + 1 < count) {
      seed = std::strtoull(arguments[++i], nullptr, 10);
    } else {
      std::ifstream file(word, std::ios::binary);
      corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    }
  }
  for (const int number : {SIGALRM, SIGABRT, SIGSEGV}) std::signal(number, on_signal);
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(show);
  for (const std::string& input : corpus) run(input);
  Mutator mutator(seed, corpus);
  for (uint64_t i = 0; i < runs; ++i) run(mutator.next());
  std::printf("fuzz: %llu inputs were survived\n", static_cast<unsigned long long>(corpus.size() + runs));
}
