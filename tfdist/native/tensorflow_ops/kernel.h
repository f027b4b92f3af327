// What the kernels share: TensorFlow's C API with owners, and how an operation is defined and implemented.
#ifndef TFDIST_TENSORFLOW_OPS_KERNEL_H_
#define TFDIST_TENSORFLOW_OPS_KERNEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tensorflow_ops/c_api.h"
#include "tfdist.h"

namespace tfdist {

struct StatusDeleter {
  void operator()(TF_Status* status) const { TF_DeleteStatus(status); }
};
using Status = std::unique_ptr<TF_Status, StatusDeleter>;
inline Status new_status() { return Status(TF_NewStatus()); }

struct TensorDeleter {
  void operator()(TF_Tensor* tensor) const { TF_DeleteTensor(tensor); }
};
using Tensor = std::unique_ptr<TF_Tensor, TensorDeleter>;

inline Tensor input(TF_OpKernelContext* context, int index) {
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
inline Tensor output_like(TF_OpKernelContext* context, int input_index, int output_index) {
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

inline void fail(TF_OpKernelContext* context, TF_Code code, const std::string& text) {
  Status status = new_status();
  TF_SetStatus(status.get(), code, text.c_str());
  TF_OpKernelContext_Failure(context, status.get());
}

// Fails with a tfdist_code; the text is parsed by tfdist/comm/failures.py.
inline void fail(TF_OpKernelContext* context, int code, int peer, const std::string& text) {
  const auto as = [&](TF_Code kind, const char* name) {
    fail(context, kind, std::string("[tfdist ") + name + " peer=" + std::to_string(peer) + "] " + text);
  };
  switch (code) {
    case TFDIST_TIMEOUT: return as(TF_DEADLINE_EXCEEDED, "CollectiveTimeoutError");
    case TFDIST_LOST:
    case TFDIST_RAISED: return as(TF_UNAVAILABLE, "WorkerLostError");
    case TFDIST_BELOW_MINIMUM: return as(TF_UNAVAILABLE, "BelowMinimumWorkersError");
    case TFDIST_SERVER_LOST: return as(TF_UNAVAILABLE, "ServerLostError");
    case TFDIST_MISMATCH: return as(TF_INVALID_ARGUMENT, "MismatchError");
    case TFDIST_STALE: return as(TF_INVALID_ARGUMENT, "StaleUpdateError");
    case TFDIST_NOT_FINITE: return as(TF_INVALID_ARGUMENT, "NonFiniteGradientError");
    case TFDIST_CLOSED: return as(TF_ABORTED, "TransportError");
    default: return as(TF_ABORTED, "ConfigurationError");
  }
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

inline void any_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeInferenceContextSetUnknownShape(context, status);
}

inline void define(const char* name, const std::vector<const char*>& inputs, const std::vector<const char*>& outputs,
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

}  // namespace tfdist
#endif  // TFDIST_TENSORFLOW_OPS_KERNEL_H_
