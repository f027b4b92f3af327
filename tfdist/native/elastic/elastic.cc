#include "elastic/elastic.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>

#include "common/copy.h"
#include "common/reduce.h"

namespace tfdist {
namespace {

constexpr uint64_t kCommitChannel = 0x636f6d6d69740000u, kScaleChannel = 0x7363616c65000000u;

Clock::time_point after(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(std::min(seconds, 1e8)));
}

double left(Clock::time_point deadline) {
  return std::max(0.0, std::chrono::duration<double>(deadline - Clock::now()).count());
}

}  // namespace

Elastic::Elastic(const tfdist_group_options& options)
    : engine_(std::make_shared<Engine>(options)),
      generation_(options.generation),
      committed_generation_(options.generation),
      step_generation_(options.generation),
      trusted_generation_(options.has_empty_slots != 0 ? -1 : static_cast<int64_t>(options.generation)),
      timeout_seconds_(options.timeout_seconds) {}

Elastic::~Elastic() { close(nullptr); }

std::shared_ptr<Engine> Elastic::current() {
  std::lock_guard<std::mutex> lock(mutex_);
  return engine_;
}

// Called with mutex_ held.
Elastic::Retained* Elastic::find(int64_t ticket) {
  const auto index = static_cast<size_t>(ticket & ((int64_t{1} << 20) - 1));
  if (ticket <= 0 || index >= operations_.size() || operations_[index]->ticket != ticket) return nullptr;
  return operations_[index].get();
}

Elastic::Retained* Elastic::retain(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs,
                                   const tfdist_span* outputs) {
  Retained* operation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) {
      operations_.push_back(std::make_unique<Retained>());
      operations_.back()->ticket = static_cast<int64_t>(operations_.size()) - 1;
      free_.push_back(operations_.back().get());
    }
    operation = free_.back();
    free_.pop_back();
    operation->ticket = (next_ticket_++ << 20) | (operation->ticket & ((int64_t{1} << 20) - 1));
  }
  const auto size = static_cast<int64_t>(element_size(request.dtype));
  operation->request = request;
  operation->description.assign(request.description != nullptr ? request.description : "");
  operation->request.description = operation->description.c_str();
  operation->has_outputs = outputs != nullptr;
  operation->outputs.assign(outputs, outputs + (outputs != nullptr ? num_inputs : 0));
  operation->inputs.assign(inputs, inputs + num_inputs);
  int64_t bytes = request.work != nullptr ? request.elements * size : 0;
  for (int i = 0; i < num_inputs; ++i) bytes += inputs[i].elements * size;
  operation->memory = bytes > 0 ? Buffer(&pool_, static_cast<size_t>(bytes)) : Buffer();
  char* target = operation->memory.data();
  if (request.work != nullptr) copy_bytes(target, request.work, static_cast<size_t>(request.elements * size));
  if (request.work != nullptr) target += request.elements * size;
  for (auto& input : operation->inputs) {
    copy_bytes(target, input.data, static_cast<size_t>(input.elements * size));
    input.data = target;
    target += input.elements * size;
  }
  operation->engine_ticket = operation->scale_ticket = operation->commit_ticket = 0;
  operation->is_divided = operation->is_committed = false;
  return operation;
}


// Hands a collective to the engine; called with start_mutex_ held. What an engine that has just failed does not take
// stays open until the group is formed anew.
int Elastic::launch(Retained* operation, bool again) {
  std::shared_ptr<Engine> engine;
  bool knows_divisor;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    engine = engine_;
    operation->engine = engine;
    operation->generation = generation_;
    operation->engine_ticket = operation->scale_ticket = operation->commit_ticket = 0;
    operation->is_divided = false;
    knows_divisor = trusted_generation_ == static_cast<int64_t>(generation_);
  }
  if (again) restore(operation);
  tfdist_operation request = operation->request;
  const bool divides = request.reduce == TFDIST_MEAN && request.dtype != TFDIST_BYTE && !knows_divisor;
  if (divides) request.reduce = TFDIST_SUM;
  const int64_t ticket = engine->start(request, operation->inputs.data(), static_cast<int>(operation->inputs.size()),
                                       operation->has_outputs ? operation->outputs.data() : nullptr);
  if (ticket < 0) return ticket == -TFDIST_INVALID ? TFDIST_INVALID : TFDIST_OK;
  int64_t scale_ticket = 0;
  if (divides) scale_ticket = launch_scales(operation, engine.get());
  std::lock_guard<std::mutex> lock(mutex_);
  if (scale_ticket < 0) return TFDIST_OK;
  operation->engine_ticket = ticket;
  operation->scale_ticket = scale_ticket;
  return TFDIST_OK;
}

