// The connection to one peer: cuts the byte stream into frames and back. Engine thread only.
#ifndef TFDIST_ENGINE_PEER_H_
#define TFDIST_ENGINE_PEER_H_

#include <deque>
#include <memory>
#include <string>

#include "engine/operation.h"
#include "transport/link.h"

namespace tfdist {

class Peer {
 public:
  enum class Event { kNothing, kHeader, kFrame, kGone };

  Peer(int rank, std::unique_ptr<AbstractLink> link, std::string address);

  // Sending. A data frame's payload must stay as it is until `flush` has told of it.
  void send_control(FrameHeader header, const std::string& payload);
  void send_data(const FrameHeader& header, const char* payload, std::shared_ptr<Operation> operation, int step);
  bool has_output() const { return writing_ || !control_.empty(); }
  // Writes what it can; kFrame says that a frame has left entirely, and `sent` which step of what it was.
  struct Sent {
    std::shared_ptr<Operation> operation;
    int step = -1;
    int64_t bytes = 0;
  };
  Event flush(Sent* sent);

  // Receiving: kHeader asks the engine to name the target of the payload; kFrame says it is complete.
  Event receive();
  const FrameHeader& header() const { return incoming_; }
  void set_target(char* target) { target_ = target; }
  char* staging() const { return staging_.get(); }

  const int rank;
  const std::string address;
  std::unique_ptr<AbstractLink> link;
  bool blocked = false;         // the last write took less than it was given
  bool broken = false;          // writing failed; reading will tell why
  bool goodbye = false;         // the peer left in good order
  bool gone = false;            // the connection is over
  std::shared_ptr<Operation> target_operation;  // keeps the target of a piece alive
  int target_step = -1;         // -1: the piece is held or dropped
  std::unique_ptr<char[]> held; // target of a piece that came too early

 private:
  struct Control {
    FrameHeader header;
    std::string payload;
  };

  std::deque<Control> control_;
  bool writing_ = false;
  FrameHeader outgoing_;
  const char* payload_ = nullptr;
  std::string control_payload_;
  size_t written_ = 0;  // of header and payload together
  Sent sending_;

  FrameHeader incoming_;
  size_t header_got_ = 0, payload_got_ = 0;
  bool in_payload_ = false;
  char* target_ = nullptr;
  std::unique_ptr<char[]> staging_;
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_PEER_H_
