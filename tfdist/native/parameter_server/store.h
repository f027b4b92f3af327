// The parameters of one optimizer on this server, and the rule by which workers wait for each other.
#ifndef TFDIST_PARAMETER_SERVER_STORE_H_
#define TFDIST_PARAMETER_SERVER_STORE_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "parameter_server/protocol.h"
#include "parameter_server/shard.h"

namespace tfdist {

struct Outcome {
  int code = TFDIST_OK;
  std::string text;
  int64_t updates = 0;
  int64_t staleness = 0;
  double waited_seconds = 0;
  bool is_dropped = false;
  bool is_repeated = false;  // the same push has counted before
  Stamp stamp;               // of the store at that time
};

// What one worker pushes.
struct Push {
  int worker = 0;
  uint64_t client = 0;
  RequestHeader header;
  std::vector<Entry> entries;
  std::vector<Gradient> gradients;  // one an entry
  char* window = nullptr;           // the dense values
  std::shared_ptr<Memory> memory;   // in which the window lies
  bool is_decided = false;          // synchronous mode, guarded by Store::mutex_: `outcome` tells what became of it
  Outcome outcome;
};

// Guarded by Store::mutex_.
struct WorkerRecord {
  bool is_active = false;
  uint64_t client = 0;    // which of the worker's, one after the other, speaks for it
  bool has_joined = false;  // others are refused
  bool is_lost = false;     // its connection broke, and it has not come back
  uint64_t sequence = 0;  // of the last push that was decided
  int64_t begun = 0, clock = 0;  // pushes since all began together: numbered, and applied
  int64_t pushes = 0, dropped = 0;
  double waited_seconds = 0;
  double first_seconds = 0, last_seconds = 0;  // when it pushed
  std::vector<int64_t> staleness;              // how often each
};

class Store {
 public:
  Store(const tfdist_store_options& options, const tfdist_shard* shards, int num_shards);

  const int mode;
  Shard& shard(size_t index) { return *shards_[index]; }
  size_t num_shards() const { return shards_.size(); }
  int num_workers() const { return static_cast<int>(workers_.size()); }
  bool is_hosted() const { return host_ != nullptr; }
  uint64_t generation() const { return generation_; }
  void begin_generation(uint64_t generation, int64_t updates);
  int64_t updates() const { return updates_; }

  // Asynchronous modes: `begin` numbers the update (not that of a push that has been counted), `apply` applies it to
  // one entry, `finish` says that all are. Bounded: `wait_for_slower` blocks while this worker is too far ahead of what
  // others have finished (Ho et al. 2013: it then sees all of their updates but for the last so many).
  Outcome begin(const Push& push);
  void apply(const Push& push, const Outcome& begun, size_t entry, char* fresh, uint64_t* stamp);
  void finish(int worker);
  bool must_wait(int worker);
  void wait_for_slower(int worker, double timeout_seconds, Outcome* outcome);
  // All entries by the one who hosts the optimizer.
  void apply_hosted(const Push& push, const std::vector<Source>& sources, Outcome* outcome);
  // Synchronous mode: blocks until the update in which this gradient counts, or does not, is done.
  Outcome contribute(Push* push, double timeout_seconds);

  void join(int worker, uint64_t client);  // what an earlier client of the worker's has pushed does not count any more
  void set_active(int worker, uint64_t client, bool is_active);
  void lose(int worker, uint64_t client);  // its connection broke
  void close();
  bool is_left_in_silence();  // its server ends, and another one may go on: workers are to take this one for lost
  WorkerRecord record(int worker);
  uint64_t last_sequence(int worker);  // of the worker's pushes that have counted, if only on one shard
  void stamp(Outcome* outcome);        // and how many updates that are

  // A store that was restored from a state serves nobody until each worker that was there has offered what it has, or
  // `seconds` are over; whoever has not come by then is lost.
  size_t save(char* buffer, size_t capacity);
  bool load(const char* buffer, size_t bytes);
  void supersede(uint64_t incarnation);  // what was loaded is newer than what any worker may have
  void await_offers(double seconds);
  void wait_until_whole();
  void take_offer(int worker, uint64_t generation, const uint64_t* stamp);
  std::mutex& host_mutex() { return host_mutex_; }

 private:
  double step_weight(int64_t staleness) const {
    return step_weights_[std::min(static_cast<size_t>(staleness), step_weights_.size() - 1)];
  }
  size_t required() const;
  void call_host(const std::vector<tfdist_hosted_gradient>& gradients, double learning_rate, const UpdateOf& update,
                 Outcome* outcome);
  void count(WorkerRecord* record, const Push& push, int64_t staleness);
  bool has_counted(const WorkerRecord& record, const Push& push) const;
  bool is_refused(const Push& push, Outcome* outcome) const;  // another client speaks for its worker
  Outcome undecided(double timeout_seconds) const;
  void fill(Stamp* stamp) const;
  void go_another_way();  // than before this store was restored
  void give_up_the_missing();
  std::vector<Source> sources() const;
  void dismiss(int worker, int code, const std::string& text);  // contributions of `worker`; -1: of all
  void combine();
  void combine_all(Outcome* outcome);
  void combine_hosted(Outcome* outcome);
  void combine_entry(size_t entry);
  std::string difference() const;
  template <typename T>
  void average_dense(size_t entry);
  template <typename T>
  void concatenate_rows(size_t entry, std::vector<int64_t>* rows, std::vector<char>* values);
  std::vector<double> weights(double* divisor) const;
  std::string missing() const;
  int too_slow_for(int worker) const;

  const int staleness_bound_, backup_workers_;
  const bool recovers_;
  std::vector<double> step_weights_;  // by staleness
  StoreOptions options_;
  tfdist_host host_;
  void* host_context_;
  std::vector<std::unique_ptr<Shard>> shards_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> updates_{0};
  std::mutex host_mutex_;  // the hosted optimizer applies one update at a time

  std::mutex mutex_;  // guards what follows
  std::condition_variable changed_;
  std::vector<WorkerRecord> workers_;
  std::vector<Push*> contributions_;
  int lost_ = -1;
  bool is_closed_ = false;
  uint64_t history_ = 0;
  bool is_restored_ = false, was_restored_ = false;  // and nothing has happened since; ever
  std::set<int> awaited_;                            // who has not offered yet
  std::set<int> come_;                               // since it was restored
  std::chrono::steady_clock::time_point await_until_;
};

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_STORE_H_