// The sum of the members' scales, by which a mean is divided where the caller cannot know who takes part.
int64_t Elastic::launch_scales(Retained* operation, Engine* engine) {
  const tfdist_operation& request = operation->request;
  operation->scale_total = request.scale;
  tfdist_operation scales{};
  scales.plan = commit_plan_;
  scales.dtype = TFDIST_FLOAT64;
  scales.reduce = TFDIST_SUM;
  scales.scale = 1;
  scales.channel = mix(request.channel ^ kScaleChannel);
  scales.step = request.step;
  scales.description = "scales of the members";
  scales.work = &operation->scale_total;
  scales.elements = 1;
  return engine->start(scales, nullptr, 0, nullptr);
}

void Elastic::restore(Retained* operation) {
  const auto size = static_cast<int64_t>(element_size(operation->request.dtype));
  if (operation->request.work == nullptr) return;
  copy_bytes(operation->request.work, operation->memory.data(), static_cast<size_t>(operation->request.elements * size));
}

int64_t Elastic::start(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs,
                       const tfdist_span* outputs) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.code != TFDIST_OK) return -failure_.code;
  }
  Retained* operation = retain(request, inputs, num_inputs, outputs);
  std::lock_guard<std::mutex> one_start(start_mutex_);
  const int num_chunks = current()->num_chunks(request.plan);
  if (request.chunk_offsets != nullptr && num_chunks > 0) {  // the caller's, and perhaps for a moment only
    operation->offsets.assign(request.chunk_offsets, request.chunk_offsets + num_chunks + 1);
    operation->request.chunk_offsets = operation->offsets.data();
  }
  {
    std::lock_guard<std::mutex> lock(mutex_);
    operation->sequence = started_[request.channel]++;
    open_.push_back(operation);
  }
  const int code = launch(operation, false);
  if (code == TFDIST_OK) return operation->ticket;
  std::lock_guard<std::mutex> lock(mutex_);
  --started_[request.channel];
  open_.pop_back();
  release(operation);
  return -code;
}

int64_t Elastic::run(const tfdist_operation& request, double timeout_seconds) {
  const int64_t ticket = start(request, nullptr, 0, nullptr);
  if (ticket < 0) return ticket;
  const int code = wait(&ticket, 1, timeout_seconds, false);
  if (code == TFDIST_TIMEOUT) return ticket;
  if (code == TFDIST_OK) finish(ticket, nullptr, 0);
  return -code;
}

int Elastic::wait(const int64_t* tickets, int num_tickets, double timeout_seconds, bool give_up) {
  Unit unit;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (timeout_seconds < 0) timeout_seconds = timeout_seconds_;
    for (int i = 0; i < num_tickets; ++i) {
      unit.push_back(find(tickets[i]));
      if (unit.back() == nullptr) return TFDIST_INVALID;
    }
  }
  const auto deadline = after(timeout_seconds);
  for (;;) {
    uint32_t generation;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      generation = unit.front()->generation;
    }
    const int code = attempt(unit, deadline, give_up);
    if (code != TFDIST_LOST) return code;
    if (!await_reform(unit, generation, deadline)) {
      std::lock_guard<std::mutex> lock(mutex_);
      return failure_.code != TFDIST_OK ? failure_.code : TFDIST_TIMEOUT;
    }
  }
}

// Waits for a unit on the engine that does it, then commits it.
int Elastic::attempt(const Unit& unit, Clock::time_point deadline, bool give_up) {
  std::shared_ptr<Engine> engine;
  std::vector<std::pair<int64_t, int64_t>> tickets;  // as they are now: the group may be formed anew meanwhile
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (failure_.code != TFDIST_OK) return failure_.code;
    if (unit.front()->is_committed) return TFDIST_OK;
    engine = unit.front()->engine;
    for (Retained* operation : unit) {
      if (operation->engine != engine || operation->engine_ticket == 0) return TFDIST_LOST;
      tickets.emplace_back(operation->engine_ticket, operation->scale_ticket);
    }
  }
  trip(0, unit);
  for (size_t i = 0; i < unit.size(); ++i) {
    int code = engine->wait(tickets[i].first, left(deadline), give_up);
    if (code == TFDIST_OK && tickets[i].second != 0) code = engine->wait(tickets[i].second, left(deadline), give_up);
    if (code == TFDIST_OK && tickets[i].second != 0) code = divide(unit[i], engine.get());
    if (code != TFDIST_OK) return code;
  }
  trip(1, unit);
  const int code = commit(unit, engine.get(), deadline, give_up);
  if (code == TFDIST_OK) trip(2, unit);
  return code;
}

