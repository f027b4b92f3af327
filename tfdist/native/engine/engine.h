// Executes plans over sockets and shared memory.
//
// Whoever waits for an operation drives the engine: it moves pieces itself, spins for a moment when nothing moves and
// then sleeps in poll(). While nobody waits, the engine's own thread does so. Operations carry tags, so any number may
// be in flight in any order; a piece for an operation that this rank has not started stays where it is, or is held. The
// first failure ends the group: everything in flight, and everything after, reports it.
#ifndef TFDIST_ENGINE_ENGINE_H_
#define TFDIST_ENGINE_ENGINE_H_

#include <poll.h>

#include <atomic>
#include <condition_variable>
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
  explicit Engine(const tfdist_group_options& options);
  ~Engine();

  int load_plan(const int32_t* steps, int num_steps, int num_chunks);
  int64_t start(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs, const tfdist_span* outputs);
  int64_t run(const tfdist_operation& request, double timeout_seconds);
  int wait(int64_t ticket, double timeout_seconds, bool give_up);
  int finish(int64_t ticket, const tfdist_span* outputs, int num_outputs);
  void close(const char* failure);
  void set_timeout(double seconds) { timeout_seconds_ = seconds; }
  Failure failure();
  int64_t copied_bytes() const { return copied_bytes_; }
  // For a group whose members change, see elastic/.
  int await_failure(double timeout_seconds);
  int num_chunks(int plan);
  void divide(int64_t ticket, double divisor);
  void abandon();
  void drop(int peer);
  void watch(double seconds);

 private:
  static constexpr size_t kEarlyBytesAtMost = size_t{1} << 30;  // past this a peer that runs ahead is not read

  // engine.cc: called by users' threads.
  void wake();
  void call_thread();
  int64_t submit(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs, const tfdist_span* outputs);
  Operation* take_operation();
  Operation* find(int64_t ticket);
  bool describe(const tfdist_operation& request, Operation* operation);
  bool prepare(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs, const tfdist_span* outputs,
               Operation* operation);
  bool cut(const tfdist_operation& request, Operation* operation);
  void lay_out(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs, const tfdist_span* outputs,
               Operation* operation);
  // drive.cc: one thread at a time.
  bool try_drive() { return !driven_.exchange(true, std::memory_order_acquire); }
  void release_drive();
  bool over(const Operation& operation) const { return operation.finished.load(std::memory_order_acquire) || failed_code_ != TFDIST_OK; }
  bool await(const Operation& operation, Clock::time_point deadline);
  void drive_until(const Operation& operation, Clock::time_point deadline);
  bool drive(bool reads_sockets);
  void take_submitted();
  void block(Clock::time_point deadline);
  bool arm(bool by_waiter);
  int poll_milliseconds() const;
  void fill(std::vector<pollfd>* descriptors) const;
  void read_ready(const std::vector<pollfd>& descriptors);
  void loop();
  void say_goodbye();
  void admit(Operation* operation);
  bool settle(Operation* operation);
  bool settle_once(Operation* operation);
  // send.cc
  bool pump();
  bool pump(Operation* operation);
  bool flush();
  bool flush(Stream* stream);
  bool flush_once(Stream* stream);
  bool write(Operation* operation, int step);
  bool post(Operation* operation, int step);
  FrameHeader header_of(const Operation& operation, int step) const;
  void ring(Peer* peer, uint32_t reason);
  // receive.cc
  bool read_shared(Peer* peer, bool hold);
  bool hold_what_is_stuck();
  bool read(Peer* peer, Stream* stream);
  void choose_target(Peer* peer, Stream* stream);
  void part_arrived(Stream* stream);
  void frame_arrived(Peer* peer, Stream* stream);
  void hold(Peer* peer, const FrameHeader& header, Buffer data);
  bool agrees(const Operation& operation, const FrameHeader& header, int peer);
  bool can_take(const Operation& operation, int step, const FrameHeader& header) const;
  void take(Operation* operation, int step, const char* data, int64_t length);
  void lost(Peer* peer, const std::string& cause);
  Operation* by_tag(uint64_t tag) const;
  // diagnosis.cc: who disagrees, who has not arrived.
  void control_arrived(Peer* peer, const FrameHeader& header, const std::string& text);
  void send_control(Peer* peer, FrameType type, uint64_t tag, const std::string& text);
  void report_status(Peer* peer, uint64_t tag);
  void status_arrived(Peer* peer, const FrameHeader& header, const std::string& text);
  void describe_arrived(Peer* peer, uint64_t tag, const std::string& text);
  void mismatch(int peer, uint64_t tag);
  void check_clocks();
  void query_stalled();
  void give_up_waiting(Operation* operation);
  bool peer_left_early(const Operation& operation);
  std::string text_of(uint64_t tag) const;
  bool is_recent(uint64_t tag) const;
  bool stalled(const Operation& operation) const;
  double patience_seconds() const;
  // heartbeat.cc: who has fallen silent.
  bool has_heartbeat() const { return heartbeat_ > Clock::duration::zero(); }
  Clock::duration look_interval() const { return heartbeat_ / 8; }
  bool holds_too_much() const { return early_bytes_ > kEarlyBytesAtMost; }
  bool watches() const { return Clock::now().time_since_epoch().count() < watched_until_; }
  void check_pulses();
  void check_pulse(Peer* peer, Clock::time_point now, bool was_away);
  bool has_moved(Peer* peer);
  bool has_moved_after_all(Peer* peer);
  void look_around(std::vector<pollfd>* descriptors);
  void fail(int code, int peer, const std::string& text, int reporter = -1);
  std::string headline(const Operation& operation) const;
  std::string name(int peer) const;

  const int rank_, world_size_;
  std::vector<int> slots_;   // by which users know the ranks
  const bool zeroes_;        // chunks that no rank fills are read
  const uint32_t generation_;
  bool is_eager_;            // the engine's thread moves data while nobody waits
  const bool is_crowded_;    // more ranks than cores: a spinning rank would keep a peer from running
  const Clock::duration heartbeat_;  // 0: none
  std::atomic<double> timeout_seconds_;
  int wake_read_ = -1, wake_write_ = -1;
  Pool pool_;

  std::mutex mutex_;  // guards the next block
  std::condition_variable changed_;   // an operation has finished, or nobody drives any more
  std::condition_variable standby_;   // where the engine's thread stays while others drive
  bool is_wanted_ = false;            // it is to look again
  std::vector<std::shared_ptr<const Plan>> plans_;
  std::vector<std::unique_ptr<Operation>> operations_;  // a ticket's low bits are its index here
  std::vector<Operation*> free_;
  std::vector<Operation*> submitted_, given_up_;
  std::unordered_map<uint64_t, uint64_t> sequences_;  // by channel
  std::unordered_map<uint64_t, std::shared_ptr<const std::string>> descriptions_;  // by signature
  int64_t next_ticket_ = 1;
  Failure failure_;
  std::string closing_reason_;

  std::atomic<int64_t> copied_bytes_{0};
  std::atomic<int> failed_code_{TFDIST_OK};
  std::atomic<bool> closing_{false};
  std::atomic<bool> is_abandoned_{false};  // leaves without a word
  std::atomic<bool> driven_{false};     // somebody drives
  std::atomic<bool> blocked_{false};    // a driving waiter is about to sleep in poll()
  std::atomic<bool> is_cold_{true};     // the engine's thread sleeps without a limit
  std::atomic<bool> has_work_{false};   // submitted_ or given_up_ hold something
  std::atomic<int> waiters_{0};
  std::atomic<int64_t> watched_until_{0};  // peers are asked until then as if an operation waited, nanoseconds of Clock
  std::atomic<int> sleepers_{0};        // waiting for changed_
  std::atomic<bool> has_active_{false};  // operations are under way
  std::atomic<int64_t> last_waited_{0};  // when a waiter last left, nanoseconds of Clock

  // Whoever drives, only.
  bool failed_ = false;
  bool starved_ = false;                      // a piece could not be posted for want of a slot
  std::vector<std::unique_ptr<Peer>> peers_;  // null at rank_
  std::unique_ptr<Segment> segment_;          // what this rank posts; null: no peer shares its memory
  std::vector<Peer*> shared_peers_, stream_peers_;
  std::vector<Operation*> active_;            // in the order they were started
  std::vector<Operation*> arriving_;          // take_submitted's copy of submitted_
  std::vector<HeldPiece> early_;              // pieces of operations not started here, as they came
  size_t early_bytes_ = 0;
  struct Finished {
    uint64_t tag = 0;
    int64_t step = -1;
    std::shared_ptr<const std::string> description;
  };
  std::vector<Finished> recent_;  // for late questions, the oldest at next_recent_
  size_t next_recent_ = 0;
  std::vector<pollfd> waiter_descriptors_, thread_descriptors_;
  Clock::time_point last_active_;
  Clock::time_point last_look_;              // at the peers' pulses
  uint64_t disputed_tag_ = 0;  // waiting for the other side's description
  int disputed_peer_ = -1;
  Clock::time_point disputed_until_;

  std::mutex close_mutex_;  // one closer joins the thread
  std::thread thread_;
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_ENGINE_H_
