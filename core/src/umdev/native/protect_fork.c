/* protect: what a child that the process has forked has of its parent's protectors: nothing.
 *
 * The child has none of the threads, so nobody would answer it, and a lock that one of them holds would stay locked.
 * And the descriptors speak of the parent's memory: what the child gave up would be given up there. So its protectors
 * have lost their guest, which every function knows how to deal with, before the child runs.
 */
#define _GNU_SOURCE
#include "protect_internal.h"

#include <unistd.h>

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER; /* taken before protectors' locks */
static pthread_once_t once = PTHREAD_ONCE_INIT;
static umdev_protector *protectors;

static void before_fork(void)
{
    pthread_mutex_lock(&list_mutex);
    for (umdev_protector *protector = protectors; protector; protector = protector->next)
        pthread_mutex_lock(&protector->lock);
}

static void after_fork(void)
{
    for (umdev_protector *protector = protectors; protector; protector = protector->next)
        pthread_mutex_unlock(&protector->lock);
    pthread_mutex_unlock(&list_mutex);
}

static void forget(umdev_protector *protector)
{
    umdev_protect_let_go(protector);
    close(protector->stop);
    close(protector->timer);
    protector->stop = protector->timer = -1;
    protector->threads = protector->starting = 0;
    protector->ended = NULL; /* there is nothing to join */
    protector->served = protector->standby = false;
    for (umdev_protect_client *client = protector->clients; client; client = client->next)
        client->due.telling = 0;
    pthread_cond_init(&protector->quiet, NULL); /* it counts threads that wait */
}

static void after_fork_in_child(void)
{
    for (umdev_protector *protector = protectors; protector; protector = protector->next)
        forget(protector);
    after_fork();
}

static void handle_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void umdev_protect_list(umdev_protector *protector)
{
    pthread_once(&once, handle_forks);
    pthread_mutex_lock(&list_mutex);
    protector->next = protectors;
    protectors = protector;
    pthread_mutex_unlock(&list_mutex);
}

void umdev_protect_unlist(umdev_protector *protector)
{
    pthread_mutex_lock(&list_mutex);
    umdev_protector **link = &protectors;
    while (*link && *link != protector)
        link = &(*link)->next;
    if (*link)
        *link = protector->next;
    pthread_mutex_unlock(&list_mutex);
}
