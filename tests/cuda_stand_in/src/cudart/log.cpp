// One JSON object a line, appended to the file that CUDA_STAND_IN_LOG names.
#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>

#include "cudart.h"

namespace stand_in {

static int opened() {
  const char* path = std::getenv("CUDA_STAND_IN_LOG");
  return path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
}

void log(const char* event, const std::string& name, size_t size, const std::string& more) {
  static const int file = opened();
  if (file < 0) return;
  const std::string line = std::string("{\"event\": \"") + event + "\", \"name\": \"" + name + "\", \"size\": " +
                           std::to_string(size) + ", \"captured\": " + (capture.load() ? "true" : "false") + more + "}\n";
  if (write(file, line.data(), line.size()) < 0) std::abort();  // a log with holes would be believed
}

}  // namespace stand_in

extern "C" void stand_in_log(const char* event, const char* name, size_t size) {
  const bool work = std::string(event) == "cublas" || std::string(event) == "cudnn";
  stand_in::Capture* current = stand_in::capture;
  if (work && current) ++current->nodes;
  stand_in::log(event, name, size);
}
