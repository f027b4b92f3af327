#include "parameter_server/client.h"

#include <algorithm>
#include <cstring>

#include "common/copy.h"
#include "common/reduce.h"
#include "parameter_server/finite.h"

namespace tfdist {
namespace {

constexpr size_t kSwapBytes = 1 << 14;  // stays in the L1 cache
constexpr int kPartsAtMost = 512;       // of one system call

size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }

int code_of(Channel::Result result) {
  return result == Channel::Result::kDone ? TFDIST_OK : result == Channel::Result::kTimeout ? TFDIST_TIMEOUT : TFDIST_SERVER_LOST;
}

std::vector<int32_t> selection(const tfdist_exchange& call) {
  std::vector<int32_t> tensors;
  for (int32_t i = 0; i < call.num_dense; ++i) tensors.push_back(call.dense[i].tensor);
  for (int32_t i = 0; i < call.num_rows; ++i) {
    if (call.rows[i].fresh != nullptr) tensors.push_back(call.rows[i].tensor);
  }
  return tensors;
}

}  // namespace

Client::Client(int rank, int num_servers, const char* const* addresses, const int* sockets, double timeout_seconds)
    : rank_(rank),
      timeout_seconds_(timeout_seconds),
      addresses_(addresses, addresses + num_servers),
      row_sides_(static_cast<size_t>(num_servers)) {
  for (int server = 0; server < num_servers; ++server) {
    channels_.push_back(std::make_unique<Channel>(sockets[2 * server], timeout_seconds));
    row_channels_.push_back(std::make_unique<Channel>(sockets[2 * server + 1], timeout_seconds));
  }
}

