// Keeps the stores, and serves every connection of a worker by a thread of its own.
#ifndef TFDIST_PARAMETER_SERVER_SERVER_H_
#define TFDIST_PARAMETER_SERVER_SERVER_H_

#include <condition_variable>
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
  Memory* window(uint32_t store, int worker);

  void serve(int descriptor, int worker);
  void close();

  double timeout_seconds() const { return timeout_seconds_; }
  std::pair<int64_t, int64_t> transferred(int worker);  // bytes received and sent

 private:
  struct Served {
    int worker;
    std::unique_ptr<Channel> channel;
    std::thread thread;
  };

  const double timeout_seconds_;
  std::mutex mutex_;  // guards what follows
  std::vector<std::unique_ptr<Store>> stores_;
  std::map<std::pair<uint32_t, int>, Memory> windows_;
  std::vector<std::unique_ptr<Served>> served_;
  bool is_closed_ = false;
};

// The bytes that the dense values of `entries` take in a window; `offsets`: where each begins.
size_t lay_out(Store* store, const std::vector<Entry>& entries, std::vector<size_t>* offsets);

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_SERVER_H_
