#include "parameter_server/connection.h"

#include <algorithm>
#include <exception>

namespace tfdist {
namespace {

constexpr size_t kPartBytes = 1 << 21;  // of an answer in shared memory: the worker copies it while the next is made
constexpr size_t kRowBytesAtMost = size_t{1} << 32;
constexpr size_t kRowPartBytes = size_t{1} << 24;
constexpr int64_t kRowsAtMost = int64_t{1} << 32;

}  // namespace

size_t lay_out(Store* store, const std::vector<Entry>& entries, std::vector<size_t>* offsets) {
  size_t end = 0;
  offsets->clear();
  for (const Entry& entry : entries) {
    offsets->push_back(end);
    const bool is_there = entry.kind == EntryKind::kDense || (entry.flags & kPull) != 0;
    if (is_there) end += aligned(store->shard(entry.shard).bytes());
  }
  return end;
}

void Connection::serve() {
  try {
    while (done(channel_->await()) && serve_one()) {
    }
  } catch (const std::exception& error) {  // there is no memory for what is asked
    refuse(TFDIST_INVALID, std::string("the request could not be served: ") + error.what());
  }
}

bool Connection::serve_one() {
  if (!receive_request()) return false;
  switch (push_.header.kind) {
    case RequestKind::kExchange: return exchange();
    case RequestKind::kRead:
    case RequestKind::kWrite: return read_or_write();
    case RequestKind::kRows: return send_rows();
    case RequestKind::kOffer: return take_offer();
  }
  return false;
}

// What is not understood ends the connection, after a word about it: nothing that follows could be understood.
bool Connection::receive_request() {
  RequestHeader& header = push_.header;
  if (!done(channel_->receive(&header, sizeof(header)))) return false;
  store_ = server_->store(header.store);
  const bool is_header = header.magic == kRequestMagic && header.version == 1 && header.check == check_of(header) &&
                         store_ != nullptr && header.num_entries <= store_->num_shards() &&
                         header.row_bytes <= kRowBytesAtMost && header.base >= 0;
  if (!is_header) return give_up("its header");
  push_.worker = worker_;
  push_.client = client_;
  push_.entries.resize(header.num_entries);
  if (!done(channel_->receive(push_.entries.data(), header.num_entries * sizeof(Entry)))) return false;
  if (!is_sound()) return give_up("its list of tensors");
  if (lay_out(store_, push_.entries, &offsets_) != header.dense_bytes) return give_up("its size");
  if (!open_window()) return give_up("its window of shared memory");
  return receive_rows() && receive_dense();
}

// Memory is taken as bytes come, not as they are announced.
bool Connection::receive_rows() {
  rows_.clear();
  while (rows_.size() < push_.header.row_bytes) {
    const size_t begin = rows_.size(), bytes = std::min<size_t>(push_.header.row_bytes - begin, kRowPartBytes);
    rows_.resize(begin + bytes);
    if (!done(channel_->receive(rows_.data() + begin, bytes))) return false;
  }
  return true;
}

bool Connection::give_up(const char* what) {
  refuse(TFDIST_INVALID, std::string("a request cannot be understood: ") + what + " makes no sense");
  return false;
}

bool Connection::is_sound() const {
  const RequestKind kind = push_.header.kind;
  const bool is_exchange = kind == RequestKind::kExchange;
  size_t row_bytes = 0;
  for (const Entry& entry : push_.entries) {
    const bool is_rows = entry.kind == EntryKind::kRows;
    if (entry.shard >= store_->num_shards() || entry.num_rows < 0 || entry.num_rows > kRowsAtMost) return false;
    if (!is_rows && (entry.kind != EntryKind::kDense || entry.num_rows != 0)) return false;
    if (!is_exchange && is_rows != (kind == RequestKind::kRows)) return false;
    if (kind == RequestKind::kOffer && (entry.flags & ~kPush) != 0) return false;
    if (kind == RequestKind::kRead && entry.flags != kPull) return false;
    if (kind == RequestKind::kWrite && entry.flags != kPush) return false;
    if (kind == RequestKind::kRows && entry.flags != 0) return false;
    row_bytes += bytes_of_rows(entry);
    if (row_bytes > kRowBytesAtMost) return false;
  }
  if (kind == RequestKind::kOffer) row_bytes = (1 + push_.entries.size()) * words() * sizeof(uint64_t);
  return row_bytes == push_.header.row_bytes;
}

// What a request says of an entry's rows: their indices, and values that are pushed.
size_t Connection::bytes_of_rows(const Entry& entry) const {
  if (entry.kind != EntryKind::kRows) return 0;
  const auto count = static_cast<size_t>(entry.num_rows);
  const bool has_values = push_.header.kind == RequestKind::kExchange;
  return count * sizeof(int64_t) + (has_values ? padded(count * store_->shard(entry.shard).row_bytes()) : 0);
}

bool Connection::pushes_dense(size_t entry) const {
  return push_.entries[entry].kind == EntryKind::kDense && (push_.entries[entry].flags & kPush) != 0;
}

bool Connection::open_window() {
  const RequestHeader& header = push_.header;
  if (is_shared()) {
    push_.memory = server_->window(header.store, worker_);
    if (push_.memory == nullptr || push_.memory->bytes() < header.dense_bytes) return false;
  } else {
    if (received_ == nullptr || received_->bytes() < header.dense_bytes) {
      received_ = std::make_shared<Memory>(header.dense_bytes);
    }
    push_.memory = received_;
  }
  push_.window = push_.memory->data();
  return true;
}

bool Connection::receive_dense() {
  push_.gradients.clear();
  const char* next = rows_.data();
  size_t shared_bytes = 0;
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    const Entry& entry = push_.entries[i];
    const size_t bytes = store_->shard(entry.shard).bytes();
    Gradient gradient;
    if (entry.kind == EntryKind::kDense) {
      gradient.dense = push_.window + offsets_[i];
    } else {
      gradient.num_rows = entry.num_rows;
      gradient.rows = reinterpret_cast<const int64_t*>(next);
      gradient.values = next + static_cast<size_t>(entry.num_rows) * sizeof(int64_t);
      next += bytes_of_rows(entry);
    }
    push_.gradients.push_back(gradient);
    if (!pushes_dense(i)) continue;
    shared_bytes += bytes;
    if (!is_shared() && !done(channel_->receive(push_.window + offsets_[i], bytes))) return false;
  }
  if (is_shared()) channel_->count_shared(shared_bytes, 0);
  return true;
}

