// Exercises elastic groups through the C interface, members being threads that are lost by cutting their connections.
//
// Built and run by sanitize.py; returns 0 when every check held.

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <numeric>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "tfdist.h"

namespace {

constexpr double kTimeout = 60;
constexpr int kBefore = 0, kDone = 1;  // points of tfdist_group_set_fault

// A thread that comes to the point it was set up for stops there until it may go on.
std::atomic<int> num_stopped{0};
std::atomic<bool> may_go_on{false};

void stop_here(int) {
  ++num_stopped;
  while (!may_go_on) usleep(1000);
}

void await_stopped(int count) {
  while (num_stopped < count) usleep(1000);
}

using Table = std::vector<int32_t>;

// The plans of the rank `rank` of `members`, which are slots; every group loads these three, in this order.
enum { kRing, kCommit, kGather, kNumPlans };

void add(Table* table, int kind, size_t peer, int chunk) {
  table->insert(table->end(), {kind, static_cast<int32_t>(peer), chunk, -1});
}

Table ring(size_t rank, size_t size) {
  Table table;
  for (size_t hop = 0; hop + 1 < size; ++hop) {
    add(&table, TFDIST_SEND, (rank + 1) % size, static_cast<int>((rank + 2 * size - hop - 1) % size));
    add(&table, hop + 2 == size ? TFDIST_RECEIVE_REDUCE_LAST : TFDIST_RECEIVE_REDUCE, (rank + size - 1) % size,
        static_cast<int>((rank + 2 * size - hop - 2) % size));
  }
  for (size_t hop = 0; hop + 1 < size; ++hop) {
    add(&table, TFDIST_SEND, (rank + 1) % size, static_cast<int>((rank + size - hop) % size));
    add(&table, TFDIST_RECEIVE, (rank + size - 1) % size, static_cast<int>((rank + 2 * size - hop - 1) % size));
  }
  return table;
}

// Everybody sends its slot's chunk to everybody.
Table gather(size_t rank, const std::vector<int32_t>& members) {
  Table table;
  for (size_t hop = 1; hop < members.size(); ++hop) {
    const size_t from = (rank + members.size() - hop) % members.size();
    add(&table, TFDIST_SEND, (rank + hop) % members.size(), members[rank]);
    add(&table, TFDIST_RECEIVE, from, members[from]);
  }
  return table;
}

class Job {
 public:
  explicit Job(int num_slots, std::vector<int32_t> members = {}) : num_slots_(num_slots), members_(std::move(members)) {
    if (members_.empty()) {
      members_.resize(static_cast<size_t>(num_slots));
      std::iota(members_.begin(), members_.end(), 0);
    }
    std::vector<std::vector<int>> sockets = connect(members_.size());
    for (size_t rank = 0; rank < members_.size(); ++rank) create(rank, members_, sockets[rank].data());
    num_stopped = 0;
    may_go_on = false;
  }

  ~Job() {
    for (auto& [slot, group] : groups_) tfdist_group_close(group, nullptr);
    for (auto& [slot, group] : groups_) tfdist_group_release(group);
  }

  tfdist_group* group(int slot) { return groups_.at(slot); }
  const std::vector<int32_t>& members() const { return members_; }

  // Starts a thread for each member.
  void run(const std::function<void(int, tfdist_group*)>& body) {
    for (int slot : members_) threads_.emplace_back([this, body, slot] { body(slot, groups_.at(slot)); });
  }

