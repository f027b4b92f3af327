// What worker and parameter server say to each other on a connection: one request, one reply, in turn.
//
//   request   RequestHeader, Entry x num_entries, rows (of each entry of rows: its indices, then its values),
//             then the dense values, unless they lie in shared memory
//   reply     ReplyHeader, text, rows, then the dense values, or one word a part of them: how many bytes lie in
//             shared memory by now
//
// With kStamped, the text of an answer is the stamp of the store, and the stamp of each shard follows its values, or the
// word that tells of them. An offer carries the same two kinds of stamps as its rows: that of the store, then one an entry.
//
// Dense values stand in the order of the entries, each at a multiple of 64 bytes. Integers are little endian.
#ifndef TFDIST_PARAMETER_SERVER_PROTOCOL_H_
#define TFDIST_PARAMETER_SERVER_PROTOCOL_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace tfdist {

enum class RequestKind : uint16_t {
  kExchange = 1,  // apply the gradients, send the parameters
  kRead = 2,      // send array `slot` of every entry: 0 the parameters, then the optimizer's state
  kWrite = 3,     // set it
  kRows = 4,      // send these rows of the parameters
  kOffer = 5,     // take these parameters, unless there are newer ones: a server that has been started again lacks the last
};

enum class EntryKind : uint16_t { kDense = 0, kRows = 1 };

// A worker may also be told nothing of an entry: it asks for the rows that it needs.
// kSpent: what is pushed is gone, but it is contained in the parameters that the worker offers.
enum EntryFlags : uint16_t { kPush = 1, kPull = 2, kSpent = 4 };

enum RequestFlags : uint32_t {
  kShared = 1,  // dense values lie in the window that worker and server share
  kSum = 2,     // gradients of several workers are added, not averaged
  kStamped = 4,
};

constexpr uint32_t kRequestMagic = 0x74667071;  // "tfpq"
constexpr uint32_t kReplyMagic = 0x74667072;    // "tfpr"
constexpr size_t kAlignment = 64;
constexpr uint32_t kReplyTextBytesAtMost = 1 << 16;
constexpr int32_t kSlotsAtMost = 8;

struct RequestHeader {
  uint32_t magic = kRequestMagic;
  RequestKind kind = RequestKind::kExchange;
  uint16_t version = 1;
  uint32_t store = 0;
  uint32_t flags = 0;
  uint32_t num_entries = 0;
  int32_t slot = 0;
  uint64_t generation = 0;  // of the store's parameters: a push for others is refused
  uint64_t sequence = 0;    // of this worker's pushes
  int64_t base = 0;         // updates that the parameters had seen for which the gradient was computed
  double learning_rate = 0;
  double weight = 1;        // of this worker's gradient in the mean
  uint64_t row_bytes = 0;   // of all that is said of rows
  uint64_t dense_bytes = 0;
  uint64_t check = 0;
};
static_assert(sizeof(RequestHeader) == 88, "the header has no padding");

struct Entry {
  uint32_t shard = 0;
  EntryKind kind = EntryKind::kDense;
  uint16_t flags = 0;
  int64_t num_rows = 0;
};
static_assert(sizeof(Entry) == 16, "an entry has no padding");

// Whether a gradient comes with it, which is still there.
inline bool is_pushed(const Entry& entry) { return (entry.flags & kPush) != 0 && (entry.flags & kSpent) == 0; }

struct ReplyHeader {
  uint32_t magic = kReplyMagic;
  int32_t code = 0;  // tfdist_code; then `text_bytes` of text follow and nothing else
  uint32_t text_bytes = 0;
  uint32_t is_dropped = 0;  // the gradient came too late to count
  int64_t updates = 0;      // that the parameters which follow have seen
  int64_t staleness = 0;
  double waited_seconds = 0;
  uint64_t row_bytes = 0;
  uint64_t dense_bytes = 0;
  uint64_t check = 0;
};
static_assert(sizeof(ReplyHeader) == 64, "the header has no padding");

// What a store or a shard has seen: its version, then the number of each worker's last push that is in it. A version is
// how many updates that are, and above these bits how often its server was restored and went another way than before.
using Stamp = std::vector<uint64_t>;
constexpr int kHistoryBits = 40;
constexpr uint64_t kManyHistories = 1000;
constexpr uint64_t kCountMask = (uint64_t{1} << kHistoryBits) - 1;
inline size_t stamp_words(size_t num_workers) { return 1 + num_workers; }

template <typename Header>
uint64_t check_of(const Header& header) {
  uint64_t words[sizeof(Header) / 8];
  std::memcpy(words, &header, sizeof(words));
  uint64_t sum = 0;
  for (size_t i = 0; i + 1 < sizeof(words) / 8; ++i) sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15u + (sum >> 29);
  return sum;
}

inline size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }  // values of rows
inline size_t aligned(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_PROTOCOL_H_
