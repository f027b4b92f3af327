// Exercises the engine through its C interface, ranks being threads: the program the sanitizers watch.
//
// Built and run by sanitize.py; returns 0 when every check held.

#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
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

bool shares_memory = false;
int num_sockets = 1;   // of each pair of ranks
int buffer_bytes = 0;  // of a socket; 0: the system's
double heartbeat_seconds = 0;

tfdist_group* create(int rank, int world_size, const int* sockets, const int* segments, double timeout) {
  tfdist_group_options options{};
  options.rank = rank;
  options.world_size = world_size;
  options.sockets = sockets;
  options.sockets_per_peer = num_sockets;
  options.segments = segments;
  options.timeout_seconds = timeout;
  options.is_eager = rank % 2;  // both kinds meet
  options.heartbeat_seconds = heartbeat_seconds;
  return tfdist_group_create(&options);
}

std::atomic<long> num_allocations{0};

std::vector<tfdist_group*> connect(int world_size, double timeout) {
  std::vector<std::vector<int>> fds(world_size, std::vector<int>(world_size * num_sockets, -1));
  for (int a = 0; a < world_size; ++a) {
    for (int b = a + 1; b < world_size; ++b) {
      for (int i = 0; i < num_sockets; ++i) {
        int pair[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        fds[a][b * num_sockets + i] = pair[0];
        fds[b][a * num_sockets + i] = pair[1];
        for (int end : pair) {
          if (buffer_bytes > 0) setsockopt(end, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof(buffer_bytes));
        }
      }
    }
  }
  std::vector<int> segments(world_size, -1);
  const unsigned char nonce[16] = {};
  for (int rank = 0; shares_memory && rank < world_size; ++rank) {
    segments[rank] = tfdist_segment_create(rank, world_size, nonce);
    CHECK(segments[rank] >= 0);
  }
  std::vector<tfdist_group*> groups;
  for (int rank = 0; rank < world_size; ++rank) {
    groups.push_back(create(rank, world_size, fds[rank].data(), segments.data(), timeout));
    CHECK(groups.back() != nullptr);
  }
  for (int segment : segments) {
    if (segment >= 0) close(segment);
  }
  return groups;
}

void on_every_rank(const std::vector<tfdist_group*>& groups, const std::function<void(int, tfdist_group*)>& body) {
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < groups.size(); ++rank) {
    threads.emplace_back([&, rank] { body(static_cast<int>(rank), groups[rank]); });
  }
  for (auto& thread : threads) thread.join();
}

int load_ring(tfdist_group* group, int rank, int world_size) {
  std::vector<int32_t> table;
  auto step = [&](int kind, int peer, int chunk) { table.insert(table.end(), {kind, peer, chunk, -1}); };
  auto at = [&](int chunk) { return ((chunk % world_size) + world_size) % world_size; };
  for (int half = 0; half < 2; ++half) {
    for (int hop = 0; hop < world_size - 1; ++hop) {
      const int first = half == 0 ? rank - hop - 1 : rank - hop;
      step(TFDIST_SEND, at(rank + 1), at(first));
      const int reduce = hop == world_size - 2 ? TFDIST_RECEIVE_REDUCE_LAST : TFDIST_RECEIVE_REDUCE;
      step(half == 0 ? reduce : TFDIST_RECEIVE, at(rank - 1), at(first - 1));
    }
  }
  return tfdist_group_load_plan(group, table.data(), static_cast<int32_t>(table.size() / 4), world_size);
}

tfdist_operation sum_of(int plan, int64_t elements, uint64_t channel) {
  tfdist_operation operation{};
  operation.plan = plan;
  operation.dtype = TFDIST_FLOAT32;
  operation.reduce = TFDIST_SUM;
  operation.scale = 1;
  operation.channel = channel;
  operation.step = -1;
  operation.description = "test";
  operation.elements = elements;
  return operation;
}

