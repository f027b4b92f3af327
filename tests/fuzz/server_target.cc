// A worker that sends a parameter server what it likes.
//
// Byte 0 of an input chooses the store; then records follow:
//   how, kind, flags, count, slot, generation, sequence, base: u8, then `count` times
//   shard, kind, flags, rows: u8                          a request whose rows and values are made here
//   how with kRaw, length: u8, bytes                      as they are
// Sizes and the check are filled in unless `how` says otherwise.
#include <sys/mman.h>

#include <limits>

#include "fuzz.h"
#include "parameter_server/protocol.h"
#include "tfdist.h"

namespace {

using namespace tfdist;
using fuzz::Reader;

enum How : uint8_t { kRaw = 1, kKeepCheck = 2, kOwnRowBytes = 4, kOwnDenseBytes = 8, kBadRows = 16, kCutShort = 32 };
enum Choice : uint8_t { kWindow = 4, kTwoWorkers = 8, kHosted = 16, kExtras = 32 };

constexpr double kSecondsAtMost = 10;
constexpr int64_t kElements[] = {1000, 400, 1}, kRowElements[] = {1, 4, 1};
constexpr int kShards = 3;
constexpr uint64_t kClient = 7;

size_t bytes_of(int shard) { return static_cast<size_t>(kElements[shard]) * sizeof(float); }

int32_t refuse_odd(void*, const tfdist_hosted_gradient* gradients, int32_t num_gradients, double, char* text, int64_t) {
  for (int32_t i = 0; i < num_gradients; ++i) {
    if (gradients[i].shard % 2 == 0) continue;
    text[0] = '!';
    return TFDIST_INVALID;
  }
  return TFDIST_OK;
}

class Target {
 public:
  explicit Target(uint8_t choice) : server_(tfdist_server_create(0.05)) {
    const int num_workers = (choice & kTwoWorkers) ? 2 : 1;
    std::vector<tfdist_shard> shards;
    for (int i = 0; i < kShards; ++i) {
      const tfdist_rule rule{(choice & kExtras) ? TFDIST_RULE_ADAM : TFDIST_RULE_SGD, 0, {0.9, 0.99, 1e-7}};
      shards.push_back({"tensor", TFDIST_FLOAT32, 1, (choice & kHosted) != 0, 0, kElements[i], kRowElements[i], rule});
    }
    const double weights[] = {1, 0.5};
    tfdist_store_options options{};
    options.mode = choice % 3;
    options.num_workers = num_workers;
    options.num_step_weights = 2;
    options.step_weights = weights;
    options.average_momentum = (choice & kExtras) ? 0.9 : -1;
    options.average_overwrites = 2;
    options.compensation = (choice & kExtras) && options.mode != TFDIST_SYNCHRONOUS ? 0.1 : 0;
    options.host = (choice & kHosted) ? refuse_odd : nullptr;
    if (tfdist_server_add_store(server_, &options, shards.data(), kShards) != 0) fuzz::die("no store");
    tfdist_server_begin_generation(server_, 0, 1, 0);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) fuzz::die("no socket");
    for (int i = 0; i < num_workers; ++i) tfdist_server_set_active(server_, 0, i, kClient, 1);
    if (choice & kWindow) share();
    tfdist_server_serve(server_, pair[1], 0, kClient);
    peer_ = pair[0];
  }
  ~Target() {
    close(peer_);
    tfdist_server_release(server_);
  }

  void serve(const std::string& bytes) {
    fuzz::send_all(peer_, bytes);
    shutdown(peer_, SHUT_WR);
    const double deadline = fuzz::now() + kSecondsAtMost;
    while (fuzz::drain(peer_)) {
      if (fuzz::now() > deadline) fuzz::die("the worker has gone, and the server still serves it");
      pollfd waited{peer_, POLLIN, 0};
      poll(&waited, 1, 1000);
    }
  }

 private:
  void share() {
    const int window = memfd_create("window", MFD_CLOEXEC);
    if (window < 0 || ftruncate(window, 1 << 16) != 0) fuzz::die("no memory");
    tfdist_server_share_window(server_, 0, 0, window);
    close(window);
  }

  tfdist_server* const server_;
  int peer_ = -1;
};

