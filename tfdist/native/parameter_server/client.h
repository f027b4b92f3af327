// The worker's side: pushes gradients to all servers and brings back parameters.
#ifndef TFDIST_PARAMETER_SERVER_CLIENT_H_
#define TFDIST_PARAMETER_SERVER_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parameter_server/channel.h"
#include "parameter_server/memory.h"
#include "parameter_server/protocol.h"
#include "tfdist.h"

namespace tfdist {

// A stretch of a tensor that one server keeps; rows of the tensor are never cut.
struct Part {
  int server;
  uint32_t shard;
  int64_t begin, elements;
};

struct ClientTensor {
  std::string name;
  int32_t dtype;
  int64_t row_elements;
  std::vector<Part> parts;
};

// A part's place in the window of its server, and the worker's memory that belongs to it.
struct Piece {
  int32_t tensor;
  size_t offset, bytes;
  const char* gradient;  // null: nothing dense is pushed
  const char* current;
  char* fresh;           // null: nothing is pulled
};

class Client {
 public:
  // Two sockets a server, owned from here on: one for gradients and parameters, one to ask for rows meanwhile.
  Client(int rank, int num_servers, const char* const* addresses, const int* sockets, double timeout_seconds);
  ~Client() { close(); }

  int add_store(const tfdist_client_store& description);
  void begin_generation(int store, uint64_t generation, int64_t updates);
  int exchange(int store, const tfdist_exchange& call, tfdist_exchange_result* result);
  // Waits for the answer to the last push, which nobody has asked for yet.
  int flush(int store, tfdist_exchange_result* result);
  // Reads (or writes) array `slot` of `num_spans` tensors; spans whose data is null are left out.
  int transfer(int store, bool writes, int slot, const tfdist_span* spans, int num_spans, tfdist_exchange_result* result);
  int pull_rows(int store, int tensor, const int64_t* rows, int64_t num_rows, void* target, tfdist_exchange_result* result);
  void close();

 private:
  // A request to one server, and its answer.
  struct Side {
    uint32_t store = 0;  // its number there
    std::vector<Entry> entries;
    std::vector<Piece> pieces;
    std::vector<char> rows;
    size_t dense_bytes = 0;
    Memory window;
    bool is_shared = false;
    int64_t updates = 0;   // that the parameters which this worker uses have seen
    int64_t answered = 0;  // that those in the window have seen
    ReplyHeader reply;
    std::string text;
    std::future<int> pending;  // reads the answer into the window, where memory is not shared
    bool is_asked = false;
  };
  struct Store {
    std::vector<ClientTensor> tensors;
    std::vector<Side> sides;  // one a server
    uint64_t generation = 0, sequence = 0;
    bool is_in_flight = false;
    std::vector<int32_t> in_flight;  // what it is of
  };

  Store* find(int store) { return stores_[static_cast<size_t>(store)].get(); }
  void lay_out(Store* store, const tfdist_exchange& call, uint16_t flags);
  void add_rows(Store* store, const tfdist_exchange_rows& rows, uint16_t flags);
  static int32_t fill(const Side& side, const Store& store, bool swaps);
  int ask(Store* store, size_t server, RequestKind kind, int slot, const tfdist_exchange* call);
  int send(Side* side, size_t server, const RequestHeader& header);
  int receive_header(Side* side, Channel* channel);
  int receive_pieces(Side* side, Channel* channel, bool to_window);
  int settle(Store* store);       // reads all answers that are under way into the windows
  int settle_everybody_but(Store* store);
  int conclude(Store* store, int code, size_t server, tfdist_exchange_result* result);
  int fail(int code, size_t server, const std::string& text, tfdist_exchange_result* result) const;
  int not_finite(const Store& store, int32_t tensor, tfdist_exchange_result* result) const;

  const int rank_;
  const double timeout_seconds_;
  std::vector<std::string> addresses_;

  std::vector<std::unique_ptr<Channel>> channels_, row_channels_;
  std::vector<std::unique_ptr<Store>> stores_;
  std::mutex mutex_;      // one exchange at a time
  std::mutex row_mutex_;  // one request for rows at a time
  std::vector<Side> row_sides_;
  size_t failed_ = 0;  // the server of the last failure
};

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_CLIENT_H_
