// What travels on a link: a header of 64 bytes, then `length` bytes of payload. In shared memory the payload lies in
// the slot that the header names.
#ifndef TFDIST_TRANSPORT_FRAME_H_
#define TFDIST_TRANSPORT_FRAME_H_

#include <cstdint>
#include <cstring>

namespace tfdist {

enum class FrameType : uint16_t {
  kData = 1,      // a piece of a message
  kQuery = 2,     // have you started operation `tag`?
  kStatus = 3,    // answer: `message` is an OperationState; `signature` a tag this rank is stuck in (payload: its text)
  kDescribe = 4,  // my side of operation `tag`, which does not agree with yours
  kAbort = 5,     // this rank gives up: `message` is a tfdist_code, `offset` the lost peer, payload the reason
  kGoodbye = 6,   // this rank leaves in good order
  kDoorbell = 7,  // look into the shared memory
  kPing = 8,      // do you live?
  kPong = 9,      // I do
};

constexpr uint32_t kMagic = 0x74666431;         // "tfd1"
constexpr uint32_t kDataBytesAtMost = 1 << 18;  // receivers reduce a piece while it comes
constexpr uint32_t kTextBytesAtMost = 1 << 16;

// Little endian on every platform we support.
struct FrameHeader {
  uint32_t magic = kMagic;
  uint16_t version = 1;
  FrameType type = FrameType::kData;
  uint32_t generation = 0;  // of the membership; frames of another one are refused
  uint32_t message = 0;     // index among the messages of this operation between these two ranks
  uint64_t tag = 0;         // which operation
  uint64_t signature = 0;   // hash of what the ranks must agree on
  int64_t step = -1;
  uint64_t offset = 0;      // of the piece within the message, bytes of the work buffer
  uint32_t length = 0;      // of the payload, bytes as they travel
  uint32_t slot = 0;        // in shared memory: where the payload lies
  uint64_t check = 0;       // over everything above

  uint64_t expected_check() const;
  bool valid(uint32_t group_generation) const;
};
static_assert(sizeof(FrameHeader) == 64, "the header has no padding");

inline uint64_t mix(uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

inline uint64_t hash_text(const char* text) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (; *text != 0; ++text) hash = (hash ^ static_cast<unsigned char>(*text)) * 0x100000001b3u;
  return hash;
}

inline uint64_t FrameHeader::expected_check() const {
  uint64_t words[sizeof(FrameHeader) / 8];
  std::memcpy(words, this, sizeof(words));
  uint64_t sum = 0;
  for (size_t i = 0; i + 1 < sizeof(words) / 8; ++i) sum = (sum ^ words[i]) * 0x9e3779b97f4a7c15u + (sum >> 29);
  return sum;
}

inline bool FrameHeader::valid(uint32_t group_generation) const {
  const uint32_t cap = type == FrameType::kData ? kDataBytesAtMost : kTextBytesAtMost;
  return magic == kMagic && version == 1 && type >= FrameType::kData && type <= FrameType::kPong &&
         generation == group_generation && length <= cap && (type != FrameType::kData || length > 0) &&
         check == expected_check();
}

}  // namespace tfdist
#endif  // TFDIST_TRANSPORT_FRAME_H_