bool Connection::check_rows(std::string* text) const {
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    if (push_.entries[i].kind != EntryKind::kRows) continue;
    Shard& shard = store_->shard(push_.entries[i].shard);
    const int64_t num_rows = shard.elements / shard.row_elements;
    for (int64_t k = 0; k < push_.gradients[i].num_rows; ++k) {
      const int64_t row = push_.gradients[i].rows[k];
      if (row >= 0 && row < num_rows) continue;
      *text = "row " + std::to_string(row) + " of " + shard.name + ", which has " + std::to_string(num_rows);
      return false;
    }
  }
  return true;
}

bool Connection::exchange() {
  std::string text;
  if (push_.header.generation != store_->generation()) {
    return refuse(TFDIST_STALE, "the gradient was computed for parameters of generation " +
                                    std::to_string(push_.header.generation) + ", the server's are of generation " +
                                    std::to_string(store_->generation()));
  }
  if (!check_rows(&text)) return refuse(TFDIST_INVALID, text);
  store_->wait_until_whole();
  const bool pushes = std::any_of(push_.entries.begin(), push_.entries.end(),
                                  [](const Entry& entry) { return (entry.flags & kPush) != 0; });
  if (!pushes) return answer(Outcome{});
  if (store_->mode == TFDIST_SYNCHRONOUS) return answer(store_->contribute(&push_, server_->timeout_seconds()));
  Outcome outcome = store_->begin(push_);
  if (outcome.code != TFDIST_OK) return answer(outcome);
  if (store_->is_hosted()) {
    store_->apply_hosted(push_, {Source{worker_, push_.header.sequence}}, &outcome);
  } else if (!store_->must_wait(worker_)) {
    return apply_and_send(outcome);
  } else {
    for (size_t i = 0; i < push_.entries.size(); ++i) apply(outcome, i, nullptr);
  }
  finish(outcome);
  if (outcome.code == TFDIST_OK) store_->wait_for_slower(worker_, server_->timeout_seconds(), &outcome);
  return answer(outcome);
}