int Elastic::divide(Retained* operation, Engine* engine) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (operation->engine.get() != engine) return TFDIST_LOST;
  if (operation->is_divided) return TFDIST_OK;
  engine->divide(operation->engine_ticket, operation->scale_total != 0 ? operation->scale_total : 1);
  operation->is_divided = true;
  return TFDIST_OK;
}

int Elastic::commit(const Unit& unit, Engine* engine, Clock::time_point deadline, bool give_up) {
  Retained* first = unit.front();
  int64_t ticket;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (first->engine.get() != engine) return TFDIST_LOST;
    if (first->commit_ticket == 0) {
      std::copy(flags_, flags_ + kFlags, first->word);
      tfdist_operation request{};
      request.plan = commit_plan_;
      request.dtype = TFDIST_INT64;
      request.reduce = TFDIST_MAX;
      request.scale = 1;
      request.channel = mix(first->request.channel ^ kCommitChannel);
      request.step = first->request.step;
      request.description = "commit";
      request.work = first->word;
      request.elements = kFlags;
      const int64_t started = engine->start(request, nullptr, 0, nullptr);
      if (started < 0) return static_cast<int>(-started);
      first->commit_ticket = started;
    }
    ticket = first->commit_ticket;
  }
  const int code = engine->wait(ticket, left(deadline), give_up);
  if (code != TFDIST_OK) return code;
  engine->finish(ticket, nullptr, 0);
  std::lock_guard<std::mutex> lock(mutex_);
  if (first->is_committed) return TFDIST_OK;  // adopted meanwhile
  if (first->engine.get() != engine || is_reported_) return TFDIST_LOST;
  note_commit(*first);
  std::copy(first->word, first->word + kFlags, agreed_flags_);
  for (Retained* operation : unit) {
    operation->is_committed = true;
    committed_[operation->request.channel] = operation->sequence + 1;
    open_.erase(std::find(open_.begin(), open_.end(), operation));
  }
  return TFDIST_OK;
}

// False where the group has failed for good, or time is up.
bool Elastic::await_reform(const Unit& unit, uint32_t generation, Clock::time_point deadline) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_until(lock, deadline, [&] {
    return failure_.code != TFDIST_OK || is_closed_ || unit.front()->is_committed || unit.front()->generation != generation;
  });
  return failure_.code == TFDIST_OK && (unit.front()->is_committed || unit.front()->generation != generation);
}

int Elastic::finish(int64_t ticket, const tfdist_span* outputs, int num_outputs) {
  Retained* operation;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    operation = find(ticket);
    if (operation == nullptr || !operation->is_committed) return TFDIST_INVALID;
  }
  const int code = operation->engine->finish(operation->engine_ticket, outputs, num_outputs);
  if (operation->scale_ticket != 0) operation->engine->finish(operation->scale_ticket, nullptr, 0);
  std::lock_guard<std::mutex> lock(mutex_);
  release(operation);
  return code;
}

// Called with mutex_ held.
void Elastic::release(Retained* operation) {
  operation->engine.reset();
  operation->memory = Buffer();
  operation->ticket &= (int64_t{1} << 20) - 1;
  free_.push_back(operation);
}

void Elastic::close(const char* failure) {
  std::vector<std::shared_ptr<Engine>> engines;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
    engines = retired_;
    engines.push_back(engine_);
    changed_.notify_all();
  }
  for (auto& engine : engines) engine->close(failure);
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.code == TFDIST_OK) failure_ = engine_->failure();
}

void Elastic::set_timeout(double seconds) {
  std::lock_guard<std::mutex> lock(mutex_);
  timeout_seconds_ = seconds;
  engine_->set_timeout(seconds);
}

Failure Elastic::failure() {
  std::lock_guard<std::mutex> lock(mutex_);
  return failure_.code != TFDIST_OK ? failure_ : engine_->failure();
}

int Elastic::await_failure(double timeout_seconds) { return current()->await_failure(timeout_seconds); }

