// The worker's side: pushes gradients to all servers and brings back parameters.
#ifndef TFDIST_PARAMETER_SERVER_CLIENT_H_
#define TFDIST_PARAMETER_SERVER_CLIENT_H_

#include <atomic>
#include <chrono>
#include <condition_variable>
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
  // Of a request that may have to be sent again: its gradient is there; or the answer to it is, and mostly lies where the
  // gradient was; or neither is whole.
  enum class State { kAsked, kHere, kSpent };

  int32_t tensor;
  uint32_t shard;
  size_t entry;          // of the request
  size_t begin;          // in the tensor, bytes
  size_t offset, bytes;  // in the window
  const char* gradient;  // null: nothing dense is pushed
  const char* current;
  char* fresh;           // null: nothing is pulled
  State state = State::kAsked;
};

// Rows that are asked for, by part of the tensor: their numbers within the part, and their places in the answer.
struct Wanted {
  std::vector<std::vector<int64_t>> rows, positions;
};

class Client {
 public:
  // Two sockets a server, owned from here on: one for gradients and parameters, one to ask for rows meanwhile.
  Client(int rank, int num_servers, const char* const* addresses, const int* sockets, double timeout_seconds);
  ~Client();

  int add_store(const tfdist_client_store& description);
  void begin_generation(int store, uint64_t generation, int64_t updates);
  int exchange(int store, const tfdist_exchange& call, tfdist_exchange_result* result);
  // Waits for the answer to the last push, which nobody has asked for yet.
  int flush(int store, const tfdist_span* current, int num_spans, tfdist_exchange_result* result);
  // Reads (or writes) array `slot` of `num_spans` tensors; spans whose data is null are left out.
  int transfer(int store, bool writes, int slot, const tfdist_span* spans, const tfdist_span* current, int num_spans,
               tfdist_exchange_result* result);
  int pull_rows(int store, int tensor, const int64_t* rows, int64_t num_rows, void* target,
                tfdist_exchange_result* result);
  void close();

  // See tfdist.h.
  bool recover(double seconds, int wake);
  void reconnect(int server, const int* sockets, const int32_t* numbers, int num_stores);
  bool is_lost(int server);
  void set_mirror(Client* mirror);

 private:
  // The connections with a server. They are replaced when it has been started again.
  struct Link {
    std::shared_ptr<Channel> data, rows;
    uint64_t epoch = 0;  // how often
    bool is_lost = false;
    std::vector<uint32_t> numbers;  // of the stores there
  };
  // A request to one server, and its answer.
  struct Side {
    std::shared_ptr<Channel> channel;  // on which it goes
    uint64_t epoch = 0;                // of that connection
    uint64_t offered_epoch = 0;        // the last to which was said what this worker has
    RequestHeader header;
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
    bool is_unsent = false;  // the connection broke: it is to be asked again once there is another, until `return_by`
    std::chrono::steady_clock::time_point return_by;

    // What is known of the parameters that this worker uses, and of those that lie in the window.
    size_t num_shards = 0;
    Stamp store_stamp, stamps, arrived_store_stamp, arrived;
    Memory kept;  // gradients: the window is that of the answer, too
    bool is_kept = false;
    bool offers = false;  // what the pieces tell as current is what this worker was sent
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
    void take(Failure another) {
      if (is_none()) *this = std::move(another);
    }
  };
  // Of answers: the caller's memory, which the model is then made of or not, or the windows.
  enum class Target { kModel, kCaller, kWindow };
  struct Store {
    std::vector<ClientTensor> tensors;
    std::vector<Side> sides;  // one a server
    uint64_t generation = 0, sequence = 0;
    size_t num_workers = 0;  // 0: it does not stand the loss of a server
    size_t number = 0;
    bool is_in_flight = false;
    std::vector<int32_t> in_flight;  // what it is of
    Failure late;                    // of a push whose answer came while another store was served
  };

