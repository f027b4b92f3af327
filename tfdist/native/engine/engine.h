// Executes plans over links, on one background thread that sleeps in poll() when there is nothing to do.
//
// Operations carry tags, so any number may be in flight in any order. A piece for an operation that this rank has not
// started is held. The first failure ends the group: everything in flight, and everything after, reports it.
#ifndef TFDIST_ENGINE_ENGINE_H_
#define TFDIST_ENGINE_ENGINE_H_

#include <atomic>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "common/pool.h"
#include "engine/operation.h"
#include "engine/peer.h"

namespace tfdist {

class Engine {
 public:
  Engine(int rank, int world_size, const int* descriptors, uint32_t generation, double timeout_seconds);
  ~Engine();

  int load_plan(const int32_t* steps, int num_steps, int num_chunks);
  int64_t start(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs);
  int wait(int64_t ticket, double timeout_seconds, bool give_up);
  int finish(int64_t ticket, const tfdist_span* outputs, int num_outputs);
  void close(const char* failure);
  void set_timeout(double seconds) { timeout_seconds_ = seconds; }
  Failure failure();

 private:
  using OperationPtr = std::shared_ptr<Operation>;

  // engine.cc: called by users' threads.
  void wake();
  bool prepare(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs, Operation* operation);
  // loop.cc: the engine's thread.
  void loop();
  void poll_once();
  int poll_timeout() const;
  void admit(const OperationPtr& operation);
  void settle(const OperationPtr& operation);
  bool settle_once(Operation* operation);
  void pump(Peer* peer);
  bool next_data_frame(Peer* peer);
  void receive(Peer* peer);
  void choose_target(Peer* peer);
  void frame_arrived(Peer* peer);
  bool agrees(const Operation& operation, const FrameHeader& header, int peer);
  bool can_take(const Operation& operation, int step, const FrameHeader& header) const;
  void take(Operation* operation, int step, const char* data, int64_t length);
  void lost(Peer* peer, const std::string& cause);
  void say_goodbye();
  // diagnosis.cc: the engine's thread; who disagrees, who has not arrived.
  void control_arrived(Peer* peer, const std::string& text);
  void report_status(Peer* peer, uint64_t tag);
  void status_arrived(Peer* peer, const FrameHeader& header, const std::string& text);
  void describe_arrived(Peer* peer, uint64_t tag, const std::string& text);
  void mismatch(int peer, uint64_t tag);
  void check_clocks();
  void query_stalled();
  void give_up_waiting(const OperationPtr& operation);
  bool peer_left_early(const Operation& operation);
  std::string text_of(uint64_t tag) const;
  bool stalled(const Operation& operation) const;
  double patience_seconds() const;
  void fail(int code, int peer, const std::string& text, int reporter = -1);
  std::string headline(const Operation& operation) const;
  std::string name(int peer) const;

  const int rank_, world_size_;
  const uint32_t generation_;
  std::atomic<double> timeout_seconds_;
  int wake_read_ = -1, wake_write_ = -1;
  Pool pool_;

  std::mutex mutex_;  // guards the next block
  std::condition_variable changed_;
  std::vector<std::shared_ptr<const Plan>> plans_;
  std::deque<OperationPtr> submitted_;
  std::vector<int64_t> given_up_;
  std::map<int64_t, OperationPtr> tickets_;
  std::unordered_map<uint64_t, uint64_t> sequences_;  // by channel
  int64_t next_ticket_ = 1;
  Failure failure_;
  bool closing_ = false;
  std::string closing_reason_;

  // Engine thread only.
  bool failed_ = false;
  std::vector<std::unique_ptr<Peer>> peers_;  // null at rank_
  std::vector<OperationPtr> active_;          // in the order they were started
  std::unordered_map<uint64_t, OperationPtr> by_tag_;
  std::unordered_map<uint64_t, std::vector<HeldPiece>> early_;  // pieces of operations not started here
  size_t early_bytes_ = 0;
  std::deque<std::pair<uint64_t, std::string>> recent_;  // finished operations, for late questions
  uint64_t disputed_tag_ = 0;                            // waiting for the other side's description
  int disputed_peer_ = -1;
  Clock::time_point disputed_until_;

  std::mutex close_mutex_;  // one closer joins the thread
  std::thread thread_;
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_ENGINE_H_
