// Two ordinary kernels carry a collective: `start` hands its inputs over and returns, `wait` blocks until they are reduced.
// Large tensors are reduced where they lie, small ones are packed.
//
// TensorFlow's asynchronous kernels cannot be used through the C API: finishing one after `compute` has returned
// writes through a dangling pointer. A GPU's tensors are staged through host memory by TensorFlow itself.

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow_ops/c_api.h"
#include "tfdist.h"

namespace {

struct StatusDeleter {
  void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
};
using Status = std::unique_ptr<TF_Status, StatusDeleter>;
Status new_status() { return Status(TF_NewStatus()); }

struct TensorDeleter {
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<TF_Tensor, TensorDeleter>;

struct GroupReleaser {
  void operator()(tfdist_group* group) const { tfdist_group_release(group); }
};
using Group = std::unique_ptr<tfdist_group, GroupReleaser>;

Tensor input(TF_OpKernelContext* context, int index) {
  TF_Tensor* tensor = nullptr;
  Status status = new_status();
  TF_GetInput(context, index, &tensor, status.get());
  return Tensor(tensor);
}

template <typename T>
T scalar(TF_OpKernelContext* context, int index) {
  return *static_cast<const T*>(TF_TensorData(input(context, index).get()));
}

// An output shaped as an input, in its memory where nobody else needs that; null, and a failure, where there is none.
Tensor output_like(TF_OpKernelContext* context, int input_index, int output_index) {
  std::vector<int64_t> dims;
  {
    const Tensor like = input(context, input_index);  // released first: forwarding needs its only reference
    for (int d = 0; d < TF_NumDims(like.get()); ++d) dims.push_back(TF_Dim(like.get(), d));
  }
  Status status = new_status();
  int forwarded = -1;
  Tensor output(TF_ForwardInputOrAllocateOutput(context, &input_index, 1, output_index, dims.data(),
                                                static_cast<int>(dims.size()), &forwarded, status.get()));
  if (!output) TF_OpKernelContext_Failure(context, status.get());
  return output;
}

void fail(TF_OpKernelContext* context, TF_Code code, const std::string& text) {
  Status status = new_status();
  TF_SetStatus(status.get(), code, text.c_str());
  TF_OpKernelContext_Failure(context, status.get());
}

// The text is parsed by tfdist/comm/failures.py.
void fail_with_group(TF_OpKernelContext* context, tfdist_group* group, int code) {
  int32_t peer = -1;
  std::vector<char> text(1 << 17);
  const int first = tfdist_group_error(group, &peer, text.data(), static_cast<int64_t>(text.size()));
  std::string message = text.data();
  if (first == TFDIST_OK || code == TFDIST_INVALID) {
    message = "the native core refused an operation";
  } else {
    code = first;
  }
  const std::string details = " peer=" + std::to_string(peer) + "] " + message;
  switch (code) {
    case TFDIST_TIMEOUT: return fail(context, TF_DEADLINE_EXCEEDED, "[tfdist CollectiveTimeoutError" + details);
    case TFDIST_LOST: return fail(context, TF_UNAVAILABLE, "[tfdist WorkerLostError" + details);
    case TFDIST_MISMATCH: return fail(context, TF_INVALID_ARGUMENT, "[tfdist MismatchError" + details);
    case TFDIST_CLOSED: return fail(context, TF_ABORTED, "[tfdist TransportError" + details);
    default: return fail(context, TF_ABORTED, "[tfdist ConfigurationError" + details);
  }
}

// Tensors that operations work in, from their start to their wait; what a failure leaves behind stays, because the
// engine may still be sending it.
class InFlight {
 public:
  void keep(int64_t group, int64_t ticket, std::vector<Tensor> tensors) {
    std::lock_guard<std::mutex> lock(mutex_);
    tensors_[{group, ticket}] = std::move(tensors);
  }
  void forget(int64_t group, int64_t ticket) {
    std::vector<Tensor> tensors;  // freed after the lock
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = tensors_.find({group, ticket});
    if (found == tensors_.end()) return;
    tensors = std::move(found->second);
    tensors_.erase(found);
  }

