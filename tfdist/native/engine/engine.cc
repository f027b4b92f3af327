#include "engine/engine.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "common/copy.h"

namespace tfdist {
namespace {

constexpr int64_t kTicketIndexBits = 20;
constexpr size_t kDescriptionsAtMost = 4096;
constexpr size_t kRecent = 256;
constexpr size_t kHeldPieces = 64;  // room made at once, so that early pieces seldom make more
constexpr int64_t kBytesAtOnce = 1 << 16;  // what a start may move itself where the thread has a core of its own

std::string address_of(int descriptor) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  if (getpeername(descriptor, reinterpret_cast<sockaddr*>(&storage), &length) != 0) return "an unknown address";
  char text[INET6_ADDRSTRLEN] = "";
  if (storage.ss_family == AF_INET) {
    auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
    inet_ntop(AF_INET, &v4->sin_addr, text, sizeof(text));
    return std::string(text) + ":" + std::to_string(ntohs(v4->sin_port));
  }
  if (storage.ss_family == AF_INET6) {
    auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
    inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof(text));
    return "[" + std::string(text) + "]:" + std::to_string(ntohs(v6->sin6_port));
  }
  return "this process";
}

}  // namespace

Engine::Engine(const tfdist_group_options& options)
    : rank_(options.rank),
      world_size_(options.world_size),
      zeroes_(options.has_empty_slots != 0),
      generation_(options.generation),
      is_eager_(options.is_eager != 0),
      is_crowded_(options.is_crowded != 0),
      heartbeat_(std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(options.heartbeat_seconds))),
      timeout_seconds_(options.timeout_seconds) {
  for (int i = 0; i < world_size_; ++i) slots_.push_back(options.slots != nullptr ? options.slots[i] : i);
  const bool shares = options.segments != nullptr && options.segments[rank_] >= 0;
  if (shares) segment_ = std::make_unique<Segment>(options.segments[rank_], rank_, world_size_);
  peers_.resize(static_cast<size_t>(world_size_));
  for (int rank = 0; rank < world_size_; ++rank) {
    if (rank == rank_) continue;
    auto peer = std::make_unique<Peer>();
    const int* sockets = options.sockets + rank * options.sockets_per_peer;
    peer->rank = rank;
    peer->address = address_of(sockets[0]);
    if (shares && options.segments[rank] >= 0) {
      peer->segment = std::make_unique<Segment>(options.segments[rank], rank, world_size_);
    }
    for (int i = 0; i < options.sockets_per_peer; ++i) {
      peer->streams.push_back(std::make_unique<Stream>(make_tcp_link(sockets[i])));
    }
    (peer->is_shared() ? shared_peers_ : stream_peers_).push_back(peer.get());
    peers_[static_cast<size_t>(rank)] = std::move(peer);
  }
  int ends[2];
  if (pipe(ends) != 0) throw std::bad_alloc();
  wake_read_ = ends[0];
  wake_write_ = ends[1];
  for (int end : ends) {
    fcntl(end, F_SETFL, O_NONBLOCK);
    fcntl(end, F_SETFD, FD_CLOEXEC);
  }
  is_eager_ = is_eager_ || !stream_peers_.empty();  // a network moves bytes without a core of ours
  recent_.resize(kRecent);
  early_.reserve(kHeldPieces);
  last_active_ = last_look_ = Clock::now();
  thread_ = std::thread([this] { loop(); });
}

Engine::~Engine() {
  close(nullptr);
  ::close(wake_read_);
  ::close(wake_write_);
}

void Engine::wake() {
  const char byte = 0;
  ssize_t ignored = ::write(wake_write_, &byte, 1);  // a full pipe is a pending wake-up
  static_cast<void>(ignored);
}

// Makes the engine's thread look again.
void Engine::call_thread() {
  if (blocked_ || is_cold_ || is_eager_) wake();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_wanted_ = true;
  }
  standby_.notify_one();
}

int Engine::load_plan(const int32_t* steps, int num_steps, int num_chunks) {
  auto plan = std::make_shared<Plan>();
  if (num_chunks < 1 || !plan->load(steps, num_steps, num_chunks, rank_, world_size_)) return -TFDIST_INVALID;
  std::lock_guard<std::mutex> lock(mutex_);
  plans_.push_back(std::move(plan));
  return static_cast<int>(plans_.size()) - 1;
}

