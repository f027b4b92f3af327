// The parameter server and its clients in one process, as threads over socket pairs: all modes, both transports.
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "tfdist.h"

namespace {

constexpr double kSeconds = 30;
constexpr int64_t kElements[] = {100003, 7, 4000};  // split between the servers, and two kept whole
constexpr int64_t kRowElements[] = {1, 1, 8};
constexpr int kTensors = 3, kTable = 2;

struct Setting {
  int mode = TFDIST_ASYNCHRONOUS;
  bool is_shared = true;
  int num_workers = 3, num_servers = 2;
  int staleness_bound = 0, backup_workers = 0;
  double compensation = 0;
  double average_momentum = -1;
  bool recovers = false;
};

class Job {
 public:
  explicit Job(const Setting& setting) : setting_(setting) {
    int wake[2];
    CHECK(pipe(wake) == 0);
    wake_.assign(wake, wake + 2);
    for (int s = 0; s < setting.num_servers; ++s) {
      servers.push_back(tfdist_server_create(kSeconds));
      add_store(servers.back(), s);
    }
    for (int worker = 0; worker < setting.num_workers; ++worker) connect(worker);
  }
  // The server ends, and another one goes on from the state it had when `saved` was taken, and from what workers offer.
  std::vector<std::string> save() {
    std::vector<std::string> saved;
    for (int shard = -1; shard < kTensors; ++shard) {
      std::string block(static_cast<size_t>(tfdist_server_save(servers[0], 0, shard, nullptr, 0)), ' ');
      const auto size = static_cast<int64_t>(block.size());
      CHECK(tfdist_server_save(servers[0], 0, shard, &block[0], size) == size);
      saved.push_back(block);
    }
    return saved;
  }
  void replace(const std::vector<std::string>& saved) {
    tfdist_server_release(servers[0]);
    servers[0] = tfdist_server_create(kSeconds);
    add_store(servers[0], 0);
    for (int shard = -1; shard < kTensors; ++shard) {
      const std::string& block = saved[static_cast<size_t>(shard + 1)];
      CHECK(tfdist_server_load(servers[0], 0, shard, block.data(), static_cast<int64_t>(block.size())) == TFDIST_OK);
    }
    tfdist_server_await_offers(servers[0], 0, kSeconds);
    for (int worker = 0; worker < setting_.num_workers; ++worker) {
      const int32_t number = 0;
      ++token_;
      if (setting_.is_shared) {
        CHECK(tfdist_server_share_window(servers[0], 0, worker, windows_[static_cast<size_t>(worker)]) == TFDIST_OK);
      }
      tfdist_server_join(servers[0], 0, worker, token_);
      tfdist_server_set_active(servers[0], 0, worker, token_, 1);
      const std::vector<int32_t> sockets = serve(0, worker);
      tfdist_client_reconnect(clients[static_cast<size_t>(worker)], 0, sockets.data(), &number, 1);
    }
  }

  ~Job() {
    for (const int descriptor : windows_) close(descriptor);
    for (const int descriptor : wake_) close(descriptor);
    for (auto* client : clients) tfdist_client_close(client), tfdist_client_release(client);
    for (auto* server : servers) tfdist_server_release(server);
  }

  std::vector<tfdist_server*> servers;
  std::vector<tfdist_client*> clients;

 private:
  tfdist_client_part part(int tensor, int server) const {
    const int64_t rows = kElements[tensor] / kRowElements[tensor];
    const int64_t begin = rows * server / setting_.num_servers, end = rows * (server + 1) / setting_.num_servers;
    return {server, tensor, begin * kRowElements[tensor], (end - begin) * kRowElements[tensor]};
  }

