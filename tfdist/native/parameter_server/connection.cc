#include "parameter_server/connection.h"

#include <algorithm>
#include <cstring>

namespace tfdist {
namespace {

constexpr size_t kPartBytes = 1 << 21;  // of an answer in shared memory: the worker copies it while the next is made
constexpr size_t kRowBytesAtMost = size_t{1} << 32;

size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }

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
  while (done(channel_->await()) && serve_one()) {
  }
}

bool Connection::serve_one() {
  if (!receive_request()) return false;
  switch (push_.header.kind) {
    case RequestKind::kExchange: return exchange();
    case RequestKind::kRead:
    case RequestKind::kWrite: return read_or_write();
    case RequestKind::kRows: return send_rows();
  }
  return false;
}

// What is not understood ends the connection: nothing that follows could be.
bool Connection::receive_request() {
  RequestHeader& header = push_.header;
  if (!done(channel_->receive(&header, sizeof(header)))) return false;
  store_ = server_->store(header.store);
  const bool is_header = header.magic == kRequestMagic && header.version == 1 && header.check == check_of(header) &&
                         store_ != nullptr && header.num_entries <= kEntriesAtMost && header.row_bytes <= kRowBytesAtMost;
  if (!is_header) return false;
  push_.worker = worker_;
  push_.entries.resize(header.num_entries);
  if (!done(channel_->receive(push_.entries.data(), header.num_entries * sizeof(Entry)))) return false;
  if (!is_sound()) return false;
  rows_.resize(header.row_bytes);
  if (!done(channel_->receive(rows_.data(), rows_.size()))) return false;
  return receive_dense();
}

bool Connection::is_sound() const {
  size_t row_bytes = 0;
  for (const Entry& entry : push_.entries) {
    if (entry.shard >= store_->num_shards() || entry.num_rows < 0 || entry.num_rows > (int64_t{1} << 32)) return false;
    if (entry.kind == EntryKind::kDense) continue;
    if (entry.kind != EntryKind::kRows) return false;
    const auto count = static_cast<size_t>(entry.num_rows);
    row_bytes += count * sizeof(int64_t);
    const bool has_values = push_.header.kind == RequestKind::kExchange;
    if (has_values) row_bytes += padded(count * store_->shard(entry.shard).row_bytes());
  }
  return row_bytes == push_.header.row_bytes;
}

bool Connection::travels(size_t entry) const {
  return push_.entries[entry].kind == EntryKind::kDense && (push_.entries[entry].flags & kPush) != 0;
}

bool Connection::receive_dense() {
  const RequestHeader& header = push_.header;
  const bool is_shared = (header.flags & kShared) != 0;
  if (lay_out(store_, push_.entries, &offsets_) != header.dense_bytes) return false;
  Memory* window = is_shared ? server_->window(header.store, worker_) : &received_;
  if (is_shared && (window == nullptr || window->bytes() < header.dense_bytes)) return false;
  if (!is_shared && received_.bytes() < header.dense_bytes) received_ = Memory(header.dense_bytes);
  push_.window = window->data();
  push_.gradients.clear();
  const char* next = rows_.data();
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    const Entry& entry = push_.entries[i];
    Gradient gradient;
    if (entry.kind == EntryKind::kDense) {
      gradient.dense = push_.window + offsets_[i];
    } else {
      gradient.num_rows = entry.num_rows;
      gradient.rows = reinterpret_cast<const int64_t*>(next);
      next += static_cast<size_t>(entry.num_rows) * sizeof(int64_t);
      gradient.values = next;
      if (header.kind == RequestKind::kExchange) {
        next += padded(static_cast<size_t>(entry.num_rows) * store_->shard(entry.shard).row_bytes());
      }
    }
    push_.gradients.push_back(gradient);
    if (is_shared || !travels(i)) continue;
    if (!done(channel_->receive(push_.window + offsets_[i], store_->shard(entry.shard).bytes()))) return false;
  }
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
  const bool pushes = std::any_of(push_.entries.begin(), push_.entries.end(),
                                  [](const Entry& entry) { return (entry.flags & kPush) != 0; });
  Outcome outcome;
  outcome.updates = store_->updates();
  bool is_fresh = false;  // the window holds the parameters already
  if (!pushes) {
  } else if (store_->mode == TFDIST_SYNCHRONOUS) {
    outcome = store_->contribute(&push_, server_->timeout_seconds());
  } else if (store_->is_hosted()) {
    outcome = store_->begin(push_);
    store_->apply_hosted(push_, &outcome);
    if (outcome.code == TFDIST_OK && store_->mode == TFDIST_BOUNDED) {
      store_->wait_for_slower(worker_, server_->timeout_seconds(), &outcome);
    }
  } else {
    outcome = store_->begin(push_);
    const bool is_bounded = store_->mode == TFDIST_BOUNDED;
    if (!is_bounded && !reply(outcome, 0, push_.header.dense_bytes)) return false;
    for (size_t i = 0, sent = 0; i < push_.entries.size(); ++i) {
      char* fresh = (push_.entries[i].flags & kPull) != 0 ? push_.window + offsets_[i] : nullptr;
      if ((push_.entries[i].flags & kPush) != 0) {
        store_->apply(push_, outcome, i, fresh);
      } else if (fresh != nullptr) {
        store_->shard(push_.entries[i].shard).read(worker_, fresh);
      }
      const bool is_last = i + 1 == push_.entries.size();
      const size_t end = is_last ? push_.header.dense_bytes : offsets_[i + 1];
      if (is_bounded || (!is_last && end - sent < kPartBytes)) continue;
      if (!send_dense(sent, end, is_last)) return false;
      sent = end;
    }
    if (!is_bounded) return true;
    is_fresh = !store_->wait_for_slower(worker_, server_->timeout_seconds(), &outcome);
  }
  if (outcome.code != TFDIST_OK) return refuse(outcome.code, outcome.text);
  outcome.updates = std::max(outcome.updates, is_fresh ? outcome.updates : store_->updates());
  if (!reply(outcome, 0, push_.header.dense_bytes)) return false;
  for (size_t i = 0; i < push_.entries.size() && !is_fresh; ++i) {
    if ((push_.entries[i].flags & kPull) == 0) continue;
    store_->shard(push_.entries[i].shard).read(worker_, push_.window + offsets_[i]);
  }
  return send_dense(0, push_.header.dense_bytes, true);
}

