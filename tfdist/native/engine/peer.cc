#include "engine/peer.h"

#include <utility>

namespace tfdist {

Peer::Peer(int rank, std::unique_ptr<AbstractLink> link, std::string address)
    : rank(rank), address(std::move(address)), link(std::move(link)), staging_(new char[kDataBytesAtMost]) {}

void Peer::send_control(FrameHeader header, const std::string& payload) {
  if (gone) return;
  Control control{header, payload.substr(0, kTextBytesAtMost)};
  control.header.length = static_cast<uint32_t>(control.payload.size());
  control.header.check = control.header.expected_check();
  control_.push_back(std::move(control));
}

void Peer::send_data(const FrameHeader& header, const char* payload, std::shared_ptr<Operation> operation, int step) {
  outgoing_ = header;
  outgoing_.check = outgoing_.expected_check();
  payload_ = payload;
  sending_ = Sent{std::move(operation), step, static_cast<int64_t>(header.length)};
  written_ = 0;
  writing_ = true;
}

Peer::Event Peer::flush(Sent* sent) {
  if (!writing_) {
    if (control_.empty()) return Event::kNothing;
    outgoing_ = control_.front().header;
    control_payload_ = std::move(control_.front().payload);
    control_.pop_front();
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
  *sent = std::move(sending_);
  return Event::kFrame;
}

Peer::Event Peer::receive() {
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

}  // namespace tfdist