std::string request(Reader* reader, uint8_t how, size_t num_workers) {
  RequestHeader header;
  header.kind = static_cast<RequestKind>(reader->byte());
  header.flags = reader->byte();
  const uint8_t count = reader->byte();
  header.num_entries = count;
  header.slot = reader->number<int8_t>();
  header.generation = reader->byte();
  header.sequence = reader->byte();
  header.base = reader->number<int8_t>();
  header.learning_rate = 0.1;
  std::string entries, rows, values;
  for (int i = 0; i < count && !reader->is_over(); ++i) {
    Entry entry;
    entry.shard = reader->byte();
    entry.kind = static_cast<EntryKind>(reader->byte());
    entry.flags = reader->byte();
    entry.num_rows = reader->byte();
    fuzz::append(&entries, entry);
    const int shard = static_cast<int>(entry.shard % kShards);
    const bool is_dense = entry.kind == EntryKind::kDense, pushes = (entry.flags & kPush) != 0;
    if (is_dense && pushes && (header.flags & kShared) == 0) values += std::string(bytes_of(shard), '\x3f');
    if (is_dense || (entry.flags & kPull) != 0) header.dense_bytes += aligned(bytes_of(shard));
    if (is_dense) continue;
    for (int64_t row = 0; row < entry.num_rows; ++row) fuzz::append(&rows, (how & kBadRows) ? row * 1000 - 3 : row % 100);
    const size_t size = static_cast<size_t>(entry.num_rows * kRowElements[shard]) * sizeof(float);
    if (header.kind == RequestKind::kExchange) rows += std::string((size + 7) / 8 * 8, '\x3f');
  }
  if (header.kind == RequestKind::kOffer) rows = std::string((1 + count) * stamp_words(num_workers) * 8, '\1');
  header.row_bytes = (how & kOwnRowBytes) ? reader->number<uint64_t>() : rows.size();
  if (how & kOwnDenseBytes) header.dense_bytes = reader->number<uint64_t>();
  if (how & kOwnRowBytes) header.num_entries = reader->number<uint32_t>();
  header.check = (how & kKeepCheck) ? 0 : check_of(header);
  std::string bytes;
  fuzz::append(&bytes, header);
  bytes += entries + rows + values;
  return (how & kCutShort) ? bytes.substr(0, bytes.size() / 2) : bytes;
}

std::string record(int how, int kind, int flags, int slot, int sequence, const std::vector<std::vector<int>>& entries) {
  std::string text;
  for (int value : {how, kind, flags, static_cast<int>(entries.size()), slot, 1, sequence, 0}) text += static_cast<char>(value);
  for (const auto& entry : entries) {
    for (int value : entry) text += static_cast<char>(value);
  }
  return text;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader reader(data, size);
  const uint8_t choice = reader.byte() & 63;
  Target target(choice);
  std::string bytes;
  while (!reader.is_over() && bytes.size() < fuzz::kSentAtMost) {
    const uint8_t how = reader.byte();
    bytes += (how & kRaw) ? reader.take(reader.byte()) : request(&reader, how, (choice & kTwoWorkers) ? 2 : 1);
  }
  target.serve(bytes);
  return 0;
}

std::vector<std::string> fuzz::seeds() {
  const std::vector<std::vector<int>> dense{{0, 0, 3, 0}, {1, 0, 3, 0}, {2, 0, 3, 0}};
  const std::vector<std::vector<int>> mixed{{0, 0, 3, 0}, {1, 1, 3, 5}}, pulled{{0, 0, 2, 0}, {2, 0, 2, 0}};
  const std::vector<std::vector<int>> pushed{{0, 0, 1, 0}, {2, 0, 1, 0}}, rows{{1, 1, 0, 6}};
  std::vector<std::string> all{""};
  for (int choice = 0; choice < 64; choice += 5) {
    const std::string head(1, static_cast<char>(choice));
    const int shared = (choice & kWindow) ? 1 : 0;
    all.push_back(head + record(0, 1, shared, 0, 1, dense) + record(0, 1, 0, 0, 2, mixed) + record(0, 1, 2, 0, 2, dense));
    all.push_back(head + record(0, 2, shared, 0, 0, pulled) + record(0, 2, 0, 1, 0, pulled) + record(0, 3, 0, 0, 0, pushed));
    all.push_back(head + record(0, 4, 0, 0, 0, rows) + record(kBadRows, 4, 0, 0, 0, rows) + record(kBadRows, 1, 0, 0, 1, mixed));
    all.push_back(head + record(0, 5, 0, 0, 1, pushed) + record(0, 1, 4, 0, 1, mixed) + record(0, 2, 4 | shared, 0, 0, pulled));
    all.push_back(head + record(kCutShort, 1, 0, 0, 1, dense));
    std::string huge = head + record(kOwnRowBytes | kOwnDenseBytes, 1, 0, 0, 1, rows);
    fuzz::append(&huge, uint64_t{1} << 32);
    fuzz::append(&huge, std::numeric_limits<uint64_t>::max());
    fuzz::append(&huge, uint32_t{1} << 20);
    all.push_back(huge);
    all.push_back(head + record(kKeepCheck, 1, 0, 0, 1, dense));
  }
  return all;
}
