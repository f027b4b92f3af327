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
  auto window = std::make_shared<Memory>(lay_out(target, everything, &offsets), descriptor);
  std::lock_guard<std::mutex> lock(mutex_);
  windows_[{store, worker}] = std::move(window);
}

std::shared_ptr<Memory> Server::window(uint32_t store, int worker) {
  std::lock_guard<std::mutex> lock(mutex_);
  auto found = windows_.find({store, worker});
  return found == windows_.end() ? nullptr : found->second;
}

void Server::serve(int descriptor, int worker, uint64_t client) {
  auto served = std::make_unique<Served>();
  served->worker = worker;
  served->client = client;
  served->channel = std::make_unique<Channel>(descriptor, timeout_seconds_);
  std::lock_guard<std::mutex> lock(mutex_);
  if (is_closed_) return;
  forget_the_gone();
  served->thread = std::thread([this, one = served.get()] { run(one); });
  served_.push_back(std::move(served));
}

void Server::run(Served* served) {
  Connection(this, served->channel.get(), served->worker, served->client).serve();
  served->channel->shut_down();
  std::vector<Store*> stores;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& store : stores_) stores.push_back(store.get());
  }
  for (Store* store : stores) {
    if (served->worker < store->num_workers()) store->lose(served->worker, served->client);
  }
  served->is_over = true;
}

// Connections that are over still hold a descriptor and a thread to be joined.
void Server::forget_the_gone() {
  for (size_t i = 0; i < served_.size();) {
    Served& served = *served_[i];
    if (!served.is_over) {
      ++i;
      continue;
    }
    served.thread.join();
    auto& total = transferred_[served.worker];
    total.first += served.channel->received_bytes();
    total.second += served.channel->sent_bytes();
    served_.erase(served_.begin() + static_cast<std::ptrdiff_t>(i));
  }
}

std::pair<int64_t, int64_t> Server::transferred(int worker) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::pair<int64_t, int64_t> total = transferred_[worker];
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
