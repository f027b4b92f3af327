// Objects that others know by a number, which may outlive them.
#ifndef TFDIST_COMMON_REGISTRY_H_
#define TFDIST_COMMON_REGISTRY_H_

#include <cstdint>
#include <map>
#include <mutex>

namespace tfdist {

// T has an int64_t `id`, and `references`, an int that starts at 1 and that this mutex guards.
template <typename T>
class Registry {
 public:
  static Registry& instance() {
    static Registry* registry = new Registry;  // threads may still ask while the process ends
    return *registry;
  }

  T* add(T* object) {
    std::lock_guard<std::mutex> lock(mutex_);
    object->id = next_id_++;
    objects_[object->id] = object;
    return object;
  }

  // Retained, or null.
  T* find(int64_t id) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto found = objects_.find(id);
    if (found == objects_.end()) return nullptr;
    ++found->second->references;
    return found->second;
  }

  void release(T* object) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (--object->references > 0) return;
      objects_.erase(object->id);
    }
    delete object;
  }

 private:
  std::mutex mutex_;  // guards what follows
  std::map<int64_t, T*> objects_;
  int64_t next_id_ = 1;
};

}  // namespace tfdist
#endif  // TFDIST_COMMON_REGISTRY_H_