// Called with mutex_ held.
Operation* Engine::take_operation() {
  if (free_.empty()) {
    operations_.push_back(std::make_unique<Operation>());
    operations_.back()->ticket = static_cast<int64_t>(operations_.size()) - 1;
    operations_.back()->held.reserve(kHeldPieces);
    free_.reserve(operations_.size());
    free_.push_back(operations_.back().get());
  }
  Operation* operation = free_.back();
  free_.pop_back();
  const int64_t index = operation->ticket & ((int64_t{1} << kTicketIndexBits) - 1);
  operation->ticket = (next_ticket_++ << kTicketIndexBits) | index;
  operation->finished.store(false, std::memory_order_relaxed);
  return operation;
}

// Called with mutex_ held.
Operation* Engine::find(int64_t ticket) {
  const auto index = static_cast<size_t>(ticket & ((int64_t{1} << kTicketIndexBits) - 1));
  if (ticket <= 0 || index >= operations_.size() || operations_[index]->ticket != ticket) return nullptr;
  return operations_[index].get();
}

// What ranks must agree on. Called with mutex_ held.
bool Engine::describe(const tfdist_operation& request, Operation* operation) {
  if (request.description == nullptr) return false;
  operation->signature = mix(hash_text(request.description) ^ mix(static_cast<uint64_t>(request.elements)) ^
                             mix(0x10000u + static_cast<uint64_t>(request.wire_dtype)));
  auto known = descriptions_.find(operation->signature);
  if (known == descriptions_.end()) {
    if (descriptions_.size() >= kDescriptionsAtMost) descriptions_.clear();
    auto text = std::make_shared<std::string>(request.description);
    *text += ", " + std::to_string(request.elements) + " elements";
    if (request.wire_dtype != TFDIST_BYTE) {
      *text += request.wire_dtype == TFDIST_BFLOAT16 ? " sent as bfloat16" : " sent as float16";
    }
    known = descriptions_.emplace(operation->signature, std::move(text)).first;
  }
  operation->description = known->second;
  return true;
}

// Where the chunks begin; false where they make no sense.
bool Engine::cut(const tfdist_operation& request, Operation* operation) {
  const auto size = static_cast<int64_t>(element_size(request.dtype));
  const int64_t total = request.elements;
  const int chunks = operation->plan->num_chunks;
  auto& begin = operation->begin;
  begin.resize(static_cast<size_t>(chunks) + 1);
  for (int c = 0; c <= chunks; ++c) {
    const int64_t first = request.chunk_offsets != nullptr ? request.chunk_offsets[c] : total * c / chunks;
    if (first < 0 || first > total || (c > 0 && first * size < begin[c - 1])) return false;
    begin[c] = first * size;
  }
  for (int i : operation->plan->copies) {
    const PlanStep& step = operation->plan->steps[i];
    if (begin[step.chunk + 1] - begin[step.chunk] != begin[step.source + 1] - begin[step.source]) return false;
  }
  return request.input_offset >= 0 && request.input_offset <= total;
}

bool Engine::prepare(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs,
                     const tfdist_span* outputs, Operation* operation) {
  const bool reduces = request.dtype != TFDIST_BYTE;
  if (element_size(request.dtype) == 0 || request.elements < 0) return false;
  if (reduces && !can_reduce(request.dtype, request.reduce)) return false;
  if (request.scale != 1 && !is_floating(request.dtype)) return false;
  const bool divides = request.reduce == TFDIST_MEAN && request.divisor > 0;
  const bool fits_integer = request.divisor >= 1 && request.divisor <= INT32_MAX;
  if (reduces && divides && !is_floating(request.dtype) && !fits_integer) return false;
  const bool narrows = request.wire_dtype != TFDIST_BYTE;
  if (narrows && !can_travel_as(request.dtype, request.wire_dtype)) return false;
  operation->step = request.step;
  operation->dtype = request.dtype;
  operation->wire_dtype = request.wire_dtype;
  operation->shrink = narrows ? 2 : 1;
  operation->reduce = request.reduce;
  operation->divisor = request.reduce != TFDIST_MEAN ? 1 : divides ? request.divisor : world_size_;
  operation->elements = request.elements;
  if (!cut(request, operation)) return false;
  int64_t packed = request.input_offset;
  for (int i = 0; i < num_inputs; ++i) packed += inputs[i].elements;
  if (packed > request.elements || (outputs != nullptr && packed != request.elements)) return false;
  lay_out(request, inputs, num_inputs, outputs, operation);
  return true;
}

