#include "engine/stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace tfdist {
namespace {

constexpr size_t kPartBytesAtMost = 1 << 18;  // stays in the L2 cache while it is reduced, and passed on
constexpr size_t kAheadBytes = 1 << 14;

}  // namespace

Stream::Stream(std::unique_ptr<AbstractLink> link)
    : link(std::move(link)),
      narrowed_(new char[kDataBytesAtMost]),
      staging_(new char[kPartBytesAtMost]),
      ahead_(new char[kAheadBytes]) {}

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
  written_bytes_ += n;
  *sent = sending_;
  sent->bytes = 0;
  if (written_ > sizeof(FrameHeader)) {
    sent->bytes = static_cast<int64_t>(written_ - sizeof(FrameHeader) - payload_written) * sending_.bytes / outgoing_.length;
  }
  if (written_ < total) {
    blocked = true;
    return Event::kNothing;
  }
  writing_ = false;
  return Event::kFrame;
}

// Brings up to `wanted` of the next bytes to `target`: how many, 0 for "not now", or kGone.
ssize_t Stream::fill(char* target, size_t wanted) {
  if (has_ahead()) {
    const size_t n = std::min(wanted, ahead_end_ - ahead_begin_);
    std::memcpy(target, ahead_.get() + ahead_begin_, n);
    ahead_begin_ += n;
    return static_cast<ssize_t>(n);
  }
  if (is_drained_) return 0;
  const iovec parts[2] = {{target, wanted}, {ahead_.get(), kAheadBytes}};
  const ssize_t n = link->read(parts, 2);
  if (n < 0) return n;
  const auto got = static_cast<size_t>(n);
  is_drained_ = got < wanted + kAheadBytes;
  ahead_begin_ = 0;
  ahead_end_ = got > wanted ? got - wanted : 0;
  return static_cast<ssize_t>(std::min(got, wanted));
}

Stream::Event Stream::receive() {
  if (!in_payload_) {
    while (header_got_ < sizeof(FrameHeader)) {
      const ssize_t n = fill(reinterpret_cast<char*>(&incoming_) + header_got_, sizeof(FrameHeader) - header_got_);
      if (n < 0) return Event::kGone;
      if (n == 0) return Event::kNothing;
      header_got_ += static_cast<size_t>(n);
    }
    in_payload_ = true;
    payload_got_ = part_bytes_ = staged_bytes_ = 0;
    return Event::kHeader;
  }
  staged_bytes_ -= part_bytes_;  // less than a grain
  if (target_ == nullptr && staged_bytes_ > 0) std::memmove(staging_.get(), staging_.get() + part_bytes_, staged_bytes_);
  part_bytes_ = 0;
  const size_t left = incoming_.length - payload_got_;
  if (left > 0) {
    char* begin = target_ == nullptr ? staging_.get() + staged_bytes_ : target_ + payload_got_;
    const ssize_t n = fill(begin, std::min(left, kPartBytesAtMost - staged_bytes_));
    if (n < 0) return Event::kGone;
    if (n == 0) return Event::kNothing;
    payload_got_ += static_cast<size_t>(n);
    staged_bytes_ += static_cast<size_t>(n);
  }
  if (payload_got_ < incoming_.length) {
    part_bytes_ = staged_bytes_ - staged_bytes_ % kGrainBytes;
    return Event::kPart;
  }
  part_bytes_ = staged_bytes_;
  in_payload_ = false;
  header_got_ = 0;
  return Event::kFrame;
}

void Stream::forget_target() {
  target_operation = nullptr;
  target_step = -1;
  target_ = nullptr;
}

}  // namespace tfdist
