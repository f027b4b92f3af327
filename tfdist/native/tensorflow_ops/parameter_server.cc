// A worker's step with parameter servers, in one kernel: gradients go in, parameters come out. It blocks until the answer
// is there; with `prefetch` that is the answer to the push before, which has come while the gradients were computed.
// Parameters are written where the gradients lay, if nobody else needs those.

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tensorflow_ops/kernel.h"
#include "tfdist.h"

namespace tfdist {
namespace {

struct ClientReleaser {
  void operator()(tfdist_client* client) const { tfdist_client_release(client); }
};
using Client = std::unique_ptr<tfdist_client, ClientReleaser>;

Client find_client(TF_OpKernelContext* context, int64_t id) {
  Client client(tfdist_client_find(id));
  if (!client) fail(context, TF_ABORTED, "[tfdist TransportError peer=-1] the strategy of this graph was closed");
  return client;
}

// TfdistExchange(dense..., current..., row_indices..., row_values..., whole..., learning_rate, weight)
//   -> fresh..., fresh_whole..., updates
class Exchange {
 public:
  explicit Exchange(Attributes attributes)
      : client_(attributes.integer("client")),
        store_(attributes.integer("store")),
        tensors_(attributes.integers("tensors")),
        row_tensors_(attributes.integers("row_tensors")),
        whole_tensors_(attributes.integers("whole_tensors")) {
    call_.is_sum = static_cast<int32_t>(attributes.integer("is_sum"));
    call_.prefetch = static_cast<int32_t>(attributes.integer("prefetch"));
    call_.is_synchronous = static_cast<int32_t>(attributes.integer("is_synchronous"));
    call_.not_finite = static_cast<int32_t>(attributes.integer("not_finite"));
    call_.offers = static_cast<int32_t>(attributes.integer("offers"));
    call_.is_pushed = 1;
  }

  void compute(TF_OpKernelContext* context) const {
    Client client = find_client(context, client_);
    if (!client) return;
    const int num_dense = static_cast<int>(tensors_.size()), num_rows = static_cast<int>(row_tensors_.size());
    const int num_whole = static_cast<int>(whole_tensors_.size());
    const bool has_current = call_.prefetch || call_.offers;  // only then those values are inputs
    const int first_row = has_current ? 2 * num_dense : num_dense;
    const int first_whole = first_row + 2 * num_rows;
    std::vector<Tensor> kept;
    const auto keep = [&](Tensor tensor) {
      kept.push_back(std::move(tensor));
      return TF_TensorData(kept.back().get());
    };
    std::vector<tfdist_exchange_dense> dense;
    for (int i = 0; i < num_dense; ++i) {
      Tensor fresh = output_like(context, i, i);
      if (!fresh) return;
      void* target = keep(std::move(fresh));
      const void* current = has_current ? keep(input(context, num_dense + i)) : nullptr;
      dense.push_back({static_cast<int32_t>(tensors_[i]), 0, keep(input(context, i)), current, target});
    }
    std::vector<tfdist_exchange_rows> rows;
    for (int i = 0; i < num_rows; ++i) {
      Tensor indices = input(context, first_row + i);
      const int64_t count = TF_TensorElementCount(indices.get());
      rows.push_back({static_cast<int32_t>(row_tensors_[i]), 0, static_cast<const int64_t*>(keep(std::move(indices))),
                      keep(input(context, first_row + num_rows + i)), count, nullptr, nullptr});
    }
    for (int i = 0; i < num_whole; ++i) {
      Tensor fresh = output_like(context, first_whole + i, num_dense + i);
      if (!fresh) return;
      void* target = keep(std::move(fresh));
      for (auto& row : rows) {
        if (row.tensor != whole_tensors_[i]) continue;
        row.fresh = target;
        row.current = keep(input(context, first_whole + i));
      }
    }
    tfdist_exchange call = call_;
    call.dense = dense.data();
    call.num_dense = num_dense;
    call.rows = rows.data();
    call.num_rows = num_rows;
    call.learning_rate = scalar<double>(context, first_whole + num_whole);
    call.weight = scalar<double>(context, first_whole + num_whole + 1);
    tfdist_exchange_result result;
    const int code = tfdist_client_exchange(client.get(), static_cast<int32_t>(store_), &call, &result);
    if (code != TFDIST_OK) return fail(context, code, -1, result.text);
    Status status = new_status();
    Tensor updates(TF_AllocateOutput(context, num_dense + num_whole, TF_INT64, nullptr, 0, sizeof(int64_t), status.get()));
    if (!updates) return TF_OpKernelContext_Failure(context, status.get());
    *static_cast<int64_t*>(TF_TensorData(updates.get())) = result.updates;
  }

