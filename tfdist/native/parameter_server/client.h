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

// Rows that are asked for, by part of the tensor: their numbers within the part, and their places in the answer.
struct Wanted {
  std::vector<std::vector<int64_t>> rows, positions;
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
  int transfer(int store, bool writes, int slot, const tfdist_span* spans, int num_spans,
               tfdist_exchange_result* result);
  int pull_rows(int store, int tensor, const int64_t* rows, int64_t num_rows, void* target,
                tfdist_exchange_result* result);
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
    int64_t updates = 0;  // that the parameters which this worker uses have seen
    ReplyHeader reply;    // that is being received
    ReplyHeader last;     // that came last, whole: while a push is under way, that of the one before
    std::string text;
    std::future<int> pending;  // reads the answer into the window, where memory is not shared
    bool is_asked = false;
  };
  // The first that went wrong in a call.
  struct Failure {
    int code = TFDIST_OK;
    size_t server = 0;
    std::string text;
    bool is_none() const { return code == TFDIST_OK; }
    void add(int another, size_t at, const Side& side) {
      if (is_none() && another != TFDIST_OK) *this = {another, at, side.text};
    }
  };
  struct Store {
    std::vector<ClientTensor> tensors;
    std::vector<Side> sides;  // one a server
    uint64_t generation = 0, sequence = 0;
    bool is_in_flight = false;
    std::vector<int32_t> in_flight;  // what it is of
    Failure late;                    // of a push whose answer came while another store was served
  };

  Store* find(int store);
  void ask_for_rows(const Store& store, const ClientTensor& tensor, const Wanted& wanted, Failure* failure);
  void receive_rows(const ClientTensor& tensor, const Wanted& wanted, char* target, Failure* failure);
  void lay_out(Store* store, const tfdist_exchange& call, uint16_t flags);
  void add_rows(Store* store, const tfdist_exchange_rows& rows, uint16_t flags);
  static int32_t fill(const Side& side, const Store& store, bool swaps);
  static int32_t fill_all(const Store& store, const tfdist_exchange& call, bool swaps);
  int ask(Store* store, size_t server, RequestKind kind, int slot, const tfdist_exchange* call);
  void ask_all(Store* store, RequestKind kind, int slot, const tfdist_exchange* call, Failure* failure);
  int send(Side* side, size_t server, const RequestHeader& header);
  int misunderstood(Side* side, Channel* channel);
  int receive_header(Side* side, Channel* channel);
  int receive_pieces(Side* side, Channel* channel, bool to_window);
  void receive_all(Store* store, bool is_of_parameters, Failure* failure);
  Failure settle(Store* store);      // reads all answers that are under way into the windows
  Failure settle_all(Store* store);  // those of other stores too: they come on the same connections
  void leave_in_flight(Store* store, std::vector<int32_t> chosen, bool swaps);
  int conclude(const Store& store, const Failure& failure, tfdist_exchange_result* result) const;
  int fail(const Failure& failure, tfdist_exchange_result* result) const;
  int not_finite(const Store& store, int32_t tensor, tfdist_exchange_result* result) const;
  bool check_rows(const ClientTensor& tensor, const int64_t* rows, int64_t num_rows,
                  tfdist_exchange_result* result) const;

  const int rank_;
  const double timeout_seconds_;
  std::vector<std::string> addresses_;

  std::vector<std::unique_ptr<Channel>> channels_, row_channels_;
  std::vector<std::unique_ptr<Store>> stores_;
  std::mutex mutex_;         // one exchange at a time
  std::mutex row_mutex_;     // one request for rows at a time
  std::mutex stores_mutex_;  // guards the list of stores
  std::vector<Side> row_sides_;
};

// A connection on which something did not come in time is shut: it would come as the next answer.
int code_of(Channel* channel, Channel::Result result);

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_CLIENT_H_
