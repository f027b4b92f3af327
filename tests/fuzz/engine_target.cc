// A peer that sends an engine what it likes, while two collectives wait for it.
//
// Byte 0 of an input chooses the collectives; then records follow:
//   how, type, tag, message: u8; offset, length: u32        a frame whose payload is made here
//   how with kRaw, length: u8, bytes                        as they are
// Numbers that a frame must carry to be looked at (magic, check, the tag and signature of a collective) are filled in
// unless `how` says otherwise.
#include <array>

#include "fuzz.h"
#include "tfdist.h"
#include "transport/frame.h"

namespace {

using fuzz::Reader;
using tfdist::FrameHeader;
using tfdist::FrameType;

enum How : uint8_t { kSecondStream = 1, kRaw = 2, kKeepMagic = 4, kKeepCheck = 8, kBadSignature = 16, kCutShort = 32 };
enum Choice : uint8_t { kHalf = 1, kTwoStreams = 2, kReceives = 4, kPacked = 8, kInThread = 16, kBytes = 32 };

constexpr int64_t kElements = 5000;
constexpr double kSecondsAtMost = 8;

struct Known {
  uint64_t tag = 0, signature = 0;
};

struct Collective {
  std::vector<float> values = std::vector<float>(kElements, 1.0f);
  int64_t ticket = 0;
};

class Target {
 public:
  explicit Target(uint8_t choice) : choice_(choice), num_streams_((choice & kTwoStreams) ? 2 : 1) {
    int mine[4] = {-1, -1, -1, -1};
    for (int i = 0; i < num_streams_; ++i) {
      int pair[2];
      if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) fuzz::die("no socket");
      mine[num_streams_ + i] = pair[0];
      peers_.push_back(pair[1]);
    }
    tfdist_group_options options{};
    options.world_size = 2;
    options.sockets = mine;
    options.sockets_per_peer = num_streams_;
    options.timeout_seconds = 60;
    options.heartbeat_seconds = 30;
    group_ = tfdist_group_create(&options);
    if (group_ == nullptr) fuzz::die("no group");
    load();
  }

  ~Target() {
    tfdist_group_close(group_, nullptr);
    tfdist_group_release(group_);
    for (int peer : peers_) close(peer);
  }

  void start(uint64_t channel) {
    Collective& collective = collectives_[channel - 1];
    tfdist_operation operation{};
    operation.plan = plan_;
    operation.dtype = (choice_ & kBytes) ? TFDIST_BYTE : TFDIST_FLOAT32;
    operation.wire_dtype = (choice_ & (kHalf | kBytes)) == kHalf ? TFDIST_BFLOAT16 : TFDIST_BYTE;
    operation.scale = 1;
    operation.channel = channel;
    operation.step = -1;
    operation.description = "fuzzed";
    operation.elements = kElements;
    if ((choice_ & kPacked) == 0) operation.work = collective.values.data();
    const tfdist_span span{collective.values.data(), kElements};
    collective.ticket = tfdist_start(group_, &operation, &span, 1, nullptr);
  }

  void send(const std::array<std::string, 2>& streams) {
    for (int i = 0; i < num_streams_; ++i) fuzz::send_all(peers_[i], streams[i]);
  }

  void hang_up() {
    for (int peer : peers_) shutdown(peer, SHUT_WR);
  }

  int wait(uint64_t channel, double seconds) {
    const int64_t ticket = collectives_[channel - 1].ticket;
    return ticket > 0 ? tfdist_wait(group_, ticket, seconds, 0) : TFDIST_OK;
  }

  void end(uint64_t channel) {
    Collective& collective = collectives_[channel - 1];
    const double begin = fuzz::now();
    const int code = wait(channel, kSecondsAtMost);
    if (code == TFDIST_TIMEOUT && fuzz::now() - begin >= kSecondsAtMost) fuzz::die("nobody is there, and it still waits");
    const tfdist_span span{collective.values.data(), kElements};
    if (collective.ticket > 0) tfdist_finish(group_, collective.ticket, &span, 1);
  }

  // What the frames of a collective carry: read from the first that the engine itself sends.
  Known known(uint64_t channel) {
    start(channel);
    wait(channel, 0.01);
    FrameHeader header;
    if (recv(peers_[0], &header, sizeof(header), MSG_WAITALL) != sizeof(header)) fuzz::die("no frame to learn from");
    return {header.tag, header.signature};
  }

 private:
  // Of a ring of two; or everything is received, and a chunk copied.
  void load() {
    const std::vector<int32_t> ring{TFDIST_SEND, 1, 1, -1, TFDIST_RECEIVE_REDUCE_LAST, 1, 0, -1,
                                    TFDIST_SEND, 1, 0, -1, TFDIST_RECEIVE, 1, 1, -1};
    const std::vector<int32_t> receives{TFDIST_SEND, 1, 0, -1, TFDIST_RECEIVE, 1, 1, -1,
                                        TFDIST_COPY, -1, 0, 1, TFDIST_RECEIVE_REDUCE, 1, 1, -1};
    const std::vector<int32_t>& table = (choice_ & kReceives) ? receives : ring;
    plan_ = tfdist_group_load_plan(group_, table.data(), static_cast<int32_t>(table.size() / 4), 2);
    if (plan_ < 0) fuzz::die("no plan");
  }

