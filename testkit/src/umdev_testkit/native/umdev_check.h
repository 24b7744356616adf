/* What a plugin's C tests expect: the fixture `run_sanitized` finds it. */
#ifndef UMDEV_CHECK_H
#define UMDEV_CHECK_H

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* The test's program ends here, with status 1, unless the condition holds. */
#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #condition, errno);                          \
            _exit(1); /* from any thread, and whatever the others do */                                                \
        }                                                                                                              \
    } while (0)

#endif