// Many operations in flight, started in another order on every rank.
void test_any_order(int world_size) {
  auto groups = connect(world_size, 60);
  const std::vector<int64_t> sizes{0, 1, 7, 1000, 300007, 65536};
  on_every_rank(groups, [&](int rank, tfdist_group* group) {
    const int plan = load_ring(group, rank, world_size);
    CHECK(plan >= 0);
    for (int round = 0; round < 5; ++round) {
      std::vector<std::vector<float>> values;
      std::vector<int64_t> tickets(sizes.size());
      for (int64_t size : sizes) values.emplace_back(static_cast<size_t>(size), static_cast<float>(rank + 1));
      for (size_t k = 0; k < sizes.size(); ++k) {
        const size_t i = (k + static_cast<size_t>(rank)) % sizes.size();
        const tfdist_operation operation = sum_of(plan, sizes[i], i);
        const tfdist_span span{values[i].data(), sizes[i]};
        tickets[i] = tfdist_start(group, &operation, &span, 1, nullptr);
        CHECK(tickets[i] > 0);
      }
      for (size_t i = 0; i < sizes.size(); ++i) {
        CHECK(tfdist_wait(group, tickets[i], -1, 1) == TFDIST_OK);
        const tfdist_span span{values[i].data(), sizes[i]};
        CHECK(tfdist_finish(group, tickets[i], &span, 1) == TFDIST_OK);
        for (float value : values[i]) CHECK(value == static_cast<float>(world_size * (world_size + 1) / 2));
      }
    }
    tfdist_group_close(group, nullptr);
    tfdist_group_release(group);
  });
}

// Every type and reduction, weights, in place and from the pool.
void test_types() {
  auto groups = connect(2, 60);
  on_every_rank(groups, [&](int rank, tfdist_group* group) {
    const int plan = load_ring(group, rank, 2);
    for (int dtype = TFDIST_FLOAT32; dtype <= TFDIST_INT64; ++dtype) {
      for (int reduce = TFDIST_SUM; reduce <= TFDIST_PRODUCT; ++reduce) {
        std::vector<int64_t> memory(513, 0);
        tfdist_operation operation = sum_of(plan, 513, 3);
        operation.dtype = dtype;
        operation.reduce = reduce;
        operation.work = memory.data();
        const int64_t ticket = tfdist_start(group, &operation, nullptr, 0, nullptr);
        CHECK(ticket > 0 && tfdist_wait(group, ticket, -1, 1) == TFDIST_OK);
        const tfdist_span span{memory.data(), 513};
        CHECK(tfdist_finish(group, ticket, &span, 1) == TFDIST_OK);
      }
    }
    std::vector<float> mine(1001, rank == 0 ? NAN : 5.0f);
    tfdist_operation operation = sum_of(plan, 1001, 4);
    operation.reduce = TFDIST_MEAN;
    operation.scale = rank * 3.0;
    operation.divisor = 3.0;
    const tfdist_span span{mine.data(), 1001};
    const int64_t ticket = tfdist_start(group, &operation, &span, 1, nullptr);
    CHECK(tfdist_wait(group, ticket, -1, 1) == TFDIST_OK);
    CHECK(tfdist_finish(group, ticket, &span, 1) == TFDIST_OK);
    for (float value : mine) CHECK(value == 5.0f);
    CHECK(tfdist_finish(group, ticket, &span, 1) == TFDIST_INVALID);
    tfdist_group_close(group, nullptr);
    tfdist_group_release(group);
  });
}

// One rank leaves, fails, is late, or disagrees; the others are told while operations are in flight.
void test_failures() {
  for (int fault = 0; fault < 4; ++fault) {
    auto groups = connect(3, fault == 2 ? 0.5 : 20);
    on_every_rank(groups, [&](int rank, tfdist_group* group) {
      const int plan = load_ring(group, rank, 3);
      std::vector<float> values(500000, 1.0f);
      const tfdist_span span{values.data(), 500000};
      tfdist_operation operation = sum_of(plan, 500000, 1);
      if (rank == 1 && fault == 3) operation.description = "something else";
      int code = TFDIST_OK;
      if (rank != 1 || fault == 3) {
        const int64_t ticket = tfdist_start(group, &operation, &span, 1, nullptr);
        code = ticket < 0 ? static_cast<int>(-ticket) : tfdist_wait(group, ticket, -1, 1);
        CHECK(code != TFDIST_OK);
        if (ticket > 0) tfdist_finish(group, ticket, &span, 1);
      } else if (fault == 2) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1500));
      }
      char text[4096];
      int32_t peer = -1;
      tfdist_group_error(group, &peer, text, sizeof(text));
      if (rank == 0) {
        const int expected[] = {TFDIST_MISMATCH, TFDIST_RAISED, TFDIST_TIMEOUT, TFDIST_MISMATCH};
        if (code != expected[fault]) std::fprintf(stderr, "fault %d gave %d: %s\n", fault, code, text);
        CHECK(code == expected[fault]);
        CHECK(std::strstr(text, "rank 1") != nullptr);
      }
      tfdist_group_close(group, rank == 1 && fault == 1 ? "rank 1 failed: it was told to" : nullptr);
      tfdist_group_release(group);
    });
  }
}

