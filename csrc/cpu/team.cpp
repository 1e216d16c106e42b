#include "team.h"

#include <omp.h>

#include <exception>

namespace fastrnn::cpu {

void run_team(TeamJob& job, int num_threads) {
  if (num_threads <= 1) {
    job.prepare(1);
    job.work(0);
    return;
  }
  std::exception_ptr error;
#pragma omp parallel num_threads(num_threads) default(none) shared(job, error)
  {
    // By the calling thread, which keeps memory from call to call (buffer.h).
#pragma omp master
    {
      // An exception must not leave the region.
      try {
        job.prepare(omp_get_num_threads());
      } catch (...) {
        error = std::current_exception();
      }
    }
#pragma omp barrier
    if (!error) job.work(omp_get_thread_num());
  }
  if (error) std::rethrow_exception(error);
}

}  // namespace fastrnn::cpu
