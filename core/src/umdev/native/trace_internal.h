/* trace: what dispatch looks at. Not seen by cffi. */
#ifndef UMDEV_TRACE_INTERNAL_H
#define UMDEV_TRACE_INTERNAL_H

#include <stdatomic.h>

extern atomic_int umdev_trace_on; /* 1: every access is recorded */

#endif