 private:
  std::mutex mutex_;  // guards tensors_
  std::map<std::pair<int64_t, int64_t>, std::vector<Tensor>> tensors_;
};

InFlight& in_flight() {
  static InFlight* instance = new InFlight;  // operations may end after static destructors have run
  return *instance;
}

class Attributes {
 public:
  explicit Attributes(TF_OpKernelConstruction* construction) : construction_(construction), status_(new_status()) {}

  int64_t integer(const char* name) {
    int64_t value = 0;
    TF_OpKernelConstruction_GetAttrInt64(construction_, name, &value, status_.get());
    check();
    return value;
  }
  std::vector<int64_t> integers(const char* name) {
    int32_t list = 0, total = 0;
    TF_OpKernelConstruction_GetAttrSize(construction_, name, &list, &total, status_.get());
    check();
    std::vector<int64_t> values(static_cast<size_t>(list > 0 ? list : 0));
    TF_OpKernelConstruction_GetAttrInt64List(construction_, name, values.data(), list, status_.get());
    check();
    return values;
  }
  std::string text(const char* name) {
    int32_t list = 0, total = 0;
    TF_OpKernelConstruction_GetAttrSize(construction_, name, &list, &total, status_.get());
    check();
    std::string value(static_cast<size_t>(total > 0 ? total : 0), '\0');
    TF_OpKernelConstruction_GetAttrString(construction_, name, &value[0], value.size(), status_.get());
    check();
    return value;
  }

 private:
  void check() {
    if (TF_GetCode(status_.get()) != TF_OK) TF_OpKernelConstruction_Failure(construction_, status_.get());
  }
  TF_OpKernelConstruction* construction_;
  Status status_;
};

Group find_group(TF_OpKernelContext* context, int64_t id) {
  Group group(tfdist_group_find(id));
  if (!group) fail(context, TF_ABORTED, "[tfdist TransportError peer=-1] the group of this graph was closed");
  return group;
}

// TfdistStart(tensors..., scale, divisor, step, offsets) -> ticket, held...
// `held` is what the wait takes instead of the tensors, in their memory where nobody else needs that; nothing is held
// where the result is of another shape (gathering).
class Start {
 public:
  explicit Start(Attributes attributes)
      : group_(attributes.integer("group")),
        plan_(attributes.integer("plan")),
        dtype_(attributes.integer("dtype")),
        wire_dtype_(attributes.integer("wire_dtype")),
        reduce_(attributes.integer("reduce")),
        channel_(attributes.integer("channel")),
        input_chunk_(attributes.integer("input_chunk")),
        holds_(attributes.integer("holds") != 0),
        description_(attributes.text("description")) {}

