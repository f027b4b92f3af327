// What a worker says of its tensors in a request, and where their values lie in the windows.
#include <algorithm>
#include <cstring>

#include "common/copy.h"
#include "common/reduce.h"
#include "parameter_server/client.h"
#include "parameter_server/finite.h"

namespace tfdist {
namespace {

constexpr size_t kSwapBytes = 1 << 14;  // stays in the L1 cache

}  // namespace

void Client::lay_out(Store* store, const tfdist_exchange& call, uint16_t flags) {
  for (Side& side : store->sides) {
    side.entries.clear();
    side.pieces.clear();
    side.rows.clear();
    side.dense_bytes = 0;
    side.offers = call.offers != 0;
  }
  for (int32_t i = 0; i < call.num_dense; ++i) {
    const tfdist_exchange_dense& dense = call.dense[i];
    const ClientTensor& tensor = store->tensors[static_cast<size_t>(dense.tensor)];
    const size_t size = element_size(tensor.dtype);
    const auto at = [](const void* base, size_t offset) {
      return base == nullptr ? nullptr : static_cast<char*>(const_cast<void*>(base)) + offset;
    };
    for (const Part& part : tensor.parts) {
      Side& side = store->sides[static_cast<size_t>(part.server)];
      const size_t begin = static_cast<size_t>(part.begin) * size, bytes = static_cast<size_t>(part.elements) * size;
      side.entries.push_back(Entry{part.shard, EntryKind::kDense, flags, 0});
      const char* gradient = (flags & kPush) ? at(dense.gradient, begin) : nullptr;
      char* fresh = (flags & kPull) ? at(dense.fresh, begin) : nullptr;
      side.pieces.push_back(Piece{dense.tensor, part.shard, side.entries.size() - 1, begin, side.dense_bytes, bytes, gradient,
                                  at(dense.current, begin), fresh});
      side.dense_bytes += aligned(bytes);
    }
  }
  for (int32_t i = 0; i < call.num_rows; ++i) add_rows(store, call.rows[i], flags);
}

void Client::add_rows(Store* store, const tfdist_exchange_rows& rows, uint16_t flags) {
  const ClientTensor& tensor = store->tensors[static_cast<size_t>(rows.tensor)];
  const size_t size = element_size(tensor.dtype), row_bytes = static_cast<size_t>(tensor.row_elements) * size;
  for (const Part& part : tensor.parts) {
    Side& side = store->sides[static_cast<size_t>(part.server)];
    const int64_t first = part.begin / tensor.row_elements, last = first + part.elements / tensor.row_elements;
    std::vector<int64_t> chosen;
    for (int64_t k = 0; k < rows.num_rows; ++k) {
      const int64_t row = rows.indices[k];
      if (row >= first && row < last) chosen.push_back(k);
    }
    const bool pushes = (flags & kPush) != 0, pulls = rows.fresh != nullptr && (flags & kPull) != 0;
    const size_t begin = side.rows.size(), count = pushes ? chosen.size() : 0;
    side.rows.resize(begin + count * sizeof(int64_t) + padded(count * row_bytes));
    char* next = side.rows.data() + begin;
    for (size_t i = 0; i < count; ++i, next += sizeof(int64_t)) {
      const int64_t row = rows.indices[chosen[i]] - first;
      std::memcpy(next, &row, sizeof(row));
    }
    for (size_t i = 0; i < count; ++i, next += row_bytes) {
      std::memcpy(next, static_cast<const char*>(rows.values) + static_cast<size_t>(chosen[i]) * row_bytes, row_bytes);
    }
    const auto entry_flags = static_cast<uint16_t>((pushes ? kPush : 0) | (pulls ? kPull : 0));
    side.entries.push_back(Entry{part.shard, EntryKind::kRows, entry_flags, static_cast<int64_t>(count)});
    if (!pulls) continue;
    const size_t offset = static_cast<size_t>(part.begin) * size, bytes = static_cast<size_t>(part.elements) * size;
    const char* current = rows.current == nullptr ? nullptr : static_cast<const char*>(rows.current) + offset;
    char* fresh = static_cast<char*>(rows.fresh) + offset;
    side.pieces.push_back(Piece{rows.tensor, part.shard, side.entries.size() - 1, offset, side.dense_bytes, bytes, nullptr,
                                current, fresh});
    side.dense_bytes += aligned(bytes);
  }
}

// Copies gradients into the window, or exchanges them for the answer that lies there. Returns the tensor whose gradient
// is not finite, or -1.
int32_t Client::fill(const Side& side, const Store& store, bool swaps) {
  int32_t culprit = -1;
  char answer[kSwapBytes];
  for (const Piece& piece : side.pieces) {
    char* window = side.window.data() + piece.offset;
    const int32_t dtype = store.tensors[static_cast<size_t>(piece.tensor)].dtype;
    for (size_t begin = 0; begin < piece.bytes; begin += kSwapBytes) {
      const size_t bytes = std::min(kSwapBytes, piece.bytes - begin);
      if (swaps) copy_bytes(answer, window + begin, bytes);
      if (piece.gradient != nullptr && !copy_finite(dtype, window + begin, piece.gradient + begin, bytes)) {
        if (culprit < 0) culprit = piece.tensor;
      }
      if (swaps && piece.fresh != nullptr) copy_bytes(piece.fresh + begin, answer, bytes);
    }
  }
  return culprit;
}

// The same of all servers, and a look at the rows.
int32_t Client::fill_all(const Store& store, const tfdist_exchange& call, bool swaps) {
  int32_t culprit = -1;
  for (const Side& side : store.sides) culprit = std::max(culprit, fill(side, store, swaps));
  for (int32_t i = 0; i < call.num_rows; ++i) {
    const ClientTensor& tensor = store.tensors[static_cast<size_t>(call.rows[i].tensor)];
    const auto bytes = static_cast<size_t>(call.rows[i].num_rows * tensor.row_elements) * element_size(tensor.dtype);
    if (call.is_pushed && !is_finite(tensor.dtype, call.rows[i].values, bytes)) culprit = call.rows[i].tensor;
  }
  return culprit;
}

}  // namespace tfdist
