#include "engine/stream.h"

#include <utility>

namespace tfdist {

Stream::Stream(std::unique_ptr<AbstractLink> link)
    : link(std::move(link)), narrowed_(new char[kDataBytesAtMost]), staging_(new char[kDataBytesAtMost]) {}

void Stream::send_control(FrameHeader header, const std::string& payload) {
  Control control{header, payload.substr(0, kTextBytesAtMost)};
  control.header.length = static_cast<uint32_t>(control.payload.size());
  control.header.check = control.header.expected_check();
  control_.push_back(std::move(control));
}

void Stream::send_data(const FrameHeader& header, const char* payload, Operation* operation, int step,
                       int64_t bytes) {
  outgoing_ = header;
  outgoing_.check = outgoing_.expected_check();
  payload_ = payload;
  sending_ = Sent{operation, step, bytes};
  written_ = 0;
  writing_ = true;
}

Stream::Event Stream::flush(Sent* sent) {
  if (!writing_) {
    if (next_control_ == control_.size()) return Event::kNothing;
    outgoing_ = control_[next_control_].header;
    control_payload_ = std::move(control_[next_control_].payload);
    if (++next_control_ == control_.size()) {
      control_.clear();
      next_control_ = 0;
    }
    payload_ = control_payload_.data();
    sending_ = Sent{};
    written_ = 0;
    writing_ = true;
  }
  const size_t total = sizeof(FrameHeader) + outgoing_.length;
  iovec parts[2];
  int count = 0;
  if (written_ < sizeof(FrameHeader)) {
    parts[count++] = {reinterpret_cast<char*>(&outgoing_) + written_, sizeof(FrameHeader) - written_};
  }
  const size_t payload_written = written_ < sizeof(FrameHeader) ? 0 : written_ - sizeof(FrameHeader);
  if (outgoing_.length > payload_written) {
    parts[count++] = {const_cast<char*>(payload_) + payload_written, outgoing_.length - payload_written};
  }
  const ssize_t n = link->write(parts, count);
  if (n < 0) return Event::kGone;
  written_ += static_cast<size_t>(n);
  if (written_ < total) {
    blocked = true;
    return Event::kNothing;
  }
  writing_ = false;
  *sent = sending_;
  return Event::kFrame;
}

Stream::Event Stream::receive() {
  if (!in_payload_) {
    if (header_got_ < sizeof(FrameHeader)) {
      iovec part{reinterpret_cast<char*>(&incoming_) + header_got_, sizeof(FrameHeader) - header_got_};
      const ssize_t n = link->read(&part, 1);
      if (n < 0) return Event::kGone;
      header_got_ += static_cast<size_t>(n);
      if (header_got_ < sizeof(FrameHeader)) return Event::kNothing;
    }
    in_payload_ = true;
    payload_got_ = 0;
    return Event::kHeader;
  }
  if (payload_got_ < incoming_.length) {
    iovec part{target_ + payload_got_, incoming_.length - payload_got_};
    const ssize_t n = link->read(&part, 1);
    if (n < 0) return Event::kGone;
    payload_got_ += static_cast<size_t>(n);
    if (payload_got_ < incoming_.length) return Event::kNothing;
  }
  in_payload_ = false;
  header_got_ = 0;
  return Event::kFrame;
}

void Stream::forget_target() {
  target_operation = nullptr;
  target_step = -1;
  set_target(staging());
}

}  // namespace tfdist