  void compute(TF_OpKernelContext* context) const {
    Group group = find_group(context, group_);
    if (!group) return;
    const int num_tensors = TF_NumInputs(context) - 4;
    const int64_t size = tfdist_element_bytes(static_cast<int32_t>(dtype_));
    std::vector<Tensor> held;
    std::vector<tfdist_span> inputs, outputs;
    int64_t elements = 0;
    for (int i = 0; i < num_tensors; ++i) {
      if (holds_) held.push_back(output_like(context, i, i + 1));
      if (holds_ && !held.back()) return;
      const Tensor tensor = input(context, i);
      const auto bytes = static_cast<int64_t>(TF_TensorByteSize(tensor.get()));
      inputs.push_back({TF_TensorData(tensor.get()), bytes / size});
      const bool in_place = holds_ && bytes >= kInPlaceBytes;
      outputs.push_back({in_place ? TF_TensorData(held.back().get()) : nullptr, bytes / size});
      elements += bytes / size;
    }
    const Tensor offsets = input(context, num_tensors + 3);
    tfdist_operation operation{};
    operation.plan = static_cast<int32_t>(plan_);
    operation.dtype = static_cast<int32_t>(dtype_);
    operation.wire_dtype = static_cast<int32_t>(wire_dtype_);
    operation.reduce = static_cast<int32_t>(reduce_);
    operation.scale = scalar<double>(context, num_tensors);
    operation.divisor = scalar<double>(context, num_tensors + 1);
    operation.channel = static_cast<uint64_t>(channel_);
    operation.step = scalar<int64_t>(context, num_tensors + 2);
    operation.description = description_.c_str();
    operation.elements = elements;
    const int64_t num_offsets = TF_TensorElementCount(offsets.get());
    if (num_offsets > 0) {
      operation.chunk_offsets = static_cast<const int64_t*>(TF_TensorData(offsets.get()));
      operation.elements = operation.chunk_offsets[num_offsets - 1];
      operation.input_offset = operation.chunk_offsets[input_chunk_];
    }
    const int64_t ticket =
        tfdist_start(group.get(), &operation, inputs.data(), num_tensors, holds_ ? outputs.data() : nullptr);
    if (ticket < 0) return fail_with_group(context, group.get(), static_cast<int>(-ticket));
    if (holds_) in_flight().keep(group_, ticket, std::move(held));
    Status status = new_status();
    Tensor output(TF_AllocateOutput(context, 0, TF_INT64, nullptr, 0, sizeof(int64_t), status.get()));
    if (!output) return TF_OpKernelContext_Failure(context, status.get());
    *static_cast<int64_t*>(TF_TensorData(output.get())) = ticket;
  }

 private:
  // Below it a copy costs less than a stretch of its own.
  static constexpr int64_t kInPlaceBytes = 16 << 10;
  const int64_t group_, plan_, dtype_, wire_dtype_, reduce_, channel_, input_chunk_;
  const bool holds_;
  const std::string description_;
};

// TfdistWait(tickets..., held...) -> the held tensors, reduced; `counts` says how many belong to each ticket, in order.
class Wait {
 public:
  explicit Wait(Attributes attributes)
      : group_(attributes.integer("group")), dtype_(attributes.integer("dtype")), counts_(attributes.integers("counts")) {}

  void compute(TF_OpKernelContext* context) const {
    Group group = find_group(context, group_);
    if (!group) return;
    const int num_tickets = static_cast<int>(counts_.size());
    int next = 0;
    for (int t = 0; t < num_tickets; ++t) {
      const auto ticket = scalar<int64_t>(context, t);
      int code = tfdist_wait(group.get(), ticket, -1, 1);
      if (code != TFDIST_OK) return fail_with_group(context, group.get(), code);
      std::vector<tfdist_span> spans;
      for (int64_t i = 0; i < counts_[static_cast<size_t>(t)]; ++i, ++next) {
        const Tensor held = input(context, num_tickets + next);
        const auto bytes = static_cast<int64_t>(TF_TensorByteSize(held.get()));
        spans.push_back({TF_TensorData(held.get()), bytes / tfdist_element_bytes(static_cast<int32_t>(dtype_))});
        Status status = new_status();
        TF_SetOutput(context, next, held.get(), status.get());
        if (TF_GetCode(status.get()) != TF_OK) return TF_OpKernelContext_Failure(context, status.get());
      }
      code = tfdist_finish(group.get(), ticket, spans.data(), static_cast<int32_t>(spans.size()));
      in_flight().forget(group_, ticket);
      if (code != TFDIST_OK) return fail_with_group(context, group.get(), code);
    }
  }

 private:
  const int64_t group_, dtype_;
  const std::vector<int64_t> counts_;
};

// TfdistWaitRows(ticket, rows, like) -> the gathered bytes: `rows` rows shaped as those of `like`.
class WaitRows {
 public:
  explicit WaitRows(Attributes attributes)
      : group_(attributes.integer("group")), item_bytes_(attributes.integer("item_bytes")) {}