  Store* find(int store);
  bool recovers(const Store& store) const { return recovery_seconds_ > 0 && store.num_workers > 0; }
  int address(Store* store, size_t server, bool to_window);  // the request, to the server as it is now
  std::shared_ptr<Channel> row_channel(size_t server, uint64_t* epoch, uint32_t* number, size_t store);
  void report(size_t server, uint64_t epoch);       // its connection is broken
  bool await_link(size_t server, uint64_t epoch);   // until there is a newer one
  void tell_of_links();                             // to whoever waits for one
  bool await_return(const Store& store, Side* side, size_t server);
  bool next_to_serve(Store* store, size_t* server, int* code);
  int resume(Store* store, size_t server, bool to_window, const tfdist_exchange* call);
  int offer(Store* store, size_t server, bool to_window);
  static void keep(Side* side);
  static void refill(Side* side);
  static void rebind(Side* side, const tfdist_exchange* call);
  static void promote_stamp(Side* side, const Piece& piece, size_t words);
  static void promote_stamps(Store* store);  // what lay in the windows is what this worker uses
  static bool pushes_dense(const Side& side, const Piece& piece);
  void start(int store, const tfdist_exchange& call, bool pushes, Failure* failure);
  std::future<Failure> listen(int store);
  void ask_for_rows(const Store& store, const ClientTensor& tensor, const Wanted& wanted, Failure* failure);
  void receive_rows(const ClientTensor& tensor, const Wanted& wanted, char* target, Failure* failure);
  void lay_out(Store* store, const tfdist_exchange& call, uint16_t flags);
  void add_rows(Store* store, const tfdist_exchange_rows& rows, uint16_t flags);
  static int32_t fill(const Side& side, const Store& store, bool swaps);
  static int32_t fill_all(const Store& store, const tfdist_exchange& call, bool swaps);
  int ask(Store* store, size_t server, RequestKind kind, int slot, const tfdist_exchange* call);
  void ask_all(Store* store, RequestKind kind, int slot, const tfdist_exchange* call, Failure* failure);
  int send(Side* side);
  int misunderstood(Side* side, Channel* channel);
  int receive_header(Side* side, Channel* channel);
  int receive_pieces(Store* store, Side* side, bool to_window);
  // `call`: null, or what this worker has now.
  void receive_all(Store* store, Target target, const tfdist_exchange* call, Failure* failure);
  // Reads all answers that are under way into the windows.
  Failure settle(Store* store, const tfdist_exchange* call);
  Failure settle_all(Store* store, const tfdist_exchange* call);  // those of other stores too: they come on the same connections
  void leave_in_flight(Store* store, std::vector<int32_t> chosen, bool swaps);
  int conclude(const Store& store, const Failure& failure, tfdist_exchange_result* result) const;
  int fail(const Failure& failure, tfdist_exchange_result* result) const;
  int not_finite(const Store& store, int32_t tensor, tfdist_exchange_result* result) const;
  bool check_rows(const ClientTensor& tensor, const int64_t* rows, int64_t num_rows,
                  tfdist_exchange_result* result) const;

  const int rank_;
  const double timeout_seconds_;
  std::vector<std::string> addresses_;

  std::vector<std::unique_ptr<Store>> stores_;
  std::mutex mutex_;         // one exchange at a time
  std::mutex row_mutex_;     // one request for rows at a time
  std::mutex stores_mutex_;  // guards the list of stores
  std::vector<Side> row_sides_;
  double recovery_seconds_ = 0;
  int wake_ = -1;
  int returned_[2] = {-1, -1};  // a pipe: wakes whoever waits for answers and for a new connection at once
  Client* mirror_ = nullptr;
  bool is_mirror_ = false;
  std::mutex links_mutex_;  // guards what follows
  std::condition_variable links_changed_;
  std::vector<Link> links_;
  bool is_closed_ = false;
};

constexpr double kPatienceFactor = 1.25;  // the server, which knows who is missing, is to speak first

// A connection on which something did not come in time is shut: it would come as the next answer.
int code_of(Channel* channel, Channel::Result result);

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_CLIENT_H_