// Decides where the parts of the work buffer lie, and brings the inputs there.
void Engine::lay_out(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs,
                     const tfdist_span* outputs, Operation* operation) {
  const auto size = static_cast<int64_t>(element_size(request.dtype));
  auto& stretches = operation->stretches;
  stretches.clear();
  int64_t packed_bytes = 0;
  for (int i = 0; i < num_inputs; ++i) {
    if (outputs == nullptr || outputs[i].data == nullptr) packed_bytes += inputs[i].elements * size;
  }
  if (outputs == nullptr) packed_bytes = request.elements * size;
  char* packed = static_cast<char*>(request.work);
  if (packed == nullptr && packed_bytes > 0) {
    operation->buffer = Buffer(&pool_, static_cast<size_t>(packed_bytes));
    packed = operation->buffer.data();
  }
  if (outputs == nullptr) {
    if (zeroes_ && request.work == nullptr) std::memset(packed, 0, static_cast<size_t>(packed_bytes));
    stretches.push_back({0, request.elements * size, packed});
    packed += request.input_offset * size;
  }
  int64_t offset = 0;
  for (int i = 0; i < num_inputs; ++i) {
    const int64_t bytes = inputs[i].elements * size;
    const bool is_packed = outputs == nullptr || outputs[i].data == nullptr;
    char* target = is_packed ? packed : static_cast<char*>(outputs[i].data);
    if (bytes > 0 && (request.scale != 1 || inputs[i].data != target)) copied_bytes_ += bytes;
    if (request.scale != 1) {
      pack_scaled(target, inputs[i].data, inputs[i].elements, request.dtype, request.scale);
    } else if (bytes > 0 && inputs[i].data != target) {
      copy_bytes(target, inputs[i].data, static_cast<size_t>(bytes));
    }
    if (is_packed) packed += bytes;
    if (outputs != nullptr && bytes > 0) {
      if (is_packed && !stretches.empty() && stretches.back().data + (offset - stretches.back().begin) == target) {
        stretches.back().end += bytes;
      } else {
        stretches.push_back({offset, offset + bytes, target});
      }
    }
    offset += bytes;
  }
  if (stretches.empty()) stretches.push_back({0, 0, packed});
}

int64_t Engine::submit(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs,
                       const tfdist_span* outputs) {
  Operation* operation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.code != TFDIST_OK) return -failure_.code;
    if (closing_) return -TFDIST_CLOSED;
    if (request.plan < 0 || request.plan >= static_cast<int>(plans_.size())) return -TFDIST_INVALID;
    operation = take_operation();
    operation->plan = plans_[static_cast<size_t>(request.plan)];
    if (!describe(request, operation)) {
      free_.push_back(operation);
      return -TFDIST_INVALID;
    }
  }
  if (!prepare(request, inputs, num_inputs, outputs, operation)) {
    operation->buffer = Buffer();
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(operation);
    return -TFDIST_INVALID;
  }
  const int64_t ticket = operation->ticket;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t sequence = sequences_[request.channel]++;
    operation->tag = mix(request.channel ^ mix(sequence));
    submitted_.push_back(operation);
    has_work_.store(true);
  }
  return ticket;
}

int64_t Engine::start(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs,
                      const tfdist_span* outputs) {
  const int64_t ticket = submit(request, inputs, num_inputs, outputs);
  if (ticket < 0) return ticket;
  const int64_t bytes = request.elements * static_cast<int64_t>(element_size(request.dtype));
  const bool is_left_to_thread = is_eager_ && bytes > kBytesAtOnce;
  if (!is_left_to_thread && try_drive()) {  // what can leave at once does
    drive(false);
    const bool is_armed = arm(false);
    release_drive();
    if (is_armed && !is_cold_ && !(is_eager_ && has_active_)) return ticket;
  }
  call_thread();
  return ticket;
}

int64_t Engine::run(const tfdist_operation& request, double timeout_seconds) {
  const int64_t ticket = submit(request, nullptr, 0, nullptr);
  if (ticket < 0) return ticket;
  const int code = wait(ticket, timeout_seconds, false);
  if (code == TFDIST_TIMEOUT) return ticket;
  if (code == TFDIST_OK) finish(ticket, nullptr, 0);
  return -code;
}