// Of a push that has counted before, each shard applies what it lacks: its server may have been restored since.
void Connection::apply(const Outcome& begun, size_t entry, char* fresh) {
  uint64_t* stamp = fresh != nullptr ? stamp_of(entry) : nullptr;
  if (is_pushed(push_.entries[entry])) {
    store_->apply(push_, begun, entry, fresh, stamp);
  } else if (fresh != nullptr) {
    store_->shard(push_.entries[entry].shard).read(worker_, fresh, 0, stamp);
  }
}

void Connection::finish(const Outcome& begun) {
  if (!begun.is_repeated) store_->finish(worker_);
}

uint64_t* Connection::stamp_of(size_t entry) {
  if (!is_stamped()) return nullptr;
  stamps_.resize(push_.entries.size() * words());
  return stamps_.data() + entry * words();
}

// An update that has begun is applied to its end, whether or not the worker still listens.
bool Connection::apply_and_send(const Outcome& begun) {
  bool listens = reply(begun, 0, push_.header.dense_bytes);
  listens = send_in_parts(listens, [&](size_t i) { apply(begun, i, pulls(i) ? push_.window + offsets_[i] : nullptr); });
  finish(begun);
  return listens;
}

// The parameters as they are now.
bool Connection::answer(Outcome outcome) {
  if (outcome.code == TFDIST_CLOSED && store_->is_left_in_silence()) return false;
  if (outcome.code != TFDIST_OK) return refuse(outcome.code, outcome.text);
  store_->stamp(&outcome);
  if (!reply(outcome, 0, push_.header.dense_bytes)) return false;
  return send_in_parts(true, [&](size_t i) {
    if (pulls(i)) store_->shard(push_.entries[i].shard).read(worker_, push_.window + offsets_[i], 0, stamp_of(i));
  });
}

// `make` leaves one entry's values in the window; the worker takes them while the next are made.
template <typename Make>
bool Connection::send_in_parts(bool listens, Make make) {
  size_t sent = 0;
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    make(i);
    const bool is_last = i + 1 == push_.entries.size();
    const size_t end = is_last ? push_.header.dense_bytes : offsets_[i + 1];
    if (!is_last && end - sent < kPartBytes) continue;
    listens = listens && send_dense(sent, end);
    sent = end;
  }
  return listens;
}

// In shared memory a word tells how far the answer reaches; else the answer itself follows. Stamps come behind.
bool Connection::send_dense(size_t begin, size_t end) {
  std::vector<uint64_t> told{end};
  size_t shared_bytes = 0;
  if (is_shared() && push_.header.dense_bytes == 0) return true;
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    if (offsets_[i] < begin || offsets_[i] >= end || !pulls(i)) continue;
    const size_t bytes = store_->shard(push_.entries[i].shard).bytes();
    shared_bytes += bytes;
    const uint64_t* stamp = bytes > 0 ? stamp_of(i) : nullptr;
    const size_t stamp_bytes = stamp == nullptr ? 0 : words() * sizeof(*stamp);
    if (is_shared()) {
      if (stamp != nullptr) told.insert(told.end(), stamp, stamp + words());
      continue;
    }
    iovec parts[2] = {{push_.window + offsets_[i], bytes}, {const_cast<uint64_t*>(stamp), stamp_bytes}};
    if (!done(channel_->send(parts, 2))) return false;
  }
  if (!is_shared()) return true;
  channel_->count_shared(0, shared_bytes);
  return done(channel_->send(told.data(), told.size() * sizeof(told[0])));
}