  void join() {
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  // A member is gone; what it waits for ends, too.
  void lose(int slot) {
    for (int peer = 0; peer < static_cast<int>(members_.size()); ++peer) tfdist_group_drop(groups_.at(slot), peer);
    tfdist_group_give_up(groups_.at(slot), TFDIST_LOST, -1, "this one is lost");
    members_.erase(std::find(members_.begin(), members_.end(), slot));
  }

  void report(int slot) {
    char text[4096];
    const int64_t length = tfdist_group_report(groups_.at(slot), text, sizeof(text));
    CHECK(length < static_cast<int64_t>(sizeof(text)));
    std::istringstream lines(std::string(text, static_cast<size_t>(length)));
    std::string kind;
    for (uint64_t channel, number; lines >> kind >> channel >> number;) {
      if (kind == "open") counts_[channel];
      if (kind == "committed") committed_[channel] = std::max(committed_[channel], number);
      if (kind == "flag") flags_[channel] = std::max(flags_[channel], number);
    }
    reported_.push_back(slot);
  }

  // The members that are left form the group anew, as tfdist/elastic has them do.
  void reform() {
    for (int slot : members_) {
      CHECK(tfdist_group_await_failure(groups_.at(slot), kTimeout) == TFDIST_LOST);
      if (std::find(reported_.begin(), reported_.end(), slot) == reported_.end()) report(slot);
    }
    std::vector<uint64_t> channels;
    std::vector<int64_t> counts;
    for (auto& [channel, count] : counts_) {
      channels.push_back(channel);
      counts.push_back(static_cast<int64_t>(committed_[channel]));
    }
    take_over(channels, counts, 0);
  }

  // A worker joins, which has been a group of its own.
  void admit(int slot) {
    create(0, {slot}, std::vector<int>{-1}.data());
    members_.push_back(slot);
    take_over({}, {}, 1);
  }

 private:
  static std::vector<std::vector<int>> connect(size_t size) {
    std::vector<std::vector<int>> sockets(size, std::vector<int>(size, -1));
    for (size_t a = 0; a < size; ++a) {
      for (size_t b = a + 1; b < size; ++b) {
        int pair[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        sockets[a][b] = pair[0];
        sockets[b][a] = pair[1];
      }
    }
    return sockets;
  }

  tfdist_group_options options(size_t rank, const std::vector<int32_t>& members, const int* sockets) const {
    tfdist_group_options options{};
    options.rank = static_cast<int32_t>(rank);
    options.world_size = static_cast<int32_t>(members.size());
    options.sockets = sockets;
    options.sockets_per_peer = 1;
    options.generation = generation_;
    options.timeout_seconds = kTimeout;
    options.is_eager = rank % 2;
    options.is_elastic = 1;
    options.slots = members.data();
    options.has_empty_slots = static_cast<int>(members.size()) < num_slots_;
    return options;
  }

  void create(size_t rank, const std::vector<int32_t>& members, const int* sockets) {
    const tfdist_group_options made = options(rank, members, sockets);
    tfdist_group* group = tfdist_group_create(&made);
    CHECK(group != nullptr);
    groups_[members[rank]] = group;
    load(rank, members, [group](const Table& table, int num_chunks) {
      return tfdist_group_load_plan(group, table.data(), static_cast<int32_t>(table.size() / 4), num_chunks);
    });
    CHECK(tfdist_group_set_commit_plan(group, kCommit) == TFDIST_OK);
  }

  void load(size_t rank, const std::vector<int32_t>& members, const std::function<int(const Table&, int)>& loader) const {
    const int size = static_cast<int>(members.size());
    CHECK(loader(ring(rank, members.size()), size) == kRing);
    CHECK(loader(ring(rank, members.size()), size) == kCommit);
    CHECK(loader(gather(rank, members), num_slots_) == kGather);
  }

  void take_over(const std::vector<uint64_t>& channels, const std::vector<int64_t>& counts, int starts_anew) {
    ++generation_;
    std::vector<std::vector<int>> sockets = connect(members_.size());
    for (size_t rank = 0; rank < members_.size(); ++rank) {
      tfdist_group* group = groups_.at(members_[rank]);
      const tfdist_group_options made = options(rank, members_, sockets[rank].data());
      CHECK(tfdist_group_prepare(group, &made) == TFDIST_OK);
      load(rank, members_, [group](const Table& table, int num_chunks) {
        return tfdist_group_load_next_plan(group, table.data(), static_cast<int32_t>(table.size() / 4), num_chunks);
      });
      for (auto& [index, value] : flags_) {
        tfdist_group_learn_flag(group, static_cast<int32_t>(index), static_cast<int64_t>(value));
      }
      CHECK(tfdist_group_reform(group, channels.data(), counts.data(), static_cast<int32_t>(counts.size()),
                                starts_anew) == TFDIST_OK);
    }
    counts_.clear();
    committed_.clear();
    flags_.clear();
    reported_.clear();
  }

  int num_slots_;
  std::vector<int32_t> members_;
  std::map<int, tfdist_group*> groups_;  // also of those who were lost
  std::vector<std::thread> threads_;
  uint32_t generation_ = 0;
  std::map<uint64_t, uint64_t> counts_, committed_, flags_;
  std::vector<int> reported_;
};

tfdist_operation operation(int64_t step, uint64_t channel = 1) {
  tfdist_operation operation{};
  operation.plan = kRing;
  operation.dtype = TFDIST_FLOAT32;
  operation.reduce = TFDIST_SUM;
  operation.scale = 1;
  operation.channel = channel;
  operation.step = step;
  operation.description = "test";
  return operation;
}

constexpr int64_t kElements = 1003;

// What a slot gives: a bit of its own, so that a sum tells who had a share in it.
std::vector<float> values_of(int slot, int64_t elements = kElements) {
  std::vector<float> values(static_cast<size_t>(elements));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i % 5 + 1) * (size_t{1} << slot));
  return values;
}

bool is_sum_of(const std::vector<float>& values, std::initializer_list<int> slots, float divisor = 1) {
  for (size_t i = 0; i < values.size(); ++i) {
    float total = 0;
    for (int slot : slots) total += static_cast<float>((i % 5 + 1) * (size_t{1} << slot));
    if (values[i] != total / divisor) return false;
  }
  return true;
}

int64_t start_in_place(tfdist_group* group, tfdist_operation request, std::vector<float>* values) {
  request.work = values->data();
  request.elements = static_cast<int64_t>(values->size());
  const int64_t ticket = tfdist_start(group, &request, nullptr, 0, nullptr);
  CHECK(ticket > 0);
  return ticket;
}

int finish(tfdist_group* group, int64_t ticket) {
  const int code = tfdist_wait(group, ticket, -1, 0);
  if (code == TFDIST_OK) CHECK(tfdist_finish(group, ticket, nullptr, 0) == TFDIST_OK);
  return code;
}

int reduce(tfdist_group* group, const tfdist_operation& request, std::vector<float>* values) {
  return finish(group, start_in_place(group, request, values));
}

// All have the result, none knows that of the others: it is done again without the one that was lost.
void test_redo() {
  Job job(3);
  tfdist_group_set_fault(job.group(2), kDone, 5, SIGUSR1);
  job.run([&](int slot, tfdist_group* group) {
    auto first = values_of(slot), second = values_of(slot), third = values_of(slot);
    CHECK(reduce(group, operation(4), &first) == TFDIST_OK);
    CHECK(is_sum_of(first, {0, 1, 2}));
    CHECK(tfdist_group_step_generation(group) == 0);
    CHECK(reduce(group, operation(5), &second) == (slot == 2 ? TFDIST_LOST : TFDIST_OK));
    if (slot == 2) return;
    CHECK(is_sum_of(second, {0, 1}));
    CHECK(tfdist_group_step_generation(group) == 1);
    CHECK(reduce(group, operation(6), &third) == TFDIST_OK);
    CHECK(is_sum_of(third, {0, 1}));
  });
  await_stopped(1);
  job.lose(2);
  job.reform();
  may_go_on = true;
  job.join();
}

// One has committed, another has not heard of it: it keeps what it has, and knows what the commit has told.
void test_adopt() {
  Job job(3);
  tfdist_group_set_fault(job.group(1), kDone, 5, SIGUSR1);
  std::atomic<int> num_committed{0};
  job.run([&](int slot, tfdist_group* group) {
    auto first = values_of(slot), second = values_of(slot);
    if (slot == 2) tfdist_group_set_flag(group, 1, 7);
    CHECK(reduce(group, operation(5), &first) == TFDIST_OK);
    CHECK(is_sum_of(first, {0, 1, 2}));
    CHECK(tfdist_group_flag(group, 1) == 7);
    ++num_committed;
    if (slot == 2) return;
    CHECK(reduce(group, operation(6), &second) == TFDIST_OK);
    CHECK(is_sum_of(second, {0, 1}));
  });
  await_stopped(1);
  job.report(1);  // from here on it commits nothing
  may_go_on = true;
  while (num_committed < 2) usleep(1000);
  job.lose(2);
  job.reform();
  job.join();
  CHECK(num_committed == 3);
}

// What is waited for together is done again together, though one of them is through.
void test_units(bool has_outputs) {
  Job job(3);
  tfdist_group_set_fault(job.group(0), kBefore, 5, SIGUSR1);
  job.run([&](int slot, tfdist_group* group) {
    std::vector<std::vector<float>> values(4, values_of(slot));
    std::vector<int64_t> tickets;
    std::vector<tfdist_span> spans;
    for (auto& array : values) spans.push_back({array.data(), kElements});
    for (size_t i = 0; i < values.size(); ++i) {
      tfdist_operation request = operation(5, 10 + i % 2);  // two of each channel
      request.elements = kElements;
      tickets.push_back(tfdist_start(group, &request, &spans[i], 1, has_outputs ? &spans[i] : nullptr));
      CHECK(tickets.back() > 0);
    }
    const int code = tfdist_wait_all(group, tickets.data(), 4, -1, 0);
    CHECK(code == (slot == 0 ? TFDIST_LOST : TFDIST_OK));
    if (slot == 0) return;
    for (size_t i = 0; i < values.size(); ++i) {
      CHECK(tfdist_finish(group, tickets[i], &spans[i], 1) == TFDIST_OK);
      CHECK(is_sum_of(values[i], {1, 2}));
    }
  });
  await_stopped(1);
  job.lose(0);
  job.reform();
  may_go_on = true;
  job.join();
}

// A caller's divisor is wrong once there are others, until it says that it knows them.
void test_mean() {
  Job job(3);
  tfdist_group_set_fault(job.group(1), kDone, 5, SIGUSR1);
  job.run([&](int slot, tfdist_group* group) {
    tfdist_operation request = operation(5);
    request.reduce = TFDIST_MEAN;
    request.divisor = 3;
    auto first = values_of(slot), second = values_of(slot), third = values_of(slot);
    CHECK(reduce(group, request, &first) == (slot == 1 ? TFDIST_LOST : TFDIST_OK));
    if (slot == 1) return;
    CHECK(is_sum_of(first, {0, 2}, 2));
    request.step = 6;
    CHECK(reduce(group, request, &second) == TFDIST_OK);
    CHECK(is_sum_of(second, {0, 2}, 2));
    tfdist_group_trust(group);
    request.divisor = 4;
    CHECK(reduce(group, request, &third) == TFDIST_OK);
    CHECK(is_sum_of(third, {0, 2}, 4));
  });
  await_stopped(1);
  job.lose(1);
  job.reform();
  may_go_on = true;
  job.join();
}

// The chunk of a slot without a rank reads as zeros, also where an earlier attempt has brought something else.
void test_gather() {
  Job job(3);
  tfdist_group_set_fault(job.group(1), kDone, 5, SIGUSR1);
  job.run([&](int slot, tfdist_group* group) {
    for (int step : {4, 5, 6}) {
      const int64_t offsets[] = {0, 100, 250, 300};
      tfdist_operation request = operation(step);
      request.plan = kGather;
      request.chunk_offsets = offsets;
      request.elements = 300;
      request.input_offset = offsets[slot];
      std::vector<float> own(static_cast<size_t>(offsets[slot + 1] - offsets[slot]), static_cast<float>(slot + 1));
      const tfdist_span input{own.data(), static_cast<int64_t>(own.size())};
      const int64_t ticket = tfdist_start(group, &request, &input, 1, nullptr);
      CHECK(ticket > 0);
      const int code = tfdist_wait(group, ticket, -1, 0);
      CHECK(code == (slot == 1 && step == 5 ? TFDIST_LOST : TFDIST_OK));
      if (code != TFDIST_OK) return;
      std::vector<float> all(300);
      const tfdist_span output{all.data(), 300};
      CHECK(tfdist_finish(group, ticket, &output, 1) == TFDIST_OK);
      for (int64_t i = 0; i < 300; ++i) {
        const int owner = i < 100 ? 0 : i < 250 ? 1 : 2;
        CHECK(all[static_cast<size_t>(i)] == (owner == 1 && step > 4 ? 0.0F : static_cast<float>(owner + 1)));
      }
    }
  });
  await_stopped(1);
  job.lose(1);
  job.reform();
  may_go_on = true;
  job.join();
}

// One is lost after the other, the last one before anything was done without the first.
void test_one_after_the_other() {
  Job job(4);
  for (int slot : {0, 3}) tfdist_group_set_fault(job.group(slot), kBefore, 5, SIGUSR1);
  job.run([&](int slot, tfdist_group* group) {
    auto values = values_of(slot);
    const bool is_lost = slot == 0 || slot == 3;
    CHECK(reduce(group, operation(5), &values) == (is_lost ? TFDIST_LOST : TFDIST_OK));
    CHECK(is_lost || is_sum_of(values, {1, 2}));
    CHECK(is_lost || tfdist_group_committed_generation(group) == 2);
  });
  await_stopped(2);
  job.lose(0);
  job.reform();
  job.lose(3);
  job.reform();
  may_go_on = true;
  job.join();
}

void test_alone() {
  Job job(2);
  tfdist_group_set_fault(job.group(0), kDone, 5, SIGUSR1);
  job.run([&](int slot, tfdist_group* group) {
    for (int step : {5, 6}) {
      auto values = values_of(slot);
      const int code = reduce(group, operation(step), &values);
      CHECK(code == (slot == 0 ? TFDIST_LOST : TFDIST_OK));
      if (code != TFDIST_OK) return;
      CHECK(is_sum_of(values, {1}));
    }
  });
  await_stopped(1);
  job.lose(0);
  job.reform();
  may_go_on = true;
  job.join();
}

// Who joins counts collectives from 0, and so do the others; all learn what one has set.
void test_join() {
  Job job(3, {0, 1});
  job.run([&](int slot, tfdist_group* group) {
    for (int step = 0; step < 3; ++step) {
      auto values = values_of(slot);
      if (slot == 1) tfdist_group_set_flag(group, 2, 40 + step);
      CHECK(reduce(group, operation(step), &values) == TFDIST_OK);
      CHECK(is_sum_of(values, {0, 1}));
      CHECK(tfdist_group_flag(group, 2) == 40 + step && tfdist_group_flag(group, 1) == 0);
    }
  });
  job.join();
  job.admit(2);
  job.run([&](int slot, tfdist_group* group) {
    CHECK(tfdist_group_committed_generation(group) == 1);
    auto values = values_of(slot);
    CHECK(reduce(group, operation(3), &values) == TFDIST_OK);
    CHECK(is_sum_of(values, {0, 1, 2}));
  });
  job.join();
}

void test_nobody_joins_in_the_middle() {
  Job job(2);
  auto values = values_of(0);
  start_in_place(job.group(0), operation(0), &values);
  CHECK(tfdist_group_reform(job.group(0), nullptr, nullptr, 0, 1) == TFDIST_INVALID);
  job.lose(1);
}

// There is no going on: every wait says so.
void test_give_up() {
  Job job(2);
  auto first = values_of(0);
  const int64_t ticket = start_in_place(job.group(0), operation(0), &first);
  std::thread waiting([&] { CHECK(finish(job.group(0), ticket) == TFDIST_BELOW_MINIMUM); });
  job.lose(1);
  CHECK(tfdist_group_await_failure(job.group(0), kTimeout) == TFDIST_LOST);
  tfdist_group_give_up(job.group(0), TFDIST_BELOW_MINIMUM, -1, "1 is left of 2");
  waiting.join();
  char text[64];
  int32_t peer = 0;
  CHECK(tfdist_group_error(job.group(0), &peer, text, sizeof(text)) == TFDIST_BELOW_MINIMUM);
  CHECK(std::string(text) == "1 is left of 2");
  auto values = values_of(0);
  tfdist_operation request = operation(1);
  request.work = values.data();
  request.elements = kElements;
  CHECK(tfdist_start(job.group(0), &request, nullptr, 0, nullptr) == -TFDIST_BELOW_MINIMUM);
}

// Many steps of several collectives each, in the middle of which one member after the other is lost.
void test_losses_at_any_time() {
  Job job(5);
  std::atomic<int64_t> furthest{0};
  job.run([&](int slot, tfdist_group* group) {
    uint32_t before = 31;
    for (int step = 0; step < 400; ++step) {
      std::vector<std::vector<float>> values(3, values_of(slot, 257));
      std::vector<int64_t> tickets(3);
      for (size_t i = 0; i < 3; ++i) {
        tfdist_operation request = operation(step, 20 + i);
        request.work = values[i].data();
        request.elements = 257;
        tickets[i] = tfdist_start(group, &request, nullptr, 0, nullptr);
        if (tickets[i] < 0) return;
      }
      if (tfdist_wait_all(group, tickets.data(), 3, -1, 0) != TFDIST_OK) return;
      for (int64_t ticket : tickets) CHECK(tfdist_finish(group, ticket, nullptr, 0) == TFDIST_OK);
      const auto had_a_share = static_cast<uint32_t>(values[0][0]);
      CHECK((had_a_share & ~before) == 0 && (had_a_share >> slot & 1) == 1);
      before = had_a_share;
      CHECK(values[1] == values[0] && values[2] == values[0]);
      furthest = std::max<int64_t>(furthest, step);
    }
  });
  for (int slot : {3, 0, 4}) {
    usleep(3000);
    job.lose(slot);
    job.reform();
  }
  job.join();
  CHECK(furthest == 399);
}

}  // namespace

int main() {
  signal(SIGUSR1, stop_here);
  test_redo();
  test_adopt();
  test_units(false);
  test_units(true);
  test_mean();
  test_gather();
  test_one_after_the_other();
  test_alone();
  test_join();
  test_nobody_joins_in_the_middle();
  test_give_up();
  test_losses_at_any_time();
  std::printf("elastic_test: all checks held\n");
  return 0;
}
