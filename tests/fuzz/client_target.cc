// A parameter server that answers a worker what it likes.
//
// Byte 0 of an input chooses what the worker asks; then records follow, answers on the connection that `how` names:
//   how, code, words: u8; text, rows, dense: u32          an answer whose text and values are made here
//   how with kRaw, length: u8, bytes                      as they are
#include "fuzz.h"
#include "parameter_server/protocol.h"
#include "tfdist.h"

namespace {

using namespace tfdist;
using fuzz::Reader;

enum How : uint8_t { kRaw = 1, kKeepCheck = 2, kOfRows = 4, kCutShort = 8 };
enum Choice : uint8_t { kPrefetch = 1, kSparse = 2, kReads = 4, kStands = 8 };

constexpr int64_t kElements = 3000, kRowElements = 4;
constexpr double kSecondsAtMost = 8;
constexpr size_t kAnsweredAtMost = 1 << 16;  // with the last answer it fits into the buffers of a socket: the worker asks afterwards

class Target {
 public:
  explicit Target(uint8_t choice) {
    int32_t sockets[2];
    for (int i = 0; i < 2; ++i) {
      int pair[2];
      if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) fuzz::die("no socket");
      sockets[i] = pair[0];
      peers_[i] = pair[1];
    }
    const char* address = "here";
    client_ = tfdist_client_create(0, 1, &address, sockets, (choice & kStands) ? 0.05 : 2.0);
    const tfdist_client_part part{0, 0, 0, kElements};
    const tfdist_client_tensor tensor{"tensor", TFDIST_FLOAT32, 1, kRowElements, &part};
    const int32_t number = 0;
    const int64_t window_bytes = (kElements * 4 + 63) / 64 * 64;
    const tfdist_client_store store{&tensor, 1, &number, nullptr, &window_bytes, 0, (choice & kStands) ? 2 : 0, 0};
    if (tfdist_client_add_store(client_, &store) != 0) fuzz::die("no store");
    tfdist_client_begin_generation(client_, 0, 1, 0);
  }
  ~Target() {
    tfdist_client_close(client_);
    tfdist_client_release(client_);
    for (int peer : peers_) close(peer);
  }

  void answer(const std::string* bytes) {
    for (int i = 0; i < 2; ++i) {
      fuzz::send_all(peers_[i], bytes[i]);
      shutdown(peers_[i], SHUT_WR);
    }
  }

  void ask(uint8_t choice) {
    tfdist_exchange_result result;
    std::vector<float> gradient(kElements, 1.0f), fresh(kElements), rows(2 * kRowElements);
    const int64_t indices[] = {1, 700};
    const tfdist_exchange_dense dense{0, 0, gradient.data(), gradient.data(), fresh.data()};
    const tfdist_exchange_rows sparse{0, 0, indices, rows.data(), 2, gradient.data(), fresh.data()};
    tfdist_exchange call{};
    if (choice & kSparse) {
      call.rows = &sparse;
      call.num_rows = 1;
    } else {
      call.dense = &dense;
      call.num_dense = 1;
    }
    call.is_pushed = 1;
    call.prefetch = (choice & kPrefetch) != 0;
    const tfdist_span span{fresh.data(), kElements};
    const double begin = fuzz::now();
    if (choice & kReads) tfdist_client_transfer(client_, 0, 0, 0, &span, nullptr, 1, &result);
    tfdist_client_exchange(client_, 0, &call, &result);
    tfdist_client_exchange(client_, 0, &call, &result);
    tfdist_client_pull_rows(client_, 0, 0, indices, 2, rows.data(), &result);
    tfdist_client_flush(client_, 0, nullptr, 0, &result);
    if (fuzz::now() - begin > kSecondsAtMost) fuzz::die("the server has gone, and the worker still waits");
    if (std::memchr(result.text, 0, sizeof(result.text)) == nullptr) fuzz::die("a text without an end");
  }

 private:
  int peers_[2];
  tfdist_client* client_ = nullptr;
};

std::string reply(Reader* reader, uint8_t how) {
  ReplyHeader header;
  header.code = reader->number<int8_t>();
  header.is_dropped = reader->byte();
  header.text_bytes = reader->number<uint32_t>();
  header.row_bytes = reader->number<uint32_t>();
  header.dense_bytes = reader->number<uint32_t>();
  header.check = (how & kKeepCheck) ? 0 : check_of(header);
  std::string bytes;
  fuzz::append(&bytes, header);
  const size_t follows = header.code != TFDIST_OK ? header.text_bytes : size_t{header.row_bytes} + header.dense_bytes;
  const size_t sent = std::min<size_t>(follows, 1 << 15);
  return bytes + std::string((how & kCutShort) ? sent / 2 : sent, 'x');
}

std::string record(int how, int code, uint32_t text, uint32_t rows, uint32_t dense) {
  std::string bytes;
  for (int value : {how, code, 0}) bytes += static_cast<char>(value);
  for (uint32_t value : {text, rows, dense}) fuzz::append(&bytes, value);
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader reader(data, size);
  const uint8_t choice = reader.byte();
  std::string bytes[2];
  while (!reader.is_over() && bytes[0].size() + bytes[1].size() < kAnsweredAtMost) {
    const uint8_t how = reader.byte();
    bytes[(how & kOfRows) ? 1 : 0] += (how & kRaw) ? reader.take(reader.byte()) : reply(&reader, how);
  }
  Target target(choice);
  target.answer(bytes);
  target.ask(choice);
  return 0;
}

std::vector<std::string> fuzz::seeds() {
  std::vector<std::string> all{""};
  const uint32_t dense = kElements * 4;
  for (int choice = 0; choice < 16; ++choice) {
    const std::string head(1, static_cast<char>(choice));
    const std::string good = record(0, 0, 0, 0, dense), rows = record(kOfRows, 0, 0, 2 * kRowElements * 4, 0);
    all.push_back(head + good + good + good + rows);
    all.push_back(head + good + record(0, TFDIST_STALE, 40, 0, 0) + record(kOfRows, TFDIST_INVALID, 5000, 0, 0));
    all.push_back(head + record(kCutShort, 0, 0, 0, dense));
    all.push_back(head + record(kKeepCheck, 0, 0, 0, dense));
    all.push_back(head + record(0, TFDIST_TIMEOUT, 0xffffffff, 0, 0));
    all.push_back(head + record(kOfRows, 0, 0, 0xffffff00, 0xffffff00));
  }
  return all;
}
