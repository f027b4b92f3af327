#include <algorithm>
#include <cstring>
#include <exception>

#include "common/measure.h"
#include "common/reduce.h"
#include "common/registry.h"
#include "engine/engine.h"

struct tfdist_group {
  explicit tfdist_group(const tfdist_group_options& options) : engine(options) {}
  tfdist::Engine engine;
  int64_t id = 0;
  int references = 1;  // guarded by the registry
};

namespace {

tfdist::Registry<tfdist_group>& registry() { return tfdist::Registry<tfdist_group>::instance(); }

}  // namespace

extern "C" {

tfdist_group* tfdist_group_create(const tfdist_group_options* options) {
  const bool is_sound = options->world_size >= 1 && options->rank >= 0 && options->rank < options->world_size &&
                        options->sockets_per_peer >= 1 && options->timeout_seconds > 0;
  if (!is_sound) return nullptr;
  try {
    return registry().add(new tfdist_group(*options));
  } catch (const std::exception&) {
    return nullptr;
  }
}

int32_t tfdist_segment_create(int32_t rank, int32_t world_size, const unsigned char* nonce) {
  return tfdist::Segment::create(rank, world_size, nonce);
}

void tfdist_group_set_timeout(tfdist_group* group, double seconds) { group->engine.set_timeout(seconds); }

void tfdist_group_release(tfdist_group* group) { registry().release(group); }

int64_t tfdist_group_id(tfdist_group* group) { return group->id; }

tfdist_group* tfdist_group_find(int64_t id) { return registry().find(id); }

int64_t tfdist_group_copied_bytes(tfdist_group* group) { return group->engine.copied_bytes(); }

int64_t tfdist_element_bytes(int32_t dtype) { return static_cast<int64_t>(tfdist::element_size(dtype)); }

void tfdist_group_close(tfdist_group* group, const char* failure) { group->engine.close(failure); }

int32_t tfdist_group_load_plan(tfdist_group* group, const int32_t* steps, int32_t num_steps, int32_t num_chunks) {
  return group->engine.load_plan(steps, num_steps, num_chunks);
}

int64_t tfdist_start(tfdist_group* group, const tfdist_operation* operation, const tfdist_span* inputs,
                     int32_t num_inputs, const tfdist_span* outputs) {
  try {
    return group->engine.start(*operation, inputs, num_inputs, outputs);
  } catch (const std::bad_alloc&) {
    return -TFDIST_INVALID;
  }
}

int64_t tfdist_run(tfdist_group* group, const tfdist_operation* operation, double timeout_seconds) {
  try {
    return group->engine.run(*operation, timeout_seconds);
  } catch (const std::bad_alloc&) {
    return -TFDIST_INVALID;
  }
}

int32_t tfdist_wait(tfdist_group* group, int64_t ticket, double timeout_seconds, int32_t give_up) {
  return group->engine.wait(ticket, timeout_seconds, give_up != 0);
}

int32_t tfdist_finish(tfdist_group* group, int64_t ticket, const tfdist_span* outputs, int32_t num_outputs) {
  return group->engine.finish(ticket, outputs, num_outputs);
}

int32_t tfdist_group_error(tfdist_group* group, int32_t* peer, char* text, int64_t capacity) {
  const tfdist::Failure failure = group->engine.failure();
  if (peer != nullptr) *peer = failure.peer;
  if (text != nullptr && capacity > 0) {
    const size_t n = std::min(failure.text.size(), static_cast<size_t>(capacity - 1));
    std::memcpy(text, failure.text.data(), n);
    text[n] = 0;
  }
  return failure.code;
}

double tfdist_measure_copy_seconds_per_byte(void) { return tfdist::measure_copy_seconds_per_byte(); }

double tfdist_measure_reduce_seconds_per_byte(void) { return tfdist::measure_reduce_seconds_per_byte(); }

const char* tfdist_instruction_set(void) { return tfdist::instruction_set(); }

}  // extern "C"
