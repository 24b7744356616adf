/* Which signals a thread of the core takes. */
#ifndef SIGNALS_CHECK_H
#define SIGNALS_CHECK_H

#include <pthread.h>
#include <signal.h>

#include "check.h"

/* In a thread that runs a model's code: the program's signals are for others, SIGBUS is for the guard. */
static inline void check_signals(void)
{
    sigset_t blocked;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0);
    CHECK(sigismember(&blocked, SIGTERM) && sigismember(&blocked, SIGINT));
    CHECK(!sigismember(&blocked, SIGBUS) && !sigismember(&blocked, SIGSEGV));
}

#endif
