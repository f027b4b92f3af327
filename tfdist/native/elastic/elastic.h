// Collectives that outlive the engine which runs them.
//
// A group whose members may be lost keeps the inputs of every collective until all members are known to have its result.
// What is waited for together is *committed* together, by one more small all-reduce: who has returned from a wait knows
// that everybody else has the results too. After a loss the members tell each other what they have committed. What
// one has committed all have, and keep; everything else is done again, from its inputs, by a new engine over
// the members that are left. So a collective has either happened everywhere, with the lost one's share, or without it.
#ifndef TFDIST_ELASTIC_ELASTIC_H_
#define TFDIST_ELASTIC_ELASTIC_H_

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/engine.h"

namespace tfdist {

constexpr int kFlags = 4;  // numbers of which every commit yields the maximum over the members

class Elastic {
 public:
  explicit Elastic(const tfdist_group_options& options);
  ~Elastic();

  int load_plan(const int32_t* steps, int num_steps, int num_chunks) { return engine_->load_plan(steps, num_steps, num_chunks); }
  void set_commit_plan(int plan) { commit_plan_ = plan; }
  int64_t start(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs, const tfdist_span* outputs);
  int64_t run(const tfdist_operation& request, double timeout_seconds);
  int wait(const int64_t* tickets, int num_tickets, double timeout_seconds, bool give_up);
  int finish(int64_t ticket, const tfdist_span* outputs, int num_outputs);
  void close(const char* failure);
  void set_timeout(double seconds);
  Failure failure();
  int64_t copied_bytes() { return current()->copied_bytes(); }

  // Of the thread that looks after the membership.
  int await_failure(double timeout_seconds);
  std::string report();
  bool prepare(const tfdist_group_options& options);
  int load_next_plan(const int32_t* steps, int num_steps, int num_chunks) { return next_->load_plan(steps, num_steps, num_chunks); }
  int reform(const uint64_t* channels, const int64_t* counts, int num_channels, bool starts_anew);
  void give_up(int code, int peer, const char* text);
  void drop(int peer) { current()->drop(peer); }
  void watch(double seconds) { current()->watch(seconds); }

  // The generation in which what was committed last was done; equal on all members at equal places of the program.
  uint32_t committed_generation();
  // The same of what belongs to a step: the gradients.
  uint32_t step_generation();
  void trust();
  void set_flag(int index, int64_t value);
  void learn_flag(int index, int64_t value);
  int64_t flag(int index);
  void set_fault(int point, int64_t step, int number);

 private:
  // A collective that this rank has started and not finished.
  struct Retained {
    int64_t ticket = 0;
    tfdist_operation request{};
    std::string description;
    std::vector<int64_t> offsets;
    std::vector<tfdist_span> inputs, outputs;
    bool has_outputs = false;
    Buffer memory;                    // the inputs as they were
    uint64_t sequence = 0;            // of its channel
    std::shared_ptr<Engine> engine;   // that does it, or has done it
    uint32_t generation = 0;
    int64_t engine_ticket = 0;        // 0: not started there
    int64_t scale_ticket = 0;         // of the sum of the members' scales; 0: the divisor is known
    double scale_total = 0;
    int64_t commit_ticket = 0;        // of those that are waited for together the first has it
    int64_t word[kFlags] = {};
    bool is_divided = false, is_committed = false;
  };
  using Unit = std::vector<Retained*>;

  std::shared_ptr<Engine> current();
  Retained* find(int64_t ticket);
  Retained* retain(const tfdist_operation& request, const tfdist_span* inputs, int num_inputs, const tfdist_span* outputs);
  void restore(Retained* operation);
  int launch(Retained* operation, bool again);
  int64_t launch_scales(Retained* operation, Engine* engine);
  int divide(Retained* operation, Engine* engine);
  int attempt(const Unit& unit, Clock::time_point deadline, bool give_up);
  int commit(const Unit& unit, Engine* engine, Clock::time_point deadline, bool give_up);
  bool await_reform(const Unit& unit, uint32_t generation, Clock::time_point deadline);
  void release(Retained* operation);
  void note_commit(const Retained& operation);
  void trip(int point, const Unit& unit);

  Pool pool_;
  int commit_plan_ = -1;
  std::mutex start_mutex_;  // held from a sequence number to the start with it; taken before mutex_
  std::mutex mutex_;        // guards what follows
  std::condition_variable changed_;
  std::shared_ptr<Engine> engine_, next_;
  std::vector<std::shared_ptr<Engine>> retired_;
  uint32_t generation_ = 0, next_generation_ = 0, committed_generation_ = 0, step_generation_ = 0;
  int64_t trusted_generation_ = -1;  // in which callers know the divisor of a mean; -1: in none
  std::vector<std::unique_ptr<Retained>> operations_;
  std::vector<Retained*> free_;
  std::deque<Retained*> open_;  // not committed, in the order they were started
  std::unordered_map<uint64_t, uint64_t> started_, committed_;  // by channel
  int64_t next_ticket_ = 1;
  int64_t flags_[kFlags] = {}, agreed_flags_[kFlags] = {};
  Failure failure_;
  double timeout_seconds_;
  bool is_closed_ = false;
  bool is_reported_ = false;  // what is committed has been told to the other members
  struct {
    int point = -1;
    int64_t step = -1;
    int number = 0;
  } fault_;
};

}  // namespace tfdist
#endif  // TFDIST_ELASTIC_ELASTIC_H_