  void compute(TF_OpKernelContext* context) const {
    Group group = find_group(context, group_);
    if (!group) return;
    const auto ticket = scalar<int64_t>(context, 0);
    int code = tfdist_wait(group.get(), ticket, -1, 1);
    if (code != TFDIST_OK) return fail_with_group(context, group.get(), code);
    const Tensor like = input(context, 2);
    std::vector<int64_t> dims{scalar<int64_t>(context, 1)};
    size_t bytes = static_cast<size_t>(dims[0] * item_bytes_);
    for (int d = 1; d < TF_NumDims(like.get()); ++d) {
      dims.push_back(TF_Dim(like.get(), d));
      bytes *= static_cast<size_t>(dims.back());
    }
    Status status = new_status();
    Tensor output(TF_AllocateOutput(context, 0, TF_ExpectedOutputDataType(context, 0), dims.data(),
                                    static_cast<int>(dims.size()), bytes, status.get()));
    if (!output) return TF_OpKernelContext_Failure(context, status.get());
    const tfdist_span span{TF_TensorData(output.get()), static_cast<int64_t>(bytes)};
    code = tfdist_finish(group.get(), ticket, &span, 1);
    if (code != TFDIST_OK) fail_with_group(context, group.get(), code);
  }

 private:
  const int64_t group_, item_bytes_;
};

void any_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
}

void define(const char* name, const std::vector<const char*>& inputs, const std::vector<const char*>& outputs,
            const std::vector<const char*>& attributes) {
  TF_OpDefinitionBuilder* builder = TF_NewOpDefinitionBuilder(name);
  for (const char* specification : attributes) TF_OpDefinitionBuilderAddAttr(builder, specification);
  for (const char* specification : inputs) TF_OpDefinitionBuilderAddInput(builder, specification);
  for (const char* specification : outputs) TF_OpDefinitionBuilderAddOutput(builder, specification);
  TF_OpDefinitionBuilderSetIsStateful(builder, true);
  TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, any_shape);
  Status status = new_status();
  TF_RegisterOpDefinition(builder, status.get());
}

template <typename Kernel>
void* create(TF_OpKernelConstruction* construction) {
  return new Kernel(Attributes(construction));
}
template <typename Kernel>
void compute(void* kernel, TF_OpKernelContext* context) {
  static_cast<const Kernel*>(kernel)->compute(context);
}
template <typename Kernel>
void destroy(void* kernel) {
  delete static_cast<Kernel*>(kernel);
}

template <typename Kernel>
void implement(const char* name, const std::vector<const char*>& arguments) {
  for (const std::string device : {"CPU", "GPU"}) {
    TF_KernelBuilder* builder =
        TF_NewKernelBuilder(name, device.c_str(), create<Kernel>, compute<Kernel>, destroy<Kernel>);
    // Not on the CPU: TensorFlow would not forward an input there to an output that insists on host memory.
    for (const char* argument : arguments) {
      if (device == "GPU") TF_KernelBuilder_HostMemory(builder, argument);
    }
    Status status = new_status();
    TF_RegisterKernelBuilder((name + device).c_str(), builder, status.get());
  }
}

// Runs when TensorFlow loads the library.
const bool registered = [] {
  define("TfdistStart", {"tensors: T", "scale: double", "divisor: double", "step: int64", "offsets: int64"},
         {"ticket: int64", "held: H"},
         {"T: list(type) >= 0", "H: list(type) >= 0", "group: int", "plan: int", "dtype: int", "wire_dtype: int",
          "reduce: int", "channel: int", "input_chunk: int", "holds: int", "description: string"});
  define("TfdistWait", {"tickets: N * int64", "held: T"}, {"reduced: T"},
         {"N: int >= 1", "T: list(type) >= 0", "group: int", "dtype: int", "counts: list(int)"});
  define("TfdistWaitRows", {"ticket: int64", "rows: int64", "like: T"}, {"gathered: T"},
         {"T: type", "group: int", "item_bytes: int"});
  implement<Start>("TfdistStart", {"tensors", "scale", "divisor", "step", "offsets", "ticket", "held"});
  implement<Wait>("TfdistWait", {"tickets", "held", "reduced"});
  implement<WaitRows>("TfdistWaitRows", {"ticket", "rows", "like", "gathered"});
  return true;
}();

}  // namespace
