#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>

#include "common/registry.h"
#include "parameter_server/client.h"
#include "parameter_server/server.h"

struct tfdist_server {
  explicit tfdist_server(double timeout_seconds) : server(timeout_seconds) {}
  tfdist::Server server;
};

struct tfdist_client {
  tfdist_client(int rank, int num_servers, const char* const* addresses, const int* sockets, double timeout_seconds)
      : client(rank, num_servers, addresses, sockets, timeout_seconds) {}
  tfdist::Client client;
  int64_t id = 0;
  int references = 1;  // guarded by the registry
};

namespace {

tfdist::Registry<tfdist_client>& registry() { return tfdist::Registry<tfdist_client>::instance(); }

// Nothing may be thrown into C or Python.
template <typename Call>
int32_t guarded(tfdist_exchange_result* result, Call call) {
  try {
    return call();
  } catch (const std::exception& error) {
    std::memset(result, 0, sizeof(*result));
    result->server = result->culprit = -1;
    std::snprintf(result->text, sizeof(result->text), "The exchange with the parameter servers failed: %s.",
                  error.what());
    return TFDIST_INVALID;
  }
}

tfdist::Store* find(tfdist_server* server, int32_t store) { return server->server.store(static_cast<uint32_t>(store)); }

}  // namespace

extern "C" {

tfdist_server* tfdist_server_create(double timeout_seconds) { return new tfdist_server(timeout_seconds); }

void tfdist_server_release(tfdist_server* server) { delete server; }

int32_t tfdist_server_add_store(tfdist_server* server, const tfdist_store_options* options, const tfdist_shard* shards,
                                int32_t num_shards) {
  try {
    auto added = std::make_unique<tfdist::Store>(*options, shards, num_shards);
    return static_cast<int32_t>(server->server.add_store(std::move(added)));
  } catch (const std::exception&) {
    return -TFDIST_INVALID;
  }
}

int32_t tfdist_server_share_window(tfdist_server* server, int32_t store, int32_t worker, int32_t descriptor) {
  try {
    server->server.share_window(static_cast<uint32_t>(store), worker, descriptor);
    return TFDIST_OK;
  } catch (const std::exception&) {
    return TFDIST_INVALID;
  }
}

int32_t tfdist_server_serve(tfdist_server* server, int32_t descriptor, int32_t worker, uint64_t client) {
  try {
    server->server.serve(descriptor, worker, client);
    return TFDIST_OK;
  } catch (const std::exception&) {
    return TFDIST_INVALID;
  }
}

void tfdist_server_join(tfdist_server* server, int32_t store, int32_t worker, uint64_t client) {
  find(server, store)->join(worker, client);
}

void tfdist_server_begin_generation(tfdist_server* server, int32_t store, uint64_t generation, int64_t updates) {
  find(server, store)->begin_generation(generation, updates);
}

uint64_t tfdist_server_generation(tfdist_server* server, int32_t store) { return find(server, store)->generation(); }

int64_t tfdist_server_updates(tfdist_server* server, int32_t store) { return find(server, store)->updates(); }

void tfdist_server_set_active(tfdist_server* server, int32_t store, int32_t worker, uint64_t client,
                              int32_t is_active) {
  find(server, store)->set_active(worker, client, is_active != 0);
}

void* tfdist_server_array(tfdist_server* server, int32_t store, int32_t shard, int32_t slot) {
  tfdist::Memory* memory = find(server, store)->shard(static_cast<size_t>(shard)).array(slot);
  return memory == nullptr ? nullptr : memory->data();
}

double* tfdist_server_scalars(tfdist_server* server, int32_t store, int32_t shard) {
  return find(server, store)->shard(static_cast<size_t>(shard)).scalars();
}

int64_t tfdist_server_save(tfdist_server* server, int32_t store, int32_t shard, void* buffer, int64_t capacity) {
  auto* target = static_cast<char*>(buffer);
  const auto room = static_cast<size_t>(capacity);
  tfdist::Store* found = find(server, store);
  if (shard < 0) return static_cast<int64_t>(found->save(target, room));
  return static_cast<int64_t>(found->shard(static_cast<size_t>(shard)).save(target, room));
}

int32_t tfdist_server_load(tfdist_server* server, int32_t store, int32_t shard, const void* buffer, int64_t bytes) {
  const auto* source = static_cast<const char*>(buffer);
  const auto size = static_cast<size_t>(bytes);
  tfdist::Store* found = find(server, store);
  const bool is_whole = shard < 0 ? found->load(source, size) : found->shard(static_cast<size_t>(shard)).load(source, size);
  return is_whole ? TFDIST_OK : TFDIST_MISMATCH;
}

void tfdist_server_supersede(tfdist_server* server, int32_t store, int32_t incarnation) {
  find(server, store)->supersede(static_cast<uint64_t>(incarnation));
}

void tfdist_server_await_offers(tfdist_server* server, int32_t store, double seconds) {
  find(server, store)->await_offers(seconds);
}

void tfdist_server_hold_host(tfdist_server* server, int32_t store, int32_t is_held) {
  std::mutex& host = find(server, store)->host_mutex();
  is_held ? host.lock() : host.unlock();
}

int64_t tfdist_server_version(tfdist_server* server, int32_t store, int32_t shard) {
  tfdist::Shard& found = find(server, store)->shard(static_cast<size_t>(shard));
  std::lock_guard<std::mutex> lock(found.mutex);
  return static_cast<int64_t>(found.version & tfdist::kCountMask);
}

void tfdist_server_record(tfdist_server* server, int32_t store, int32_t worker, tfdist_worker_record* record,
                          int64_t* staleness, int32_t capacity) {
  const tfdist::WorkerRecord found = find(server, store)->record(worker);
  const auto bytes = server->server.transferred(worker);
  *record = {found.pushes, found.dropped, bytes.first, bytes.second, find(server, store)->last_sequence(worker), found.waited_seconds,
             found.last_seconds - found.first_seconds, static_cast<int32_t>(found.staleness.size())};
  std::copy_n(found.staleness.begin(), std::min(found.staleness.size(), static_cast<size_t>(capacity)), staleness);
}

tfdist_client* tfdist_client_create(int32_t rank, int32_t num_servers, const char* const* addresses,
                                    const int32_t* sockets, double timeout_seconds) {
  try {
    return registry().add(new tfdist_client(rank, num_servers, addresses, sockets, timeout_seconds));
  } catch (const std::exception&) {
    return nullptr;
  }
}

int32_t tfdist_client_recover(tfdist_client* client, double seconds, int32_t wake) {
  return client->client.recover(seconds, wake) ? TFDIST_OK : TFDIST_INVALID;
}

int32_t tfdist_client_is_lost(tfdist_client* client, int32_t server) { return client->client.is_lost(server); }

void tfdist_client_reconnect(tfdist_client* client, int32_t server, const int32_t* sockets, const int32_t* numbers,
                             int32_t num_stores) {
  client->client.reconnect(server, sockets, numbers, num_stores);
}

void tfdist_client_set_mirror(tfdist_client* client, tfdist_client* mirror) {
  client->client.set_mirror(mirror == nullptr ? nullptr : &mirror->client);
}

int64_t tfdist_client_id(tfdist_client* client) { return client->id; }

tfdist_client* tfdist_client_find(int64_t id) { return registry().find(id); }

void tfdist_client_release(tfdist_client* client) { registry().release(client); }

void tfdist_client_close(tfdist_client* client) { client->client.close(); }

int32_t tfdist_client_add_store(tfdist_client* client, const tfdist_client_store* store) {
  try {
    return client->client.add_store(*store);
  } catch (const std::exception&) {
    return -TFDIST_INVALID;
  }
}

void tfdist_client_begin_generation(tfdist_client* client, int32_t store, uint64_t generation, int64_t updates) {
  client->client.begin_generation(store, generation, updates);
}

int32_t tfdist_client_exchange(tfdist_client* client, int32_t store, const tfdist_exchange* call,
                               tfdist_exchange_result* result) {
  return guarded(result, [&] { return client->client.exchange(store, *call, result); });
}

int32_t tfdist_client_flush(tfdist_client* client, int32_t store, const tfdist_span* current, int32_t num_spans,
                            tfdist_exchange_result* result) {
  return guarded(result, [&] { return client->client.flush(store, current, num_spans, result); });
}

int32_t tfdist_client_transfer(tfdist_client* client, int32_t store, int32_t writes, int32_t slot,
                               const tfdist_span* spans, const tfdist_span* current, int32_t num_spans,
                               tfdist_exchange_result* result) {
  return guarded(
      result, [&] { return client->client.transfer(store, writes != 0, slot, spans, current, num_spans, result); });
}

int32_t tfdist_client_pull_rows(tfdist_client* client, int32_t store, int32_t tensor, const int64_t* rows,
                                int64_t num_rows, void* target, tfdist_exchange_result* result) {
  return guarded(result, [&] { return client->client.pull_rows(store, tensor, rows, num_rows, target, result); });
}

}  // extern "C"