  const uint8_t choice_;
  const int num_streams_;
  std::vector<int> peers_;
  tfdist_group* group_ = nullptr;
  int32_t plan_ = 0;
  std::array<Collective, 2> collectives_;
};

// Those of the settings that a frame's tag and signature depend on.
const std::array<Known, 2>& known_of(uint8_t choice) {
  static std::array<std::array<Known, 2>, 256> all;
  std::array<Known, 2>& known = all[choice];
  if (known[0].tag != 0) return known;
  for (uint64_t channel : {1, 2}) known[channel - 1] = Target(choice).known(channel);
  return known;
}

std::string frame(Reader* reader, uint8_t how, const std::array<Known, 2>& known) {
  FrameHeader header;
  const uint8_t type = reader->byte(), tag = reader->byte();
  header.type = static_cast<FrameType>((how & kKeepMagic) ? type : 1 + (type - 1u) % 9);
  header.message = reader->byte();
  header.offset = reader->number<uint32_t>();
  header.length = reader->number<uint32_t>();
  header.tag = tag < known.size() ? known[tag].tag : tag;
  header.signature = (how & kBadSignature) || tag >= known.size() ? tag : known[tag].signature;
  if (how & kKeepMagic) header.magic ^= type;
  const bool is_data = header.type == FrameType::kData;
  if ((how & kKeepMagic) == 0) header.length %= (is_data ? tfdist::kDataBytesAtMost : tfdist::kTextBytesAtMost) + 1;
  header.check = (how & kKeepCheck) ? type : header.expected_check();
  std::string bytes;
  fuzz::append(&bytes, header);
  const size_t length = std::min<size_t>(header.length, tfdist::kDataBytesAtMost);
  return bytes + std::string((how & kCutShort) ? length / 2 : length, static_cast<char>(0x3f));
}

std::string record(int how, int type, int tag, int message, uint32_t offset, uint32_t length) {
  std::string text;
  for (int value : {how, type, tag, message}) text += static_cast<char>(value);
  fuzz::append(&text, offset);
  fuzz::append(&text, length);
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader reader(data, size);
  const uint8_t choice = reader.byte() & 63;
  const std::array<Known, 2>& known = known_of(choice);
  std::array<std::string, 2> streams;
  while (!reader.is_over() && streams[0].size() + streams[1].size() < fuzz::kSentAtMost) {
    const uint8_t how = reader.byte();
    std::string& stream = streams[(how & kSecondStream) && (choice & kTwoStreams) ? 1 : 0];
    stream += (how & kRaw) ? reader.take(reader.byte()) : frame(&reader, how, known);
  }
  Target target(choice);
  target.start(1);
  target.send(streams);
  // The engine's thread, or we as a waiter, take what has come before the second collective begins.
  if ((choice & kInThread) == 0) target.wait(1, 0.001);
  target.start(2);
  target.wait(2, 0.001);
  target.hang_up();
  target.end(1);
  target.end(2);
  return 0;
}

std::vector<std::string> fuzz::seeds() {
  std::vector<std::string> all{""};
  for (uint8_t choice = 0; choice < 64; choice += 3) {
    const uint32_t bytes = 2500u * ((choice & kBytes) ? 1 : (choice & kHalf) ? 2 : 4);
    std::string both(1, static_cast<char>(choice));
    for (int message = 0; message < 2; ++message) {
      for (int tag = 0; tag < 2; ++tag) {
        both += record(0, 1, tag, message, 0, bytes / 2);
        both += record(message, 1, tag, message, bytes / 2, bytes - bytes / 2);
      }
    }
    all.push_back(both);
    all.push_back(both + record(0, 6, 0, 0, 0, 0) + record(1, 6, 0, 0, 0, 0));  // goodbye
    std::string talk(1, static_cast<char>(choice));
    for (int type = 2; type <= 9; ++type) talk += record(0, type, type % 3, 2, 1, 30);
    all.push_back(talk);
    all.push_back(std::string(1, static_cast<char>(choice)) + record(0, 5, 0, 2, 1, 10));  // an abort
    all.push_back(std::string(1, static_cast<char>(choice)) + record(kCutShort, 1, 0, 0, 0, bytes));
    all.push_back(std::string(1, static_cast<char>(choice)) + record(kBadSignature, 1, 1, 0, 0, 64));
    all.push_back(std::string(1, static_cast<char>(choice)) + "\x02\x10GET / HTTP/1.1\r\n");
  }
  return all;
}
