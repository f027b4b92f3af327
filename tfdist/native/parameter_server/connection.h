// The server's side of a worker's connection.
#ifndef TFDIST_PARAMETER_SERVER_CONNECTION_H_
#define TFDIST_PARAMETER_SERVER_CONNECTION_H_

#include <memory>
#include <string>
#include <vector>

#include "parameter_server/server.h"

namespace tfdist {

class Connection {
 public:
  Connection(Server* server, Channel* channel, int worker, uint64_t client)
      : server_(server), channel_(channel), worker_(worker), client_(client) {}

  void serve();  // until the worker leaves, or says what cannot be understood

 private:
  bool serve_one();
  bool receive_request();
  bool is_sound() const;
  bool open_window();
  bool receive_rows();
  bool receive_dense();
  bool check_rows(std::string* text) const;
  bool exchange();
  void apply(const Outcome& begun, size_t entry, char* fresh);
  bool apply_and_send(const Outcome& begun);
  void finish(const Outcome& begun);
  bool answer(Outcome outcome);
  template <typename Make>
  bool send_in_parts(bool listens, Make make);
  bool read_or_write();
  bool send_rows();
  bool take_offer();
  bool reply(const Outcome& outcome, size_t row_bytes, size_t dense_bytes);
  bool refuse(int code, const std::string& text);
  bool give_up(const char* what);
  bool send_dense(size_t begin, size_t end);
  size_t bytes_of_rows(const Entry& entry) const;
  bool is_shared() const { return (push_.header.flags & kShared) != 0; }
  bool pulls(size_t entry) const { return (push_.entries[entry].flags & kPull) != 0; }
  bool pushes_dense(size_t entry) const;
  bool is_stamped() const { return (push_.header.flags & kStamped) != 0; }
  uint64_t* stamp_of(size_t entry);  // null: none is wanted
  size_t words() const { return stamp_words(static_cast<size_t>(store_->num_workers())); }
  bool done(Channel::Result result) { return result == Channel::Result::kDone; }

  Server* const server_;
  Channel* const channel_;
  const int worker_;
  const uint64_t client_;
  Store* store_ = nullptr;
  Push push_;
  std::vector<size_t> offsets_;
  std::vector<uint64_t> stamps_;
  std::vector<char> rows_, answer_;
  std::shared_ptr<Memory> received_;  // dense values, where no window is shared
};

}  // namespace tfdist
#endif  // TFDIST_PARAMETER_SERVER_CONNECTION_H_
