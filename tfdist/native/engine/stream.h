// One socket to a peer: cuts the byte stream into frames and back. Used by whoever drives the engine, one at a time.
#ifndef TFDIST_ENGINE_STREAM_H_
#define TFDIST_ENGINE_STREAM_H_

#include <memory>
#include <string>
#include <vector>

#include "engine/operation.h"
#include "transport/link.h"

namespace tfdist {

class Stream {
 public:
  enum class Event { kNothing, kHeader, kFrame, kGone };

  explicit Stream(std::unique_ptr<AbstractLink> link);

  // Sending. A data frame's payload must stay as it is until `flush` has told of it.
  void send_control(FrameHeader header, const std::string& payload);
  void send_data(const FrameHeader& header, const char* payload, Operation* operation, int step, int64_t bytes);
  bool has_output() const { return writing_ || next_control_ < control_.size(); }
  // Writes what it can; kFrame says that a frame has left entirely, and `sent` which step of what it was.
  struct Sent {
    Operation* operation = nullptr;
    int step = -1;
    int64_t bytes = 0;  // of the work buffer
  };
  Event flush(Sent* sent);
  char* narrowed() { return narrowed_.get(); }  // for a payload that travels as another type

  // Receiving: kHeader asks the engine to name the target of the payload; kFrame says it is complete.
  Event receive();
  const FrameHeader& header() const { return incoming_; }
  void set_target(char* target) { target_ = target; }
  char* staging() const { return staging_.get(); }
  void forget_target();

  std::unique_ptr<AbstractLink> link;
  bool blocked = false;               // the last write took less than it was given
  bool broken = false;                // writing failed; reading will tell why
  Operation* target_operation = nullptr;
  int target_step = -1;               // -1: the piece is held or dropped
  bool target_is_work = false;        // it is read straight to where it belongs
  Buffer held;                        // target of a piece that came too early

 private:
  struct Control {
    FrameHeader header;
    std::string payload;
  };

  std::vector<Control> control_;  // those before next_control_ have left
  size_t next_control_ = 0;
  bool writing_ = false;
  FrameHeader outgoing_;
  const char* payload_ = nullptr;
  std::string control_payload_;
  size_t written_ = 0;  // of header and payload together
  Sent sending_;
  std::unique_ptr<char[]> narrowed_;

  FrameHeader incoming_;
  size_t header_got_ = 0, payload_got_ = 0;
  bool in_payload_ = false;
  char* target_ = nullptr;
  std::unique_ptr<char[]> staging_;
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_STREAM_H_
