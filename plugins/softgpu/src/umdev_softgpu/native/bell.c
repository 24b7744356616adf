/* softgpu: how C gives work to a scheduler. A handler that rings needs neither the interpreter nor a lock of Python's:
 * its processor goes on at once, whoever computes. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

struct softgpu_bell {
    softgpu_bells *bells;
    softgpu_bell *next; /* among those that have rung */
    uint64_t number;
    bool rung;
};

struct softgpu_bells {
    pthread_mutex_t mutex; /* a leaf */
    pthread_cond_t changed;
    softgpu_bell *first, **last; /* rung, in the order of their ringing */
    bool woken;
    uint32_t owners; /* the scheduler, and each bell: who goes last may be anyone */
};

softgpu_bells *softgpu_bells_new(void)
{
    softgpu_bells *bells = calloc(1, sizeof *bells);
    if (!bells)
        return NULL;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&bells->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    pthread_mutex_init(&bells->mutex, NULL);
    bells->last = &bells->first;
    bells->owners = 1;
    return bells;
}

/* Takes the bell out of the list; the mutex is held. */
static void unlink_bell(softgpu_bells *bells, const softgpu_bell *bell)
{
    softgpu_bell **at = &bells->first;
    while (*at && *at != bell)
        at = &(*at)->next;
    if (!*at)
        return;
    *at = bell->next;
    if (!*at)
        bells->last = at;
}

static void disown(softgpu_bells *bells, softgpu_bell *bell)
{
    pthread_mutex_lock(&bells->mutex);
    if (bell)
        unlink_bell(bells, bell);
    bool last = --bells->owners == 0;
    pthread_mutex_unlock(&bells->mutex);
    free(bell);
    if (!last)
        return;
    pthread_cond_destroy(&bells->changed);
    pthread_mutex_destroy(&bells->mutex);
    free(bells);
}

void softgpu_bells_free(softgpu_bells *bells)
{
    if (bells)
        disown(bells, NULL);
}

softgpu_bell *softgpu_bell_new(softgpu_bells *bells, uint64_t number)
{
    softgpu_bell *bell = calloc(1, sizeof *bell);
    if (!bell)
        return NULL;
    bell->bells = bells;
    bell->number = number;
    pthread_mutex_lock(&bells->mutex);
    bells->owners++;
    pthread_mutex_unlock(&bells->mutex);
    return bell;
}

void softgpu_bell_free(softgpu_bell *bell)
{
    if (bell)
        disown(bell->bells, bell);
}

void softgpu_bell_ring(softgpu_bell *bell)
{
    softgpu_bells *bells = bell->bells;
    pthread_mutex_lock(&bells->mutex);
    if (!bell->rung) {
        bell->rung = true;
        bell->next = NULL;
        *bells->last = bell;
        bells->last = &bell->next;
        pthread_cond_signal(&bells->changed);
    }
    pthread_mutex_unlock(&bells->mutex);
}

int softgpu_bells_rung(softgpu_bells *bells)
{
    pthread_mutex_lock(&bells->mutex);
    int rung = bells->first != NULL;
    pthread_mutex_unlock(&bells->mutex);
    return rung;
}

uint64_t softgpu_bells_take(softgpu_bells *bells)
{
    pthread_mutex_lock(&bells->mutex);
    softgpu_bell *bell = bells->first;
    uint64_t number = 0;
    if (bell) {
        unlink_bell(bells, bell);
        bell->rung = false;
        number = bell->number;
    }
    pthread_mutex_unlock(&bells->mutex);
    return number;
}

void softgpu_bells_wake(softgpu_bells *bells)
{
    pthread_mutex_lock(&bells->mutex);
    bells->woken = true;
    pthread_cond_signal(&bells->changed);
    pthread_mutex_unlock(&bells->mutex);
}

void softgpu_bells_wait(softgpu_bells *bells, uint64_t ns)
{
    enum { SECOND = 1000000000 };
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t nanoseconds = (uint64_t)until.tv_nsec + ns % SECOND;
    until.tv_sec += (time_t)(ns / SECOND + nanoseconds / SECOND);
    until.tv_nsec = (long)(nanoseconds % SECOND);
    pthread_mutex_lock(&bells->mutex);
    int error = 0;
    while (!bells->woken && !bells->first && error != ETIMEDOUT)
        error = pthread_cond_timedwait(&bells->changed, &bells->mutex, &until);
    bells->woken = false;
    pthread_mutex_unlock(&bells->mutex);
}