// Once every size has been seen, collectives reuse what they have, on the waiters' threads and the engine's.
void test_steady_state() {
  auto groups = connect(3, 60);
  std::atomic<int> arrived{0};
  on_every_rank(groups, [&](int rank, tfdist_group* group) {
    const int plan = load_ring(group, rank, 3);
    std::vector<float> large(200000, 1.0f), small(10, 1.0f), copy(10);
    const tfdist_span inputs[] = {{large.data(), 200000}, {small.data(), 10}};
    const tfdist_span places[] = {{large.data(), 200000}, {nullptr, 10}};
    const tfdist_span outputs[] = {{large.data(), 200000}, {copy.data(), 10}};
    long before = 0;
    for (int round = 0; round < 300; ++round) {
      if (round == 200) {  // every rank has come this far, and none further
        ++arrived;
        while (arrived < 3) std::this_thread::yield();
        before = num_allocations;
      }
      tfdist_operation operation = sum_of(plan, 200010, 1);
      operation.reduce = TFDIST_MEAN;
      const int64_t ticket = tfdist_start(group, &operation, inputs, 2, places);
      CHECK(ticket > 0 && tfdist_wait(group, ticket, -1, 1) == TFDIST_OK);
      CHECK(tfdist_finish(group, ticket, outputs, 2) == TFDIST_OK);
      CHECK(large[199999] == 1.0f && copy[9] == 1.0f);
    }
    // Of 300 operations: room for more early pieces than ever before may be made once more.
    CHECK(num_allocations - before < 30);
    tfdist_group_close(group, nullptr);
    tfdist_group_release(group);
  });
}

void test_bad_plans() {
  auto groups = connect(2, 20);
  const int32_t no_peer[] = {TFDIST_SEND, 5, 0, -1}, no_chunk[] = {TFDIST_SEND, 1, 9, -1}, itself[] = {TFDIST_SEND, 0, 0, -1};
  for (const int32_t* table : {no_peer, no_chunk, itself}) CHECK(tfdist_group_load_plan(groups[0], table, 1, 2) < 0);
  tfdist_operation operation = sum_of(99, 1, 1);
  CHECK(tfdist_start(groups[0], &operation, nullptr, 0, nullptr) == -TFDIST_INVALID);
  CHECK(tfdist_group_find(tfdist_group_id(groups[0])) == groups[0]);
  tfdist_group_release(groups[0]);
  const int64_t id = tfdist_group_id(groups[0]);
  for (auto* group : groups) tfdist_group_release(group);
  CHECK(tfdist_group_find(id) == nullptr);
}

// What a stranger on the wire could send: the group ends with an error, and nothing else happens.
void test_garbage() {
  for (int seed = 0; seed < 200; ++seed) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    const int fds[] = {-1, pair[0]};
    tfdist_group* group = create(0, 2, fds, nullptr, 5);
    const int plan = load_ring(group, 0, 2);
    std::vector<unsigned char> bytes(64 + static_cast<size_t>(seed) * 3);
    std::srand(static_cast<unsigned>(seed));
    for (auto& byte : bytes) byte = static_cast<unsigned char>(std::rand());
    if (seed % 2 == 0) {  // a plausible beginning
      const uint32_t magic = 0x74666431;
      std::memcpy(bytes.data(), &magic, sizeof(magic));
    }
    CHECK(write(pair[1], bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
    const tfdist_operation operation = sum_of(plan, 100, 1);
    const int64_t ticket = tfdist_start(group, &operation, nullptr, 0, nullptr);
    CHECK(ticket == -TFDIST_LOST || tfdist_wait(group, ticket, -1, 1) == TFDIST_LOST);
    close(pair[1]);
    tfdist_group_release(group);
  }
}

// Whose training thread is late, yet whose engine lives, is waited for, however short the heartbeat.
void test_slow_is_not_silent() {
  heartbeat_seconds = 0.4;
  auto groups = connect(3, 60);
  on_every_rank(groups, [&](int rank, tfdist_group* group) {
    const int plan = load_ring(group, rank, 3);
    std::vector<float> values(300000, 1.0f);
    const tfdist_span span{values.data(), 300000};
    const tfdist_operation operation = sum_of(plan, 300000, 1);
    if (rank == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1300));
    const int64_t ticket = tfdist_start(group, &operation, &span, 1, nullptr);
    CHECK(ticket > 0 && tfdist_wait(group, ticket, -1, 1) == TFDIST_OK);
    CHECK(tfdist_finish(group, ticket, &span, 1) == TFDIST_OK && values[299999] == 3.0f);
    tfdist_group_close(group, nullptr);
    tfdist_group_release(group);
  });
  heartbeat_seconds = 0;
}