  void add_store(tfdist_server* server, int index) {
    std::vector<tfdist_shard> shards;
    for (int t = 0; t < kTensors; ++t) {
      tfdist_rule rule{TFDIST_RULE_SGD, 0, {}};
      shards.push_back({"tensor", TFDIST_FLOAT64, 0, 0, 0, part(t, index).elements, kRowElements[t], rule});
    }
    const double weight = 1;
    tfdist_store_options options{};
    options.mode = setting_.mode;
    options.num_workers = setting_.num_workers;
    options.staleness_bound = setting_.staleness_bound;
    options.backup_workers = setting_.backup_workers;
    options.num_step_weights = 1;
    options.recovers = setting_.recovers;
    options.step_weights = &weight;
    options.average_momentum = setting_.average_momentum;
    options.compensation = setting_.compensation;
    options.compensation_decay = 0.5;
    CHECK(tfdist_server_add_store(server, &options, shards.data(), kTensors) == 0);
    tfdist_server_begin_generation(server, 0, 1, 0);
  }

  void connect(int worker) {
    std::vector<int32_t> sockets, windows(servers.size(), -1), numbers(servers.size(), 0);
    std::vector<int64_t> sizes(servers.size(), 0);
    std::vector<const char*> addresses(servers.size(), "here");
    std::vector<std::vector<tfdist_client_part>> parts(kTensors);
    for (size_t s = 0; s < servers.size(); ++s) {
      tfdist_server_join(servers[s], 0, worker, token_);
      for (const int32_t socket : serve(s, worker)) sockets.push_back(socket);
      for (int t = 0; t < kTensors; ++t) {
        parts[t].push_back(part(t, static_cast<int>(s)));
        sizes[s] += (parts[t].back().elements * 8 + 63) / 64 * 64;
      }
      if (setting_.is_shared) windows[s] = share(servers[s], worker, sizes[s]);
      tfdist_server_set_active(servers[s], 0, worker, token_, 1);
    }
    clients.push_back(tfdist_client_create(worker, setting_.num_servers, addresses.data(), sockets.data(), kSeconds));
    std::vector<tfdist_client_tensor> tensors;
    for (int t = 0; t < kTensors; ++t) {
      tensors.push_back({"tensor", TFDIST_FLOAT64, setting_.num_servers, kRowElements[t], parts[t].data()});
    }
    const tfdist_client_store store{tensors.data(), kTensors, numbers.data(), windows.data(), sizes.data(), 0,
                                    setting_.recovers ? setting_.num_workers : 0, 0};
    if (setting_.recovers) tfdist_client_recover(clients.back(), kSeconds, wake_[1]);
    CHECK(tfdist_client_add_store(clients.back(), &store) == 0);
    tfdist_client_begin_generation(clients.back(), 0, 1, 0);
    for (const int window : windows) {
      if (window >= 0 && setting_.recovers) windows_.push_back(window);
      if (window >= 0 && !setting_.recovers) close(window);
    }
  }

  std::vector<int32_t> serve(size_t server, int worker) {
    std::vector<int32_t> ours;
    for (int k = 0; k < 2; ++k) {
      int pair[2];
      CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
      ours.push_back(pair[0]);
      CHECK(tfdist_server_serve(servers[server], pair[1], worker, token_) == TFDIST_OK);
    }
    return ours;
  }

  static int share(tfdist_server* server, int worker, int64_t bytes) {
    const int window = memfd_create("window", MFD_CLOEXEC);
    CHECK(window >= 0 && ftruncate(window, 4096 + bytes) == 0);
    CHECK(tfdist_server_share_window(server, 0, worker, window) == TFDIST_OK);
    return window;
  }

  const Setting setting_;
  uint64_t token_ = 77;
  std::vector<int> windows_, wake_;
};

// A worker's arrays: gradients that become parameters, and rows of the last tensor.
struct Arrays {
  std::vector<double> tensors[kTensors];
  std::vector<int64_t> rows{0, 3, 499, 3};
  std::vector<double> values;
  std::vector<tfdist_exchange_dense> dense;
  tfdist_exchange_rows touched{};

