// What this rank knows of one peer: its sockets, and its segment where both are on one host.
#ifndef TFDIST_ENGINE_PEER_H_
#define TFDIST_ENGINE_PEER_H_

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "engine/stream.h"
#include "transport/shared_memory.h"

namespace tfdist {

// When a peer was last known to live. A look compares the three counts with those of the look before.
struct Pulse {
  std::chrono::steady_clock::time_point since;  // the last look at which it lived, or the first one of a stall
  bool asked = false;                           // of this stall
  uint64_t posted = 0;                          // headers in its segment
  uint64_t num_events = 0;
  int64_t taken_bytes = 0;                      // of what was written to it, by its host
};

struct Peer {
  int rank = -1;
  std::string address;
  std::vector<std::unique_ptr<Stream>> streams;  // the first one carries what is not data
  std::unique_ptr<Segment> segment;              // null: data travels by the streams
  uint64_t looked_at = 0;                        // how many headers in its segment were there at the last look
  uint64_t num_events = 0;                       // parts and frames that have come from it by sockets
  size_t num_goodbyes = 0;                       // how many of its streams have ended in good order
  bool goodbye = false;                          // it left in good order
  bool gone = false;                             // the connection is over
  bool silent = false;                           // lost for its silence: nothing can be left with it
  Pulse pulse;

  bool is_shared() const { return segment != nullptr; }
  Stream& control() { return *streams.front(); }
  Stream& stream_of(uint32_t message) { return *streams[message % streams.size()]; }
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_PEER_H_
