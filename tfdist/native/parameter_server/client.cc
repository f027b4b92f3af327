#include "parameter_server/client.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "common/copy.h"

namespace tfdist {
namespace {

constexpr int kPartsAtMost = 512;        // of one system call

std::vector<int32_t> selection(const tfdist_exchange& call) {
  std::vector<int32_t> tensors;
  for (int32_t i = 0; i < call.num_dense; ++i) tensors.push_back(call.dense[i].tensor);
  for (int32_t i = 0; i < call.num_rows; ++i) {
    if (call.rows[i].fresh != nullptr) tensors.push_back(call.rows[i].tensor);
  }
  return tensors;
}

// `spans` are read or written; `current`: null, or what this worker has of the same tensors.
tfdist_exchange of_spans(const tfdist_span* spans, const tfdist_span* current, int num_spans,
                         std::vector<tfdist_exchange_dense>* dense) {
  for (int i = 0; i < num_spans; ++i) {
    void* data = spans == nullptr ? nullptr : spans[i].data;
    if (spans != nullptr && data == nullptr) continue;
    dense->push_back({i, 0, data, current == nullptr ? nullptr : current[i].data, data});
  }
  tfdist_exchange call{};
  call.dense = dense->data();
  call.num_dense = static_cast<int32_t>(dense->size());
  call.offers = current != nullptr;
  return call;
}

}  // namespace

int code_of(Channel* channel, Channel::Result result) {
  if (result == Channel::Result::kDone) return TFDIST_OK;
  channel->shut_down();
  return result == Channel::Result::kTimeout ? TFDIST_TIMEOUT : TFDIST_SERVER_LOST;
}

Client::Client(int rank, int num_servers, const char* const* addresses, const int* sockets, double timeout_seconds)
    : rank_(rank),
      timeout_seconds_(timeout_seconds),
      addresses_(addresses, addresses + num_servers),
      row_sides_(static_cast<size_t>(num_servers)) {
  for (int server = 0; server < num_servers; ++server) {
    const double patience_seconds = kPatienceFactor * timeout_seconds;
    links_.emplace_back();
    links_.back().data = std::make_shared<Channel>(sockets[2 * server], patience_seconds);
    links_.back().rows = std::make_shared<Channel>(sockets[2 * server + 1], patience_seconds);
  }
}

int Client::add_store(const tfdist_client_store& description) {
  auto store = std::make_unique<Store>();
  for (int32_t i = 0; i < description.num_tensors; ++i) {
    const tfdist_client_tensor& tensor = description.tensors[i];
    store->tensors.push_back({tensor.name, tensor.dtype, tensor.row_elements, {}});
    for (int32_t k = 0; k < tensor.num_parts; ++k) {
      const tfdist_client_part& part = tensor.parts[k];
      const auto shard = static_cast<uint32_t>(part.shard);
      store->tensors.back().parts.push_back({part.server, shard, part.begin, part.elements});
    }
  }
  const size_t words = stamp_words(static_cast<size_t>(description.num_workers));
  store->num_workers = static_cast<size_t>(description.num_workers);
  store->sides.resize(addresses_.size());
  for (const ClientTensor& tensor : store->tensors) {
    for (const Part& part : tensor.parts) {
      size_t& num_shards = store->sides[static_cast<size_t>(part.server)].num_shards;
      num_shards = std::max(num_shards, size_t{part.shard} + 1);
    }
  }
  for (size_t server = 0; server < addresses_.size(); ++server) {
    Side& side = store->sides[server];
    side.store_stamp.resize(words);
    side.stamps.resize(side.num_shards * words);
    side.arrived_store_stamp = side.store_stamp;
    side.arrived = side.stamps;
    const int window = description.windows == nullptr ? -1 : description.windows[server];
    side.is_shared = window >= 0;
    side.window = Memory(static_cast<size_t>(description.window_bytes[server]), window);
  }
  store->sequence = description.sequence;
  std::lock_guard<std::mutex> lock(stores_mutex_);
  store->number = stores_.size();
  stores_.push_back(std::move(store));
  std::lock_guard<std::mutex> links_lock(links_mutex_);
  for (size_t server = 0; server < links_.size(); ++server) {
    links_[server].numbers.push_back(static_cast<uint32_t>(description.numbers[server]));
    stores_.back()->sides[server].offered_epoch = links_[server].epoch;
  }
  return static_cast<int>(stores_.size()) - 1;
}

Client::Store* Client::find(int store) {
  std::lock_guard<std::mutex> lock(stores_mutex_);
  return stores_[static_cast<size_t>(store)].get();
}

void Client::begin_generation(int index, uint64_t generation, int64_t updates) {
  std::lock_guard<std::mutex> lock(mutex_);
  Store* store = find(index);
  store->generation = generation;
  store->is_in_flight = false;
  for (Side& side : store->sides) {  // no copy of the parameters before is worth anything
    side.updates = updates;
    std::fill(side.stamps.begin(), side.stamps.end(), 0);
    std::fill(side.store_stamp.begin(), side.store_stamp.end(), 0);
  }
}

int Client::send(Side* side) {
  iovec parts[kPartsAtMost] = {{&side->header, sizeof(side->header)},
                               {side->entries.data(), side->entries.size() * sizeof(Entry)},
                               {side->rows.data(), side->rows.size()}};
  int count = 3;
  Channel& channel = *side->channel;
  for (size_t i = 0; i < side->pieces.size() && !side->is_shared; ++i) {
    const Piece& piece = side->pieces[i];
    if (!pushes_dense(*side, piece)) continue;
    if (count == kPartsAtMost) {
      const int code = code_of(&channel, channel.send(parts, count));
      if (code != TFDIST_OK) return code;
      count = 0;
    }
    parts[count++] = {side->window.data() + piece.offset, piece.bytes};
  }
  return code_of(&channel, channel.send(parts, count));
}

int Client::ask(Store* store, size_t server, RequestKind kind, int slot, const tfdist_exchange* call) {
  Side& side = store->sides[server];
  RequestHeader& header = side.header = RequestHeader{};
  header.kind = kind;
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
  if (recovers(*store) && slot == 0 && kind != RequestKind::kWrite) header.flags |= kStamped;
  header.row_bytes = side.rows.size();
  header.dense_bytes = side.dense_bytes;
  side.is_asked = true;
  const bool is_prefetch = call != nullptr && call->prefetch != 0;
  side.is_kept = false;
  const bool is_mirrored = is_mirror_ || mirror_ != nullptr;  // a server may be restored to less than this worker has seen
  if (recovers(*store) && call != nullptr && (is_prefetch || (is_mirrored && side.is_shared))) keep(&side);
  int code = address(store, server, false);
  if (code == TFDIST_OK && (side.is_shared || !is_prefetch)) code = send(&side);
  if (code == TFDIST_SERVER_LOST && await_return(*store, &side, server)) return TFDIST_OK;
  if (code != TFDIST_OK || side.is_shared || !is_prefetch) return code;
  side.pending = std::async(std::launch::async, [this, store, &side] {
    int sent = send(&side);
    if (sent == TFDIST_OK) sent = receive_header(&side, side.channel.get());
    return sent == TFDIST_OK ? receive_pieces(store, &side, true) : sent;
  });
  return TFDIST_OK;
}

// What follows could not be understood either.
int Client::misunderstood(Side* side, Channel* channel) {
  side->text = "the answer cannot be understood";
  channel->shut_down();
  return TFDIST_INVALID;
}

int Client::receive_header(Side* side, Channel* channel) {
  side->text.clear();
  const int code = code_of(channel, channel->receive(&side->reply, sizeof(side->reply)));
  if (code != TFDIST_OK) return code;
  const bool is_sound = side->reply.magic == kReplyMagic && side->reply.check == check_of(side->reply) &&
                        side->reply.text_bytes <= kReplyTextBytesAtMost;
  if (!is_sound) return misunderstood(side, channel);
  if (side->reply.code == TFDIST_OK) {
    const size_t bytes = side->arrived_store_stamp.size() * sizeof(uint64_t);
    if (side->reply.text_bytes == 0) return TFDIST_OK;
    if (side->reply.text_bytes != bytes) return misunderstood(side, channel);
    return code_of(channel, channel->receive(side->arrived_store_stamp.data(), bytes));
  }
  std::string text(side->reply.text_bytes, ' ');
  const int received = code_of(channel, channel->receive(&text[0], text.size()));
  side->text = text;
  return received != TFDIST_OK ? received : side->reply.code;
}

// To where they belong, or to the window.
int Client::receive_pieces(Store* store, Side* side, bool to_window) {
  Channel* channel = side->channel.get();
  const bool is_stamped = (side->header.flags & kStamped) != 0;
  const size_t words = stamp_words(store->num_workers);
  uint64_t reach = 0;
  size_t next = 0;  // whose stamp follows
  const auto receive_stamp = [&](const Piece& piece) {
    return code_of(channel, channel->receive(side->arrived.data() + piece.shard * words, words * sizeof(uint64_t)));
  };
  const auto reach_to = [&](size_t end) {
    int code = TFDIST_OK;
    while (reach < end && code == TFDIST_OK) {
      code = code_of(channel, channel->receive(&reach, sizeof(reach)));
      for (; is_stamped && next < side->pieces.size() && side->pieces[next].offset < reach; ++next) {
        const Piece& piece = side->pieces[next];
        if (piece.fresh != nullptr && piece.bytes > 0 && code == TFDIST_OK) code = receive_stamp(piece);
      }
    }
    return code;
  };
  for (Piece& piece : side->pieces) {
    if (piece.fresh == nullptr) continue;
    char* window = side->window.data() + piece.offset;
    int code = TFDIST_OK;
    if (!side->is_shared) {
      const bool is_overwritten = piece.state == Piece::State::kHere || (!to_window && piece.fresh == piece.current);
      if (is_overwritten) piece.state = Piece::State::kSpent;  // until it is whole again
      code = code_of(channel, channel->receive(to_window ? window : piece.fresh, piece.bytes));
      if (code == TFDIST_OK && is_stamped && piece.bytes > 0) code = receive_stamp(piece);
    } else {
      code = reach_to(piece.offset + piece.bytes);
      if (code == TFDIST_OK && !to_window) copy_bytes(piece.fresh, window, piece.bytes);
    }
    if (code != TFDIST_OK) return code;
    piece.state = Piece::State::kHere;
    if (is_stamped && !to_window) promote_stamp(side, piece, words);
  }
  return side->is_shared ? reach_to(side->reply.dense_bytes) : TFDIST_OK;
}

// Every server that was asked is listened to, even if another has failed: the next answer must be the next one's. The one
// that answers may wait for other workers, and these for what this worker has to tell one that was lost: so whoever is
// ready is served first.
void Client::receive_all(Store* store, Target target, const tfdist_exchange* call, Failure* failure) {
  const bool to_window = target == Target::kWindow;
  size_t server = 0;
  int code = TFDIST_OK;
  while (next_to_serve(store, &server, &code)) {
    Side& side = store->sides[server];
    if (code == TFDIST_OK && side.is_unsent) {
      code = resume(store, server, to_window, call);
      if (code == TFDIST_OK) continue;
    } else if (code == TFDIST_OK) {
      code = receive_header(&side, side.channel.get());
      if (code == TFDIST_OK) code = receive_pieces(store, &side, to_window);
    }
    if (code == TFDIST_SERVER_LOST && await_return(*store, &side, server)) continue;
    side.is_asked = side.is_unsent = false;
    failure->add(code, server, side);
    if (code != TFDIST_OK) continue;
    side.last = side.reply;
    if (target != Target::kModel) continue;
    side.updates = side.reply.updates;
    side.store_stamp = side.arrived_store_stamp;
  }
}

int Client::conclude(const Store& store, const Failure& failure, tfdist_exchange_result* result) const {
  std::memset(result, 0, sizeof(*result));
  result->server = result->culprit = -1;
  for (const Side& side : store.sides) {
    if (side.entries.empty()) continue;
    result->updates = std::max(result->updates, side.updates);
    result->staleness = std::max(result->staleness, side.last.staleness);
    result->waited_seconds = std::max(result->waited_seconds, side.last.waited_seconds);
    result->is_dropped |= side.last.is_dropped != 0;
  }
  return failure.is_none() ? TFDIST_OK : fail(failure, result);
}

int Client::fail(const Failure& failure, tfdist_exchange_result* result) const {
  result->server = static_cast<int32_t>(failure.server);
  std::string cause = failure.text, remedy;
  if (failure.code == TFDIST_SERVER_LOST) {
    char text[96] = "its connection is closed";
    if (recovery_seconds_ > 0) {
      std::snprintf(text, sizeof(text), "it is lost and did not come back within timeout %g s", recovery_seconds_);
    }
    cause = text;
    remedy = " See its output for why it ended.";
  } else if (failure.code == TFDIST_TIMEOUT && cause.empty()) {
    char text[96];
    std::snprintf(text, sizeof(text), "it did not answer within timeout %g s", timeout_seconds_);
    cause = text;
    remedy = " See whether it runs, and whether the network between is up.";
  }
  const std::string whole = "The exchange with parameter server " + std::to_string(failure.server) + " at " +
                            addresses_[failure.server] + " failed on rank " + std::to_string(rank_) + " after " +
                            std::to_string(result->updates) + " updates: " + cause + "." + remedy;
  std::strncpy(result->text, whole.c_str(), sizeof(result->text) - 1);
  return failure.code;
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

Client::Failure Client::settle(Store* store, const tfdist_exchange* call) {
  Failure failure = store->late;
  store->late = Failure{};
  for (size_t server = 0; server < store->sides.size(); ++server) {
    Side& side = store->sides[server];
    if (!side.pending.valid()) continue;
    const int code = side.pending.get();
    if (code == TFDIST_SERVER_LOST && await_return(*store, &side, server)) continue;
    side.is_asked = false;
    failure.add(code, server, side);
    if (code == TFDIST_OK) side.last = side.reply;
  }
  receive_all(store, Target::kWindow, call, &failure);
  if (!failure.is_none()) store->is_in_flight = false;
  return failure;
}

Client::Failure Client::settle_all(Store* store, const tfdist_exchange* call) {
  std::vector<Store*> others;
  {
    std::lock_guard<std::mutex> lock(stores_mutex_);
    for (auto& other : stores_) {
      if (other.get() != store) others.push_back(other.get());
    }
  }
  for (Store* other : others) {
    Failure failure = settle(other, nullptr);
    if (!failure.is_none()) other->late = std::move(failure);
  }
  return settle(store, call);
}

void Client::ask_all(Store* store, RequestKind kind, int slot, const tfdist_exchange* call, Failure* failure) {
  for (size_t server = 0; server < store->sides.size() && failure->is_none(); ++server) {
    if (store->sides[server].entries.empty()) continue;
    failure->add(ask(store, server, kind, slot, call), server, store->sides[server]);
  }
}

// What the worker goes on with is the answer to the push before, or, at first, what it has.
void Client::leave_in_flight(Store* store, std::vector<int32_t> chosen, bool swaps) {
  store->is_in_flight = true;
  store->in_flight = std::move(chosen);
  for (Side& side : store->sides) {
    if (swaps) side.updates = side.last.updates;
    for (const Piece& piece : side.pieces) {
      if (!swaps && piece.fresh != nullptr && piece.fresh != piece.current) {
        copy_bytes(piece.fresh, piece.current, piece.bytes);
      }
    }
  }
}

int Client::exchange(int index, const tfdist_exchange& call, tfdist_exchange_result* result) {
  std::lock_guard<std::mutex> lock(mutex_);
  Store* store = find(index);
  Failure failure = settle_all(store, &call);
  if (!failure.is_none()) return conclude(*store, failure, result);
  for (int32_t i = 0; i < call.num_rows; ++i) {
    const ClientTensor& tensor = store->tensors[static_cast<size_t>(call.rows[i].tensor)];
    if (!check_rows(tensor, call.rows[i].indices, call.rows[i].num_rows, result)) return TFDIST_INVALID;
  }
  std::vector<int32_t> chosen = selection(call);
  const bool swaps = store->is_in_flight && call.prefetch && chosen == store->in_flight;
  store->is_in_flight = false;
  lay_out(store, call, call.is_pushed ? kPush | kPull : kPull);
  const int32_t culprit = fill_all(*store, call, swaps);
  if (swaps) promote_stamps(store);
  const bool is_bad = culprit >= 0 && call.not_finite != TFDIST_PASS;
  if (is_bad && call.not_finite == TFDIST_RAISE) {
    conclude(*store, failure, result);
    return not_finite(*store, culprit, result);
  }
  // Others wait for a synchronous worker, with a gradient or without.
  if (is_bad && !call.is_synchronous) lay_out(store, call, kPull);
  ++store->sequence;
  tfdist_exchange sent = call;
  if (is_bad) sent.weight = 0;
  const bool pushes = call.is_pushed && !(is_bad && !call.is_synchronous);
  std::unique_lock<std::mutex> mirror_lock;
  std::future<Failure> mirrored;
  if (mirror_ != nullptr) {
    mirror_lock = std::unique_lock<std::mutex>(mirror_->mutex_);
    mirror_->start(index, sent, pushes, &failure);
    mirrored = mirror_->listen(index);
  }
  ask_all(store, RequestKind::kExchange, 0, &sent, &failure);
  if (!call.prefetch) receive_all(store, Target::kModel, &sent, &failure);
  if (mirrored.valid()) failure.take(mirrored.get());
  if (call.prefetch && failure.is_none()) leave_in_flight(store, std::move(chosen), swaps);
  const int code = conclude(*store, failure, result);
  result->is_skipped = is_bad;
  return code;
}

int Client::flush(int index, const tfdist_span* current, int num_spans, tfdist_exchange_result* result) {
  std::lock_guard<std::mutex> lock(mutex_);
  Store* store = find(index);
  std::vector<tfdist_exchange_dense> dense;
  const tfdist_exchange known = of_spans(nullptr, current, num_spans, &dense);
  const Failure failure = settle(store, &known);
  store->is_in_flight = false;
  return conclude(*store, failure, result);
}

int Client::transfer(int index, bool writes, int slot, const tfdist_span* spans, const tfdist_span* current,
                     int num_spans, tfdist_exchange_result* result) {
  std::lock_guard<std::mutex> lock(mutex_);
  Store* store = find(index);
  std::vector<tfdist_exchange_dense> dense;
  const tfdist_exchange call = of_spans(spans, current, num_spans, &dense);
  Failure failure = settle_all(store, &call);
  if (!failure.is_none()) return conclude(*store, failure, result);
  store->is_in_flight = false;
  lay_out(store, call, writes ? kPush : kPull);
  if (writes) fill_all(*store, call, false);
  ask_all(store, writes ? RequestKind::kWrite : RequestKind::kRead, slot, nullptr, &failure);
  receive_all(store, slot == 0 && !writes ? Target::kModel : Target::kCaller, nullptr, &failure);
  return conclude(*store, failure, result);
}

void Client::close() {
  {
    std::lock_guard<std::mutex> lock(links_mutex_);
    is_closed_ = true;
    for (Link& link : links_) {
      link.data->shut_down();
      link.rows->shut_down();
    }
    tell_of_links();
  }
  std::lock_guard<std::mutex> lock(mutex_);
  for (auto& store : stores_) {
    for (Side& side : store->sides) {
      if (side.pending.valid()) side.pending.wait();
    }
  }
}

}  // namespace tfdist
