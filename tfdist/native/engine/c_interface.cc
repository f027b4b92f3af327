#include <algorithm>
#include <cstring>
#include <exception>

#include "common/measure.h"
#include "common/reduce.h"
#include "common/registry.h"
#include "elastic/elastic.h"
#include "engine/engine.h"

struct tfdist_group {
  explicit tfdist_group(const tfdist_group_options& options) {
    if (options.is_elastic != 0) {
      elastic = std::make_unique<tfdist::Elastic>(options);
    } else {
      engine = std::make_unique<tfdist::Engine>(options);
    }
  }
  std::unique_ptr<tfdist::Engine> engine;    // one of the two
  std::unique_ptr<tfdist::Elastic> elastic;
  int64_t id = 0;
  int references = 1;  // guarded by the registry
};

namespace {

bool is_sound(const tfdist_group_options& options) {
  return options.world_size >= 1 && options.rank >= 0 && options.rank < options.world_size &&
         options.sockets_per_peer >= 1 && options.timeout_seconds > 0;
}

tfdist::Registry<tfdist_group>& registry() { return tfdist::Registry<tfdist_group>::instance(); }

}  // namespace

extern "C" {

tfdist_group* tfdist_group_create(const tfdist_group_options* options) {
  if (!is_sound(*options)) return nullptr;
  try {
    return registry().add(new tfdist_group(*options));
  } catch (const std::exception&) {
    return nullptr;
  }
}

int32_t tfdist_segment_create(int32_t rank, int32_t world_size, const unsigned char* nonce) {
  return tfdist::Segment::create(rank, world_size, nonce);
}

void tfdist_group_set_timeout(tfdist_group* group, double seconds) { group->elastic ? group->elastic->set_timeout(seconds) : group->engine->set_timeout(seconds); }

void tfdist_group_release(tfdist_group* group) { registry().release(group); }

int64_t tfdist_group_id(tfdist_group* group) { return group->id; }

tfdist_group* tfdist_group_find(int64_t id) { return registry().find(id); }

int64_t tfdist_group_copied_bytes(tfdist_group* group) { return group->elastic ? group->elastic->copied_bytes() : group->engine->copied_bytes(); }

int64_t tfdist_element_bytes(int32_t dtype) { return static_cast<int64_t>(tfdist::element_size(dtype)); }

void tfdist_group_close(tfdist_group* group, const char* failure) { group->elastic ? group->elastic->close(failure) : group->engine->close(failure); }

int32_t tfdist_group_load_plan(tfdist_group* group, const int32_t* steps, int32_t num_steps, int32_t num_chunks) {
  return group->elastic ? group->elastic->load_plan(steps, num_steps, num_chunks) : group->engine->load_plan(steps, num_steps, num_chunks);
}

int64_t tfdist_start(tfdist_group* group, const tfdist_operation* operation, const tfdist_span* inputs,
                     int32_t num_inputs, const tfdist_span* outputs) {
  try {
    if (group->elastic) return group->elastic->start(*operation, inputs, num_inputs, outputs);
    return group->engine->start(*operation, inputs, num_inputs, outputs);
  } catch (const std::bad_alloc&) {
    return -TFDIST_INVALID;
  }
}

int64_t tfdist_run(tfdist_group* group, const tfdist_operation* operation, double timeout_seconds) {
  try {
    if (group->elastic) return group->elastic->run(*operation, timeout_seconds);
    return group->engine->run(*operation, timeout_seconds);
  } catch (const std::bad_alloc&) {
    return -TFDIST_INVALID;
  }
}

int32_t tfdist_wait(tfdist_group* group, int64_t ticket, double timeout_seconds, int32_t give_up) {
  return tfdist_wait_all(group, &ticket, 1, timeout_seconds, give_up);
}

int32_t tfdist_wait_all(tfdist_group* group, const int64_t* tickets, int32_t num_tickets, double timeout_seconds,
                        int32_t give_up) {
  if (group->elastic) return group->elastic->wait(tickets, num_tickets, timeout_seconds, give_up != 0);
  for (int32_t i = 0; i < num_tickets; ++i) {
    const int code = group->engine->wait(tickets[i], timeout_seconds, give_up != 0);
    if (code != TFDIST_OK) return code;
  }
  return TFDIST_OK;
}

int32_t tfdist_finish(tfdist_group* group, int64_t ticket, const tfdist_span* outputs, int32_t num_outputs) {
  if (group->elastic) return group->elastic->finish(ticket, outputs, num_outputs);
  return group->engine->finish(ticket, outputs, num_outputs);
}

int32_t tfdist_group_error(tfdist_group* group, int32_t* peer, char* text, int64_t capacity) {
  const tfdist::Failure failure = group->elastic ? group->elastic->failure() : group->engine->failure();
  if (peer != nullptr) *peer = failure.peer;
  if (text != nullptr && capacity > 0) {
    const size_t n = std::min(failure.text.size(), static_cast<size_t>(capacity - 1));
    std::memcpy(text, failure.text.data(), n);
    text[n] = 0;
  }
  return failure.code;
}

int32_t tfdist_group_set_commit_plan(tfdist_group* group, int32_t plan) {
  if (!group->elastic) return TFDIST_INVALID;
  group->elastic->set_commit_plan(plan);
  return TFDIST_OK;
}

int32_t tfdist_group_await_failure(tfdist_group* group, double timeout_seconds) {
  return group->elastic ? group->elastic->await_failure(timeout_seconds) : TFDIST_INVALID;
}

int64_t tfdist_group_report(tfdist_group* group, char* text, int64_t capacity) {
  const std::string report = group->elastic ? group->elastic->report() : "";
  const size_t n = std::min(report.size(), static_cast<size_t>(std::max<int64_t>(capacity, 0)));
  if (n > 0) std::memcpy(text, report.data(), n);
  return static_cast<int64_t>(report.size());
}

int32_t tfdist_group_prepare(tfdist_group* group, const tfdist_group_options* options) {
  if (!group->elastic || !is_sound(*options)) return TFDIST_INVALID;
  try {
    group->elastic->prepare(*options);
  } catch (const std::exception&) {
    return TFDIST_INVALID;
  }
  return TFDIST_OK;
}

int32_t tfdist_group_load_next_plan(tfdist_group* group, const int32_t* steps, int32_t num_steps, int32_t num_chunks) {
  return group->elastic ? group->elastic->load_next_plan(steps, num_steps, num_chunks) : -TFDIST_INVALID;
}

int32_t tfdist_group_reform(tfdist_group* group, const uint64_t* channels, const int64_t* counts, int32_t num_channels,
                            int32_t starts_anew) {
  return group->elastic ? group->elastic->reform(channels, counts, num_channels, starts_anew != 0) : TFDIST_INVALID;
}

void tfdist_group_give_up(tfdist_group* group, int32_t code, int32_t peer, const char* text) {
  if (group->elastic) group->elastic->give_up(code, peer, text);
}

uint32_t tfdist_group_committed_generation(tfdist_group* group) {
  return group->elastic ? group->elastic->committed_generation() : 0;
}

uint32_t tfdist_group_step_generation(tfdist_group* group) {
  return group->elastic ? group->elastic->step_generation() : 0;
}

void tfdist_group_trust(tfdist_group* group) {
  if (group->elastic) group->elastic->trust();
}

void tfdist_group_set_flag(tfdist_group* group, int32_t index, int64_t value) {
  if (group->elastic && index >= 0 && index < tfdist::kFlags) group->elastic->set_flag(index, value);
}

void tfdist_group_learn_flag(tfdist_group* group, int32_t index, int64_t value) {
  if (group->elastic && index >= 0 && index < tfdist::kFlags) group->elastic->learn_flag(index, value);
}

int64_t tfdist_group_flag(tfdist_group* group, int32_t index) {
  return group->elastic && index >= 0 && index < tfdist::kFlags ? group->elastic->flag(index) : 0;
}

void tfdist_group_watch(tfdist_group* group, double seconds) {
  group->elastic ? group->elastic->watch(seconds) : group->engine->watch(seconds);
}

void tfdist_group_drop(tfdist_group* group, int32_t peer) {
  if (group->elastic) return group->elastic->drop(peer);
  group->engine->drop(peer);
}

void tfdist_group_set_fault(tfdist_group* group, int32_t point, int64_t step, int32_t number) {
  if (group->elastic) group->elastic->set_fault(point, step, number);
}

double tfdist_measure_copy_seconds_per_byte(void) { return tfdist::measure_copy_seconds_per_byte(); }

double tfdist_measure_reduce_seconds_per_byte(void) { return tfdist::measure_reduce_seconds_per_byte(); }

const char* tfdist_instruction_set(void) { return tfdist::instruction_set(); }

}  // extern "C"