  void fill(double value) {
    dense.clear();
    for (int t = 0; t < kTensors; ++t) tensors[t].resize(static_cast<size_t>(kElements[t]));
    for (int t = 0; t < kTable; ++t) {
      tensors[t].assign(tensors[t].size(), value);
      dense.push_back({t, 0, tensors[t].data(), tensors[t].data(), tensors[t].data()});
    }
    values.assign(rows.size() * 8, value);
    auto* table = tensors[kTable].data();
    touched = {kTable, 0, rows.data(), values.data(), static_cast<int64_t>(rows.size()), table, table};
  }
  tfdist_exchange call() {
    tfdist_exchange call{};
    call.dense = dense.data();
    call.num_dense = kTable;
    call.rows = &touched;
    call.num_rows = 1;
    call.learning_rate = 1;
    call.weight = 1;
    call.is_pushed = 1;
    return call;
  }
};

int push(tfdist_client* client, double value, Arrays* arrays, tfdist_exchange_result* result, bool prefetch = false) {
  arrays->fill(value);
  tfdist_exchange call = arrays->call();
  call.prefetch = prefetch;
  return tfdist_client_exchange(client, 0, &call, result);
}

void read(tfdist_client* client, Arrays* arrays) {
  arrays->fill(0);
  tfdist_span spans[kTensors] = {};
  for (int t = 0; t < kTensors; ++t) {
    spans[t].data = arrays->tensors[t].data();
    spans[t].elements = kElements[t];
  }
  tfdist_exchange_result result;
  CHECK(tfdist_client_transfer(client, 0, 0, 0, spans, nullptr, kTensors, &result) == TFDIST_OK);
}

void in_threads(int count, const std::function<void(int)>& run) {
  std::vector<std::thread> threads;
  for (int i = 0; i < count; ++i) threads.emplace_back(run, i);
  for (auto& thread : threads) thread.join();
}

void expect_all(const Arrays& arrays, double dense, double row, double twice_row) {
  for (int t = 0; t < kTable; ++t) {
    for (const double value : arrays.tensors[t]) CHECK(value == dense);
  }
  CHECK(arrays.tensors[kTable][0] == row && arrays.tensors[kTable][499 * 8 + 7] == row);
  CHECK(arrays.tensors[kTable][3 * 8] == twice_row && arrays.tensors[kTable][8] == 0);
}

// Workers push integers; others' rows are pulled meanwhile, and records read.
void test_sums(Setting setting, bool prefetch) {
  constexpr int kSteps = 8;
  Job job(setting);
  in_threads(setting.num_workers, [&](int worker) {
    Arrays arrays;
    tfdist_exchange_result result;
    double rows[16];
    const int64_t wanted[] = {499, 0};
    for (int step = 0; step < kSteps; ++step) {
      CHECK(push(job.clients[worker], worker + 1, &arrays, &result, prefetch) == TFDIST_OK);
      CHECK(tfdist_client_pull_rows(job.clients[worker], 0, kTable, wanted, 2, rows, &result) == TFDIST_OK);
      tfdist_worker_record record;
      int64_t staleness[64];
      tfdist_server_record(job.servers[0], 0, worker, &record, staleness, 64);
      CHECK(tfdist_server_version(job.servers[0], 0, 0) <= tfdist_server_updates(job.servers[0], 0));
    }
    CHECK(tfdist_client_flush(job.clients[worker], 0, nullptr, 0, &result) == TFDIST_OK);
    for (auto* server : job.servers) tfdist_server_set_active(server, 0, worker, 77, 0);
  });
  const int workers = setting.num_workers;
  double total = -kSteps * workers * (workers + 1) / 2.0;
  if (setting.mode == TFDIST_SYNCHRONOUS) total /= workers;
  Arrays arrays;
  read(job.clients[0], &arrays);
  expect_all(arrays, total, total, 2 * total);
}

// A reader never sees half of an update, whoever pushes: gradients are constant.
void test_consistency(bool is_shared) {
  Setting setting;
  setting.is_shared = is_shared;
  setting.num_servers = 1;
  Job job(setting);
  in_threads(3, [&](int worker) {
    Arrays arrays;
    tfdist_exchange_result result;
    for (int step = 0; step < 10; ++step) {
      if (worker > 0) {
        CHECK(push(job.clients[worker], 1, &arrays, &result) == TFDIST_OK);
      } else {
        read(job.clients[0], &arrays);
      }
      for (const double value : arrays.tensors[0]) CHECK(value == arrays.tensors[0][0]);
    }
  });
}

// Delay compensation and the moving average run over the same memory as everything else.
void test_extras(bool is_shared) {
  Setting setting;
  setting.is_shared = is_shared;
  setting.compensation = 0.5;
  setting.average_momentum = 0.9;
  Job job(setting);
  in_threads(3, [&](int worker) {
    Arrays arrays;
    tfdist_exchange_result result;
    for (int step = 0; step < 5; ++step) CHECK(push(job.clients[worker], 0.01, &arrays, &result) == TFDIST_OK);
    for (const double value : arrays.tensors[0]) CHECK(std::isfinite(value));
  });
}

// One worker leaves while others wait for it: synchronous ones fail, backup workers and bounded ones go on.
void test_loss(Setting setting, int expected) {
  Job job(setting);
  in_threads(3, [&](int worker) {
    Arrays arrays;
    tfdist_exchange_result result;
    if (worker == 2) return tfdist_client_close(job.clients[2]);
    const int code = push(job.clients[worker], 1, &arrays, &result);
    CHECK(code == expected);
    CHECK((code == TFDIST_OK) == (result.text[0] == 0));
  });
}

// The server goes away under its clients.
void test_lost_server(bool prefetch, bool is_shared) {
  Setting setting;
  setting.is_shared = is_shared;
  Job job(setting);
  in_threads(3, [&](int worker) {
    Arrays arrays;
    tfdist_exchange_result result;
    int code = TFDIST_OK;
    for (int step = 0; code == TFDIST_OK; ++step) {
      code = push(job.clients[worker], 1, &arrays, &result, prefetch);
      if (worker == 0 && step == 3) tfdist_server_release(job.servers.back());
    }
    CHECK(code == TFDIST_SERVER_LOST && result.server == 1);
    CHECK(std::strstr(result.text, "The exchange with parameter server 1 at here failed on rank ") != nullptr);
  });
  job.servers.pop_back();
}

// The server is replaced by one that knows less, while workers push ones; they tell it what they have, and send again.
void test_recovery(bool is_shared, bool prefetch, int mode) {
  Setting setting;
  setting.is_shared = is_shared;
  setting.recovers = true;
  setting.mode = mode;
  setting.num_workers = 2;
  setting.num_servers = 1;
  Job job(setting);
  std::atomic<bool> is_over{false};
  std::atomic<int> pushes{0};
  const auto saved = job.save();
  std::thread kills([&] {
    for (int kill = 1; kill <= 4; ++kill) {
      while (pushes < 40 * kill) std::this_thread::yield();
      job.replace(saved);
    }
    is_over = true;
  });
  in_threads(2, [&](int worker) {
    Arrays arrays, known;
    tfdist_exchange_result result;
    read(job.clients[worker], &known);
    for (bool is_last = false; !is_last;) {  // the last one to the last server: what a worker that left had only told
      is_last = is_over;                     // the one before is lost
      arrays.fill(1);
      tfdist_exchange call = arrays.call();
      call.prefetch = prefetch;
      call.offers = 1;
      for (int t = 0; t < kTable; ++t) arrays.dense[t].current = known.tensors[t].data();
      arrays.touched.current = known.tensors[kTable].data();
      const int code = tfdist_client_exchange(job.clients[worker], 0, &call, &result);
      CHECK(code == TFDIST_OK);
      std::swap(arrays.tensors, known.tensors);
      ++pushes;
    }
    CHECK(tfdist_client_flush(job.clients[worker], 0, nullptr, 0, &result) == TFDIST_OK);
    tfdist_server_set_active(job.servers[0], 0, worker, 0, 0);
    tfdist_client_close(job.clients[worker]);
  });
  kills.join();
  const auto* theta = static_cast<double*>(tfdist_server_array(job.servers[0], 0, 0, 0));
  const double total = mode == TFDIST_SYNCHRONOUS ? static_cast<double>(tfdist_server_updates(job.servers[0], 0)) : pushes.load();
  for (int64_t i = 0; i < kElements[0]; ++i) CHECK(theta[i] == -total);
  CHECK(tfdist_server_updates(job.servers[0], 0) == static_cast<int64_t>(total));
}

// A hosted update, and one that its host refuses.
int32_t host(void* context, const tfdist_hosted_gradient* gradients, int32_t num_gradients, double, char* text,
             int64_t capacity) {
  auto* calls = static_cast<int*>(context);
  CHECK(num_gradients == 1 && gradients[0].rows == nullptr);
  std::snprintf(text, static_cast<size_t>(capacity), "no more");
  return ++*calls <= 2 ? TFDIST_OK : TFDIST_INVALID;
}

void test_hosted() {
  tfdist_server* server = tfdist_server_create(kSeconds);
  const tfdist_shard shard{"tensor", TFDIST_FLOAT32, 0, 1, 0, 16, 1, {}};
  const double weight = 1;
  int calls = 0;
  tfdist_store_options options{};
  options.num_workers = options.num_step_weights = 1;
  options.step_weights = &weight;
  options.host = host;
  options.host_context = &calls;
  CHECK(tfdist_server_add_store(server, &options, &shard, 1) == 0);
  int pairs[2][2];
  for (auto& pair : pairs) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(tfdist_server_serve(server, pair[1], 0, 1) == TFDIST_OK);
  }
  const char* address = "here";
  const int32_t sockets[] = {pairs[0][0], pairs[1][0]}, number = 0;
  tfdist_client* client = tfdist_client_create(0, 1, &address, sockets, kSeconds);
  const tfdist_client_part part{0, 0, 0, 16};
  const tfdist_client_tensor tensor{"tensor", TFDIST_FLOAT32, 1, 1, &part};
  const int64_t bytes = 64;
  const tfdist_client_store store{&tensor, 1, &number, nullptr, &bytes, 0, 0, 0};
  CHECK(tfdist_client_add_store(client, &store) == 0);
  float values[16] = {};
  const tfdist_exchange_dense dense{0, 0, values, values, values};
  tfdist_exchange call{};
  call.dense = &dense;
  call.num_dense = call.is_pushed = 1;
  tfdist_exchange_result result;
  for (int i = 0; i < 2; ++i) CHECK(tfdist_client_exchange(client, 0, &call, &result) == TFDIST_OK);
  CHECK(tfdist_client_exchange(client, 0, &call, &result) == TFDIST_INVALID);
  CHECK(std::strstr(result.text, "no more") != nullptr && tfdist_server_version(server, 0, 0) == 2);
  tfdist_client_close(client);
  tfdist_client_release(client);
  tfdist_server_release(server);
}

}  // namespace

int main() {
  for (const bool is_shared : {true, false}) {
    for (const int mode : {TFDIST_ASYNCHRONOUS, TFDIST_BOUNDED, TFDIST_SYNCHRONOUS}) {
      Setting setting;
      setting.mode = mode;
      setting.is_shared = is_shared;
      setting.staleness_bound = 1;
      test_sums(setting, false);
      if (mode != TFDIST_SYNCHRONOUS) test_sums(setting, true);
    }
    test_consistency(is_shared);
    test_extras(is_shared);
    Setting setting;
    setting.is_shared = is_shared;
    setting.mode = TFDIST_BOUNDED;
    test_loss(setting, TFDIST_OK);
    setting.mode = TFDIST_SYNCHRONOUS;
    test_loss(setting, TFDIST_LOST);
    setting.backup_workers = 1;
    test_loss(setting, TFDIST_OK);
    for (const bool prefetch : {true, false}) {
      test_lost_server(prefetch, is_shared);
      test_recovery(is_shared, prefetch, TFDIST_ASYNCHRONOUS);
    }
    test_recovery(is_shared, false, TFDIST_SYNCHRONOUS);
  }
  test_hosted();
  std::printf("all checks held\n");
}