int Engine::wait(int64_t ticket, double timeout_seconds, bool give_up) {
  const auto begin = Clock::now();
  if (timeout_seconds < 0) timeout_seconds = timeout_seconds_;
  const auto deadline =
      begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::min(timeout_seconds, 1e8)));
  Operation* operation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    operation = find(ticket);
    if (operation == nullptr) return TFDIST_INVALID;
  }
  if (!over(*operation)) {
    ++waiters_;
    const bool in_time = await(*operation, deadline);
    if (!in_time && give_up) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        given_up_.push_back(operation);
        has_work_.store(true);
      }
      if (blocked_) wake();
      await(*operation, Clock::time_point::max());  // whoever drives answers at once
    }
    last_waited_ = Clock::now().time_since_epoch().count();
    --waiters_;
    if (!in_time && !give_up) return TFDIST_TIMEOUT;
  }
  if (operation->finished.load(std::memory_order_acquire)) return TFDIST_OK;
  return failed_code_ != TFDIST_OK ? failed_code_.load() : TFDIST_CLOSED;
}

int Engine::finish(int64_t ticket, const tfdist_span* outputs, int num_outputs) {
  Operation* operation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    operation = find(ticket);
    if (operation == nullptr || !operation->finished) return TFDIST_INVALID;  // what failed stays as it is
  }
  const auto size = static_cast<int64_t>(element_size(operation->dtype));
  int64_t elements = 0;
  for (int i = 0; i < num_outputs; ++i) elements += outputs[i].elements;
  const bool fits = elements <= operation->elements;
  int64_t offset = 0;
  for (int i = 0; fits && i < num_outputs; ++i) {
    char* target = static_cast<char*>(outputs[i].data);
    if (target != nullptr) operation->visit(offset, outputs[i].elements * size, [&target](char* source, int64_t n) {
      if (target != source) copy_bytes(target, source, static_cast<size_t>(n));
      target += n;
    });
    offset += outputs[i].elements * size;
  }
  operation->buffer = Buffer();
  std::lock_guard<std::mutex> lock(mutex_);
  operation->ticket &= (int64_t{1} << kTicketIndexBits) - 1;
  free_.push_back(operation);
  return fits ? TFDIST_OK : TFDIST_INVALID;
}

Failure Engine::failure() {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

// Blocks until the group has failed: the code, or TFDIST_OK when time is up.
int Engine::await_failure(double timeout_seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, std::chrono::duration<double>(timeout_seconds), [&] { return failure_.code != TFDIST_OK || closing_; });
  return closing_ && failure_.code == TFDIST_OK ? TFDIST_CLOSED : failure_.code;
}

int Engine::num_chunks(int plan) {
  std::lock_guard<std::mutex> lock(mutex_);
  return plan < 0 || plan >= static_cast<int>(plans_.size()) ? -1 : plans_[static_cast<size_t>(plan)]->num_chunks;
}

// Divides what a finished operation has left.
void Engine::divide(int64_t ticket, double divisor) {
  static const char zeros[4096] = {};
  Operation* operation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    operation = find(ticket);
  }
  if (operation == nullptr || divisor == 1) return;
  const auto size = static_cast<int64_t>(element_size(operation->dtype));
  operation->visit(0, operation->elements * size, [&](char* target, int64_t bytes) {
    for (int64_t n; bytes > 0; bytes -= n, target += n) {
      n = std::min<int64_t>(bytes, sizeof(zeros));
      reduce_into(target, zeros, n / size, operation->dtype, TFDIST_MEAN, divisor);
    }
  });
}

// Stops at once, after a failure; when it returns nothing touches the callers' memory any more.
void Engine::abandon() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_abandoned_ = true;
    closing_ = true;
    changed_.notify_all();
    standby_.notify_all();
  }
  wake();
  while (!try_drive()) sched_yield();
  release_drive();
}

// Cuts the connection to a peer; for tests.
void Engine::drop(int peer) {
  if (peer < 0 || peer >= world_size_ || peer == rank_) return;
  for (auto& stream : peers_[static_cast<size_t>(peer)]->streams) shutdown(stream->link->descriptor(), SHUT_RDWR);
}

void Engine::close(const char* failure) {
  std::lock_guard<std::mutex> one_closer(close_mutex_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!closing_ && failure != nullptr) closing_reason_ = failure;
    closing_ = true;
    changed_.notify_all();
    standby_.notify_all();
  }
  wake();
  if (thread_.joinable()) thread_.join();
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.code == TFDIST_OK) failure_ = {TFDIST_CLOSED, -1, "the group was closed"};
  failed_code_ = failure_.code;
  changed_.notify_all();
}

}  // namespace tfdist