int Client::add_store(const tfdist_client_store& description) {
  auto store = std::make_unique<Store>();
  for (int32_t i = 0; i < description.num_tensors; ++i) {
    const tfdist_client_tensor& tensor = description.tensors[i];
    store->tensors.push_back({tensor.name, tensor.dtype, tensor.row_elements, {}});
    for (int32_t k = 0; k < tensor.num_parts; ++k) {
      const tfdist_client_part& part = tensor.parts[k];
      store->tensors.back().parts.push_back({part.server, static_cast<uint32_t>(part.shard), part.begin, part.elements});
    }
  }
  store->sides.resize(channels_.size());
  for (size_t server = 0; server < channels_.size(); ++server) {
    Side& side = store->sides[server];
    side.store = static_cast<uint32_t>(description.numbers[server]);
    const int window = description.windows == nullptr ? -1 : description.windows[server];
    side.is_shared = window >= 0;
    side.window = Memory(static_cast<size_t>(description.window_bytes[server]), window);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  stores_.push_back(std::move(store));
  return static_cast<int>(stores_.size()) - 1;
}

void Client::begin_generation(int store, uint64_t generation, int64_t updates) {
  std::lock_guard<std::mutex> lock(mutex_);
  find(store)->generation = generation;
  for (Side& side : find(store)->sides) side.updates = updates;
}

void Client::lay_out(Store* store, const tfdist_exchange& call, uint16_t flags) {
  for (Side& side : store->sides) {
    side.entries.clear();
    side.pieces.clear();
    side.rows.clear();
    side.dense_bytes = 0;
  }
  for (int32_t i = 0; i < call.num_dense; ++i) {
    const tfdist_exchange_dense& dense = call.dense[i];
    const ClientTensor& tensor = store->tensors[static_cast<size_t>(dense.tensor)];
    const size_t size = element_size(tensor.dtype);
    const auto at = [](const void* base, size_t offset) {
      return base == nullptr ? nullptr : static_cast<char*>(const_cast<void*>(base)) + offset;
    };
    for (const Part& part : tensor.parts) {
      Side& side = store->sides[static_cast<size_t>(part.server)];
      const size_t begin = static_cast<size_t>(part.begin) * size, bytes = static_cast<size_t>(part.elements) * size;
      side.entries.push_back(Entry{part.shard, EntryKind::kDense, flags, 0});
      side.pieces.push_back(Piece{dense.tensor, side.dense_bytes, bytes, (flags & kPush) ? at(dense.gradient, begin) : nullptr,
                                  at(dense.current, begin), (flags & kPull) ? at(dense.fresh, begin) : nullptr});
      side.dense_bytes += aligned(bytes);
    }
  }
  for (int32_t i = 0; i < call.num_rows; ++i) add_rows(store, call.rows[i], flags);
}

void Client::add_rows(Store* store, const tfdist_exchange_rows& rows, uint16_t flags) {
  const ClientTensor& tensor = store->tensors[static_cast<size_t>(rows.tensor)];
  const size_t size = element_size(tensor.dtype), row_bytes = static_cast<size_t>(tensor.row_elements) * size;
  for (const Part& part : tensor.parts) {
    Side& side = store->sides[static_cast<size_t>(part.server)];
    const int64_t first = part.begin / tensor.row_elements, last = first + part.elements / tensor.row_elements;
    const bool is_outermost = &part == &tensor.parts.back();  // an index out of range is the server's to refuse
    std::vector<int64_t> chosen;
    for (int64_t k = 0; k < rows.num_rows; ++k) {
      const int64_t row = rows.indices[k];
      if ((row >= first && row < last) || (is_outermost && (row >= last || row < 0))) chosen.push_back(k);
    }
    const bool pushes = (flags & kPush) != 0, pulls = rows.fresh != nullptr && (flags & kPull) != 0;
    const size_t begin = side.rows.size(), count = pushes ? chosen.size() : 0;
    side.rows.resize(begin + count * sizeof(int64_t) + padded(count * row_bytes));
    char* next = side.rows.data() + begin;
    for (size_t i = 0; i < count; ++i, next += sizeof(int64_t)) {
      const int64_t row = rows.indices[chosen[i]] - first;
      std::memcpy(next, &row, sizeof(row));
    }
    for (size_t i = 0; i < count; ++i, next += row_bytes) {
      std::memcpy(next, static_cast<const char*>(rows.values) + static_cast<size_t>(chosen[i]) * row_bytes, row_bytes);
    }
    const auto entry_flags = static_cast<uint16_t>((pushes ? kPush : 0) | (pulls ? kPull : 0));
    side.entries.push_back(Entry{part.shard, EntryKind::kRows, entry_flags, static_cast<int64_t>(count)});
    if (!pulls) continue;
    const size_t offset = static_cast<size_t>(part.begin) * size, bytes = static_cast<size_t>(part.elements) * size;
    side.pieces.push_back(Piece{rows.tensor, side.dense_bytes, bytes, nullptr,
                                static_cast<const char*>(rows.current) + offset, static_cast<char*>(rows.fresh) + offset});
    side.dense_bytes += aligned(bytes);
  }
}

// Copies gradients into the window, or exchanges them for the answer that lies there. Returns the tensor whose gradient
// is not finite, or -1.
int32_t Client::fill(const Side& side, const Store& store, bool swaps) {
  int32_t culprit = -1;
  char answer[kSwapBytes];
  for (const Piece& piece : side.pieces) {
    char* window = side.window.data() + piece.offset;
    const int32_t dtype = store.tensors[static_cast<size_t>(piece.tensor)].dtype;
    for (size_t begin = 0; begin < piece.bytes; begin += kSwapBytes) {
      const size_t bytes = std::min(kSwapBytes, piece.bytes - begin);
      if (swaps) copy_bytes(answer, window + begin, bytes);
      if (piece.gradient != nullptr && !copy_finite(dtype, window + begin, piece.gradient + begin, bytes)) {
        if (culprit < 0) culprit = piece.tensor;
      }
      if (swaps && piece.fresh != nullptr) copy_bytes(piece.fresh + begin, answer, bytes);
    }
  }
  return culprit;
}

int Client::send(Side* side, size_t server, const RequestHeader& header) {
  iovec parts[kPartsAtMost] = {{const_cast<RequestHeader*>(&header), sizeof(header)},
                               {side->entries.data(), side->entries.size() * sizeof(Entry)},
                               {side->rows.data(), side->rows.size()}};
  int count = 3;
  Channel& channel = *channels_[server];
  for (size_t i = 0; i < side->pieces.size() && !side->is_shared; ++i) {
    const Piece& piece = side->pieces[i];
    if (piece.gradient == nullptr) continue;
    if (count == kPartsAtMost) {
      const int code = code_of(channel.send(parts, count));
      if (code != TFDIST_OK) return code;
      count = 0;
    }
    parts[count++] = {side->window.data() + piece.offset, piece.bytes};
  }
  return code_of(channel.send(parts, count));
}

int Client::ask(Store* store, size_t server, RequestKind kind, int slot, const tfdist_exchange* call) {
  Side& side = store->sides[server];
  RequestHeader header;
  header.kind = kind;
  header.store = side.store;
  header.num_entries = static_cast<uint32_t>(side.entries.size());
  header.slot = slot;
  header.generation = store->generation;
  header.sequence = store->sequence;
  header.base = side.updates;
  if (call != nullptr) {
    header.learning_rate = call->learning_rate;
    header.weight = call->weight;
    if (call->is_sum) header.flags |= kSum;
  }
  if (side.is_shared) header.flags |= kShared;
  header.row_bytes = side.rows.size();
  header.dense_bytes = side.dense_bytes;
  header.check = check_of(header);
  side.is_asked = true;
  if (side.is_shared || call == nullptr || !call->prefetch) return send(&side, server, header);
  side.pending = std::async(std::launch::async, [this, &side, server, header] {
    int code = send(&side, server, header);
    if (code == TFDIST_OK) code = receive_header(&side, channels_[server].get());
    return code == TFDIST_OK ? receive_pieces(&side, channels_[server].get(), true) : code;
  });
  return TFDIST_OK;
}

int Client::receive_header(Side* side, Channel* channel) {
  int code = code_of(channel->receive(&side->reply, sizeof(side->reply)));
  if (code != TFDIST_OK) return code;
  if (side->reply.magic != kReplyMagic || side->reply.check != check_of(side->reply)) {
    side->text = "the answer cannot be understood";
    return TFDIST_INVALID;
  }
  side->text.resize(side->reply.text_bytes);
  code = code_of(channel->receive(&side->text[0], side->text.size()));
  return code != TFDIST_OK ? code : side->reply.code;
}

// To where they belong, or to the window.
int Client::receive_pieces(Side* side, Channel* channel, bool to_window) {
  uint64_t reach = 0;
  for (const Piece& piece : side->pieces) {
    if (piece.fresh == nullptr) continue;
    char* window = side->window.data() + piece.offset;
    if (!side->is_shared) {
      const int code = code_of(channel->receive(to_window ? window : piece.fresh, piece.bytes));
      if (code != TFDIST_OK) return code;
      continue;
    }
    while (reach < piece.offset + piece.bytes) {
      const int code = code_of(channel->receive(&reach, sizeof(reach)));
      if (code != TFDIST_OK) return code;
    }
    if (!to_window) copy_bytes(piece.fresh, window, piece.bytes);
  }
  while (side->is_shared && reach < side->reply.dense_bytes) {
    const int code = code_of(channel->receive(&reach, sizeof(reach)));
    if (code != TFDIST_OK) return code;
  }
  return TFDIST_OK;
}

int Client::conclude(Store* store, int code, size_t server, tfdist_exchange_result* result) {
  std::memset(result, 0, sizeof(*result));
  result->server = result->culprit = -1;
  for (const Side& side : store->sides) {
    if (side.entries.empty()) continue;
    result->updates = std::max(result->updates, side.updates);
    result->staleness = std::max(result->staleness, side.reply.staleness);
    result->waited_seconds = std::max(result->waited_seconds, side.reply.waited_seconds);
    result->is_dropped |= side.reply.is_dropped != 0;
  }
  return code == TFDIST_OK ? code : fail(code, server, store->sides[server].text, result);
}

int Client::fail(int code, size_t server, const std::string& text, tfdist_exchange_result* result) const {
  result->server = static_cast<int32_t>(server);
  std::string cause = text, remedy;
  if (code == TFDIST_SERVER_LOST) {
    cause = "it closed the connection";
    remedy = " See its output for why it ended.";
  } else if (code == TFDIST_TIMEOUT && text.empty()) {
    cause = "it did not answer within timeout " + std::to_string(static_cast<int>(timeout_seconds_)) + " s";
    remedy = " See whether it runs, and whether the network between is up.";
  }
  const std::string whole = "The exchange with parameter server " + std::to_string(server) + " at " + addresses_[server] +
                            " failed on rank " + std::to_string(rank_) + " after " + std::to_string(result->updates) +
                            " updates: " + cause + "." + remedy;
  std::strncpy(result->text, whole.c_str(), sizeof(result->text) - 1);
  return code;
}

int Client::not_finite(const Store& store, int32_t tensor, tfdist_exchange_result* result) const {
  result->culprit = tensor;
  const std::string whole = "Finite gradients were expected. Received: NaN or infinity in the gradient of " +
                            store.tensors[static_cast<size_t>(tensor)].name + " on rank " + std::to_string(rank_) +
                            " after " + std::to_string(result->updates) +
                            " updates; nothing was pushed. Lower the learning rate, clip the gradients, or leave such "
                            "gradients out by not_finite='skip'.";
  std::strncpy(result->text, whole.c_str(), sizeof(result->text) - 1);
  return TFDIST_NOT_FINITE;
}

int Client::settle(Store* store) {
  int code = TFDIST_OK;
  for (size_t server = 0; server < store->sides.size(); ++server) {
    Side& side = store->sides[server];
    if (!side.is_asked) continue;
    side.is_asked = false;
    int own = TFDIST_OK;
    if (side.pending.valid()) {
      own = side.pending.get();
    } else {
      own = receive_header(&side, channels_[server].get());
      if (own == TFDIST_OK) own = receive_pieces(&side, channels_[server].get(), true);
    }
    if (own != TFDIST_OK && code == TFDIST_OK) {
      code = own;
      failed_ = server;
    }
  }
  return code;
}

int Client::settle_everybody_but(Store* store) {
  for (auto& other : stores_) {
    if (other.get() == store) continue;
    const int code = settle(other.get());
    if (code != TFDIST_OK) return code;
  }
  return TFDIST_OK;
}

int Client::exchange(int index, const tfdist_exchange& call, tfdist_exchange_result* result) {
  std::lock_guard<std::mutex> lock(mutex_);
  Store* store = find(index);
  int code = settle_everybody_but(store);
  if (code == TFDIST_OK) code = settle(store);
  if (code != TFDIST_OK) return conclude(store, code, failed_, result);
  const std::vector<int32_t> chosen = selection(call);
  const bool swaps = store->is_in_flight && call.prefetch && chosen == store->in_flight;
  for (Side& side : store->sides) side.answered = side.reply.updates;
  store->is_in_flight = false;
  lay_out(store, call, call.is_pushed ? kPush | kPull : kPull);
  int32_t culprit = -1;
  for (const Side& side : store->sides) culprit = std::max(culprit, fill(side, *store, swaps));
  for (int32_t i = 0; i < call.num_rows; ++i) {
    const ClientTensor& tensor = store->tensors[static_cast<size_t>(call.rows[i].tensor)];
    const auto bytes = static_cast<size_t>(call.rows[i].num_rows * tensor.row_elements) * element_size(tensor.dtype);
    if (!is_finite(tensor.dtype, call.rows[i].values, bytes)) culprit = call.rows[i].tensor;
  }
  const bool is_bad = culprit >= 0 && call.not_finite != TFDIST_PASS;
  if (is_bad && call.not_finite == TFDIST_RAISE) {
    conclude(store, TFDIST_OK, 0, result);
    return not_finite(*store, culprit, result);
  }
  // Others wait for a synchronous worker, with a gradient or without.
  if (is_bad && !call.is_synchronous) lay_out(store, call, kPull);
  ++store->sequence;
  tfdist_exchange sent = call;
  if (is_bad) sent.weight = 0;
  for (size_t server = 0; server < store->sides.size(); ++server) {
    if (store->sides[server].entries.empty()) continue;
    code = ask(store, server, RequestKind::kExchange, 0, &sent);
    if (code != TFDIST_OK) return conclude(store, code, server, result);
  }
  if (call.prefetch) {
    store->is_in_flight = true;
    store->in_flight = chosen;
    for (Side& side : store->sides) {
      if (swaps) side.updates = side.answered;
      for (const Piece& piece : side.pieces) {
        if (!swaps && piece.fresh != nullptr) copy_bytes(piece.fresh, piece.current, piece.bytes);
      }
    }
    conclude(store, TFDIST_OK, 0, result);
    result->is_skipped = is_bad;
    return TFDIST_OK;
  }
  for (size_t server = 0; server < store->sides.size(); ++server) {
    Side& side = store->sides[server];
    if (!side.is_asked) continue;
    side.is_asked = false;
    code = receive_header(&side, channels_[server].get());
    if (code == TFDIST_OK) code = receive_pieces(&side, channels_[server].get(), false);
    if (code != TFDIST_OK) return conclude(store, code, server, result);
    side.updates = side.reply.updates;
  }
  conclude(store, TFDIST_OK, 0, result);
  result->is_skipped = is_bad;
  return TFDIST_OK;
}

int Client::flush(int index, tfdist_exchange_result* result) {
  std::lock_guard<std::mutex> lock(mutex_);
  Store* store = find(index);
  const int code = settle(store);
  store->is_in_flight = false;
  return conclude(store, code, failed_, result);
}

int Client::transfer(int index, bool writes, int slot, const tfdist_span* spans, int num_spans,
                     tfdist_exchange_result* result) {
  std::lock_guard<std::mutex> lock(mutex_);
  Store* store = find(index);
  int code = settle_everybody_but(store);
  if (code == TFDIST_OK) code = settle(store);
  if (code != TFDIST_OK) return conclude(store, code, failed_, result);
  store->is_in_flight = false;
  std::vector<tfdist_exchange_dense> dense;
  for (int i = 0; i < num_spans; ++i) {
    if (spans[i].data == nullptr) continue;
    dense.push_back({i, 0, writes ? spans[i].data : nullptr, nullptr, writes ? nullptr : spans[i].data});
  }
  tfdist_exchange call{};
  call.dense = dense.data();
  call.num_dense = static_cast<int32_t>(dense.size());
  lay_out(store, call, writes ? kPush : kPull);
  for (size_t server = 0; server < store->sides.size(); ++server) {
    Side& side = store->sides[server];
    if (side.entries.empty()) continue;
    if (writes) fill(side, *store, false);
    code = ask(store, server, writes ? RequestKind::kWrite : RequestKind::kRead, slot, nullptr);
    if (code != TFDIST_OK) return conclude(store, code, server, result);
    side.is_asked = false;
    code = receive_header(&side, channels_[server].get());
    if (code == TFDIST_OK) code = receive_pieces(&side, channels_[server].get(), false);
    if (code != TFDIST_OK) return conclude(store, code, server, result);
    if (slot == 0) side.updates = side.reply.updates;
  }
  return conclude(store, TFDIST_OK, 0, result);
}

int Client::pull_rows(int index, int tensor_index, const int64_t* rows, int64_t num_rows, void* target,
                      tfdist_exchange_result* result) {
  Store* store;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    store = find(index);
  }
  std::lock_guard<std::mutex> lock(row_mutex_);
  const ClientTensor& tensor = store->tensors[static_cast<size_t>(tensor_index)];
  const size_t row_bytes = static_cast<size_t>(tensor.row_elements) * element_size(tensor.dtype);
  std::vector<std::vector<int64_t>> wanted(tensor.parts.size()), positions(tensor.parts.size());
  for (int64_t k = 0; k < num_rows; ++k) {
    size_t p = 0;
    while (p + 1 < tensor.parts.size() && rows[k] * tensor.row_elements >= tensor.parts[p + 1].begin) ++p;
    wanted[p].push_back(rows[k] - tensor.parts[p].begin / tensor.row_elements);
    positions[p].push_back(k);
  }
  std::memset(result, 0, sizeof(*result));
  result->server = result->culprit = -1;
  for (size_t p = 0; p < tensor.parts.size(); ++p) {  // ask all, then read all: the servers work at the same time
    if (wanted[p].empty()) continue;
    const auto server = static_cast<size_t>(tensor.parts[p].server);
    Entry entry{tensor.parts[p].shard, EntryKind::kRows, 0, static_cast<int64_t>(wanted[p].size())};
    RequestHeader header;
    header.kind = RequestKind::kRows;
    header.store = store->sides[server].store;
    header.num_entries = 1;
    header.row_bytes = wanted[p].size() * sizeof(int64_t);
    header.check = check_of(header);
    iovec parts[3] = {{&header, sizeof(header)}, {&entry, sizeof(entry)}, {wanted[p].data(), header.row_bytes}};
    const int code = code_of(row_channels_[server]->send(parts, 3));
    if (code != TFDIST_OK) return fail(code, server, "", result);
  }
  for (size_t p = 0; p < tensor.parts.size(); ++p) {
    if (wanted[p].empty()) continue;
    const auto server = static_cast<size_t>(tensor.parts[p].server);
    Side& side = row_sides_[server];
    int code = receive_header(&side, row_channels_[server].get());
    if (code != TFDIST_OK) return fail(code, server, side.text, result);
    side.rows.resize(side.reply.row_bytes);
    code = code_of(row_channels_[server]->receive(side.rows.data(), side.rows.size()));
    if (code != TFDIST_OK) return fail(code, server, side.text, result);
    for (size_t i = 0; i < positions[p].size(); ++i) {
      std::memcpy(static_cast<char*>(target) + static_cast<size_t>(positions[p][i]) * row_bytes,
                  side.rows.data() + i * row_bytes, row_bytes);
    }
  }
  return TFDIST_OK;
}

void Client::close() {
  for (auto& channel : channels_) channel->shut_down();
  for (auto& channel : row_channels_) channel->shut_down();
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& store : stores_) {
    for (Side& side : store->sides) {
      if (side.pending.valid()) side.pending.wait();
    }
  }
}

}  // namespace tfdist
