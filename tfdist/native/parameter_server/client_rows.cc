// Rows of a tensor, asked for on connections of their own while a push may be under way on the others.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "common/reduce.h"
#include "parameter_server/client.h"

namespace tfdist {
namespace {

Wanted choose(const ClientTensor& tensor, const int64_t* rows, int64_t num_rows) {
  Wanted wanted;
  wanted.rows.resize(tensor.parts.size());
  wanted.positions.resize(tensor.parts.size());
  for (int64_t k = 0; k < num_rows; ++k) {
    size_t p = 0;
    while (p + 1 < tensor.parts.size() && rows[k] >= tensor.parts[p + 1].begin / tensor.row_elements) ++p;
    wanted.rows[p].push_back(rows[k] - tensor.parts[p].begin / tensor.row_elements);
    wanted.positions[p].push_back(k);
  }
  return wanted;
}

}  // namespace

// Here, so that of a bad push not even the good rows arrive anywhere; the servers look again at what reaches them.
bool Client::check_rows(const ClientTensor& tensor, const int64_t* rows, int64_t num_rows,
                        tfdist_exchange_result* result) const {
  const Part& end = tensor.parts.back();
  const int64_t num_rows_of_tensor = (end.begin + end.elements) / tensor.row_elements;
  const auto is_bad = [=](int64_t row) { return row < 0 || row >= num_rows_of_tensor; };
  const auto* bad = std::find_if(rows, rows + num_rows, is_bad);
  if (bad == rows + num_rows) return true;
  std::memset(result, 0, sizeof(*result));
  result->server = result->culprit = -1;
  std::snprintf(result->text, sizeof(result->text),
                "Rows of %s are expected to be >= 0 and < %lld. Received: row=%lld on rank %d; nothing was pushed. See "
                "what the model looks up.",
                tensor.name.c_str(), static_cast<long long>(num_rows_of_tensor), static_cast<long long>(*bad), rank_);
  return false;
}

int Client::pull_rows(int index, int tensor_index, const int64_t* rows, int64_t num_rows, void* target,
                      tfdist_exchange_result* result) {
  const Store* store = find(index);
  std::lock_guard<std::mutex> lock(row_mutex_);
  std::memset(result, 0, sizeof(*result));
  result->server = result->culprit = -1;
  const ClientTensor& tensor = store->tensors[static_cast<size_t>(tensor_index)];
  if (!check_rows(tensor, rows, num_rows, result)) return TFDIST_INVALID;
  const Wanted wanted = choose(tensor, rows, num_rows);
  for (;;) {
    Failure failure;
    ask_for_rows(*store, tensor, wanted, &failure);
    receive_rows(tensor, wanted, static_cast<char*>(target), &failure);
    if (failure.is_none()) return TFDIST_OK;
    if (failure.code != TFDIST_SERVER_LOST || !recovers(*store)) return fail(failure, result);
    const uint64_t epoch = row_sides_[failure.server].epoch;
    report(failure.server, epoch);
    if (!await_link(failure.server, epoch)) return fail(failure, result);
  }
}

// Asks all, before any is listened to: the servers work at the same time.
void Client::ask_for_rows(const Store& store, const ClientTensor& tensor, const Wanted& wanted, Failure* failure) {
  for (size_t p = 0; p < tensor.parts.size(); ++p) {
    if (wanted.rows[p].empty()) continue;
    const auto server = static_cast<size_t>(tensor.parts[p].server);
    Entry entry{tensor.parts[p].shard, EntryKind::kRows, 0, static_cast<int64_t>(wanted.rows[p].size())};
    RequestHeader header;
    header.kind = RequestKind::kRows;
    Side& side = row_sides_[server];
    side.channel = row_channel(server, &side.epoch, &header.store, store.number);
    header.num_entries = 1;
    header.row_bytes = wanted.rows[p].size() * sizeof(int64_t);
    header.check = check_of(header);
    iovec parts[3] = {{&header, sizeof(header)},
                      {&entry, sizeof(entry)},
                      {const_cast<int64_t*>(wanted.rows[p].data()), header.row_bytes}};
    const int code = code_of(side.channel.get(), side.channel->send(parts, 3));
    side.is_asked = code == TFDIST_OK;
    failure->add(code, server, side);
  }
}

void Client::receive_rows(const ClientTensor& tensor, const Wanted& wanted, char* target, Failure* failure) {
  const size_t row_bytes = static_cast<size_t>(tensor.row_elements) * element_size(tensor.dtype);
  for (size_t p = 0; p < tensor.parts.size(); ++p) {
    const auto server = static_cast<size_t>(tensor.parts[p].server);
    Side& side = row_sides_[server];
    if (!side.is_asked || wanted.rows[p].empty()) continue;
    side.is_asked = false;
    Channel* channel = side.channel.get();
    int code = receive_header(&side, channel);
    const std::vector<int64_t>& positions = wanted.positions[p];
    if (code == TFDIST_OK && side.reply.row_bytes != padded(positions.size() * row_bytes)) code = misunderstood(&side, channel);
    if (code == TFDIST_OK) {
      side.rows.resize(side.reply.row_bytes);
      code = code_of(channel, channel->receive(side.rows.data(), side.rows.size()));
    }
    failure->add(code, server, side);
    for (size_t i = 0; i < positions.size() && code == TFDIST_OK; ++i) {
      std::memcpy(target + static_cast<size_t>(positions[i]) * row_bytes, side.rows.data() + i * row_bytes, row_bytes);
    }
  }
}

}  // namespace tfdist