bool Connection::read_or_write() {
  const int slot = push_.header.slot;
  const bool writes = push_.header.kind == RequestKind::kWrite;
  for (const Entry& entry : push_.entries) {
    Shard& shard = store_->shard(entry.shard);
    if (slot < 0 || shard.array(slot) == nullptr) {
      return refuse(TFDIST_INVALID, "there is no array " + std::to_string(slot) + " of " + shard.name);
    }
  }
  if (!writes) store_->wait_until_whole();
  Outcome outcome;
  store_->stamp(&outcome);
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    Shard& shard = store_->shard(push_.entries[i].shard);
    char* window = push_.window + offsets_[i];
    writes ? shard.write(slot, window) : shard.read(worker_, window, slot, stamp_of(i));
  }
  if (!reply(outcome, 0, writes ? 0 : push_.header.dense_bytes)) return false;
  return writes || send_dense(0, push_.header.dense_bytes);
}

// What is offered for other parameters than the server has tells nothing.
bool Connection::take_offer() {
  const auto* stamp = reinterpret_cast<const uint64_t*>(rows_.data());
  const bool is_of_these = push_.header.generation == store_->generation();
  for (size_t i = 0; i < push_.entries.size() && is_of_these; ++i) {
    if (pushes_dense(i)) store_->shard(push_.entries[i].shard).adopt(push_.window + offsets_[i], stamp + (1 + i) * words());
  }
  store_->take_offer(worker_, push_.header.generation, stamp);
  Outcome outcome;
  return reply(outcome, 0, 0);
}

bool Connection::send_rows() {
  std::string text;
  if (!check_rows(&text)) return refuse(TFDIST_INVALID, text);
  size_t bytes = 0;
  for (const Entry& entry : push_.entries) {
    bytes += padded(static_cast<size_t>(entry.num_rows) * store_->shard(entry.shard).row_bytes());
  }
  if (bytes > kRowBytesAtMost) return refuse(TFDIST_INVALID, "rows of " + std::to_string(bytes) + " bytes are too many");
  answer_.resize(bytes);
  char* next = answer_.data();
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    Shard& shard = store_->shard(push_.entries[i].shard);
    shard.read_rows(push_.gradients[i].rows, push_.gradients[i].num_rows, next);
    next += padded(static_cast<size_t>(push_.gradients[i].num_rows) * shard.row_bytes());
  }
  Outcome outcome;
  outcome.updates = store_->updates();
  return reply(outcome, bytes, 0) && done(channel_->send(answer_.data(), bytes));
}

bool Connection::reply(const Outcome& outcome, size_t row_bytes, size_t dense_bytes) {
  ReplyHeader header;
  header.code = outcome.code;
  const void* text = outcome.text.data();
  header.text_bytes = static_cast<uint32_t>(std::min<size_t>(outcome.text.size(), kReplyTextBytesAtMost));
  if (outcome.code == TFDIST_OK) {
    text = outcome.stamp.data();
    header.text_bytes = is_stamped() ? static_cast<uint32_t>(outcome.stamp.size() * sizeof(uint64_t)) : 0;
  }
  header.is_dropped = outcome.is_dropped;
  header.updates = outcome.updates;
  header.staleness = outcome.staleness;
  header.waited_seconds = outcome.waited_seconds;
  header.row_bytes = row_bytes;
  header.dense_bytes = dense_bytes;
  header.check = check_of(header);
  iovec parts[2] = {{&header, sizeof(header)}, {const_cast<void*>(text), header.text_bytes}};
  return done(channel_->send(parts, 2));
}

bool Connection::refuse(int code, const std::string& text) {
  Outcome outcome;
  outcome.code = code;
  outcome.text = text;
  return reply(outcome, 0, 0);
}

}  // namespace tfdist
