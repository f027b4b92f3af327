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

#include "tensorflow_ops/kernel.h"
#include "tfdist.h"

namespace tfdist {
namespace {

struct GroupReleaser {
  void operator()(tfdist_group* group) const { tfdist_group_release(group); }
};
using Group = std::unique_ptr<tfdist_group, GroupReleaser>;

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
  fail(context, code, peer, message);
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
    std::vector<int64_t> tickets;
    for (int t = 0; t < num_tickets; ++t) tickets.push_back(scalar<int64_t>(context, t));
    int code = tfdist_wait_all(group.get(), tickets.data(), num_tickets, -1, 1);
    if (code != TFDIST_OK) return fail_with_group(context, group.get(), code);
    int next = 0;
    for (int t = 0; t < num_tickets; ++t) {
      const int64_t ticket = tickets[static_cast<size_t>(t)];
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
}  // namespace tfdist
