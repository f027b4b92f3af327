// A tensor, or a stretch of one, with its optimizer state: the unit of locking, and of consistency.
#ifndef TFDIST_PARAMETER_SERVER_SHARD_H_
#define TFDIST_PARAMETER_SERVER_SHARD_H_

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "common/reduce.h"
#include "parameter_server/memory.h"
#include "parameter_server/protocol.h"
#include "tfdist.h"

namespace tfdist {

// What is the same for all shards of a store.
struct StoreOptions {
  size_t num_workers = 0;
  double weight_decay = 0;
  double average_momentum = -1;   // of the exponential moving average of the parameters; < 0: none is kept
  int64_t average_overwrites = 0; // every so many updates the parameters become their average; 0: never
  double compensation = 0;        // lambda of delay compensation; 0: none
  double compensation_decay = -1; // m of the adaptive kind; < 0: constant
  bool is_lazy = false;           // of rows: only those touched move
};

// The gradient of one update, for one shard.
struct Gradient {
  const char* dense = nullptr;  // null: rows
  const int64_t* rows = nullptr;
  const char* values = nullptr;
  int64_t num_rows = 0;
};

// A push: what it is known by.
struct Source {
  int worker;
  uint64_t sequence;
};

struct UpdateOf {
  int worker;
  int64_t count;  // t = 1, 2, ...
  double learning_rate;
  const Source* sources;  // one at least
  size_t num_sources;
};

class Shard {
 public:
  // Throws std::invalid_argument where the description makes no sense.
  Shard(const tfdist_shard& description, const StoreOptions* options);

  const std::string name;
  const int32_t dtype;
  const int64_t elements, row_elements;
  const bool is_hosted;  // its gradients are applied by somebody else

  size_t bytes() const { return bytes_; }
  size_t row_bytes() const { return static_cast<size_t>(row_elements) * element_size(dtype); }
  int num_slots() const { return static_cast<int>(slots_.size()); }
  // Array 0 is the parameters; then the rule's slots, the moving average, and at the end the scalars of the rule.
  Memory* array(int index);
  char* parameters() { return theta_.data(); }
  double* scalars() { return scalars_; }

  // Applies a gradient, unless it has been applied before, and copies the parameters to `fresh` unless that is null. A
  // dense gradient may be overwritten, also by `fresh`. `stamp`: null, or takes that of what was copied.
  void update(const UpdateOf& update, const Gradient& gradient, char* fresh, uint64_t* stamp);
  void read(int worker, char* target, int array, uint64_t* stamp);
  void write(int array, const char* source);
  void read_rows(const int64_t* rows, int64_t num_rows, char* target);

  bool has_applied(const Source& source);
  void count(const UpdateOf& update);  // somebody else, who holds the mutex, has applied it
  uint64_t sequence(int worker);       // of that worker's last push that is applied
  // Takes a worker's copy of the parameters if its stamp is newer. The optimizer's state stays as old as it is.
  void adopt(const char* parameters, const uint64_t* stamp);
  // All there is to it: to a buffer, null to ask for the size only; from one, false where it is of something else.
  size_t save(char* buffer, size_t capacity);
  bool load(const char* buffer, size_t bytes);
  void supersede(uint64_t incarnation);

  std::mutex mutex;  // guards everything below
  uint64_t version = 0;  // updates applied, and above kHistoryBits how often it went another way after being restored

 private:
  template <typename T>
  void apply(const UpdateOf& update, const Gradient& gradient, T* fresh);
  Memory& seen_by(int worker);
  template <typename T>
  void compensate(const T* then, T* gradient, int64_t begin, int64_t end);
  template <typename T>
  void average(int64_t count, int64_t begin, int64_t end);
  void copy_stamp(uint64_t* stamp) const;
  void copy_parameters(int worker, char* target);
  std::vector<Memory*> arrays();
  bool is_applied(const Source& source) const {
    return source.sequence <= applied_[static_cast<size_t>(source.worker)];
  }

  const tfdist_rule rule_;
  const StoreOptions* options_;
  const bool decays_, is_compensated_;
  const size_t bytes_;
  Memory theta_;
  std::vector<Memory> slots_;
  Memory average_;
  Memory mean_square_;
  std::vector<uint64_t> applied_;  // by worker: the number of its last push that is in here
  bool is_restored_ = false;       // and nothing has happened since
  std::map<int, Memory> seen_;  // by worker: the parameters that it was sent
  double scalars_[TFDIST_RULE_SCALARS] = {};
};

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_SHARD_H_