// In shared memory a word tells how far the answer reaches; else the answer itself follows.
bool Connection::send_dense(size_t begin, size_t end, bool is_whole) {
  if ((push_.header.flags & kShared) != 0) {
    const uint64_t reach = is_whole ? push_.header.dense_bytes : end;
    return push_.header.dense_bytes == 0 || done(channel_->send(&reach, sizeof(reach)));
  }
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    if (offsets_[i] < begin || offsets_[i] >= end || (push_.entries[i].flags & kPull) == 0) continue;
    if (!done(channel_->send(push_.window + offsets_[i], store_->shard(push_.entries[i].shard).bytes()))) return false;
  }
  return true;
}

bool Connection::read_or_write() {
  const int slot = push_.header.slot;
  const bool writes = push_.header.kind == RequestKind::kWrite;
  for (size_t i = 0; i < push_.entries.size(); ++i) {
    Shard& shard = store_->shard(push_.entries[i].shard);
    if (shard.array(slot) == nullptr) {
      return refuse(TFDIST_INVALID, "array " + std::to_string(slot) + " of " + shard.name);
    }
    if (writes) {
      shard.write(slot, push_.window + offsets_[i]);
    } else if (slot == 0) {
      shard.read(worker_, push_.window + offsets_[i]);
    } else {
      std::lock_guard<std::mutex> lock(shard.mutex);
      std::memcpy(push_.window + offsets_[i], shard.array(slot)->data(), shard.bytes());
    }
  }
  Outcome outcome;
  outcome.updates = store_->updates();
  if (!reply(outcome, 0, writes ? 0 : push_.header.dense_bytes)) return false;
  return writes || send_dense(0, push_.header.dense_bytes, true);
}

bool Connection::send_rows() {
  std::string text;
  if (!check_rows(&text)) return refuse(TFDIST_INVALID, text);
  size_t bytes = 0;
  for (const Entry& entry : push_.entries) {
    bytes += padded(static_cast<size_t>(entry.num_rows) * store_->shard(entry.shard).row_bytes());
  }
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
  header.text_bytes = static_cast<uint32_t>(outcome.text.size());
  header.is_dropped = outcome.is_dropped;
  header.updates = outcome.updates;
  header.staleness = outcome.staleness;
  header.waited_seconds = outcome.waited_seconds;
  header.row_bytes = row_bytes;
  header.dense_bytes = dense_bytes;
  header.check = check_of(header);
  iovec parts[2] = {{&header, sizeof(header)}, {const_cast<char*>(outcome.text.data()), outcome.text.size()}};
  return done(channel_->send(parts, 2));
}

bool Connection::refuse(int code, const std::string& text) {
  Outcome outcome;
  outcome.code = code;
  outcome.text = text;
  return reply(outcome, 0, 0);
}

}  // namespace tfdist
