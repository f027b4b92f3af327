// What a worker does when a server is lost: it waits for it to come back, says what it has of its parameters, and sends what
// was under way once more. The server applies nothing twice.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>

#include "common/copy.h"
#include "parameter_server/client.h"

namespace tfdist {
namespace {

using Clock = std::chrono::steady_clock;

Clock::duration duration(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

Client::~Client() {
  close();
  for (const int end : returned_) {
    if (end >= 0) ::close(end);
  }
}

bool Client::recover(double seconds, int wake) {
  if (pipe(returned_) != 0) return false;
  for (const int end : returned_) {
    fcntl(end, F_SETFL, O_NONBLOCK);
    fcntl(end, F_SETFD, FD_CLOEXEC);
  }
  recovery_seconds_ = seconds;
  wake_ = wake;
  return true;
}

// The pipe may be full: then whoever reads it wakes anyway.
void Client::tell_of_links() {
  links_changed_.notify_all();
  const char byte = 0;
  if (returned_[1] >= 0 && write(returned_[1], &byte, 1) < 0) return;
}

void Client::reconnect(int server, const int* sockets, const int32_t* numbers, int num_stores) {
  std::lock_guard<std::mutex> lock(links_mutex_);
  Link& link = links_[static_cast<size_t>(server)];
  link.data->shut_down();
  link.rows->shut_down();
  link.data = std::make_shared<Channel>(sockets[0], kPatienceFactor * timeout_seconds_);
  link.rows = std::make_shared<Channel>(sockets[1], kPatienceFactor * timeout_seconds_);
  for (int i = 0; i < num_stores; ++i) link.numbers[static_cast<size_t>(i)] = static_cast<uint32_t>(numbers[i]);
  link.is_lost = false;
  ++link.epoch;
  if (is_closed_) {
    link.data->shut_down();
    link.rows->shut_down();
  }
  tell_of_links();
}

void Client::report(size_t server, uint64_t epoch) {
  std::lock_guard<std::mutex> lock(links_mutex_);
  Link& link = links_[server];
  if (link.epoch != epoch || link.is_lost || is_closed_) return;
  link.is_lost = true;
  link.data->shut_down();
  link.rows->shut_down();
  const auto number = static_cast<unsigned char>(server);
  if (write(wake_, &number, 1) < 0) return;  // the pipe is full: whoever reads it looks at all servers anyway
}

bool Client::is_lost(int server) {
  std::lock_guard<std::mutex> lock(links_mutex_);
  return links_[static_cast<size_t>(server)].is_lost;
}

bool Client::await_link(size_t server, uint64_t epoch) {
  std::unique_lock<std::mutex> lock(links_mutex_);
  links_changed_.wait_until(lock, Clock::now() + duration(recovery_seconds_),
                            [&] { return is_closed_ || links_[server].epoch != epoch; });
  return !is_closed_ && links_[server].epoch != epoch;
}

std::shared_ptr<Channel> Client::row_channel(size_t server, uint64_t* epoch, uint32_t* number, size_t store) {
  std::lock_guard<std::mutex> lock(links_mutex_);
  *epoch = links_[server].epoch;
  *number = links_[server].numbers[store];
  return links_[server].rows;
}

int Client::address(Store* store, size_t server, bool to_window) {
  Side& side = store->sides[server];
  {
    std::lock_guard<std::mutex> lock(links_mutex_);
    const Link& link = links_[server];
    side.channel = link.data;
    side.epoch = link.epoch;
    side.header.store = link.numbers[store->number];
  }
  if (recovers(*store) && side.offered_epoch != side.epoch) {
    const int code = offer(store, server, to_window);
    if (code != TFDIST_OK) return code;
    side.offered_epoch = side.epoch;
    refill(&side);
  }
  side.header.check = check_of(side.header);
  return TFDIST_OK;
}

// Whether the call goes on, once there is a newer connection; false where nobody waits for one any more.
bool Client::await_return(const Store& store, Side* side, size_t server) {
  if (!recovers(store)) return false;
  report(server, side->epoch);
  if (!side->is_unsent) side->return_by = Clock::now() + duration(recovery_seconds_);
  side->is_unsent = true;
  std::lock_guard<std::mutex> lock(links_mutex_);
  return !is_closed_ && Clock::now() < side->return_by;
}

// Where nothing is lost and only one server is asked, or none can come back, the order is that in which they were asked.
bool Client::next_to_serve(Store* store, size_t* server, int* code) {
  std::vector<size_t> asked;
  for (size_t i = 0; i < store->sides.size(); ++i) {
    if (store->sides[i].is_asked) asked.push_back(i);
  }
  *code = TFDIST_OK;
  if (asked.empty()) return false;
  *server = asked.front();
  if (!recovers(*store) || (asked.size() == 1 && !store->sides[*server].is_unsent)) return true;
  const auto deadline = Clock::now() + duration(kPatienceFactor * timeout_seconds_);
  for (;;) {
    auto wake_at = deadline;
    std::vector<size_t> heard;
    std::vector<pollfd> polled{{returned_[0], POLLIN, 0}};
    for (const size_t i : asked) {
      const Side& side = store->sides[i];
      *server = i;
      if (!side.is_unsent) {
        heard.push_back(i);
        polled.push_back({side.channel->descriptor(), POLLIN, 0});
        continue;
      }
      std::lock_guard<std::mutex> lock(links_mutex_);
      const bool is_given_up = is_closed_ || Clock::now() >= side.return_by;
      if (is_given_up) *code = TFDIST_SERVER_LOST;
      if (is_given_up || links_[i].epoch != side.epoch) return true;
      wake_at = std::min(wake_at, side.return_by);
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(wake_at - Clock::now()).count() + 1;
    poll(polled.data(), static_cast<nfds_t>(polled.size()), static_cast<int>(std::min<int64_t>(std::max<int64_t>(left, 0), 1 << 30)));
    char drained[64];
    if (polled[0].revents != 0 && read(returned_[0], drained, sizeof(drained)) < 0) continue;
    for (size_t k = 0; k < heard.size(); ++k) {
      *server = heard[k];
      if (polled[k + 1].revents != 0) return true;
    }
    if (heard.empty() || Clock::now() < deadline) continue;
    *code = code_of(store->sides[*server].channel.get(), Channel::Result::kTimeout);
    return true;
  }
}

// To the server that has come back: what this worker has of its parameters, and the request once more.
int Client::resume(Store* store, size_t server, bool to_window, const tfdist_exchange* call) {
  Side& side = store->sides[server];
  side.is_unsent = false;
  if (to_window) rebind(&side, call);
  for (Piece& piece : side.pieces) {
    const bool is_gone = side.is_shared && !side.is_kept && piece.state != Piece::State::kAsked;
    if (is_gone && pushes_dense(side, piece)) side.entries[piece.entry].flags |= kSpent;
  }
  const int code = address(store, server, to_window);
  for (Piece& piece : side.pieces) {  // the server writes to the window now
    if (to_window && piece.state == Piece::State::kHere) piece.state = Piece::State::kSpent;
  }
  return code == TFDIST_OK ? send(&side) : code;
}

// The newest whole copy that there is of each part, with its stamp.
int Client::offer(Store* store, size_t server, bool to_window) {
  Side& side = store->sides[server];
  Channel* channel = side.channel.get();
  const size_t words = stamp_words(store->num_workers);
  std::vector<Entry> entries;
  std::vector<iovec> values;
  Stamp stamps = side.store_stamp;
  for (const Piece& piece : side.pieces) {
    const bool is_here = piece.state == Piece::State::kHere && piece.fresh != nullptr;
    char* window = side.window.data() + piece.offset;
    const char* copy = is_here ? (to_window ? window : piece.fresh) : side.offers ? piece.current : nullptr;
    if (piece.state == Piece::State::kSpent && !to_window) copy = nullptr;
    const Stamp& source = is_here && to_window ? side.arrived : side.stamps;
    const uint64_t* stamp = source.data() + piece.shard * words;
    if (stamp[0] == 0 || piece.bytes == 0) copy = nullptr;
    stamps.insert(stamps.end(), stamp, stamp + words);
    entries.push_back(Entry{piece.shard, EntryKind::kDense, copy == nullptr ? uint16_t{0} : uint16_t{kPush}, 0});
    if (copy == nullptr) continue;
    if (side.is_shared && copy != window) copy_bytes(window, copy, piece.bytes);
    if (!side.is_shared) values.push_back({const_cast<char*>(copy), piece.bytes});
  }
  RequestHeader header;
  header.kind = RequestKind::kOffer;
  header.store = side.header.store;
  header.flags = side.is_shared ? kShared : 0u;
  header.generation = store->generation;
  header.num_entries = static_cast<uint32_t>(entries.size());
  header.row_bytes = stamps.size() * sizeof(uint64_t);
  header.dense_bytes = side.dense_bytes;
  header.check = check_of(header);
  iovec parts[3] = {{&header, sizeof(header)},
                    {entries.data(), entries.size() * sizeof(Entry)},
                    {stamps.data(), stamps.size() * sizeof(uint64_t)}};
  int code = code_of(channel, channel->send(parts, 3));
  for (iovec& value : values) {
    if (code == TFDIST_OK) code = code_of(channel, channel->send(&value, 1));
  }
  return code == TFDIST_OK ? receive_header(&side, channel) : code;
}

bool Client::pushes_dense(const Side& side, const Piece& piece) {
  const Entry& entry = side.entries[piece.entry];
  return entry.kind == EntryKind::kDense && is_pushed(entry);
}

void Client::keep(Side* side) {
  if (side->kept.bytes() < side->window.bytes()) side->kept = Memory(side->window.bytes());
  for (const Piece& piece : side->pieces) {
    if (!pushes_dense(*side, piece)) continue;
    copy_bytes(side->kept.data() + piece.offset, side->window.data() + piece.offset, piece.bytes);
  }
  side->is_kept = true;
}

// The gradients, into a window that has been used for something else since.
void Client::refill(Side* side) {
  if (!side->is_shared && !side->is_kept) return;
  for (const Piece& piece : side->pieces) {
    const char* source = side->is_kept ? side->kept.data() + piece.offset : piece.gradient;
    if (source != nullptr && pushes_dense(*side, piece)) {
      copy_bytes(side->window.data() + piece.offset, source, piece.bytes);
    }
  }
}

// The call in which the push was made is over, its memory gone. What this worker uses now may come with another one.
void Client::rebind(Side* side, const tfdist_exchange* call) {
  side->offers = call != nullptr && call->offers != 0;
  for (Piece& piece : side->pieces) {
    const void* current = nullptr;
    for (int32_t i = 0; side->offers && i < call->num_dense; ++i) {
      if (call->dense[i].tensor == piece.tensor) current = call->dense[i].current;
    }
    for (int32_t i = 0; side->offers && i < call->num_rows; ++i) {
      if (call->rows[i].tensor == piece.tensor) current = call->rows[i].current;
    }
    piece.gradient = nullptr;
    piece.current = current == nullptr ? nullptr : static_cast<const char*>(current) + piece.begin;
  }
}

// What has arrived of a piece is what this worker uses.
void Client::promote_stamp(Side* side, const Piece& piece, size_t words) {
  const auto at = static_cast<std::ptrdiff_t>(piece.shard * words);
  std::copy_n(side->arrived.begin() + at, words, side->stamps.begin() + at);
}

void Client::promote_stamps(Store* store) {
  for (Side& side : store->sides) {
    side.store_stamp = side.arrived_store_stamp;
    for (Piece& piece : side.pieces) {
      if (piece.fresh == nullptr) continue;
      promote_stamp(&side, piece, stamp_words(store->num_workers));
      piece.current = piece.fresh;
    }
  }
}

void Client::set_mirror(Client* mirror) {
  std::lock_guard<std::mutex> lock(mutex_);
  mirror_ = mirror;
  if (mirror != nullptr) mirror->is_mirror_ = true;
}

// The same push to the replicas, of which nothing is pulled; `listen` waits until they have applied it.
void Client::start(int index, const tfdist_exchange& call, bool pushes, Failure* failure) {
  Store* store = find(index);
  std::vector<tfdist_exchange_dense> dense(call.dense, call.dense + call.num_dense);
  std::vector<tfdist_exchange_rows> rows(call.rows, call.rows + call.num_rows);
  for (auto& one : dense) one.fresh = nullptr, one.current = nullptr;
  for (auto& one : rows) one.fresh = nullptr, one.current = nullptr;
  tfdist_exchange sent = call;
  sent.dense = dense.data();
  sent.rows = rows.data();
  sent.prefetch = sent.offers = 0;
  for (Side& side : store->sides) side.is_asked = false;
  ++store->sequence;
  if (!pushes) return;
  lay_out(store, sent, kPush);
  fill_all(*store, sent, false);
  ask_all(store, RequestKind::kExchange, 0, &sent, failure);
}

std::future<Client::Failure> Client::listen(int index) {
  return std::async(std::launch::async, [this, store = find(index)] {
    Failure failure;
    receive_all(store, Target::kModel, nullptr, &failure);
    return failure;
  });
}

}  // namespace tfdist