 private:
  const int64_t client_, store_;
  const std::vector<int64_t> tensors_, row_tensors_, whole_tensors_;
  tfdist_exchange call_{};
};

// TfdistPullRows(indices) -> those rows of the parameters as they are now.
class PullRows {
 public:
  explicit PullRows(Attributes attributes)
      : client_(attributes.integer("client")),
        store_(attributes.integer("store")),
        tensor_(attributes.integer("tensor")),
        row_shape_(attributes.integers("row_shape")),
        item_bytes_(attributes.integer("item_bytes")) {}

  void compute(TF_OpKernelContext* context) const {
    Client client = find_client(context, client_);
    if (!client) return;
    const Tensor indices = input(context, 0);
    std::vector<int64_t> dims{TF_TensorElementCount(indices.get())};
    size_t bytes = static_cast<size_t>(dims[0] * item_bytes_);
    for (const int64_t size : row_shape_) {
      dims.push_back(size);
      bytes *= static_cast<size_t>(size);
    }
    Status status = new_status();
    Tensor rows(TF_AllocateOutput(context, 0, TF_ExpectedOutputDataType(context, 0), dims.data(),
                                  static_cast<int>(dims.size()), bytes, status.get()));
    if (!rows) return TF_OpKernelContext_Failure(context, status.get());
    tfdist_exchange_result result;
    const int code = tfdist_client_pull_rows(client.get(), static_cast<int32_t>(store_), static_cast<int32_t>(tensor_),
                                             static_cast<const int64_t*>(TF_TensorData(indices.get())), dims[0],
                                             TF_TensorData(rows.get()), &result);
    if (code != TFDIST_OK) fail(context, code, -1, result.text);
  }

 private:
  const int64_t client_, store_, tensor_;
  const std::vector<int64_t> row_shape_;
  const int64_t item_bytes_;
};

// Runs when TensorFlow loads the library.
const bool registered = [] {
  define("TfdistExchange",
         {"dense: D", "current: C", "row_indices: N * int64", "row_values: V", "whole: W", "learning_rate: double",
          "weight: double"},
         {"fresh: D", "fresh_whole: W", "updates: int64"},
         {"D: list(type) >= 0", "C: list(type) >= 0", "N: int >= 0", "V: list(type) >= 0", "W: list(type) >= 0", "client: int", "store: int",
          "tensors: list(int)", "row_tensors: list(int)", "whole_tensors: list(int)", "is_sum: int", "prefetch: int",
          "is_synchronous: int", "not_finite: int", "offers: int"});
  define("TfdistPullRows", {"indices: int64"}, {"rows: T"},
         {"T: type", "client: int", "store: int", "tensor: int", "row_shape: list(int)", "item_bytes: int"});
  implement<Exchange>("TfdistExchange", {"dense", "current", "row_indices", "row_values", "whole", "learning_rate", "weight",
                                         "fresh", "fresh_whole", "updates"});
  implement<PullRows>("TfdistPullRows", {"indices", "rows"});
  return true;
}();

}  // namespace
}  // namespace tfdist
