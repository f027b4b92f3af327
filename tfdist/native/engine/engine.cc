#include "engine/engine.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "common/reduce.h"

namespace tfdist {
namespace {

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

Engine::Engine(int rank, int world_size, const int* descriptors, uint32_t generation, double timeout_seconds)
    : rank_(rank),
      world_size_(world_size),
      generation_(generation),
      timeout_seconds_(timeout_seconds) {
  int ends[2];
  if (pipe(ends) != 0) throw std::bad_alloc();
  wake_read_ = ends[0];
  wake_write_ = ends[1];
  for (int end : ends) {
    fcntl(end, F_SETFL, O_NONBLOCK);
    fcntl(end, F_SETFD, FD_CLOEXEC);
  }
  peers_.resize(world_size);
  for (int peer = 0; peer < world_size; ++peer) {
    if (peer == rank) continue;
    peers_[peer] = std::make_unique<Peer>(peer, make_tcp_link(descriptors[peer]), address_of(descriptors[peer]));
  }
  thread_ = std::thread([this] { loop(); });
}

Engine::~Engine() {
  close(nullptr);
  ::close(wake_read_);
  ::close(wake_write_);
}

void Engine::wake() {
  const char byte = 0;
  ssize_t ignored = write(wake_write_, &byte, 1);  // a full pipe is a pending wake-up
  static_cast<void>(ignored);
}

int Engine::load_plan(const int32_t* steps, int num_steps, int num_chunks) {
  auto plan = std::make_shared<Plan>();
  if (num_chunks < 1 || !plan->load(steps, num_steps, num_chunks, rank_, world_size_)) return -TFDIST_INVALID;
  std::lock_guard<std::mutex> lock(mutex_);
  plans_.push_back(std::move(plan));
  return static_cast<int>(plans_.size()) - 1;
}

bool Engine::prepare(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs,
                     Operation* operation) {
  const size_t size = element_size(request.dtype);
  const bool reduces = request.dtype != TFDIST_BYTE;
  if (size == 0 || request.elements < 0 || request.description == nullptr) return false;
  if (reduces && !can_reduce(request.dtype, request.reduce)) return false;
  if (request.scale != 1 && !is_floating(request.dtype)) return false;
  operation->step = request.step;
  operation->description = std::string(request.description) + ", " + std::to_string(request.elements) + " elements";
  operation->signature = hash_text(operation->description.c_str());
  operation->dtype = request.dtype;
  operation->reduce = request.reduce;
  operation->divisor = request.reduce != TFDIST_MEAN ? 1 : request.divisor > 0 ? request.divisor : world_size_;
  operation->elements = request.elements;
  const int64_t total = request.elements;

  const int chunks = operation->plan->num_chunks;
  operation->begin.resize(chunks + 1);
  for (int c = 0; c <= chunks; ++c) {
    const int64_t first = request.chunk_offsets != nullptr ? request.chunk_offsets[c] : total * c / chunks;
    if (first < 0 || first > total || (c > 0 && first * int64_t(size) < operation->begin[c - 1])) return false;
    operation->begin[c] = first * static_cast<int64_t>(size);
  }
  for (const PlanStep& step : operation->plan->steps) {
    if (step.kind != TFDIST_COPY) continue;
    const auto& begin = operation->begin;
    if (begin[step.chunk + 1] - begin[step.chunk] != begin[step.source + 1] - begin[step.source]) return false;
  }
  int64_t packed = request.input_offset;
  for (int i = 0; i < num_inputs; ++i) packed += inputs[i].elements;
  if (request.input_offset < 0 || packed > request.elements) return false;

  operation->work = static_cast<char*>(request.work);
  if (operation->work == nullptr) {
    operation->buffer = Buffer(&pool_, static_cast<size_t>(total) * size + 1);
    operation->work = operation->buffer.data();
  }
  char* target = operation->work + request.input_offset * static_cast<int64_t>(size);
  for (int i = 0; i < num_inputs; ++i) {
    const int64_t n = inputs[i].elements;
    if (request.scale != 1) {
      pack_scaled(target, inputs[i].data, n, request.dtype, request.scale);
    } else if (n > 0 && inputs[i].data != target) {
      std::memcpy(target, inputs[i].data, static_cast<size_t>(n) * size);
    }
    target += n * static_cast<int64_t>(size);
  }
  return true;
}

int64_t Engine::start(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs) {
  auto operation = std::make_shared<Operation>();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.code != TFDIST_OK) return -failure_.code;
    if (closing_) return -TFDIST_CLOSED;
    if (request.plan < 0 || request.plan >= static_cast<int>(plans_.size())) return -TFDIST_INVALID;
    operation->plan = plans_[request.plan];
  }
  if (!prepare(request, inputs, num_inputs, operation.get())) return -TFDIST_INVALID;
  int64_t ticket;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    const uint64_t sequence = sequences_[request.channel]++;
    operation->tag = mix(request.channel ^ mix(sequence));
    ticket = next_ticket_++;
    tickets_[ticket] = operation;
    submitted_.push_back(operation);
  }
  wake();
  return ticket;
}

int Engine::wait(int64_t ticket, double timeout_seconds, bool give_up) {
  if (timeout_seconds < 0) timeout_seconds = timeout_seconds_;
  const auto deadline = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                           std::chrono::duration<double>(std::min(timeout_seconds, 1e8)));
  std::unique_lock<std::mutex> lock(mutex_);
  auto found = tickets_.find(ticket);
  if (found == tickets_.end()) return TFDIST_INVALID;
  const OperationPtr operation = found->second;
  auto over = [&] { return operation->finished || failure_.code != TFDIST_OK; };
  if (!changed_.wait_until(lock, deadline, over)) {
    if (!give_up) return TFDIST_TIMEOUT;
    given_up_.push_back(ticket);
    wake();
    changed_.wait(lock, over);  // the engine's thread answers at once
  }
  if (operation->finished) return TFDIST_OK;
  return failure_.code != TFDIST_OK ? failure_.code : TFDIST_CLOSED;
}

int Engine::finish(int64_t ticket, const tfdist_span* outputs, int num_outputs) {
  OperationPtr operation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = tickets_.find(ticket);
    if (found == tickets_.end()) return TFDIST_INVALID;
    operation = std::move(found->second);
    tickets_.erase(found);
    if (!operation->finished) return TFDIST_INVALID;  // a failed operation is only forgotten
  }
  const auto size = static_cast<int64_t>(element_size(operation->dtype));
  int64_t elements = 0;
  for (int i = 0; i < num_outputs; ++i) elements += outputs[i].elements;
  if (elements > operation->elements) return TFDIST_INVALID;
  const char* source = operation->work;
  for (int i = 0; i < num_outputs; ++i) {
    const int64_t bytes = outputs[i].elements * size;
    if (bytes > 0 && outputs[i].data != source) std::memcpy(outputs[i].data, source, static_cast<size_t>(bytes));
    source += bytes;
  }
  return TFDIST_OK;
}

Failure Engine::failure() {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_;
}

void Engine::close(const char* failure) {
  std::lock_guard<std::mutex> one_closer(close_mutex_);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!closing_ && failure != nullptr) closing_reason_ = failure;
    closing_ = true;
  }
  wake();
  if (thread_.joinable()) thread_.join();
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.code == TFDIST_OK) failure_ = {TFDIST_CLOSED, -1, "the group was closed"};
  changed_.notify_all();
}

}  // namespace tfdist
