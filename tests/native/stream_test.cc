// Cuts frames into a byte stream and back while the link moves only a few bytes at a time, at every boundary.
//
// Built and run by sanitize.py; returns 0 when every check held.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "check.h"
#include "engine/stream.h"

namespace tfdist {
namespace {

// A link to itself that moves at most `first` bytes in its first call of each kind and `step` in every other.
class Drip final : public AbstractLink {
 public:
  Drip(size_t first, size_t step) : write_left_(first), read_left_(first), step_(step) {}
  int descriptor() const override { return -1; }
  ssize_t write(const iovec* parts, int count) override {
    size_t moved = 0;
    for (int i = 0; i < count; ++i) {
      const size_t n = std::min(parts[i].iov_len, write_left_ - moved);
      const char* begin = static_cast<const char*>(parts[i].iov_base);
      bytes.insert(bytes.end(), begin, begin + n);
      moved += n;
    }
    write_left_ = step_;
    return static_cast<ssize_t>(moved);
  }
  ssize_t read(const iovec* parts, int count) override {
    size_t moved = 0;
    for (int i = 0; i < count; ++i) {
      const size_t n = std::min({parts[i].iov_len, read_left_ - moved, bytes.size() - position_});
      std::memcpy(parts[i].iov_base, bytes.data() + position_, n);
      position_ += n;
      moved += n;
    }
    read_left_ = step_;
    return moved == 0 && is_closed_ ? kGone : static_cast<ssize_t>(moved);
  }
  void finish_writing() override { is_closed_ = true; }

  std::vector<char> bytes;

 private:
  size_t write_left_, read_left_;
  const size_t step_;
  size_t position_ = 0;
  bool is_closed_ = false;
};

std::vector<char> payload(size_t length, int seed) {
  std::vector<char> values(length);
  for (size_t i = 0; i < length; ++i) values[i] = static_cast<char>(i * 31 + i / 251 + static_cast<size_t>(seed));
  return values;
}

// Sends a frame of each length, every third with a text before it; returns when all has left.
void send_all(Stream* stream, const std::vector<size_t>& lengths) {
  Operation operation;
  for (size_t k = 0; k < lengths.size(); ++k) {
    const std::vector<char> values = payload(lengths[k], static_cast<int>(k));
    FrameHeader header;
    if (k % 3 == 0) {
      header.type = FrameType::kDescribe;
      stream->send_control(header, std::string(k * 40 + 1, 't'));
    }
    header.type = FrameType::kData;
    header.message = static_cast<uint32_t>(k);
    header.length = static_cast<uint32_t>(lengths[k]);
    int64_t sent_bytes = 0;
    const int64_t work_bytes = static_cast<int64_t>(lengths[k]) * 2;  // as if it travelled in half the bytes
    auto flush_all = [&] {
      while (stream->has_output()) {
        Stream::Sent sent;
        CHECK(stream->flush(&sent) != Stream::Event::kGone);
        CHECK(sent.bytes == 0 || (sent.operation == &operation && sent.step == 5));
        sent_bytes += sent.bytes;
      }
    };
    flush_all();
    stream->send_data(header, values.data(), &operation, 5, work_bytes);
    flush_all();
    CHECK(sent_bytes == work_bytes);
  }
}

// Receives what send_all sent, as a whole or in parts that are used as they come.
void receive_all(Stream* stream, const std::vector<size_t>& lengths, bool in_parts) {
  size_t k = 0;
  std::vector<char> got;
  for (int idle = 0; k < lengths.size();) {
    const Stream::Event event = stream->receive();
    CHECK(event != Stream::Event::kGone);
    if (event == Stream::Event::kNothing) {
      stream->begin_visit();
      CHECK(++idle <= static_cast<int>(sizeof(FrameHeader)));  // a header may come byte by byte
      continue;
    }
    idle = 0;
    const bool is_data = stream->header().type == FrameType::kData;
    if (event == Stream::Event::kHeader) {
      CHECK(stream->header().valid(0));
      stream->forget_target();
      got.assign(in_parts && is_data ? 0 : stream->header().length, 0);
      if (!in_parts || !is_data) stream->set_target(got.data());
      continue;
    }
    if (in_parts && is_data) got.insert(got.end(), stream->staging(), stream->staging() + stream->part_bytes());
    CHECK(event == Stream::Event::kFrame || stream->part_bytes() % kGrainBytes == 0);
    if (event != Stream::Event::kFrame) continue;
    if (is_data) {
      CHECK(stream->header().message == k && got == payload(lengths[k], static_cast<int>(k)));
      ++k;
    } else {
      CHECK(std::string(got.begin(), got.end()) == std::string(k * 40 + 1, 't'));
    }
  }
}

void test(size_t first, size_t step, const std::vector<size_t>& lengths) {
  for (const bool in_parts : {false, true}) {
    auto drip = std::make_unique<Drip>(first, step);
    Drip* link = drip.get();
    Stream stream(std::move(drip));
    send_all(&stream, lengths);
    receive_all(&stream, lengths, in_parts);
    stream.begin_visit();
    CHECK(stream.receive() == Stream::Event::kNothing);
    link->finish_writing();
    stream.begin_visit();
    CHECK(stream.receive() == Stream::Event::kGone);
  }
}

}  // namespace
}  // namespace tfdist

int main() {
  const std::vector<size_t> lengths{1, 64, 2, 63, 200, 65, 4, 128};
  for (size_t first = 1; first < 1400; ++first) tfdist::test(first, 1 << 20, lengths);  // one cut, everywhere
  for (size_t step = 1; step < 300; ++step) tfdist::test(step, step, lengths);          // many cuts
  for (size_t step : {1000u, 16384u, 16448u, 100001u, 1u << 20}) {
    tfdist::test(step, step, {1 << 18, 3, (1 << 18) - 1, 1 << 17, 16384, 16385, 1});
  }
  std::puts("stream_test: all checks held");
}