// Lines "open <channel> <sequence>", "committed <channel> <count>" and "flag <index> <number>".
// From here on nothing is committed until the group is formed anew: what the others are told stays true.
std::string Elastic::report() {
  std::lock_guard<std::mutex> one_start(start_mutex_);
  std::lock_guard<std::mutex> lock(mutex_);
  is_reported_ = true;
  std::string text;
  for (Retained* operation : open_) {
    text += "open " + std::to_string(operation->request.channel) + " " + std::to_string(operation->sequence) + "\n";
  }
  for (auto& [channel, count] : committed_) {
    text += "committed " + std::to_string(channel) + " " + std::to_string(count) + "\n";
  }
  for (int i = 0; i < kFlags; ++i) text += "flag " + std::to_string(i) + " " + std::to_string(agreed_flags_[i]) + "\n";
  return text;
}

bool Elastic::prepare(const tfdist_group_options& options) {
  next_ = std::make_shared<Engine>(options);
  next_generation_ = options.generation;
  return true;
}

// The prepared engine takes over. `counts` says how many of each channel's collectives some member has committed.
int Elastic::reform(const uint64_t* channels, const int64_t* counts, int num_channels, bool starts_anew) {
  std::unordered_map<uint64_t, uint64_t> known;
  for (int i = 0; i < num_channels; ++i) known[channels[i]] = static_cast<uint64_t>(counts[i]);
  std::lock_guard<std::mutex> one_start(start_mutex_);
  std::shared_ptr<Engine> old;
  std::vector<Retained*> again;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (starts_anew && !open_.empty()) return TFDIST_INVALID;
    for (auto operation : open_) {
      auto found = known.find(operation->request.channel);
      if (found == known.end() || found->second <= operation->sequence) {
        again.push_back(operation);
        continue;
      }
      operation->is_committed = true;
      committed_[operation->request.channel] = operation->sequence + 1;
      note_commit(*operation);
    }
    open_.assign(again.begin(), again.end());
    old = engine_;
    engine_ = next_;
    next_.reset();
    generation_ = next_generation_;
    is_reported_ = false;
    if (starts_anew) {
      started_.clear();
      committed_.clear();
      committed_generation_ = step_generation_ = generation_;
    }
    retired_.push_back(old);
  }
  old->abandon();
  for (Retained* operation : again) {
    launch(operation, true);
  }
  std::lock_guard<std::mutex> lock(mutex_);
  while (retired_.size() > 2 && retired_.front().use_count() == 1) retired_.erase(retired_.begin());
  changed_.notify_all();
  return TFDIST_OK;
}

void Elastic::give_up(int code, int peer, const char* text) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (failure_.code == TFDIST_OK) failure_ = {code, peer, text};
  changed_.notify_all();
}

uint32_t Elastic::committed_generation() {
  std::lock_guard<std::mutex> lock(mutex_);
  return committed_generation_;
}

uint32_t Elastic::step_generation() {
  std::lock_guard<std::mutex> lock(mutex_);
  return step_generation_;
}

// Called with mutex_ held.
void Elastic::note_commit(const Retained& operation) {
  committed_generation_ = operation.generation;
  if (operation.request.step >= 0) step_generation_ = operation.generation;
}

// The divisors that callers give are right for the present members.
void Elastic::trust() {
  std::lock_guard<std::mutex> lock(mutex_);
  trusted_generation_ = committed_generation_;
}

void Elastic::set_flag(int index, int64_t value) {
  std::lock_guard<std::mutex> lock(mutex_);
  flags_[index] = value;
}

// Another member has been told so by a commit of which this one did not hear.
void Elastic::learn_flag(int index, int64_t value) {
  std::lock_guard<std::mutex> lock(mutex_);
  agreed_flags_[index] = std::max(agreed_flags_[index], value);
}

int64_t Elastic::flag(int index) {
  std::lock_guard<std::mutex> lock(mutex_);
  return agreed_flags_[index];
}

void Elastic::set_fault(int point, int64_t step, int number) {
  std::lock_guard<std::mutex> lock(mutex_);
  fault_ = {point, step, number};
}

// For tests: a signal to this process at a point of a step's collective.
void Elastic::trip(int point, const Unit& unit) {
  if (fault_.point != point || unit.front()->request.step < 0 || unit.front()->request.step != fault_.step) return;
  std::raise(fault_.number);
}

}  // namespace tfdist
