// Keeps the stores, and serves every connection of a worker by a thread of its own.
#ifndef TFDIST_PARAMETER_SERVER_SERVER_H_
#define TFDIST_PARAMETER_SERVER_SERVER_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "parameter_server/channel.h"
#include "parameter_server/memory.h"
#include "parameter_server/store.h"

namespace tfdist {

class Server {
 public:
  explicit Server(double timeout_seconds) : timeout_seconds_(timeout_seconds) {}
  ~Server() { close(); }

  uint32_t add_store(std::unique_ptr<Store> store);
  Store* store(uint32_t index);  // null: there is none
  // The window that `worker` made for a store, in which its dense values travel.
  void share_window(uint32_t store, int worker, int descriptor);
  std::shared_ptr<Memory> window(uint32_t store, int worker);  // null: there is none

  // `client`: a number that the connections of one client of that worker have in common, and no others.
  void serve(int descriptor, int worker, uint64_t client);
  void close();

  double timeout_seconds() const { return timeout_seconds_; }
  std::pair<int64_t, int64_t> transferred(int worker);  // bytes received and sent

 private:
  struct Served {
    int worker;
    uint64_t client;
    std::unique_ptr<Channel> channel;
    std::thread thread;
    std::atomic<bool> is_over{false};
  };

  void run(Served* served);
  void forget_the_gone();

  const double timeout_seconds_;
  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Store>> stores_;
  std::map<std::pair<uint32_t, int>, std::shared_ptr<Memory>> windows_;
  std::vector<std::unique_ptr<Served>> served_;
  std::map<int, std::pair<int64_t, int64_t>> transferred_;  // by worker, on connections that are gone
  bool is_closed_ = false;
};

// The bytes that the dense values of `entries` take in a window; `offsets`: where each begins.
size_t lay_out(Store* store, const std::vector<Entry>& entries, std::vector<size_t>* offsets);

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_SERVER_H_
