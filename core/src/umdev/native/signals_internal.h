/* signals: what threads of the core leave to the program's own. Not seen by cffi. */
#ifndef UMDEV_SIGNALS_INTERNAL_H
#define UMDEV_SIGNALS_INTERNAL_H

#include <pthread.h>
#include <signal.h>

/* Blocks all signals in the calling thread but those that its own instructions raise: to block one of these ends the
 * process when it comes (sigprocmask(2)), and a client that shrinks its file makes any thread meet SIGBUS, which the
 * guard is for. *before: for umdev_signals_restore. */
static inline void umdev_signals_block(sigset_t *before)
{
    sigset_t others;
    sigfillset(&others);
    sigdelset(&others, SIGBUS);
    sigdelset(&others, SIGSEGV);
    sigdelset(&others, SIGILL);
    sigdelset(&others, SIGFPE);
    sigdelset(&others, SIGTRAP);
    sigdelset(&others, SIGSYS);
    pthread_sigmask(SIG_SETMASK, &others, before);
}

static inline void umdev_signals_restore(const sigset_t *before)
{
    pthread_sigmask(SIG_SETMASK, before, NULL);
}

#endif
