// One socket to a peer: cuts the byte stream into frames and back. Used by whoever drives the engine, one at a time.
#ifndef TFDIST_ENGINE_STREAM_H_
#define TFDIST_ENGINE_STREAM_H_

#include <memory>
#include <string>
#include <vector>

#include "engine/operation.h"
#include "transport/link.h"

namespace tfdist {

constexpr size_t kControlAtMost = 1024;  // answers that may wait to be sent: a peer that asks and does not read gets no more
constexpr size_t kGrainBytes = 64;  // of every element type a multiple

class Stream {
 public:
  enum class Event { kNothing, kHeader, kPart, kFrame, kGone };

  explicit Stream(std::unique_ptr<AbstractLink> link);

  // Sending. A data frame's payload must stay as it is until `flush` has told of it.
  void send_control(FrameHeader header, const std::string& payload);
  void send_data(const FrameHeader& header, const char* payload, Operation* operation, int step, int64_t bytes);
  bool has_room() const { return control_.size() < kControlAtMost; }
  int64_t written_bytes() const { return written_bytes_; }  // ever taken by the link
  bool has_output() const { return writing_ || next_control_ < control_.size(); }
  // Writes what it can; kFrame says that a frame has left entirely. `sent` tells what left of which step, if any did.
  struct Sent {
    Operation* operation = nullptr;
    int step = -1;
    int64_t bytes = 0;  // of the work buffer
  };
  Event flush(Sent* sent);
  char* narrowed() { return narrowed_.get(); }  // for a payload that travels as another type

  // Receiving, one visit of the engine at a time: kHeader asks it to name the target of the payload, kPart says that
  // some of that has come, kFrame that the last of it has: in both cases `part_bytes` more, a multiple of kGrainBytes
  // unless it is the last.
  void begin_visit() { is_drained_ = false; }
  Event receive();
  bool has_ahead() const { return ahead_begin_ < ahead_end_; }  // poll() does not know of it
  const FrameHeader& header() const { return incoming_; }
  void set_target(char* target) { target_ = target; }  // of the whole payload; else each part comes to `staging`
  const char* staging() const { return staging_.get(); }
  size_t part_bytes() const { return part_bytes_; }
  void forget_target();

  std::unique_ptr<AbstractLink> link;
  bool blocked = false;               // the last write took less than it was given
  bool broken = false;                // writing failed; reading will tell why
  bool said_goodbye = false;          // nothing more will come
  bool ended = false;                 // nor is there anything to read
  Operation* target_operation = nullptr;
  int target_step = -1;               // -1: the piece is held or dropped
  bool target_is_work = false;        // it is read straight to where it belongs
  Buffer held;                        // target of a piece that came too early

 private:
  struct Control {
    FrameHeader header;
    std::string payload;
  };

  ssize_t fill(char* target, size_t wanted);

  std::vector<Control> control_;  // those before next_control_ have left
  size_t next_control_ = 0;
  bool writing_ = false;
  FrameHeader outgoing_;
  const char* payload_ = nullptr;
  std::string control_payload_;
  size_t written_ = 0;  // of header and payload together
  int64_t written_bytes_ = 0;
  Sent sending_;
  std::unique_ptr<char[]> narrowed_;

  FrameHeader incoming_;
  size_t header_got_ = 0, payload_got_ = 0;
  size_t part_bytes_ = 0, staged_bytes_ = 0;
  bool in_payload_ = false;
  char* target_ = nullptr;  // null: staging_
  std::unique_ptr<char[]> staging_;
  // What came behind that which was asked for: a short message costs one system call.
  std::unique_ptr<char[]> ahead_;
  size_t ahead_begin_ = 0, ahead_end_ = 0;
  bool is_drained_ = false;  // the last read took all there was
};

}  // namespace tfdist
#endif  // TFDIST_ENGINE_STREAM_H_
