// What this rank knows of one peer: its sockets, and its segment where both are on one host.
#ifndef TFDIST_ENGINE_PEER_H_
#define TFDIST_ENGINE_PEER_H_

#include <memory>
#include <string>
#include <vector>

#include "engine/stream.h"
#include "transport/shared_memory.h"

namespace tfdist {

struct Peer {
  int rank = -1;
  std::string address;
  std::vector<std::unique_ptr<Stream>> streams;  // the first one carries what is not data
  std::unique_ptr<Segment> segment;              // null: data travels by the streams
  uint64_t looked_at = 0;                        // how many headers in its segment were there at the last look
  size_t num_goodbyes = 0;                       // how many of its streams have ended in good order
  bool goodbye = false;                          // it left in good order
  bool gone = false;                             // the connection is over

  bool is_shared() const { return segment != nullptr; }
  Stream& control() { return *streams.front(); }
  Stream& stream_of(uint32_t message) { return *streams[message % streams.size()]; }
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_PEER_H_