// A group of rank 0 whose peers say nothing: `others` are their ends of the sockets.
tfdist_group* among_mutes(int world_size, std::vector<int>* others) {
  std::vector<int> fds{-1};
  for (int rank = 1; rank < world_size; ++rank) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    fds.push_back(pair[0]);
    others->push_back(pair[1]);
  }
  return create(0, world_size, fds.data(), nullptr, 60);
}

// Nothing comes from a peer, nor does it take anything: it is lost, and the text says to whom and in what.
void test_silence() {
  heartbeat_seconds = 0.3;
  for (const bool is_blocked : {false, true}) {
    std::vector<int> others;
    tfdist_group* group = among_mutes(2, &others);
    const int64_t elements = is_blocked ? 4000000 : 4;
    tfdist_operation operation = sum_of(load_ring(group, 0, 2), elements, 1);
    operation.step = 7;
    const int64_t ticket = tfdist_start(group, &operation, nullptr, 0, nullptr);
    CHECK(ticket > 0 && tfdist_wait(group, ticket, -1, 1) == TFDIST_LOST);
    char text[4096];
    int32_t peer = -1;
    CHECK(tfdist_group_error(group, &peer, text, sizeof(text)) == TFDIST_LOST && peer == 1);
    CHECK(std::strstr(text, "lost rank 1") && std::strstr(text, "it has been silent for 0."));
    CHECK(std::strstr(text, "while rank 0 waited in test") && std::strstr(text, "at step 7"));
    const auto begin = std::chrono::steady_clock::now();
    tfdist_group_close(group, nullptr);  // though what it has for that peer cannot leave
    CHECK(std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(1500));
    tfdist_group_release(group);
    close(others[0]);
  }
  heartbeat_seconds = 0;
}

// A peer is missed without any operation while somebody watches, and not otherwise.
void test_watching() {
  heartbeat_seconds = 0.2;
  std::vector<int> others;
  tfdist_group* group = among_mutes(2, &others);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  char text[4096];
  CHECK(tfdist_group_error(group, nullptr, text, sizeof(text)) == TFDIST_OK);
  for (int i = 0; i < 100 && tfdist_group_error(group, nullptr, text, sizeof(text)) == TFDIST_OK; ++i) {
    tfdist_group_watch(group, 0.3);
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  CHECK(tfdist_group_error(group, nullptr, text, sizeof(text)) == TFDIST_LOST);
  CHECK(std::strstr(text, "lost rank 1") && std::strstr(text, "while rank 0 waited for what it has to finish"));
  tfdist_group_release(group);
  close(others[0]);
  heartbeat_seconds = 0;
}

// Who says nothing but goes on taking what it is sent is behind a slow link.
void test_slow_link_is_not_silent() {
  heartbeat_seconds = 0.3;
  std::vector<int> others;
  tfdist_group* group = among_mutes(2, &others);
  std::thread reader([&] {
    std::vector<char> bytes(16384);
    for (int i = 0; i < 60; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      CHECK(read(others[0], bytes.data(), bytes.size()) > 0);
    }
    close(others[0]);
  });
  const tfdist_operation operation = sum_of(load_ring(group, 0, 2), 4000000, 1);
  const int64_t ticket = tfdist_start(group, &operation, nullptr, 0, nullptr);
  CHECK(ticket > 0 && tfdist_wait(group, ticket, -1, 1) == TFDIST_LOST);
  char text[4096];
  tfdist_group_error(group, nullptr, text, sizeof(text));
  CHECK(std::strstr(text, "connection was closed") != nullptr);
  reader.join();
  tfdist_group_release(group);
  heartbeat_seconds = 0;
}

}  // namespace

// Not inlined: the compiler takes malloc and free in them for a mismatch.
__attribute__((noinline)) void* operator new(size_t size) {
  ++num_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

int main() {
  for (int kind = 0; kind < 4; ++kind) {
    shares_memory = kind == 1;
    num_sockets = kind < 2 ? 1 : 3;
    buffer_bytes = kind == 3 ? 1 : 0;  // the least the system allows
    for (int world_size : {2, 3, 5}) test_any_order(world_size);
    test_types();
    test_failures();
    test_steady_state();
    test_bad_plans();
    test_slow_is_not_silent();
  }
  num_sockets = 1;
  test_garbage();
  test_silence();
  test_watching();
  test_slow_link_is_not_silent();
  std::puts("engine_test: all checks held");
}
