#include "parameter_server/server.h"

#include "parameter_server/connection.h"

namespace tfdist {

uint32_t Server::add_store(std::unique_ptr<Store> store) {
  std::lock_guard<std::mutex> lock(mutex_);
  stores_.push_back(std::move(store));
  return static_cast<uint32_t>(stores_.size() - 1);
}

Store* Server::store(uint32_t index) {
  std::lock_guard<std::mutex> lock(mutex_);
  return index < stores_.size() ? stores_[index].get() : nullptr;
}

void Server::share_window(uint32_t store, int worker, int descriptor) {
  std::vector<Entry> everything;
  Store* target = this->store(store);
  for (uint32_t i = 0; i < target->num_shards(); ++i) everything.push_back(Entry{i, EntryKind::kDense, 0, 0});
  std::vector<size_t> offsets;
  Memory window(lay_out(target, everything, &offsets), descriptor);
  std::lock_guard<std::mutex> lock(mutex_);
  windows_[{store, worker}] = std::move(window);
}

Memory* Server::window(uint32_t store, int worker) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = windows_.find({store, worker});
  return found == windows_.end() ? nullptr : &found->second;
}

void Server::serve(int descriptor, int worker) {
  auto served = std::make_unique<Served>();
  served->worker = worker;
  served->channel = std::make_unique<Channel>(descriptor, timeout_seconds_);
  Channel* channel = served->channel.get();
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed_) return;
  served->thread = std::thread([this, channel, worker] {
    Connection(this, channel, worker).serve();
    channel->shut_down();
    std::vector<Store*> stores;
    {
      std::lock_guard<std::mutex> inner(mutex_);
      for (auto& store : stores_) stores.push_back(store.get());
    }
    for (Store* store : stores) {
      if (worker < store->num_workers()) store->lose(worker);
    }
  });
  served_.push_back(std::move(served));
}

std::pair<int64_t, int64_t> Server::transferred(int worker) {
  std::pair<int64_t, int64_t> total{0, 0};
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& served : served_) {
    if (served->worker != worker) continue;
    total.first += served->channel->received_bytes();
    total.second += served->channel->sent_bytes();
  }
  return total;
}

void Server::close() {
  std::vector<std::unique_ptr<Served>> served;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    is_closed_ = true;
    served.swap(served_);
    for (auto& store : stores_) store->close();
  }
  for (auto& one : served) one->channel->shut_down();
  for (auto& one : served) one->thread.join();
}

}  // namespace tfdist
