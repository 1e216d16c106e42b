#include "workspace.h"

#include "buffer.h"

namespace fastrnn::cpu {

void* workspace(int64_t bytes) {
  thread_local Buffer buffer;
  thread_local int64_t size = 0;
  if (bytes > size) {
    size = 0;
    buffer.allocate(bytes);
    size = bytes;
  }
  return buffer.as<void>();
}

}  // namespace fastrnn::cpu
